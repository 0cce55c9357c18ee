"""Writing a system: one function that says of every agent and link whether it lies in the folder or elsewhere."""

import copy
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .adapters_recursivemas import base_of, is_adapted, save_adapter
from .bases_recursivemas import MODEL_FILES, TOKENIZER_FILES, save_base_model
from .configuration_recursivemas import AUTO_MAP, RecursiveMASConfig
from .errors_recursivemas import CheckpointError, InputError
from .folders_recursivemas import replacing
from .link_files_recursivemas import link_filename
from .links_recursivemas import WEIGHTLESS, AnyInnerLink, AnyOuterLink
from .modules_recursivemas import Modules
from .sources_recursivemas import SNAPSHOT, write_code, write_tensors
from .stamps_recursivemas import write_stamp

AgentWriter: TypeAlias = Callable[[Path], None] | str | None  # of a folder; the role that has it; it is there
# Patterns of what a save of a system writes
SYSTEM_FILES = (
    *(
        "config.json",
        "generation_config.json",
        "weights.json",
        "*_recursivemas.py",
        "links/*",
        "agents/*",
        "adapters/*",
    ),
    *TOKENIZER_FILES,
)


def is_folder(source: str, elsewhere: bool = True) -> bool:
    """Whether an agent's `source` is a folder: of the system's repository, or (if `elsewhere`) of this machine."""
    return source.startswith(("agents/", "./")) or (elsewhere and os.path.isabs(source))


def pinned(config: RecursiveMASConfig, agents: Modules[Any]) -> RecursiveMASConfig:
    """A configuration whose agents from the Hub are named at the commits that their models were loaded from.

    A branch or a tag that it named may move, and gives way to its commit.
    """
    config = copy.deepcopy(config)
    for role, entry in config.agents.items():
        commit = SNAPSHOT.match(str(base_of(agents[role].model).name_or_path))
        if not is_folder(entry["source"]) and commit is not None:
            entry["revision"] = commit["commit"]
    return config


def places_on_hub(config: RecursiveMASConfig, agents: Modules[Any]) -> dict[str, dict[str, Any]]:
    """Role -> source and revision, of the agents whose base models are the files of a commit on the Hub."""
    entries = pinned(config, agents).agents
    return {
        role: {"source": entry["source"], "revision": entry["revision"]}
        for role, entry in entries.items()
        if not is_folder(entry["source"]) and SNAPSHOT.match(str(base_of(agents[role].model).name_or_path))
    }


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
    write_agents: Mapping[str, AgentWriter] | None = None,
    write_adapters: Mapping[str, Callable[[Path], None]] | None = None,
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
            for one that lies there already; or the role whose folder it shares.
        write_adapters: role -> what writes the two files of its adapter, for each that is to lie in `adapters/<role>`.
        files: name -> text of further files.

    Returns:
        The configuration as written.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    config = copy.deepcopy(config)
    config.architectures, config.auto_map = ["RecursiveMASModel"], dict(AUTO_MAP)
    write_agents = write_agents or {}
    written = {f"agents/{role}": write for role, write in write_agents.items() if callable(write)}
    adapters = {f"adapters/{role}": write for role, write in (write_adapters or {}).items()}
    kept = [folder / "agents" / role for role, write in write_agents.items() if write is None]
    with replacing(folder, {"": TOKENIZER_FILES, **dict.fromkeys([*written, *adapters], MODEL_FILES)}) as new:
        for role, entry in config.agents.items():
            entry["inner_link"] = links[role].save(new, role)
        for link, entry in zip(config.topology.links, config.links, strict=True):
            for key in ("kind", "weights", "snap"):
                entry.pop(key, None)
            entry |= links[link.name].save(new, link.name)
        if not config.link_tasks:
            config.link_task = None
        for place, writes in (written | adapters).items():
            writes(new / place)
        for role in write_adapters or ():
            config.agents[role]["adapter"] = {"source": f"./adapters/{role}"}
        for role, write in write_agents.items():
            owner = write if isinstance(write, str) else role
            config.agents[role] |= {"source": f"agents/{owner}", "revision": None}
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
        if not weights and link.kind not in WEIGHTLESS:
            raise CheckpointError("There are no weights to save.", where="save_pretrained", expected=f"{prefix}*")
        saved[name] = SavedLink(link.kind, {None: weights}, link.options)
    return saved


def agent_writers(
    agents: Modules[Any],
    config: RecursiveMASConfig,
    folder: Path,
    roles: Collection[str],
    options: Mapping[str, Any] | None = None,
) -> dict[str, AgentWriter]:
    """What writes the model folders of some roles, as `save_system` takes it; what roles share is written once.

    Args:
        agents: role -> agent.
        config: the system's.
        folder: where the system is to be.
        roles: whose agents are to lie in it.
        options: of the models' `save_pretrained`.
    """
    writers: dict[str, AgentWriter] = {}
    # Roles that share a folder already go on to share that of the role whose name it has.
    homes = [role for role in roles if config.agents[role]["source"] == f"agents/{role}"]
    for role in (*homes, *(role for role in roles if role not in homes)):
        model, tokenizer = base_of(agents[role].model), agents[role].tokenizer
        parts = ((other, base_of(agents[other].model), agents[other].tokenizer) for other in writers)
        same = (other for other, base, its_own in parts if base is model and its_own is tokenizer)
        writers[role] = next(same, None) or agent_writer(model, tokenizer, folder / "agents" / role, options)
    return {role: writers[role] for role in roles}


def adapter_writers(
    agents: Modules[Any], config: RecursiveMASConfig, everything: bool, elsewhere: bool = False
) -> dict[str, Any]:
    """What writes the adapters of a system, as `save_system` takes it: those of its own folder, or `everything`.

    `elsewhere`: those that lie in other folders of this machine too.
    """
    for role, agent in agents.items():
        if config.agents[role].get("adapter") and not is_adapted(agent.model):
            raise InputError(
                "The configuration names an adapter that its agent's model does not have.",
                where=f"save_pretrained, agents, {role}, adapter",
                found=type(agent.model).__name__,
                hint="if it is merged by now, take it out of the configuration (`config.agents[role].pop('adapter')`)",
            )
    return {
        role: partial(save_adapter, agent.model)
        for role, agent in agents.items()
        if is_adapted(agent.model) and (everything or is_folder(config.agents[role]["adapter"]["source"], elsewhere))
    }


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
