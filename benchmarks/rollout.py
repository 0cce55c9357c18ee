"""A latent rollout against recomputing the whole sequence at every step, with torch's kernels and with ours."""

import argparse
from collections.abc import Callable

import torch

from .baselines import plain_kernels, recompute_thoughts
from .harness import Option, in_turn, ratio_row
from .systems import random_agent

TARGETS = {("qwen3-0.6b", 512, 32): ">= 12", ("qwen3-0.6b", 512, 48): ">= 15"}
OPTIONS = {
    "prompt_tokens": Option("length of the prompt", 512, 32),
    "latent_steps": Option("numbers of steps", [32, 48], [4]),
}


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    agent = random_agent(arguments.shape, "solo", arguments.dtype, arguments.device)
    length = arguments.prompt_tokens
    rows = []
    for steps in arguments.latent_steps:
        embeds = torch.randn(1, length, agent.hidden_size, dtype=arguments.dtype, device=arguments.device)
        mask = torch.ones(1, length, dtype=torch.long, device=arguments.device)

        def recompute(embeds=embeds, steps=steps) -> None:
            recompute_thoughts(agent.model, agent.inner_link, embeds, steps)

        def recompute_plainly(recompute=recompute) -> None:
            with plain_kernels(agent.model):
                recompute()

        def rollout(embeds=embeds, mask=mask, steps=steps) -> None:
            agent.rollout(embeds, mask, steps)

        fast = "recompute, fast kernels"
        ways: dict[str, Callable[[], None]] = {"recompute": recompute_plainly, fast: recompute, "rollout": rollout}
        # No warm-up run: a rollout is long enough for its first step not to count.
        seconds = in_turn(ways, arguments.repeats, warm_up=False)
        target = TARGETS.get((arguments.shape, length, steps))
        for way, goal in (("recompute", target), (fast, None)):
            pair = {name: seconds[name] for name in (way, "rollout")}
            rows.append(ratio_row(f"{length} prompt tokens, {steps} steps", pair, way, "rollout", goal))
    return {}, rows
