"""How time grows with rounds, agents, latent steps and prompt length: fitted exponents.

The answer has as many tokens as a rollout has steps, so that the decoding agent's turn in the last round costs about
what every other turn costs, and r rounds of n agents are r * n turns.
"""

import argparse

from .harness import exponent_row, in_turn
from .systems import random_questions, random_system


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--latent-steps", type=int, help="steps where they do not grow (default: 48)")
    parser.add_argument("--only", nargs="+", choices=("rounds", "agents", "latent steps", "prompt tokens"))


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    quick = arguments.quick
    steps = arguments.latent_steps or (4 if quick else 48)
    usual = {"rounds": 1, "agents": 2, "latent steps": steps, "prompt tokens": 16}
    grown = {
        "rounds": [1, 2, 3] if quick else [1, 2, 4, 8],
        "agents": [2, 3] if quick else [2, 4, 8],
        "latent steps": [4, 8] if quick else [32, 64, 128],
        "prompt tokens": [16, 64] if quick else [128, 256, 512, 1024],
    }
    rows = []
    for name in arguments.only or grown:
        ways = {}
        for size in grown[name]:
            setting = {**usual, name: size}
            if name == "prompt tokens":
                setting["latent steps"] = 1
            mas = random_system([arguments.shape] * setting["agents"], arguments.dtype, arguments.device)
            ways[f"{name} = {size}"] = lambda mas=mas, setting=setting: _solve(mas, setting)
        # No warm-up: the shortest way takes seconds.
        seconds = in_turn(ways, arguments.repeats, warm_up=False)
        line = exponent_row(name, grown[name], seconds)
        if arguments.shape != "tiny" and name != "prompt tokens":
            line |= {"target": "within 0.1 of 1", "met": abs(line["value"]["median"] - 1) <= 0.1}
        rows.append(line)
    return usual, rows


def _solve(mas, setting: dict) -> None:
    mas.solve(
        random_questions(setting["prompt tokens"]),
        num_rounds=setting["rounds"],
        latent_steps=setting["latent steps"],
        max_new_tokens=setting["latent steps"],
    )
