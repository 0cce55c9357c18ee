"""What a training run needs in memory, part by part, from configurations alone: nothing is loaded.

A step of the objective itself, forwards and back, is run on torch's `meta` device, where tensors have sizes and no
contents, and what is alive is counted. Every prompt is as long as it may be, and as if everything stood behind its
first slot; what stands in front of one is read once without gradients, so that such prompts need less.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..agent_recursivemas import RecursiveMASAgent
from ..bases_recursivemas import load_model_config
from ..configuration_recursivemas import RecursiveMASConfig
from ..errors_recursivemas import CheckpointError, InputError, RecursiveMASError
from ..gguf_recursivemas import agent_place
from ..links_recursivemas import (
    ABLATION_KINDS,
    CACHE,
    INNER_KINDS,
    RESAMPLER,
    SOFT_PROMPT,
    AnyInnerLink,
    AnyOuterLink,
    CacheLink,
    InnerLink,
    OuterLink,
    ResamplingLink,
    SoftPromptLink,
)
from ..mixtures_recursivemas import ExpectedEmbeddingLink
from ..prompts_recursivemas import Slot
from ..sharing_recursivemas import BASE_FILES, Shared
from ..sources_recursivemas import Source
from ..system_loader import find_system, released_config, released_shape
from .arguments import LinkTrainingArguments
from .data import Example, Part, Row
from .objectives import InnerObjective, LinkObjective, OuterObjective
from .rehearsal import ATTENTION, Rehearsal, SizesOnly
from .run import DEFAULT_INNER_KIND, inner_settings, outer_settings, trained_links
from .store import TensorStore

POSITIONS = 4096  # of prompt and target where nobody says, and the agents have as many
FEW = 2  # layers of a model, where all are alike, and latent steps that are rehearsed, and one more
ADAM = 2  # values of AdamW beside each weight


def meta_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A base model without weights, frozen."""
    config = copy.deepcopy(config.get_text_config())  # a model writes into it
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    return model.requires_grad_(False).eval()


def read_configs(
    system: str, arguments: LinkTrainingArguments
) -> tuple[RecursiveMASConfig, dict[str, PreTrainedConfig]]:
    """The configurations of a system and of its agents' base models: out of files, or of a released system's shapes.

    Raises:
        InputError, ConfigError, CheckpointError: one of them is not there, or wrong.
    """
    name = find_system(system)
    source = Source(name, hub={"local_files_only": "/" in name})
    if "/" in name or source.folder is not None:
        config = RecursiveMASConfig.from_dict(source.json("config.json"), name_or_path=name)
    else:
        config, _ = released_config(name, task=arguments.task)
    config.validate_system()
    models = {}
    bases, share = Shared[PreTrainedConfig](BASE_FILES), (cast(dict, arguments.load) or {}).get("share_bases", True)
    for role, entry in config.agents.items():
        shape = released_shape(entry["source"])
        try:
            if shape is None:
                place = agent_place(source, entry).fetch(())
                here = any(Path(place.path).glob("*.safetensors"))
                shape = bases.get(place, () if share else (role,), partial(load_model_config, place, role), here)
            models[role] = shape
        except RecursiveMASError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError("An agent's configuration is not here.", where=role, found=error) from error
    return config, models


def plan(kind: str, arguments: LinkTrainingArguments) -> dict[str, Any]:
    """Bytes that a run needs by part, and their sum: its peak; see `plan_of`.

    Raises:
        InputError: nothing is trained, or there is no such system; see `read_configs`.
    """
    if kind not in ("inner", "outer"):
        raise InputError("Nothing is trained.", where="--dry-run", found=kind, expected="inner or outer")
    config, models = read_configs(arguments.system, arguments)
    return plan_of(kind, arguments, config, models)


