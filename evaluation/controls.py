"""See whether the channel carries anything: the same questions, with other things in the slots than the latents.

Measured for each number of rounds: the real latents; none; another question's latents; noise of equal number and
norms; the text of their nearest tokens; the agents' own text, cut to as many tokens as there are latents at its start
or its end; their whole text; and the last agent alone. Each is compared with the real latents on the same questions:
the difference with its 95 % bootstrap interval, and McNemar's exact p. The channel carries the answer where the real
latents beat all three that tell nothing of the question (none, another question's, noise). Another question is the
next one of the batch; questions are put in an order in which neighbours have different answers, where that can be.

With --output the results are stored as JSON (commit, versions, settings, figures, verdicts, and a row for each
question, control and number of rounds), with a plot beside. Until then every answer is kept as it comes, in
<output>.rows.jsonl: after Ctrl-C, SIGTERM or a kill the same command with --resume goes on.

Examples:
  recursivemas controls --data arithmetic --rounds 1 2
  recursivemas controls --system my-system --data questions.jsonl --metric contains --output results/channel.json
  recursivemas controls --data arithmetic --json | jq -r '.verdicts[]'
"""

import argparse
import json
import sys
from collections import Counter
from typing import Any

from ..errors_recursivemas import InputError
from ..modeling_recursivemas import RecursiveMASModel
from ..runs_recursivemas import CONTROLS
from .commands import (
    add_data_arguments,
    add_output_arguments,
    add_system_arguments,
    load_from_arguments,
    progress,
    solve_arguments,
)
from .measure import described, load_data, measure
from .paired import paired_difference
from .plots import plot_controls
from .results import provenance, table
from .rows import asked_of, finished_results, keeping_rows

REAL = "latents"
# What is measured: its name -> arguments of `solve`.
HAND_OVERS: dict[str, dict[str, Any]] = {
    REAL: {"mode": "latent"},
    **{control: {"mode": "latent", "control": control} for control in CONTROLS},
    "text": {"mode": "text"},
    "alone": {"mode": "alone"},
}
# Those in which nothing that was sent for the question reaches the answer, in words.
EMPTY = {"none": "none", "other_question": "another question's", "noise": "noise"}


def configure(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser, num_questions=500)
    parser.add_argument("--rounds", type=int, nargs="+", default=[1], help="numbers of rounds (default: 1)")
    add_output_arguments(parser, "JSON file for the results; a plot goes beside it (.png)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")
    add_system_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    results = _measure(arguments)
    if arguments.json:
        print(json.dumps(results, ensure_ascii=False))
    else:
        print("\n".join([table(results["controls"]), "", *results["verdicts"]]))
    return 0


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rows, metric = load_data(arguments)
    rows, options = among_others(rows), solve_arguments(arguments)
    asked = asked_of(arguments, rows)
    if results := finished_results(arguments.output, asked, arguments.resume, "controls"):
        return results
    with keeping_rows(arguments.output, asked, arguments.resume, arguments.replace) as row_file:
        mas = load_from_arguments(arguments)
        if row_file:
            row_file.of_system(mas)
        figures = compare(mas, rows, arguments.rounds, arguments.seed, metric=metric, row_file=row_file, **options)
        results = {
            **provenance(),
            "settings": {**described(arguments, mas, len(rows), metric), "rounds": arguments.rounds},
            "controls": [
                {name: of for name, of in row.items() if name not in ("answers", "right", "release")}
                for row in figures
            ],
            "verdicts": [verdict(figures, num_rounds) for num_rounds in arguments.rounds],
            "rows": answer_rows(rows, figures),
        }
        if row_file:
            row_file.end(arguments.output, results)
            try:
                plot_controls(figures, arguments.output.with_suffix(".png"))
            except InputError as error:
                print(error, file=sys.stderr)
    return results


def among_others(rows: list[dict]) -> list[dict]:
    """Rows in an order in which neighbours have different answers, unless one answer is that of more than half.

    Raises:
        InputError: fewer than two rows.
    """
    if len(rows) < 2:
        raise InputError("There is no other question.", where="--data", found=len(rows), expected="two questions")
    often = Counter(row["answer"] for row in rows)
    rows = sorted(rows, key=lambda row: (-often[row["answer"]], row["answer"]))
    mixed = list(rows)
    mixed[::2], mixed[1::2] = rows[: (len(rows) + 1) // 2], rows[(len(rows) + 1) // 2 :]
    return mixed


def compare(
    mas: RecursiveMASModel, rows: list[dict], rounds: list[int], seed: int = 0, **arguments: Any
) -> list[dict[str, Any]]:
    """`measure` for every hand-over and number of rounds.

    Returns:
        What `measure` returns, with "control", the name of the hand-over, and, but for the real latents, how much
        "better" these are (see `paired_difference`). "alone" has no rounds: it is measured once, compared with each.
    """
    figures: list[dict[str, Any]] = []
    alone: dict[str, Any] = {}
    with progress(((len(HAND_OVERS) - 1) * len(rounds) + 1) * len(rows), "Answering") as bar:
        for num_rounds in rounds:
            for name, chosen in HAND_OVERS.items():
                settings = {**arguments, **chosen, "num_rounds": num_rounds, "on_progress": bar.update}
                if name == "other_question":
                    settings["batch_size"] = max(2, settings.get("batch_size", 2))
                figure = alone if name == "alone" and alone else measure(mas, rows, **settings)
                alone = figure if name == "alone" else alone
                figures.append({**figure, "control": name, "num_rounds": num_rounds})
                if name == REAL:
                    real = figure["right"]
                else:
                    figures[-1]["better"] = paired_difference(real, figure["right"], seed)
    return figures


def answer_rows(rows: list[dict], figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each question, hand-over and number of rounds."""
    return [
        {
            "row": index,
            "question": row["question"],
            "control": figure["control"],
            "num_rounds": figure["num_rounds"],
            "answer": answer,
            "right": figure["right"][index],
            **({"release": figure["release"][index]} if "release" in figure else {}),
        }
        for figure in figures
        for index, (row, answer) in enumerate(zip(rows, figure["answers"], strict=True))
    ]


def verdict(figures: list[dict[str, Any]], num_rounds: int) -> str:
    """In words: does the channel carry anything in so many rounds."""
    of = {row["control"]: row for row in figures if row["num_rounds"] == num_rounds}
    better = {name: of[name]["better"] for name in EMPTY}
    shown = {name for name, found in better.items() if found["interval"][0] > 0 and found["p"] < 0.05}
    least = max(better.values(), key=lambda found: (found["p"], -found["difference"]))
    told = ", ".join(f"{words} {of[name]['accuracy']:.2f}" for name, words in EMPTY.items())
    if shown == set(EMPTY):
        says = "the channel carries the answer"
    elif "other_question" in shown:
        rest = " or ".join(words for name, words in EMPTY.items() if name not in shown)
        says = f"it matters whose latents arrive, but nothing shows that they are better than {rest}"
    else:
        says = "nothing shows that the channel carries anything"
    low, high = least["interval"]
    p = "p < 0.001" if least["p"] < 0.001 else f"p = {least['p']:.3f}"
    found = f"least difference {least['difference']:+.2f} [{low:.2f}, {high:.2f}], {p}"
    return f"r = {num_rounds}: latents {of[REAL]['accuracy']:.2f}; {told}: {says} ({found})"
