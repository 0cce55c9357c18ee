"""What must not be in a repository that goes out: secrets, absolute paths, pickles, files of unknown kinds."""

import json
import os
import re
import tempfile
from pathlib import Path

from huggingface_hub import get_token

from ..errors_recursivemas import RecursiveMASError
from ..sources_recursivemas import read_tensors
from .plan import files_of, read_json

TEXT_SUFFIXES = {".json", ".md", ".py", ".jinja", ".txt"}
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
    allowed = _legacy_files(folder)
    here = {str(path) for path in (Path.cwd(), Path.home(), folder.resolve().parent, Path(tempfile.gettempdir()))}
    token = get_token()
    problems = []
    for path in files_of(folder):
        file = folder / path
        if file.is_symlink():
            problems.append(f"{path}: a symbolic link")
        elif path.name in allowed:
            problems += _check_tensors(file)
        elif path.suffix not in KNOWN_SUFFIXES:
            problems.append(f"{path}: a file of a kind that does not belong here")
        elif _is_pickle(file):
            problems.append(f"{path}: a pickle")
        elif path.suffix in TEXT_SUFFIXES or path.suffix == ".safetensors":
            text = _header(file) if path.suffix == ".safetensors" else file.read_text(encoding="utf-8")
            problems += [f"{path}: {name}" for name, pattern in SECRETS.items() if re.search(pattern, text)]
            if token and token in text:
                problems.append(f"{path}: your Hugging Face token")
            if path.name not in VOCABULARIES:
                problems += [f"{path}: the absolute path {found}" for found in _paths(text, path.suffix, here)]
    return problems


def _legacy_files(folder: Path) -> set[str]:
    """The `.pt` files that the release's manifests in this folder name."""
    names = set()
    if (folder / "adapter_config.json").is_file():
        names.add("adapter.pt")
        tasks = (read_json(folder / "innerlink_config.json") or {}).get("tasks", {})
        names |= {entry["adapter.pt"] for entry in tasks.values()}
    manifest = read_json(folder / "outerlink_config.json") or {}
    for entry in [manifest, *manifest.get("tasks", {}).values()]:
        names |= {adapter["filename"] for adapter in entry.get("adapters", [])}
    return names


def _check_tensors(file: Path) -> list[str]:
    """A `.pt` file may hold tensors by name and nothing else."""
    try:
        read_tensors(str(file), str(file))
    except RecursiveMASError as error:
        return [f"{file.name}: {error}"]
    return []


def _is_pickle(file: Path) -> bool:
    """A pickle, or a zip archive (in which torch puts its pickles), whatever its name is."""
    with open(file, "rb") as stream:
        start = stream.read(4)
    return bool(PICKLE.match(start)) or start.startswith(b"PK\x03\x04")


def _header(file: Path) -> str:
    """The JSON header of a safetensors file: 8 bytes of length, then that many bytes."""
    with open(file, "rb") as stream:
        return stream.read(int.from_bytes(stream.read(8), "little")).decode("utf-8", errors="replace")


def _paths(text: str, suffix: str, here: set[str]) -> set[str]:
    """Absolute paths: of this machine, of somebody's home, or as a whole value in a JSON file."""
    found = {match[0] for match in HOME.finditer(text)}
    found |= {path for path in here if path != os.sep and re.search(re.escape(path) + r"(?:/|\b)", text)}
    if suffix == ".json":
        found |= {value for value in _strings(json.loads(text)) if WHOLE_PATH.fullmatch(value)}
    return found


def _strings(value: object) -> list[str]:
    """All string values in JSON content."""
    if isinstance(value, dict):
        return [text for entry in value.values() for text in _strings(entry)]
    if isinstance(value, list):
        return [text for entry in value for text in _strings(entry)]
    return [value] if isinstance(value, str) else []
