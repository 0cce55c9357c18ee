"""Handing over working memory: a receiver of the sender's base goes on reading behind all that the sender has read.

That is what a link of kind `cache` means, LatentMAS's way: the receiver's prompt stands behind the sender's prompt and
thoughts, and what the sender received by such a link before them. The sender's keys and values stand in for reading
it again. Nothing is trained, and nothing stands in a slot.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from .agent_recursivemas import RecursiveMASAgent
from .caches_recursivemas import can_crop, past_length
from .errors_recursivemas import ConfigError
from .links_recursivemas import CacheLink
from .modules_recursivemas import Modules
from .prompts_recursivemas import template_for, text_tokens
from .thinking_recursivemas import Rollout
from .topology_recursivemas import Topology


@dataclass
class WorkingMemory:
    """What an agent has read and thought, for a batch.

    Attributes:
        rows: of each row, token ids and latents (n, hidden_size), in the order in which they were read.
        cache: keys and values of all positions; they belong to whoever goes on from them.
        attention_mask: (batch, positions), zeros on padding and on steps behind a row's end.
    """

    rows: list[list[torch.Tensor | list[int]]]
    cache: Cache
    attention_mask: torch.Tensor

    @property
    def lengths(self) -> list[int]:
        """Positions of each row that count."""
        return self.attention_mask.sum(1).tolist()


def remember(
    agent: RecursiveMASAgent,
    rows: Sequence[Sequence[torch.Tensor | list[int]]],
    attention_mask: torch.Tensor,
    cache: Cache,
    rollout: Rollout,
) -> WorkingMemory:
    """The working memory of an agent after a rollout; a copy, since the agent's next round writes into its own.

    Args:
        agent: who thought.
        rows: of its prompt.
        attention_mask: of its prompt, (batch, length).
        cache: that the rollout went on from; what of the latents is not in there yet is read now.
        rollout: its thoughts.
    """
    cache, (batch, length), steps = copy.deepcopy(cache), attention_mask.shape, rollout.latents.shape[1]
    read = past_length(cache) or 0
    mask = torch.cat([attention_mask, attention_mask.new_ones(batch, steps)], dim=1)
    if read < length + steps:
        rest = rollout.latents[:, read - length :].to(agent.dtype)
        agent.encode(rest, mask, cache)
    mask[:, length:] = torch.arange(steps, device=mask.device) < rollout.lengths[:, None]
    thoughts = zip(rows, rollout.latents, rollout.lengths.tolist(), strict=True)
    return WorkingMemory([[*row, latents[:count]] for row, latents, count in thoughts], cache, mask)


def continued_turn(topology: Topology, links: Modules[Any], turn: tuple[int, str]) -> tuple[int, str] | None:
    """The turn, (round, role), whose working memory a turn goes on from; `None` where it starts anew."""
    round_index, role = turn
    for link in topology.incoming(role, round_index):
        if isinstance(links[link.name], CacheLink):
            return round_index - link.feedback, link.source
    return None


def cache_links(links: Modules[Any]) -> list[str]:
    """The names of the outer links that hand over working memory."""
    return [name for name, link in links.items() if isinstance(link, CacheLink)]


def turns_before(system: Any, settings: Any, turn: tuple[int, str]) -> list[tuple[int, str]]:
    """The turns whose working memory a turn goes on from, the latest first."""
    turns: list[tuple[int, str]] = []
    before: tuple[int, str] | None = turn
    while settings.thinks and not settings.silent and before is not None:
        before = continued_turn(system.topology, system.outer_links, before)
        turns += [before] if before is not None else []
    return turns


def read_positions(system: Any, settings: Any, turn: tuple[int, str], inputs: dict[str, str]) -> int:
    """Positions that a thinking turn reads by itself: its prompt's text, its slots, its latents."""
    round_index, role = turn
    renderer = system.renderers[role]
    chat = renderer.render(*template_for(settings.prompts, role, settings.task, settings.phase(round_index)))
    return text_tokens(renderer.cut(chat, inputs)) + slot_positions(system, settings, turn) + settings.latent_steps


def slot_positions(system: Any, settings: Any, turn: tuple[int, str]) -> int:
    """Positions that fill the slots of a turn's prompt at most."""
    links = [system.outer_links[link.name] for link in system.topology.incoming(turn[1], turn[0])]
    slots = sum(getattr(link, "positions", settings.latent_steps) for link in links)
    return slots


def validate_continuation(name: str, source: RecursiveMASAgent, target: RecursiveMASAgent) -> None:
    """Raises ConfigError unless one agent can go on from the other's working memory."""
    traits = source.traits
    if source.model is not target.model:
        raise ConfigError(
            "Working memory is handed over between roles of one base only.",
            where=f"links, {name}",
            found="two models",
            expected="one `source` (and revision, dtype, device, adapter) for both roles, and `share_bases`",
            hint="take a kind of link that hands over latents",
        )
    if not (traits.reads_on and traits.skips_holes and can_crop(source.new_cache())):
        raise ConfigError(
            "The working memory of an agent cannot be continued by another: its layers do not keep all positions.",
            where=f"links, {name}, {type(source.model).__name__}",
            expected="a model whose attention is full in every layer, and skips masked positions",
            hint="take a kind of link that hands over latents",
        )
