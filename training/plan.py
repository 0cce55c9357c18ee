"""What a training run needs in memory, part by part, from configurations alone: nothing is loaded.

One pass of each agent, forwards and back, is run on torch's `meta` device, where tensors have sizes and no contents,
and what is alive is counted; the rest is arithmetic. Positions are counted as if everything stood behind the first
slot of a prompt; what stands in front of it is read once without gradients, so that such prompts need less.
"""

import copy
import weakref
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..bases_recursivemas import load_model_config
from ..configuration_recursivemas import RecursiveMASConfig
from ..errors_recursivemas import CheckpointError, InputError, RecursiveMASError
from ..gguf_recursivemas import agent_place
from ..links_recursivemas import INNER_KINDS, OUTER_KINDS, InnerLink, OuterLink
from ..sources_recursivemas import Source
from ..system_loader import find_system, released_config, released_shape
from .arguments import LinkTrainingArguments
from .layers import keep_only_inputs_of
from .losses import LOGITS_AT_ONCE

POSITIONS = 4096  # of prompt and target where nobody says, and the agents have as many
ATTENTION = "recursivemas_planned"
ADAM = 2  # values of AdamW beside each weight


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that come into being here and are alive.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in given and id(storage) not in self._known:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        name, size = id(storage), storage.nbytes()

        def gone(_: object) -> None:
            self.now -= size
            del self._known[name]

        self._known[name] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _PlannedAttention(torch.autograd.Function):
    """Keeps what the fused kernels keep: queries, keys, values, the result, and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        mask = query.new_empty(query.shape[0], 1, query.shape[-2], key.shape[-2])  # each kernel makes one of its own
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32), mask)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _planned_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # padded rows have a mask, with which transformers repeats keys and values
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return _PlannedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _planned_attention)


def meta_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A base model without weights, frozen."""
    config = copy.deepcopy(config.get_text_config())  # a model writes into it
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    return model.requires_grad_(False).eval()


class Pass:
    """The bytes of one pass of an agent over prompts, forwards and back.

    Attributes:
        kept: what lies there until the way back.
        peak: the most at any time.
        reading: the most at any time of a pass without gradients.
        keys: what a cache of these positions holds.
    """

    def __init__(self, model: PreTrainedModel, batch: int, positions: int, layers: bool) -> None:
        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.keys = 2 * config.num_hidden_layers * batch * positions * heads * width * model.dtype.itemsize
        mask = batch * positions**2  # of rows of different lengths
        self.reading = self._run(model, batch, positions, gradients=False)[1] + mask
        if layers:
            keep_only_inputs_of(model)
        self.kept, self.peak = (size + mask for size in self._run(model, batch, positions, gradients=True))

    def _run(self, model: PreTrainedModel, batch: int, positions: int, gradients: bool) -> tuple[int, int]:
        with LiveBytes() as live, torch.set_grad_enabled(gradients):
            embeds = torch.empty(
                batch, positions, model.config.hidden_size, dtype=model.dtype, device="meta", requires_grad=gradients
            )
            decoder = model.get_decoder()
            ids = torch.arange(positions, device="meta")[None]
            states = decoder(inputs_embeds=embeds, position_ids=ids, use_cache=False).last_hidden_state
            kept = live.now
            if gradients:
                states.backward(torch.empty_like(states))
        return kept, live.peak


