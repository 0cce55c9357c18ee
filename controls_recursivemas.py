"""Controls of the channel: what stands in a slot in place of the latents, so that it shows what these carry."""

import hashlib
from collections.abc import Sequence

import torch

from .agent_recursivemas import RecursiveMASAgent
from .prompts_recursivemas import PromptRenderer
from .runs_recursivemas import TEXT_CONTROLS


def stand_in(
    control: str,
    rows: list[torch.Tensor],
    agent: RecursiveMASAgent,
    renderer: PromptRenderer,
    texts: Sequence[str] | None,
    names: Sequence[object],
    answers: bool,
) -> list:
    """What fills a slot in place of what was sent along one link in one round.

    Texts replace every hand-over. Noise and another question's latents replace those that the answer is written from:
    nothing else reaches it, and they have the number and the norms (or are the very latents) that it would have had.

    Args:
        control: one of `CONTROLS`, but not "none", where nobody sends.
        rows: the latents that each row would have received, (n, hidden_size).
        agent: the receiver.
        renderer: its renderer.
        texts: what the sender wrote, one text a row, for the controls that cut it.
        names: of each row, what its noise is drawn from: the same name, the same noise.
        answers: whether the receiver writes the answer.

    Returns:
        For each row, latents (n, hidden_size) or token ids.
    """
    if control == "read_out":
        return [renderer.message_ids(agent.read_out(row)) for row in rows]
    if control in TEXT_CONTROLS:
        assert texts is not None
        messages = [(renderer.message_ids(text), len(row)) for text, row in zip(texts, rows, strict=True)]
        if control == "text_first":
            return [ids[:count] for ids, count in messages]
        return [ids[max(0, len(ids) - count) :] for ids, count in messages]
    if not answers:
        return rows
    if control == "other_question":
        return [*rows[1:], rows[0]]
    return [_noise_like(row, name) for row, name in zip(rows, names, strict=True)]


def _noise_like(latents: torch.Tensor, name: object) -> torch.Tensor:
    """Gaussian directions with the norms of latents (n, hidden_size); seeded by a name, on the CPU."""
    seed = int.from_bytes(hashlib.sha256(repr(name).encode()).digest()[:7], "big")
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents.device)
    norms = latents.float().norm(dim=-1, keepdim=True)
    return (noise / noise.norm(dim=-1, keepdim=True) * norms).to(latents.dtype)
