"""The benchmarks, a row each: where the data are, how a row is read, when an answer is right.

A reader takes a row in the benchmark's own schema and gives "question", "answer", and what else a report names:
ids, groups, and for code the fields that hold the tests.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors_recursivemas import InputError
from ..evaluation.programs import Row, livecodebench_row, mbppplus_row, said_of, text_of
from ..sandbox.judging import CodeTest, livecodebench_tests, mbppplus_tests

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: on the command line, and as `dataset` of a released system.
        title: as its authors call it.
        dataset: on the Hub.
        config, split: of that.
        read: a row in the benchmark's schema -> "question", "answer", …; a missing field is a `KeyError`.
        metric: when an answer is right, see `recursivemas score`; "code" runs tests.
        task: chooses the prompts.
        size: questions of that split.
        group_by: field of the rows that a report breaks accuracy down by.
        files: of the dataset, where the Hub's own reader does not know it (JSON lines).
        tests: the tests of a row, out of its "source".
    """

    name: str
    title: str
    dataset: str
    read: Callable[[Mapping[str, Any]], Row]
    metric: str
    task: str
    size: int
    config: str | None = None
    split: str = "test"
    group_by: str | None = None
    files: tuple[str, ...] = ()
    tests: Callable[[Mapping[str, Any]], list[CodeTest]] | None = None


def _plain(question: str = "question", answer: str = "answer", **more: str) -> Callable[[Mapping[str, Any]], Row]:
    """A reader of rows that hold both as they are; `more` is what a report calls it -> the field."""

    def read(row: Mapping[str, Any]) -> Row:
        kept = {name: row[field] for name, field in more.items() if row.get(field) is not None}
        return {"question": text_of(row[question]), "answer": text_of(row[answer]), **kept}

    return read


