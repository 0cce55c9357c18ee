"""Adaptive depth, measured: the bound of a hand-over, and what a threshold would do to rows that were looked at."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..depth_recursivemas import change, stages
from ..modeling_recursivemas import RecursiveMASModel
from ..runs_recursivemas import AUTO, SIGNALS
from ..solutions_recursivemas import Solution
from ..topology_recursivemas import Topology

# Of each stage of a row's run: how much changed, the round that could be answered behind it, the turns until then.
Trace = list[tuple[float, int, int]]


def bounds(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each hand-over that was measured with several numbers of rounds, what is possible for whoever knows.

    Returns:
        "mode", "accuracy" (right at some number of rounds), "rounds_used" (the fewest at which a row is right, the
        most measured where it never is; the mean), and "curve": what was measured, [rounds, accuracy], cheapest first.
    """
    found = []
    for mode in dict.fromkeys(figure["mode"] for figure in figures):
        own = [figure for figure in figures if figure["mode"] == mode]
        fixed = sorted((each for each in own if each["num_rounds"] != AUTO), key=lambda each: each["num_rounds"])
        if len(fixed) < 2:
            continue
        numbers = [each["num_rounds"] for each in fixed]
        firsts = [
            next((number for number, is_right in zip(numbers, row, strict=True) if is_right), None)
            for row in zip(*(each["right"] for each in fixed), strict=True)
        ]
        found.append(
            {
                "mode": mode,
                "accuracy": sum(first is not None for first in firsts) / len(firsts),
                "rounds_used": sum(first or numbers[-1] for first in firsts) / len(firsts),
                "curve": sorted([each.get("rounds_used", each["num_rounds"]), each["accuracy"]] for each in own),
            }
        )
    return found


def describe_bound(bound: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{bound['mode']}: with the fewest rounds at which a question is right, {bound['accuracy']:.3f}"
        f" in {bound['rounds_used']:.2f} rounds"
    )


def warn_of_calibration(mas: RecursiveMASModel, asked: Mapping[str, Any], rounds: Sequence[int | str]) -> None:
    """Says so where "auto" is measured on the questions that it was calibrated on."""
    settling = mas.config.settling or {}
    if AUTO in rounds and settling.get("calibrated", {}).get("questions") == asked["questions"]:
        print("warning: `auto` was calibrated on these questions; measure it on others", file=sys.stderr)


def traces(topology: Topology, most: int, solution: Solution) -> dict[str, Trace]:
    """Signal -> what it saw of a row that was answered after `most` rounds, with its latents."""
    said: dict[str, Mapping] = {"latents": solution.latents or {}}
    said |= dict.fromkeys(("turns", "rounds"), solution.thoughts or {})
    ways = list(stages(topology, most))
    return {
        signal: [(change(topology, signal, turns, said[signal]), ready, count) for turns, ready, count in ways]
        for signal in SIGNALS
    }


def depth_at(trace: Trace, threshold: float, most: int) -> tuple[int, int]:
    """The rounds and the turns that a row takes with a threshold."""
    settled = False
    for changed, ready, count in trace:
        settled = settled or changed <= threshold
        if settled and ready:
            return ready, count + 1
    return most, trace[-1][2] + 1 if trace else 1


@dataclass
class Point:
    """What a threshold does to rows: how many that are right after all rounds it loses, and what it costs."""

    signal: str
    threshold: float
    lost: int
    accuracy: float
    rounds_used: float
    turns: float


def point(
    signal: str, threshold: float, rows: Sequence[Mapping[str, Trace]], right: Mapping[int, Sequence[bool]]
) -> Point:
    """`right` is number of rounds -> whether each row is right with it, for 1 to the most rounds."""
    most = max(right)
    depths = [depth_at(row[signal], threshold, most) for row in rows]
    verdicts = [right[rounds][index] for index, (rounds, _) in enumerate(depths)]
    lost = sum(full and not now for full, now in zip(right[most], verdicts, strict=True))
    number = len(rows)
    means = (sum(each[place] for each in depths) / number for place in (0, 1))
    return Point(signal, threshold, lost, sum(verdicts) / number, *means)


def candidates(signal: str, rows: Sequence[Mapping[str, Trace]], most: int = 200) -> list[float]:
    """Thresholds at which something changes, at most so many of them; vectors differ a little by their batch."""
    found = {changed for row in rows for changed, _, _ in row[signal] if changed != float("inf")}
    seen = sorted({1.001 * changed for changed in found if changed > 1e-3} if signal == "latents" else found)
    return seen[:: max(1, len(seen) // most)]
