"""What travels from one agent to another: the one place that says which positions of a rollout are handed over."""

import torch

from .agent_recursivemas import RecursiveMASAgent
from .links_recursivemas import AnyOuterLink, CacheLink, OuterLink
from .thinking_recursivemas import Rollout


def hand_over(sender: RecursiveMASAgent, link: AnyOuterLink, rollout: Rollout) -> list[torch.Tensor]:
    """Sends the thoughts of a batch along an outer link; gradients flow through the link.

    A link that snaps reads each latent as the embedding of its nearest token that is text (no gradient flows through
    that), so that what a rollout blurred does not add up over hand-overs; the rollout itself stays as it was.

    Args:
        sender: the agent that thought.
        link: an outer link from it.
        rollout: its thoughts; steps behind a row's length are not sent.

    Returns:
        Each row's positions in the receiver's embedding space, (n, width of the receiver), in the link's dtype; none
        for a row without thoughts.
    """
    if isinstance(link, CacheLink):  # what was thought is in the memory that travels
        return [row[:count] for row, count in zip(rollout.latents, rollout.lengths.tolist(), strict=True)]
    latents = sender.snap(rollout.latents) if link.snap else rollout.latents
    lengths = rollout.lengths.tolist()
    if isinstance(link, OuterLink):
        sent, counts = link(latents), lengths
    else:
        sent = link(latents, rollout.hidden_states, rollout.lengths)
        counts = [link.positions if length else 0 for length in lengths]
    return [row[:count] for row, count in zip(sent, counts, strict=True)]
