"""The tool `python`: a program in the sandbox, answered with what it prints."""

import ast
from collections.abc import Callable, Iterable

from ..sandbox.run import Job, Limits, run_python
from ..tools_recursivemas import MAX_RESULT, MAX_SECONDS


def python_tool(
    *, seconds: float = MAX_SECONDS, max_result: int = MAX_RESULT, require: Iterable[str] = ()
) -> Callable[[str], str]:
    """A tool that runs the Python of a call; only for those who want model-written code to run.

    Args:
        seconds: wall time of a program.
        max_result: characters of a result; of a longer one its beginning and its end are kept.
        require: protections without which nothing runs, see `run_python`.

    Returns:
        A function from a program to what it printed; where it printed nothing, the value of its last expression;
        and how it failed, where it did.
    """
    required = tuple([require] if isinstance(require, str) and require != "all" else require)
    words = "all" if require == "all" else required

    def python(text: str) -> str:
        outcome = run_python(Job(shown(program_of(text)), limits=Limits(seconds=seconds)), require=words)
        said = outcome.stdout.strip() + (f"\nerror: {outcome.error}" if outcome.error is not None else "")
        said = said.strip() or "(no output)"
        if len(said) <= max_result:
            return said
        half = max_result // 2 - 5
        return f"{said[:half]}\n[…]\n{said[-half:]}"

    return python


def program_of(text: str) -> str:
    """The program of a call, which models put into a fenced block or not."""
    lines = text.strip("\n").split("\n")
    if len(lines) > 1 and lines[0].strip().startswith("```") and lines[-1].strip() == "```":
        lines = lines[1:-1]
    return "\n".join(lines)


def shown(source: str) -> str:
    """A program that prints the value of its last expression, unless that is `None`."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return source
    if not tree.body or not isinstance(last := tree.body[-1], ast.Expr):
        return source
    lines = source.encode("utf-8", "surrogatepass").split(b"\n")  # columns count bytes
    start = sum(len(line) + 1 for line in lines[: last.lineno - 1]) + last.col_offset
    end = sum(len(line) + 1 for line in lines[: (last.end_lineno or 0) - 1]) + (last.end_col_offset or 0)
    whole, name = b"\n".join(lines), b"_last"
    parts = (whole[:start], name, b" = (", whole[start:end], b")", whole[end:])
    return (b"".join(parts) + b"\nif %b is not None: print(%b)" % (name, name)).decode("utf-8", "surrogatepass")
