"""What a later round reads against what the first one reads: the head of a prompt is read once."""

import argparse

import torch

from ..batching_recursivemas import PromptBuilder
from ..prompts_recursivemas import template_for
from .harness import Option, chosen, in_turn, ratio_row, timed
from .systems import random_questions, random_system

OPTIONS = {
    "question_tokens": Option("lengths of the question", [512, 1024], [64]),
    "latent_steps": Option("latents that come in", 48),
}


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    mas = random_system([arguments.shape] * 2, arguments.dtype, arguments.device)
    role, sender = "agenta", "agentb"
    agent, renderer = mas.agents[role], mas.renderers[role]
    latents = torch.randn(arguments.latent_steps, agent.hidden_size, dtype=arguments.dtype, device=arguments.device)
    rows = []
    for length in arguments.question_tokens:
        (question,) = random_questions(length)
        pieces = {}
        for phase in ("first", "feedback"):
            system, template = template_for(mas.config.prompts, role, "default", phase)
            pieces[phase] = [renderer.pieces(system, template, question)]
        later: list[float] = []

        def read(builder, phase: str, messages: dict) -> None:
            prompt, _ = builder.build(phase, messages)
            agent.rollout(prompt.inputs_embeds[:, prompt.past :], prompt.attention_mask, 1, prompt.past_key_values)

        def both(pieces=pieces, later=later, read=read) -> float:
            """Both rounds of one question; returns the first one's seconds, keeps the second one's."""
            builder = PromptBuilder(agent, pieces, uses=2)
            first = timed(lambda: read(builder, "first", {}))
            later.append(timed(lambda: read(builder, "feedback", {sender: [latents]})))
            return first

        seconds = in_turn({"first round": both}, arguments.repeats)
        seconds["later round"] = later[-arguments.repeats :]
        target = "<= 0.35" if arguments.shape != "tiny" and length >= 512 else None
        rows.append(ratio_row(f"question of {length} tokens", seconds, "later round", "first round", target))
    return chosen(arguments, "latent_steps"), rows
