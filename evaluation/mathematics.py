r"""Strict mathematics: the answer that a text states, and whether two answers are equal in value.

What has a form is compared by its form first: numbers exactly; lists in any order, tuples and matrices part by part,
intervals by their ends and brackets; words letter by letter; units by what they measure. What is left, single
expressions and equations, goes to math-verify, in a process of its own that is ended when it takes too long: whatever
cannot be shown to be equal is wrong.

Decisions, where usage differs (docs/benchmarks.md has them for readers): a unit, a percent sign, a degree sign or a
currency may be left out, but two that are stated must agree (1 m = 100 cm, 12 dollars ≠ 12 years); 50 % = 50 and
50 % = 1/2; `x = 5` is 5, but not `y = 5`; parentheses of a tuple may be left out, but (1, 2) ≠ {1, 2} ≠ [1, 2];
several answers are a list, all of which must be right; a decimal is its exact value, or a fraction's or root's to at
least six significant digits.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from ..answers_recursivemas import beside_boxes
from .latex import clean, closing, split
from .numerals import in_digits
from .prover import prove
from .quantities import THOUSANDS, measure_of, number, total_of
from .stated import stated_answer, stated_gold, tagged

LONGEST = 1000  # characters of an answer; a longer one is a text

Prove = Callable[[str, str], bool]

EMPTY = {"emptyset", "nosolution", "nosolutions", "none", "nosuchsolution", "norealsolution", "norealsolutions",
         "theemptyset", "nosolutionexists"}  # fmt: skip
REALS = {"allrealnumbers", "allreals", "realnumbers", "reals", "allrealx", "r", "therealnumbers"}
SYNONYMS = {
    "dne": "doesnotexist",
    "itdoesnotexist": "doesnotexist",
    "positiveinfinity": "infinity",
    "impossible": "impossible",
}
VARIABLES = frozenset("abcxyzmnpqrkuvwijt")
FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "arcsin", "arccos", "arctan", "lim", "det",
             "sqrt", "frac", "mod", "max", "min", "gcd", "lcm"}  # fmt: skip

# The letter of an option before the value that it stands for.
_SPACE = r"(?:[\s~:]|\\[ ,;:]|\\quad)"
LABEL = re.compile(
    rf"(?:\\(?:text|math)(?:bf|rm|it)?\s*\{{\s*\(([A-J])\)[\s:.]*\}}{_SPACE}*|\(([A-J])\){_SPACE}+)(?=\S)"
)


def words_of(text: str) -> str | None:
    """An answer in words, in one spelling; `None` for formulas."""
    dressed = r"\text" in text
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    plain = re.sub(r"^\((.*)\)$", r"\1", plain.strip()).strip(" .,;:!\"'")
    if "°" in plain or not re.fullmatch(r"[^\W\d_][^\W\d_.,' \-&]*(?:[ ,.'&\-]+[^\W\d_]+)*", plain):
        return None
    runs = re.findall(r"[^\W\d_]+", plain)
    if len(plain) == 1 and not dressed:
        return None  # a variable
    if not dressed and all(len(run) < 4 and (len(run) == 1 or set(run) <= VARIABLES) for run in runs):
        return None  # letters that are multiplied
    if any(run in FUNCTIONS for run in runs) and not dressed:
        return None
    word = re.sub(r"[\W_]+", " ", plain).strip().casefold()
    return re.sub(r"^(?:the|a|an)\s+(?=\S{2})", "", word).replace(" ", "")


def _special(text: str) -> str:
    """Words or a sign for nothing and for everything, in one spelling; else the text."""
    letters = re.sub(r"[\s{}]|\\text|\\", "", text).casefold().rstrip(".")
    if letters in EMPTY or (letters == "" and r"\{" in text):
        return r"\emptyset"
    if letters in ("infinity", "positiveinfinity", "negativeinfinity", "-infinity"):
        return r"-\infty" if "-" in letters or "neg" in letters else r"\infty"
    if letters in REALS - {"r"} or re.fullmatch(r"\\mathbb\s*\{?R\}?", text.strip()):
        return r"(-\infty,\infty)"
    return text


LISTED = (
    r",|;|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
    r"|\\(?:lor|vee|wedge|land)(?![A-Za-z])"
)
LEFT_SIDE = re.compile(  # names of values: x, f(x), (x, y), dy/dx, AB, |AB|, an angle, words
    r"(?:[A-Za-z](?:_\{?\w+\}?)?'*|\\[a-z]+|\\text\s*\{[^{}]*\}|[A-Za-z]'*\s*\([^()]*\)"
    r"|\([A-Za-z](?:\s*,\s*[A-Za-z])*\)|\\frac\s*\{d[^{}]*\}\s*\{d[^{}]*\}|[A-Z]{2,4}|\|[A-Z]{2}\||"
    r"\\angle\s*[A-Z]+|m\\angle\s*[A-Z]+|\\overline\s*\{[A-Z]+\}|[A-Za-z ]{4,}"
    r"|[A-Za-z]\^\{-1\}\([a-z]\)|\\(?:sin|cos|tan)\s*\\?[A-Za-z]+)\s*"
)
MIXED = re.compile(r"(-?\d+)\s+and\s+(\d+)\s*/\s*(\d+)(?![\d.])")  # 2 and 3/4
RELATION = re.compile(r"(\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>)")
MATRIX = re.compile(
    r"(?:\[|\()?\s*\\begin\s*\{([pbBv]?matrix|smallmatrix|array)\}(?:\{[^{}]*\})?(.*)\\end\s*\{\1\}\s*(?:\]|\))?",
    re.DOTALL,
)


class Form:
    """An answer taken apart: `kind` is "list", "union", "matrix", "atom", or the brackets, "()", "(]", "{}", …"""

    def __init__(self, kind: str, parts: "list[Form]", text: str) -> None:
        self.kind, self.parts, self.text = kind, parts, text


def form(text: str, thousands: bool = True) -> Form:
    """Takes an answer apart; `thousands`: commas before three digits belong to a number."""
    text = _special(text.strip())
    matrix = MATRIX.fullmatch(text)
    if matrix and matrix[1] != "vmatrix":
        rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", matrix[2]) if row.strip()]
        return Form("matrix", [Form("row", [form(cell) for cell in row.split("&")], row) for row in rows], text)
    if re.search(r"\\pm(?![A-Za-z])", text) and (pieces := split(text, LISTED)):
        text = ",".join(part.replace(r"\pm", sign, 1) for part in pieces for sign in ("+-" if r"\pm" in part else "+"))
        text = re.sub(r"(^|[,=(])\s*\+", r"\1", text)
        if r"\pm" in text or r"\mp" in text:
            return Form("atom", [], text)
    if found := re.match(r"[A-Za-z](?:\s*,\s*[A-Za-z])*\s*\\in(?![A-Za-z])\s*", text):
        return form(text[found.end() :], thousands)
    name, value = _sides(text)
    if name and (named := form(value, thousands)).kind not in ("atom", "list"):
        return named
    unions = split(text, r"\\cup(?![A-Za-z])")
    if len(unions) > 1:
        return Form("union", [form(part, thousands) for part in unions], text)
    if total_of(text):  # 12 dollars and 50 cents
        return Form("atom", [], text)
    merged = _without_thousands(text) if thousands else text
    parts = [part for part in split(merged, LISTED) if part]
    if len(parts) > 1 and (words_of(text) is None or all(len(part) == 1 for part in parts)):
        intervals = [interval(part) for part in parts]
        if all(intervals) and re.search(r"or|vee", text):
            return Form("union", [found for found in intervals if found], text)
        return Form("list", [form(part, False) for part in parts], text)
    first = next((sign for sign in (r"\langle", r"\{", "(", "[") if text.startswith(sign)), None)
    if first and closing(text, 0) == len(text) - 1:
        last = next(sign for sign in (r"\rangle", r"\}", ")", "]", "}") if text.endswith(sign))
        inside = text[len(first) : -len(last)]
        parts = split(inside, ",|;") if first != r"\{" else split(inside, LISTED)
        if thousands and len(parts) > 2 and ", " in inside:
            parts = split(_without_thousands(inside), ",|;")
        kind = {r"\langle": "(", r"\{": "{"}.get(first, first) + {r"\rangle": ")", r"\}": "}"}.get(last, last)
        if kind == "{}" and (
            built := re.match(r"\s*([A-Za-z])\s*(?:\\in[^|:]*?)?(?:\\mid|\\vert|\||:)\s*(.+)", inside)
        ):
            return form(built[2], thousands)
        if kind == "{}" and not re.search(r"\\mid|[|:]", inside):
            return Form(kind, [form(part, False) for part in parts if part], text)
        if len(parts) > 1:
            inner = [form(part, False) for part in parts]
            if kind == "[]" and all(part.kind == "[]" and part.parts for part in inner):
                return Form("matrix", [Form("row", part.parts, part.text) for part in inner], text)
            return Form(kind, inner, text)
        if kind in ("()", "[]") and first in ("(", "["):
            return form(inside, thousands)
    return interval(text) or Form("atom", [], text)


def _without_thousands(text: str) -> str:
    return re.sub(rf"(?<![\d,.])(?:{THOUSANDS})(?![\d,])", lambda found: found[0].replace(",", ""), text)


def interval(text: str) -> Form | None:
    r"""The interval that inequalities in one variable say, as `x > 3`, `1 \\le x < 2`; its text keeps the variable."""
    pieces = RELATION.split(text)
    sides, signs = [side.strip() for side in pieces[::2]], pieces[1::2]
    variables = [
        side for side in sides if re.fullmatch(r"[A-Za-z]|\\[a-z]+", side) and side not in (r"\infty", r"\pi")
    ]
    if not signs or len(variables) != 1 or len(sides) > 3 or any(not side for side in sides):
        return None
    place = sides.index(variables[0])
    if len(sides) == 3 and (
        place != 1 or (">" in signs[0] or "ge" in signs[0]) != (">" in signs[1] or "ge" in signs[1])
    ):
        return None
    low, high, closed_low, closed_high = r"-\infty", r"\infty", False, False
    for index, sign in enumerate(signs):
        other = sides[index] if place == index + 1 else sides[index + 1]
        is_less = ("<" in sign or "le" in sign) == (place == index)  # variable < other
        if is_less:
            high, closed_high = other, "\\" in sign
        else:
            low, closed_low = other, "\\" in sign
    return Form(
        ("[" if closed_low else "(") + ("]" if closed_high else ")"),
        [form(low), form(high)],
        f"{variables[0]}|{text}",
    )


def equal(prediction: str, gold: str, prove: Prove | None = prove) -> bool:
    """Whether two answers are equal in value, see the module; `prove(prediction, gold)` decides on expressions.

    Without `prove` only numbers, words, units and their lists, tuples and sets are compared.
    """
    if max(len(prediction), len(gold)) > LONGEST:
        return prediction.strip() == gold.strip()
    one, other = clean(prediction), clean(gold)
    if not one or not other:
        return False
    if _squeezed(one) == _squeezed(other):
        return True
    one, other = (side if (digits := in_digits(side)) == side else clean(digits) for side in (one, other))
    if any(re.sub(r"\\[{}]", "", side).count("{") != re.sub(r"\\[{}]", "", side).count("}") for side in (one, other)):
        return False  # cut short
    if any(len(re.findall(r"[(\[]", side)) != len(re.findall(r"[)\]]", side)) for side in (one, other)):
        return False
    letters = [re.fullmatch(r"(?:\\text\s*\{)?\s*\(?([A-Za-z])\)?\s*\}?", side) for side in (one, other)]
    if letters[0] and letters[1]:
        return letters[0][1] == letters[1][1]  # `\\text{(C)}` and C, but not x and X
    one_words, other_words = words_of(one), words_of(other)
    if one_words and other_words:
        return _same_words(one_words, other_words) or _same_form(form(one), form(other), prove, shallow=True)
    return any(
        _same_form(form(one, first), form(other, second), prove)
        for first, second in sorted(
            {(True, True), (True, "," not in other), ("," not in one, True), (False, False)}, reverse=True
        )
    )


def _same_words(one: str, other: str) -> bool:
    one, other = (SYNONYMS.get(word, word) for word in (one, other))
    return one == other or (one in EMPTY and other in EMPTY) or (one in REALS and other in REALS)


def _squeezed(text: str) -> str:
    text = re.sub(r"(?<=[A-Za-z])\s+(?=[A-Za-z])|(?<=\d)\s+(?=\d)", "\0", text)
    return re.sub(r"\s+|(?<=\\text\{) +| +(?=\})", "", text)


def _same_form(one: Form, other: Form, prove: Prove | None, shallow: bool = False) -> bool:
    """Whether two forms are equal; `shallow`: both are words, which are equal only as signs for nothing or all."""
    if one.kind == other.kind == "atom":
        return not shallow and _same_atom(one.text, other.text, prove)

    def same(first: Form, second: Form) -> bool:
        return _same_form(first, second, prove)

    def ordered() -> bool:
        return len(one.parts) == len(other.parts) and all(map(same, one.parts, other.parts))

    kinds = {one.kind, other.kind}
    if one.kind == other.kind:
        if one.kind in ("list", "union", "{}"):
            return _same_parts(one.parts, other.parts, same, as_set=one.kind == "{}")
        names = [side.text.partition("|")[0] if RELATION.search(side.text) else "" for side in (one, other)]
        return (names[0] == names[1] or not all(names)) and ordered()
    if kinds == {"list", "()"}:
        return ordered()
    if kinds == {"list", "{}"}:
        return _same_parts(one.parts, other.parts, same, as_set=True)
    if kinds in ({"atom", "{}"}, {"atom", "list"}):
        several, single = (one, other) if one.kind != "atom" else (other, one)
        if (mixed := MIXED.match(several.text)) and int(mixed[2]) < int(mixed[3]):  # where one number is asked for
            return same(form(f"{mixed[1]} {several.text[mixed.start(2) :]}"), single)
        return several.kind == "{}" and len(several.parts) == 1 and same(*((several.parts[0], single)))
    if "atom" in kinds and prove is not None:
        single, several = (one, other) if one.kind == "atom" else (other, one)
        if RELATION.search(single.text) and several.kind not in ("list", "{}", "matrix"):
            return prove(*(side.text.rpartition("|")[2] if side is several else side.text for side in (one, other)))
    if "union" in kinds or (kinds & {"matrix", "row"} and "atom" in kinds):
        return (
            prove is not None
            and "list" not in kinds
            and "{}" not in kinds
            and prove(one.text.rpartition("|")[2], other.text.rpartition("|")[2])
        )
    return False


def _same_parts(one: list[Form], other: list[Form], same: Callable[[Form, Form], bool], as_set: bool) -> bool:
    """Whether every part has an equal one on the other side, in any order; of lists each its own."""
    if as_set:
        return all(any(same(part, found) for found in other) for part in one) and all(
            any(same(found, part) for found in one) for part in other
        )
    left = list(other)
    for part in one:
        found = next((index for index, candidate in enumerate(left) if same(part, candidate)), None)
        if found is None:
            return False
        left.pop(found)
    return not left


def _sides(text: str) -> tuple[str, str]:
    """The name and the value of `x = 5` or `5 = x` or `x = 2 + 3 = 5`; ("", text) where there is none."""
    parts = split(text, r"(?<![<>!\\])=(?!=)|\\approx(?![A-Za-z])|\\equiv(?![A-Za-z])")
    if len(parts) < 2 or not all(parts):
        return "", text
    if (
        len(parts) == 2
        and LEFT_SIDE.fullmatch(parts[1] + " ")
        and not LEFT_SIDE.fullmatch(parts[0])
        and len(parts[1]) < 3
    ):
        parts = parts[::-1]
    if LEFT_SIDE.fullmatch(parts[0]):
        return parts[0], parts[-1]
    if not re.search(r"[A-Za-z]", re.sub(r"\\(?:frac|times|cdot|sqrt|pi|div)", "", parts[0])):
        return "", parts[-1]
    return "", text


def _is_equation(text: str) -> bool:
    return len(split(text, r"(?<![<>!\\])=(?!=)")) > 1


def _same_atom(one: str, other: str, prove: Prove | None) -> bool:
    if _squeezed(one) == _squeezed(other):
        return bool(one.strip())
    (one, modulus), (other, other_modulus) = _modulus(one), _modulus(other)
    if modulus and other_modulus and modulus != other_modulus:
        return False
    (name, one_value), (other_name, other_value) = _sides(one), _sides(other)
    if name and other_name and _squeezed(name) != _squeezed(other_name):
        if re.search(r"[A-Za-z]", one_value) and re.search(r"[A-Za-z]", other_value) and prove is not None:
            return prove(one, other)  # y = x and x = y are one equation
        return False
    equations = [
        text for text, value in ((one, one_value), (other, other_value)) if value == text and _is_equation(text)
    ]
    if equations:
        return prove is not None and _is_equation(one) and _is_equation(other) and prove(one, other)
    one, other = one_value, other_value
    if (words := words_of(one)) and (other_words := words_of(other)):
        return _same_words(words, other_words)
    (one, unit), (other, other_unit) = measure_of(one), measure_of(other)
    if one.strip().startswith("(") or other.strip().startswith("("):
        forms = form(one), form(other)
        if {side.kind for side in forms} != {"atom"} and (unit or other_unit):
            return False
    if unit and other_unit:
        if unit[0] == other_unit[0]:
            return _same_value(one, other, prove, unit[1] / other_unit[1])
        kinds = {unit[0], other_unit[0]}
        if kinds == {"degree^1", "radian^1"}:
            return _same_angle(one, other, unit[0] == "degree^1", prove)
        return False
    if _same_value(one, other, prove):
        return True
    stated = unit or other_unit
    if stated and stated[0] == "percent^1":
        return _same_value(one, other, prove, Fraction(1, 100) if unit else Fraction(100))
    if stated and stated[0] == "degree^1" and r"\pi" in one + other:
        return _same_angle(one, other, unit is not None, prove)
    return False


def _modulus(text: str) -> tuple[str, str]:
    """A text without its modulus, and the modulus; "" where there is none."""
    found = re.search(
        r"\s*(?:\\pmod|\(\s*\\?(?:b?mod|text\s*\{\s*mod\s*\})|\\b?mod(?![a-z]))\s*\{?\s*(\w+)\s*\}?\s*\)?\s*$", text
    )
    return (text[: found.start()], found[1]) if found else (text, "")


def _same_ratio(one: list[str], other: list[str]) -> bool:
    """Whether numbers stand in the same ratio; times of the day (5:30) are the same or not."""
    if all(re.fullmatch(r"\d\d?:[0-5]\d", ":".join(parts).strip()) for parts in (one, other)):
        return [int(part) for part in one] == [int(part) for part in other]
    values = [[number(part) for part in parts] for parts in (one, other)]
    if not all(value for side in values for value in side):
        return [part.strip() for part in one] == [part.strip() for part in other]
    return len({first / second for first, second in zip(*values, strict=True)}) == 1


def _same_angle(one: str, other: str, first: bool, prove: Prove | None) -> bool:
    one, other = (
        rf"\frac{{({text})\pi}}{{180}}" if is_degrees else text
        for text, is_degrees in ((one, first), (other, not first))
    )
    return prove is not None and prove(one, other)


def _same_value(one: str, other: str, prove: Prove | None, scale: Fraction = Fraction(1)) -> bool:
    """Whether `one` times `scale` is `other`."""
    one, other = one.strip(), other.strip()
    values = number(one), number(other)
    if values[0] is not None and values[1] is not None:
        found = values[0] * scale
        return found == values[1] or _rounded(one, found, other, values[1])
    ratios = [text.split(":") for text in (one, other)]
    if len(ratios[0]) == len(ratios[1]) > 1:
        return _same_ratio(*ratios)
    based, other_based = (
        re.fullmatch(r"\(?(\d+|[\dA-F]{2,})\)?_\{?\(?(\d{1,2})\)?\}?", text) for text in (one, other)
    )
    if based and other_based:
        return _in_base(*based.groups()) == _in_base(*other_based.groups()) is not None
    if based or other_based:
        return _squeezed(based[1] if based else one) == _squeezed(other_based[1] if other_based else other)
    one, other = (
        re.sub(r"(?<=[a-z( ])(\d+(?:\.\d+)?)\s*\\text\{°\}", r"(\\frac{\1\\pi}{180})", text) for text in (one, other)
    )
    if prove is None or r"\text" in re.sub(r"\\text\s*\{\s*[A-Za-z]?\s*\}", "", one + other):
        return _squeezed(one) == _squeezed(other)
    signs = [sign[1].strip("+") for text in (one, other) if (sign := re.fullmatch(r"([+-]?)\s*\\infty\s*", text))]
    if signs:
        return len(signs) == 2 and signs[0] == signs[1]
    if not _may_be_rounded(one, other) or not _may_be_rounded(other, one):
        return False
    if scale != 1:
        one = rf"({one})\cdot\frac{{{scale.numerator}}}{{{scale.denominator}}}"
    return prove(one, other)


def _in_base(digits: str, base: str) -> int | None:
    try:
        return int(digits, int(base))
    except ValueError:
        return None


def _significant(text: str) -> int:
    return len(re.sub(r"\D", "", text).lstrip("0"))


def _rounded(one: str, value: Fraction, other: str, other_value: Fraction) -> bool:
    """Whether one is a fraction and the other its decimals, rounded or cut, to at least six significant digits."""
    for decimal, rounded, exact, text in ((one, value, other_value, other), (other, other_value, value, one)):
        found = re.fullmatch(r"[-+]?\d*\.(\d+)", decimal.strip())
        if found and "." not in text and _significant(decimal) >= 6:
            return abs(rounded - exact) < Fraction(1, 10 ** len(found[1]))
    return False


def _may_be_rounded(decimal: str, other: str) -> bool:
    """A short decimal is no root's or fraction's value; a long one may be."""
    found = re.fullmatch(r"[-+]?\d*\.\d+", decimal.strip())
    return not found or _significant(decimal) >= 6 or not re.search(r"\\(?:sqrt|pi)|\be\b", other) or "." in other


def correct(text: str, answer: str, prove: Prove | None = prove) -> bool:
    """Whether the answer that a text states is equal to the right one; what cannot be read is wrong."""
    found, gold = stated_answer(text), stated_gold(answer)
    if found is None or not all(equal(other, gold, prove) for other in beside_boxes(tagged(text))):
        return False
    label = LABEL.match(found)
    if label and not re.search(rf"(?<![A-Za-z]){label[1] or label[2]}(?![A-Za-z])", gold):
        found = found[label.end() :]  # "(C) 12"
    return equal(found, gold, prove)
