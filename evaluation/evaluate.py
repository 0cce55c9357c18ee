"""Measure a system: accuracy and cost against recursion rounds, for latents, for text hand-over, and for one agent.

The data are fresh questions of a task that this repository generates (by name), or a JSON-lines file with "question",
"answer" and what further fields the system's prompts name. An answer counts when it equals the right one, or by
--metric, for example when it is equal in value (math), the right word stands in it (contains), or the tests of the row
pass (code, which runs programs in the sandbox and needs --allow-code); a missing answer is wrong. Metrics of
benchmarks judge by the public release's rules too (docs/benchmarks.md). The report is printed, with --output stored as
JSON (commit, versions, machine, settings, figures with 95 % Wilson intervals, every answer) with a plot beside (where
more than one setting was measured). Of several numbers of rounds, the bound is printed too: the accuracy and rounds of
whoever knew for each question the fewest rounds at which it is right; `--rounds auto` comes near it, see `recursivemas
calibrate`. Until then every answer is kept as it comes, in <output>.rows.jsonl: after Ctrl-C, SIGTERM or a kill the
same command with --resume goes on.

Examples:
  recursivemas evaluate --data arithmetic --levels 1 2 3 4 5 6 7 8 9 --num-questions 900 --seed 20000
  recursivemas evaluate --data questions.jsonl --rounds 1 3 --modes latent text --output results/mine.json
  recursivemas evaluate --system systems/mixture --data registers --without adder
  recursivemas evaluate --data arithmetic --modes latent --rounds 1 2 3 4 auto
  recursivemas evaluate --data arithmetic --json | jq '.figures[] | [.mode, .num_rounds, .accuracy]'
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors_recursivemas import InputError
from ..runs_recursivemas import MODES
from ..tasks import TASKS
from .commands import (
    add_data_arguments,
    add_output_arguments,
    add_system_arguments,
    load_from_arguments,
    number_of_rounds,
    solve_arguments,
)
from .depth import bounds, describe_bound, warn_of_calibration
from .measure import described, evaluate, load_data, questions_of, without
from .plots import plot_evaluation
from .results import provenance, read_results, table
from .rows import asked_of, finished_results, keeping_rows


def configure(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser, num_questions=600)
    parser.add_argument(
        "--rounds", type=number_of_rounds, nargs="+", default=[1, 2, 3, 4], metavar="ROUNDS",
        help="numbers of rounds to measure, and auto: as many as each question needs",
    )  # fmt: skip
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES, help="what to measure")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="ROLE", help="leave out roles: what they are worth"
    )
    parser.add_argument("--group-by", help="field of the rows to break accuracy down by (default: the task's own)")
    parser.add_argument("--from", dest="stored", type=Path, help="show stored results again, draw their plot anew")
    add_output_arguments(parser, "JSON file for the results; a plot goes beside it (.png)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")
    add_system_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.stored:
        results, output = read_results(arguments.stored), arguments.stored
    else:
        results, output = _measure(arguments), arguments.output
    if output and len(results["figures"]) > 1:
        try:
            plot_evaluation(results["figures"], results["settings"].get("group_by"), output.with_suffix(".png"))
        except InputError as error:
            print(error, file=sys.stderr)
    if arguments.json:
        print(json.dumps(results, ensure_ascii=False))
    else:
        print("\n".join([table(results["figures"]), *map(describe_bound, results.get("bounds", []))]))
    return 0


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rows, metric = load_data(arguments)
    group_by = arguments.group_by or getattr(TASKS.get(arguments.data), "GROUP_BY", None)
    options = {**solve_arguments(arguments), "group_by": group_by, "metric": metric}
    asked = asked_of(arguments, rows, free=["group_by"])
    if results := finished_results(arguments.output, asked, arguments.resume):
        return results
    with keeping_rows(arguments.output, asked, arguments.resume, arguments.replace) as row_file:
        mas = without(load_from_arguments(arguments), arguments.without)
        if row_file:
            row_file.of_system(mas)
        warn_of_calibration(mas, asked, arguments.rounds)
        figures = evaluate(mas, rows, arguments.modes, arguments.rounds, row_file=row_file, **options)
        settings = described(arguments, mas, len(rows), metric) | {"without": arguments.without, "group_by": group_by}
        measured = {"figures": figures, "bounds": bounds(figures), "questions": questions_of(rows, group_by)}
        results = {**provenance(), "settings": settings, **measured}
        if row_file:
            row_file.end(arguments.output, results)
    return results
