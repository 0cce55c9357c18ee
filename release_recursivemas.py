"""The public release on disk: how it spells the names of files and links, and where a link's weights are.

Inner links stand in the agents' repositories (`adapter.pt`, per task `adapter(math).pt`), outer links in one of their
own (`Planner-Critic-Outerlink.pt`). Manifests beside them (`adapter_config.json`, `innerlink_config.json`,
`outerlink_config.json`) name files and state kinds and widths.
"""

import os
from pathlib import Path
from typing import Any

import torch

from .errors_recursivemas import CheckpointError
from .link_building_recursivemas import fitting_kinds
from .links_recursivemas import INNER_KINDS, OUTER_KINDS
from .sources_recursivemas import Source
from .topology_recursivemas import Topology

INNER_FILE, INNER_KIND_MANIFEST, INNER_MANIFEST = "adapter", "adapter_config.json", "innerlink_config.json"
OUTER_MANIFEST = "outerlink_config.json"


def release_title(role: str) -> str:
    """`tool_caller` -> `ToolCaller`, as the release writes roles in names."""
    return "".join(part[:1].upper() + part[1:] for part in role.split("_"))


def release_filename(name: str, task: str | None = None) -> str:
    """`adapter.pt`, per task `adapter(math).pt`."""
    return f"{name}.pt" if task is None else f"{name}({task}).pt"


def release_outer_name(source: str, target: str) -> str:
    """`Planner-Critic-Outerlink`, the name of an outer link's file but for task and suffix."""
    return f"{release_title(source)}-{release_title(target)}-Outerlink"


def release_labels(topology: Topology) -> dict[str, str]:
    """Role -> its label in the release's keys (`outer_12`, `outer_1s`, `outer_el`): source's, then target's.

    A chain counts its roles, a pair has initials; roles side by side are counted, the others have initials. Where two
    keys would be the same (two roles with one initial; `1` and `11` in `outer_111`), all roles are counted, with the
    same number of digits.
    """
    roles = topology.roles
    side_by_side = [role for stage in topology.stages if len(stage) > 1 for role in stage]
    counted = [] if len(roles) == 2 else side_by_side or list(roles)
    labels = {role: str(counted.index(role) + 1) if role in counted else role[0] for role in roles}
    if len({a + b for a in labels.values() for b in labels.values()}) < len(roles) ** 2:
        labels = {role: str(number).zfill(len(str(len(roles)))) for number, role in enumerate(roles, start=1)}
    return labels


def entry_of_task(tasks: Any, task: str | None, where: str) -> Any:
    """What a table by task holds for a task.

    Raises:
        CheckpointError: the table has no such entry.
    """
    if not isinstance(tasks, dict) or task not in tasks:
        raise CheckpointError(
            "There are no weights for this task.",
            where=where,
            found=task,
            expected=", ".join(sorted(tasks)) if isinstance(tasks, dict) else "task -> weights",
            hint="load the system with one of these as `link_task`",
        )
    return tasks[task]


def release_inner_link(source: Source, task: str | None) -> tuple[str, dict]:
    """File name and stated properties of the inner link in an agent's released repository."""
    stated = source.find_json(INNER_KIND_MANIFEST) or {}
    manifest = source.find_json(INNER_MANIFEST) or {}
    tasks = manifest.get("tasks", {})
    if not isinstance(tasks, dict) or not all(isinstance(entry, dict) for entry in tasks.values()):
        raise CheckpointError(
            "A manifest has the wrong form.",
            where=f"{source}, {INNER_MANIFEST}, tasks",
            found=repr(tasks)[:200],
            expected='{task: {"adapter.pt": file name}}',
        )
    if task in tasks:
        standard = release_filename(INNER_FILE)
        return _file_name(tasks[task].get(standard, standard), f"{source}, {INNER_MANIFEST}, {task}"), stated
    candidates = [release_filename(INNER_FILE, task)] * (task is not None) + [release_filename(INNER_FILE)]
    for filename in candidates:
        if source.find(filename) is not None:
            return filename, stated
    raise CheckpointError(
        "An agent's repository has no inner link.",
        where=str(source),
        found=source.listing(),
        expected=" or ".join([f"{INNER_MANIFEST} with this task"] * (task is not None) + candidates),
        hint="fetch the repository again, or check that it is the right one",
    )


