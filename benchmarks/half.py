"""bfloat16 against float32: the same agent, a prompt and single steps. It says what `dtype="auto"` should choose."""

import argparse
from functools import partial

import torch

from ..agent_recursivemas import RecursiveMASAgent
from .harness import Option, chosen, in_turn, now, ratio_row
from .systems import random_agent

OPTIONS = {
    "prompt_tokens": Option("length of the prompt", 300, 16),
    "batch": Option("numbers of rows", [1, 8], [2]),
    "steps": Option("steps to take the mean of", 8, 2),
}


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    agents = {name: random_agent(arguments.shape, "solo", dtype, arguments.device) for name, dtype in dtypes.items()}
    rows = []
    for batch in arguments.batch:
        for what, steps in (("prompt", 0), ("step", arguments.steps)):
            ways = {
                name: partial(_seconds, agent, batch, arguments.prompt_tokens, steps) for name, agent in agents.items()
            }
            seconds = in_turn(ways, arguments.repeats, warm_up=arguments.repeats > 1)
            rows.append(ratio_row(f"{what}, {batch} rows", seconds, "bfloat16", "float32"))
    return chosen(arguments, "prompt_tokens", "steps"), rows


def _seconds(agent: RecursiveMASAgent, batch: int, length: int, steps: int) -> float:
    """Of a prompt where `steps` is 0, else of one step after 16 positions."""
    length = 16 if steps else length
    embeds = torch.randn(batch, length, agent.hidden_size, dtype=agent.dtype, device=agent.device)
    mask = torch.ones(batch, length, dtype=torch.long, device=agent.device)
    times = [now()]
    handle = agent.inner_link.register_forward_hook(lambda *_: times.append(now()))
    agent.rollout(embeds, mask, steps + 1)
    handle.remove()
    return (times[-1] - times[1]) / steps if steps else times[1] - times[0]
