"""Answers on disk, one JSON object a line, written as they come; a run that was stopped goes on behind them."""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors_recursivemas import InputError
from ..fields_recursivemas import OBJECT, validate_field
from ..files_recursivemas import parse_json, read_bytes, read_object
from ..folders_recursivemas import write_text
from ..modeling_recursivemas import RecursiveMASModel
from .commands import validate_file
from .interrupts import interruptible
from .results import fingerprint, read_results, write_results

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]


# Arguments of commands that change no answer.
FREE = {"questions", "file", "json", "output", "resume", "replace", "stored", "batch_size", "device"}


class RowFile:
    """A file of rows, opened before anything is computed; what was asked lies beside it, in `<name>.run`.

    Args:
        path: the file.
        asked: what the rows depend on, name -> something that is JSON.
        resume: go on behind the rows that are there; without it, or `replace`, there must be none.
        replace: rows that are there go as soon as the system is loaded.

    Attributes:
        rows: those that are there.

    Raises:
        InputError: the file cannot be written, holds rows (or with `resume` rows of another run), or is being written
            by another process.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], resume: bool, replace: bool = False) -> None:
        self.path, self.beside = path, _beside(path)
        self.asked = json.loads(json.dumps(asked))
        self.rows: list[dict[str, Any]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError("Another process is writing this file.", where=path, found=error) from error
        except OSError as error:
            raise InputError("The output cannot be written.", where=path, found=error) from error
        try:
            self._file.seek(0)
            content = self._file.read()
            if content and not resume and not replace:
                raise InputError(
                    "There are answers already.",
                    where=path,
                    found=f"{content.count(10)} rows",
                    hint="go on with --resume, begin anew with --replace, or name another file",
                )
            if content and resume:
                self._validate_asked(self.asked)
                self._read(content)
            elif not content:
                self._store()
        except BaseException:
            self.close()
            raise

    def of_system(self, mas: RecursiveMASModel) -> None:
        """Adds the system to what was asked, as soon as it is loaded.

        Raises:
            InputError: the rows that are there are those of another one.
        """
        prompts = hashlib.sha256(json.dumps(mas.config.prompts, sort_keys=True).encode()).hexdigest()
        asked = {"weights": fingerprint(mas.state_dict().items()), "system's prompts": prompts}
        if self.rows:
            self._validate_asked(asked)
        else:
            self._file.truncate(0)
        self.asked |= json.loads(json.dumps(asked))
        self._store()

    def kept(self, setting: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """ "row" -> the row, of those that are there and are of a setting."""
        mine = [row for row in self.rows if all(row.get(name) == value for name, value in setting.items())]
        return {row["row"]: row for row in mine if isinstance(row.get("row"), int)}

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows; they are in the file when this returns."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            self._file.write(lines.encode("utf-8"))
            self._file.flush()
        except OSError as error:
            hint = "what was written before is kept; make room, then the same command with --resume"
            raise InputError("A row cannot be written.", where=self.path, found=error, hint=hint) from error

    def end(self, output: Path, results: Mapping[str, Any]) -> None:
        """Stores the results that came of the rows, with what was asked, and removes the rows."""
        write_results({**results, "asked": self.asked}, output)
        self.remove()

    def close(self) -> None:
        """Ends the writing; a file without rows is removed, for nothing was done."""
        self._file.close()
        if self.path.is_file() and self.path.stat().st_size == 0:
            self.remove()

    def remove(self) -> None:
        """Removes the file and what lies beside it."""
        self._file.close()
        for path in (self.path, self.beside):
            path.unlink(missing_ok=True)

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _store(self) -> None:
        write_text(self.beside, json.dumps(self.asked, ensure_ascii=False, indent=1) + "\n")

    def _validate_asked(self, asked: Mapping[str, Any]) -> None:
        validate_asked(read_object(self.beside, InputError), asked, self.path)

    def _read(self, content: bytes) -> None:
        """Takes the whole lines; what a kill left of one more is cut off."""
        whole, _, rest = content.rpartition(b"\n")
        if rest:
            print(f"{self.path}: the last line is not whole and is written anew", file=sys.stderr)
            self._file.truncate(len(content) - len(rest))
        self.rows += whole_rows(whole, self.path)


def whole_rows(lines: bytes, path: Path) -> list[dict[str, Any]]:
    """The rows of whole lines of a file.

    Raises:
        InputError: a line is no JSON object.
    """
    rows = []
    for number, line in enumerate(lines.split(b"\n") if lines else [], start=1):
        where = f"{path}, line {number}"
        row = parse_json(line, InputError, where)
        validate_field(row, OBJECT, f"{where}, row", InputError)
        rows.append(row)
    return rows


def kept_rows(path: Path, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The whole rows of a file that a `RowFile` of a stopped process has left.

    Raises:
        InputError: they are those of another run, or cannot be read.
    """
    validate_asked(read_object(_beside(path), InputError), asked, path)
    return whole_rows(read_bytes(path, InputError).rpartition(b"\n")[0], path)


