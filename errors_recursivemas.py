"""The errors of the project: each says what is wrong, where, what was found, what was expected and what to do."""


class RecursiveMASError(Exception):
    """Root of all errors raised by this project.

    Args:
        what: one sentence that names the problem.
        where: file, repository, key, role or argument that holds it.
        found: the offending value.
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
        lines = [what] + [f"  {name}: {value}" for name, value in details.items() if value is not None]
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
