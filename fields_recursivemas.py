"""What the fields of settings may be called and hold: one judgement of names, types and limits."""

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors_recursivemas import RecursiveMASError


@dataclass(frozen=True)
class Kind:
    """What a field may hold.

    Attributes:
        holds: whether a value is of this kind.
        expected: the kind, for messages.
    """

    holds: Callable[[Any], bool]
    expected: str

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(lambda value: self.holds(value) or other.holds(value), f"{self.expected}, or {other.expected}")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number (`True` is none)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite number (`True` is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def whole(least: int, most: int) -> Kind:
    """Whole numbers from `least` to `most`."""
    return Kind(lambda value: is_whole(value) and least <= value <= most, f"a whole number >= {least}, at most {most}")


def number(least: float, most: float) -> Kind:
    """Numbers from `least` to `most`."""
    return Kind(lambda value: is_number(value) and least <= value <= most, f"a number from {least:g} to {most:g}")


def list_of(kind: Kind) -> Kind:
    """Lists whose every entry is of a kind."""
    return Kind(
        lambda value: isinstance(value, list | tuple) and all(map(kind.holds, value)), f"a list, each {kind.expected}"
    )


def table_of(kind: Kind) -> Kind:
    """Name -> what is of a kind."""
    return Kind(
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(name, str) and kind.holds(entry) for name, entry in value.items())
        ),
        f"an object, each of its entries {kind.expected}",
    )


def one_of(names: Iterable[str]) -> Kind:
    """One of these texts."""
    names = tuple(names)
    return Kind(lambda value: isinstance(value, str) and value in names, ", ".join(names))


TEXT = Kind(lambda value: isinstance(value, str), "a text")
TRUTH = Kind(lambda value: isinstance(value, bool), "true or false")
NOTHING = Kind(lambda value: value is None, "null")
ANYTHING = Kind(lambda value: True, "anything")
OBJECT = table_of(ANYTHING)


def did_you_mean(name: object, known: Iterable[str]) -> str | None:
    """A hint with the known name that is nearest to an unknown one, if one is near."""
    near = difflib.get_close_matches(str(name)[:100], [*known], n=1)
    return f"did you mean `{near[0]}`?" if near else None


def refuse_unknown(
    names: Iterable[object], known: Collection[str], what: str, where: str, error: type[RecursiveMASError]
) -> None:
    """Raises an error for the first name that nobody knows; `what` is the sentence that it begins with."""
    if unknown := [name for name in names if name not in known]:
        expected, hint = ", ".join(sorted(known)), did_you_mean(unknown[0], known)
        raise error(what, where=where, found=str(unknown[0]), expected=expected, hint=hint)


def validate_field(value: object, kind: Kind, where: str, error: type[RecursiveMASError]) -> None:
    """Raises an error unless a value is of a kind."""
    if not kind.holds(value):
        name = where.rpartition(", ")[2]
        raise error(f"`{name}` cannot be used.", where=where, found=repr(value), expected=kind.expected)


def validate_fields(
    entry: object,
    fields: Mapping[str, Kind],
    where: str,
    error: type[RecursiveMASError],
    required: Collection[str] = (),
    also: Collection[str] = (),
) -> None:
    """Checks an object of settings.

    Args:
        entry: name -> value.
        fields: name -> what it may hold.
        where: the object's place, for messages.
        error: what is raised.
        required: names that must be there.
        also: further names that may be there, whatever they hold.

    Raises:
        error: it is no object, or has an unknown name, misses one, or a value of another kind.
    """
    if not isinstance(entry, Mapping):
        expected = f"an object with {', '.join(sorted(required or fields))}"
        raise error("An entry is no object.", where=where, found=repr(entry), expected=expected)
    for name in entry:
        if name not in fields and name not in also:
            raise error(
                "An entry has an unknown key.",
                where=where,
                found=str(name),
                expected=", ".join(sorted(fields)),
                hint=did_you_mean(name, fields),
            )
    if missing := [name for name in required if name not in entry]:
        found, expected = ", ".join(map(str, entry)) or "none", ", ".join(sorted(required))
        what = f"An entry lacks {', '.join(f'`{name}`' for name in missing)}."
        raise error(what, where=where, found=found, expected=expected)
    for name, value in entry.items():
        if name in fields:
            validate_field(value, fields[name], f"{where}, {name}", error)
