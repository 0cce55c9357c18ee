"""Running out of memory: how it is told, and what to do about it."""

import gc
import re

import torch

# What the allocators of processors, CUDA, its libraries, and MPS say; most in a plain RuntimeError.
MESSAGES = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and MESSAGES.search(str(error)) is not None


def free_memory() -> None:
    """Gives back what nobody holds any more: frames of a failed attempt, blocks that a device's allocator kept."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
