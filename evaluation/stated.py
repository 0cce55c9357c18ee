"""The answer that a text states, in mathematics: boxed, after "the answer is", or the only one that can be meant."""

import re

from ..answers_recursivemas import (
    BOX,
    DENIED_BEFORE,
    DENIED_BEHIND,
    boxed_answer,
    in_tags,
    last_boxes,
    without_thoughts,
)
from .latex import FORMULA
from .numerals import sentence_in_digits
from .quantities import THOUSANDS, total_of, unit_of

STATEMENT = re.compile(
    r"####[ \t]*"
    r"|\b(?:answers?|ans)\b(?:\s+(?:to|of|for)\b[^.\n:]{0,80}?)?[*_]*\s*"
    r"(?:(?:is|are|would be|must be|will be|equals)\b\s*(?:therefore|thus|then|simply|just)?\s*:?|[:=]|：)[*_]*\s*",
    re.IGNORECASE,
)
NUMBER = rf"(?<![\w.])[-−+]?(?:(?:{THOUSANDS})(?!\d)|\d+)?(?:\.\d+)?(?:\s*/\s*\d+)?(?<=\d)"
SUM = re.compile(r"(?:US)?[$€£]?\d[\d,]*(?:\.\d+)?(?:\s[A-Za-z]+)?\s+and\s+\d+(?:\.\d+)?\s[A-Za-z]+")
CORRECTED = re.compile(  # what follows takes back what was said
    r"(?:^|[\s.!?,;:])\s*(?:(?:no|wait|sorry|oops|correction|hold on|scratch that|on second thoughts?)\s*[,.!:;…–—-]+"
    r"|actually,?\s)\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)
WRONG = re.compile(r"\b(?:wrong|incorrect|mistake|not (?:right|correct))\b", re.IGNORECASE)
REFUSED = re.compile(  # nobody answers who says so, whatever number stands in the text
    r"\b(?:i|we)\b['’]?(?:\s+am|m)?\s*(?:(?:do\s+not|don['’]t|cannot|can['’]t|can\s+not|could\s+not|couldn['’]t|did\s+not|won['’]t"
    r"|didn['’]t)\s+(?:\w+\s+){0,2}?(?:know|tell|answer|solve|determine|say|help|find|compute|calculate|figure|decide|see"
    r"|understand|give|provide|assist)\b|(?:not\s+able|unable|not\s+sure|unsure|(?:have\s+)?no\s+idea|refuse)\b)"
    r"|\b(?:cannot|can['’]t|could\s+not)\s+be\s+(?:determined|solved|found|answered|known|computed|calculated)\b"
    r"|\bnot\s+enough\s+information\b",
    re.IGNORECASE,
)

# A number of which a sentence says only that the answer is more or less.
BOUND_BEFORE = re.compile(
    r"\b(?:at\s+(?:least|most)|(?:more|less|fewer|greater|smaller|larger|higher|lower|older|younger|longer|shorter)\s+than|over"
    r"|under|above|below|up\s+to|nearly|almost|between|exceeds?|(?:minimum|maximum)\s+of)\s+[$(]*$",
    re.IGNORECASE,
)
BOUND_BEHIND = re.compile(
    r"[$)]*(?:\+|\s+(?:or\s+(?:more|less|fewer|so|greater|smaller|higher|lower|above|below)|at\s+(?:least|most))\b)",
    re.IGNORECASE,
)
MOST_WORDS = 15  # of a sentence whose answer may be a number in words


def tagged(text: str) -> str:
    """What stands in the last `<answer>…</answer>` of a text outside of thoughts, else that text."""
    return in_tags(without_thoughts(text))


def stated_answer(text: str) -> str | None:
    r"""The answer in what a system wrote: boxed (boxes of one statement are one list, else the last counts), after
    "####" or "the answer is", the whole of a text that is nothing else, or the only formula or number at the end.
    Thoughts do not count, nor what is denied ("not 5"), taken back or refused. `None` where nothing can be read.
    """
    text = tagged(text)
    if found := last_boxes(text):
        answer: str | None = ", ".join(found) if all(found) else None
        while answer and answer.startswith("\\") and (inner := boxed_answer(answer)) is not None:
            answer = inner
        return answer or None
    for match in reversed(list(STATEMENT.finditer(text))):
        said = text[match.end() :]
        if corrected := CORRECTED.search(said):
            answer = _short(corrected[1], first=False)
            if answer is None and WRONG.search(corrected[1]):
                return None
            if answer is not None and re.search(r"[\d$\\]", answer):
                return answer
        if answer := _short(said, first=True):
            is_denied = DENIED_BEHIND.match(said.partition(answer)[2]) or BOX.search(answer)
            return None if is_denied else answer
    answer = _short(text, first=False)
    return None if answer and BOX.search(answer) else answer


def _short(text: str, first: bool) -> str | None:
    """The answer in a text without boxes: the text itself, or its first or last formula, or its only number."""
    text = text.strip().strip("*_").strip()
    sentence = (
        re.split(r"(?<=[^\s.])[.!?](?=\s|$)|\n\s*\n|\n(?![^\n]*\$)|\s+I hope ", text)[0].strip(" *_")
        if first
        else text
    )
    if first:  # "5, not 6", "5 because …", "not 6 but 5"
        sentence = re.sub(r"^not\s[^.]{1,40}?,?\sbut\s+(?:rather\s+)?(?=\S)", "", sentence)
        sentence = re.split(r"(?<=[\d$)}\]A-Za-z]),?\s+(?:(?:and\s+|but\s+)?not|because|since|as)\s", sentence)[0]
    formulas = list(FORMULA.finditer(sentence))
    outside = FORMULA.sub(" ", sentence)
    if not _is_prose(outside) and (sentence or first):
        return sentence or None
    if REFUSED.search(text) or (not first and text.endswith("?")):
        return None
    if formulas:
        match = formulas[0 if first else -1]
        if _is_denied(sentence, match):
            return None
        if not first and len(formulas) > 1:
            between = sentence[formulas[-2].end() : match.start()]
            if re.fullmatch(
                r"\s*(?:,|,?\s*and|,?\s*or(?:\s+(?:maybe|perhaps|possibly|it\s+is|it['’]s))*)\s*", between
            ):
                return f"{formulas[-2][0]}, {match[0]}"  # several answers
        tail = re.match(r"\s*(?:\\?%|[A-Za-z]+)", sentence[match.end() :])
        unit = tail[0] if tail and unit_of(tail[0]) is not None and tail[0].strip() not in "aAI" else ""
        return sentence[match.start() : match.end()] + unit
    lines = [line for line in sentence.splitlines() if line.strip()]
    if len(lines) > 1 and all(re.fullmatch(NUMBER, line.strip(" .*_")) for line in lines):
        return ", ".join(line.strip(" .*_") for line in lines)
    if not re.search(r"\d", sentence) and len(sentence.split()) <= MOST_WORDS:
        sentence = sentence_in_digits(sentence)
    last = sentence if first else re.split(r"(?<=[a-z)\d])[.!?]\s+|\n", sentence.rstrip(".!? "))[-1]
    for part in (sentence, last.rpartition("=")[2] or last):
        sums = [match for match in SUM.finditer(part) if total_of(match[0].replace("$", r"\text{$}"))]
        numbers = list(re.finditer(NUMBER, part))
        if len(sums) == 1 and all(sums[0].start() <= each.start() < sums[0].end() for each in numbers):
            numbers = sums
        if len(numbers) == 1:
            return None if _is_denied(part, numbers[0]) else numbers[0][0]
    return None


def _is_denied(text: str, found: re.Match[str]) -> bool:
    """Whether a sentence says that what was found in it is not the answer, or only a bound of it."""
    before, behind = text[: found.start()][-80:], text[found.end() :]
    return bool(
        DENIED_BEFORE.search(before)
        or DENIED_BEHIND.match(behind)
        or BOUND_BEFORE.search(before)
        or BOUND_BEHIND.match(behind)
    )


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
    boxed = boxed_answer(answer)
    if boxed is not None:
        return boxed
    return answer.rpartition("####")[2].strip()
