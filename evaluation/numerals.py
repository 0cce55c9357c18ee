"""Numbers in words: "twenty-five", "two thirds", "one and a half", "a dozen", "minus three". Ordinals are none."""

import re
from fractions import Fraction

SMALL = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
         "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
         "seventeen": 17, "eighteen": 18, "nineteen": 19}  # fmt: skip
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
         "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12,
         **{f"{name}th": value for name, value in list(SMALL.items())[13:]},
         **{f"{name[:-1]}ieth": value for name, value in TENS.items()}, "hundredth": 100,
         **{f"{name}th": value for name, value in SCALES.items()}}  # fmt: skip
MANY = {"halves": 2, **{f"{name}s": value for name, value in PARTS.items() if name != "half"}}

_DIGIT = "|".join(list(SMALL)[:10])
_WORD = "|".join([*SMALL, *TENS, "hundred", *SCALES])
_BEHIND = "|".join(rf"(?<={word})" for word in ("hundred", *SCALES))
_WHOLE = rf"(?:an?\s+)?(?:{_WORD})(?:(?:(?:{_BEHIND})(?:,\s+|,?\s+and\s+)|\s+|-)(?:{_WORD}))*"
NUMERAL = re.compile(
    r"(?<![\w-])(?:(?:(?P<sign>minus|negative)\s+)?(?:"
    rf"(?P<whole>{_WHOLE})(?:(?P<and>\s+and\s+(?:(?:an?|{_WORD})[\s-]+))(?P<more>{'|'.join([*MANY, *PARTS])})"
    rf"|[\s-]+(?P<part>{'|'.join([*MANY, *PARTS])})|\s+point(?P<decimals>(?:\s+(?:{_DIGIT}))+))?"
    r"|(?:an?\s+)?(?P<half>half)|an?\s+(?P<one>third|quarter))(?P<dozen>\s+(?:a\s+)?dozen)?|(?P<only>(?:a\s+)?dozen)"
    rf")(?![\w-])(?!\s+(?:first|{_WORD}|{'|'.join([*MANY, *PARTS])})\b)",  # no part of "one hundred first"
    re.IGNORECASE,
)


def cardinal(text: str) -> int | None:
    """The whole number that words say, "two thousand and five"; `None` where they say none, or several."""
    total, group, scale, last = 0, 0, 10**15, ""
    for word in re.split(r"[\s,-]+", text.casefold().strip()):
        if word in ("a", "an"):
            if last:
                return None
            group = 1
        elif word == "and":
            if last != "hundred" and last not in SCALES:
                return None
        elif word in SMALL or word in TENS:
            value = SMALL.get(word, TENS.get(word, 0))
            follows = last in ("", "and", "hundred", *SCALES) or (last in TENS and 1 <= value <= 9)
            if not follows or (value == 0 and last):
                return None
            group += value
        elif word == "hundred":
            if last in ("and", "hundred") or (last and not (1 <= group <= 99 and (group < 10 or group % 10))):
                return None
            group = 100 * (group or 1)
        elif word in SCALES:
            if SCALES[word] >= scale or last == "and" or (last and not group):
                return None
            scale = SCALES[word]
            total, group = total + (group or 1) * scale, 0
        else:
            return None
        last = word
    return None if last in ("", "a", "an", "and") else total + group


def value_of(found: re.Match[str]) -> Fraction | None:
    """The value of a match of `NUMERAL`; `None` where its words say none, or several."""
    if found["only"]:
        return Fraction(12)
    if single := found["half"] or found["one"]:
        value = Fraction(1, PARTS[single.casefold()])
    else:
        whole = cardinal(found["whole"])
        if whole is None:
            return None
        value = Fraction(whole)
        if part := found["part"]:  # two thirds, one third; not twenty-third
            parts = MANY if whole > 1 else PARTS
            if whole == 0 or part.casefold() not in parts:
                return None
            value /= parts[part.casefold()]
        elif more := found["more"]:  # two and a half, two and three quarters
            count = re.sub(r"^\s+and\s+|[\s-]+$", "", found["and"].casefold())
            times = 1 if count in ("a", "an") else cardinal(count)
            parts = PARTS if times == 1 else MANY
            if not times or more.casefold() not in parts:
                return None
            value += Fraction(times, parts[more.casefold()])
        elif found["decimals"]:
            digits = "".join(str(SMALL[word]) for word in found["decimals"].casefold().split())
            value += Fraction(int(digits), 10 ** len(digits))
    value *= 12 if found["dozen"] else 1
    return -value if found["sign"] else value


def written(value: Fraction) -> str:
    """A value in digits."""
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def replaced(text: str) -> str | None:
    """A text with its numbers in words in digits; `None` where words say no number, or several."""
    values = [value_of(found) for found in NUMERAL.finditer(text)]
    digits = iter([written(value) for value in values if value is not None])
    return None if None in values else NUMERAL.sub(lambda found: next(digits), text)


def sentence_in_digits(text: str) -> str:
    """A sentence with its numbers in words in digits.

    It stays as it is where words say no number, or where "one" or "half" is the only one: these say something else.
    """
    found = [match[0].casefold() for match in NUMERAL.finditer(text)]
    if len(found) == 1 and found[0] in ("one", "half", "a half", "dozen", "a dozen"):
        return text
    return replaced(text) or text


def in_digits(text: str) -> str:
    """An answer that begins with a number in words with its numbers in digits: "12 dollars" for "twelve dollars".

    Other texts, and words that say no number or several, stay as they are.
    """
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip()
    if twice := re.fullmatch(r"(.+?)\s*\((.+)\)", plain):  # twelve (12)
        sides = [in_digits(side) for side in twice.groups()]
        return sides[0] if sides[0] == sides[1] and sides != list(twice.groups()) else text
    first = NUMERAL.match(plain)
    joined = re.match(r"[$€£]?\d[\d,.]*\s", plain) and all(
        plain[: found.start()].endswith("and ") for found in NUMERAL.finditer(plain)
    )  # 12 dollars and fifty cents
    if not (first or joined) or not re.fullmatch(r"[A-Za-z\d\s,.%$€£/-]+", plain):
        return text
    return replaced(plain) or text
