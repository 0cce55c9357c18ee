"""What all benchmarks share: ways that run in turn, medians with their spread, and the report.

A machine is rarely idle and never twice the same, so no benchmark reports seconds of one thing alone: the ways to be
compared run in turn (A B A B …) in one process, each repeat gives one ratio, and the median and the extremes of those
ratios are the figure.
"""

import argparse
import gc
import json
import operator
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from ..errors_recursivemas import InputError
from ..evaluation.plots import new_figure
from ..evaluation.results import provenance
from ..loading_recursivemas import quiet_progress

COMPARISONS = {">=": operator.ge, "<=": operator.le}
# "cpu" is the processor time of this process: with one thread, what others do on the machine hardly counts.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = CLOCKS["wall"]


class Option(NamedTuple):
    """An argument of one benchmark; more than one value where the default is a list, a flag where it is `False`."""

    help: str
    default: Any
    quick: Any = None  # the default with --quick; `None`: the same
    kind: Callable[[str], Any] = int
    choices: Sequence[str] | None = None


def chosen(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Some of the arguments by name, for the settings of a report."""
    return {name: getattr(arguments, name) for name in names}


def use_clock(name: str) -> None:
    """Which of `CLOCKS` measures from now on."""
    global _clock
    _clock = CLOCKS[name]


def now() -> float:
    """Seconds on the clock, when all that was asked of the accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return _clock()


def timed(call: Callable[[], object]) -> float:
    """Seconds that `call` takes."""
    started = now()
    call()
    return now() - started


def in_turn(ways: Mapping[str, Callable[[], Any]], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Runs the ways A B A B …, and with `warm_up` each way once before, unmeasured; name -> seconds of each repeat.

    A call that returns a number has timed the part that counts by itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    runs = [(repeat, name) for repeat in range(-1 if warm_up else 0, repeats) for name in ways]
    for repeat, name in quiet_progress(runs, "Measuring", "run"):
        gc.collect()
        started = now()
        own = ways[name]()
        elapsed = now() - started
        if repeat >= 0:
            seconds[name].append(elapsed if own is None else own)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def row(name: str, what: str, values: list[float], seconds: dict[str, list[float]], target: str | None = None) -> dict:
    """One line of a report: a setting's name, what the value is, the values and each way's seconds in each repeat.

    `target`, such as `">= 12"` or `"<= 0.85"`, is held against the median of the values.
    """
    line: dict[str, Any] = {"name": name, "what": what, "value": spread(values)}
    line["seconds"] = {way: spread(times) for way, times in seconds.items()}
    if target is not None:
        comparison, bound = target.split()
        line |= {"target": target, "met": COMPARISONS[comparison](line["value"]["median"], float(bound))}
    return line


def ratio_row(name: str, seconds: dict[str, list[float]], over: str, under: str, target: str | None = None) -> dict:
    """The line of a ratio of two ways, seconds of `over` by seconds of `under`, repeat by repeat."""
    values = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return row(name, f"{over} / {under}", values, seconds, target)


def exponent_row(name: str, sizes: list[int], seconds: dict[str, list[float]]) -> dict:
    """The line of a growth: b in seconds = a * size^b, least squares on logarithms, repeat by repeat.

    `seconds` has, in the order of `sizes`, the seconds of each repeat.
    """
    logs = numpy.log(sizes)
    values = [float(numpy.polyfit(logs, numpy.log(points), 1)[0]) for points in zip(*seconds.values(), strict=True)]
    return {**row(name, "exponent", values, seconds), "sizes": sizes}


def report(name: str, settings: dict, rows: list[dict], load_before: float) -> dict:
    """All that a benchmark says; `load_average` is that of the machine in the minute before and after."""
    load = {"load_average": [load_before, os.getloadavg()[0]]}
    return {"benchmark": name, **provenance(), "settings": settings, **load, "rows": rows}


def table(result: dict) -> str:
    """A report as text."""
    lines = [f"{result['benchmark']}: " + ", ".join(f"{k} {v}" for k, v in result["settings"].items())]
    for line in result["rows"]:
        value = "{median:.3g} ({low:.3g}–{high:.3g})".format(**line["value"])
        seconds = ", ".join(f"{way} {s['median']:.3g} s" for way, s in line["seconds"].items())
        verdict = f"  [{'met' if line['met'] else 'NOT MET'}: {line['target']}]" if "target" in line else ""
        details = "; ".join(filter(None, [seconds, *(f"{k} {v}" for k, v in line.get("extra", {}).items())]))
        details = f"  ({details})" if details else ""
        lines.append(f"  {line['name']}: {line['what']} = {value}{verdict}{details}")
    return "\n".join(lines)


def plot(result: dict, path: Path) -> None:
    """Bars of seconds labelled with the ratios (or values, where nothing was timed); growth on logarithmic axes."""
    timed_rows = [line for line in result["rows"] if line["seconds"]]
    rows = timed_rows or [{**line, "seconds": {"value": line["value"]}} for line in result["rows"]]
    is_growth = all("sizes" in line for line in rows)
    figure = new_figure(6, 4) if is_growth else new_figure(8, 1.2 + 0.7 * len(rows))
    axes = figure.subplots()
    if is_growth:
        for line in rows:
            medians = [s["median"] for s in line["seconds"].values()]
            label = f"{line['name']} (exponent {line['value']['median']:.2f})"
            axes.loglog(line["sizes"], medians, "o-", label=label)
        axes.set(xlabel="size", ylabel="seconds")
        axes.legend()
    else:
        colours: dict[str, str] = {}
        for index, line in enumerate(rows):
            height = 0.8 / len(line["seconds"])
            for place, (way, s) in enumerate(line["seconds"].items()):
                legend = None if way in colours else way
                colour = colours.setdefault(way, f"C{len(colours)}")
                error = [[s["median"] - s["low"]], [s["high"] - s["median"]]]
                y = index + (place + 0.5) * height - 0.4
                axes.barh(y, s["median"], height, xerr=error, color=colour, label=legend)
        labels = [f"{line['name']}\n{line['what']} = {line['value']['median']:.3g}" for line in rows]
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
        axes.invert_yaxis()
        if timed_rows:
            axes.set_xlabel("seconds")
            figure.legend(loc="outside right upper", fontsize=8)
    axes.set_title(result["benchmark"])
    figure.savefig(path, dpi=110)


def save(result: dict, folder: Path) -> None:
    """Writes `<benchmark>.json` and `<benchmark>.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['benchmark']}.json"
    path.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    try:
        plot(result, path.with_suffix(".png"))
    except InputError as error:
        print(error, file=sys.stderr)
