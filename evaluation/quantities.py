"""Numbers, exactly, and units: "12 dollars", `36\\pi\\text{ cm}^2`, 50 %, 1.5 × 10³."""

import re
from fractions import Fraction

from .latex import closing
from .numerals import MANY, PARTS

THOUSANDS = r"\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}"  # 1,234,567 and, in India, 12,34,567


def number(text: str) -> Fraction | None:
    """The exact value of a plain number: integer, decimal, fraction, mixed or scientific; `None` for all else."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^\+\s*|^(-)\s+", r"\1", text)
    while text.startswith("(") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    if text.startswith("-") and (inner := number(text[1:])) is not None and text[1:2] not in ("-", "+"):
        return -inner
    if re.fullmatch(rf"(?:{THOUSANDS})(?:\.\d+)?", text):
        text = text.replace(",", "")
    if re.fullmatch(r"(?:\d+\.?\d*|\.\d+)", text):
        return Fraction(text.rstrip(".")) if len(text) < 400 else None
    if found := re.fullmatch(
        r"(?:(.+?)\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|([+-]?\d{1,3}))|(\d+\.?\d*|\.\d+)[eE]([+-]?\d{1,3})",
        text,
    ):
        factor = number(found[4] or found[1] or "1")
        exponent = int(found[5] or found[2] or found[3])
        return None if factor is None else factor * Fraction(10) ** exponent
    if found := re.fullmatch(r"(\d{1,20})\s*\^\s*\{?\s*(\d{1,3})\s*\}?", text):
        return Fraction(int(found[1]) ** int(found[2]))
    if found := re.fullmatch(r"(\d+)?\s*\\frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}", text):
        whole, over, under = found[1], number(found[2]), number(found[3])
        return None if over is None or not under else (Fraction(whole or 0) + over / under)
    if found := re.fullmatch(r"(?:(\d+)[ ])?\s*([\d.]+)\s*/\s*([\d.]+)", text):
        whole, over, under = found[1], number(found[2]), number(found[3])
        return None if over is None or not under else (Fraction(whole or 0) + over / under)
    if found := re.fullmatch(r"(\d*)\.(\d*)(?:\\overline\s*\{?(\d+)\}?|\\(?:dot|bar)\s*\{?(\d+)\}?|\((\d+)\))", text):
        whole, fixed, period = found[1] or "0", found[2], found[3] or found[4] or found[5]
        repeated = Fraction(int(period), 10 ** len(period) - 1) / 10 ** len(fixed)
        return Fraction(f"{whole}.{fixed or 0}") + repeated
    if found := re.fullmatch(r"(\d*)\.(\d*?)(\d)\3\3+\s*\\dots\s*", text):
        return number(rf"{found[1]}.{found[2]}\overline{{{found[3]}}}")
    if found := re.fullmatch(r"(.+?)\s*([a-z]{4,})", text):
        factor = number(found[1]) if found[2] in POWERS else None
        return None if factor is None else factor * POWERS[found[2]]
    return None


WHOLE_POWERS = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
POWERS = {name: Fraction(value) for name, value in WHOLE_POWERS.items()}
POWERS |= {  # 3 tenths; quarters are coins too, and halves of a match
    name: Fraction(1, value) for name, value in {**PARTS, **MANY}.items() if value > 2 and "quarter" not in name
}

# what is measured -> units, each with how many of the first of its kind it is, and its other names
KINDS = {
    "length": "m 1 meter,metre; mm 1/1000 millimeter,millimetre; cm 1/100 centimeter,centimetre; "
    "in 127/5000 inch,inches; km 1000 kilometer,kilometre; ft 381/1250 foot,feet;"
    " yd 1143/1250 yard; mi 201168/125 mile",
    "mass": "g 1 gram,gramme; kg 1000 kilogram,kilo; mg 1/1000 milligram; lb 45359237/100000 lbs",
    "time": "s 1 second,sec; min 60 minute,mins; h 3600 hour,hr,hrs; day 86400; week 604800",
    "year": "year 1 yr,yrs; month 1/12",
    "volume": "L 1 liter,litre,l; mL 1/1000 milliliter,millilitre,ml",
    "dollar": "$ 1 dollar,usd,buck; cent 1/100 ¢",
    "euro": "€ 1 euro,eur; eurocent 1/100",
    "pound": "£ 1 pound,gbp,quid; penny 1/100 pence",
    "yen": "¥ 1 yen,jpy",
    "rupee": "₹ 1 rupee,inr",
    "percent": "% 1 percent,percentage,pct",
    "degree": "° 1 degree,deg",
    "radian": "rad 1 radian",
    "speed": "m/s 1 mps; km/h 5/18 kmh,kph,kmph; mi/h 1397/3125 mph",
}
UNITS: dict[str, tuple[str, Fraction]] = {}
NAMES: dict[str, str] = {}
for kind, members in KINDS.items():
    for unit, scale, names in ([*member.split(), "", ""][:3] for member in members.split(";")):
        UNITS[unit] = (kind, Fraction(scale))
        NAMES |= {name: unit for name in [unit, *names.split(",")] if name}
SINGLE_LETTERS = frozenset("mgshL")  # units only where they are dressed as text, or stand apart


# Words behind a number that change it, or leave it open: "12 squared", "5 or more", "5 bn".
NO_UNITS = {"squared", "cubed", "point", "bn", "mn", "tn", "score", "or", "and", "least", "most", "minimum", "maximum",
            "min.", "more", "less", "fewer", "plus", "minus", "times", "over"}  # fmt: skip


def unit_of(words: str) -> tuple[str, Fraction] | None:
    """What words measure, and how many of its first unit one is; words that are no known unit measure themselves.

    `None` where they are no words.
    """
    words = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", words).replace("{", "").replace("}", "")
    words = re.sub(r"(?<=[A-Za-z])\.(?=[A-Za-z ]|$)", "", words)  # p.m.
    words = re.sub(r"\s*([/^])\s*", r"\1", " ".join(words.split())).strip(" .,")
    if (
        not words
        or NO_UNITS & set(words.lower().split())
        or re.search(r"[\\\d=<>+*()|]", re.sub(r"\^-?\d", "", words))
    ):
        return None
    words = re.sub(r"\bsq(?:uare|\.)?\s+(\S+)", r"\1^2", words)
    words = re.sub(r"\b(?:cubic|cu\.?)\s+(\S+)", r"\1^3", words)
    words = re.sub(r"\s+per\s+|\s+an?\s+(?=hour|second|minute|day|week|year)", "/", words)
    dimension: dict[str, int] = {}
    scale = Fraction(1)
    for position, side in enumerate(words.split("/")):
        for word in side.split():
            name, _, power = word.partition("^")
            exponent = (int(power) if re.fullmatch(r"-?\d", power) else 1) * (1 if position == 0 else -1)
            kind, factor = UNITS.get(_known(name), (_singular(name), Fraction(1)))
            if kind == "speed":
                dimension["length"] = dimension.get("length", 0) + exponent
                dimension["time"] = dimension.get("time", 0) - exponent
            elif kind == "volume":  # a litre is a cube of 0.1 m
                dimension["length"] = dimension.get("length", 0) + 3 * exponent
                factor /= 1000
            else:
                dimension[kind] = dimension.get(kind, 0) + exponent
            scale *= factor**exponent
    return " ".join(f"{name}^{power}" for name, power in sorted(dimension.items()) if power), scale


def _known(name: str) -> str:
    for candidate in (name, name.lower(), _singular(name)):
        if candidate in NAMES:
            return NAMES[candidate]
    return ""


def _singular(word: str) -> str:
    word = word.lower()
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:s|x|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


TAIL = re.compile(
    r"(?P<value>.*?[\d)}\]!]|.*?\\(?:pi|infty)|.*?(?<![A-Za-z\\])[a-z])\s*"
    r"(?P<unit>(?:%|/?\s*\\text\s*\{[^{}]*\}(?:\s*/?\s*\^\s*\{?-?\d\}?)?"
    # A word is matched in one way only, or long texts would take for ever.
    r"|(?<=\s)(?:per\s)?[A-Za-z]+(?![A-Za-z])(?:\.[A-Za-z]\.?)*(?:\^\{?-?\d\}?)?(?:/[A-Za-z]+(?![A-Za-z])(?:\^\{?-?\d\}?)?)?"
    r"|(?<![A-Za-z\s])[A-Za-z]{2,}(?![A-Za-z])(?:\^\{?-?\d\}?)?(?:/[a-z]+(?![A-Za-z]))?)\s*)+"
)
SUMMANDS = re.compile(r"\s*(?:\band\s+)?(\d[\d,]*(?:\.\d+)?)\s+([A-Za-z]+\.?|[$€£])(?=\s|$)")
CURRENCY = r"\\text\s*\{\s*[$€£¥₹]\s*\}"
HEAD = re.compile(
    rf"(?P<unit>(?:US)?{CURRENCY}|(?:USD|EUR|GBP|JPY|INR)\s)\s*(?P<value>.*)|-\s*(?P<sign>{CURRENCY})(?P<rest>.*)"
)
PRICE = re.compile(r"^(?:US)?\s*([$€£])\s*(\d[\d,]*)(?=\s+and\s)")  # $12 and 50 cents


def total_of(text: str) -> tuple[str, tuple[str, Fraction]] | None:
    """The sum of several amounts of one kind, in its first unit: "3 hours 30 minutes", "12 dollars and 50 cents".

    `None` where a text is none: one amount, several kinds, a unit twice, or anything else.
    """
    text = PRICE.sub(r"\2 \1", re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).strip())
    found = SUMMANDS.findall(text)
    if len(found) < 2 or SUMMANDS.sub("", text).strip():
        return None
    words = [unit for _, unit in found]
    if any(unit_of(unit) == ("euro^1", Fraction(1)) for unit in words):
        words = [re.sub(r"\b(?=cents?\b)", "euro", unit) for unit in words]
    units = [unit_of(unit) for unit in words]
    if None in units or len({unit[0] for unit in units if unit}) > 1:
        return None
    if len({unit[1] for unit in units if unit}) < len(units) or not units[0]:
        return None
    amounts = [number(amount) for amount, _ in found]
    if None in amounts:
        return None
    total = sum(
        (amount * unit[1] for amount, unit in zip(amounts, units, strict=True) if amount and unit), Fraction(0)
    )
    return str(total), (units[0][0], Fraction(1))


def measure_of(text: str) -> tuple[str, tuple[str, Fraction] | None]:
    """A value and its unit, or the text and `None`: "12 dollars", `36\\pi\\text{ cm}^2`, `50%`, `70^\\circ`.

    Several of one kind are their sum: "3 hours 30 minutes" are 12600 seconds.
    """
    text = re.sub(r"(?<=\d)\s+o['’]clock\b", " oclock", text.strip())
    if total := total_of(text):
        return total
    if found := HEAD.fullmatch(text):
        sign = found["sign"] is not None
        value = "-" + found["rest"] if sign else found["value"]
        head = unit_of(re.sub(r"^US(?=\\)", "", found["sign"] or found["unit"]))
        return measure_of(value)[0], head
    found = TAIL.fullmatch(text)
    if not found:
        return text, None
    value, tail = found["value"].strip(), text[len(found["value"]) :]
    if re.search(r"\\text", value) or (re.fullmatch(r"[A-Za-z]", value) and "text" not in tail):
        return text, None
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])", value) and "°" in tail:
        return text, None  # of an angle
    bare = tail.strip()
    if re.fullmatch(r"[A-Za-z]", bare) and not (
        tail[:1].isspace() and bare in SINGLE_LETTERS and number(value) is not None
    ):
        return text, None  # a variable
    if re.match(r"[A-Za-z]", bare) and not tail[:1].isspace() and not all(map(_known, re.findall(r"[A-Za-z]+", bare))):
        return text, None  # letters that are multiplied
    if any(word in POWERS for word in bare.split()):
        word = next(word for word in bare.split() if word in POWERS)
        before, after = bare.split(word, 1)
        whole = number(value)
        if whole is None or before.strip():
            return text, None
        value, bare = str(whole * POWERS[word]), after
        if not bare.strip():
            return value, None
    measured = unit_of(bare)
    return (text, None) if measured is None else (value, measured)
