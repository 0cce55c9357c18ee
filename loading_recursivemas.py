"""Loading a system: from its configuration to agents and links, each from wherever it lives.

Everything small is read and judged before the first weight of an agent.
"""

import copy
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from .adapters_recursivemas import adapt, adapter_place
from .agent_options_recursivemas import AgentOptions
from .agent_recursivemas import RecursiveMASAgent
from .bases_recursivemas import SMALL_FILES, WEIGHT_FILES, load_model_config
from .configuration_recursivemas import AUTO_MAP, RecursiveMASConfig
from .engine_recursivemas import Residency
from .errors_recursivemas import ArgumentError, CheckpointError, ConfigError
from .fields_recursivemas import did_you_mean
from .gguf_recursivemas import agent_place
from .link_building_recursivemas import build_link
from .link_files_recursivemas import read_link
from .links_recursivemas import WEIGHTLESS, AnyInnerLink, AnyOuterLink, CacheLink
from .memories_recursivemas import validate_continuation
from .mixtures_recursivemas import EXPECTED_EMBEDDING, mixture_options
from .modules_recursivemas import Modules
from .prompts_recursivemas import PromptRenderer
from .sharing_recursivemas import Bases
from .sources_recursivemas import Source
from .stamps_recursivemas import validate_stamp
from .topology_recursivemas import Link

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedSystem:
    """The parts of a system."""

    config: RecursiveMASConfig
    agents: dict[str, RecursiveMASAgent]
    outer_links: dict[str, AnyOuterLink]
    residency: Residency | None


def read_configuration(
    source: Source, config: RecursiveMASConfig | None, task: str | None, overrides: Mapping[str, Any]
) -> RecursiveMASConfig:
    """A system's configuration, checked.

    Args:
        source: the system's repository.
        config: replaces its config.json.
        task: chooses prompts, and links where these are per task.
        overrides: field -> value.

    Raises:
        ArgumentError: no such field.
        ConfigError, CheckpointError: the configuration is wrong, or cannot be read.
    """
    if config is None:
        content = source.json("config.json")
        if (written := content.get("model_type", "recursivemas")) != "recursivemas":
            what = "A config.json is that of one model, and not of a system."
            raise ConfigError(what, where=source, found=written, expected="recursivemas")
        config = RecursiveMASConfig.from_dict(content, name_or_path=source.repository)
    # Auto classes have read that file themselves, and pass what they read.
    if source.is_download and config.name_or_path == source.repository:
        validate_places(config, source)
    config = copy.deepcopy(config)
    known = RecursiveMASConfig().to_dict()
    for key, value in overrides.items():
        if key not in known:
            raise ArgumentError(
                "Unknown argument.",
                where="RecursiveMASModel.from_pretrained",
                found=key,
                hint=did_you_mean(key, known) or "pass arguments for the agents' models as `agent_kwargs`",
            )
        setattr(config, key, value)
    if task is not None:
        config.task = task
        config.link_task = task if task in config.link_tasks else config.link_task
    config.validate_system()
    return config


def validate_places(config: RecursiveMASConfig, source: Source) -> None:
    """Raises ConfigError where a configuration that came from the Hub names folders of this machine."""
    entries: list[Any] = [*config.agents.values(), *config.links]
    while entries:
        entry = entries.pop()
        if isinstance(entry, dict):
            place = entry.get("source")
            if isinstance(place, str) and os.path.isabs(place):
                raise ConfigError(
                    "A system from the Hub names a folder of this machine.",
                    where=f"{source}, config.json, source",
                    found=place[:200],
                    expected="agents/… of the repository, or org/name on the Hub",
                    hint="if you trust it, copy the system to a folder of your own",
                )
            entries += entry.values()


