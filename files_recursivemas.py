"""Reading files of text and JSON: one judgement of size, encoding, depth, keys and numbers for all of them.

What is wrong is an error of the project's own that names the file, the line and the key. Text is UTF-8, with or
without a byte order mark; lines end at a line feed and nowhere else.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from .errors_recursivemas import RecursiveMASError

MAX_BYTES = 512 << 20  # of a file of JSON
MAX_LINE = 64 << 20  # bytes of a line
MAX_DEPTH = 100  # lists and objects inside each other
MAX_DIGITS = 400  # of a whole number
BOM = b"\xef\xbb\xbf"
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
SURROGATE = re.compile("[\ud800-\udfff]")

Failure = type[RecursiveMASError]


def read_bytes(path: str | os.PathLike, error: Failure, where: object = None) -> bytes:
    """A file's content.

    Args:
        path: the file.
        error: what is raised.
        where: the file's name for messages; default the path.

    Raises:
        error: it is missing, a folder, not to be read, or larger than `MAX_BYTES`.
    """
    where = path if where is None else where
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise _unreadable(problem, error, where) from problem
    if len(content) > MAX_BYTES:
        raise error("A file is too large.", where=where, expected=f"at most {MAX_BYTES >> 20} MiB")
    return content


def _unreadable(problem: Exception, error: Failure, where: object) -> RecursiveMASError:
    found = getattr(problem, "strerror", None) or problem
    return error("A file cannot be read.", where=where, found=found, expected="a file that is there and may be read")


def text_of(content: bytes, error: Failure, where: object) -> str:
    """Bytes of a file as text, without a byte order mark.

    Raises:
        error: they are not UTF-8.
    """
    try:
        return content.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as problem:
        shown = content[problem.start : problem.start + 8].hex(" ")
        raise error(
            "A file is not UTF-8.",
            where=where,
            found=f"bytes {shown} at position {problem.start}",
            expected="text in UTF-8, with or without a byte order mark",
            hint="save it as UTF-8",
        ) from problem


def lines_of(stream: BinaryIO, error: Failure, where: object) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a stream, without the line feeds that end them (or a carriage return before one).

    Raises:
        error: reading fails, or a line is longer than `MAX_LINE`.
    """
    number = 0
    try:
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise error("A line is too long.", where=f"{where}, line {number}", expected=f"{MAX_LINE >> 20} MiB")
            yield number, (line.removeprefix(BOM) if number == 1 else line).removesuffix(b"\n").removesuffix(b"\r")
    except (OSError, ValueError) as problem:
        if isinstance(problem, RecursiveMASError):
            raise
        raise _unreadable(problem, error, where) from problem


def read_lines(path: str | os.PathLike, error: Failure) -> Iterator[tuple[int, bytes]]:
    """`lines_of` a file."""
    try:
        stream = open(path, "rb")  # noqa: SIM115 (closed below)
    except (OSError, ValueError) as problem:
        raise _unreadable(problem, error, path) from problem
    with stream:
        yield from lines_of(stream, error, path)


def parse_json(content: bytes | str, error: Failure, where: object, lenient: bool = False) -> Any:
    """What JSON says.

    Args:
        content: of a file, or of a line.
        error: what is raised.
        where: the file (and line) for messages.
        lenient: take what other software writes: NaN and infinity, and a key twice, of which the last counts.

    Raises:
        error: it is not valid JSON; it holds a key twice, NaN or infinity, a lone surrogate, or a number of more than
            `MAX_DIGITS` digits; or it is nested deeper than `MAX_DEPTH`.
    """
    text = text_of(content, error, where) if isinstance(content, bytes) else content

    def refuse(what: str, found: object, expected: str | None = None) -> RecursiveMASError:
        return error(what, where=where, found=found, expected=expected, hint="correct the file, or fetch it again")

    def constant(name: str) -> float:
        if lenient:
            return float(name)
        raise refuse("A number in a file is not finite.", name, "a number, or null")

    def real(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(f"{'-' * (value < 0)}Infinity")

    def whole(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            raise refuse("A number in a file is too long.", digits, f"at most {MAX_DIGITS} digits")
        return int(digits)

    def entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) and not lenient:
            names = [name for name, _ in pairs]
            raise refuse("A key stands twice in one object.", next(name for name in names if names.count(name) > 1))
        return found

    def too_deep() -> RecursiveMASError:
        return refuse("A file is nested too deep.", None, f"at most {MAX_DEPTH} lists and objects inside each other")

    try:
        value = json.loads(text, parse_constant=constant, parse_float=real, parse_int=whole, object_pairs_hook=entries)
    except RecursionError as problem:
        raise too_deep() from problem
    except ValueError as problem:
        if isinstance(problem, RecursiveMASError):
            raise
        raise refuse("A file is not valid JSON.", problem) from problem
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise too_deep()
    if SURROGATE_ESCAPE.search(text) and (place := find_surrogate(value)) is not None:
        raise error(**half_a_character(f"{where}, {place}"))
    return value


def _depth(value: Any) -> int:
    """How many lists and objects stand inside each other."""
    depth, layer = 0, [value]
    while layer := [entry for entry in layer if isinstance(entry, dict | list)]:
        depth += 1
        layer = [each for entry in layer for each in (entry.values() if isinstance(entry, dict) else entry)]
    return depth


def find_surrogate(value: Any, place: str = "") -> str | None:
    """Where in JSON content a lone surrogate stands (key/key/index), `None` where there is none."""
    if isinstance(value, str):
        return (place or "the text") if SURROGATE.search(value) else None
    if isinstance(value, dict):
        for key, entry in value.items():
            if isinstance(key, str) and SURROGATE.search(key):
                return f"{place}/a key".lstrip("/")
            if (found := find_surrogate(entry, f"{place}/{key}".lstrip("/"))) is not None:
                return found
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            if (found := find_surrogate(entry, f"{place}/{index}".lstrip("/"))) is not None:
                return found
    return None


def half_a_character(where: str, text: str | None = None) -> dict[str, Any]:
    """What an error says of a lone surrogate."""
    found = SURROGATE.search(text) if text is not None else None
    return {
        "what": "A text holds half a character (a lone surrogate), which no encoding can write.",
        "where": where,
        "found": found and f"U+{ord(found[0]):04X} at position {found.start()}",
        "expected": "text of whole characters",
        "hint": "read the text again as UTF-8",
    }


def read_json(path: str | os.PathLike, error: Failure, where: object = None, lenient: bool = False) -> Any:
    """What a JSON file says; the arguments and errors are those of `read_bytes` and `parse_json`."""
    where = path if where is None else where
    return parse_json(read_bytes(path, error, where), error, where, lenient)


def read_object(
    path: str | os.PathLike, error: Failure, where: object = None, lenient: bool = False
) -> dict[str, Any]:
    """`read_json` of a file that holds an object."""
    content = read_json(path, error, where, lenient)
    if not isinstance(content, dict):
        raise error(
            "A file holds the wrong kind of JSON.",
            where=path if where is None else where,
            found=type(content).__name__,
            expected="an object",
        )
    return cast(dict[str, Any], content)