def plan_of(
    kind: str,
    arguments: LinkTrainingArguments,
    config: RecursiveMASConfig,
    models: dict[str, PreTrainedConfig],
    targets: int | None = None,
) -> dict[str, Any]:
    """The parts of a run's memory at its peak.

    Args:
        kind: whose links are trained, "inner" or "outer".
        arguments: the settings of the run.
        config: of the system.
        models: role -> configuration of the base model; roles with one object share one model.
        targets: tokens of each target text; default as many as make prompts with texts as long as those with latents.

    Returns:
        "positions" of prompt and target that it is for; "parts" name -> bytes ("weights", "links" with their
        gradients, "optimizer", "activations", "logits": of what is computed, tensors over a vocabulary), "total";
        "agents" role -> bytes of weights.
    """
    limits = [getattr(m.get_text_config(), "max_position_embeddings", None) or POSITIONS for m in models.values()]
    positions = arguments.max_length or min(POSITIONS, *limits)
    loaded: dict[int, PreTrainedModel] = {}
    for model in models.values():
        if id(model) not in loaded:
            loaded[id(model)] = meta_model(model, _dtype(arguments.dtype, model))
    bases = {role: loaded[id(model)] for role, model in models.items()}
    weights = {role: _size(base) for role, base in bases.items()}
    parts = {"weights": sum(map(_size, loaded.values()))}
    objective = _objective(kind, arguments, _system(kind, arguments, config, bases))
    links = [agent.inner_link for agent in objective.mas.agents.values()] + [*objective.mas.outer_links.values()]
    size = _size(objective)
    parts |= {"links": sum(map(_size, links)) + size, "optimizer": ADAM * size}
    activations, logits = _largest(objective, arguments, positions, targets)
    parts |= {"activations": activations, "logits": logits}
    return {"positions": positions, "parts": parts, "total": sum(parts.values()), "agents": weights}


def _size(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(parameter.nbytes for parameter in module.parameters())


def _system(
    kind: str, arguments: LinkTrainingArguments, config: RecursiveMASConfig, bases: dict[str, PreTrainedModel]
) -> SimpleNamespace:
    """What an objective asks of a `RecursiveMASModel`, without contents."""
    # Nothing is encoded here, and no row ends.
    tokenizer: Any = SimpleNamespace(eos_token_id=0, added_tokens_decoder={}, all_special_ids=[])
    inner, outer = _links(kind, arguments, config, bases)
    agents = {role: RecursiveMASAgent(base, inner[role], tokenizer, role).eval() for role, base in bases.items()}
    for part in (*agents.values(), *outer.values()):
        part.requires_grad_(False)
    device = torch.device("meta")
    return SimpleNamespace(agents=agents, outer_links=outer, config=config, topology=config.topology, device=device)


def _links(
    kind: str, arguments: LinkTrainingArguments, config: RecursiveMASConfig, bases: dict[str, PreTrainedModel]
) -> tuple[dict[str, AnyInnerLink], dict[str, AnyOuterLink]]:
    """Inner and outer links on the `meta` device; whose kind only its file knows counts as the release's."""
    widths = {role: cast(nn.Embedding, base.get_input_embeddings()).embedding_dim for role, base in bases.items()}
    inner: dict[str, AnyInnerLink] = {}
    outer: dict[str, AnyOuterLink] = {}
    with torch.device("meta"):
        for role, entry in config.agents.items():
            present = (entry.get("inner_link") or {}).get("kind") or "ln_res_adapter"
            started = kind == "inner" and role in (arguments.roles or config.agents)
            if started and (arguments.inner_kind or present not in INNER_KINDS):
                present = arguments.inner_kind or DEFAULT_INNER_KIND
            trained = present in INNER_KINDS or present in ABLATION_KINDS
            inner[role] = (
                InnerLink(present, widths[role]) if trained else ExpectedEmbeddingLink(widths[role], norm=1.0)
            )
        for link, entry in zip(config.topology.links, config.links, strict=True):
            present = entry.get("kind") or "outer_ln_res_adapter"
            if kind == "outer" and link.name in (arguments.links or [link.name]):
                present = arguments.outer_kind or present.replace("outer_linear_adapter", "outer_res_adapter")
            ends = widths[link.source], widths[link.target]
            if present == RESAMPLER:
                outer[link.name] = ResamplingLink(*ends, arguments.positions)
            elif present == SOFT_PROMPT:
                outer[link.name] = SoftPromptLink(*ends, arguments.positions)
            else:
                outer[link.name] = CacheLink(*ends) if present == CACHE else OuterLink(present, *ends)
    return inner, outer


def _objective(kind: str, arguments: LinkTrainingArguments, mas: Any) -> LinkObjective:
    """What is trained, as in `build_objective`, just before the step in which most is there."""
    objective: LinkObjective
    if kind == "inner":
        roles = arguments.roles or list(mas.agents)
        references = {role: ExpectedEmbeddingLink(mas.agents[role].hidden_size, norm=1.0) for role in roles}
        for role, reference in references.items():
            reference.bind(mas.agents[role].model, mas.agents[role].control_token_ids)
        objective = InnerObjective(mas, roles, inner_settings(arguments), references)
        objective.step = arguments.max_steps - 1  # replays and rollouts come late
    else:
        settings = dataclasses.replace(outer_settings(arguments), control_tokens=True)  # most latents
        objective = OuterObjective(mas, *trained_links(arguments, mas), settings)
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)  # counted with the links
    return objective.train()


