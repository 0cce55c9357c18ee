"""Tensors that a run computes once and reads again and again: on disk, since frozen states of long data are large."""

import tempfile
from collections.abc import Hashable
from pathlib import Path

import torch


class TensorStore:
    """Tensors by key, in a file without a name that is gone with the process; the system's page cache keeps it fast.

    Args:
        folder: where the file lies; `None` is the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (as long as the store)
        self._places: dict[Hashable, tuple[int, torch.Size, torch.dtype, object]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def put(self, key: Hashable, tensor: torch.Tensor, owner: object = None) -> None:
        """Keeps a copy of a tensor; `owner` stays alive as long as its key, which may hold its id."""
        data = tensor.detach().cpu().contiguous()
        place = self._file.seek(0, 2)
        self._file.write(data.view(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b"")
        self._places[key] = place, data.shape, data.dtype, owner

    def get(self, key: Hashable, device: torch.device) -> torch.Tensor:
        """The tensor of a key."""
        place, shape, dtype, _ = self._places[key]
        self._file.seek(place)
        data = bytearray(self._file.read(shape.numel() * dtype.itemsize))
        return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).view(shape).to(device)
