"""Make a system of any agents without training: links in closed form, and a probe that says whether they hold.

Inner links: the expected next embedding under the agent's own output distribution, sharpened and rescaled, over its
vocabulary or a codebook of it. Outer links: the identity between agents of one base, else a ridge regression between
the token embeddings that two vocabularies share. A style is sequential, mixture, distillation, deliberation, or a
JSON file with `stages`, `links`, `decoding_role` and `prompts`. With --system, agents of an existing system are
swapped, and only the links that touch them are new.

The probe measures text hand-over, nothing, and latents under a few settings. It takes the simplest setting that no
other is surely better than, and gives a verdict on fresh questions: its own, on facts that only the sender reads, or
yours (--probe-data), which the whole system answers. The figures are in probe.json of the output. What an option says
is not chosen.

Examples:
  recursivemas init-links --style distillation --agent expert=org/model-a --agent learner=./model-b --output mine
  recursivemas init-links --style my-style.json --agent planner=a --agent solver=b --output mine
  recursivemas init-links --style distillation --agent expert=org/name/file.gguf --agent learner=b --output mine
  recursivemas init-links --system mine --agent learner=org/model-c --output mine-2
  recursivemas init-links --style distillation --agent expert=a --agent learner=b --output mine \\
      --probe-data questions.jsonl --inner codebook --snap
  recursivemas init-links --style distillation --agent expert=a --agent learner=b --output to-be-trained \\
      --inner ln_res_adapter --outer outer_ln_res_adapter
"""

import argparse
import copy
import json
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ..adapters_recursivemas import adapt, adapter_place
from ..agent_recursivemas import RecursiveMASAgent
from ..bases_recursivemas import SMALL_FILES, WEIGHT_FILES
from ..configuration_recursivemas import RecursiveMASConfig
from ..errors_recursivemas import InputError
from ..evaluation.commands import (
    add_replace_argument,
    add_trust_argument,
    limit_threads,
    validate_arguments,
    validate_output,
)
from ..evaluation.results import text_of
from ..fields_recursivemas import number, validate_field, whole
from ..gguf_recursivemas import agent_place
from ..links_recursivemas import CACHE, INNER_KINDS, OUTER_KINDS
from ..loading_recursivemas import validate_tokenizer
from ..mixtures_recursivemas import CODEBOOK, EXPECTED_EMBEDDING, ExpectedEmbeddingLink
from ..modeling_recursivemas import RecursiveMASModel
from ..sharing_recursivemas import Bases
from ..sources_recursivemas import Source
from ..system_loader import load_mas_system, read_style
from .probe import FREE, Setting, probe, read_questions, table
from .start import (
    CODEBOOK_SIZE,
    TEMPERATURE,
    codebook,
    fit_outer_link,
    shared_tokens,
    start_inner_link,
    start_mixture,
    texts_of,
)

MIXTURES = (EXPECTED_EMBEDDING, CODEBOOK)  # the inner kinds that need no training


def load_agent(
    config: RecursiveMASConfig,
    role: str,
    folder: Path,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    bases: Bases | None = None,
) -> RecursiveMASAgent:
    """An agent of a configuration, with the expected embedding as its inner link; see `init_system`."""
    bases = bases or Bases()
    place = agent_place(Source(str(folder)), config.agents[role]).fetch((*SMALL_FILES, *WEIGHT_FILES))
    tokenizer = bases.tokenizer(place, role, trust_remote_code)
    model = bases.model(place, role, {"dtype": dtype, "trust_remote_code": trust_remote_code})
    if (adapter := adapter_place(Source(str(folder)), config.agents[role])) is not None:
        model = adapt(model, adapter, role)
    validate_tokenizer(tokenizer, model.config, role, config.chat_template_kwargs)
    width = model.config.get_text_config().hidden_size
    return RecursiveMASAgent(model, ExpectedEmbeddingLink(width), tokenizer, role)


