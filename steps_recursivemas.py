"""Latent steps as one compiled graph, where asked for: fast accelerators wait for Python between a step's kernels."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import Cache

from .caches_recursivemas import cache_argument

CAPACITY_STEP = 256  # capacities are multiples of it, so that prompts of other lengths find a graph that is there


class CompiledSteps:
    """One agent's latent step as a graph over a cache of fixed size; one for each batch size and capacity.

    On CUDA the graph is captured and replayed (`reduce-overhead`). For full attention by sdpa, without gradients.

    Args:
        decoder: the agent's text model.
        inner_link: its inner link.
    """

    def __init__(self, decoder: PreTrainedModel, inner_link: nn.Module) -> None:
        device = next(decoder.parameters()).device
        mode = "reduce-overhead" if device.type == "cuda" else "default"

        (cache_name,) = cache_argument(decoder.forward, None)

        def step(inputs_embeds, attention_mask, position_ids, cache):
            hidden_states = decoder(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=True,
                **{cache_name: cache},
            ).last_hidden_state[:, -1]
            return hidden_states, *inner_link.step(hidden_states)

        self._step = torch.compile(step, mode=mode, dynamic=False)
        self._config = decoder.config
        self._caches: dict[tuple[int, int], StaticCache] = {}

    def start(self, cache: Cache, attention_mask: torch.Tensor) -> None:
        """Begins a rollout behind a prompt.

        Args:
            cache: the prompt's keys and values, copied.
            attention_mask: over the prompt and all steps to come, (batch, length).
        """
        batch, length = attention_mask.shape
        capacity = -(-length // CAPACITY_STEP) * CAPACITY_STEP
        self._mask = attention_mask.new_zeros(batch, 1, 1, capacity, dtype=torch.bool)
        self._all = attention_mask.bool()
        self._end = cache.get_seq_length()
        self.steps_taken = 0
        self._mask[:, 0, 0, : self._end] = self._all[:, : self._end]
        if (batch, capacity) not in self._caches:
            self._caches[batch, capacity] = StaticCache(self._config, max_cache_len=capacity)
        self._cache = self._caches[batch, capacity]
        layers: Iterable[tuple[Any, Any]] = zip(self._cache.layers, cache.layers, strict=True)
        for fixed, grown in layers:
            if not fixed.is_initialized:
                fixed.lazy_initialization(grown.keys, grown.values)
            fixed.keys[:, :, : self._end].copy_(grown.keys)
            fixed.values[:, :, : self._end].copy_(grown.values)
            fixed.cumulative_length.fill_(self._end)

    def __call__(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """One step: (batch, 1, hidden_size) -> hidden states and latents, (batch, hidden_size), and what was said."""
        self._mask[:, 0, 0, self._end] = self._all[:, self._end]
        self._end += 1
        position_ids = position_ids.clone(memory_format=torch.contiguous_format)
        torch.compiler.cudagraph_mark_step_begin()
        hidden_states, latents, said = self._step(inputs_embeds, self._mask, position_ids, self._cache)
        self.steps_taken += 1
        # A replay writes into the same memory again.
        return hidden_states.clone(), latents.clone(), None if said is None else said.clone()
