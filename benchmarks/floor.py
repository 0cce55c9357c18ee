"""A latent step against reading, in the same run, as many bytes as it must: weights of the layers, keys and values."""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..agent_recursivemas import RecursiveMASAgent
from ..links_recursivemas import InnerLink
from .harness import Option, chosen, in_turn, now, ratio_row
from .quantized import bytes_of
from .systems import random_base

TARGETS = {"float32": "<= 1.25", "bfloat16": "<= 1.6", "int8": None}
OPTIONS = {
    "positions": Option("positions that the cache holds", 300, 16),
    "steps": Option("steps to take the mean of", 12, 2),
    "compiled": Option("measure compiled steps too (`mas.compile_steps()`)", False),
    "dtypes": Option("of the weights; int8 needs torchao", ["float32", "bfloat16"], kind=str, choices=list(TARGETS)),
}


def agent_of(shape: str, dtype: str, device: str) -> RecursiveMASAgent:
    """An agent of random weights; in int8 its layers only, which compute in float32."""
    model, tokenizer = random_base(shape, torch.float32 if dtype == "int8" else getattr(torch, dtype), device)
    if dtype == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        model = copy.deepcopy(model)
        quantize_(model.get_decoder(), Int8WeightOnlyConfig())
    width = model.config.hidden_size
    return RecursiveMASAgent(model, InnerLink("ln_res_adapter", width).to(device), tokenizer, "solo")


def bytes_of_step(agent: RecursiveMASAgent, positions: int) -> int:
    """What a step of one row reads: all weights but the vocabulary's, the inner link, and the cache."""
    config, embeddings = agent.model.config, agent.get_input_embeddings()
    weights = bytes_of([agent.model.get_decoder(), agent.inner_link]) - bytes_of([embeddings])
    heads, size = config.num_key_value_heads, getattr(config, "head_dim", None)
    size = size or config.hidden_size // config.num_attention_heads
    return weights + 2 * config.num_hidden_layers * heads * size * positions * agent.dtype.itemsize


def step(agent: RecursiveMASAgent, embeds: torch.Tensor, mask: torch.Tensor, steps: int) -> float:
    """Seconds of a step, of those after the first behind the prompt (in which graphs copy the cache)."""
    times: list[float] = []
    agent.rollout(embeds, mask, steps + 3, on_step=lambda: times.append(now()))
    return (times[-1] - times[2]) / steps


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    ways: dict[str, Callable[[], Any]] = {}
    sizes: dict[str, int] = {}
    for dtype in arguments.dtypes:
        agent = agent_of(arguments.shape, dtype, arguments.device)
        embeds = torch.randn(1, arguments.positions, agent.hidden_size, dtype=agent.dtype, device=arguments.device)
        mask = torch.ones(1, arguments.positions, dtype=torch.long, device=arguments.device)
        sizes[dtype] = bytes_of_step(agent, arguments.positions)
        bulk = torch.ones(sizes[dtype] // 4, device=arguments.device)
        ways[f"{dtype} step"] = partial(step, agent, embeds, mask, arguments.steps)
        ways[f"{dtype} reading"] = bulk.sum  # a kernel that does nothing but read
        if arguments.compiled:
            compiled = agent_of(arguments.shape, dtype, arguments.device)
            compiled.compile_steps()
            ways[f"{dtype} compiled step"] = partial(step, compiled, embeds, mask, arguments.steps)
    ways = {name: _without_result(way) for name, way in ways.items()}
    seconds = in_turn(ways, arguments.repeats)
    rows = []
    for dtype, size in sizes.items():
        target = None if arguments.shape == "tiny" else TARGETS[dtype]
        line = ratio_row(
            f"{dtype}, {arguments.positions} positions", seconds, f"{dtype} step", f"{dtype} reading", target
        )
        rate = size / min(seconds[f"{dtype} reading"]) / 1e9
        if arguments.compiled:
            rows.append(ratio_row(f"{dtype}, compiled", seconds, f"{dtype} compiled step", f"{dtype} reading"))
        rows.append({**line, "extra": {"GB read": f"{size / 1e9:.3f}", "GB/s at best": f"{rate:.1f}"}})
    others = [dtype for dtype in sizes if dtype != "float32"]
    rows += [
        ratio_row(f"{d} against float32", seconds, f"{d} step", "float32 step") for d in others if "float32" in sizes
    ]
    return chosen(arguments, *OPTIONS), rows


def _without_result(way: Callable[[], Any]) -> Callable[[], float | None]:
    """A way whose tensors are no seconds of its own."""
    return lambda: found if isinstance(found := way(), float) else None
