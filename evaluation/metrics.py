"""When an answer is right, by name: what `recursivemas score`, `evaluate`, `controls` and training's evaluation count.

A metric judges twice, always from the same text: *strict* is what a claim needs, *release* the public release's loose
rules (release_rules.py), so that its tables compare.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..answers_recursivemas import BOX, boxed_answer, extract_answer
from ..solutions_recursivemas import Solution
from . import mathematics, release_rules
from .programs import CODE, CodeMetric
from .prover import require_math_verify
from .stated import stated_gold, tagged

Judge = Callable[[str, str], bool]


def gold_of(answer: str) -> str:
    r"""The right answer in a row's: what its last `\boxed{…}` holds where it is a worked solution, else the whole."""
    boxed = boxed_answer(answer)
    return answer.strip() if boxed is None else boxed


def exact(text: str, answer: str) -> bool:
    """Whether an answer equals the right one."""
    return text.strip() == gold_of(answer)


def contains(text: str, answer: str) -> bool:
    """Whether the right word or phrase stands in an answer, as whole words, in small or capital letters.

    A number does not stand in a longer one (3 in 3.5 or 1,300).
    """
    words = gold_of(answer).split()
    pattern = r"(?<!\w)(?<!\d[.,])" + r"\s+".join(map(re.escape, words)) + r"(?!\w|[.,]\d)"
    return bool(words) and re.search(pattern, text, re.IGNORECASE) is not None


def choice(text: str, answer: str) -> bool:
    """Whether a text chooses the right letter, however it is dressed; where none can be read, it is wrong."""
    letter = extract_answer(text, "choice")
    return letter is not None and letter == extract_answer(answer, "choice")


def phrase_of(text: str) -> str:
    """The phrase that a text answers with: boxed, after "answer:" or "the answer is", else the whole text."""
    text = tagged(text)
    boxed = boxed_answer(text)
    if boxed is not None:
        text = re.sub(r"\\text(?:bf|it|rm)?\s*\{([^{}]*)\}", r"\1", boxed)
    elif stated := PHRASE.findall(text):
        text = stated[-1]
    return text.strip().strip("*_` ")


PHRASE = re.compile(r"\banswer\s*(?:is|:)[*_]*\s*:?\s*([^\n]+)", re.IGNORECASE)


def same_phrase(text: str, answer: str) -> bool:
    """Whether a text answers with the right phrase, both normalized (HotpotQA's way), or with the same date."""
    found, gold = phrase_of(text), gold_of(answer)
    if BOX.search(found):
        return False  # denied, or cut short
    return bool(release_rules.normalized(found)) and release_rules.same_phrase(found, gold)


def f1_score(text: str, answer: str) -> float:
    """The F1 of the words of a text's phrase and the right one's, both normalized; yes and no count as a whole."""
    found, gold = (release_rules.normalized(side) for side in (phrase_of(text), gold_of(answer)))
    if found == gold:
        return float(bool(gold))
    if {found, gold} & {"yes", "no", "noanswer"}:
        return 0.0
    words, right = found.split(), gold.split()
    common = sum((Counter(words) & Counter(right)).values())
    return 2 * common / (len(words) + len(right)) if common else 0.0


def numeric(text: str, answer: str) -> bool:
    """Whether the number that a text states is the right one, exactly; see mathematics.py. Needs no package."""
    return mathematics.correct(text, answer, prove=None)


def released(judge: Judge) -> Judge:
    """A rule of the release, on what it is given: the right answer of a worked solution, never its steps."""
    return lambda text, answer: judge(text, stated_gold(answer))


@dataclass(frozen=True)
class Metric:
    """One way to judge finished outputs.

    Attributes:
        strict: what a claim needs; a text and the row's answer -> right or wrong.
        release: the public release's rule for the same.
        reads_text: judges the whole text that a system wrote; else the answer that was found in it.
        require: raises an `InputError` where a package is missing.
    """

    strict: Judge
    release: Judge
    reads_text: bool = True
    require: Callable[[], None] = lambda: None

    @property
    def has_release(self) -> bool:
        """Whether the release judges by rules of its own."""
        return self.release is not self.strict

    def judge(self, prediction: str | None, answer: str) -> dict[str, bool]:
        """Both verdicts, "strict" and "release", on what a system wrote; `None` is wrong (in release: empty)."""
        return self._verdicts(prediction if self.reads_text else extract_answer(prediction or "", "default"), answer)

    def both(self, solution: Solution, answer: str) -> dict[str, bool]:
        """The verdicts of `judge` on a system's solution; a missing answer is wrong."""
        return self._verdicts(solution.text if self.reads_text else solution.answer, answer)

    def _verdicts(self, text: str | None, answer: str) -> dict[str, bool]:
        release = self.release(text or "", answer) if self.has_release or text is not None else False
        return {"strict": text is not None and self.strict(text, answer), "release": release}

    def judge_rows(
        self, predictions: Sequence[str | None], rows: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, bool]]:
        """`judge` of what was written for each row, by its "answer"."""
        return [self.judge(text, row["answer"]) for text, row in zip(predictions, rows, strict=True)]

    def judge_solutions(
        self, solutions: Sequence[Solution], rows: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, bool]]:
        """`both` of a system's solution of each row."""
        return [self.both(solution, row["answer"]) for solution, row in zip(solutions, rows, strict=True)]

    def __call__(self, solution: Solution, answer: str) -> bool:
        """The strict verdict on a system's solution."""
        return self.both(solution, answer)["strict"]


METRICS: dict[str, Metric] = {
    "exact": Metric(exact, exact, reads_text=False),
    "contains": Metric(contains, contains, reads_text=False),
    "math": Metric(mathematics.correct, released(release_rules.same_mathematics), require=require_math_verify),
    "choice": Metric(choice, release_rules.same_choice),
    "f1": Metric(same_phrase, released(release_rules.same_phrase)),
    "numeric": Metric(numeric, released(release_rules.same_mathematics)),
}
# Of commands that judge rows: those that compare with an answer, and programs, which tests judge.
JUDGES: dict[str, Metric | CodeMetric] = {**METRICS, CODE: CodeMetric()}
