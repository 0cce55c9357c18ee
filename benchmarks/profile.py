"""Where the time of a latent step and of reading a prompt goes: shares by kind of operation, from torch's profiler."""

import argparse
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from .harness import Option, chosen, row
from .systems import random_agent

# What the name of an operation or kernel begins with or holds -> its kind, first match first.
KINDS = {
    "matrix products": ("_linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm", "gemm", "gemv", "cutlass"),
    "attention": ("_scaled_dot_product", "flash", "fmha", "aten::_softmax"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::contiguous", "aten::repeat", "Memcpy", "copy_kernel"),
}
REST = "everything else"

OPTIONS = {
    "prompt_tokens": Option("length of the prompt", 512, 32),
    "batch_size": Option("rows", 1),
    "steps": Option("latent steps to profile", 8),
}


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    agent = random_agent(arguments.shape, "solo", arguments.dtype, arguments.device)
    length = arguments.prompt_tokens
    shape = arguments.batch_size, length, agent.hidden_size
    embeds = torch.randn(shape, dtype=arguments.dtype, device=arguments.device)
    cache = agent.new_cache()

    def prompt() -> None:
        agent.encode(embeds, None, cache)

    def steps() -> None:
        for _ in range(arguments.steps):
            agent.inner_link(agent.encode(embeds[:, -1:], None, cache))

    rows = []
    for name, call in ((f"prompt of {length} positions", prompt), (f"{arguments.steps} latent steps", steps)):
        shares: dict[str, list[float]] = {}
        for _ in range(arguments.repeats):
            if call is prompt:
                cache = agent.new_cache()
            for kind, share in _shares(call, arguments.device).items():
                shares.setdefault(kind, []).append(share)
        rows += [row(name, f"share of {kind}", values, {}) for kind, values in shares.items()]
    return chosen(arguments, *OPTIONS), rows


def _shares(call, device: str) -> dict[str, float]:
    """Kind of operation -> its share of the time of all operations."""
    on_cpu = device == "cpu"
    with profile(activities=[ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA]) as profiler:
        call()
        if not on_cpu:
            torch.cuda.synchronize()
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), REST)
        times[kind] += event.self_cpu_time_total if on_cpu else event.self_device_time_total
    return {kind: times[kind] / times.total() for kind in (*KINDS, REST) if times[kind]}
