"""The public release's own files: `.pt` files and manifests, which its loader reads, beside the native ones."""

from pathlib import Path
from typing import Any

import torch

from ..errors_recursivemas import InputError
from ..links_recursivemas import INNER_KINDS, AnyInnerLink, AnyOuterLink
from ..modeling_recursivemas import RecursiveMASModel
from ..release_recursivemas import (
    INNER_FILE,
    INNER_KIND_MANIFEST,
    INNER_MANIFEST,
    OUTER_MANIFEST,
    release_filename,
    release_labels,
    release_outer_name,
)
from .files import write_json


def write_inner_links(links: dict[str | None, AnyInnerLink], role: str, folder: Path) -> None:
    """Writes `adapter.pt` or `adapter(<task>).pt`, with manifests.

    Raises:
        InputError: the release has no such kind of link.
    """
    kind = next(iter(links.values())).kind
    if kind not in INNER_KINDS:
        raise InputError(
            "The public release has no such kind of inner link.",
            where=f"--release-layout, agent {role}",
            found=kind,
            expected=", ".join(INNER_KINDS),
            hint="train the inner links, or stage without --release-layout",
        )
    for task, link in links.items():
        torch.save(dict(link.state_dict()), folder / release_filename(INNER_FILE, task))
    write_json(folder / INNER_KIND_MANIFEST, {"adapter_type": kind})
    if None not in links:
        tasks = {task: {release_filename(INNER_FILE): release_filename(INNER_FILE, task)} for task in links}
        write_json(folder / INNER_MANIFEST, {"tasks": tasks})


def write_outer_links(
    links: dict[str, dict[str | None, AnyOuterLink]], mas: RecursiveMASModel, style: str, folder: Path
) -> None:
    """Writes `<Source>-<Target>-Outerlink.pt`, one a task where there are tasks, and outerlink_config.json.

    `links` is name -> task -> link, see `outer_links_of`; `style` is the release's "paradigm".

    Raises:
        InputError: two links of the configuration state one key.
    """
    labels = release_labels(mas.topology)
    adapters: dict[str, dict[str | None, dict]] = {}
    manifest: dict[str, Any]
    for link, entry in zip(mas.topology.links, mas.config.links, strict=True):
        key = entry.get("legacy_key") or f"outer_{labels[link.source]}{labels[link.target]}"
        files = {t: release_filename(release_outer_name(link.source, link.target), t) for t in links[link.name]}
        if key in adapters or any((folder / filename).exists() for filename in files.values()):
            raise InputError(
                "Two links have one name in the release's layout.",
                where=f"config.json, links, {link.name}",
                found=", ".join([key, *files.values()]),
                hint="give each link a `legacy_key` of its own, or none, and roles names that differ in their letters",
            )
        adapters[key] = {}
        for task, built in links[link.name].items():
            torch.save(dict(built.state_dict()), folder / files[task])
            what = {"legacy_key": key, "filename": files[task], "adapter_type": built.kind}
            adapters[key][task] = {**what, "in_dim": built.in_features, "out_dim": built.out_features}
    tasks = dict.fromkeys(task for by_task in adapters.values() for task in by_task if task is not None)
    if tasks:  # what has no tasks of its own serves them all
        fitting = {task: [a.get(task, a.get(None)) for a in adapters.values()] for task in tasks}
        manifest = {"tasks": {task: {"adapters": list(filter(None, each))} for task, each in fitting.items()}}
    else:
        manifest = {"format_version": 1, "paradigm": style, "adapters": [a[None] for a in adapters.values()]}
    write_json(folder / OUTER_MANIFEST, manifest)