def _largest(
    objective: LinkObjective, arguments: LinkTrainingArguments, positions: int, targets: int | None
) -> tuple[int, int]:
    """The most bytes of what is computed in a step, and of them those of tensors over a vocabulary.

    What is alive in each part of a step grows with each layer and each latent step by the same bytes, and without
    layers' checkpointing, where each latent step keeps all keys anew, by evenly more: few of each are rehearsed.
    """
    steps = arguments.latent_steps or objective.mas.config.latent_steps
    few = range(FEW, FEW + (2 if arguments.layer_checkpointing else 4))
    teacher = isinstance(objective, OuterObjective) and arguments.latents == "teacher"
    counts = [steps] if teacher or steps <= few[-1] else few
    decoders = list({id(agent.decoder): agent.decoder for agent in objective.mas.agents.values()}.values())
    alike = [decoder for decoder in decoders if _alike(decoder)]
    found = []  # of each count of steps, the parts with all layers
    for count in counts:
        with _cut(dict.fromkeys(alike, FEW)):
            least = _rehearse(objective, arguments, positions, targets, count)
        whole = least
        for decoder in alike:
            missing = decoder.config.num_hidden_layers - FEW
            with _cut(dict.fromkeys(alike, FEW) | {decoder: FEW + 1}):
                more = _rehearse(objective, arguments, positions, targets, count)
            whole = whole + missing * (more - least)
        found.append(whole)
    parts = found[-1]
    if len(counts) > 1:
        slope, missing = found[-1] - found[-2], steps - counts[-1]
        parts = parts + missing * slope
        if len(counts) > 3:  # even growth, not a part's change from one peak to another
            bends = [found[i + 2] - 2 * found[i + 1] + found[i] for i in range(len(found) - 2)]
            parts = parts + (bends[0] == bends[1]) * bends[0] * missing * (missing + 1) // 2
    peak, wide = parts[parts[:, 0].argmax()].tolist()
    return peak - wide, wide