def _beside(path: Path) -> Path:
    """What was asked for the rows of a file."""
    return path.with_name(f"{path.name}.run")


def asked_of(arguments: argparse.Namespace, questions: Sequence[Any], free: Iterable[str] = ()) -> dict[str, Any]:
    """What a command was asked: a hash of the questions, and its arguments but those that change no answer."""
    digest = hashlib.sha256(json.dumps(list(questions), sort_keys=True).encode()).hexdigest()
    named = {name: value for name, value in vars(arguments).items() if name not in {*FREE, *free}}
    return {"questions": {"number": len(questions), "sha256": digest}, **named}


def validate_asked(before: Any, asked: Mapping[str, Any], where: Path) -> None:
    """Raises InputError, which names them, if questions, system or settings are not what they were."""
    before = before if isinstance(before, dict) else {}
    changed = {name: (before.get(name), value) for name, value in asked.items() if before.get(name) != value}
    if changed:
        raise InputError(
            "The answers that are there are those of another run.",
            where=where,
            found="; ".join(f"{name}: {_short(old)} -> {_short(new)}" for name, (old, new) in changed.items()),
            hint="go on with the same questions, system and settings, or name another file",
        )


@contextmanager
def keeping_rows(
    output: Path | None, asked: Mapping[str, Any], resume: bool, replace: bool = False
) -> Iterator[RowFile | None]:
    """The rows behind a file of results, `<name>.rows.jsonl` beside it, until `RowFile.end`; without output none.

    Raises:
        InputError: see `RowFile`; the results could not be written, or are there and may not be replaced; or `resume`
            without an output.
        Interrupted: by Ctrl-C or SIGTERM; says how to go on.
    """
    if output is None and resume:
        raise InputError("There is nothing to go on with.", where="--resume", hint="name the --output of the run")
    if output:
        validate_file(output, replace or resume, beside=(".png",))
    kept = "nothing is kept; with --output every answer is, and --resume goes on"
    with interruptible(lambda: f"interrupted: {kept}"):
        if output is None:
            yield None
            return
        with RowFile(output.with_suffix(".rows.jsonl"), asked, resume, replace) as row_file:
            kept = f"the answers so far are kept in {row_file.path}; the same command with --resume goes on"
            yield row_file


def finished_results(
    output: Path | None, asked: Mapping[str, Any], resume: bool, figures: str = "figures"
) -> dict[str, Any] | None:
    """The results of a run that is to go on and has ended, else `None`; `figures`: see `read_results`.

    Raises:
        InputError: they are those of another run.
    """
    if not (resume and output and output.is_file()) or output.with_suffix(".rows.jsonl").exists():
        return None
    results = read_results(output, figures)
    validate_asked(results.get("asked"), asked, output)
    print(f"already finished: nothing was changed in {output}", file=sys.stderr)
    return results


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
