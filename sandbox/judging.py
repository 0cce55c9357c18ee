"""When model-written code is right: MBPP+ (a test script behind the program) and LiveCodeBench (calls, and stdin).

Programs run in the sandbox; what they give is compared here, outside, so that the right output is never inside.
"""

import ast
import base64
import binascii
import builtins
import functools
import importlib
import json
import pickletools
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from ..answers_recursivemas import PYTHON, without_thoughts
from ..errors_recursivemas import InputError
from .run import Job, Limits, Outcome, cores, run_python

BLOCK = re.compile(r"(```+|~~~+)([^\n`]*)\n(.*?)(?:\1|\Z)", re.DOTALL)
SCRIPT_SECONDS, TEST_SECONDS = 10.0, 6.0  # of MBPP+, and of each test of LiveCodeBench
CODE_MEMORY, CODE_OUTPUT = 2 << 30, 64 << 20
MAX_UNPACKED = 1 << 30  # bytes of one row's private tests
# What programs for LiveCodeBench may use without importing it, the first that has the name.
PROVIDED = (
    *("typing", "collections", "itertools", "functools", "heapq", "bisect", "math", "string", "operator", "copy"),
    *("random", "re", "sys", "json", "datetime", "statistics", "io", "decimal", "fractions"),
)


@dataclass(frozen=True)
class CodeTest:
    """One test of a program: a script, a call, or what it prints for an input.

    Attributes:
        output: the right output; of a call, the right value as JSON.
        input: standard input; of a call, one argument a line, as JSON.
        function: what is called; `None` for a program that reads standard input.
        script: runs behind the program and raises where it is wrong; then nothing above counts.
    """

    output: str = ""
    input: str = ""
    function: str | None = None
    script: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed a test; if not, why."""

    passed: bool
    error: str | None = None
    seconds: float = 0.0


def code_of(text: str) -> str | None:
    """The program in what a model wrote: its first python block, where it marks none as such its first block.

    This is the public release's rule. What the model thought (`<think>…</think>`, also without its opening) is no part
    of it; a block that was cut off counts. `None` where there is no block.
    """
    blocks = [(found[2].strip().lower(), found[3].strip("\n")) for found in BLOCK.finditer(without_thoughts(text))]
    marked = [code for language, code in blocks if language in PYTHON[1:]]
    return next(iter(marked or [code for _, code in blocks]), None)


def passes(
    code: str | None,
    tests: Sequence[CodeTest],
    *,
    seconds: float | None = None,
    every_test: bool = True,
    require: Iterable[str] = (),
) -> list[Verdict]:
    """A verdict on a program for every test, run side by side; `None` for a program fails them all.

    Args:
        code: the program, see `code_of`.
        tests: at least one; no program passes nothing.
        seconds: time of each test (default: as the benchmarks have it).
        every_test: `False` leaves out what remains once one failed.
        require: see `run_python`.
    """
    return judge([(code, tests)], seconds=seconds, every_test=every_test, require=require)[0]


def judge(
    programs: Sequence[tuple[str | None, Sequence[CodeTest]]],
    *,
    seconds: float | None = None,
    every_test: bool = True,
    require: Iterable[str] = (),
) -> list[list[Verdict]]:
    """`passes` for many programs: all their tests share all cores."""
    failed: set[int] = set()
    if not all(tests for _, tests in programs):
        raise InputError("A program has no test.", where="tests", found=[], expected="at least one test of each")

    def run(number: int, code: str | None, test: CodeTest) -> Verdict:
        if number in failed and not every_test:
            return Verdict(False, "not run: an earlier test failed")
        verdict = _verdict(code, test, seconds, require)
        if not verdict.passed:
            failed.add(number)
        return verdict

    with ThreadPoolExecutor(cores()) as pool:
        waiting = [[pool.submit(run, i, code, test) for test in tests] for i, (code, tests) in enumerate(programs)]
        return [[one.result() for one in row] for row in waiting]


def _verdict(code: str | None, test: CodeTest, seconds: float | None, require: Iterable[str]) -> Verdict:
    if code is None:
        return Verdict(False, "no program")
    limits = Limits(
        seconds=seconds or (SCRIPT_SECONDS if test.script is not None else TEST_SECONDS),
        memory=CODE_MEMORY,
        output=CODE_OUTPUT,
    )
    if test.script is not None:
        job = Job(code, test=test.script, limits=limits)
    elif test.function is not None:
        arguments = [json.loads(line) for line in test.input.split("\n") if line.strip()]
        job = Job(with_imports(code), function=function_of(code, test.function), arguments=arguments, limits=limits)
    else:
        job = Job(with_imports(code), stdin=test.input, limits=limits)
    outcome = run_python(job, require=require)
    if outcome.error is not None:
        return Verdict(False, outcome.error, outcome.seconds)
    right = test.script is not None or (
        outcome.value == json.loads(test.output) if test.function else same_output(outcome.stdout, test.output)
    )
    return Verdict(right, None if right else _wrong(test, outcome), outcome.seconds)


def _wrong(test: CodeTest, outcome: Outcome) -> str:
    got = json.dumps(outcome.value) if test.function else outcome.stdout
    return f"wrong output: {got.strip()[:200]!r} where {test.output.strip()[:200]!r} is right"


def same_output(output: str, expected: str) -> bool:
    """Whether two outputs agree line by line, but for space at the ends of lines; numbers by what they are worth."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (output, expected))
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(line: str, expected: str) -> bool:
    if line == expected:
        return True
    if "_" in line + expected:  # Decimal takes 1_000 for a number
        return False
    try:
        return [Decimal(word) for word in line.split()] == [Decimal(word) for word in expected.split()]
    except InvalidOperation:
        return False


