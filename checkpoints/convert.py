"""Turn a released system into one repository of this project's layout.

Writes config.json (topology, prompts, settings, agents with pinned revisions), the links as safetensors, the decoding
agent's tokenizer and the code, so that the folder loads with AutoModelForCausalLM (trust_remote_code=True) and gives
the same tokens. Where a system has links per task, all of them are converted; `link_task="code"` chooses at load. The
agents stay where they are, unless --copy-agents puts them into the folder. No agent's weights are read.

Examples:
  recursivemas convert sequential_light path/to/folder
  recursivemas convert mixture path/to/folder --clones ~/checkpoints --copy-agents
  recursivemas convert distillation path/to/folder --dataset mbppplus --prompts prompts.json
"""

import argparse
import copy
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from ..system_loader import (
    RecursiveMASAgent,
    RecursiveMASConfig,
    RecursiveMASModel,
    read_prompts,
    released_config,
    released_styles,
    remote_module,
)

_sources, _modeling = remote_module("sources_recursivemas"), remote_module("modeling_recursivemas")
LINK_TASKS = ("math", "code")
# What of an agent's repository is not its base model
BESIDE = ("adapter", "innerlink_config.json", ".git")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("style", help=f"name of a released system: {', '.join(released_styles()['styles'])}")
    parser.add_argument("folder", type=Path, help="where to write; must not exist, or be empty")
    parser.add_argument(
        "--dataset", default="math500", help="chooses the default links and settings (default: math500)"
    )
    parser.add_argument("--revision", help="of the repositories (default: the newest; what is found gets pinned)")
    parser.add_argument("--clones", help="folder with local clones of the repositories")
    parser.add_argument("--cache-dir", help="of the Hub client (default: its own)")
    parser.add_argument("--prompts", help="JSON file with a prompt set, in place of the style's own")
    parser.add_argument("--copy-agents", action="store_true", help="make the folder complete in itself")


def run(arguments: argparse.Namespace) -> int:
    if arguments.folder.exists() and (not arguments.folder.is_dir() or any(arguments.folder.iterdir())):
        print(f"{arguments.folder} is not empty", file=sys.stderr)
        return 2
    hub = {"cache_dir": arguments.cache_dir}
    prompts = None if arguments.prompts is None else read_prompts(arguments.prompts)
    config = convert(
        arguments.style,
        arguments.folder,
        dataset=arguments.dataset,
        revision=arguments.revision,
        source=_sources.Source(arguments.style, hub=hub, clones=arguments.clones),
        prompts=prompts,
        copy_agents=arguments.copy_agents,
    )
    for role, agent in config.agents.items():
        print(f"{role}: {agent['source']}" + (f"@{agent['revision']}" if agent.get("revision") else ""))
    unpinned = [role for role, agent in config.agents.items() if not agent.get("revision")]
    if unpinned and not arguments.copy_agents:
        print(f"not pinned, since local clones say no commit: {', '.join(unpinned)}", file=sys.stderr)
    return 0


def convert(
    style: str,
    folder: Path,
    *,
    dataset: str = "math500",
    revision: str | None = None,
    source: object,
    prompts: dict | None = None,
    copy_agents: bool = False,
) -> RecursiveMASConfig:
    """Writes a released system in this project's layout and returns its configuration.

    Args:
        style: name of a released system.
        folder: where to write.
        dataset: chooses the default links and settings.
        revision: of the repositories.
        source: says where repositories are looked for (`Source.other`).
        prompts: replaces the style's prompt set.
        copy_agents: write the agents into the folder.

    Raises:
        RecursiveMASError: something is missing, broken or does not fit.
    """
    config, generation = released_config(style, dataset, revision=revision)
    config.prompts = config.prompts if prompts is None else prompts
    config.validate_system()
    patterns = (*_sources.SMALL_FILES, *(_sources.WEIGHT_FILES if copy_agents else ()))
    agents, places = {}, {}
    for role, entry in logging.tqdm(config.agents.items(), desc="Reading agents", unit="agent", leave=False):
        place = source.other(entry["source"], entry["revision"])
        places[role] = place = place.fetch(patterns)
        entry["revision"] = place.commit or entry["revision"]
        agents[role] = _empty_agent(place, role)
        _modeling.check_architecture(entry, agents[role].model.config, agents[role].hidden_size, role)
    widths = {role: agent.hidden_size for role, agent in agents.items()}
    tasks = LINK_TASKS if config.link_task else (None,)
    links = {}
    for task in tasks:
        task_config = copy.deepcopy(config)
        task_config.link_task = task
        links[task] = _modeling.load_links(source, task_config, widths)
    inner_links, outer_links = links[config.link_task]
    for role, link in inner_links.items():
        agents[role].inner_link = link
    model = RecursiveMASModel(config, agents, outer_links)
    model.generation_config.update(**generation.to_diff_dict())
    model.save_pretrained(folder)
    saved = RecursiveMASConfig.from_pretrained(folder)
    if config.link_task:
        shutil.rmtree(folder / "links")
        saved.link_task = config.link_task
        entries = {role: entry["inner_link"] for role, entry in saved.agents.items()}
        entries |= {link.name: entry for link, entry in zip(saved.topology.links, saved.links, strict=True)}
        for name, entry in entries.items():
            entry["weights"] = {"tasks": {task: f"links/{_sources.link_filename(name, task)}" for task in tasks}}
            for task, (inner, outer) in links.items():
                weights = (inner | outer)[name].state_dict()
                _sources.write_tensors(weights, folder / entry["weights"]["tasks"][task])
    if copy_agents:
        for role, place in places.items():
            ignored = shutil.ignore_patterns(*(f"{name}*" for name in BESIDE))
            shutil.copytree(place.folder, folder / "agents" / role, ignore=ignored)
            saved.agents[role] |= {"source": f"agents/{role}", "revision": None}
    saved.save_pretrained(folder)
    return saved


def _empty_agent(place: object, role: str) -> RecursiveMASAgent:
    """An agent without weights (on the meta device), with its configuration and tokenizer."""
    agent_config = _sources.load_model_config(place, role)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(agent_config)
        link = remote_module("links_recursivemas").InnerLink(
            "linear_adapter", model.get_input_embeddings().embedding_dim
        )
    if place.json("generation_config.json", required=False) is not None:
        model.generation_config = GenerationConfig.from_pretrained(place.folder)
    return RecursiveMASAgent(model, link, _sources.load_tokenizer(place, role), role)
