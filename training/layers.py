"""Activation checkpointing inside agents: of each layer only the input is kept, and the layer is computed again."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from ..agent_recursivemas import RecursiveMASAgent
from ..errors_recursivemas import ConfigError


def keep_only_inputs(agent: RecursiveMASAgent) -> None:
    """From now on the agent's layers keep only what they read, wherever gradients flow; without them nothing changes.

    transformers' own checkpointing drops the cache without a word, which a rollout thinks on; here a layer that is
    computed again finds the cache as it was.

    Raises:
        ConfigError: the model does not say which modules are its layers.
    """
    if not keep_only_inputs_of(agent.decoder):
        raise ConfigError(
            "Nobody knows the layers of this agent.",
            where=f"agent {agent.role}, {type(agent.decoder).__name__}",
            hint="leave out `layer_checkpointing`; `activation_checkpointing` works with every model",
        )


def keep_only_inputs_of(model: nn.Module) -> bool:
    """The same for a model; whether it has layers that transformers marks."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for index, layer in enumerate(layers):
        if not isinstance(layer.forward, CheckpointedForward):
            layer.forward = CheckpointedForward(layer.forward, index)
    return bool(layers)


class CheckpointedForward:
    """A layer's `forward` that keeps its input only.

    Args:
        forward: the layer's own.
        index: of the layer, and of its part of the cache.
    """

    def __init__(self, forward: Callable[..., Any], index: int) -> None:
        self.forward, self.index = forward, index

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and hidden_states.requires_grad):
            return self.forward(hidden_states, *args, **kwargs)
        cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
        layer = None if cache is None else cache.layers[self.index]
        # Tensors are the checkpoint's own arguments: held by it alone, they go where a stage is computed again.
        tensors: list[torch.Tensor] = [hidden_states]
        given = _without_tensors([args, kwargs, _state(layer)], tensors)
        first = True

        def compute(*tensors: torch.Tensor) -> Any:
            nonlocal first
            args, kwargs, before = _with_tensors(given, tensors)
            if first or layer is None:
                first = False
                return self.forward(tensors[0], *args, **kwargs)
            now = _state(layer)
            vars(layer).update(before)
            try:
                return self.forward(tensors[0], *args, **kwargs)
            finally:
                vars(layer).update(now)

        return checkpoint(compute, *tensors, use_reentrant=False, preserve_rng_state=False)


class _Place(NamedTuple):
    """Stands where a tensor stood."""

    place: int


def _state(layer: Any) -> dict[str, Any]:
    """What a layer of a cache holds. Tables are copied, tensors are not: nothing writes into those under gradients."""
    tensors: list[torch.Tensor] = []
    return {} if layer is None else _with_tensors(_without_tensors(vars(layer), tensors), tensors)


def _without_tensors(value: Any, tensors: list[torch.Tensor]) -> Any:
    """A copy of nested tables with places for tensors, which are appended; not for those of a class of their own."""
    if type(value) is torch.Tensor:
        tensors.append(value)
        return _Place(len(tensors) - 1)
    if type(value) is dict:
        return {name: _without_tensors(each, tensors) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_tensors(each, tensors) for each in value)
    return value


def _with_tensors(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """The same with tensors in their places."""
    if type(value) is _Place:
        return tensors[value.place]
    if type(value) is dict:
        return {name: _with_tensors(each, tensors) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with_tensors(each, tensors) for each in value)
    return value
