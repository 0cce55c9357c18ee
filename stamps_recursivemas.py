"""The stamp of a save: a small file that ties its files of weights together, so that a mixture of two saves says so.

`weights.json` names each file of weights with its SHA-256 and its mark. The mark is what a load compares, without
reading the weights: the digest that a link's file holds in its metadata, or of another file what it says at a few
places of every tensor. A link's file without a digest was put there by hand, and is taken as it is; so is a system
without a stamp.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from .errors_recursivemas import CheckpointError
from .sources_recursivemas import DIGEST, Source

STAMP = "weights.json"
SAMPLE = 512  # bytes of every tensor


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def mark_of(path: Path) -> str:
    """The mark of a safetensors file: `stated …`, the digest in its metadata, or `sampled …`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is no safetensors file.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        metadata = header.pop("__metadata__", None) or {}
        if DIGEST in metadata:
            return f"stated {metadata[DIGEST]}"
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for name in sorted(header):
            begin, end = header[name]["data_offsets"]
            file.seek(8 + size + max(begin, (begin + end - SAMPLE) // 2))
            digest.update(file.read(min(SAMPLE, end - begin)))
    return f"sampled {digest.hexdigest()}"


def write_stamp(folder: Path, kept: Mapping[str, Path] | None = None) -> None:
    """Writes the stamp of all safetensors files in a folder.

    Args:
        folder: what is saved.
        kept: further files of the save, which lie elsewhere until it is done: name -> path.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.safetensors")}
    weights = {
        name: {"sha256": file_digest(path), "mark": mark_of(path)}
        for name, path in sorted({**files, **(kept or {})}.items())
    }
    (folder / STAMP).write_text(json.dumps({"weights": weights}, indent=1) + "\n", encoding="utf-8")


def read_stamp(source: Source) -> dict[str, dict[str, str]]:
    """File of weights -> "sha256" and "mark", as the stamp of a repository says; empty where it has none.

    Raises:
        CheckpointError: it is broken.
    """
    content = source.find_json(STAMP)
    weights = {} if content is None else content.get("weights")
    if not isinstance(weights, dict) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("sha256", "mark"))
        for entry in weights.values()
    ):
        raise CheckpointError(
            "A stamp has the wrong form.",
            where=f"{source}, {STAMP}",
            found=repr(weights)[:200],
            expected='{"weights": {file: {"sha256": …, "mark": …}}}',
            hint="save or fetch the system again, or remove the file",
        )
    return {name: weights[name] for name in weights if ".." not in PurePosixPath(name).parts}


def validate_stamp(source: Source, folders: Iterable[str]) -> None:
    """Holds the files of weights in some folders of a repository, which were read, against its stamp.

    Raises:
        CheckpointError: one is of another save.
    """
    places = {PurePosixPath(folder) for folder in folders}
    for name, entry in read_stamp(source).items() if places else ():
        if PurePosixPath(name).parent not in places or (path := source.find(name)) is None:
            continue
        try:
            mark = mark_of(Path(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            mark = f"unreadable {error}"
        by_hand = entry["mark"].startswith("stated") and mark.startswith("sampled")
        if mark != entry["mark"] and not by_hand:
            raise CheckpointError(
                "Weights of two saves are mixed.",
                where=f"{source}, {name}",
                found=mark[:24],
                expected=f"{entry['mark'][:24]}, saved with the rest ({STAMP})",
                hint=f"save or fetch the system again; where they were changed on purpose, remove {STAMP}",
            )


def changed_files(source: Source, folder: Path) -> list[str]:
    """Files whose bytes are not those of the stamp, of those that are there; reads them all."""
    entries = read_stamp(source).items()
    there = [(name, entry) for name, entry in entries if (folder / name).is_file()]
    return [name for name, entry in there if file_digest(folder / name) != entry["sha256"]]
