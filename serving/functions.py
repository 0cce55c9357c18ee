"""Functions of a client's own (OpenAI's `tools`): how the decoding agent is told of them, and what it calls.

A call ends the answer, the client makes it, and its next request holds the result: there the answer goes on behind
`<result>…</result>`, as it does behind the calls that the server makes itself. An agent may call in two ways:
`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, of which it is told and which many models know, or as it calls
a tool of the server, `<NAME>…</NAME>` with a JSON object of arguments, or with the one argument as it stands. The
id of a call says which way it was written, so that an agent finds its own words again.
"""

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors_recursivemas import InputError
from ..fields_recursivemas import OBJECT, TEXT, TRUTH, Kind, validate_fields
from ..files_recursivemas import parse_json
from ..tools_recursivemas import FORGED, find_call, written_result

CALL = "tool_call"  # the tag of calls that say which function
NAME = re.compile(r"[\w-]{1,64}")
NAMES = Kind(
    lambda value: isinstance(value, str) and bool(NAME.fullmatch(value)) and value not in (CALL, FORGED),
    "1 to 64 letters, digits, '_' and '-'",
)
ENTRY = {"type": TEXT, "function": OBJECT}
FUNCTION = {"name": NAMES, "description": TEXT, "parameters": OBJECT, "strict": TRUTH}
MADE = {"id": TEXT, "type": TEXT, "function": OBJECT, "index": Kind(lambda value: True, "a number")}
BY_NAME, BY_TAG = "call_", "tag_"  # how the ids of calls begin
Functions = dict[str, dict[str, Any]]  # name -> description and parameters, a JSON schema


@dataclass(frozen=True)
class Call:
    """A call of a client's function.

    Attributes:
        name: the function's.
        arguments: a JSON object as text.
        id: of the call.
        before: what the answer says before it.
    """

    name: str
    arguments: str
    id: str
    before: str

    def as_json(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def read_functions(entries: Iterable[dict[str, Any]]) -> Functions:
    """The functions of a request's `tools`.

    Raises:
        InputError: an entry describes no function, or two have one name.
    """
    functions: Functions = {}
    for index, entry in enumerate(entries):
        where = f"tools[{index}]"
        if entry.get("type") != "function":
            hint = '{"type": "function", "function": …}, or the name of a tool that runs on the server'
            raise InputError("A tool is no function.", where=where, found=repr(entry.get("type")), hint=hint)
        validate_fields(entry, ENTRY, where, InputError, required=ENTRY)
        said = {name: value for name, value in entry["function"].items() if value is not None}
        validate_fields(said, FUNCTION, f"{where}, function", InputError, required=["name"])
        if said["name"] in functions:
            raise InputError("Two functions have one name.", where=where, found=said["name"])
        functions[said["name"]] = said
    return functions


def told(functions: Functions) -> str:
    """What a system is told of functions, a message above all others."""
    lines = [json.dumps({key: said[key] for key in FUNCTION if key in said and key != "strict"}, ensure_ascii=False)
             for said in functions.values()]  # fmt: skip
    example = f'<{CALL}>{{"name": NAME, "arguments": {{…}}}}</{CALL}>'
    head = f"You may call functions. To call one, write {example}; what it gives follows. The functions:"
    return "\n".join([head, *lines])


def forced(choice: object, functions: Functions) -> str:
    """How an answer begins that must call, by `tool_choice`; "" where it need not.

    Raises:
        InputError: there is no such function, or this is no choice.
    """
    if choice in (None, "auto", "none"):
        return ""
    if choice == "required" and functions:
        return f"<{CALL}>"
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        inner = choice.get("function")
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if isinstance(name, str) and name in functions:
            return f'<{CALL}>{{"name": {json.dumps(name)}, "arguments": '
    expected = '"auto", "none"' + ', "required", or a function among `tools`' * bool(functions)
    raise InputError("`tool_choice` cannot be used.", where="tool_choice", found=repr(choice), expected=expected)


def made_call(text: str, functions: Functions) -> Call | None:
    """The call at the end of an answer; `None` where there is none that can be made."""
    tags = [CALL, *functions]
    if (found := find_call(text, tags)) is None:
        return None
    tag, inside = found
    before = text[: text.rindex(f"<{tag}>{inside}</{tag}>")].strip()
    try:
        content = parse_json(inside, InputError, tag)
    except InputError:
        content = None
    if tag == CALL:
        if not isinstance(content, dict) or content.get("name") not in functions:
            return None
        name, arguments = content["name"], content.get("arguments", content.get("parameters", {}))
        arguments = arguments if isinstance(arguments, dict) else None
    else:
        name, arguments = tag, content if isinstance(content, dict) else _only(inside, content, functions[tag])
    if arguments is None:
        return None
    kind = BY_NAME if tag == CALL else BY_TAG
    return Call(name, json.dumps(arguments, ensure_ascii=False), f"{kind}{uuid.uuid4().hex}", before)


def _only(text: str, content: Any, said: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments of a function that takes one, from what stands between its tags."""
    properties = said.get("parameters", {}).get("properties", {})
    if not isinstance(properties, dict) or len(properties) != 1:
        return None
    ((name, kind),) = properties.items()
    as_text = content is None or (isinstance(kind, dict) and kind.get("type") == "string")
    return {name: text.strip() if as_text else content}


def rewritten(made: object, where: str) -> tuple[str, str]:
    """The id of a call out of an assistant's message, and the call as it was written.

    Raises:
        InputError: it is no call.
    """
    validate_fields(made, MADE, where, InputError, required=["id", "function"])
    assert isinstance(made, dict)
    name, arguments = made["function"].get("name"), made["function"].get("arguments")
    if not (isinstance(name, str) and isinstance(arguments, str)):
        found, expected = repr(made["function"]), '{"name": a text, "arguments": the text of a JSON object}'
        raise InputError("A call is none.", where=f"{where}, function", found=found, expected=expected)
    content = parse_json(arguments or "{}", InputError, f"{where}, arguments")
    if not made["id"].startswith(BY_TAG):
        return made["id"], f"<{CALL}>{json.dumps({'name': name, 'arguments': content}, ensure_ascii=False)}</{CALL}>"
    only = next(iter(content.values())) if isinstance(content, dict) and len(content) == 1 else None
    return made["id"], f"<{name}>{only if isinstance(only, str) else arguments}</{name}>"


def result_of(text: str, functions: Iterable[str]) -> str:
    """What stands behind a call, of the text that a client says it gave."""
    return f"<{FORGED}>{written_result(text, [CALL, *functions])}</{FORGED}>"
