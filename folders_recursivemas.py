"""Writing in one step: files are made beside the old ones and take their places together, whatever happens meanwhile.

New files of a folder gather in `.saving-…` inside it. When all are written, that is renamed to `.saving`, and from
then on the new state counts: its files are moved to their places, and where the process dies before all are, the next
one that reads or writes the folder moves the rest (`settle`). Without that rename nothing has happened.
"""

import contextlib
import errno
import filecmp
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError

from .errors_recursivemas import CheckpointError

try:
    import fcntl
except ImportError:  # Windows: two writers at once are not kept apart there
    fcntl = None  # type: ignore[assignment]

UNFINISHED, READY, JOURNAL = ".saving-", ".saving", "journal.json"
Owned = Mapping[str, tuple[str, ...]]


@contextlib.contextmanager
def replacing(folder: str | os.PathLike, owned: Owned | None = None) -> Iterator[Path]:
    """Gives an empty folder; what is written there is in `folder` when the block ends, or nothing of it.

    Args:
        folder: created if need be. What it holds besides stays.
        owned: subfolder ("" for the folder itself) -> patterns of files that belong to what is written: those that
            were not written again are removed in the same step.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    folder = Path(folder)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settle(folder, trusted=True)
        with scratch_folder(folder) as scratch:
            files = scratch / "files"
            files.mkdir()
            yield files
            _commit(folder, scratch, owned or {})
    except BaseException as error:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        # A full disk speaks through three libraries.
        if isinstance(error, CheckpointError) or not isinstance(error, OSError | RuntimeError | SafetensorError):
            raise
        raise CheckpointError(
            "Saving stopped; what was there before is as it was.",
            where=folder,
            found=f"{type(error).__name__}: {error}"[:500],
            hint="free some space, or choose a folder that can be written, and do the same again",
        ) from error


@contextlib.contextmanager
def replacing_file(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path of the same name and another folder; what is written there is at `path` when the block ends.

    Raises:
        CheckpointError: the disk is full, or the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path.parent) as scratch:
            yield scratch / path.name
            os.replace(scratch / path.name, path)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            "A file cannot be written; what was there before is as it was.", where=path, found=error
        ) from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in one step, see `replacing_file`."""
    with replacing_file(path) as place:
        place.write_text(text, encoding="utf-8")


def settle(folder: str | os.PathLike, trusted: bool = False) -> None:
    """Finishes a save of a folder that was interrupted after all was written; before a folder is read.

    Args:
        folder: where a system is, or an agent in its `agents/<role>`.
        trusted: files may go through symbolic links that lead out of the folder: where it is written to anyway.

    Raises:
        CheckpointError: it cannot be finished.
    """
    folder = Path(folder)
    for place in (folder, folder.parent.parent) if folder.parent.name == "agents" else (folder,):
        if not os.path.lexists(place / READY):
            continue
        try:
            with _locked(place):
                _finish(place, trusted)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                "A save was interrupted, and cannot be finished here.",
                where=place / READY,
                found=f"{type(error).__name__}: {error}"[:300],
                hint="load the system once where its folder can be written; or save it anew, or fetch it again",
            ) from error


def is_unused(folder: Path, besides: tuple[str, ...] = ()) -> bool:
    """Whether nothing would be overwritten: there is no such folder, or it holds `besides` and remains of saves."""
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and all(
        path.name in besides or path.name.startswith(UNFINISHED) for path in folder.iterdir()
    )


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """An empty folder in a folder, removed at the end, or by the next writer where this one is killed."""
    for remains in folder.glob(f"{UNFINISHED}*"):
        if (lock := _lock(remains, wait=False)) is not None:  # nobody works on it any more
            shutil.rmtree(remains, ignore_errors=True)
            os.close(lock)
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
        lock = _lock(scratch, wait=False)
        if scratch.exists():  # and not taken for remains before it was locked
            break
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, wait: bool = True) -> int | None:
    """A lock on a folder, held until it is closed or the process ends; `None` where there is none to be had."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else's; or a file system without locks
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _lock(folder)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _commit(folder: Path, scratch: Path, owned: Owned) -> None:
    files = scratch / "files"
    names = sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if not path.is_dir())
    for name in names:
        target = folder / name
        in_the_way = [place for place in target.parents if place.is_relative_to(folder) and place.is_file()]
        if target.is_dir() or in_the_way:
            raise CheckpointError("Something is in the way of a file.", where=target, found=[target, *in_the_way][-1])
        if target.suffix == ".py" and target.is_file() and filecmp.cmp(files / name, target, shallow=False):
            (files / name).unlink()  # code that is there already stays: it may be what runs
    patterns = {subfolder: list(those) for subfolder, those in owned.items()}
    (scratch / JOURNAL).write_text(json.dumps({"files": names, "owned": patterns}), encoding="utf-8")
    with _locked(folder):
        _finish(folder, trusted=True)  # what another writer left
        os.rename(scratch, folder / READY)
    settle(folder, trusted=True)


def _finish(folder: Path, trusted: bool) -> None:
    """Moves what is ready to its place; it may be called again after it was interrupted anywhere."""
    ready = folder / READY
    journal = _inside(folder, ready / JOURNAL, trusted)
    if journal.is_file():
        content = json.loads(journal.read_text(encoding="utf-8"))
        names, owned = content["files"], content["owned"]
        for name in (*names, *owned, *(pattern for patterns in owned.values() for pattern in patterns)):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name!r} is not in the folder")
        kept = {folder / name for name in names}
        for subfolder, patterns in owned.items():
            for path in [path for pattern in patterns for path in (folder / subfolder).glob(pattern)]:
                if path not in kept and not path.is_dir() and not _of_saving(path.relative_to(folder)):
                    _inside(folder, path, trusted).unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # unless it holds more
                        path.parent.rmdir()
        for name in names:
            if os.path.lexists(source := _inside(folder, ready / "files" / name, trusted)):
                target = _inside(folder, folder / name, trusted)
                target.parent.mkdir(parents=True, exist_ok=True)
                _move(source, target)
        journal.unlink()
    shutil.rmtree(ready, ignore_errors=True)


def _of_saving(path: Path) -> bool:
    return path.parts[0] == READY or path.parts[0].startswith(UNFINISHED)


def _inside(folder: Path, path: Path, trusted: bool) -> Path:
    """The path; where a link on its way leads out of the folder, only if that is trusted."""
    if not trusted and not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} leads out of the folder")
    return path


def _move(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the subfolder is on another disk
            raise
        with replacing_file(target) as place:
            shutil.copyfile(source, place)
        source.unlink()
