"""The tool `search`: passages from a provider. One that is not there is a clear result, never an invented one."""

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors_recursivemas import InputError

INDEX_NAME = ".recursivemas.index"  # in the folder that it indexes
TEXTS = {".txt", ".md", ".rst", ".html", ".htm", ".json", ".jsonl", ".csv", ".tsv", ".tex", ".py", ".xml", ".org"}
PASSAGE, MAX_FILE = 1200, 20 << 20  # characters, bytes
HITS, SNIPPET = 5, 1000  # in a result, characters of each
NO_PROVIDER = (
    "error: there is no search here, so nothing was looked up (set TAVILY_API_KEY and install tavily-python, or "
    "give an index of a folder)"
)


@dataclass(frozen=True)
class Hit:
    """A passage that was found, and where."""

    title: str
    source: str  # path or address
    text: str


class Provider(Protocol):
    """What can be searched."""

    def search(self, query: str, count: int) -> list[Hit]:
        """At most so many hits, best first."""
        ...


class FolderIndex:
    """An SQLite full-text index (FTS5, ranked by BM25) of a folder's texts.

    Args:
        path: the file that `build_index` wrote, or the folder in which it wrote it.

    Raises:
        InputError: there is no such index.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            self.path = self.path / INDEX_NAME
        try:
            if not self.path.is_file():
                raise OSError("no such file")
            self._read("SELECT count(*) FROM passages")
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                "There is no index.", where=self.path, found=error, hint="make one: recursivemas index FOLDER"
            ) from error

    def _read(self, command: str, *values: object) -> list[tuple]:
        # A connection of each call's own: tools run in threads. Read only, whoever else has it open.
        connection = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return connection.execute(command, values).fetchall()
        finally:
            connection.close()

    def search(self, query: str, count: int) -> list[Hit]:
        words = re.findall(r"\w+", query)
        if not words:
            return []
        wanted = " OR ".join(f'"{word}"' for word in dict.fromkeys(words))  # quoted: nothing of it is syntax
        command = "SELECT title, source, text FROM passages WHERE passages MATCH ? ORDER BY bm25(passages, 4) LIMIT ?"
        return [Hit(*row) for row in self._read(command, wanted, count)]


class Tavily:
    """Search of the web by Tavily's own client (`pip install tavily-python`).

    Args:
        key: of the user; not kept anywhere else.

    Raises:
        ImportError: its client is not installed.
    """

    def __init__(self, key: str) -> None:
        from tavily import TavilyClient

        self.client = TavilyClient(api_key=key)

    def search(self, query: str, count: int) -> list[Hit]:
        found = self.client.search(query, max_results=count)["results"]
        return [Hit(hit.get("title") or "", hit.get("url") or "", hit.get("content") or "") for hit in found]


def provider_here(index: str | os.PathLike | None = None) -> Provider | None:
    """The given index; else Tavily, where `TAVILY_API_KEY` is set and its client is there; else `None`."""
    if index is not None:
        return FolderIndex(index)
    key = os.environ.get("TAVILY_API_KEY")
    try:
        return Tavily(key) if key else None
    except ImportError:
        return None


def search_tool(provider: Provider | None) -> Callable[[str], str]:
    """A tool from a query to the passages that a provider finds, numbered, each with where it stands."""

    def search(query: str) -> str:
        query = query.strip()
        if provider is None:
            return NO_PROVIDER
        if not query:
            return "error: the query is empty"
        try:
            hits = provider.search(query, HITS)
        except Exception as error:  # of a network, of a service: its words may hold an address with the key
            return f"error: the search failed ({type(error).__name__}), so nothing was looked up"
        texts = (f"[{number}] {hit.title} ({hit.source})\n{hit.text[:SNIPPET]}" for number, hit in enumerate(hits, 1))
        return "\n\n".join(texts) or "nothing was found"

    return search


def build_index(folder: str | os.PathLike, output: str | os.PathLike | None = None) -> tuple[Path, int, int]:
    """Indexes the texts of a folder (and its subfolders), anew each time.

    Hidden files and folders, links, files of other kinds, larger ones than `MAX_FILE` and such as are no UTF-8 are
    left out.

    Args:
        folder: of the user.
        output: the index's file; default `INDEX_NAME` in the folder.

    Returns:
        The index's file, how many files it holds, and how many passages.

    Raises:
        InputError: no folder, no text in it, or the index cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("There is no such folder.", where="recursivemas index", found=folder)
    output = Path(output) if output is not None else folder / INDEX_NAME
    if output.exists():
        FolderIndex(output)  # an index is made anew, nothing else is written over
    part, files, passages = output.with_name(f"{output.name}.part"), 0, 0
    try:
        part.unlink(missing_ok=True)
        connection = sqlite3.connect(part)
        try:
            connection.execute("CREATE VIRTUAL TABLE passages USING fts5(title, source UNINDEXED, text)")
            for path in texts_of(folder):
                try:
                    text = path.read_text(encoding="utf-8")
                except (UnicodeDecodeError, OSError):
                    continue
                source = path.relative_to(folder).as_posix()
                rows = [(path.stem, source, passage) for passage in passages_of(text)]
                connection.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)
                files, passages = files + bool(rows), passages + len(rows)
            connection.commit()
        finally:
            connection.close()
        if not passages:
            part.unlink()
            raise InputError("There is no text in a folder.", where=folder, expected=f"files of {sorted(TEXTS)}")
        part.replace(output)
    except (OSError, sqlite3.Error) as error:
        raise InputError("An index cannot be written.", where=output, found=error) from error
    return output, files, passages


def texts_of(folder: Path) -> Iterator[Path]:
    """The texts below a folder, in order."""
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(at, name)
            if name.startswith(".") or path.suffix.lower() not in TEXTS or path.is_symlink():
                continue
            if path.stat().st_size <= MAX_FILE:
                yield path


def passages_of(text: str) -> Iterator[str]:
    """A text in passages of whole paragraphs, of about `PASSAGE` characters; longer paragraphs are cut at spaces."""
    passage = ""
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in re.findall(rf"(?s)\S.{{0,{PASSAGE - 1}}}(?=\s|\Z)|\S{{1,{PASSAGE}}}", paragraph):
            if passage and len(passage) + len(piece) > PASSAGE:
                yield passage
                passage = ""
            passage = f"{passage}\n{piece}".strip()
    if passage:
        yield passage
