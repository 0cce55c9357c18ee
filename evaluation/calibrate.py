"""Find out when the recursion of a system has settled, and store it: what `num_rounds="auto"` means.

Asks held-out questions, never those of a test, with every number of rounds up to --max-rounds, and looks at what the
agents sent meanwhile. Three signals are tried: a stage passes on what it received (turns), or what it sent a round
before, as text (rounds) or as vectors (latents). The threshold that is stored is the one that saves most turns of
agents while at most --tolerance of the questions that are right after all rounds become wrong. It is written as
`settling` into the system's config.json; the system's default number of rounds stays as it is.

Examples:
  recursivemas calibrate --system my-system --data held-out.jsonl --max-rounds 4
  recursivemas calibrate --data arithmetic --max-rounds 4 --num-questions 300 --no-store
  recursivemas evaluate --system my-system --data test.jsonl --modes latent --rounds 1 2 3 4 auto
"""

import argparse
import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from ..errors_recursivemas import InputError
from ..files_recursivemas import read_object
from ..folders_recursivemas import write_text
from ..modeling_recursivemas import RecursiveMASModel
from ..runs_recursivemas import AUTO, SIGNALS
from ..solutions_recursivemas import Solution
from .commands import (
    add_data_arguments,
    add_system_arguments,
    inputs_of,
    load_from_arguments,
    progress,
    solve_arguments,
)
from .depth import Point, Trace, candidates, point, traces
from .measure import load_data, measure
from .rows import asked_of

SEED = 30000  # not the one that `evaluate` measures with


def configure(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser, num_questions=300, seed=SEED)
    parser.add_argument("--max-rounds", type=int, help="most rounds of a question (default: the system's rounds)")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="share of right answers that may be lost (default: 0)"
    )
    parser.add_argument("--no-store", action="store_true", help="print what was found and change nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_system_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.tolerance < 1:
        raise InputError("--tolerance is a share.", where="--tolerance", found=arguments.tolerance, expected="0 to 1")
    rows, metric = load_data(arguments)
    mas = load_from_arguments(arguments)
    file = Path(mas.config.name_or_path or "", "config.json")
    if not arguments.no_store and not file.is_file():
        hint = "save it in a folder of yours, or say --no-store and put what is printed into its config.json"
        raise InputError("The system is not in a folder here.", where="--system", found=arguments.system, hint=hint)
    most = arguments.max_rounds or mas.config.most_rounds
    right, looked_at = look(mas, rows, most, metric=metric, **solve_arguments(arguments))
    best = {signal: choose(signal, looked_at, right, arguments.tolerance) for signal in SIGNALS}
    chosen = min(best.values(), key=lambda each: each.turns)
    full = point(chosen.signal, -1, looked_at, right)
    settling = None
    if chosen.turns < full.turns:
        questions = asked_of(arguments, rows)["questions"]
        calibrated = {"date": date.today().isoformat(), "data": Path(arguments.data).name, "questions": questions}
        settling = {"signal": chosen.signal, "threshold": chosen.threshold, "max_rounds": most}
        settling["calibrated"] = calibrated
        if not arguments.no_store:
            store(file, settling)
    if arguments.json:
        tried = [asdict(each) for each in (full, *best.values())]
        print(json.dumps({"settling": settling, "points": tried, "num_questions": len(rows)}))
    else:
        print(describe(full, best, chosen, len(rows), most))
        kept = "not stored" if arguments.no_store else f"stored in {file}"
        print(f"{kept}: {json.dumps(settling)}" if settling else "every question needs all rounds: nothing is stored")
    return 0 if settling else 1


def look(
    mas: RecursiveMASModel, rows: list[dict], most: int, metric: str, **arguments: Any
) -> tuple[dict[int, list[bool]], list[dict[str, Trace]]]:
    """Number of rounds -> whether each row is right with it; and what each signal saw of each row.

    `arguments` are those of `solve`.
    """
    right: dict[int, list[bool]] = {}
    seen: dict[int, dict[str, Trace]] = {}

    def keep(indices: list[int], solutions: list[Solution]) -> None:
        seen.update((index, traces(mas.topology, most, each)) for index, each in zip(indices, solutions, strict=True))

    with progress((most + 1) * len(rows), "Calibrating") as bar:
        arguments["on_progress"] = bar.update
        for number in range(1, most + 1):
            right[number] = measure(mas, rows, "latent", number, metric=metric, **arguments)["right"]
        never = {"signal": "latents", "threshold": -1, "max_rounds": most}
        questions = [inputs_of(row, mas.input_fields) for row in rows]
        mas.solve(
            questions, num_rounds=AUTO, settling=never, return_latents=True, on_solutions=keep,
            **{**arguments, "max_new_tokens": 1},
        )  # fmt: skip
    return right, [seen[index] for index in range(len(rows))]


def choose(signal: str, rows: list[dict[str, Trace]], right: dict[int, list[bool]], tolerance: float = 0.0) -> Point:
    """The threshold that saves most turns without losing more than a share of the right answers."""
    points = [point(signal, threshold, rows, right) for threshold in (-1.0, *candidates(signal, rows))]
    allowed = tolerance * sum(right[max(right)])
    return min((each for each in points if each.lost <= allowed), key=lambda each: (each.turns, each.threshold))


def store(file: Path, settling: dict[str, Any]) -> None:
    """Puts `settling` into a system's config.json, in one step; the rest stays as it is."""
    content = {**read_object(file, InputError), "settling": settling}
    try:
        write_text(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise InputError("The configuration cannot be written.", where=file, found=error) from error


def describe(full: Point, best: dict[str, Point], chosen: Point, number: int, most: int) -> str:
    """The best threshold of each signal as a table."""
    lines = [f"{number} questions, up to {most} rounds", "signal    threshold  accuracy  rounds   turns   of all"]
    for name, each in {"all rounds": full, **best}.items():
        threshold = "" if each is full or each.threshold < 0 else f"{each.threshold:.3g}"
        share = each.turns / full.turns
        lines.append(
            f"{name:<10}{threshold:>9}{each.accuracy:>10.3f}{each.rounds_used:>8.2f}{each.turns:>8.2f}{share:>9.0%}"
            f"{'  <-' if each is chosen and each is not full else ''}"
        )
    return "\n".join(lines)
