"""How time grows with rounds, agents, latent steps and prompt length: fitted exponents.

The answer has as many tokens as a rollout has steps, so that the decoding agent's turn in the last round costs about
what every other turn costs, and r rounds of n agents are r * n turns.
"""

import argparse
from functools import partial

from .harness import Option, exponent_row, in_turn
from .systems import random_questions, random_system

GROWN = {  # what grows -> its sizes, and those with --quick
    "rounds": ([1, 2, 4, 8], [1, 2, 3]),
    "agents": ([2, 4, 8], [2, 3]),
    "latent steps": ([32, 64, 128], [4, 8]),
    "prompt tokens": ([128, 256, 512, 1024], [16, 64]),
}
OPTIONS = {
    "latent_steps": Option("steps where they do not grow", 48, 4),
    "only": Option("what grows", list(GROWN), kind=str, choices=list(GROWN)),
}


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    usual = {"rounds": 1, "agents": 2, "latent steps": arguments.latent_steps, "prompt tokens": 16}
    rows = []
    for name in arguments.only:
        sizes, ways = GROWN[name][arguments.quick], {}
        for size in sizes:
            setting = {**usual, name: size}
            if name == "prompt tokens":
                setting["latent steps"] = 1
            mas = random_system([arguments.shape] * setting["agents"], arguments.dtype, arguments.device)
            ways[f"{name} = {size}"] = partial(_solve, mas, setting)
        # No warm-up: the shortest way takes seconds.
        seconds = in_turn(ways, arguments.repeats, warm_up=False)
        line = exponent_row(name, sizes, seconds)
        if arguments.shape != "tiny" and name != "prompt tokens":
            line |= {"target": "within 0.1 of 1", "met": abs(line["value"]["median"] - 1) <= 0.1}
        rows.append(line)
    return usual, rows


def _solve(mas, setting: dict) -> None:
    lengths = dict.fromkeys(("latent_steps", "max_new_tokens"), setting["latent steps"])
    mas.solve(random_questions(setting["prompt tokens"]), num_rounds=setting["rounds"], **lengths)
