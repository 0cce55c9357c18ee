"""What the sandbox costs: a test in it against a bare Python, and tests side by side against one after another.

A bare Python is `python -I -S -c pass`. The figures hold for this machine's walls, which the settings name.
"""

import argparse
import subprocess
import sys

from ..sandbox.run import cores, protection_here, run_many, run_python
from .harness import Option, in_turn, ratio_row, row

OPTIONS = {"tests": Option("tests in a row of a way", 20, 2)}
MOST_SECONDS = 0.06  # of an empty test


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    tests = arguments.tests

    def bare() -> None:
        for _ in range(tests):
            subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], env={}, check=True)

    def in_sandbox() -> None:
        for _ in range(tests):
            run_python("pass")

    work = ["sum(i * i for i in range(1_000_000))"] * tests

    def one_by_one() -> None:
        run_many(work, workers=1)

    def side_by_side() -> None:
        run_many(work)

    run_python("pass")  # what the machine gives is asked once a process
    start = in_turn({"sandbox": in_sandbox, "bare Python": bare}, arguments.repeats)
    many = in_turn({"side by side": side_by_side, "one by one": one_by_one}, arguments.repeats)
    each = [seconds / tests for seconds in start["sandbox"]]
    rows = [
        ratio_row("start", start, "sandbox", "bare Python"),
        row("an empty test", "seconds", each, {}, f"<= {MOST_SECONDS}"),
        ratio_row("tests that compute", many, "side by side", "one by one"),
    ]
    held = [word for word, in_force in protection_here().items() if in_force]
    return {"tests": tests, "cores": cores(), "protection": " ".join(held)}, rows
