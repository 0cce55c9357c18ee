"""Tools of the decoding agent: what it writes between `<TAG>` and `</TAG>` is handed to the tool of that tag.

As in the public release, decoding stops at a closing tag, `<result>…</result>` is appended, and decoding goes on (see
`write_with_tools`); at most `MAX_CALLS` calls an answer, results cut at `MAX_RESULT` characters.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterable

from .errors_recursivemas import InputError

MAX_CALLS = 5
MAX_RESULT = 6000  # characters
Tools = dict[str, Callable[[str], str]]

_OPERATORS: dict[type, Callable[..., int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
MAX_DIGITS = 1000  # of a number that the calculator takes or makes


def calculator(expression: str) -> str:
    """The value of whole-number arithmetic (`+ - * // %` and brackets), or `error`. Runs nothing else."""
    try:
        return str(_value(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return "error"


def _value(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        value = node.value
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.operand))
    else:
        raise ValueError("no whole-number arithmetic")
    if abs(value) >= 10**MAX_DIGITS:
        raise OverflowError("too large")
    return value


def validate_tools(tools: Tools) -> None:
    """Raises InputError unless `tools` maps tags to callables."""
    if not isinstance(tools, dict) or not all(
        isinstance(tag, str) and re.fullmatch(r"\w+", tag) and tag != "result" and callable(tool)
        for tag, tool in tools.items()
    ):
        raise InputError(
            "`tools` cannot be used.",
            where="tools",
            found=repr(tools)[:80],
            expected='tag -> function from text to text, for example {"python": calculator}',
        )


def find_call(text: str, tags: Iterable[str]) -> tuple[str, str] | None:
    """(tag, what stands inside) of the last complete call in a text; `None` where there is none."""
    pattern = rf"<({'|'.join(map(re.escape, tags))})>((?:(?!<\1>).)*?)</\1>"
    calls = re.findall(pattern, text, re.DOTALL)
    return calls[-1] if calls else None
