"""What so many questions a second would need for each released system, on paper: GPUs, bytes between agents, cost.

Computed from the shapes of the released agents and published figures of GPUs; nothing runs. A pass takes the longer of
two times: reading what it must (weights once for all rows, each row's keys and values or recurrent state) and its
multiply-adds, each at the share of the published peak that is said to be reached. docs/scale.md says where the
figures come from.
"""

import argparse
import math
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from ..errors_recursivemas import InputError
from ..system_loader import released_config, released_shape, released_styles
from ..training.plan import meta_model
from .harness import Option, chosen, row


class Hardware(NamedTuple):
    """A GPU: bytes of memory, bytes a second, bfloat16 operations a second (dense), dollars an hour (of 2026)."""

    memory: float
    bandwidth: float
    operations: float
    price: float


HARDWARE = {"h100-sxm": Hardware(80e9, 3.35e12, 989e12, 3.0), "h200-sxm": Hardware(141e9, 4.8e12, 989e12, 4.0)}
LATENT = 4  # bytes of a number that travels: float32
ROOM = 0.9  # of a GPU's memory that weights and caches may take

OPTIONS = {
    "rate": Option("questions a second", 1000),
    "gpu": Option("of what kind", "h100-sxm", kind=str, choices=list(HARDWARE)),
    "side_by_side": Option("questions of a batch, as far as memory holds them", 64),
    "prompt_tokens": Option("tokens of an agent's prompt in its first round", 300),
    "later_tokens": Option("tokens of it that later rounds read anew, besides latents", 60),
    "answer_tokens": Option("tokens of an answer", 500),
    "bandwidth_share": Option("reached share of the bandwidth", 0.6, kind=float),
    "operations_share": Option("reached share of the operations", 0.5, kind=float),
    "busy": Option("share of the time that a GPU has work", 0.7, kind=float),
    "dataset": Option("whose recommended settings", "math500", kind=str),
}


class Agent:
    """What an agent's passes read and compute, in bfloat16.

    Attributes:
        width: of its latents.
        layers, head: bytes of the weights of its layers, and of its vocabulary projection.
        kept: bytes of all weights.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        text = config.get_text_config()
        model = meta_model(text, torch.bfloat16)
        embeddings: Any = model.get_input_embeddings()
        self.width, self.head = text.hidden_size, embeddings.weight.nbytes
        self.layers = sum(p.nbytes for p in model.get_decoder().parameters()) - self.head
        self.kept = sum(p.nbytes for p in model.parameters())
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
        self._position = 2 * heads * size * 2  # keys and values of a layer
        self._full, self._sliding = kinds.count("full_attention"), kinds.count("sliding_attention")
        self._window = getattr(text, "sliding_window", None) or 0
        self._state = 0
        if linear := kinds.count("linear_attention"):
            numbers = text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim
            self._state = linear * numbers * 4  # transformers keeps it in float32

    def cached(self, positions: float) -> float:
        """Bytes of a row's keys, values and states behind so many positions."""
        return self._position * (self._full * positions + self._sliding * min(positions, self._window)) + self._state

    def seconds(self, gpu: Hardware, rows: int, new: float, before: float, head: bool = False) -> float:
        """Of a pass over `new` positions a row behind `before` ones; `head`: with the vocabulary projection."""
        weights = self.layers + head * self.head
        moved = weights + rows * (self.cached(before) + self._state)  # a state is read and written
        return max(moved / gpu.bandwidth, weights * rows * new / gpu.operations)  # two bytes, two operations a weight


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    for name in ("bandwidth_share", "operations_share", "busy"):
        if not 0 < getattr(arguments, name) <= 1:
            what, found = "A share is more than 0 and at most 1.", getattr(arguments, name)
            raise InputError(what, where="--" + name.replace("_", "-"), found=found)
    full = HARDWARE[arguments.gpu]
    bandwidth, operations = full.bandwidth * arguments.bandwidth_share, full.operations * arguments.operations_share
    gpu = full._replace(bandwidth=bandwidth, operations=operations)
    rows = [_style(style, gpu, arguments) for style in released_styles()["styles"]]
    return chosen(arguments, *OPTIONS), rows


def _style(style: str, gpu: Hardware, arguments: argparse.Namespace) -> dict[str, Any]:
    """A released system's line: GPUs, and each agent's GPU seconds a question."""
    config, _ = released_config(style, arguments.dataset)
    topology, rounds, steps = config.topology, config.most_rounds, config.latent_steps
    agents = {}
    for role, entry in config.agents.items():
        shape = released_shape(entry["source"])
        if shape is None:
            raise InputError("The shape of an agent is not known here.", where=style, found=entry["source"])
        agents[role] = Agent(shape)
    schedule = topology.schedule(rounds)
    longest = arguments.prompt_tokens + arguments.answer_tokens + len(agents) * steps
    busy, batches = {}, {}
    for role, agent in agents.items():
        fit = int((ROOM * gpu.memory - agent.kept) / agent.cached(longest))
        if fit < 1:
            raise InputError("An agent does not fit the GPU.", where=f"{style}, {role}", found=arguments.gpu)
        busy[role], batches[role] = 0.0, min(arguments.side_by_side, fit)
    latency, answer, embeddings, travels = 0.0, 0.0, 0, 0
    stages: dict[tuple[int, tuple[str, ...]], float] = {}
    stage_of = {role: tuple(stage) for stage in topology.stages for role in stage}
    for turn in schedule:
        round_index, role = turn
        agent, count = agents[role], batches[role]
        slots = steps * len(topology.incoming(role, round_index))
        first = turn == next(other for other in schedule if other[1] == role)
        new = slots + (arguments.prompt_tokens if first else arguments.later_tokens)
        seconds = agent.seconds(gpu, count, new, 0)
        length = arguments.prompt_tokens + slots
        if turn == schedule[-1]:
            embeddings, middle = length * agent.width * 2, length + arguments.answer_tokens / 2
            answer = arguments.answer_tokens * agent.seconds(gpu, count, 1, middle, head=True)
            seconds += answer
        else:
            seconds += (steps - 1) * agent.seconds(gpu, count, 1, length + steps / 2)
            links = topology.receivers(role, round_index, rounds)
            travels += sum(steps * agents[link.target].width * LATENT for link in links)
        busy[role] += seconds / count
        stage = (round_index, stage_of[role])
        stages[stage] = max(stages.get(stage, 0.0), seconds)
    latency, answer = sum(stages.values()), answer / batches[topology.decoding_role]
    replicas = {role: math.ceil(arguments.rate * seconds / arguments.busy) for role, seconds in busy.items()}
    total = sum(replicas.values())
    extra = {
        "GPUs by agent": ", ".join(f"{role} {count}" for role, count in replicas.items()),
        "side by side": ", ".join(f"{role} {count}" for role, count in batches.items()),
        "seconds from question to answer": f"{latency:.1f}",
        "share that is the answer's tokens": f"{answer / sum(busy.values()):.2f}",
        "GB/s between agents": f"{arguments.rate * travels / 1e9:.2f}",
        "GB/s of prompts to a server of the last agent": f"{arguments.rate * embeddings / 1e9:.2f}",
        "dollars an hour": f"{total * gpu.price:,.0f}",
        "dollars per 1,000 questions": f"{total * gpu.price / 3.6 / arguments.rate:.3f}",
    }
    line = row(style, f"GPUs for {arguments.rate:,} questions a second", [total], {r: [s] for r, s in busy.items()})
    return {**line, "extra": extra}
