"""What threads and forked processes need: systems are loaded one at a time, a forked child computes in one thread."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.RLock()
_heard_of_forks = False


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lets one thread build models at a time; the others wait. It is a decorator too.

    `from_pretrained` sets the default dtype and the initialisers of the whole process: of models that are built side
    by side, some come out in another's dtype or without weights, and the process stays like that.
    """
    global _heard_of_forks
    if not _heard_of_forks and hasattr(os, "register_at_fork"):
        _heard_of_forks = True
        os.register_at_fork(after_in_child=_begin_child)
    with _lock:
        yield


def _begin_child() -> None:
    """OpenMP's threads do not outlive a fork, and whoever held the lock is not there: both would wait for ever."""
    global _lock
    _lock = threading.RLock()
    torch.set_num_threads(1)
