"""A latent rollout against recomputing the whole sequence at every step, with torch's kernels and with ours."""

import argparse
from collections.abc import Callable

import torch

from .baselines import plain_kernels, recompute_thoughts
from .harness import in_turn, ratio_row
from .systems import random_agent

TARGETS = {("qwen3-0.6b", 512, 32): ">= 12", ("qwen3-0.6b", 512, 48): ">= 15"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt-tokens", type=int, help="length of the prompt (default: 512)")
    parser.add_argument("--latent-steps", type=int, nargs="+", help="numbers of steps (default: 32 48)")


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    agent = random_agent(arguments.shape, "solo", arguments.dtype, arguments.device)
    length = arguments.prompt_tokens or (32 if arguments.quick else 512)
    rows = []
    for steps in arguments.latent_steps or ([4] if arguments.quick else [32, 48]):
        embeds = torch.randn(1, length, agent.hidden_size, dtype=arguments.dtype, device=arguments.device)
        mask = torch.ones(1, length, dtype=torch.long, device=arguments.device)

        def recompute(embeds=embeds, steps=steps) -> None:
            recompute_thoughts(agent.model, agent.inner_link, embeds, steps)

        def recompute_plainly(recompute=recompute) -> None:
            with plain_kernels(agent.model):
                recompute()

        def rollout(embeds=embeds, mask=mask, steps=steps) -> None:
            agent.rollout(embeds, mask, steps)

        ways: dict[str, Callable[[], None]] = {
            "recompute": recompute_plainly,
            "recompute, fast kernels": recompute,
            "rollout": rollout,
        }
        # No warm-up run: a rollout is long enough for its first step not to count.
        seconds = in_turn(ways, arguments.repeats, warm_up=False)
        target = TARGETS.get((arguments.shape, length, steps))
        for way, goal in (("recompute", target), ("recompute, fast kernels", None)):
            pair = {name: seconds[name] for name in (way, "rollout")}
            rows.append(ratio_row(f"{length} prompt tokens, {steps} steps", pair, way, "rollout", goal))
    return {}, rows
