"""A whole run over latents, against the same agents handing over text, and against reloading and recomputing."""

import argparse
import tempfile
from functools import partial

from .baselines import recompute_and_reload
from .harness import Option, chosen, in_turn, ratio_row
from .systems import random_questions, random_system

OPTIONS = {
    "agents": Option("shapes of the agents (default: three of --shape)", [], kind=str),
    "rounds": Option("recursion rounds", 3, 2),
    "latent_steps": Option("steps of a rollout", 48, 4),
    "message_tokens": Option("tokens of a message in text", 256, 8),
    "new_tokens": Option("tokens of the answer", 256, 8),
    "question_tokens": Option("tokens of the question", 256, 16),
    "without_text": Option("leave out the run over text", False),
    "without_reload": Option("leave out the run that reloads and recomputes", False),
}
HELD = {"agents": "qwen3-0.6b qwen3-0.6b qwen3-0.6b", "rounds": 3, "latent_steps": 48, "message_tokens": 256,
        "new_tokens": 256}  # fmt: skip
TARGETS = {"text": ">= 3.5", "reload": ">= 8"}  # of those settings


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    shapes = arguments.agents or [arguments.shape] * 3
    mas = random_system(shapes, arguments.dtype, arguments.device)
    rounds, steps, new_tokens = arguments.rounds, arguments.latent_steps, arguments.new_tokens
    questions = random_questions(arguments.question_tokens)
    lengths = {"latent_steps": steps, "message_tokens": arguments.message_tokens, "max_new_tokens": new_tokens}

    def solve(mode: str) -> None:
        mas.solve(questions, mode=mode, num_rounds=rounds, **lengths)

    def reload(folders: dict[str, str]) -> None:
        recompute_and_reload(mas, folders, questions[0], rounds, steps, new_tokens)

    ways = {mode: partial(solve, mode) for mode in (["latent"] if arguments.without_text else ["latent", "text"])}
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.without_reload:
            folders = {role: f"{folder}/{shape}" for role, shape in zip(mas.agents, shapes, strict=True)}
            for role, place in folders.items():
                mas.agents[role].model.save_pretrained(place)
            ways["reload"] = partial(reload, folders)
        seconds = in_turn(ways, arguments.repeats, warm_up=False)
    sizes = chosen(arguments, "rounds", "latent_steps", "message_tokens", "new_tokens", "question_tokens")
    settings = {"agents": " ".join(shapes), **sizes}
    targets = TARGETS if HELD.items() <= settings.items() else {}
    latent = seconds.pop("latent")
    return settings, [
        ratio_row(f"latent against {way}", {way: times, "latent": latent}, way, "latent", targets.get(way))
        for way, times in seconds.items()
    ]
