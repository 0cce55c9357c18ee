"""When an answer is right, by name: what `recursivemas evaluate` and the evaluation during training count."""

import re
from collections.abc import Callable

from ..answers_recursivemas import last_boxed
from ..engine_recursivemas import Solution


def gold_of(answer: str) -> str:
    r"""The right answer in a row's: what its last `\boxed{…}` holds where it is a worked solution, else the whole."""
    boxed = last_boxed(answer)
    return answer.strip() if boxed is None else boxed


def exact(solution: Solution, answer: str) -> bool:
    """Whether a system's answer equals the right one; a missing answer is wrong."""
    return solution.answer is not None and solution.answer.strip() == gold_of(answer)


def contains(solution: Solution, answer: str) -> bool:
    """Whether the right word or phrase stands in a system's answer, as whole words, in small or capital letters.

    A number does not stand in a longer one (3 in 3.5 or 1,300); a missing answer is wrong.
    """
    words = gold_of(answer).split()
    pattern = r"(?<!\w)(?<!\d[.,])" + r"\s+".join(map(re.escape, words)) + r"(?!\w|[.,]\d)"
    return bool(words) and re.search(pattern, solution.answer or "", re.IGNORECASE) is not None


METRICS: dict[str, Callable[[Solution, str], bool]] = {"exact": exact, "contains": contains}