def load_system(
    source: Source,
    config: RecursiveMASConfig,
    options: AgentOptions,
    link_dtype: torch.dtype | None = None,
    only: Collection[str] | None = None,
) -> LoadedSystem:
    """Loads all parts of a system.

    Args:
        source: the system's repository.
        config: its configuration, checked; what it leaves open of the agents is filled in.
        options: how agents are loaded.
        link_dtype: of all links; `None` keeps the stored one.
        only: the roles whose weights are loaded; default all.

    Raises:
        ConfigError: parts do not fit together.
        CheckpointError: a file is missing, broken or does not fit.
    """
    roles = tuple(config.agents)
    wanted = roles if only is None else tuple(role for role in roles if role in only)
    places = {role: agent_place(source, entry) for role, entry in config.agents.items()}
    # Files are fetched side by side, agents built one after another: `from_pretrained` sets the default dtype and
    # initialisers of the whole process (in four threads 38 of 42 models came out in another agent's dtype or without
    # weights), and it reads the weights of one model in threads already.
    pool, bases = ThreadPoolExecutor(), Bases(options.share_bases)
    try:
        small, configs, widths, tokenizers, agents = {}, {}, {}, {}, {}
        for role, place in zip(roles, pool.map(lambda role: places[role].fetch(SMALL_FILES), roles), strict=True):
            trusted = options.trusts(role)
            small[role], configs[role] = place, load_model_config(place, role, trusted)
            widths[role] = configs[role].get_text_config().hidden_size
            validate_architecture(config.agents[role], configs[role], widths[role], role)
            fill_architecture(config.agents[role], configs[role], widths[role])
            tokenizers[role] = bases.tokenizer(place, role, trusted)
            validate_tokenizer(tokenizers[role], configs[role], role, config.chat_template_kwargs)
        inner_links, outer_links = load_links(source, config, widths, link_dtype)
        complete = pool.map(lambda role: places[role].fetch(WEIGHT_FILES), wanted)
        for role in quiet_progress(roles, "Loading agents", "agent"):
            if role in wanted:
                kwargs, device = options.kwargs_of(role), options.device_of(role)
                model = bases.model(next(complete), role, kwargs, device, options.offload is not None)
                if (adapter := adapter_place(source, config.agents[role])) is not None:
                    model = adapt(model, adapter, role)
            else:
                model = bases.empty_model(small[role], role, configs[role], options.trusts(role))
            agents[role] = agent = RecursiveMASAgent(model, inner_links[role], tokenizers[role], role)
            agent.inner_link.to(agent.device)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    validate_stamp(source, _own_folders(config, wanted))
    devices = {role: (options.offload and options.device_of(role)) or agents[role].device for role in roles}
    for link in config.topology.links:
        outer_links[link.name].to(devices[link.source])
    return LoadedSystem(
        config,
        agents,
        outer_links,
        Residency(agents, devices) if options.offload else None,
    )


def _own_folders(config: RecursiveMASConfig, roles: Collection[str]) -> list[str]:
    """The folders of a system's own repository that hold weights of some roles, or of links."""
    sources = [config.agents[role]["source"] for role in roles]
    sources += [adapter["source"] for role in roles if (adapter := config.agents[role].get("adapter"))]
    entries = [*config.links, *(agent.get("inner_link") or {} for agent in config.agents.values())]
    places = [each.get("weights") for each in entries if each.get("kind") not in WEIGHTLESS]
    has_links = any(not isinstance(place, dict) or "tasks" in place for place in places)
    return [place for place in sources if place.startswith(("agents/", "./"))] + ["links"] * has_links


def load_links(
    source: Source, config: RecursiveMASConfig, widths: Mapping[str, int], dtype: torch.dtype | None = None
) -> tuple[dict[str, AnyInnerLink], dict[str, AnyOuterLink]]:
    """Reads the links of a system.

    Args:
        source: the system's own repository.
        config: the system's configuration; its `link_task` chooses among weights per task.
        widths: role -> hidden size of its agent.
        dtype: of the links; `None` keeps the stored one.

    Returns:
        Role -> inner link, and link name -> outer link.
    """
    inner_links = {role: load_inner_link(source, config, role, widths[role], dtype) for role in config.agents}
    outer_links = {}
    for link, entry in zip(config.topology.links, config.links, strict=True):
        tensors: dict[str, torch.Tensor] = {}
        where, stated = f"{source}, link {link.name}", None
        if entry.get("kind") not in WEIGHTLESS:
            tensors, where, stated = read_link(
                source, entry.get("weights"), link.name, config.link_task, entry.get("legacy_key")
            )
        outer_links[link.name] = build_link(
            tensors,
            where=where,
            in_features=widths[link.source],
            out_features=widths[link.target],
            kind=entry.get("kind") or stated,
            dtype=dtype,
            options={"snap": entry.get("snap", False)},
        )
    return inner_links, outer_links


def load_inner_link(
    source: Source, config: RecursiveMASConfig, role: str, width: int, dtype: torch.dtype | None = None
) -> AnyInnerLink:
    """Reads a role's inner link, see `load_links`."""
    entry = config.agents[role].get("inner_link") or {}
    kind: str | None = entry.get("kind")
    options = mixture_options(entry)
    if kind == EXPECTED_EMBEDDING:  # has no weights of its own
        return build_link({}, where=f"{source}, link {role}", in_features=width, kind=kind, options=options)
    tensors, where, stated = read_link(source, entry.get("weights"), role, config.link_task)
    return build_link(tensors, where=where, in_features=width, kind=kind or stated, dtype=dtype, options=options)


def validate_architecture(
    entry: Mapping[str, Any], agent_config: PreTrainedConfig, hidden_size: int, role: str
) -> None:
    """Holds an agent against what its entry of the configuration states.

    `gemma3` and `gemma3_text` are the same for this: a multimodal checkpoint, and its language part alone.

    Raises:
        ConfigError: width or architecture differ.
    """
    for field, value in {"hidden_size": hidden_size, "model_type": agent_config.model_type}.items():
        stated = entry.get(field, value)
        if str(stated).removesuffix("_text") != str(value).removesuffix("_text"):
            raise ConfigError(
                f"An agent's {field} is not what the configuration says.",
                where=f"agents, {role}, {entry['source']}",
                found=value,
                expected=stated,
                hint="check that `source` names the right repository for this role",
            )


