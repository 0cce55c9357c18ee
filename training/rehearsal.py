"""Running code for the sizes of its tensors: what is alive is counted; on torch's `meta` device nothing is there."""

import weakref
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "recursivemas_fused"  # on `meta`
aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that come into being here and are alive.

    Args:
        wide: sizes of the last dimension of tensors whose bytes are counted by themselves too.

    Attributes:
        now, peak: bytes.
        wide_peak: of the peak, those of such tensors.
    """

    def __init__(self, wide: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.wide = wide
        self.now = self.peak = self.wide_now = self.wide_peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in (*_tensors(args), *_tensors(kwargs))}
        result = self.compute(func, args, kwargs or {})
        for leaf in _tensors(result):
            storage = leaf.untyped_storage()
            if id(storage) not in given and id(storage) not in self._known:
                self._add(storage, leaf.ndim > 0 and leaf.shape[-1] in self.wide)
        return result

    def compute(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """What an operation gives."""
        return func(*args, **kwargs)

    def _add(self, storage: torch.UntypedStorage, wide: bool) -> None:
        name, size = id(storage), storage.nbytes()

        def gone(_: object) -> None:
            self.now -= size
            self.wide_now -= size * wide
            del self._known[name]

        self._known[name] = weakref.ref(storage, gone)
        self.now += size
        self.wide_now += size * wide
        if self.now > self.peak:
            self.peak, self.wide_peak = self.now, self.wide_now


class Rehearsal(LiveBytes):
    """Counts what is run on `meta`; what depends on the contents of tensors is answered.

    Args:
        count: the answer to how many thoughts a row has.
        whole: whether no row is padded.
        wide: see `LiveBytes`.

    Attributes:
        peaks: of each part of the run that began with `mark`: peak, and what of it is wide.
    """

    def __init__(self, count: int, whole: bool, wide: frozenset[int]) -> None:
        super().__init__(wide)
        self.count, self.whole, self._all = count, whole, False
        self.peaks: list[tuple[int, int]] = []
        self._sizes: dict[Hashable, Any] = {}  # of what an operation gave before

    def mark(self) -> None:
        """Begins another part."""
        self.peaks.append((self.peak, self.wide_peak))
        self.peak, self.wide_peak = self.now, self.wide_now

    def compute(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if func is aten._local_scalar_dense.default:
            return {torch.bool: self._all, torch.int64: self.count}.get(args[0].dtype, 0.0)
        if func is aten._to_copy.default and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return torch.full(args[0].shape, self.count)  # `tolist()`
        if func is aten.all.default:  # of masks, (batch, positions), or of the rows that have ended, (batch,)
            self._all = self.whole and args[0].ndim > 1
        if func is aten.masked_scatter_backward.default:  # looks at the mask
            func, args = aten.new_empty.default, (args[0], args[2])
        key = func, _key(args), _key(kwargs)
        if key not in self._sizes:  # once, since torch's own way is slow
            result = func(*args, **kwargs)
            self._sizes[key] = _sizes(result, (*_tensors(args), *_tensors(kwargs)))
            return result
        sizes = self._sizes[key]
        if sizes is None:
            return func(*args, **kwargs)
        new = [torch.empty_strided(*size, dtype=dtype, device="meta") for *size, dtype in sizes]
        return tuple(new) if len(func._schema.returns) > 1 else new[0]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those in the arguments or results of an operation."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def _key(value: Any) -> Hashable:
    """What of the arguments of an operation decides about sizes."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, dict):
        return tuple(value), _key([*value.values()])
    return tuple(map(_key, value)) if isinstance(value, list | tuple) else (type(value), value)


def _sizes(result: Any, given: tuple[torch.Tensor, ...]) -> list[tuple] | None:
    """Shape, stride and dtype of each result, where all are new tensors and nothing else, on `meta`."""
    if not isinstance(result, torch.Tensor | tuple):
        return None
    new, known = list(_tensors(result)), {id(tensor.untyped_storage()) for tensor in given}
    found: list[tuple] = []
    for tensor in new:
        storage = tensor.untyped_storage()
        size = tensor.shape, tensor.stride(), tensor.dtype
        whole = torch.empty_strided(*size[:2], dtype=tensor.dtype, device="meta").untyped_storage().nbytes()
        if not tensor.is_meta or id(storage) in known or whole != storage.nbytes():
            return None
        known.add(id(storage))
        found.append(size)
    return found if isinstance(result, torch.Tensor) or len(found) == len(result) else None


class _FusedAttention(TorchFunctionMode):
    """Lets attention on `meta` be a kernel that keeps no scores, as on processors and accelerators."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:  # each layer makes numbers of it
            mask = torch.empty(mask.shape, dtype=args[0].dtype, device="meta")
        kernel = aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(*args, is_causal=kwargs["is_causal"], attn_mask=mask, scale=kwargs["scale"])[0]


def _fused_attention(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    with _FusedAttention():
        return sdpa_attention_forward(*args, **kwargs)


AttentionInterface.register(ATTENTION, _fused_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class SizesOnly:
    """Stands in for a `TensorStore` of which only sizes count."""

    def __init__(self) -> None:
        self._places: dict[Hashable, tuple[torch.Size, torch.dtype]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def put(self, key: Hashable, tensor: torch.Tensor, owner: object = None) -> None:
        self._places[key] = tensor.shape, tensor.dtype

    def get(self, key: Hashable, device: torch.device) -> torch.Tensor:
        shape, dtype = self._places[key]
        return torch.empty(shape, dtype=dtype, device=device)
