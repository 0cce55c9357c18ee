"""Two ways of answering the same questions: is one of them right more often, and how sure is that."""

import math
from collections.abc import Sequence
from typing import Any

import numpy

RESAMPLES = 10_000


def mcnemar(only_one: int, only_other: int) -> float:
    """Exact two-sided p of McNemar's test, from the numbers of questions that only one of two ways has right."""
    total = only_one + only_other
    tail = sum(math.comb(total, count) for count in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / 2**total)


def only_right(one: Sequence[bool], other: Sequence[bool]) -> tuple[int, int]:
    """The numbers of questions that only `one`, and only `other`, has right."""
    pairs = list(zip(one, other, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def paired_difference(one: Sequence[bool], other: Sequence[bool], seed: int = 0) -> dict[str, Any]:
    """How much more often `one` is right than `other`, on the same questions in the same order.

    Returns:
        "difference" of the two accuracies; its 95 % "interval", percentiles of bootstrap resamples of the questions
        (seeded); "p", exact, of McNemar's test.
    """
    only_one, only_other = only_right(one, other)
    count = len(one)
    # A resample of questions matters by how many of each sort it holds, which are multinomial.
    shares = [only_one / count, only_other / count, (count - only_one - only_other) / count]
    drawn = numpy.random.default_rng(seed).multinomial(count, shares, size=RESAMPLES)
    low, high = numpy.percentile((drawn[:, 0] - drawn[:, 1]) / count, [2.5, 97.5])
    return {
        "difference": (only_one - only_other) / count,
        "interval": [float(low), float(high)],
        "p": mcnemar(only_one, only_other),
    }
