"""Code in a staged repository: it is this clone's to the byte, and nothing in there names any other."""

from pathlib import Path

from ..agent_recursivemas import AUTO_MAP as AGENT_AUTO_MAP
from ..configuration_recursivemas import AUTO_MAP
from ..system_loader import ROOT
from .files import files_of, read_json
from .scan import VOCABULARIES

AUTO_MAPS = {"agent": AGENT_AUTO_MAP, "composite": AUTO_MAP}  # kind of a repository -> classes of its code
# What transformers runs where it is told to trust a repository
RUNNING_KEYS = ("auto_map", "custom_generate", "custom_pipelines")


def foreign_code(folder: Path, kind: str) -> list[str]:
    """What of a repository would run and is not this clone's code, one sentence each; nothing of it is run.

    Args:
        folder: the repository.
        kind: of the repository, see `plan.Repository`.
    """
    problems = []
    for path in files_of(folder):
        if path.suffix == ".py":
            own = ROOT / path.name
            if len(path.parts) > 1 or not own.is_file() or own.read_bytes() != (folder / path).read_bytes():
                problems.append(f"{path}: is not this clone's code")
        elif path.suffix == ".json" and path.name not in VOCABULARIES:
            allowed = AUTO_MAPS.get(kind) if path == Path("config.json") else None
            for key, value in _running(read_json(folder / path)):
                if key != "auto_map" or value != allowed:
                    problems.append(f"{path}: {key} names other code: {str(value)[:200]}")
    return problems


def _running(value: object) -> list[tuple[str, object]]:
    """The entries of JSON content that transformers would run, at any depth."""
    if isinstance(value, dict):
        own = [(key, entry) for key, entry in value.items() if key in RUNNING_KEYS and entry]
        return own + [found for entry in value.values() for found in _running(entry)]
    return [found for entry in value for found in _running(entry)] if isinstance(value, list) else []
