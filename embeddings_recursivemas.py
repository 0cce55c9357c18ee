"""Latents where a base model asks for token ids: the one way in which a prompt with latents reaches `generate`.

The base model is asked from token ids, as always; where a prompt has latents, its input embeddings give these.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .errors_recursivemas import CheckpointError


@contextmanager
def prompt_embeddings(
    module: torch.nn.Module, inputs_embeds: torch.Tensor, ids: torch.Tensor, *, past: int, once: bool, where: str
) -> Iterator[None]:
    """While it lasts, a model's input embeddings are the prompt's wherever this thread asks for the prompt's ids.

    So the base model reads latents as it reads tokens, whatever its way of generating is: in chunks, with candidates
    behind the prompt, or all over again at each step.

    Args:
        module: the model's input embeddings.
        inputs_embeds: of the prompts, (batch, length, hidden_size).
        ids: what stands in for them, (batch, length), see `PromptBatch.input_ids`.
        past: how many leading positions a cache holds already.
        once: the prompt is read only once.
        where: the agent, for messages.

    Raises:
        CheckpointError: the model did not ask its input embeddings for the prompt.
    """
    owner, length, read = threading.get_ident(), ids.shape[1], past

    def embeddings(_: torch.nn.Module, arguments: tuple, kwargs: dict, output: torch.Tensor) -> Any:
        nonlocal read
        asked = arguments[0] if arguments else kwargs.get("input")
        if threading.get_ident() != owner or not isinstance(asked, torch.Tensor) or asked.ndim != 2:
            return None
        start = read if read < length else 0
        width = min(asked.shape[1], length - start)
        if read >= length and width < length:
            return None  # a step
        copies = asked.shape[0] // ids.shape[0]
        expected = ids[:, start : start + width].repeat_interleave(copies, dim=0)
        if not torch.equal(expected.to(asked.device), asked[:, :width]):
            return None
        read = max(read, start + width)
        if once and read == length:
            handle.remove()
        embeds = inputs_embeds[:, start : start + width].repeat_interleave(copies, dim=0)
        return torch.cat([embeds.to(output), output[:, width:]], dim=1)

    handle = module.register_forward_hook(embeddings, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    if read < length:
        raise CheckpointError(
            "A model does not read its prompt through its input embeddings, so that latents do not reach it.",
            where=where,
        )
