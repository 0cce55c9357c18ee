"""What a staged folder holds: the plan of a publication, and the records that checking and pushing leave beside it."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors_recursivemas import CheckpointError, InputError

PLAN, CHECKED, PUSHED = "plan.json", "checked.json", "pushed.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Repository:
    """One repository of a publication.

    Attributes:
        id: `namespace/name`; its files are in the staged folder's `name/`.
        kind: "agent", "outer_links" or "composite".
        note: what stands beside it in the collection.
        role: of an agent.
        base_model: Hub name of the model that the agent was made of, if it has one.
    """

    id: str
    kind: str
    note: str
    role: str | None = None
    base_model: str | None = None

    @property
    def name(self) -> str:
        return self.id.partition("/")[2]


@dataclass(frozen=True)
class Plan:
    """A publication.

    Attributes:
        system: what was staged: a folder, a Hub repository or a style, as `load_mas_system` takes it.
        namespace: user or organisation that gets the repositories.
        style: the system's collaboration style.
        collection: title of the style's collection.
        question: the sample question of the cards, which the check runs too.
        legacy: the release's files and manifests are there too.
        self_contained: the composite holds its agents and links.
        licence: identifier for the cards' metadata.
        repositories: agents in role order, outer links, composite: the order in which they are pushed.
    """

    system: str
    namespace: str
    style: str
    collection: str
    question: str
    legacy: bool
    self_contained: bool
    licence: str
    repositories: tuple[Repository, ...]
    format_version: int = FORMAT_VERSION

    @property
    def composite(self) -> Repository:
        return self.repositories[-1]

    @property
    def outer_links(self) -> Repository:
        return self.repositories[-2]

    @property
    def agents(self) -> dict[str, Repository]:
        """Role -> repository."""
        return {repository.role: repository for repository in self.repositories if repository.kind == "agent"}

    def save(self, folder: Path) -> None:
        write_json(folder / PLAN, dataclasses.asdict(self))


def load_plan(folder: Path) -> Plan:
    """The plan of a staged folder.

    Raises:
        InputError: the folder was not staged, or not completely.
    """
    content = read_json(folder / PLAN)
    if content is None or content.get("format_version") != FORMAT_VERSION:
        raise InputError(
            "This is no staged system.",
            where=folder,
            found="no plan.json" if content is None else f"format version {content.get('format_version')}",
            expected=f"a folder that `recursivemas publish stage` wrote, format version {FORMAT_VERSION}",
        )
    return Plan(**{**content, "repositories": tuple(Repository(**entry) for entry in content["repositories"])})


def read_json(path: Path) -> dict | None:
    """The object in a JSON file; `None` where there is no file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError("A file is not valid JSON.", where=path, found=error) from error


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file so that it is there as a whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def files_of(folder: Path) -> list[Path]:
    """All files of a repository, in order, as paths relative to it."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())


def file_digest(file: BinaryIO) -> bytes:
    """SHA-256 of an open file's content."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.digest()


def fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of a repository's files."""
    digest = hashlib.sha256()
    for path in files_of(folder):
        digest.update(f"{path.as_posix()}\0".encode())
        with open(folder / path, "rb") as file:
            digest.update(file_digest(file))
    return digest.hexdigest()