def with_options(question: str, options: Sequence[str]) -> str:
    """A question with its options, lettered, a line each."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), "", *lines])


def _gpqa(row: Mapping[str, Any]) -> Row:
    """The right answer is named in the data; the order of the options comes of a hash of each, always the same."""
    question, right = text_of(row["Question"]), text_of(row["Correct Answer"]).strip()
    options = [right, *(text_of(row[f"Incorrect Answer {number}"]).strip() for number in (1, 2, 3))]
    options.sort(key=lambda option: hashlib.sha256(f"{question}\n{option}".encode()).digest())
    more = {"id": row.get("Record ID"), "domain": row.get("High-level domain")}
    kept = {name: value for name, value in more.items() if value is not None}
    return {"question": with_options(question, options), "answer": LETTERS[options.index(right)], **kept}


def _medqa(row: Mapping[str, Any]) -> Row:
    """The Hub's rows (letter -> option) and the release's (a list of "A. …", which stand in the question too)."""
    options = row["options"]
    if isinstance(options, Mapping):
        options = [text_of(option) for _, option in sorted(options.items()) if option is not None]
    else:
        options = [re.sub(r"^\s*\(?[A-J][.):]\s+", "", text_of(option)).strip() for option in options]
    question = text_of(row["question"])
    block = "\n" + "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    while question.rstrip().endswith(block):
        question = question.rstrip().removesuffix(block)
    answer = text_of(row["answer"]).strip()
    if answer in options:
        letter = LETTERS[options.index(answer)]
    else:
        letter = str(row.get("answer_idx") or answer).strip("() .")
    if letter not in LETTERS[: len(options)] or len(letter) != 1:
        raise ValueError(f"{answer!r} is none of the options")
    kept = {"id": row["idx"]} if row.get("idx") is not None else {}
    return {"question": with_options(question, options), "answer": letter, **kept}


def _svamp(row: Mapping[str, Any]) -> Row:
    body, question = text_of(row["Body"]).strip(), text_of(row["Question"]).strip()
    body += "" if body.endswith((".", "?", "!", ",")) else "."
    more = {"id": row.get("ID"), "type": row.get("Type")}
    kept = {name: value for name, value in more.items() if value is not None}
    return {"question": f"{body} {question}", "answer": text_of(row["Answer"]), **kept}


def _bamboogle(row: Mapping[str, Any]) -> Row:
    return _plain()({name.lower(): value for name, value in row.items()})


_AIME = _plain("problem", "answer", id="id")
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="math500", title="MATH-500", dataset="HuggingFaceH4/MATH-500", size=500, metric="math", task="math",
            read=_plain("problem", "answer", unique_id="unique_id", subject="subject", level="level"),
            group_by="subject",
        ),
        Benchmark(
            name="aime25", title="AIME 2025", dataset="math-ai/aime25", size=30, metric="math", task="math", read=_AIME
        ),
        Benchmark(
            name="aime26", title="AIME 2026", dataset="math-ai/aime26", size=30, metric="math", task="math", read=_AIME
        ),
        Benchmark(
            name="gpqa", title="GPQA-Diamond", dataset="Idavidrein/gpqa", config="gpqa_diamond", split="train",
            size=198, metric="choice", task="choice", read=_gpqa, group_by="domain",
        ),
        Benchmark(
            name="medqa", title="MedQA", dataset="GBaker/MedQA-USMLE-4-options", size=1273, metric="choice",
            task="choice", read=_medqa,
        ),
        Benchmark(
            name="mbppplus", title="MBPP+", dataset="evalplus/mbppplus", size=378, metric="code", task="code",
            read=mbppplus_row, tests=mbppplus_tests,
        ),
        Benchmark(
            name="livecodebench", title="LiveCodeBench v6", dataset="livecodebench/code_generation_lite", size=1055,
            metric="code", task="code", read=livecodebench_row, tests=livecodebench_tests, group_by="difficulty",
            files=("test.jsonl", *(f"test{number}.jsonl" for number in range(2, 7))),
        ),
        Benchmark(
            name="hotpotqa", title="HotpotQA", dataset="hotpotqa/hotpot_qa", config="distractor", split="validation",
            size=7405, metric="f1", task="reasoning", read=_plain(id="id", type="type", level="level"),
            group_by="type",
        ),
        Benchmark(
            name="bamboogle", title="Bamboogle", dataset="chiayewken/bamboogle", size=125, metric="f1",
            task="reasoning", read=_bamboogle,
        ),
        Benchmark(
            name="gsm8k", title="GSM8K", dataset="openai/gsm8k", config="main", size=1319, metric="numeric",
            task="math", read=_plain(),
        ),
        Benchmark(
            name="svamp", title="SVAMP", dataset="ChilleD/SVAMP", size=300, metric="numeric", task="math",
            read=_svamp, group_by="type",
        ),
    )
}  # fmt: skip


def read_row(benchmark: Benchmark, row: Mapping[str, Any], where: str) -> Row:
    """A row of a benchmark's data, read and checked; of code, its tests too.

    Raises:
        InputError: it is not in the benchmark's schema, or its tests cannot be read.
    """
    try:
        read = benchmark.read(row)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        problem = said_of(error)
        raise InputError(
            f"A row is none of {benchmark.title}.",
            where=where,
            found=f"{', '.join(map(str, row)) if isinstance(row, Mapping) else repr(row)[:80]} ({problem})"[:400],
            expected=f"the schema of {benchmark.dataset} on the Hub",
        ) from error
    if benchmark.tests and not benchmark.tests(read["source"]):
        raise InputError("A row has no test.", where=where, found=read.get("question_id", read.get("task_id")))
    return read


def read_rows(benchmark: Benchmark, rows: Iterable[Mapping[str, Any]], where: str) -> list[Row]:
    """`read_row` of all."""
    return [read_row(benchmark, row, f"{where}, row {number}") for number, row in enumerate(rows, start=1)]


def described(rows: Iterable[Row]) -> list[Row]:
    """Rows without what only the judge needs."""
    return [{name: value for name, value in row.items() if name != "source"} for row in rows]
