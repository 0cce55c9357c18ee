"""Writing a system: one function that says of every agent and link whether it lies in the folder or elsewhere."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .bases_recursivemas import MODEL_FILES, TOKENIZER_FILES, save_base_model
from .configuration_recursivemas import AUTO_MAP, RecursiveMASConfig
from .errors_recursivemas import CheckpointError
from .folders_recursivemas import replacing
from .link_files_recursivemas import link_filename
from .links_recursivemas import EXPECTED_EMBEDDING, AnyInnerLink, AnyOuterLink
from .sources_recursivemas import SNAPSHOT, write_code, write_tensors
from .stamps_recursivemas import write_stamp

# Patterns of what a save of a system writes
SYSTEM_FILES = (
    *("config.json", "generation_config.json", "weights.json", "*_recursivemas.py", "links/*", "agents/*"),
    *TOKENIZER_FILES,
)


def is_folder(source: str, elsewhere: bool = True) -> bool:
    """Whether an agent's `source` is a folder: of the system's repository, or (if `elsewhere`) of this machine."""
    return source.startswith(("agents/", "./")) or (elsewhere and os.path.isabs(source))


def pinned(config: RecursiveMASConfig, models: Mapping[str, PreTrainedModel]) -> RecursiveMASConfig:
    """A configuration whose agents from the Hub are named at the commits that their models were loaded from."""
    config = copy.deepcopy(config)
    for role, entry in config.agents.items():
        commit = SNAPSHOT.match(str(models[role].name_or_path))
        if not is_folder(entry["source"]) and entry.get("revision") is None and commit is not None:
            entry["revision"] = commit["commit"]
    return config


@dataclass(frozen=True)
class SavedLink:
    """A link as it is to be saved.

    Attributes:
        kind: its kind.
        weights: task -> state dict; the task is `None` where there is one for all. Empty state dicts have no file.
        options: what else its entry of the configuration says, see `options` of the links.
        repository: where the files are, if not in the folder that is written; nothing is written then.
        name: of the files there, without task and suffix.
    """

    kind: str
    weights: Mapping[str | None, Mapping[str, torch.Tensor]]
    options: Mapping[str, Any] = field(default_factory=dict)
    repository: str | None = None
    name: str | None = None

    def save(self, folder: Path, name: str) -> dict:
        """Writes `links/<name>.safetensors` of a folder, one a task; returns the link's part of its entry."""
        entry = {"kind": self.kind, **self.options}
        places: dict[str | None, str | dict] = {}
        for task, state in self.weights.items():
            if not state:  # a kind without parameters
                continue
            if self.repository is None:
                path = places[task] = f"links/{link_filename(name, task)}"
                write_tensors(dict(state), folder / path)
            else:
                filename = link_filename(self.name or name, task)
                places[task] = {"source": self.repository, "revision": None, "filename": filename}
        if None not in places:
            return {**entry, "weights": {"tasks": places}} if places else entry
        # Where a link's file has the place that it has by default, nothing is said of it.
        return entry if self.repository is None else {**entry, "weights": places[None]}


def save_system(
    folder: Path,
    config: RecursiveMASConfig,
    links: Mapping[str, SavedLink],
    *,
    tokenizer: PreTrainedTokenizerBase,
    generation_config: GenerationConfig,
    write_agents: Mapping[str, Callable[[Path], None] | None] | None = None,
    files: Mapping[str, str] | None = None,
) -> RecursiveMASConfig:
    """Writes a system's repository: config.json, tokenizer, generation settings, remote code, `links/` and `agents/`.

    It is one step: whatever happens meanwhile, the folder holds the old system or the new one.

    Args:
        folder: created if need be.
        config: the system's; `source` and `revision` of the agents that are not written stay as they are.
        links: role -> inner link, and `<source>_to_<target>` -> outer link.
        tokenizer: the composite's.
        generation_config: the composite's.
        write_agents: role -> what writes that agent's model folder, for each that is to lie in `agents/<role>`; `None`
            for one that lies there already.
        files: name -> text of further files.

    Returns:
        The configuration as written.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    config = copy.deepcopy(config)
    config.architectures, config.auto_map = ["RecursiveMASModel"], dict(AUTO_MAP)
    write_agents = write_agents or {}
    written = {f"agents/{role}": write for role, write in write_agents.items() if write is not None}
    kept = [folder / "agents" / role for role, write in write_agents.items() if write is None]
    with replacing(folder, {"": TOKENIZER_FILES, **dict.fromkeys(written, MODEL_FILES)}) as new:
        for role, entry in config.agents.items():
            entry["inner_link"] = links[role].save(new, role)
        for link, entry in zip(config.topology.links, config.links, strict=True):
            for key in ("kind", "weights", "snap"):
                entry.pop(key, None)
            entry |= links[link.name].save(new, link.name)
        if not config.link_tasks:
            config.link_task = None
        for place, write in written.items():
            write(new / place)
        for role in write_agents:
            config.agents[role] |= {"source": f"agents/{role}", "revision": None}
            config.agents[role].pop("gguf_file", None)
        config.save_pretrained(new)
        generation_config.save_pretrained(new)
        tokenizer.save_pretrained(new)
        write_code(new, "modeling_recursivemas.py")
        for name, text in (files or {}).items():
            (new / name).write_text(text, encoding="utf-8")
        there = [path for place in kept for path in place.glob("*.safetensors")]
        write_stamp(new, {path.relative_to(folder).as_posix(): path for path in there})
    return config


def saved_links(
    links: Mapping[str, AnyInnerLink | AnyOuterLink], state_dict: Mapping[str, torch.Tensor]
) -> dict[str, SavedLink]:
    """The links of a `RecursiveMASModel` by name, with their weights out of its state dict.

    Raises:
        CheckpointError: a link has no weights there.
    """
    saved = {}
    for name, link in links.items():
        prefix = f"outer_links.{name}." if "_to_" in name else f"agents.{name}.inner_link."
        weights = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if not weights and link.kind != EXPECTED_EMBEDDING:
            raise CheckpointError("There are no weights to save.", where="save_pretrained", expected=f"{prefix}*")
        saved[name] = SavedLink(link.kind, {None: weights}, link.options)
    return saved


def agent_writer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: Path, options: Mapping[str, Any] | None = None
) -> Callable[[Path], None] | None:
    """What writes an agent's model folder, with `options` of its `save_pretrained`.

    `None` where `place`, in which it is to be, is where it was loaded from, and no option asks for another form.
    """
    origin = Path(model.name_or_path).resolve() if model.name_or_path else None
    if place.is_dir() and place.resolve() == origin and not options:
        return None

    def write(folder: Path) -> None:
        save_base_model(model, folder, **(options or {}))
        tokenizer.save_pretrained(folder)

    return write
