"""The links of a system as its repositories hold them: one for all tasks (the task is `None`), or one a task."""

from collections.abc import Iterator

import torch

from ..link_building_recursivemas import build_link
from ..link_files_recursivemas import read_link
from ..links_recursivemas import AnyInnerLink, AnyOuterLink
from ..modeling_recursivemas import RecursiveMASModel
from ..sources_recursivemas import Source


def inner_links_of(mas: RecursiveMASModel, role: str) -> dict[str | None, AnyInnerLink]:
    """Task -> inner link of an agent."""
    link = mas.agents[role].inner_link
    return {
        task: build_link(tensors, where=where, kind=link.kind, in_features=link.in_features, options=link.options)
        for task, tensors, where in _stored(mas, mas.config.agents[role]["inner_link"], role)
    } or {None: link}


def outer_links_of(mas: RecursiveMASModel, name: str) -> dict[str | None, AnyOuterLink]:
    """Task -> outer link, by the link's name."""
    link = mas.outer_links[name]
    width, target_width = link.in_features, link.out_features
    entries = {link.name: entry for link, entry in zip(mas.topology.links, mas.config.links, strict=True)}
    return {
        task: build_link(
            tensors,
            where=where,
            kind=link.kind,
            in_features=width,
            out_features=target_width,
            options=link.options,
        )
        for task, tensors, where in _stored(mas, entries[name], name)
    } or {None: link}


def _stored(
    mas: RecursiveMASModel, entry: dict, name: str
) -> Iterator[tuple[str | None, dict[str, torch.Tensor], str]]:
    """Task, weights and where they came from, of a link whose `weights` in the configuration are per task."""
    source, weights = Source(mas.config.name_or_path or ""), entry.get("weights")
    for task in weights["tasks"] if isinstance(weights, dict) and "tasks" in weights else ():
        tensors, where, _ = read_link(source, weights, name, task)
        yield task, tensors, where