def release_outer_link(source: Source, name: str, task: str | None, legacy_key: str | None) -> tuple[str, dict]:
    """File name and stated properties of an outer link in a released repository of links."""
    where = f"{source}, {OUTER_MANIFEST}"
    manifest: Any = source.json(OUTER_MANIFEST)
    if "tasks" in manifest:
        manifest, where = entry_of_task(manifest["tasks"], task, where), f"{where}, tasks, {task}"
    adapters = manifest.get("adapters") if isinstance(manifest, dict) else None
    if not isinstance(adapters, list) or not all(isinstance(adapter, dict) for adapter in adapters):
        raise CheckpointError(
            "A manifest has the wrong form.",
            where=f"{where}, adapters",
            found=repr(adapters)[:200],
            expected='a list of {"legacy_key", "filename", ...}',
        )
    by_name = release_filename(release_outer_name(*name.split("_to_")))
    fitting = [a for a in adapters if legacy_key is not None and a.get("legacy_key") == legacy_key]
    fitting = fitting or [a for a in adapters if "legacy_key" not in a and a.get("filename") == by_name]
    if legacy_key is None:
        fitting = [a for a in adapters if a.get("filename") == by_name]
    if len(fitting) != 1:
        raise CheckpointError(
            f"A manifest names {'no file' if not fitting else 'more than one file'} for an outer link.",
            where=f"{where}, adapters",
            found=", ".join(f"{a.get('legacy_key')}: {a.get('filename')}" for a in adapters) or "nothing",
            expected=f"one entry with the legacy key {legacy_key}" if legacy_key else by_name,
        )
    return _file_name(fitting[0].get("filename"), f"{where}, {legacy_key or by_name}"), fitting[0]


def _file_name(filename: object, where: str) -> str:
    if not isinstance(filename, str) or os.path.isabs(filename) or ".." in Path(filename).parts:
        raise CheckpointError(
            "A manifest names no file of its repository.", where=where, found=repr(filename), expected="a file name"
        )
    return filename


def validate_stated(tensors: dict[str, torch.Tensor], stated: dict, where: str, outer: bool) -> None:
    """Holds what a manifest states against the weights."""
    manifest = OUTER_MANIFEST if outer else INNER_KIND_MANIFEST
    kind, kinds = stated.get("adapter_type"), OUTER_KINDS if outer else INNER_KINDS
    if kind is not None and not (isinstance(kind, str) and kind in kinds):
        raise CheckpointError(
            "A manifest states an unknown kind of link.",
            where=f"{where}, adapter_type in {manifest}",
            found=repr(kind),
            expected=", ".join(kinds),
        )
    first = tensors.get("proj1.weight")
    last = next((tensors[key] for key in ("proj2.weight", "proj1.weight") if key in tensors), None)
    found: dict[str, Any] = {"adapter_type": kind}
    fitting = fitting_kinds(tensors, outer)
    if fitting and kind not in fitting:
        found["adapter_type"] = " or ".join(fitting)
    for key, tensor, axis in (("in_dim", first, 1), ("out_dim", last, 0)):
        if tensor is not None and tensor.ndim == 2:
            found[key] = tensor.shape[axis]
    for key, value in found.items():
        if stated.get(key) is not None and stated[key] != value:
            raise CheckpointError(
                f"A manifest contradicts the weights: {key}.",
                where=f"{where}, {key} in {manifest}",
                found=f"{value} in the weights ({', '.join(sorted(tensors))})",
                expected=f"{stated[key]}, as the manifest says",
                hint="fetch the repository again, or check that manifest and weights belong together",
            )
