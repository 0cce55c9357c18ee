"""When programs are right: rows with tests, in the benchmarks' schemas and in one for rows of one's own.

A row is MBPP+'s (`prompt`, `test_list`, `test`: a script that runs behind the program), LiveCodeBench's
(`question_content`, `public_test_cases`, …), or has a `question` and `tests`, a list of

- texts: scripts that run behind the program and raise where it is wrong, as `"assert add(1, 2) == 3"`;
- `{"input": "1 2\\n", "output": "3\\n"}`: what it prints for what it reads, compared as LiveCodeBench does;
- `{"function": "add", "arguments": [1, 2], "output": 3}`: what a call of it returns, as JSON.
"""

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..answers_recursivemas import extract_answer
from ..errors_recursivemas import InputError
from ..sandbox.judging import CodeTest, code_of, judge, livecodebench_tests, mbppplus_tests
from ..solutions_recursivemas import Solution

Row = dict[str, Any]
CODE = "code"  # the metric's name
ALL_TESTS = "all tests pass"  # the right answer of a row that is judged by tests
CALL, READS = {"function", "arguments", "output"}, {"input", "output"}  # fields of tests


def text_of(value: Any) -> str:
    """A value as text: whole numbers without a point, days without a time (readers of JSON make dates of texts)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    if value is None or isinstance(value, bool | list | dict) or not str(value).strip():
        raise ValueError(f"{value!r} is no text")
    return str(value)


def mbppplus_row(row: Mapping[str, Any]) -> Row:
    """The question carries the first three assertions, as in the release."""
    assertions = "\n".join(map(text_of, row["test_list"][:3]))
    question = f"{text_of(row['prompt']).strip()}\n\nYour code should pass these tests:\n\n{assertions}"
    source = {"test": text_of(row["test"])}
    return {"question": question, "answer": ALL_TESTS, "task_id": text_of(row["task_id"]), "source": source}


def livecodebench_row(row: Mapping[str, Any]) -> Row:
    """The question carries the starter code, or says that the program reads and prints."""
    question, starter = text_of(row["question_content"]).strip(), row["starter_code"] or ""
    if starter.strip():
        question += f"\n\nComplete this code:\n\n```python\n{starter.rstrip()}\n```"
    else:
        question += "\n\nRead the input from standard input and print the answer to standard output."
    fields = ("question_id", "public_test_cases", "private_test_cases", "metadata")
    more = {name: row[name] for name in ("question_id", "difficulty", "platform") if row.get(name) is not None}
    return {"question": question, "answer": ALL_TESTS, **more, "source": {name: row[name] for name in fields}}


def program_row(row: Any, where: str) -> Row:
    """A row that asks for a program, with "question" and "answer" beside what it holds; its tests can be read.

    Raises:
        InputError: it has no question, or no tests that can be read.
    """
    tests_of(row, where)
    read = livecodebench_row if "question_content" in row else mbppplus_row
    try:
        question = row["question"] if "question" in row else read(row)["question"]
        if not isinstance(question, str):
            raise TypeError(f"{question!r} is no text")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "A row asks nothing.",
            where=where,
            found=f"{', '.join(row)} ({said_of(error)})"[:400],
            expected='a "question", or the fields of MBPP+ or LiveCodeBench',
        ) from error
    return row | {"question": question, "answer": ALL_TESTS}


def tests_of(row: Any, where: str) -> list[CodeTest]:
    """The tests of a row, see the module's docstring.

    Raises:
        InputError: there is none, or they cannot be read.
    """
    try:
        if "tests" in row:
            tests = [_own_test(test) for test in row["tests"]]
        elif "public_test_cases" in row:
            tests = livecodebench_tests(row)
        else:
            tests = mbppplus_tests({"test": text_of(row["test"])})
        if not tests:
            raise ValueError("no test")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "A row has no tests that can be read.",
            where=where,
            found=f"{', '.join(row) if isinstance(row, Mapping) else repr(row)[:80]} ({said_of(error)})"[:400],
            expected='"tests", or the fields of MBPP+ or LiveCodeBench',
            hint="docs/benchmarks.md shows rows with tests",
        ) from error
    return tests


def said_of(error: Exception) -> str:
    """What is wrong with a row, of an error that reading it raised."""
    return f"no field {error}" if isinstance(error, KeyError) else str(error)


def _own_test(test: Any) -> CodeTest:
    if isinstance(test, str):
        return CodeTest(script=text_of(test))
    if not isinstance(test, Mapping) or set(test) not in (CALL, READS):
        raise ValueError(f"a test is {json.dumps(test, default=repr)[:100]}")
    if "function" in test:
        if not isinstance(test["arguments"], list):
            raise ValueError("arguments are no list")
        arguments = "\n".join(map(json.dumps, test["arguments"]))
        return CodeTest(json.dumps(test["output"]), arguments, text_of(test["function"]))
    if not all(isinstance(value, str) for value in test.values()):
        raise ValueError("input and output are no texts")
    return CodeTest(test["output"], test["input"])


def require_allowed(metric: str, allow_code: bool, where: str) -> None:
    """Raises InputError where judging runs code that nobody allowed."""
    if metric == CODE and not allow_code:
        raise InputError(
            "This runs code that a model writes, which nobody allowed.",
            where=where,
            hint="add --allow-code (docs/tools.md says what holds it)",
        )


def judge_programs(
    texts: Sequence[str | None], tests: Sequence[Sequence[CodeTest]], require_walls: Iterable[str] = ()
) -> list[dict[str, bool]]:
    """Both verdicts, "strict" and "release", on texts with programs; the tests of all share all cores.

    Of a program and an example, the strict scorer tests the program, the release the first block.
    """
    chosen = [{"strict": extract_answer(text or "", "code"), "release": code_of(text or "")} for text in texts]
    programs = {(index, code): None for index, each in enumerate(chosen) for code in each.values() if code is not None}
    pairs = [(code, tests[index]) for index, code in programs]
    found = judge(pairs, every_test=False, require=require_walls)
    passed = {key: all(verdict.passed for verdict in each) for key, each in zip(programs, found, strict=True)}
    return [
        {scorer: passed.get((index, code), False) for scorer, code in each.items()}  # type: ignore[arg-type]
        for index, each in enumerate(chosen)
    ]


class CodeMetric:
    """Programs are right when all tests of their rows pass; as `Metric`, but for rows with tests in place of answers.

    Whoever judges by it has asked `require_allowed` first.
    """

    has_release = True

    def require(self) -> None:
        """Needs no package."""

    def judge_rows(
        self, predictions: Sequence[str | None], rows: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, bool]]:
        """Both verdicts on what was written for each row."""
        return judge_programs(predictions, [tests_of(row, f"row {place}") for place, row in enumerate(rows, start=1)])

    def judge_solutions(
        self, solutions: Sequence[Solution], rows: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, bool]]:
        """Both verdicts on a system's solutions."""
        return self.judge_rows([solution.text for solution in solutions], rows)
