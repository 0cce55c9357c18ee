"""Answer questions with a system of agents that collaborate in latent space.

Questions come as arguments, from a file (one a line, or JSON lines with "question"), or from standard input.

Examples:
  recursivemas solve "3+5*2-4"
  recursivemas solve --rounds 1 "3+5*2-4+7" "8-2"
  cat questions.txt | recursivemas solve --json > answers.jsonl
  recursivemas solve --system path/to/system --mode text --file questions.jsonl
  recursivemas solve --system systems/deliberation --tools calculator "a=c b=4 c=d d=7 e=b f=2 376*a"
"""

import argparse
import json
import sys
from pathlib import Path

from ..errors_recursivemas import InputError
from .commands import add_system_arguments, load_from_arguments, progress, solve_arguments


def read_questions(lines: list[str], where: str) -> list[str]:
    """Questions from lines: JSON objects with "question", or plain text; blank lines are none."""
    questions = []
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("{"):
            try:
                questions.append(json.loads(line)["question"])
            except (ValueError, KeyError) as error:
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
    parser.add_argument("--rounds", type=int, help="recursion rounds (default: the system's)")
    parser.add_argument("--mode", default="latent", help="latent, text (hand over text) or alone (default: latent)")
    parser.add_argument("--prompts", help="JSON file with a prompt set that replaces the system's")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each question")
    add_system_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    questions = arguments.questions
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
    mas = load_from_arguments(arguments)
    with progress(len(questions), "Solving") as bar:
        solutions = mas.solve(
            questions,
            num_rounds=arguments.rounds,
            prompts=arguments.prompts,
            mode=arguments.mode,
            on_progress=bar.update,
            **solve_arguments(arguments),
        )
    for question, solution in zip(questions, solutions, strict=True):
        if arguments.json:
            row = {"question": question, "text": solution.text, "answer": solution.answer, "usage": solution.usage}
            print(json.dumps(row, ensure_ascii=False))
        elif len(questions) == 1:
            print(solution.text)
        else:
            print(f"{question}\t{solution.text}")
    return 0
