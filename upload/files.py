"""The files of a staged folder: the records beside its repositories, and what the repositories hold."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..errors_recursivemas import CheckpointError
from ..files_recursivemas import read_object
from ..folders_recursivemas import write_text
from ..stamps_recursivemas import file_digest

PLAN, CHECKED, PUSHED = "plan.json", "checked.json", "pushed.json"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; `None` where there is no file."""
    if not path.is_file():
        return None
    return read_object(path, CheckpointError)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file so that it is there as a whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def files_of(folder: Path) -> list[Path]:
    """All files of a repository, in order, as paths relative to it."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())


def fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of a repository's files, or of one file."""
    digest = hashlib.sha256()
    for path in files_of(folder) if folder.is_dir() else [Path()]:
        digest.update(f"{path.as_posix()}\0".encode())
        digest.update(bytes.fromhex(file_digest(folder / path)))
    return digest.hexdigest()
