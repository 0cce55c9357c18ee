"""Answer questions with a system of agents that collaborate in latent space.

Questions come as arguments, from a file (one a line, or JSON lines with "question"), or from standard input. Where the
prompts of a system name further fields, a JSON line holds them too, or --input gives them for every question.

Answers come in the order of the questions, a batch at a time. With --output each is in the file as soon as it is
there: after Ctrl-C, SIGTERM or a kill the same command with --resume goes on behind them.

Examples:
  recursivemas solve "3+5*2-4"
  recursivemas solve --rounds 1 "3+5*2-4+7" "8-2"
  cat questions.txt | recursivemas solve --json > answers.jsonl
  recursivemas solve --file questions.jsonl --output answers.jsonl
  recursivemas solve --file questions.jsonl --output answers.jsonl --resume
  recursivemas solve --system path/to/system --mode text --file questions.jsonl
  recursivemas solve --system my-system --input facts="Ben works as a writer." "What is the job of Ben?"
  recursivemas solve --system systems/deliberation --tools calculator "a=c b=4 c=d d=7 e=b f=2 376*a"
  recursivemas solve --system my-system --tools python search --allow-code --search-index notes/ "How many poems?"
"""

import argparse
import json
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ..errors_recursivemas import InputError
from ..files_recursivemas import lines_of, parse_json, read_lines, text_of
from ..prompts_recursivemas import as_inputs, as_text, input_fields
from ..runs_recursivemas import CONTROLS
from ..solutions_recursivemas import Solution
from .commands import (
    add_input_argument,
    add_inputs,
    add_output_arguments,
    add_system_arguments,
    inputs_of,
    load_from_arguments,
    number_of_rounds,
    progress,
    solve_arguments,
)
from .interrupts import interruptible
from .rows import RowFile, asked_of


def read_questions(lines: Iterable[str | bytes], source: object) -> list[str | dict[str, Any]]:
    """Questions from lines: JSON objects with "question", or plain text; blank lines are none.

    Raises:
        InputError: a line is not UTF-8, or begins like a JSON object and is none with a question.
    """
    questions: list[str | dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        where = f"{source}, line {number}"
        text = text_of(line, InputError, where) if isinstance(line, bytes) else line
        if text.lstrip().startswith("{"):
            row = parse_json(text, InputError, where)
            if not isinstance(row.get("question"), str):
                expected = '{"question": "…"}, or plain text'
                raise InputError("A line holds no question.", where=where, found=text, expected=expected)
            questions.append(row)
        elif text.strip():
            questions.append(text)
    return questions


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("questions", nargs="*", help="the questions; none: read from --file or standard input")
    parser.add_argument("--file", help="file with one question a line (text or JSON lines)")
    add_input_argument(parser)
    parser.add_argument("--rounds", type=number_of_rounds, help="recursion rounds, or auto (default: the system's)")
    parser.add_argument("--mode", default="latent", help="latent, text (hand over text) or alone (default: latent)")
    parser.add_argument(
        "--control", choices=CONTROLS, help="what stands in for the latents, see recursivemas controls"
    )
    parser.add_argument("--prompts", help="JSON file with a prompt set that replaces the system's")
    add_output_arguments(parser, "file for the answers, one JSON object for each question")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each question")
    add_system_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    questions = [*arguments.questions, *getattr(arguments, "more_questions", [])]
    if not questions and arguments.file:
        questions = read_questions((line for _, line in read_lines(arguments.file, InputError)), arguments.file)
    elif not questions:
        lines = lines_of(sys.stdin.buffer, InputError, "standard input")
        questions = read_questions((line for _, line in lines), "standard input")
    if not questions:
        hint = "give questions as arguments, --file or stdin"
        raise InputError("There is no question.", where="recursivemas solve", hint=hint)
    if arguments.resume and not arguments.output:
        raise InputError("There is nothing to go on with.", where="--resume", hint="name the --output of the run")
    done, options = 0, solve_arguments(arguments)

    def say() -> str:
        told = f"interrupted: {done} of {len(questions)} questions are answered"
        if arguments.output:
            return f"{told}, see {arguments.output}; the same command with --resume goes on"
        return f"{told}; with --output they are kept, and --resume goes on"

    with interruptible(say), opened(arguments, questions) as row_file:
        done = len(row_file.rows) if row_file else 0
        mas = load_from_arguments(arguments)
        if row_file:
            row_file.of_system(mas)
        fields = input_fields(mas.config.run_settings(prompts=arguments.prompts).prompts)
        known = [question if isinstance(question, str) else inputs_of(question, fields) for question in questions]
        asked = [add_inputs(question, arguments.input) for question in known][done:]

        def answered(indices: list[int], solutions: list[Solution]) -> None:
            nonlocal done
            for index, solution in zip(indices, solutions, strict=True):
                answer = {"text": solution.text, "answer": solution.answer, "usage": solution.usage}
                row = {**as_inputs(asked[index]), **answer}
                if row_file:
                    row_file.write([row])
                elif arguments.json:
                    print(json.dumps(row, ensure_ascii=False), flush=True)
                elif len(questions) == 1:
                    print(solution.text)
                else:
                    print(f"{as_text(asked[index])}\t{solution.text}", flush=True)
                done += 1

        if not asked:
            print(f"already finished: nothing was changed in {arguments.output}", file=sys.stderr)
            return 0
        with progress(len(questions), "Solving") as bar:
            bar.update(done)
            mas.solve(
                asked,
                num_rounds=arguments.rounds,
                prompts=arguments.prompts,
                mode=arguments.mode,
                control=arguments.control,
                on_progress=bar.update,
                on_solutions=answered,
                keep_order=True,
                **options,
            )
    return 0


def opened(arguments: argparse.Namespace, questions: list) -> AbstractContextManager[RowFile | None]:
    """The rows of `--output`, if any.

    Raises:
        InputError: see `RowFile`; or the rows that are there cannot be gone on with.
    """
    if not arguments.output:
        return nullcontext()
    asked = asked_of(arguments, questions)
    if arguments.prompts and Path(arguments.prompts).is_file():
        asked["prompts"] = Path(arguments.prompts).read_text(encoding="utf-8", errors="replace")
    row_file = RowFile(arguments.output, asked, arguments.resume, arguments.replace)
    if arguments.control == "other_question" and 0 < len(row_file.rows) < len(questions):
        row_file.close()
        raise InputError(
            "What these questions are answered with depends on their neighbours.",
            where="--control other_question",
            hint="remove the output and ask all of them again",
        )
    return row_file