def fill_architecture(entry: dict[str, Any], agent_config: PreTrainedConfig, hidden_size: int) -> None:
    """Fills in what an agent's entry of the configuration leaves open."""
    entry.setdefault("hidden_size", hidden_size)
    entry.setdefault("model_type", agent_config.model_type)


def validate_parts(
    config: RecursiveMASConfig, agents: Modules[RecursiveMASAgent], outer_links: Modules[AnyOuterLink]
) -> None:
    """Holds agents and outer links against the configuration.

    Raises:
        ConfigError: one is missing or too many, or does not fit.
    """
    topology = config.topology
    for what, expected, found in (
        ("agents", set(topology.roles), set(agents)),
        ("outer_links", {link.name for link in topology.links}, set(outer_links)),
    ):
        if expected != found:
            raise ConfigError(
                f"The {what} and the topology differ.",
                where=what,
                found=", ".join(sorted(found)) or "none",
                expected=", ".join(sorted(expected)),
            )
    for role, agent in agents.items():
        validate_architecture(config.agents[role], agent.model.config, agent.hidden_size, role)
    for link in topology.links:
        validate_outer_link(link, outer_links[link.name], agents)


def validate_outer_link(ends: Link, link: AnyOuterLink, agents: Modules[RecursiveMASAgent]) -> None:
    """Raises ConfigError unless an outer link has the widths of the agents at its ends."""
    if isinstance(link, CacheLink):
        validate_continuation(ends.name, agents[ends.source], agents[ends.target])
    found = (link.in_features, link.out_features)
    expected = (agents[ends.source].hidden_size, agents[ends.target].hidden_size)
    if found != expected:
        raise ConfigError(
            "An outer link does not fit its agents.",
            where=f"links, {ends.name}",
            found=f"{found[0]} -> {found[1]}",
            expected=f"{expected[0]} -> {expected[1]}",
        )


def fill_config(
    config: RecursiveMASConfig, agents: Modules[RecursiveMASAgent], outer_links: Modules[AnyOuterLink]
) -> None:
    """Puts into a configuration what agents and links say of themselves, and what tools read of the composite."""
    for role, agent in agents.items():
        entry = config.agents[role]
        fill_architecture(entry, agent.model.config, agent.hidden_size)
        weights = {key: value for key, value in (entry.get("inner_link") or {}).items() if key == "weights"}
        entry["inner_link"] = {**weights, "kind": agent.inner_link.kind, **agent.inner_link.options}
    for link, entry in zip(config.topology.links, config.links, strict=True):
        entry.pop("snap", None)
        entry |= {"kind": outer_links[link.name].kind, **outer_links[link.name].options}
    decoder = agents[config.decoding_role]
    text_config = decoder.model.config.get_text_config()
    for field in ("vocab_size", "max_position_embeddings"):
        setattr(config, field, getattr(text_config, field, None))
    config.eos_token_id, config.pad_token_id = decoder.eos_token_ids, decoder.pad_token_id
    config.bos_token_id = decoder.tokenizer.bos_token_id
    config.architectures, config.auto_map = ["RecursiveMASModel"], dict(AUTO_MAP)


def validate_tokenizer(
    tokenizer: PreTrainedTokenizerBase, agent_config: PreTrainedConfig, role: str, chat_template_kwargs: dict
) -> None:
    """Checks that the model knows every token that prompts can hold, and that the chat template can be rendered.

    Special tokens beyond the model's embeddings (of pictures, in Gemma 3) count only where the chat template writes
    them: a text is never read as one.
    """
    size = agent_config.get_text_config().vocab_size
    added = tokenizer.added_tokens_decoder
    renderer = PromptRenderer(tokenizer, role, chat_template_kwargs)
    renderer.validate()
    pieces = renderer.pieces(None, "", "")
    held = {index for piece in pieces if isinstance(piece, list) for index in piece}
    if max([len(tokenizer), *(index + 1 for index in added)]) > size:
        special = {index for index, token in added.items() if token.special}
        beyond = {i for i in tokenizer.get_vocab().values() if i >= size and (i not in special or i in held)}
        if beyond:
            raise CheckpointError(
                "A tokenizer has more tokens than its model has embeddings, and prompts can hold them.",
                where=f"agent {role}, {tokenizer.name_or_path}",
                found=f"{len(tokenizer)} tokens; beyond: {tokenizer.convert_ids_to_tokens(sorted(beyond)[:5])}",
                expected=f"at most {size} (vocab_size in config.json)",
                hint="check that tokenizer and model belong together",
            )


def quiet_progress(items: Iterable[T], description: str, unit: str) -> Iterator[T]:
    """One progress bar over the items, in place of transformers' own bar for each of them."""
    enabled = logging.is_progress_bar_enabled()
    bar = logging.tqdm(items, desc=description, unit=unit, leave=False, delay=2)
    logging.disable_progress_bar()
    try:
        yield from bar
    finally:
        if enabled:
            logging.enable_progress_bar()
