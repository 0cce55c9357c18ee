r"""The public release's rules of when an answer is right, so that its tables compare. They are loose on purpose.

Mathematics is right as soon as gold and prediction agree in the whole part of their first number, in their text
without dress or spaces, or in the digits before the first point: 1.2 = 1.8, `\frac{1}{2}` = `\frac{4}{5}`, -1 = +1,
"12 dollars" = "12 years". A choice that cannot be read is A. metrics.py has the strict ones beside them.
"""

import re
import string
from datetime import date, datetime
from fractions import Fraction

FLAT_BOX = re.compile(r"\\boxed\s*\{([^{}]*)\}")
GREEDY_BOX = re.compile(r"\\boxed\s*\{(.*)\}", re.DOTALL)
FINAL_ANSWER = re.compile(r"final answer\s*:\s*(.*)", re.IGNORECASE | re.DOTALL)
FIRST_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:/\d+)?")
STATED_CHOICE = re.compile(r"final\s+(?:choice|answer)\s*:([^\n]*)", re.IGNORECASE)
MENTIONED_CHOICE = re.compile(r"\b(?:choice|answer|option)\b[^A-Za-z]*(?:is\b[^A-Za-z]*)?\(?([A-J])\b", re.IGNORECASE)
DATE_FORMS = ("%B %d %Y", "%d %B %Y", "%b %d %Y", "%d %b %Y", "%Y-%m-%d", "%m/%d/%Y", "%Y/%m/%d")


def boxed_text(text: str) -> str:
    r"""The last `\boxed{…}` that holds no braces, else what follows the first one to the last brace, else what follows
    "Final Answer:", else the whole text."""
    boxed = _box(text)
    if boxed is None and (found := FINAL_ANSWER.search(text)):
        boxed = found[1]
    return (text if boxed is None else boxed).strip()


def _box(text: str) -> str | None:
    if flat := FLAT_BOX.findall(text):
        return flat[-1]
    found = GREEDY_BOX.search(text)
    return found[1] if found else None


def _whole_part(text: str) -> int | None:
    text = re.sub(r"\\text\s*\{([^{}]*)\}|\^\s*\{?\s*\\circ\s*\}?|°", r"\1", text)
    text = re.sub(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2", text)
    found = FIRST_NUMBER.search(re.sub(r"(?<=\d),(?=\d{3})", "", text))
    if found is None:
        return None
    over, _, under = found[0].partition("/")
    value = Fraction(over.rstrip("."))
    return int(value / int(under) if under and int(under) else value)


def _bare_text(text: str) -> str:
    text = re.sub(r"\\text|\\left|\\right|\\[,;:!]|\\q?quad|\$", "", text)
    return re.sub(r"[{}\"'\s]|\\ ", "", text)


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text.partition(".")[0]).lstrip("0")


def same_mathematics(text: str, answer: str) -> bool:
    """Whether a text is right in mathematics, by any of the release's four comparisons."""
    found = boxed_text(text)
    whole = _whole_part(answer)
    return (
        (whole is not None and _whole_part(found) == whole)
        or _bare_text(found) == _bare_text(answer)
        or re.sub(r"\s", "", found) == re.sub(r"\s", "", answer)
        or (_digits(found) == _digits(answer) != "")
    )


def choice_letter(text: str) -> str:
    """The letter of a choice: boxed, on the line "Final Choice:", first mentioned, at the very start; else A."""
    stated = STATED_CHOICE.search(text)
    for candidate in (_box(text), stated and stated[1]):
        if candidate and (letter := re.search(r"(?<![A-Za-z\\])[A-Ja-j](?![A-Za-z])", candidate)):
            return letter[0].upper()
    if found := MENTIONED_CHOICE.search(text) or re.match(r"\s*\(?([A-J])\b", text):
        return found[1].upper()
    return "A"


def same_choice(text: str, answer: str) -> bool:
    """Whether a text chooses the right letter; what cannot be read, of either, counts as A."""
    return choice_letter(text) == choice_letter(answer)


def normalized(text: str) -> str:
    """A short answer in small letters, without punctuation, articles and more than single spaces."""
    text = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", text).split())


def as_date(text: str) -> date | None:
    """The date that a text is, in one of the usual forms."""
    text = " ".join(re.sub(r"(?<=\d)(?:st|nd|rd|th)\b|,|\bof\b|\bthe\b", " ", text.strip().rstrip(".")).split())
    for pattern in DATE_FORMS:
        try:
            return datetime.strptime(text, pattern).date()
        except ValueError:
            continue
    return None


def same_phrase(text: str, answer: str) -> bool:
    """Whether a text is the right phrase, normalized, or the same date."""
    found = boxed_text(text)
    day = as_date(answer)
    return normalized(found) == normalized(answer) or (day is not None and as_date(found) == day)
