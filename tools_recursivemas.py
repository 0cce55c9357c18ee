"""Tools of agents: what one writes between `<TAG>` and `</TAG>` is handed to the tool of that tag.

As in the public release, decoding stops at a closing tag, `<result>…</result>` is appended, and decoding goes on (see
`write_with_tools`); `ToolBox` holds the limits. Results are written by this module only: tags inside a result are
written as `&lt;…`, and a `<result>` that an agent begins by itself is closed with the note that there is none.
"""

import ast
import inspect
import json
import operator
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers.utils import get_json_schema

from .errors_recursivemas import InputError

MAX_CALLS = 5
MAX_SECONDS = 10.0  # of a call
MAX_RESULT = 6000  # characters
LIMITS = ("max_calls", "max_seconds", "max_result")  # of a `ToolBox`
GRACE = 2.0  # seconds in which a tool that keeps the limit by itself can say so
FORGED = "result"  # the tag of results, which no agent writes
NO_CALL = "none: results follow calls only"
Tools = dict[str, Callable[[str], str]]
_SHAPES = (Mapping, list, tuple)

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


class ToolBox(Tools):
    """Tag -> function from the text of a call to its result, with the limits of a run.

    Args:
        tools: a mapping; or a list of functions with a docstring in transformers' form, of `(schema, function)` with
            a JSON schema as transformers' `get_json_schema` makes it, or of schemas alone (whose calls are answered
            with the note that there is no function). The tag of a listed tool is its name; its call's text is a JSON
            object of arguments, or the one argument as it stands.
        max_calls: calls of one answer that are executed.
        max_seconds: wall time of a call, then its result says that there is none; what runs on is not waited for.
        max_result: characters of a result, the rest is cut.
        ending: tags of calls that others make: an answer ends with one.

    Raises:
        InputError: `tools` is none of that.
    """

    def __init__(
        self,
        tools: Any,
        *,
        max_calls: int = MAX_CALLS,
        max_seconds: float = MAX_SECONDS,
        max_result: int = MAX_RESULT,
        ending: Iterable[str] = (),
    ) -> None:
        named = tools if isinstance(tools, Mapping) else dict(map(_named, tools)) if isinstance(tools, _SHAPES) else {}
        if not isinstance(tools, _SHAPES) or not all(is_tag(tag) and callable(tool) for tag, tool in named.items()):
            raise _unusable(tools)
        self.ending = tuple(ending)
        super().__init__({**named, **dict.fromkeys(self.ending, _made_elsewhere)})
        self.max_calls, self.max_seconds, self.max_result = max_calls, max_seconds, max_result

    def __reduce__(self) -> tuple:
        own = {tag: tool for tag, tool in self.items() if tag not in self.ending}
        return partial(ToolBox, **self._limits, ending=self.ending), (own,)

    @property
    def _limits(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in LIMITS}

    def only(self, tags: Iterable[str], ending: Iterable[str] = ()) -> "ToolBox":
        """Those of some tags that are here and that answer, with the same limits; and tags that end an answer."""
        chosen = {tag: self[tag] for tag in tags if tag in self and tag not in self.ending}
        return ToolBox(chosen, **self._limits, ending=ending)

    def answer(self, calls: Sequence[tuple[str, str]]) -> list[str]:
        """The results of calls, (tag, text) each, made side by side; what fails is a result that begins `error:`."""
        late = f"error: no result within {self.max_seconds:g} seconds"
        results = [NO_CALL if tag == FORGED else late for tag, _ in calls]

        def make(number: int, tag: str, text: str) -> None:
            try:
                results[number] = str(self[tag](text))
            except Exception as error:  # of a tool; the agent may try again
                results[number] = f"error: {type(error).__name__}: {error}"

        threads = [
            threading.Thread(target=make, args=(number, *call), daemon=True)
            for number, call in enumerate(calls)
            if call[0] != FORGED
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + self.max_seconds + GRACE
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return [written_result(result[: self.max_result], self) for result in list(results)]


def written_result(result: str, tags: Iterable[str]) -> str:
    """A result as it is written between its own tags: neither these nor the tags of calls stand in it."""
    return re.sub(rf"<(?=/?(?:{'|'.join(map(re.escape, [FORGED, *tags]))})>)", "&lt;", result)


def _made_elsewhere(text: str) -> str:
    raise AssertionError("an answer ends with such a call")


def is_tag(tag: object) -> bool:
    """Whether a tool can have this name."""
    return isinstance(tag, str) and bool(re.fullmatch(r"\w+", tag)) and tag != FORGED


def tools_of_roles(given: Any, declared: Mapping[str, Sequence[str]] | None, decoding_role: str) -> dict[str, ToolBox]:
    """Which role has which tools in a call.

    A role that declares tools has those of them that are given, in its messages too. Where no role declares any, the
    decoding role has all that are given, in its answer (not in messages of earlier rounds).

    Args:
        given: what `ToolBox` takes; `None` where nobody gave any: then roles have what they declare, which is an error
            but for the calculator.
        declared: role -> tags, of the configuration.
        decoding_role: who answers.

    Returns:
        Role -> its tools, of roles that have some.

    Raises:
        InputError: `given` cannot be used, or a declared tool was not given.
    """
    if given is None and declared:
        given = {"calculator": calculator}
        if missing := sorted({tag for tags in declared.values() for tag in tags} - set(given)):
            raise InputError(
                "Roles declare tools that nobody gave.",
                where="tools",
                found="; ".join(f"{role}: {', '.join(tags)}" for role, tags in declared.items()),
                expected=f"functions for {', '.join(missing)}",
                hint="tools={…} gives them, and {} none (on the command line: --tools; docs/tools.md)",
            )
    if given is None:
        return {}
    box = given if isinstance(given, ToolBox) else ToolBox(given)
    boxes = {role: box.only(tags) for role, tags in declared.items()} if declared else {decoding_role: box}
    if declared and box.ending:
        boxes[decoding_role] = box.only(declared.get(decoding_role, ()), box.ending)
    return {role: tools for role, tools in boxes.items() if tools}


def _unusable(tools: object) -> InputError:
    return InputError(
        "`tools` cannot be used.",
        where="tools",
        found=repr(tools)[:200],
        expected='tag -> function from text to text, for example {"python": calculator}; or a list of functions with '
        "docstrings, of (schema, function), or of schemas",
    )


def _named(tool: Any) -> tuple[str, Callable[[str], str]]:
    """Tag and function of a listed tool."""
    schema, function = tool if isinstance(tool, tuple) and len(tool) == 2 else (tool, None)
    try:
        if callable(schema):
            function, schema = schema, get_json_schema(schema)
        inner = schema.get("function", schema)
        name, parameters = inner["name"], inner.get("parameters", {}).get("properties", {})
        if not isinstance(parameters, Mapping) or not (function is None or callable(function)):
            raise TypeError("no parameters")
        return name, partial(_call, name, function, dict(parameters))
    except Exception as error:  # of transformers' reading of a docstring, too
        raise _unusable(tool) from error


def _call(name: str, function: Callable | None, parameters: dict[str, Any], text: str) -> str:
    """A listed tool's result for the text of a call."""
    if function is None:
        return f"error: no function is given for the tool {name}"
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        if len(parameters) != 1:
            names = ", ".join(parameters)
            return f"error: the arguments of {name} are no JSON object ({names})"
        (only,) = parameters
        as_text = parameters[only].get("type") == "string" or arguments is None
        arguments = {only: text.strip() if as_text else arguments}
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        return f"error: {name}: {error}"
    result = function(**arguments)
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def find_call(text: str, tags: Iterable[str]) -> tuple[str, str] | None:
    """(tag, what stands inside) of the last complete call in a text; `None` where there is none."""
    pattern = rf"<({'|'.join(map(re.escape, tags))})>((?:(?!<\1>).)*?)</\1>"
    calls = re.findall(pattern, text, re.DOTALL)
    return calls[-1] if calls else None
