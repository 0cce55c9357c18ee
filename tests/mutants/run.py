"""Applies the deliberate faults of `table.py`, one at a time, and runs the tests that ought to notice.

A fault that all of its tests pass is a survivor. The exit status is 0 only if every fault is killed, but for those
that the table calls equivalent, with a reason, and these survive. Works on copies of the working tree; a test that
does not end in time counts as failed.

Examples:
  python tests/mutants/run.py
  python tests/mutants/run.py --only first-box --only "eos-*"
  python tests/mutants/run.py --check        # do all faults still apply? (no test is run)
"""

import argparse
import ast
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "recursivemas"  # the copy's name, by which the tests import it
BASELINE_TIMEOUT = 1200  # seconds for all tests together


def project_files() -> list[str]:
    """Every file of the working tree that git tracks or does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({name for name in names if name and (ROOT / name).is_file()})


def place_of(mutant: Mutant, texts: dict[str, str]) -> str:
    """The one file that holds a mutant's text.

    Args:
        mutant: the fault.
        texts: name -> text of every Python file.

    Raises:
        ValueError: the text stands nowhere or more than once, the mutant is no Python, or a test of it is not there.
    """
    counts = {name: text.count(mutant.old) for name, text in texts.items() if fits(name, mutant)}
    found = {name: count for name, count in counts.items() if count}
    if sum(found.values()) != 1:
        where = ", ".join(f"{count} times in {name}" for name, count in found.items()) or f"nowhere in {mutant.file}"
        raise ValueError(f"the mutant no longer applies: its text stands {where}, and must stand exactly once")
    (name,) = found
    try:
        ast.parse(texts[name].replace(mutant.old, mutant.new))
    except SyntaxError as error:
        raise ValueError(f"the mutant is no Python: {error}") from error
    for test in mutant.tests:
        file, _, function = test.partition("::")
        if not re.search(rf"^def {function.partition('[')[0]}\b", texts.get(file, ""), re.M):
            raise ValueError(f"there is no test {test}")
    return name


def fits(name: str, mutant: Mutant) -> bool:
    """Whether a file is one that the mutant may be in; `**/` stands for any folder but that of the tests.

    Nor that of the systems, where links to the remote code lie.
    """
    if mutant.file.startswith("**/"):
        return not name.startswith(("tests/", "systems/")) and fnmatch(name.rpartition("/")[2], mutant.file[3:])
    return name.count("/") == mutant.file.count("/") and fnmatch(name, mutant.file)


@dataclass
class Result:
    """What became of a mutant; `outcome` is "killed", "killed (timeout)" or "survived"."""

    mutant: Mutant
    outcome: str
    seconds: float

    @property
    def is_right(self) -> bool:
        return (self.outcome == "survived") == (self.mutant.equivalent is not None)

    def __str__(self) -> str:
        text = f"{self.outcome.upper() if self.outcome == 'survived' else self.outcome}: {self.mutant.name}"
        if self.mutant.equivalent:
            text += f" (listed as equivalent: {self.mutant.equivalent})"
        return text


class Workplace:
    """A copy of the working tree, in which one mutant at a time is tried."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.root = folder / FOLDER
        for name in files:
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target, follow_symlinks=False)

    def pytest(self, tests: list[str], timeout: float) -> tuple[int | None, str]:
        """Exit status (`None`: not in time) and output."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "slow or not slow",
            *tests,
        ]
        with tempfile.TemporaryDirectory(dir=self.root.parent) as scratch:
            environment = {**os.environ, "PYTHONPATH": str(self.root.parent), "PYTHONDONTWRITEBYTECODE": "1"}
            environment |= {"TMPDIR": scratch, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                output, _ = process.communicate(timeout=timeout)
                return process.returncode, output
            except subprocess.TimeoutExpired:
                return None, ""
            finally:
                if process.poll() is None:  # with all that it started
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def try_mutant(self, mutant: Mutant, place: str, timeout: float) -> Result:
        """Applies a mutant, runs its tests, and puts the file back."""
        file, started = self.root / place, time.monotonic()
        original = file.read_text(encoding="utf-8")
        file.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            status, _ = self.pytest(list(mutant.tests), timeout)
        finally:
            file.write_text(original, encoding="utf-8")
        outcome = {None: "killed (timeout)", 0: "survived"}.get(status, "killed")
        return Result(mutant, outcome, time.monotonic() - started)


def run_all(
    mutants: list[Mutant], places: dict[str, str], files: list[str], jobs: int, timeout: float
) -> list[Result]:
    """The baseline, then every mutant; prints progress to standard error.

    Raises:
        SystemExit: a test fails on the code as it is.
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, ThreadPoolExecutor(jobs) as pool:
        workplaces = [Workplace(Path(scratch, str(number)), files) for number in range(jobs)]
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        tell(f"{len(tests)} tests on the code as it is …")
        shares = [(place, tests[number::jobs]) for number, place in enumerate(workplaces) if tests[number::jobs]]
        for status, output in pool.map(lambda share: share[0].pytest(share[1], BASELINE_TIMEOUT), shares):
            if status != 0:
                raise SystemExit(f"{output}\nThe tests must pass before they can notice anything.")
        free: queue.SimpleQueue[Workplace] = queue.SimpleQueue()
        for workplace in workplaces:
            free.put(workplace)

        def take(mutant: Mutant) -> Result:
            workplace = free.get()
            try:
                return workplace.try_mutant(mutant, places[mutant.name], timeout)
            finally:
                free.put(workplace)

        results = []
        for done in as_completed([pool.submit(take, mutant) for mutant in mutants]):
            results.append(done.result())
            tell(f"{len(results)}/{len(mutants)} {results[-1]} ({results[-1].seconds:.0f} s)")
        return sorted(results, key=lambda result: mutants.index(result.mutant))


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    description, _, examples = __doc__.partition("Examples:")
    parser = argparse.ArgumentParser(
        prog="python tests/mutants/run.py",
        description=description,
        epilog="examples:" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="one mutant, or a pattern; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=120, help="seconds for the tests of a mutant (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="only check that every mutant applies and has its tests")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    arguments = parser.parse_args(argv)

    wanted = arguments.only or ["*"]
    mutants = [mutant for mutant in MUTANTS if any(fnmatch(mutant.name, pattern) for pattern in wanted)]
    if not mutants:
        parser.error(f"no mutant is named {' or '.join(wanted)}")
    files, places, problems = project_files(), {}, []
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in files if name.endswith(".py")}
    for mutant in mutants:
        try:
            if mutant.name in places:
                raise ValueError("another mutant has this name")
            places[mutant.name] = place_of(mutant, texts)
        except ValueError as error:
            problems.append(f"{mutant.name}: {error}")
    if problems:
        tell("\n".join(problems))
        return 1
    if arguments.check:
        tell(f"{len(mutants)} mutants apply")
        return 0
    started = time.monotonic()
    results = run_all(mutants, places, files, arguments.jobs, arguments.timeout)
    if arguments.json:
        rows = [
            {
                "name": r.mutant.name,
                "file": places[r.mutant.name],
                "outcome": r.outcome,
                "seconds": round(r.seconds, 1),
            }
            for r in results
        ]
        print(json.dumps(rows, indent=2))
    wrong = [result for result in results if not result.is_right]
    killed = sum(result.outcome != "survived" for result in results)
    minutes = (time.monotonic() - started) / 60
    tell(f"{killed} of {len(results)} mutants killed, {len(wrong)} not as the table says, in {minutes:.1f} minutes")
    for result in wrong:
        tell(f"  {result}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
