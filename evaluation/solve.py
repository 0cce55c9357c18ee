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

import torch
from transformers.utils import logging

from ..errors_recursivemas import InputError
from ..modeling_recursivemas import RecursiveMASModel
from ..system_loader import ROOT, load_mas_system
from ..tools_recursivemas import calculator

# What --tools knows: name -> tags and their functions, see `RecursiveMASModel.solve`.
TOOLS = {"calculator": {"python": calculator}}

SMALL_AGENT = 10_000_000  # parameters


def add_system_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which system to load, and where."""
    parser.add_argument(
        "--system", default=str(ROOT), help="folder, Hub repository or style (default: the shipped one)"
    )
    parser.add_argument("--dataset", default="math500", help="of a released system: chooses links and settings")
    parser.add_argument("--device", help="for example cuda (default: the CPU)")
    parser.add_argument("--dtype", default="auto", help="of the agents (default: as stored)")
    parser.add_argument("--batch-size", type=int, default=32, help="questions that run side by side (default: 32)")
    parser.add_argument("--latent-steps", type=int, help="latent steps of a rollout (default: the system's)")
    parser.add_argument("--max-new-tokens", type=int, help="most tokens of an answer (default: the system's)")
    parser.add_argument(
        "--tools", choices=TOOLS, help="answer the calls in what the system writes (default: calls stay text)"
    )
    parser.add_argument("--task", help="default, math, choice, code or reasoning (default: the system's)")


def load_from_arguments(arguments: argparse.Namespace) -> RecursiveMASModel:
    """The system that `add_system_arguments` describes."""
    mas = load_mas_system(arguments.system, arguments.dataset, device=arguments.device, dtype=arguments.dtype)
    limit_threads(mas)
    return mas


def limit_threads(mas: RecursiveMASModel) -> None:
    """One thread for agents so small that threads only wait for each other (50 times as slow on busy cores)."""
    if max(agent.num_parameters() for agent in mas.agents.values()) < SMALL_AGENT:
        torch.set_num_threads(1)


def progress(total: int, description: str, unit: str = "question") -> logging.tqdm:
    """A progress bar on standard error, for what takes more than two seconds."""
    return logging.tqdm(total=total, desc=description, unit=unit, leave=False, delay=2)


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
    if arguments.questions:
        questions = arguments.questions
    elif arguments.file:
        try:
            questions = read_questions(Path(arguments.file).read_text(encoding="utf-8").splitlines(), arguments.file)
        except OSError as error:
            raise InputError("A file cannot be read.", where="--file", found=error) from error
    else:
        questions = read_questions(sys.stdin.readlines(), "standard input")
    if not questions:
        raise InputError(
            "There is no question.", where="recursivemas solve", hint="give questions as arguments, --file or stdin"
        )
    mas = load_from_arguments(arguments)
    with progress(len(questions), "Solving") as bar:
        solutions = mas.solve(
            questions,
            num_rounds=arguments.rounds,
            latent_steps=arguments.latent_steps,
            task=arguments.task,
            prompts=arguments.prompts,
            mode=arguments.mode,
            batch_size=arguments.batch_size,
            max_new_tokens=arguments.max_new_tokens,
            tools=TOOLS.get(arguments.tools),
            on_progress=bar.update,
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
