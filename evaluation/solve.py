"""Answer questions with a system of agents that collaborate in latent space.

Questions come as arguments, from a file (one a line, or JSON lines with "question"), or from standard input. Where the
prompts of a system name further fields, a JSON line holds them too, or --input gives them for every question.

Examples:
  recursivemas solve "3+5*2-4"
  recursivemas solve --rounds 1 "3+5*2-4+7" "8-2"
  cat questions.txt | recursivemas solve --json > answers.jsonl
  recursivemas solve --system path/to/system --mode text --file questions.jsonl
  recursivemas solve --system my-system --input facts="Ben works as a writer." "What is the job of Ben?"
  recursivemas solve --system systems/deliberation --tools calculator "a=c b=4 c=d d=7 e=b f=2 376*a"
  recursivemas solve --system my-system --tools python search --allow-code --search-index notes/ "How many poems?"
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..configuration_recursivemas import CONTROLS
from ..errors_recursivemas import InputError
from ..prompts_recursivemas import as_inputs, as_text, input_fields
from .commands import (
    add_input_argument,
    add_inputs,
    add_system_arguments,
    inputs_of,
    load_from_arguments,
    progress,
    solve_arguments,
)


def read_questions(lines: list[str], where: str) -> list[str | dict[str, Any]]:
    """Questions from lines: JSON objects with "question", or plain text; blank lines are none."""
    questions: list[str | dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("{"):
            try:
                row = json.loads(line)
                if "question" not in row:
                    raise ValueError('no "question"')
                questions.append(row)
            except ValueError as error:
                raise InputError(
                    "A line holds no question.",
                    where=f"{where}, line {number}",
                    found=f"{line.strip()[:80]} ({error!r})",
                    expected='{"question": "…"}, or plain text',
                ) from error
        elif line.strip():
            questions.append(line.rstrip("\r\n"))
    return questions


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("questions", nargs="*", help="the questions; none: read from --file or standard input")
    parser.add_argument("--file", help="file with one question a line (text or JSON lines)")
    add_input_argument(parser)
    parser.add_argument("--rounds", type=int, help="recursion rounds (default: the system's)")
    parser.add_argument("--mode", default="latent", help="latent, text (hand over text) or alone (default: latent)")
    parser.add_argument(
        "--control", choices=CONTROLS, help="what stands in for the latents, see recursivemas controls"
    )
    parser.add_argument("--prompts", help="JSON file with a prompt set that replaces the system's")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each question")
    add_system_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    questions = [*arguments.questions, *getattr(arguments, "more_questions", [])]
    if not questions and arguments.file:
        try:
            questions = read_questions(Path(arguments.file).read_text(encoding="utf-8").splitlines(), arguments.file)
        except OSError as error:
            raise InputError("A file cannot be read.", where="--file", found=error) from error
    elif not questions:
        questions = read_questions(sys.stdin.readlines(), "standard input")
    if not questions:
        hint = "give questions as arguments, --file or stdin"
        raise InputError("There is no question.", where="recursivemas solve", hint=hint)
    options = solve_arguments(arguments)
    mas = load_from_arguments(arguments)
    fields = input_fields(mas.config.run_settings(prompts=arguments.prompts).prompts)
    questions = [question if isinstance(question, str) else inputs_of(question, fields) for question in questions]
    questions = [add_inputs(question, arguments.input) for question in questions]
    with progress(len(questions), "Solving") as bar:
        solutions = mas.solve(
            questions,
            num_rounds=arguments.rounds,
            prompts=arguments.prompts,
            mode=arguments.mode,
            control=arguments.control,
            on_progress=bar.update,
            **options,
        )
    for question, solution in zip(questions, solutions, strict=True):
        if arguments.json:
            answer = {"text": solution.text, "answer": solution.answer, "usage": solution.usage}
            row = {**as_inputs(question), **answer}
            print(json.dumps(row, ensure_ascii=False))
        elif len(questions) == 1:
            print(solution.text)
        else:
            print(f"{as_text(question)}\t{solution.text}")
    return 0
