"""Key/value caches that grow without copying, and heads of prompts that are read once."""

import copy
import inspect
from collections.abc import Callable
from functools import cache as memoize
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """A full-attention layer's cache that writes new positions into spare room.

    transformers' own layer copies all earlier keys and values at each step, which at 300 positions takes a third of
    the time of a step on a processor. Under gradients (which in-place writes would break) this one does the same.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self._rooms: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends (batch, heads, new, width) keys and values; returns all of them."""
        if torch.is_grad_enabled():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        end = past + key_states.shape[-2]
        if not self._has_room(end):
            for name, new in (("keys", key_states), ("values", value_states)):
                room = new.new_empty(*new.shape[:-2], end + max(128, end // 4), new.shape[-1])
                if past:
                    room[..., :past, :] = getattr(self, name)
                self._rooms[name] = room
        self._rooms["keys"][..., past:end, :] = key_states
        self._rooms["values"][..., past:end, :] = value_states
        keys, values = self._rooms["keys"][..., :end, :], self._rooms["values"][..., :end, :]
        self.keys, self.values = keys, values
        return keys, values

    def _has_room(self, end: int) -> bool:
        """Whether the current keys lie at the start of a room with `end` positions (not after a reordering)."""
        return bool(self._rooms) and all(
            room.shape[-2] >= end and getattr(self, name).data_ptr() == room.data_ptr()
            for name, room in self._rooms.items()
        )


@memoize
def _cache_name(function: Callable) -> str:
    return "cache" if "cache" in inspect.signature(function).parameters else "past_key_values"


def cache_argument(function: Callable, cache: Cache | None) -> dict[str, Cache | None]:
    """The argument that hands a cache to a model's `forward` or `generate`, by the name that it has there.

    transformers calls it `past_key_values`, and from 5.24 on `cache`.
    """
    return {_cache_name(getattr(function, "__func__", function)): cache}


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache that knows the layer types (sliding window, linear attention) of a text model's configuration."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_crop(cache: Cache) -> bool:
    """Whether every layer keeps all positions, so that a cache can go back and may have masked holes."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


def past_length(cache: Cache) -> int | None:
    """How many positions a cache holds; `None` for recurrent states alone, which do not count."""
    try:
        return cache.get_seq_length()
    except ValueError:
        return None


class Prefix:
    """Keys and values of the head of a prompt that does not change between rounds; every use continues from them.

    Full-attention layers are set back to them, also where gradients flow through what follows. Sliding-window and
    linear-attention layers cannot be, so that each use but the last works on copies of them.

    Args:
        cache: holds exactly the head.
        attention_mask: (batch, length), zeros on padding.
    """

    def __init__(self, cache: Cache, attention_mask: torch.Tensor) -> None:
        self.attention_mask, self._cache = attention_mask, cache
        # Linear-attention layers have no keys and values.
        self._layers = [
            (layer, (getattr(layer, "keys", None), getattr(layer, "values", None))) for layer in cache.layers
        ]

    @property
    def length(self) -> int:
        return self.attention_mask.shape[1]

    def narrowed(self, rows: list[int]) -> "Prefix | None":
        """The same head of some rows, with a cache of its own; `None` where a layer cannot be set back."""
        return Prefix(self.branch(rows), self.attention_mask[rows]) if can_crop(self._cache) else None

    def branch(self, rows: list[int] | slice = slice(None)) -> Cache:
        """A cache of its own that holds the head, and grows elsewhere; only where every layer can be set back."""
        cache = copy.copy(self._cache)
        cache.layers = []
        for layer, (keys, values) in self._layers:
            own: Any = copy.copy(layer)
            own.keys, own.values, own._rooms = keys[rows], values[rows], {}  # type: ignore[index]  # all have them
            cache.layers.append(own)
        return cache

    def open(self, last_use: bool) -> Cache:
        """A cache that holds exactly the prefix; what came out before must not be used any more."""
        for index, (layer, head) in enumerate(self._layers):
            if type(layer) is GrowingLayer:
                layer.keys, layer.values = head
            else:
                self._cache.layers[index] = layer if last_use else copy.deepcopy(layer)
        return self._cache
