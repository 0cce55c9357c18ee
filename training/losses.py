"""Losses over the vocabulary, and what they are computed of; never the logits of all positions at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..agent_recursivemas import RecursiveMASAgent

IGNORE_INDEX = -100  # the label of positions that no loss counts
LOGITS_AT_ONCE = 2**24  # of all positions together; in float32 64 MiB


@dataclass
class TargetStates:
    """What an agent computed at the positions that predict its target text, aligned on the right.

    Attributes:
        hidden_states: last hidden states h_t, from which token t + 1 follows, (batch, tokens, hidden_size).
        labels: the tokens that follow, (batch, tokens); `IGNORE_INDEX` on padding, which stands on the left.
        lengths: number of target tokens of each row, the end-of-sequence token included.
    """

    hidden_states: torch.Tensor
    labels: torch.Tensor
    lengths: list[int]


def row_means(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over each row's target tokens, (batch, tokens) -> (batch,)."""
    valid = labels != IGNORE_INDEX
    return (values * valid).sum(-1) / valid.sum(-1)


def cross_entropy(agent: RecursiveMASAgent, states: TargetStates) -> torch.Tensor:
    """Cross-entropy of each row's target text, (batch,), computed in float32."""

    def losses(hidden_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = agent.logits(hidden_states).float()
        return functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")

    found = in_parts(agent, losses, states.hidden_states, states.labels)
    return row_means(found.view_as(states.labels), states.labels)


def divergence(agent: RecursiveMASAgent, teacher: TargetStates, student: TargetStates) -> torch.Tensor:
    """KL(teacher || student) of the distributions at the positions of each row's target text, (batch,), in float32."""

    def losses(teaching: torch.Tensor, learning: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = agent.logits(teaching).float().log_softmax(-1)
        found = agent.logits(learning).float().log_softmax(-1)
        return (wanted.exp() * (wanted - found)).sum(-1)

    found = in_parts(agent, losses, teacher.hidden_states, student.hidden_states)
    return row_means(found.view_as(student.labels), student.labels)


def in_parts(agent: RecursiveMASAgent, losses: Callable[..., torch.Tensor], *values: torch.Tensor) -> torch.Tensor:
    """What is computed of each position's logits, for `LOGITS_AT_ONCE` at a time; for gradients, parts twice.

    Args:
        agent: whose vocabulary it is.
        losses: function of the same positions of all values, (n, …) -> (n,) or (n, width).
        values: (batch, tokens, …).

    Returns:
        (batch * tokens,) or (batch * tokens, width).
    """
    flat = [value.flatten(0, 1) for value in values]
    at_once = max(1, LOGITS_AT_ONCE // agent.get_input_embeddings().num_embeddings)
    if len(flat[0]) <= at_once:
        return losses(*flat)
    parts = zip(*(value.split(at_once) for value in flat), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
