"""Questions per second in batches, against one question at a time."""

import argparse
from functools import partial

from .harness import Option, chosen, in_turn, row
from .systems import random_questions, random_system

TARGETS = {8: ">= 3"}
OPTIONS = {
    "batch_sizes": Option("sizes besides 1", [8, 32], [4]),
    "rounds": Option("recursion rounds", 2),
    "latent_steps": Option("steps of a rollout", 32, 4),
    "new_tokens": Option("tokens of an answer", 32, 4),
    "question_tokens": Option("tokens of a question", 32),
}


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    mas = random_system([arguments.shape] * 2, arguments.dtype, arguments.device)
    sizes = [1, *arguments.batch_sizes]

    lengths = {"latent_steps": arguments.latent_steps, "max_new_tokens": arguments.new_tokens}

    def solve(size: int) -> None:
        questions = random_questions(arguments.question_tokens, size)
        mas.solve(questions, num_rounds=arguments.rounds, batch_size=size, **lengths)

    names = {size: f"batch of {size}" for size in sizes}
    seconds = in_turn({names[size]: partial(solve, size) for size in sizes}, arguments.repeats)
    rows = []
    for size in sizes[1:]:
        pair = {names[s]: seconds[names[s]] for s in (1, size)}
        values = [size * one / many for one, many in zip(*pair.values(), strict=True)]
        target = TARGETS.get(size) if arguments.shape != "tiny" else None
        rows.append(row(names[size], "questions per second / those of batch 1", values, pair, target))
    return chosen(arguments, "rounds", "latent_steps", "new_tokens", "question_tokens"), rows
