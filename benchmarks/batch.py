"""Questions per second in batches, against one question at a time."""

import argparse
from functools import partial

from .harness import in_turn, row
from .systems import random_questions, random_system

TARGETS = {8: ">= 3"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="sizes besides 1 (default: 8 32)")
    parser.add_argument("--rounds", type=int, default=2, help="recursion rounds (default: 2)")
    parser.add_argument("--latent-steps", type=int, help="steps of a rollout (default: 32)")
    parser.add_argument("--new-tokens", type=int, help="tokens of an answer (default: 32)")
    parser.add_argument("--question-tokens", type=int, default=32, help="tokens of a question (default: 32)")


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    mas = random_system([arguments.shape] * 2, arguments.dtype, arguments.device)
    steps = arguments.latent_steps or (4 if arguments.quick else 32)
    new_tokens = arguments.new_tokens or (4 if arguments.quick else 32)
    sizes = [1, *(arguments.batch_sizes or ([4] if arguments.quick else [8, 32]))]

    def solve(size: int) -> None:
        mas.solve(
            random_questions(arguments.question_tokens, size),
            num_rounds=arguments.rounds,
            latent_steps=steps,
            max_new_tokens=new_tokens,
            batch_size=size,
        )

    names = {size: f"batch of {size}" for size in sizes}
    seconds = in_turn({names[size]: partial(solve, size) for size in sizes}, arguments.repeats)
    rows = []
    for size in sizes[1:]:
        pair = {names[s]: seconds[names[s]] for s in (1, size)}
        values = [size * one / many for one, many in zip(*pair.values(), strict=True)]
        target = TARGETS.get(size) if arguments.shape != "tiny" else None
        rows.append(row(names[size], "questions per second / those of batch 1", values, pair, target))
    settings = {"rounds": arguments.rounds, "latent_steps": steps, "new_tokens": new_tokens,
                "question_tokens": arguments.question_tokens}  # fmt: skip
    return settings, rows
