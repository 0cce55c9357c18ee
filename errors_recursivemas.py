"""The errors of the project: each says what is wrong, where, what was found, what was expected and what to do."""

LONGEST = {"where": 400, "found": 200, "expected": 1000}  # characters that a message shows; a file may hold anything


def shown(value: object, length: int = LONGEST["found"]) -> str:
    """A value as a message shows it: its start, where it is long."""
    text = str(value)
    return text if len(text) <= length else text[: length - 2] + " …"


class RecursiveMASError(Exception):
    """Root of all errors raised by this project.

    Args:
        what: one sentence that names the problem.
        where: file, repository, key, role or argument that holds it.
        found: the offending value, of which at most 200 characters are shown.
        expected: what a right value looks like.
        hint: the next step for the reader.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        details = {"where": where, "found": found, "expected": expected, "what to do": hint}
        lines = [what]
        for name, value in details.items():
            if value is not None:
                lines.append(f"  {name}: {shown(value, LONGEST.get(name, 1000))}")
        super().__init__("\n".join(lines))

    def __str__(self) -> str:
        return self.args[0]  # OSError, a base of CheckpointError, would print its own form


class ConfigError(RecursiveMASError, ValueError):
    """A configuration, topology or prompt set that cannot describe a system."""


class InputError(RecursiveMASError, ValueError):
    """An argument of a call that cannot be used."""


class CheckpointError(RecursiveMASError, OSError):
    """A file or repository that is missing, broken or does not fit the system."""


class ArgumentError(RecursiveMASError, TypeError):
    """A keyword argument that nobody knows."""


class NonFiniteError(RecursiveMASError, ArithmeticError):
    """Numbers that are NaN or infinite: of a run, or of a training step."""


class OutOfMemoryError(RecursiveMASError, MemoryError):
    """A question that does not fit into memory alone."""


class AgentLostError(RecursiveMASError, RuntimeError):
    """An agent in another process, which died whenever it was asked."""
