"""Roles of one base share one model: who is of one base, and how a system loads each base once."""

import filecmp
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .bases_recursivemas import (
    TOKENIZER_FILES,
    build_empty_model,
    load_base_model,
    load_tokenizer,
    widen_where_slow,
)
from .sources_recursivemas import Source
from .stamps_recursivemas import mark_of

T = TypeVar("T")
# What of an agent's folder makes its base model. Inner links lie beside it, and are the role's own.
BASE_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
# What an agent's config.json says that is not of its base model.
OWN_KEYS = ("auto_map", "inner_link", "base_model", "_name_or_path", "name_or_path", "transformers_version")
CONTENT = 64  # hexadecimal digits of SHA-256, by which the Hub cache names large files


class Shared(Generic[T]):
    """Things made of files, each made once: what came of the same files with the same settings is given again.

    Args:
        patterns: of the files.
    """

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = patterns
        self._made: list[tuple[Source, tuple, T]] = []

    def get(self, place: Source, settings: tuple, make: Callable[[], T], here: bool = True) -> T:
        """What `make` makes of a local place; `here` says whether its files are all there, so that they compare."""
        for known, how, made in self._made:
            if how == settings and (
                is_same_folder(known, place) or (here and same_files(known, place, self.patterns))
            ):
                return made
        self._made.append((place, settings, make()))
        return self._made[-1][2]


class Bases:
    """Base models and tokenizers of a system while it is loaded; roles of one base get the same objects.

    One base means: the files of one folder (or commit), or files of the same bytes, loaded with the same settings for
    the same device.

    Args:
        share: `False` gives every role a model and a tokenizer of its own.
    """

    def __init__(self, share: bool = True) -> None:
        self.share = share
        self._models: Shared[PreTrainedModel] = Shared(BASE_FILES)
        self._tokenizers: Shared[PreTrainedTokenizerBase] = Shared(TOKENIZER_FILES)

    def tokenizer(self, place: Source, role: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
        """The tokenizer in a local place, see `load_tokenizer`."""
        settings = self._settings(place, role, trust_remote_code)
        return self._tokenizers.get(place, settings, lambda: load_tokenizer(place, role, trust_remote_code))

    def model(
        self, place: Source, role: str, kwargs: Mapping[str, Any], device: Any = None, offload: bool = False
    ) -> PreTrainedModel:
        """The base model in a local place, on its device.

        Args:
            place: local folder with all files.
            role: for error messages.
            kwargs: of `load_base_model`.
            device: where it goes; `None` leaves it where it is loaded.
            offload: whether it waits on the processor until it is needed there.
        """
        kwargs = dict(kwargs)
        if device is not None and not offload and "quantization_config" in kwargs:
            kwargs.setdefault("device_map", {"": device})  # quantized weights cannot be moved afterwards

        def load() -> PreTrainedModel:
            model = load_base_model(place, role, **kwargs)
            if "device_map" in kwargs:
                return model
            if kwargs.get("dtype", "auto") == "auto" and torch.device(device or "cpu").type == "cpu":
                model = widen_where_slow(model)
            return model if device is None or offload else model.to(device)

        how = sorted((key, str(value).removeprefix("torch.")) for key, value in kwargs.items() if value is not False)
        trusted = bool(kwargs.get("trust_remote_code"))
        settings = ("whole", *how, str(_device(device)), offload, *self._settings(place, role, trusted))
        return self._models.get(place, settings, load)

    def empty_model(
        self, place: Source, role: str, config: PreTrainedConfig, trust_remote_code: bool = False
    ) -> PreTrainedModel:
        """The base model in a local place without weights; see `build_empty_model`."""
        settings = ("empty", *self._settings(place, role, trust_remote_code))
        return self._models.get(
            place, settings, lambda: build_empty_model(place, config, trust_remote_code), here=False
        )

    def _settings(self, place: Source, role: str, trusted: bool) -> tuple:
        """What keeps roles apart: code of their own is compared by its folder, and `share`."""
        return (os.path.realpath(place.path) if trusted else None, None if self.share else role)


def _device(device: Any) -> Any:
    return None if device is None else torch.empty(0, device=device).device


def is_same_folder(place: Source, other: Source) -> bool:
    """Whether two local places are one."""
    return os.path.realpath(place.path) == os.path.realpath(other.path)


def same_files(place: Source, other: Source, patterns: tuple[str, ...]) -> bool:
    """Whether two local places hold the same bytes in the files that fit patterns, of which there is at least one.

    Costs the comparison of all bytes only where sizes and samples agree: about what reading them for a load does.
    """
    folders = Path(place.path), Path(other.path)
    names, theirs = ({path.name for p in patterns for path in folder.glob(p)} for folder in folders)
    if not names or names != theirs:
        return False
    pairs = [(folders[0] / name, folders[1] / name) for name in sorted(names)]
    return all(_same_small(*pair) for pair in pairs) and all(map(_same_bytes, *zip(*pairs, strict=True)))


def _same_small(path: Path, other: Path) -> bool:
    """What is cheap to compare: settings, sizes, and samples of weights."""
    if path.name == "config.json":
        return _settings_of(path) == _settings_of(other)
    if path.stat().st_size != other.stat().st_size:
        return False
    return path.suffix != ".safetensors" or _mark(path) == _mark(other)


def _same_bytes(path: Path, other: Path) -> bool:
    if path.name == "config.json" or path.samefile(other):
        return True
    real, theirs = path.resolve(), other.resolve()
    if all(each.parent.name == "blobs" and len(each.name) == CONTENT for each in (real, theirs)):
        return real.name == theirs.name
    return filecmp.cmp(path, other, shallow=False)


def _settings_of(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return object()  # equal to nothing
    return {key: content[key] for key in content if key not in OWN_KEYS} if isinstance(content, dict) else object()


def _mark(path: Path) -> Any:
    try:
        return mark_of(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return object()


def shared_bases(agents: Iterable[tuple[str, Any]]) -> list[tuple[str, ...]]:
    """The roles of each base that more than one role has, in their order.

    Args:
        agents: role and agent.
    """
    groups: dict[int, list[str]] = {}
    for role, agent in agents:
        groups.setdefault(id(agent.get_input_embeddings().weight), []).append(role)
    return [tuple(roles) for roles in groups.values() if len(roles) > 1]
