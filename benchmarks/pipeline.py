"""Agents as Ray actors on this machine, against one process; and what travels, against key/value caches.

Needs `pip install recursivemas[ray]`. On one machine the actors share its processors, so that throughput here shows
what the hand-over costs; what several devices gain is measured where there are several.
"""

import argparse
import tempfile
from collections import Counter
from functools import partial
from types import ModuleType
from typing import Any

import torch

from ..system_loader import load_mas_system
from .harness import Option, chosen, in_turn, ratio_row, row
from .systems import random_questions, random_system

OPTIONS = {
    "batches": Option("batches of questions", 4),
    "batch_size": Option("questions of a batch", 2),
    "rounds": Option("recursion rounds", 2),
    "latent_steps": Option("steps of a rollout", 48, 4),
    "new_tokens": Option("tokens of an answer", 32, 4),
    "question_tokens": Option("tokens of a question", 256, 16),
}


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    import ray

    if ray.is_initialized():
        return _measure(arguments, ray)
    with ray.init(num_cpus=3, log_to_driver=False, include_dashboard=False):
        return _measure(arguments, ray)


def _measure(arguments: argparse.Namespace, ray: ModuleType) -> tuple[dict, list[dict]]:
    steps, count = arguments.latent_steps, arguments.batches * arguments.batch_size
    questions = random_questions(arguments.question_tokens, count)
    settings = {"num_rounds": arguments.rounds, "latent_steps": steps, "max_new_tokens": arguments.new_tokens}
    with tempfile.TemporaryDirectory() as folder:
        local = random_system([arguments.shape] * 3, arguments.dtype, "cpu")
        local.save_pretrained(folder, copy_agents=True)
        remote = load_mas_system(folder, device=arguments.device, executor="ray", share_bases=False)

        def solve(mas) -> None:
            mas.solve(questions, batch_size=arguments.batch_size, **settings)

        local.to(arguments.device)
        seconds = in_turn({"one process": lambda: solve(local), "actors": lambda: solve(remote)}, arguments.repeats)
        solutions = local.solve(questions, batch_size=arguments.batch_size, return_latents=True, **settings)
        executor: Any = remote.executor
        executor.shutdown()
    rows = [ratio_row(f"{count} questions", seconds, "one process", "actors")]
    sent: Counter[str] = Counter()
    for solution in solutions:
        for (_, source, target), latents in (solution.latents or {}).items():
            sent[f"{source} to {target}"] += latents.nbytes
    turns = Counter(f"{source} to {target}" for _, source, target in solutions[0].latents or {})
    config = local.agents["agenta"].model.config
    positions = arguments.question_tokens + steps  # at least: the prompt's own words come on top
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    itemsize = torch.empty(0, dtype=arguments.dtype).element_size()
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * positions * itemsize
    for link, total in sent.items():
        latents = torch.zeros(total // count // turns[link], dtype=torch.uint8)
        keys_values = torch.zeros(cache, dtype=torch.uint8)

        def hand_over(value: torch.Tensor) -> None:
            ray.get(ray.put(value))

        ways = {"latents": partial(hand_over, latents), "keys and values": partial(hand_over, keys_values)}
        seconds = in_turn(ways, arguments.repeats)
        line = row(f"bytes, {link}", "keys and values / latents", [cache / len(latents)], seconds)
        each = {"bytes per question and turn": f"{len(latents):,} against {cache:,}"}
        rows.append({**line, "extra": {**each, "bytes per question": f"{total // count:,}"}})
    return settings | chosen(arguments, "batches", "batch_size", "question_tokens"), rows