def agent_entry(source: str) -> dict[str, Any]:
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
    temperature: float = TEMPERATURE,
    norm: float | str | None = "mean",
    codebook_size: int = CODEBOOK_SIZE,
    snap: bool = False,
    trusted: Collection[str] = (),
    texts: Callable[[RecursiveMASModel], Iterable[str]] = lambda mas: (),
) -> RecursiveMASModel:
    """A system whose links are in closed form, not probed.

    Args:
        config: of the system; for links without training, with `latent_halting` and without `control_tokens`.
        folder: where `agents/…` sources live.
        inner_kind: `expected_embedding` or `codebook`; or a trainable kind at its starting point.
        outer_kind: a kind with a linear path.
        dtype: of the agents.
        keep: a system whose agents and links stay, but for the swapped ones.
        swapped: roles whose agents are new.
        temperature, norm: of new inner links, see `start_mixture`.
        codebook_size: of new inner links, see `codebook`.
        snap: whether new outer links snap.
        trusted: roles whose agents may run code of their own.
        texts: what the system's agents read and say beside their prompts, for codebooks.
    """
    topology = config.validate_system()
    new, bases = topology.roles if keep is None else swapped, Bases()
    agents = {
        role: load_agent(config, role, folder, dtype, role in trusted, bases)
        if keep is None or role in new
        else keep.agents[role]
        for role in topology.roles
    }
    outer_links = {
        link.name: fit_outer_link(agents[link.source], agents[link.target], outer_kind)
        if keep is None or {link.source, link.target} & set(new)
        else keep.outer_links[link.name]
        for link in topology.links
    }
    for link in topology.links:
        if keep is None or {link.source, link.target} & set(new):
            outer_links[link.name].snap = snap and outer_kind != CACHE
    config.name_or_path = str(folder)
    for role in new:
        config.agents[role].pop("inner_link", None)
    mas = RecursiveMASModel(config, agents, outer_links)
    known = [*texts(mas)] if inner_kind == CODEBOOK else []
    for role in new:
        if inner_kind in MIXTURES:
            words = [*texts_of(config.prompts[role]), *known]
            token_ids = codebook(agents[role], codebook_size, words) if inner_kind == CODEBOOK else None
            mas.set_link(role, start_mixture(agents[role], temperature, norm, token_ids))
        else:
            mas.set_link(role, start_inner_link(agents[role], inner_kind))
    return mas


def _norm(text: str) -> float | str:
    """What `--norm` says: mean, none or a number."""
    return text if text in ("mean", "none") else float(text)


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
    adapter = "a LoRA on that role's agent, in PEFT's files: a folder or Hub repository"
    parser.add_argument("--adapter", action="append", default=[], metavar="ROLE=SOURCE", help=adapter)
    parser.add_argument("--output", required=True, type=Path, help="folder for the system")
    add_replace_argument(parser)
    inner = "kind of the inner links; one with weights is a starting point for training (default: %(default)s)"
    kinds = (*MIXTURES, *INNER_KINDS)
    parser.add_argument("--inner", default=EXPECTED_EMBEDDING, choices=kinds, help=inner)
    outer = (
        "kind of the outer links: one with a linear path; or cache, between roles of one base: the receiver goes on"
    )
    outer += " from the sender's working memory, not probed (default: %(default)s)"
    parser.add_argument("--outer", default="outer_linear_adapter", choices=[*OUTER_KINDS, CACHE], help=outer)
    chosen = f"default: {TEMPERATURE}, unless the probe finds another surely better"
    parser.add_argument("--temperature", type=float, help=f"of the inner links' mixture ({chosen})")
    norm = "length of every latent: mean (of the token embeddings), none, or a number (default: mean, likewise)"
    parser.add_argument("--norm", type=_norm, help=norm)
    size = "tokens of `--inner codebook` (default: %(default)s)"
    parser.add_argument("--codebook-size", type=int, default=CODEBOOK_SIZE, metavar="N", help=size)
    snap = "hand over the nearest token's embedding in place of each latent (default: no, likewise)"
    parser.add_argument("--snap", action=argparse.BooleanOptionalAction, help=snap)
    parser.add_argument("--rounds", type=int, help="default number of recursion rounds of the system")
    parser.add_argument("--latent-steps", type=int, help="default number of latent steps of the system")
    halting = "end latent steps where an agent has finished; without, every rollout has all steps (default: end)"
    parser.add_argument("--halting", action=argparse.BooleanOptionalAction, help=halting)
    control = "let latents that say a special token travel, as the release does (default: no)"
    parser.add_argument("--control-tokens", action=argparse.BooleanOptionalAction, help=control)
    parser.add_argument("--no-probe", action="store_true", help="take the defaults, and say nothing of their worth")
    rows = (
        'your own questions (JSON lines with the fields that the prompts name, and "answer" where it is known); a '
        "codebook holds their tokens"
    )
    parser.add_argument("--probe-data", metavar="FILE", help=rows)
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the report")
    parser.add_argument("--dtype", default="auto", help="of the agents (default: as stored, or what computes faster)")
    add_trust_argument(parser)
    parser.add_argument("--copy-agents", action="store_true", help="write the agents too, instead of naming them")


