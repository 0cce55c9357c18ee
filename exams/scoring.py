"""Verdicts on what was written, by both scorers, and what several answers to a question come to."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy

from ..answers_recursivemas import extract_answer
from ..evaluation import mathematics
from ..evaluation.measure import wilson_interval
from ..evaluation.metrics import JUDGES, phrase_of
from ..evaluation.programs import judge_programs, require_allowed
from ..evaluation.release_rules import normalized
from ..evaluation.stated import stated_answer
from .table import Benchmark, Row

RESAMPLES = 2_000


def require(benchmark: Benchmark, allow_code: bool) -> None:
    """Raises InputError where answers could not be judged: a package is missing, or code may not be run."""
    require_allowed(benchmark.metric, allow_code, benchmark.name)
    JUDGES[benchmark.metric].require()


def verdicts(
    benchmark: Benchmark, rows: Sequence[Row], texts: Sequence[str], require_walls: Iterable[str] = ()
) -> list[dict[str, bool]]:
    """Both verdicts, "strict" and "release", on a text for each row; the tests of all programs share all cores."""
    if benchmark.tests is None:
        return JUDGES[benchmark.metric].judge_rows(texts, rows)
    return judge_programs(texts, [benchmark.tests(row["source"]) for row in rows], require_walls)


def pass_at_k(right: int, total: int, k: int) -> float:
    """The chance that one of `k` answers is right, where `right` of `total` were: unbiased (Chen et al. 2021)."""
    return 1.0 - math.comb(total - right, k) / math.comb(total, k)


def stated(benchmark: Benchmark, text: str) -> str | None:
    """What a text answers, for a vote; `None` where nothing can be read."""
    if benchmark.metric in ("math", "numeric"):
        return stated_answer(text)
    if benchmark.metric == "f1":
        return normalized(phrase_of(text)) or None
    return extract_answer(text, benchmark.task)


def vote(benchmark: Benchmark, texts: Sequence[str]) -> int | None:
    """The index of the first text with the answer that most texts give; of equals the one that came first.

    In mathematics answers are one where they are equal in value (by form: no package is asked). Texts that state
    nothing have no vote; `None` where all are such.
    """
    classes: list[tuple[str, list[int]]] = []
    for index, text in enumerate(texts):
        answer = stated(benchmark, text)
        if answer is None:
            continue
        same_value = benchmark.metric in ("math", "numeric")
        for other, members in classes:
            if answer == other or (same_value and mathematics.equal(answer, other, prove=None)):
                members.append(index)
                break
        else:
            classes.append((answer, [index]))
    return max(classes, key=lambda each: len(each[1]))[1][0] if classes else None


def interval(means: Sequence[float], answers: int, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over questions, each with its own mean over so many answers.

    Wilson's where each question has one answer; else percentiles of bootstrap resamples of the questions (seeded).
    """
    if answers == 1:
        return wilson_interval(round(sum(means)), len(means))
    values = numpy.asarray(means, dtype=float)
    drawn = numpy.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = numpy.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def of_samples(benchmark: Benchmark, rows: Mapping[int, Sequence[Mapping[str, Any]]], ks: Sequence[int]) -> dict:
    """What several answers to each question come to, of one seed.

    Args:
        benchmark: which one.
        rows: question -> its answers, with "prediction", "strict" and "release"; equally many of each.
        ks: numbers of answers to choose from.

    Returns:
        For "strict" and "release": "pass_at_k" and "majority", the accuracy of the answer that most gave.
    """
    number = len(next(iter(rows.values())))
    chosen = {index: vote(benchmark, [row["prediction"] for row in answers]) for index, answers in rows.items()}
    found: dict[str, Any] = {}
    for scorer in ("strict", "release"):
        counts = [sum(row[scorer] for row in answers) for answers in rows.values()]
        elected = [place is not None and rows[index][place][scorer] for index, place in chosen.items()]
        found[scorer] = {
            "pass_at_k": {str(k): sum(pass_at_k(c, number, k) for c in counts) / len(counts) for k in ks},
            "majority": sum(elected) / len(elected),
        }
    return found
