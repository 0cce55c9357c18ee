"""The plain way, written out: every position recomputed at every step, every agent read from disk at every stage."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import Slot, phase_of, template_for


@contextlib.contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Gives a model the matrix products that torch chooses by itself, see kernels_recursivemas.py."""
    fast = [module for module in model.modules() if isinstance(module, nn.Linear) and type(module) is not nn.Linear]
    kinds = list(map(type, fast))
    for module in fast:
        module.__class__ = nn.Linear
    try:
        yield
    finally:
        for module, kind in zip(fast, kinds, strict=True):
            module.__class__ = kind


@torch.no_grad()
def recompute_thoughts(
    model: PreTrainedModel, inner_link: nn.Module, inputs_embeds: torch.Tensor, latent_steps: int
) -> torch.Tensor:
    """Latent thoughts without a cache, (batch, length, width) -> (batch, latent_steps, width).

    Spared the vocabulary projection, unlike the release's own loop.
    """
    thoughts = []
    for _ in range(latent_steps):
        hidden_states = model.get_decoder()(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
        thoughts.append(inner_link(hidden_states[:, -1]))
        inputs_embeds = torch.cat([inputs_embeds, thoughts[-1][:, None].to(inputs_embeds.dtype)], dim=1)
    return torch.stack(thoughts, dim=1)


@torch.no_grad()
def recompute_and_reload(
    mas: RecursiveMASModel, folders: dict[str, str], question: str, num_rounds: int, latent_steps: int, new_tokens: int
) -> torch.Tensor:
    """One question, one agent in memory at a time: load, think without a cache, free.

    `mas` gives topology, links and prompts; of its agents, the models in `folders` (role -> folder) are used. Returns
    the ids of the greedy answer, (1, new).
    """
    latents: dict[tuple[int, str, str], torch.Tensor] = {}
    for round_index, role in mas.topology.schedule(num_rounds):
        agent = mas.agents[role]
        model: Any = AutoModelForCausalLM.from_pretrained(folders[role], dtype=agent.dtype)
        model = model.to(agent.device)
        incoming = mas.topology.incoming(role, round_index)
        received = {link.source: latents[round_index - link.feedback, link.source, role] for link in incoming}
        system, template = template_for(mas.config.prompts, role, mas.config.task, phase_of(round_index))
        parts = []
        for piece in mas.renderers[role].pieces(system, template, question):
            if isinstance(piece, Slot):
                parts.append(received[piece.role].to(agent.dtype))
            else:
                parts.append(model.get_input_embeddings()(torch.tensor([piece], device=agent.device)))
        inputs_embeds = torch.cat(parts, dim=1)
        if (round_index, role) == (num_rounds, mas.topology.decoding_role):
            mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=agent.device)
            return model.generate(
                inputs_embeds=inputs_embeds, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False
            )
        thoughts = recompute_thoughts(model, agent.inner_link, inputs_embeds, latent_steps)
        for link in mas.topology.outgoing(role):
            sent = mas.outer_links[link.name](thoughts)
            latents[round_index, role, link.target] = sent.to(mas.agents[link.target].device)
        del model
    raise AssertionError("the decoding role ends every schedule")
