"""Key/value caches that gradients can flow through."""

import copy
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from ..agent_recursivemas import RecursiveMASAgent
from ..caches_recursivemas import GrowingLayer
from ..errors_recursivemas import ConfigError


class State(torch.Tensor):
    """A recurrent state as a model reads it. Where the model would write into it (as Mamba does), a new one is put.

    What is computed from it is a plain tensor.
    """

    owner: LinearAttentionLayer
    place: int

    @classmethod
    def of(cls, owner: LinearAttentionLayer, place: int, value: torch.Tensor) -> "State":
        state = value.as_subclass(cls)
        state.owner, state.place = owner, place
        return state

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.copy_ and isinstance(args[0], cls):
            state = args[0]
            state.owner.recurrent_states[state.place] = cls.of(state.owner, state.place, args[1])
            return args[1]
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(torch.Tensor) if isinstance(result, cls) else result


class DifferentiableLinearAttentionLayer(LinearAttentionLayer):
    """The states of a linear-attention layer, replaced at each step.

    transformers' own layer copies into its tensors, which destroys what the backward pass needs.
    """

    # The model's shortcut for a single position writes into the convolution's state, unless the past is recorded.
    record_past = property(lambda self: True, lambda self, value: None)

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs
    ) -> torch.Tensor:
        """Returns the previous states with the new ones, (batch, channels, kept + new), and keeps the last ones."""
        size = conv_kernel_size or conv_states.shape[-1]
        if self.has_previous_state[state_idx]:
            conv_states = torch.cat([self.conv_states[state_idx], conv_states], dim=-1)  # type: ignore[list-item]
        kept = functional.pad(conv_states, (max(0, size - conv_states.shape[-1]), 0))[..., -size:]
        self.conv_states[state_idx] = kept
        self.conv_kernel_size[state_idx] = size
        self.device, self.dtype = kept.device, kept.dtype  # type: ignore[assignment]
        self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True
        return conv_states

    def update_recurrent_state(self, recurrent_states: torch.Tensor, state_idx: int = 0, **kwargs) -> torch.Tensor:
        """Keeps and returns the new state."""
        self.recurrent_states[state_idx] = State.of(self, state_idx, recurrent_states)
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states


class DifferentiableHybridLayer(  # type: ignore[misc, override]  # as transformers' own
    DifferentiableLinearAttentionLayer, LinearAttentionAndFullAttentionLayer
):
    """Both in one layer (Falcon-H1): the states are replaced, and keys and values are so already."""


class DifferentiableHybridWindowLayer(  # type: ignore[misc, override]
    DifferentiableLinearAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer
):
    """The same with a sliding window."""


DIFFERENTIABLE: dict[type, type] = {
    LinearAttentionLayer: DifferentiableLinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer: DifferentiableHybridLayer,
    LinearAttentionAndSlidingWindowAttentionLayer: DifferentiableHybridWindowLayer,
}


class ChunkedLayer(DynamicLayer):
    """The keys and values of a full-attention layer as a list, put together whenever they are read.

    Under gradients every step of a rollout would keep all earlier ones anew; of a layer of which only the input is
    kept (see `keep_only_inputs`), this keeps each once.
    """

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> None:
        super().__init__()
        self.parts = () if keys is None or values is None else ((keys, values),)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends (batch, heads, new, width) keys and values; returns all of them."""
        self.parts = (*self.parts, (key_states, value_states))
        keys, values = (torch.cat(each, dim=-2) for each in zip(*self.parts, strict=True))
        return keys, values

    def get_seq_length(self) -> int:
        return sum(keys.shape[-2] for keys, _ in self.parts)


def in_chunks(cache: Cache) -> Cache:
    """A cache that goes on from another, which stays as it is, with `ChunkedLayer` for layers of full attention."""
    other = copy.copy(cache)
    other.layers = [
        ChunkedLayer(*((layer.keys, layer.values) if layer.get_seq_length() else ()))
        if type(layer) is GrowingLayer
        else layer
        for layer in cache.layers
    ]
    return other


def forget(cache: Cache | None) -> None:
    """Empties a cache that nobody reads any more.

    Its keys hold all that they were computed from: in a builder's cache, the whole of a stage that is over. And where
    only inputs of layers are kept, these know the cache: nothing else would undo that circle.
    """
    for layer in [] if cache is None else cache.layers:
        for name in ("keys", "values"):
            if hasattr(layer, name):
                setattr(layer, name, None)
        for name in ("conv_states", "recurrent_states"):
            if hasattr(layer, name):
                setattr(layer, name, [None] * len(getattr(layer, name)))
        if isinstance(layer, ChunkedLayer):
            layer.parts = ()


def differentiable_cache(agent: RecursiveMASAgent) -> DynamicCache:
    """An empty cache for an agent; a backward pass through several uses of it is exact.

    Raises:
        ConfigError: the agent has a kind of layer whose cache is known to be written in place.
    """
    cache = agent.new_cache()
    for layer in cache.layers:
        if type(layer) in DIFFERENTIABLE:
            layer.__class__ = DIFFERENTIABLE[type(layer)]
        elif isinstance(layer, LinearAttentionCacheLayerMixin):
            raise ConfigError(
                "Gradients cannot flow through this agent's cache.",
                where=f"agent {agent.role}, {type(layer).__name__}",
                hint="train with teacher-forced latents (`latents=teacher`)",
            )
    return cache