def function_of(code: str, name: str) -> str:
    """Where a function is found: in class `Solution` if the program has one, else by itself."""
    return f"Solution.{name}" if re.search(r"^class\s+Solution\b", code, re.MULTILINE) else name


def with_imports(code: str) -> str:
    """A program with the imports that it takes for granted (`List`, `deque`, `math`, …), as the benchmark has it."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    used: set[str] = set()
    bound, future = set(dir(builtins)), 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                future = node.end_lineno or 0
    provided = _provided()
    imports = "; ".join(sorted({provided[name] for name in used - bound if name in provided}))
    lines = code.split("\n")
    return "\n".join([*lines[:future], imports, *lines[future:]]) if imports else code


@functools.cache
def _provided() -> dict[str, str]:
    """Name -> the import that brings it."""
    found: dict[str, str] = {}
    for module in PROVIDED:
        for name in importlib.import_module(module).__dict__:
            if not name.startswith("_"):
                found.setdefault(name, f"from {module} import {name}")
    return found | {module: f"import {module}" for module in PROVIDED if module != "datetime"}


def mbppplus_tests(row: Mapping[str, Any]) -> list[CodeTest]:
    """The test of a row of `evalplus/mbppplus`: its script."""
    return [CodeTest(script=row["test"])]


def livecodebench_tests(row: Mapping[str, Any]) -> list[CodeTest]:
    """The public and private tests of a row of `livecodebench/code_generation_lite`."""
    try:
        metadata = json.loads(row.get("metadata") or "{}")
        cases = json.loads(row["public_test_cases"]) + private_tests(row["private_test_cases"])
        function = metadata.get("func_name")
        return [
            CodeTest(case["output"], case["input"], function if case["testtype"] == "functional" else None)
            for case in cases
        ]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "The tests of a row cannot be read.",
            where=f"row {row.get('question_id')}",
            found=repr(error)[:200],
            expected="public_test_cases, private_test_cases and metadata as LiveCodeBench writes them",
        ) from error


def private_tests(text: str) -> list[dict[str, str]]:
    """The private tests of LiveCodeBench: JSON, or base64 of zlib of a pickled string of JSON.

    Nothing is unpickled: the pickle is read as what it must be, one string (or bytes), and anything else in it is
    an error.

    Raises:
        InputError: it is none of that.
    """
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), MAX_UNPACKED)
        if unpacker.unconsumed_tail:
            raise ValueError(f"more than {MAX_UNPACKED} bytes")
        cases = json.loads(pickled_string(data))
        if not isinstance(cases, list):
            raise ValueError("no list")
        return cases
    except (ValueError, zlib.error, binascii.Error, RecursionError) as error:
        raise InputError(
            "Private tests cannot be read.",
            where="private_test_cases",
            found=f"{text[:40]!r}… ({error})"[:300],
            expected="JSON, or base64 of zlib of a pickled string",
        ) from error


def pickled_string(data: bytes) -> str | bytes:
    """The one string, or bytes, that a pickle holds. Runs none of it.

    Raises:
        ValueError: it holds anything else, or does anything.
    """
    around = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
    strings = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
    found: list[str | bytes] = []
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in strings and isinstance(argument, str | bytes):
            found.append(argument)
        elif operation.name not in around:
            raise ValueError(f"a pickle that does {operation.name}")
    if len(found) != 1:
        raise ValueError(f"a pickle of {len(found)} strings")
    return found[0]
