"""The links of a system as its repositories hold them: one for all tasks (the task is `None`), or one a task."""

from collections.abc import Iterator
from typing import Any

import torch

from ..link_files_recursivemas import read_link
from ..links_recursivemas import AnyInnerLink, OuterLink, build_link
from ..modeling_recursivemas import RecursiveMASModel
from ..sources_recursivemas import Source


def inner_links_of(mas: RecursiveMASModel, role: str) -> dict[str | None, AnyInnerLink]:
    """Task -> inner link of an agent."""
    link = mas.agents[role].inner_link
    links: dict[str | None, AnyInnerLink] = {}
    for task, tensors, where in _stored(mas, mas.config.agents[role]["inner_link"].get("weights"), role):
        links[task] = build_link(tensors, where=where, kind=link.kind, in_features=link.in_features)
    return links or {None: link}


def outer_links_of(mas: RecursiveMASModel, name: str) -> dict[str | None, OuterLink]:
    """Task -> outer link, by the link's name."""
    link = mas.outer_links[name]
    width, target_width = link.in_features, link.out_features
    position = [entry.name for entry in mas.topology.links].index(name)
    links: dict[str | None, OuterLink] = {}
    for task, tensors, where in _stored(mas, mas.config.links[position].get("weights"), name):
        links[task] = build_link(tensors, where=where, kind=link.kind, in_features=width, out_features=target_width)
    return links or {None: link}


def _stored(mas: RecursiveMASModel, weights: Any, name: str) -> Iterator[tuple[str, dict[str, torch.Tensor], str]]:
    """Task, weights and where they came from, of a link whose `weights` in the configuration are per task."""
    source = Source(mas.config.name_or_path or "")
    for task in weights["tasks"] if isinstance(weights, dict) and "tasks" in weights else ():
        tensors, where, _ = read_link(source, weights, name, task)
        yield task, tensors, where
