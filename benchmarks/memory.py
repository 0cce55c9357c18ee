"""What `recursivemas train --dry-run` plans for a step of the outer loop, against the bytes that it then holds.

Prompts whose slots stand in front, so that gradients flow through all of them; every agent's weights count in neither.
Such a prompt of one row needs no mask, one that goes on from a head does, and that is planned: with `--batch-size 1`
the plan is some 30 % above what is measured here, and near it on prompts of a chat template (tests/test_plan.py).
"""

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..modeling_recursivemas import RecursiveMASModel
from ..training.arguments import LinkTrainingArguments
from ..training.data import Encoder, read_rows
from ..training.objectives import OuterObjective, OuterSettings
from ..training.plan import plan_of
from ..training.rehearsal import LiveBytes
from .harness import Option, chosen, row
from .systems import random_base, random_questions, random_system

OPTIONS = {
    "question_tokens": Option("lengths of the question", [256], [64]),
    "batch_size": Option("rows of a step", 2),
    "rounds": Option("recursion rounds", 2),
    "latent_steps": Option("latent steps", 8, 4),
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"layer_checkpointing": True},
    "layers and stages": {"layer_checkpointing": True, "activation_checkpointing": True},
}


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    rows = []
    for length in arguments.question_tokens:
        for name, settings in WAYS.items():
            with _own_base():
                planned, held = _bytes(arguments, length, settings)
            line = row(f"{name}, {length} tokens", "planned / measured", [planned / held], {})
            extra = {"MiB planned": f"{planned / 2**20:.1f}", "measured": f"{held / 2**20:.1f}"}
            rows.append({**line, "extra": extra})
    return chosen(arguments, *OPTIONS), rows


@contextmanager
def _own_base() -> Iterator[None]:
    """Base models that no other way has changed: layers that keep their inputs only stay so."""
    random_base.cache_clear()
    yield
    random_base.cache_clear()


def _bytes(arguments: argparse.Namespace, length: int, settings: dict[str, Any]) -> tuple[int, int]:
    """The planned and the measured peak of a step beside weights, links and their gradients."""
    mas = random_system([arguments.shape] * 2, arguments.dtype, arguments.device)
    first, second = mas.agents
    for agent in mas.agents.values():  # nothing in front of a slot
        agent.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config = copy.deepcopy(mas.config)
    config.latent_steps = arguments.latent_steps
    later = f"<|latents:{second}|><|question|>"
    config.prompts = {  # all as long: letters in place of latents where nothing is received
        first: {"default": {"first": "x" * config.latent_steps + "<|question|>", "feedback": later}},
        second: {"default": dict.fromkeys(("first", "feedback"), f"<|latents:{first}|><|question|>")},
    }
    mas = RecursiveMASModel(config, dict(mas.agents.items()), dict(mas.outer_links.items()))
    settings = {"supervise": "receivers", "earlier_rounds_weight": 1.0, "latents": "teacher", **settings}
    what = OuterSettings(arguments.rounds, **settings)
    objective = OuterObjective(mas, list(mas.outer_links), list(mas.agents), what).train()
    texts = dict.fromkeys(mas.agents, "abc def")
    questions = random_questions(length, arguments.batch_size)
    data = [{"question": text[i:], "targets": texts, "answer": "x"} for i, text in enumerate(questions)]
    read, report = read_rows(data, mas.topology.roles, arguments.rounds)
    examples = Encoder(mas).examples(read, [objective.schedule], report)
    parts = [part for example in examples for part in example.parts.values()]
    words = [sum(len(p) if isinstance(p, list) else config.latent_steps for p in part.pieces) for part in parts]
    targets = max(len(part.target_ids) for part in parts)
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)  # planned with the links
    with LiveBytes() as live:
        objective(examples)["loss"].backward()
    plan = LinkTrainingArguments(
        output="x",
        use_cpu=True,
        dtype=str(arguments.dtype),
        max_length=max(words) + targets,
        per_device_train_batch_size=arguments.batch_size,
        num_rounds=arguments.rounds,
        **settings,
    )
    models: Any = {role: agent.model.config for role, agent in mas.agents.items()}
    planned = plan_of("outer", plan, mas.config, models, targets=targets)["parts"]
    return planned["activations"] + planned["logits"], live.peak
