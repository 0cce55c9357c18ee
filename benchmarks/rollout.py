"""A latent rollout against recomputing the whole sequence at every step."""

import argparse

import torch

from .baselines import recompute_thoughts
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
        ways = {
            "recompute": lambda embeds=embeds, steps=steps: _run(
                recompute_thoughts, agent.model, agent.inner_link, embeds, steps
            ),
            "rollout": lambda embeds=embeds, mask=mask, steps=steps: _run(agent.rollout, embeds, mask, steps),
        }
        target = TARGETS.get((arguments.shape, length, steps))
        name = f"{length} prompt tokens, {steps} steps"
        # No warm-up run: a rollout is long enough for its first step not to count.
        seconds = in_turn(ways, arguments.repeats, warm_up=False)
        rows.append(ratio_row(name, seconds, "recompute", "rollout", target))
    return {}, rows


def _run(function, *arguments) -> None:
    function(*arguments)