def run(arguments: argparse.Namespace) -> int:
    _validate(arguments)
    sources = {role: agent_entry(source) for role, source in _by_role(arguments.agent, "--agent")}
    for role, source in _by_role(arguments.adapter, "--adapter"):
        if role not in sources:
            found, expected = role, ", ".join(sources) or "a role of --agent"
            raise InputError("An adapter needs its role's agent.", where="--adapter", found=found, expected=expected)
        sources[role]["adapter"] = agent_entry(source)
    if arguments.style is not None:
        keep, folder = None, Path()
        config = RecursiveMASConfig(style=Path(arguments.style).stem, **read_style(arguments.style))
        config.latent_halting, config.control_tokens = True, False
    else:
        trusted = {role: True for role in arguments.trust_remote_code if role not in sources}
        keep = load_mas_system(arguments.system, dtype=arguments.dtype, trust_remote_code=trusted)
        folder = Path(keep.config.name_or_path or "")
        config = copy.deepcopy(keep.config)
        unknown = sorted(set(sources) - set(config.agents))
        if unknown or not sources:
            found, expected = ", ".join(unknown) or "none", ", ".join(config.agents)
            raise InputError(
                "Name the roles whose agents are swapped.", where="--agent", found=found, expected=expected
            )
    validate_output(arguments.output, arguments.replace)
    for role, entry in sources.items():
        config.agents[role] = entry
    for field, value in (
        ("num_rounds", arguments.rounds),
        ("latent_steps", arguments.latent_steps),
        ("latent_halting", arguments.halting),
        ("control_tokens", arguments.control_tokens),
    ):
        if value is not None:
            setattr(config, field, value)
    # What is said is not chosen; the first of what is free is the default.
    said = {name: getattr(arguments, name) for name in FREE if getattr(arguments, name) is not None}
    said = {name: None if value == "none" else value for name, value in said.items()}
    free = {name: values for name, values in FREE.items() if name not in said}
    settings: dict[str, Any] = {name: values[0] for name, values in free.items()} | said
    mas = init_system(
        config, folder, arguments.inner, arguments.outer, arguments.dtype, keep, tuple(sources),
        codebook_size=arguments.codebook_size, trusted=arguments.trust_remote_code,
        texts=partial(_texts, arguments.probe_data if arguments.no_probe else None), **settings,
    )  # fmt: skip
    result: dict[str, Any] | None = None
    if arguments.inner in MIXTURES and arguments.outer != CACHE and not arguments.no_probe:
        limit_threads(mas)
        start = Setting(codebook=arguments.inner == CODEBOOK, **settings)
        new = mas.topology.roles if keep is None else tuple(sources)
        result = probe(mas, new, start, free, arguments.probe_data, arguments.codebook_size)
    files = {} if result is None else {"probe.json": text_of(result)}
    mas.save_pretrained(arguments.output, copy_agents=arguments.copy_agents, files=files)
    links = {
        link.name: {
            "kind": mas.outer_links[link.name].kind,
            "shared_tokens": len(shared_tokens(mas.agents[link.source], mas.agents[link.target])[0]),
        }
        for link in mas.topology.links
    }
    if arguments.json:
        print(json.dumps({"output": str(arguments.output), "links": links, "probe": result}, ensure_ascii=False))
        return 0
    for name, link in links.items():
        print(f"{name}: {link['kind']}, {link['shared_tokens']} shared tokens")
    for each in result["probes"] if result else []:
        print("\n".join(["", *([table(each), ""] if each["figures"] else []), each["verdict"]]))
    if arguments.inner not in MIXTURES:
        print("to be trained (docs/training.md): inner links with weights are a starting point, and are not probed")
    print(f"written to {arguments.output}")
    return 0


def _texts(path: str | None, mas: RecursiveMASModel) -> list[str]:
    """What stands in a user's questions, all of them; the probe, where it runs, reads its own."""
    questions = [] if path is None else read_questions(path, mas.input_fields, None)
    return [text for question in questions for text in (*question.inputs.values(), question.answer or "")]


def _by_role(texts: list[str], option: str) -> list[tuple[str, str]]:
    """Role and source of each ROLE=SOURCE."""
    pairs = []
    for text in texts:
        role, equals, source = text.partition("=")
        if not (role and equals and source):
            raise InputError("What a role gets is given as ROLE=SOURCE.", where=option, found=text)
        pairs.append((role, source))
    return pairs


def _validate(arguments: argparse.Namespace) -> None:
    """Raises InputError for options that say nothing together; before any agent is loaded."""
    trainable = arguments.inner not in MIXTURES
    of_codebook = arguments.inner == CODEBOOK and arguments.no_probe
    if of_codebook and not arguments.probe_data:
        raise InputError(
            "A codebook needs texts that hold the tokens which its agent says.",
            where="--inner codebook --no-probe",
            hint="name questions like yours with --probe-data, or let the probe ask",
        )
    for option, useless in (
        ("--temperature", trainable and arguments.temperature is not None),
        ("--norm", trainable and arguments.norm is not None),
        ("--probe-data", bool(arguments.probe_data) and (trainable or arguments.no_probe) and not of_codebook),
    ):
        if useless:
            found = "--no-probe" if option == "--probe-data" and arguments.no_probe else f"--inner {arguments.inner}"
            raise InputError("An option does nothing here.", where=option, found=found)
    validate_field(arguments.codebook_size, whole(1, 10_000_000), "--codebook-size", InputError)
    for name in ("temperature", "norm"):
        if (value := getattr(arguments, name)) not in (None, "mean", "none"):
            validate_field(value, number(1e-6, 1e6), f"--{name}", InputError)
    validate_arguments(arguments)
