"""Pairs of answers in many spellings, equal and unequal, and what math-verify itself says of them; seeded."""

import logging
import random
from fractions import Fraction

KINDS = (
    "integers", "fractions", "decimals", "roots", "polynomials", "intervals", "sets", "tuples", "percents", "powers",
    "equations", "matrices", "unions", "functions",
)  # fmt: skip


def pairs(count, seed):
    """(kind, prediction, gold): half of them equal by construction, each side spelled in its own way."""
    draw = random.Random(seed)
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        value = _value(draw, kind)
        other = value if draw.random() < 0.5 else _value(draw, kind)
        yield kind, rf"so \boxed{{{_spelled(draw, kind, other)}}}", _spelled(draw, kind, value)


def library(prediction, gold):
    """math-verify's own verdict, as its documentation says to ask for it."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    try:
        sides = [parse(text, parsing_timeout=None) for text in (f"${gold}$", prediction)]
        return verify(*sides, timeout_seconds=None)
    finally:
        logging.disable(logging.NOTSET)


def _value(draw, kind):
    small = [draw.randint(-9, 9) for _ in range(4)]
    if kind == "percents":  # math-verify reads 12\% as 12, but not so 12.5\% and -12\%
        return draw.randint(1, 60)
    if kind in ("fractions", "decimals"):
        return Fraction(
            draw.randint(-30, 30), draw.choice((2, 4, 5, 8, 10) if kind != "fractions" else (2, 3, 6, 7, 12))
        )
    if kind in ("intervals", "unions"):
        low = draw.randint(-9, 9)
        return low, low + draw.randint(1, 5), draw.choice("(["), draw.choice(")]")
    if kind == "sets":
        return frozenset(small[: draw.randint(2, 4)])
    if kind in ("tuples", "matrices"):
        return tuple(small)
    if kind in ("roots", "functions"):
        return draw.randint(2, 5), draw.choice((2, 3, 5, 7))
    if kind in ("polynomials", "equations", "powers"):
        return draw.randint(1, 4), draw.randint(1, 6)
    return draw.randint(-20000, 20000)


def _spelled(draw, kind, value):
    if kind == "integers":
        return draw.choice((f"{value}", f"{value:,}", f"{value:,}".replace(",", "{,}"), f" {value} ", rf"{value}.0"))
    if kind == "fractions":
        over, under, sign = abs(value.numerator), value.denominator, "-" * (value < 0)
        times = draw.randint(1, 3)
        forms = (rf"\frac{{{over}}}{{{under}}}", rf"\dfrac{{{over * times}}}{{{under * times}}}", f"{over}/{under}")
        return sign + draw.choice(forms)
    if kind == "decimals":
        decimal = str(float(value))
        return draw.choice((decimal, decimal + "0", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"))
    if kind == "percents":
        return draw.choice((rf"{value}\%", f"{value}"))
    if kind == "roots":
        factor, under = value
        return draw.choice(
            (rf"{factor}\sqrt{{{under}}}", rf"\sqrt{{{factor * factor * under}}}", rf"\sqrt{{{under}}}\cdot {factor}")
        )
    if kind == "functions":
        factor, base = value
        return draw.choice((rf"{factor}\ln {base}", rf"\ln {base**factor}", rf"\ln({base}) \cdot {factor}"))
    if kind == "powers":
        base, exponent = value
        return draw.choice((f"{base**exponent}", f"{base}^{{{exponent}}}", rf"{base} \cdot {base}^{{{exponent - 1}}}"))
    if kind == "polynomials":
        one, other = value
        return draw.choice(
            (f"(x+{one})(x+{other})", f"x^2+{one + other}x+{one * other}", f"{one * other}+{one + other}x+x^2")
        )
    if kind == "equations":
        slope, start = value
        return draw.choice((f"y={slope}x+{start}", f"y = {start} + {slope}x", f"{slope}x+{start}"))
    if kind in ("intervals", "unions"):
        low, high, left, right = value
        plain = draw.choice((rf"{left}{low},{high}{right}", rf"\left{left} {low}, {high} \right{right}"))
        parts = [plain, rf"({high + 2},\infty)"]
        return plain if kind == "intervals" else r"\cup ".join(draw.sample(parts, 2))
    if kind == "sets":
        return r"\{" + ", ".join(map(str, draw.sample(sorted(value), len(value)))) + r"\}"
    if kind == "tuples":
        return draw.choice(("({})", r"\left( {} \right)")).format(draw.choice((",", ", ")).join(map(str, value)))
    name = draw.choice(("pmatrix", "bmatrix"))
    return rf"\begin{{{name}}} {value[0]} & {value[1]} \\ {value[2]} & {value[3]} \end{{{name}}}"
