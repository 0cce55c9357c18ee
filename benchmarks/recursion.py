"""A whole run over latents, against the same agents handing over text, and against reloading and recomputing."""

import argparse
import tempfile

from .baselines import recompute_and_reload
from .harness import in_turn, ratio_row
from .systems import random_questions, random_system


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", nargs="+", help="shapes of the agents (default: three of --shape)")
    parser.add_argument("--rounds", type=int, help="recursion rounds (default: 3)")
    parser.add_argument("--latent-steps", type=int, help="steps of a rollout (default: 48)")
    parser.add_argument("--message-tokens", type=int, help="tokens of a message in text (default: 256)")
    parser.add_argument("--new-tokens", type=int, help="tokens of the answer (default: 256)")
    parser.add_argument("--question-tokens", type=int, help="tokens of the question (default: 256)")
    parser.add_argument("--without-text", action="store_true", help="leave out the run over text")
    parser.add_argument("--without-reload", action="store_true", help="leave out the run that reloads and recomputes")


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    quick = arguments.quick
    shapes = arguments.agents or [arguments.shape] * 3
    mas = random_system(shapes, arguments.dtype, arguments.device)
    rounds = arguments.rounds or (2 if quick else 3)
    steps = arguments.latent_steps or (4 if quick else 48)
    message_tokens = arguments.message_tokens or (8 if quick else 256)
    new_tokens = arguments.new_tokens or (8 if quick else 256)
    question_tokens = arguments.question_tokens or (16 if quick else 256)
    questions = random_questions(question_tokens)

    def solve(mode: str) -> None:
        mas.solve(
            questions,
            mode=mode,
            num_rounds=rounds,
            latent_steps=steps,
            message_tokens=message_tokens,
            max_new_tokens=new_tokens,
        )

    ways = {"latent": lambda: solve("latent")}
    if not arguments.without_text:
        ways["text"] = lambda: solve("text")
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.without_reload:
            folders = {role: f"{folder}/{shape}" for role, shape in zip(mas.agents, shapes, strict=True)}
            for role, place in folders.items():
                mas.agents[role].model.save_pretrained(place)
            ways["reload"] = lambda: _forget(
                recompute_and_reload(mas, folders, questions[0], rounds, steps, new_tokens)
            )
        seconds = in_turn(ways, arguments.repeats, warm_up=False)
    settings = {
        "agents": " ".join(shapes),
        "rounds": rounds,
        "latent_steps": steps,
        "message_tokens": message_tokens,
        "new_tokens": new_tokens,
        "question_tokens": question_tokens,
    }
    held = shapes == ["qwen3-0.6b"] * 3 and (rounds, steps, message_tokens, new_tokens) == (3, 48, 256, 256)
    targets = {"text": ">= 3.5", "reload": ">= 8"} if held else {}
    rows = [
        ratio_row(f"latent against {way}", {way: seconds[way], "latent": seconds["latent"]}, way, "latent",
                  targets.get(way))
        for way in ways if way != "latent"
    ]  # fmt: skip
    return settings, rows


def _forget(_: object) -> None:
    """Only the time counts."""
