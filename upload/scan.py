"""What must not be in a repository that goes out: secrets, absolute paths, pickles, files of unknown kinds."""

import os
import re
import tempfile
from itertools import chain
from pathlib import Path

from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open

from ..errors_recursivemas import InputError, RecursiveMASError
from ..files_recursivemas import parse_json, read_bytes, text_of
from ..sources_recursivemas import read_tensors
from .files import files_of, read_json

TEXT_SUFFIXES = {".json", ".md", ".py", ".jinja", ".txt", ".yaml"}
KNOWN_SUFFIXES = TEXT_SUFFIXES | {".safetensors", ".model", ".png"}
# A vocabulary holds any text there is; what a person wrote stands elsewhere.
VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt"}
SECRETS = {
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "API key": r"\bsk-[A-Za-z0-9_-]{32,}",
    "GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{40,}",
    "AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
}
HOME = re.compile(r"(?<![\w.])/(?:home|Users|root|mnt|data|scratch|workspace)/[\w.+@-]+|\b[A-Za-z]:\\\\?Users\\")
WHOLE_PATH = re.compile(r"/(?:[\w.+@ -]+/)+[\w.+@ -]*|[A-Za-z]:\\.+")
PICKLE = re.compile(rb"\x80[\x02-\x05]")


def scan(folder: Path) -> list[str]:
    """What is wrong with a repository's files, one sentence each."""
    allowed = _release_files(folder)
    here = {str(path) for path in (Path.cwd(), Path.home(), folder.resolve().parent, Path(tempfile.gettempdir()))}
    return [f"{path}: {what}" for path in files_of(folder) for what in _problems(folder / path, allowed, here)]


def _problems(file: Path, allowed: set[str], here: set[str]) -> list[str]:
    """What is wrong with a file; `allowed` are names of `.pt` files, `here` folders of this machine."""
    try:
        if file.is_symlink():
            return ["a symbolic link"]
        if file.name in allowed:  # holds tensors by name and nothing else
            read_tensors(str(file), file.name)
            return []
        if file.suffix not in KNOWN_SUFFIXES:
            return ["a file of a kind that does not belong here"]
        if file.suffix == ".safetensors":
            text = _names(file)
        elif _is_pickle(file):
            return ["a pickle"]
        else:
            text = text_of(read_bytes(file, InputError), InputError, file) if file.suffix in TEXT_SUFFIXES else ""
        values = _strings(parse_json(text, InputError, file, lenient=True)) if file.suffix == ".json" else []
    except (RecursiveMASError, SafetensorError, ValueError) as error:
        return [f"cannot be read: {error}"]
    problems = [name for name, pattern in SECRETS.items() if re.search(pattern, text)]
    if (token := get_token()) and token in text:
        problems.append("your Hugging Face token")
    if file.name not in VOCABULARIES:
        paths = {match[0] for match in HOME.finditer(text)}
        paths |= {path for path in here if path != os.sep and re.search(re.escape(path) + r"(?:/|\b)", text)}
        paths |= {value for value in values if WHOLE_PATH.fullmatch(value)}
        problems += [f"the absolute path {path}" for path in sorted(paths)]
    return problems


def _release_files(folder: Path) -> set[str]:
    """The `.pt` files that the release's manifests in this folder name."""
    names = set()
    if (folder / "adapter_config.json").is_file():
        names = {"adapter.pt", *_named(folder / "innerlink_config.json", "adapter.pt")}
    return names | _named(folder / "outerlink_config.json", "filename")


def _named(manifest: Path, key: str) -> set[str]:
    """The files that a manifest names; of a broken one, none (the scan of the manifest itself says why)."""
    try:
        content = read_json(manifest)
    except RecursiveMASError:
        return set()
    entries: list[object] = [content]
    names = set()
    while entries:
        entry = entries.pop()
        if isinstance(entry, dict):
            names |= {entry[key]} if isinstance(entry.get(key), str) else set()
            entries += entry.values()
        elif isinstance(entry, list):
            entries += entry
    return names


def _is_pickle(file: Path) -> bool:
    """A pickle, or a zip archive (in which torch puts its pickles), whatever its name is."""
    with open(file, "rb") as stream:
        start = stream.read(4)
    return bool(PICKLE.match(start)) or start.startswith(b"PK\x03\x04")


def _names(file: Path) -> str:
    """The words in a safetensors file: its metadata and the names of its tensors."""
    with safe_open(file, "pt") as weights:
        return "\n".join([*weights.keys(), *chain(*(weights.metadata() or {}).items())])


def _strings(value: object) -> list[str]:
    """All string values in JSON content."""
    if isinstance(value, dict | list):
        entries = value.values() if isinstance(value, dict) else value
        return [text for entry in entries for text in _strings(entry)]
    return [value] if isinstance(value, str) else []
