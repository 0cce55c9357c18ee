"""RecursiveMAS: frozen language models that collaborate in latent space."""

import contextlib
import importlib
import sys
import threading
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .system_loader import load_mas_system

__version__ = "0.2.0"
ROOT = Path(__file__).resolve().parent
__all__ = ["__version__", "load_mas_system"]


class _OneIdentity(MetaPathFinder, Loader):
    """Gives `recursivemas.links_recursivemas` and its like as the modules that transformers' Auto classes load.

    transformers runs a repository's code from a copy of its own. Without this, an ordinary import would make a second
    copy of every class, and nothing of one would be an instance of the other.
    """

    _copies: str | None = None  # the package that transformers has made
    _lock = threading.RLock()

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        is_remote = package == __name__ and name.endswith("_recursivemas") and (ROOT / f"{name}.py").is_file()
        return ModuleSpec(fullname, self) if is_remote else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        with self._lock:
            if self._copies is None:  # asked once: the files may change while a process lives
                self._copies = _copy()
        module = importlib.import_module(f"{self._copies}.{spec.name.rpartition('.')[2]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__  # the import system has put this finder's there
        module.__spec__ = spec and spec.loader_state


def _copy() -> str:
    """Lets transformers copy the code; of processes that do so for the first time at once, one after another."""
    from filelock import FileLock
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.utils import HF_MODULES_CACHE

    lock = FileLock(Path(HF_MODULES_CACHE, "recursivemas.lock"))
    with contextlib.suppress(OSError):  # nobody writes there, so that nobody copies either
        Path(HF_MODULES_CACHE).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        entry = get_class_from_dynamic_module("modeling_recursivemas.RecursiveMASModel", str(ROOT))
    finally:
        lock.release()
    return entry.__module__.rpartition(".")[0]


sys.meta_path.insert(0, _OneIdentity())


def __getattr__(name: str) -> object:
    if name == "load_mas_system":  # late, because it brings torch and transformers along
        return importlib.import_module(f"{__name__}.system_loader").load_mas_system
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
