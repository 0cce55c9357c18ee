"""Make a working system of any agents without training: links in closed form.

Inner links: the expected next embedding under the agent's own output distribution. Outer links: ridge regression
between the token embeddings that two vocabularies share. A style is sequential, mixture, distillation, deliberation,
or a JSON file with `stages`, `links`, `decoding_role` and `prompts`. With --system, agents of an existing system are
swapped, and only the links that touch them are new.

Examples:
  recursivemas init-links --style distillation --agent expert=org/model-a --agent learner=./model-b --output mine
  recursivemas init-links --style my-style.json --agent planner=a --agent solver=b --output mine
  recursivemas init-links --style distillation --agent expert=org/name/file.gguf --agent learner=b --output mine
  recursivemas init-links --system mine --agent learner=org/model-c --output mine-2
  recursivemas init-links --style distillation --agent expert=a --agent learner=b --output to-be-trained \\
      --inner ln_res_adapter --outer outer_ln_res_adapter
"""

import argparse
import copy
from pathlib import Path

from ..agent_recursivemas import RecursiveMASAgent
from ..bases_recursivemas import SMALL_FILES, WEIGHT_FILES, load_base_model, load_tokenizer, widen_where_slow
from ..configuration_recursivemas import RecursiveMASConfig
from ..errors_recursivemas import InputError
from ..gguf_recursivemas import agent_place
from ..links_recursivemas import EXPECTED_EMBEDDING, INNER_KINDS, OUTER_KINDS, ExpectedEmbeddingLink
from ..modeling_recursivemas import RecursiveMASModel
from ..sources_recursivemas import Source
from ..system_loader import load_mas_system, read_style
from .start import fit_outer_link, shared_tokens, start_inner_link


def load_agent(config: RecursiveMASConfig, role: str, folder: Path, dtype: str = "auto") -> RecursiveMASAgent:
    """An agent of a configuration, with the expected embedding as its inner link; see `init_system`."""
    place = agent_place(Source(str(folder)), config.agents[role]).fetch((*SMALL_FILES, *WEIGHT_FILES))
    tokenizer = load_tokenizer(place, role)
    model = load_base_model(place, role, dtype=dtype)
    model = widen_where_slow(model) if dtype == "auto" else model
    width = model.config.get_text_config().hidden_size
    return RecursiveMASAgent(model, ExpectedEmbeddingLink(width), tokenizer, role)


def agent_entry(source: str) -> dict[str, str]:
    """The entry in `agents` of a folder or Hub repository, or of a GGUF file in one (`org/name/file.gguf`)."""
    path, entry = Path(source), {}
    if path.suffix == ".gguf" and not path.is_dir():
        local = path.is_file()
        parts = len(path.parts) - 1 if local else 2
        path, entry = Path(*path.parts[:parts]), {"gguf_file": "/".join(path.parts[parts:])}
    return {"source": str(path.resolve()) if path.is_dir() else path.as_posix()} | entry


def init_system(
    config: RecursiveMASConfig,
    folder: Path,
    inner_kind: str = EXPECTED_EMBEDDING,
    outer_kind: str = "outer_linear_adapter",
    dtype: str = "auto",
    keep: RecursiveMASModel | None = None,
    swapped: tuple[str, ...] = (),
) -> RecursiveMASModel:
    """A system whose links are in closed form.

    Args:
        config: of the system.
        folder: where `agents/…` sources live.
        inner_kind: `expected_embedding`, or a trainable kind at its starting point.
        outer_kind: a kind with a linear path.
        dtype: of the agents.
        keep: a system whose agents and links stay, but for the swapped ones.
        swapped: roles whose agents are new.
    """
    topology = config.validate_system()
    new = topology.roles if keep is None else swapped
    agents = {
        role: load_agent(config, role, folder, dtype) if keep is None or role in new else keep.agents[role]
        for role in topology.roles
    }
    outer_links = {
        link.name: fit_outer_link(agents[link.source], agents[link.target], outer_kind)
        if keep is None or {link.source, link.target} & set(new)
        else keep.outer_links[link.name]
        for link in topology.links
    }
    config.name_or_path = str(folder)
    for role in new:
        config.agents[role].pop("inner_link", None)
    mas = RecursiveMASModel(config, agents, outer_links)
    if inner_kind != EXPECTED_EMBEDDING:
        for role in new:
            mas.set_link(role, start_inner_link(agents[role], inner_kind))
    return mas


def configure(parser: argparse.ArgumentParser) -> None:
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--style", help="name of a style, or a JSON file")
    given.add_argument("--system", help="system whose agents are swapped: a folder or a Hub repository")
    parser.add_argument(
        "--agent",
        action="append",
        default=[],
        metavar="ROLE=SOURCE",
        help="a folder or Hub repository, or a GGUF file in one",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for the system")
    inner = "kind of the inner links; one with weights is a starting point for training (default: %(default)s)"
    kinds = (EXPECTED_EMBEDDING, *INNER_KINDS)
    parser.add_argument("--inner", default=EXPECTED_EMBEDDING, choices=kinds, help=inner)
    outer = "kind of the outer links, one with a linear path (default: %(default)s)"
    parser.add_argument("--outer", default="outer_linear_adapter", choices=list(OUTER_KINDS), help=outer)
    parser.add_argument("--rounds", type=int, help="default number of recursion rounds of the system")
    parser.add_argument("--latent-steps", type=int, help="default number of latent steps of the system")
    parser.add_argument("--halting", action="store_true", help="end latent steps where an agent has finished")
    parser.add_argument("--dtype", default="auto", help="of the agents (default: as stored, or what computes faster)")
    parser.add_argument("--copy-agents", action="store_true", help="write the agents too, instead of naming them")


def run(arguments: argparse.Namespace) -> int:
    sources = {}
    for text in arguments.agent:
        role, equals, source = text.partition("=")
        if not (role and equals and source):
            raise InputError("An agent is not given as ROLE=SOURCE.", where="--agent", found=text)
        sources[role] = agent_entry(source)
    if arguments.style is not None:
        keep, folder = None, Path()
        config = RecursiveMASConfig(style=Path(arguments.style).stem, **read_style(arguments.style))
    else:
        keep = load_mas_system(arguments.system, dtype=arguments.dtype)
        folder = Path(keep.config.name_or_path or "")
        config = copy.deepcopy(keep.config)
        unknown = sorted(set(sources) - set(config.agents))
        if unknown or not sources:
            found, expected = ", ".join(unknown) or "none", ", ".join(config.agents)
            raise InputError(
                "Name the roles whose agents are swapped.", where="--agent", found=found, expected=expected
            )
    for role, entry in sources.items():
        config.agents[role] = entry
    for field, value in (("num_rounds", arguments.rounds), ("latent_steps", arguments.latent_steps)):
        if value is not None:
            setattr(config, field, value)
    config.latent_halting = config.latent_halting or arguments.halting
    mas = init_system(config, folder, arguments.inner, arguments.outer, arguments.dtype, keep, tuple(sources))
    mas.save_pretrained(arguments.output, copy_agents=arguments.copy_agents)
    for link in mas.topology.links:
        shared = len(shared_tokens(mas.agents[link.source], mas.agents[link.target])[0])
        print(f"{link.name}: {mas.outer_links[link.name].kind}, {shared} shared tokens")
    print(f"written to {arguments.output}")
    return 0
