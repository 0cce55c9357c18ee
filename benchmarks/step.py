"""One latent step against one step of greedy decoding, by transformers' own `generate` on the same model."""

import argparse
from functools import partial

import torch
from transformers.generation.streamers import BaseStreamer

from .harness import Option, chosen, in_turn, now, ratio_row
from .systems import random_agent

TARGET = "<= 0.85"
OPTIONS = {
    "prompt_tokens": Option("lengths of the prompt", [309, 512], [16]),
    "steps": Option("steps to take the mean of", 24, 4),
}


class Clock(BaseStreamer):
    """Notes when each token comes out of `generate`."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(now())

    def end(self) -> None:
        """Nothing to flush."""


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    agent = random_agent(arguments.shape, "solo", arguments.dtype, arguments.device)
    rows = []
    for length in arguments.prompt_tokens:
        embeds = torch.randn(1, length, agent.hidden_size, dtype=arguments.dtype, device=arguments.device)
        mask = torch.ones(1, length, dtype=torch.long, device=arguments.device)
        prompt = (agent, embeds, mask, arguments.steps)
        ways = {"latent step": partial(latent_step, *prompt), "decoding step": partial(decoding_step, *prompt)}
        seconds = in_turn(ways, arguments.repeats)
        target = None if arguments.shape == "tiny" else TARGET
        rows.append(ratio_row(f"{length} prompt tokens", seconds, "latent step", "decoding step", target))
    return chosen(arguments, "steps"), rows


def latent_step(agent, embeds: torch.Tensor, mask: torch.Tensor, steps: int) -> float:
    """Seconds per step after the prompt."""
    times: list[float] = []

    def note(*_) -> None:
        if not times:
            times.append(now())

    handle = agent.inner_link.register_forward_hook(note)
    agent.rollout(embeds, mask, steps + 1)
    handle.remove()
    return (now() - times[0]) / steps


def decoding_step(agent, embeds: torch.Tensor, mask: torch.Tensor, steps: int) -> float:
    """Seconds per step after the prompt."""
    clock = Clock()
    lengths = {"min_new_tokens": steps + 1, "max_new_tokens": steps + 1}
    agent.model.generate(inputs_embeds=embeds, attention_mask=mask, do_sample=False, streamer=clock, **lengths)
    return (clock.times[-1] - clock.times[-steps - 1]) / steps
