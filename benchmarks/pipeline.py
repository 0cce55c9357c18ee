"""Agents as Ray actors on this machine, against one process; and what travels, against key/value caches.

Needs `pip install recursivemas[ray]`. On one machine the actors share its processors, so that throughput here shows
what the hand-over costs; what several devices gain is measured where there are several.
"""

import argparse
import tempfile
from functools import partial
from types import ModuleType
from typing import Any

import torch
from transformers import AutoConfig

from ..errors_recursivemas import InputError
from ..system_loader import load_mas_system
from .harness import Option, chosen, in_turn, ratio_row, row
from .systems import SHAPES, random_questions, random_system

WORD = 4  # bytes of a token in a text, about
OPTIONS = {
    "batches": Option("batches of questions", 4),
    "batch_size": Option("questions of a batch", 2),
    "rounds": Option("recursion rounds", 2),
    "latent_steps": Option("steps of a rollout", 48, 4),
    "new_tokens": Option("tokens of an answer", 32, 4),
    "question_tokens": Option("tokens of a question", 256, 16),
    "without_run": Option("measure only what travels", False),
}


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    import ray

    if ray.is_initialized():
        return _measure(arguments, ray)
    with ray.init(num_cpus=3, log_to_driver=False, include_dashboard=False):
        return _measure(arguments, ray)


def _measure(arguments: argparse.Namespace, ray: ModuleType) -> tuple[dict, list[dict]]:
    settings = {"num_rounds": arguments.rounds, "latent_steps": arguments.latent_steps}
    settings["max_new_tokens"] = arguments.new_tokens
    rows = [] if arguments.without_run else [_questions(arguments, settings)]
    rows += _hand_overs(arguments, ray)
    return settings | chosen(arguments, "batches", "batch_size", "question_tokens"), rows


def _questions(arguments: argparse.Namespace, settings: dict[str, int]) -> dict:
    """Three actors against one process."""
    count = arguments.batches * arguments.batch_size
    questions = random_questions(arguments.question_tokens, count)
    with tempfile.TemporaryDirectory() as folder:
        local = random_system([arguments.shape] * 3, arguments.dtype, "cpu")
        local.save_pretrained(folder, copy_agents=True)
        remote = load_mas_system(folder, device=arguments.device, executor="ray", share_bases=False)

        def solve(mas) -> None:
            mas.solve(questions, batch_size=arguments.batch_size, **settings)

        local.to(arguments.device)
        seconds = in_turn({"one process": lambda: solve(local), "actors": lambda: solve(remote)}, arguments.repeats)
        executor: Any = remote.executor
        executor.shutdown()
    return ratio_row(f"{count} questions", seconds, "one process", "actors")


def _hand_overs(arguments: argparse.Namespace, ray: ModuleType) -> list[dict]:
    """What a question costs in one turn, from actor to actor, for each thing that could travel."""
    if arguments.shape not in SHAPES:
        raise InputError("Unknown shape.", where="--shape", found=arguments.shape, expected=", ".join(SHAPES))
    model_type, _, fields = SHAPES[arguments.shape]
    config, steps = AutoConfig.for_model(model_type, **fields), arguments.latent_steps
    positions = arguments.question_tokens + steps  # at least: the prompt's own words come on top
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * positions
    sizes = {"text": WORD * steps, "latents": steps * config.hidden_size * 4}  # latents travel in float32
    sizes["keys and values"] = cache * arguments.dtype.itemsize
    sender, receiver = (ray.remote(num_cpus=0)(End).remote() for _ in range(2))
    ray.get(sender.hold.remote({name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}))

    def hand_over(name: str) -> None:
        ray.get(receiver.take.remote(sender.give.remote(name)))

    seconds = in_turn({name: partial(hand_over, name) for name in sizes}, 10 * arguments.repeats)
    rows = []
    for name, size in sizes.items():
        line = row(f"hand-over of {name}", "bytes / latents", [size / sizes["latents"]], {name: seconds[name]})
        rows.append({**line, "extra": {"bytes per question and turn": f"{size:,}"}})
    return rows


class End:
    """An actor that only gives and takes: what a hand-over costs without the thinking."""

    def hold(self, things: dict[str, torch.Tensor]) -> None:
        self.things = things

    def give(self, name: str) -> torch.Tensor:
        return self.things[name]

    def take(self, thing: torch.Tensor) -> int:
        return len(thing)
