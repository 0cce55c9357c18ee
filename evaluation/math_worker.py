"""A process that asks math-verify whether two answers are equal; see `Prover` in prover.py.

It runs as a script, so that a comparison that never ends, or fills the memory, ends with this process and nothing
else: math-verify's own limit of time is a signal, which is refused outside of the main thread and does not reach what
computes in C. Lines of JSON come in, `[prediction, gold]`, and lines of JSON go out, `true` or `false`.
"""

import json
import logging
import os
import re
import sys

MEMORY = 4 << 30  # bytes


def substitute_imaginary(expression):
    """`i` as the imaginary unit: math-verify reads a letter, so that $e^{i\\pi}$ would not be $-1$."""
    from sympy import I

    try:
        return expression.subs({symbol: I for symbol in expression.free_symbols if symbol.name == "i"})
    except Exception:
        return expression


def far_apart(one, other) -> bool:
    """Whether both are numbers whose values differ: equal to six places is not equal where both are small."""
    values = []
    for expression in (one, other):
        if getattr(expression, "free_symbols", True):
            return False
        value = complex(expression.evalf(20))
        values.append(value)
    scale = max(map(abs, values))
    return not abs(values[0] - values[1]) <= 1e-6 * scale


GREEK = {"gamma", "delta", "theta", "lambda", "xi", "pi", "sigma", "upsilon", "phi", "psi", "omega"}


def same_letters(one: str, other: str) -> bool:
    """Whether no letter is a capital on one side and a small one on the other; math-verify reads all as small."""
    cases = []
    for text in (one, other):
        text = re.sub(r"\\(?:text|mathrm|mathbb|mathcal|operatorname)\s*\{[^{}]*\}", " ", text)
        found: dict[str, set[str]] = {}
        for letter in re.findall(r"\\[A-Za-z]+|[A-Za-z]", text):
            if len(letter) == 1 or letter[1:].lower() in GREEK:
                found.setdefault(letter.lower(), set()).add(letter)
        cases.append(found)
    return all(cases[0][letter] == cases[1][letter] for letter in cases[0].keys() & cases[1].keys())


def equal(prediction: str, gold: str) -> bool:
    """math-verify's verdict; where a letter i stands, also with the imaginary unit in its place."""
    if not same_letters(prediction, gold):
        return False
    from math_verify import LatexExtractionConfig, parse, verify

    target = [LatexExtractionConfig()]
    sides = [parse(f"${text}$", target, parsing_timeout=None) for text in (gold, prediction)]
    gold_found, found = ([part for part in side if not isinstance(part, str)][:1] for side in sides)
    if not (gold_found and found):
        return False
    options = {"timeout_seconds": None, "allow_set_relation_comp": True}
    is_equal = verify(gold_found, found, **options)
    if not is_equal and "i" in gold + prediction:
        gold_found, found = ([substitute_imaginary(side[0])] for side in (gold_found, found))
        is_equal = verify(gold_found, found, **options)
    try:
        return is_equal and not far_apart(gold_found[0], found[0])
    except Exception:  # not all that is equal has a value
        return is_equal


def main() -> None:
    """Answers lines until there are none."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no reply
    logging.disable(logging.CRITICAL)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, ValueError, OSError):  # not on every system
        pass
    for line in sys.stdin:
        try:
            verdict = equal(*json.loads(line))
        except (Exception, MemoryError, RecursionError):  # what cannot be read is not equal
            verdict = False
        print(json.dumps(bool(verdict)), file=replies, flush=True)


if __name__ == "__main__":
    main()
