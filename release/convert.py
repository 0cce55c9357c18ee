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
from functools import partial
from pathlib import Path

from transformers import GenerationConfig
from transformers.utils import logging

from ..agent_recursivemas import RecursiveMASAgent
from ..bases_recursivemas import SMALL_FILES, WEIGHT_FILES, build_empty_model, load_model_config, load_tokenizer
from ..configuration_recursivemas import RecursiveMASConfig
from ..evaluation.commands import add_replace_argument, validate_output
from ..loading_recursivemas import load_links, validate_architecture
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import read_prompts
from ..saving_recursivemas import SavedLink, save_system
from ..sources_recursivemas import Source
from ..system_loader import released_config, released_styles

LINK_TASKS = ("math", "code")
# What of an agent's repository is not its base model
BESIDE = ("adapter", "innerlink_config.json", ".git")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("style", help=f"name of a released system: {', '.join(released_styles()['styles'])}")
    parser.add_argument("folder", type=Path, help="where to write")
    add_replace_argument(parser)
    parser.add_argument(
        "--dataset", default="math500", help="chooses the default links and settings (default: math500)"
    )
    parser.add_argument("--revision", help="of the repositories (default: the newest; what is found gets pinned)")
    parser.add_argument("--clones", help="folder with local clones of the repositories")
    parser.add_argument("--cache-dir", help="of the Hub client (default: its own)")
    parser.add_argument("--prompts", help="JSON file with a prompt set, in place of the style's own")
    parser.add_argument("--copy-agents", action="store_true", help="make the folder complete in itself")


def run(arguments: argparse.Namespace) -> int:
    validate_output(arguments.folder, arguments.replace, where="folder")
    config, generation = released_config(arguments.style, arguments.dataset, revision=arguments.revision)
    if arguments.prompts is not None:
        config.prompts = read_prompts(arguments.prompts)
    source = Source(arguments.style, hub={"cache_dir": arguments.cache_dir}, clones=arguments.clones)
    config = convert(config, generation, arguments.folder, source, arguments.copy_agents)
    for role, agent in config.agents.items():
        print(f"{role}: {agent['source']}" + (f"@{agent['revision']}" if agent.get("revision") else ""))
    unpinned = [role for role, agent in config.agents.items() if not agent.get("revision")]
    if unpinned and not arguments.copy_agents:
        print(f"not pinned, since local clones say no commit: {', '.join(unpinned)}", file=sys.stderr)
    return 0


def convert(
    config: RecursiveMASConfig, generation: GenerationConfig, folder: Path, source: Source, copy_agents: bool
) -> RecursiveMASConfig:
    """Writes a released system (`released_config`) in this project's layout and returns its configuration.

    `source` says where repositories are looked for (`Source.other`); `copy_agents` writes the agents into the folder.

    Raises:
        RecursiveMASError: something is missing, broken or does not fit.
    """
    config.validate_system()
    patterns = (*SMALL_FILES, *(WEIGHT_FILES if copy_agents else ()))
    places, agent_configs, widths = {}, {}, {}
    for role, entry in logging.tqdm(config.agents.items(), desc="Reading agents", unit="agent", leave=False):
        places[role] = place = source.other(entry["source"], entry["revision"]).fetch(patterns)
        entry["revision"] = place.commit or entry["revision"]
        agent_configs[role] = load_model_config(place, role)
        widths[role] = agent_configs[role].get_text_config().hidden_size
        validate_architecture(entry, agent_configs[role], widths[role], role)
    inner_links, outer_links = {}, {}
    tasks = LINK_TASKS if config.link_task else (None,)
    for task in tasks:
        task_config = copy.deepcopy(config)
        task_config.link_task = task
        inner_links[task], outer_links[task] = load_links(source, task_config, widths)
    agents = {}
    for role, place in places.items():
        base = build_empty_model(place, agent_configs[role])  # without weights
        inner_link, tokenizer = inner_links[config.link_task][role], load_tokenizer(place, role)
        agents[role] = RecursiveMASAgent(base, inner_link, tokenizer, role)
    model = RecursiveMASModel(config, agents, outer_links[config.link_task])
    model.generation_config.update(**generation.to_diff_dict())
    links = {}
    for by_task in (inner_links, outer_links):
        for name, link in by_task[config.link_task].items():
            links[name] = SavedLink(link.kind, {task: by_task[task][name].state_dict() for task in tasks})
    return save_system(
        folder,
        model.config,
        links,
        tokenizer=model.tokenizer,
        generation_config=model.generation_config,
        write_agents={role: partial(_copy_agent, place) for role, place in places.items()} if copy_agents else {},
    )


def _copy_agent(place: Source, folder: Path) -> None:
    shutil.copytree(place.path, folder, ignore=shutil.ignore_patterns(*(f"{name}*" for name in BESIDE)))