def _rehearse(
    objective: LinkObjective, arguments: LinkTrainingArguments, positions: int, targets: int | None, steps: int
) -> torch.Tensor:
    """Of each part of a step, as it runs: the most bytes, and of them those of tensors over a vocabulary, (parts, 2).

    Prompts are the longest ones, their slots stand in front, and one row is longer than the others. A prompt with
    latents in its slots and the target behind it has so many positions; of the inner loop, one with texts.
    """
    mas, outer = objective.mas, isinstance(objective, OuterObjective)
    batch, rounds = arguments.per_device_train_batch_size, arguments.num_rounds or mas.config.most_rounds
    schedule = [(r, role) for r, role in mas.topology.schedule(rounds) if outer or r == rounds]
    slots = {stage: [link.source for link in mas.topology.incoming(stage[1], stage[0])] for stage in schedule}
    if targets is None:  # the last token is no message's
        targets = (arguments.latent_steps or mas.config.latent_steps) + 1
        if not outer:
            targets = max(2, positions // (1 + max(map(len, slots.values()))))
    teacher = outer and arguments.latents == "teacher"
    thoughts = min(steps, targets - 1) if teacher else steps
    examples = [Example(Row({}, {}), {}) for _ in range(batch)]
    for stage, senders in slots.items():
        filled = len(senders) * (thoughts if outer else targets - 1) + targets
        for index, example in enumerate(examples):
            question = [index] * max(1, positions - filled - (index > 0))
            messages = {sender: [index] * (targets - 1) for sender in senders}
            example.parts[stage] = Part([*map(Slot, senders), question], [index] * targets, messages)
    sizes = frozenset(agent.get_input_embeddings().num_embeddings for agent in mas.agents.values())
    objective._kept = cast(TensorStore, SizesOnly())
    with Rehearsal(thoughts, batch == 1, sizes) as live, _told(objective, steps, live.mark):
        objective(examples)["loss"].backward()
    return torch.tensor([*live.peaks, (live.peak, live.wide_peak)])


@contextmanager
def _told(objective: LinkObjective, steps: int, begins: Callable[[], None]) -> Iterator[None]:
    """An objective that takes so many latent steps, and says when a stage begins, also when it is computed again."""
    own = vars(objective) | {}
    if isinstance(objective, OuterObjective):
        stage = objective._stage

        def told(*given: Any) -> Any:
            begins()
            return stage(*given)

        objective.latent_steps, objective._stage = steps, told  # type: ignore[method-assign, assignment]
    elif isinstance(objective, InnerObjective):
        objective.settings = dataclasses.replace(objective.settings, latent_steps=steps)
        objective._phases, objective._rolled = {}, 0
    yield
    vars(objective).pop("_stage", None)
    vars(objective).update(own)


def _alike(decoder: Any) -> bool:
    """Whether all layers of a model are of the same kind and size, and more than are rehearsed."""
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList) or len(decoder.layers) <= FEW + 1:
        return False
    kinds = {
        tuple((type(m), *((n, v) for n, v in vars(m).items() if isinstance(v, int | float | str) and n != "layer_idx"))
              for m in layer.modules()) + tuple(p.shape for p in layer.parameters())
        for layer in decoder.layers
    }  # fmt: skip
    return len(kinds) == 1 and len(set(getattr(decoder.config, "layer_types", None) or [""])) == 1


@contextmanager
def _cut(counts: dict[Any, int]) -> Iterator[None]:
    """Models with fewer layers."""
    own = {decoder: (decoder.layers, dict(vars(decoder.config))) for decoder in counts}
    for decoder, count in counts.items():
        decoder.layers = decoder.layers[:count]
        decoder.config.num_hidden_layers = count
        if getattr(decoder.config, "layer_types", None):
            decoder.config.layer_types = decoder.config.layer_types[:count]
    yield
    for decoder, (layers, settings) in own.items():
        decoder.layers = layers
        vars(decoder.config).update(settings)


def _dtype(name: str, config: PreTrainedConfig) -> torch.dtype:
    if name not in ("auto", ""):
        return getattr(torch, name.removeprefix("torch."))
    stored = config.get_text_config().dtype or config.dtype or torch.bfloat16
    return stored if isinstance(stored, torch.dtype) else getattr(torch, stored)


def describe(found: dict[str, Any]) -> str:
    """A plan for people."""
    lines = [f"at most {found['positions']} positions of prompt and target, from configurations alone"]
    lines += [
        f"  {name:<12}{size / 1e9:>8.2f} GB" for name, size in {**found["parts"], "peak": found["total"]}.items()
    ]
    return "\n".join(lines)
