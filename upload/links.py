"""The links of a system as its repositories hold them: one for all tasks, or one a task."""

from ..link_files_recursivemas import read_link
from ..links_recursivemas import AnyInnerLink, OuterLink, build_link
from ..modeling_recursivemas import RecursiveMASModel
from ..sources_recursivemas import Source

# Task -> link, of a link that has weights per task; else `None` -> the one link.
LinkByTask = dict[str | None, AnyInnerLink | OuterLink]


def links_of(mas: RecursiveMASModel, name: str) -> LinkByTask:
    """One link of a system for each task that it has weights for.

    Args:
        mas: the system.
        name: the link's name, the role for an inner link.
    """
    if name in mas.agents:
        loaded, widths = mas.agents[name].inner_link, {"in_features": mas.agents[name].hidden_size}
        weights = mas.config.agents[name]["inner_link"].get("weights")
    else:
        loaded = mas.outer_links[name]
        widths = {"in_features": loaded.in_features, "out_features": loaded.out_features}
        names = [link.name for link in mas.topology.links]
        weights = mas.config.links[names.index(name)].get("weights")
    if not (isinstance(weights, dict) and "tasks" in weights):
        return {None: loaded}
    links = {}
    for task in weights["tasks"]:
        tensors, where, _ = read_link(Source(mas.config.name_or_path), weights, name, task)
        links[task] = build_link(tensors, where=where, kind=loaded.kind, **widths)
    return links