def logits_peak(model: PreTrainedModel, rows: int, distill: bool) -> int:
    """The most bytes of a loss over the vocabulary, forwards and back, for as many positions as it takes at a time."""
    vocabulary, width = model.config.vocab_size, model.config.hidden_size
    number = min(rows, max(1, LOGITS_AT_ONCE // vocabulary))
    head = model.get_output_embeddings()
    with LiveBytes() as live, torch.enable_grad():
        states = torch.empty(number, width, dtype=model.dtype, device="meta", requires_grad=True)
        if distill:
            with torch.no_grad():
                wanted = head(states).float().log_softmax(-1)
            found = head(states).float().log_softmax(-1)
            losses = ((wanted - found) * wanted.exp()).sum(-1)
        else:
            labels = torch.empty(number, dtype=torch.long, device="meta")
            losses = nn.functional.cross_entropy(head(states).float(), labels, reduction="none")
        losses.sum().backward()
    return live.peak


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
    for role, entry in config.agents.items():
        shape = released_shape(entry["source"])
        try:
            models[role] = shape or load_model_config(agent_place(source, entry).fetch(()), role)
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
    """The parts of a run's memory.

    Args:
        kind: whose links are trained, "inner" or "outer".
        arguments: the settings of the run.
        config: of the system.
        models: role -> configuration of the base model.
        targets: of the positions, how many are a target's; default all.

    Returns:
        "positions" of prompt and target that it is for; "parts" name -> bytes ("weights", "links", "optimizer",
        "activations", "logits"), "total"; "agents" role -> bytes of weights.
    """
    dtypes = {role: _dtype(arguments.dtype, model) for role, model in models.items()}
    limits = [getattr(m.get_text_config(), "max_position_embeddings", None) or POSITIONS for m in models.values()]
    positions = arguments.max_length or min(POSITIONS, *limits)
    bases = {role: meta_model(model, dtypes[role]) for role, model in models.items()}
    weights = {role: sum(p.numel() * p.itemsize for p in base.parameters()) for role, base in bases.items()}
    inner, outer = _links(config, bases, arguments)
    if kind == "inner":
        trained = [link for role, link in inner.items() if arguments.roles is None or role in arguments.roles]
    else:
        trained = [link for name, link in outer.items() if arguments.links is None or name in arguments.links]
        trained += inner.values() if arguments.train_inner_links else ()
    size = sum(p.numel() for link in trained for p in link.parameters()) * 4
    rest = sum(p.numel() for link in (*inner.values(), *outer.values()) for p in link.parameters()) * 4 - size
    batch = arguments.per_device_train_batch_size
    measure = _outer_activations if kind == "outer" else _inner_activations
    activations, logits = measure(arguments, config, bases, batch, positions, targets or positions)
    parts = {"weights": sum(weights.values()), "links": rest + 2 * size, "optimizer": ADAM * size}
    parts |= {"activations": activations, "logits": logits}
    return {"positions": positions, "parts": parts, "total": sum(parts.values()), "agents": weights}


def _outer_activations(
    arguments: LinkTrainingArguments,
    config: RecursiveMASConfig,
    bases: dict[str, PreTrainedModel],
    batch: int,
    positions: int,
    targets: int,
) -> tuple[int, int]:
    """The most bytes of what is computed, and of them those of a loss over the vocabulary."""
    topology, rounds = config.topology, arguments.num_rounds or config.most_rounds
    schedule = topology.schedule(rounds)
    layers, stages = arguments.layer_checkpointing, arguments.activation_checkpointing
    passes = {role: Pass(base, batch, positions, layers) for role, base in bases.items()}
    steps = max(0, (arguments.latent_steps or config.latent_steps) - 1)
    distill = arguments.loss == "distill"
    logits = {role: logits_peak(base, batch * targets, distill) for role, base in bases.items()}
    found: list[tuple[int, int, int]] = []  # of each pass: kept, peak, and of the peak what is logits
    for round_index, role in schedule:
        each, last = passes[role], (round_index, role) == schedule[-1]
        hears = bool(topology.incoming(role, round_index))
        counts = last or (arguments.supervise == "receivers" and hears)
        counts = counts and (round_index == rounds or arguments.earlier_rounds_weight > 0)
        rolls = arguments.latents == "rollout" and not last
        if counts or (arguments.latents == "teacher"):
            if hears:
                more = logits[role] if counts else 0
                found.append((each.kept, max(each.peak, each.kept + more), more))
            else:
                found.append((0, each.reading, 0))
        if counts and distill:
            found.append((0, each.reading, 0))
        if rolls:
            through = arguments.train_inner_links or (arguments.supervise == "decoder" and hears)
            keys = each.keys if not through or layers else each.keys * (1 + steps)
            both = hears and through
            found.append((keys + (each.kept if both else 0), keys + (each.peak if both else each.reading), 0))
    largest = max(peak - kept for kept, peak, _ in found)
    if stages:  # on the way back the next pass is computed again before all of the one before it is gone
        index = max(range(len(found)), key=lambda place: found[place][1])
        peak = found[index][1] + max((kept for place, (kept, _, _) in enumerate(found) if place != index), default=0)
    else:
        peak = sum(kept for kept, _, _ in found) + largest
    more = min(peak, max(more for *_, more in found))
    return peak - more, more


def _inner_activations(
    arguments: LinkTrainingArguments,
    config: RecursiveMASConfig,
    bases: dict[str, PreTrainedModel],
    batch: int,
    positions: int,
    targets: int,
) -> tuple[int, int]:
    """The same of the inner loop: states are read without gradients; in the last steps latents replace texts."""
    replays = arguments.target == "mixture" and arguments.replay_steps > 0
    roles = arguments.roles or list(bases)
    passes = {role: Pass(bases[role], batch, positions, layers=False) for role in roles}
    peak = max(each.peak if replays else each.reading for each in passes.values())
    more = max(logits_peak(bases[role], batch * targets, distill=True) for role in roles)
    return peak, more if replays or arguments.target == "mixture" else 0


def _links(
    config: RecursiveMASConfig, bases: dict[str, PreTrainedModel], arguments: LinkTrainingArguments
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Inner and outer links on the `meta` device; whose kind only its file knows counts as the release's."""
    widths = {role: base.config.hidden_size for role, base in bases.items()}
    inner: dict[str, nn.Module] = {}
    outer: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for role, entry in config.agents.items():
            kind = arguments.inner_kind or (entry.get("inner_link") or {}).get("kind") or "ln_res_adapter"
            if kind in INNER_KINDS:
                inner[role] = InnerLink(kind, widths[role])
        for link, entry in zip(config.topology.links, config.links, strict=True):
            kind = arguments.outer_kind or entry.get("kind") or "outer_ln_res_adapter"
            kind = "outer_res_adapter" if kind == "outer_linear_adapter" and not arguments.outer_kind else kind
            if kind in OUTER_KINDS:
                outer[link.name] = OuterLink(kind, widths[link.source], widths[link.target])
    return inner, outer


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
