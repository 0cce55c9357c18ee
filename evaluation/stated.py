"""The answer that a text states, in mathematics: boxed, after "the answer is", or the only one that can be meant."""

import re

from ..answers_recursivemas import boxes, last_boxed, without_thoughts
from .latex import FORMULA
from .quantities import unit_of

STATEMENT = re.compile(
    r"####[ \t]*"
    r"|\banswers?\b(?:\s+(?:to|of|for)\b[^.\n:]{0,80}?)?[*_]*\s*"
    r"(?:(?:is|are|would be|must be|will be|equals)\b\s*(?:therefore|thus|then|simply|just)?\s*:?|[:=]|：)[*_]*\s*",
    re.IGNORECASE,
)
NUMBER = r"(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:\s*/\s*\d+)?(?<=\d)"
BETWEEN_BOXES = re.compile(r"[\s$.]*(?:,|\band\b|\bor\b|,\s*and\b|,\s*or\b)[\s$]*(?:[A-Za-z]\w*\s*=\s*)?")


def tagged(text: str) -> str:
    """What stands in the last `<answer>…</answer>` of a text outside of thoughts, else that text."""
    text = without_thoughts(text)
    found = re.findall(r"(?is)<answer>(.*?)</answer>", text)
    return (found[-1] if found else text).strip()


def stated_answer(text: str) -> str | None:
    r"""The answer in what a system wrote: boxed (boxes joined by "and" or commas are one list, else the last counts),
    after "####" or "the answer is", the whole of a text that is nothing else, or the only formula or number at the
    end. Thoughts do not count. `None` where nothing can be read.
    """
    text = tagged(text)
    if found := boxes(text):
        contents = [found[-1][2]]
        for before, after in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
            if before[1] > after[0] or not BETWEEN_BOXES.fullmatch(text[before[1] : after[0]]):
                break
            contents.insert(0, before[2])
        answer: str | None = ", ".join(contents) if all(contents) else None
        while answer and answer.startswith("\\") and (inner := last_boxed(answer)) is not None:
            answer = inner
        return answer or None
    for match in reversed(list(STATEMENT.finditer(text))):
        if answer := _short(text[match.end() :], first=True):
            return answer
    return _short(text, first=False)


def _short(text: str, first: bool) -> str | None:
    """The answer in a text without boxes: the text itself, or its first or last formula, or its only number."""
    text = text.strip().strip("*_").strip()
    sentence = (
        re.split(r"(?<=[^\s.])[.!?](?=\s|$)|\n\s*\n|\n(?![^\n]*\$)|\s+I hope ", text)[0].strip(" *_")
        if first
        else text
    )
    if first:  # "5, not 6", "5 because …"
        sentence = re.split(r"(?<=[\d$)}\]A-Za-z]),?\s+(?:(?:and\s+|but\s+)?not|because|since|as)\s", sentence)[0]
    formulas = list(FORMULA.finditer(sentence))
    outside = FORMULA.sub(" ", sentence)
    if not _is_prose(outside) and (sentence or first):
        return sentence or None
    if formulas:
        match = formulas[0 if first else -1]
        if not first and len(formulas) > 1:
            between = sentence[formulas[-2].end() : match.start()]
            if re.fullmatch(r"\s*(?:,|,?\s*and|,?\s*or)\s*", between):
                return f"{formulas[-2][0]}, {match[0]}"  # several answers
        tail = re.match(r"\s*(?:\\?%|[A-Za-z]+)", sentence[match.end() :])
        unit = tail[0] if tail and unit_of(tail[0]) is not None and tail[0].strip() not in "aAI" else ""
        return sentence[match.start() : match.end()] + unit
    last = sentence if first else re.split(r"(?<=[a-z)\d])[.!?]\s+|\n", sentence.rstrip(".!? "))[-1]
    for part in (sentence, last.rpartition("=")[2] or last):
        numbers = re.findall(NUMBER, part)
        if len(numbers) == 1:
            return numbers[0]
    return None


def _is_prose(text: str) -> bool:
    """Whether a text has words that belong to no answer: a sentence, rather than "12 dollars" or "no solution"."""
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", text))
    return len(words) > 4 or any(map(PROSE.fullmatch, words)) or "\n" in text.strip()


# "not" is none of them: "not possible" is an answer.
PROSE = re.compile(
    r"\b(?:is|are|was|were|be|so|thus|hence|therefore|we|get|have|has|had|gives|the|there|she|he|they|it|its|total|find"
    r"|because|since|then|which|this|that|answer|equals|i|you|your|do|does|did|know|will|would)\b",
    re.IGNORECASE,
)


def stated_gold(answer: str) -> str:
    r"""The right answer of a row: in its last box, after "####" of a worked solution, else the whole."""
    boxed = last_boxed(answer)
    if boxed is not None:
        return boxed
    return answer.rpartition("####")[2].strip()
