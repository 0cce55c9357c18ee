"""Where a link's weights are, by the `weights` entry of a configuration, and reading them."""

from typing import Any

import torch

from .release_recursivemas import entry_of_task, release_inner_link, release_outer_link, validate_stated
from .sources_recursivemas import Source, read_tensors


def link_filename(name: str, task: str | None = None) -> str:
    """Native file name of a link's weights: `planner.safetensors`, and per task `planner(math).safetensors`."""
    return f"{name}.safetensors" if task is None else f"{name}({task}).safetensors"


def find_link(
    source: Source, weights: Any, name: str, task: str | None, legacy_key: str | None = None
) -> tuple[Source, str, dict]:
    """Finds a link's file, wherever the `weights` entry of a configuration says; the file itself is not touched.

    Where that is another repository without a file name, the rules of the public release find the file. Inner links:
    the entry of innerlink_config.json for the task, then `adapter(<task>).pt`, then `adapter.pt`. Outer links: the
    entry of outerlink_config.json (for the task, where it has tasks) with the link's legacy key, or else with the
    file name `<Source>-<Target>-Outerlink.pt`.

    Args:
        source: the system's own repository.
        weights: see `RecursiveMASConfig`; `None` is `links/<name>.safetensors` of this repository.
        name: the link's name: the role for an inner link, `<source>_to_<target>` for an outer one.
        task: which entry of weights per task to take.
        legacy_key: the link's name in the release.

    Returns:
        The repository, the file's name in it, and what a release manifest states (`adapter_type`, `in_dim`, …).

    Raises:
        CheckpointError: a manifest is missing or broken, or names no file.
    """
    if isinstance(weights, dict) and "tasks" in weights:
        weights = entry_of_task(weights["tasks"], task, f"{source}, link {name}")
    if weights is None or isinstance(weights, str):
        return source, weights or f"links/{link_filename(name)}", {}
    source = source.other(weights["source"], weights.get("revision"))
    if "filename" in weights:
        return source, weights["filename"], {}
    if "_to_" in name:
        return source, *release_outer_link(source, name, task, legacy_key)
    return source, *release_inner_link(source, task)


def read_link(
    source: Source, weights: Any, name: str, task: str | None, legacy_key: str | None = None
) -> tuple[dict[str, torch.Tensor], str, str | None]:
    """Reads a link's weights; the arguments are those of `find_link`.

    Returns:
        The state dict, the file it came from, and the kind that a release manifest states (or `None`).

    Raises:
        CheckpointError: a file is missing or broken, or a manifest contradicts the weights.
    """
    source, filename, stated = find_link(source, weights, name, task, legacy_key)
    where = f"{source}, {filename}"
    tensors = read_tensors(source.file(filename), where)
    validate_stated(tensors, stated, where, outer="_to_" in name)
    return tensors, where, stated.get("adapter_type")
