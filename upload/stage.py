"""Staging: every repository of a system, written to one local folder."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging

from ..evaluation.results import read_results
from ..system_loader import (
    ROOT,
    CheckpointError,
    InputError,
    RecursiveMASError,
    RecursiveMASModel,
    load_mas_system,
    remote_module,
)
from .cards import Cards
from .files import PLAN, PUSHED, read_json, write_json
from .links import inner_links_of, outer_links_of
from .plan import Options, Plan, Repository, make_plan
from .release_layout import write_inner_links, write_outer_links

_sources = remote_module("sources_recursivemas")
link_filename, write_tensors = _sources.link_filename, _sources.write_tensors

# What a repository of outer links needs of the remote code, so that its links can be built from it alone.
LINK_CODE = ("links_recursivemas.py", "errors_recursivemas.py")


def stage(system: str, output: str | Path, options: Options, replace: bool = False) -> Plan:
    """Writes every repository of a system to a folder that appears only when it is complete.

    Args:
        system: as `load_mas_system` takes it.
        output: the folder; `output/<repository name>/` and the plan.
        options: names and contents.
        replace: replace an earlier staged folder (its record of what was pushed stays).

    Raises:
        InputError: names that cannot be used, or a folder that is in the way.
        CheckpointError: the disk is full, or the system cannot be loaded.
    """
    output = Path(output)
    earlier = output / PUSHED
    staged_before = "format_version" in (read_json(output / PLAN) or {})
    if output.exists() and not (replace and staged_before):
        hint = "choose another" + (", or --replace" if staged_before else "")
        raise InputError("The folder exists.", where="--output", found=output, hint=hint)
    results = [(Path(path), read_results(path)) for path in options.results]
    mas = load_mas_system(system)
    if Path(system).exists():
        system = str(Path(system).resolve())
    plan = make_plan(mas.config, system, options)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        cards = Cards(plan, mas, results, options.datasets)
        for repository in _progress(plan.repositories):
            folder = partial / repository.name
            folder.mkdir(parents=True)
            if repository.kind == "agent":
                _stage_agent(mas, plan, repository.role, folder)
            elif repository.kind == "outer_links":
                _stage_outer_links(mas, plan, folder)
            else:
                _stage_composite(mas, plan, folder)
            cards.save(repository, folder)
        plan.save(partial)
        if earlier.exists():
            shutil.copyfile(earlier, partial / PUSHED)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk speaks through three libraries
        if isinstance(error, RecursiveMASError):
            raise
        raise CheckpointError(
            "Staging stopped; nothing of it is left.",
            where=partial,
            found=error,
            hint="free some space and run the same command again",
        ) from error
    finally:
        if not (partial / PLAN).exists():
            shutil.rmtree(partial, ignore_errors=True)
    if output.exists():
        shutil.rmtree(output)
    partial.rename(output)
    return plan


def _progress(repositories: tuple[Repository, ...]) -> Iterator[Repository]:
    """One progress bar over the repositories, in place of transformers' own bars for each of them."""
    bar = logging.tqdm(repositories, desc="Staging", unit="repository", leave=False)
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield from bar
    finally:
        if enabled:
            logging.enable_progress_bar()


def _stage_agent(mas: RecursiveMASModel, plan: Plan, role: str, folder: Path) -> None:
    links = inner_links_of(mas, role)
    by_task = {task: link for task, link in links.items() if task is not None}
    task = mas.config.link_task if by_task else None
    mas.agents[role].save_pretrained(folder, inner_links=by_task or None, task=task)
    if plan.release_layout:
        write_inner_links(links, role, folder)


def _stage_outer_links(mas: RecursiveMASModel, plan: Plan, folder: Path) -> None:
    links = {link.name: outer_links_of(mas, link.name) for link in mas.topology.links}
    table = []
    for link in mas.topology.links:
        files = {task: link_filename(link.name, task) for task in links[link.name]}
        for task, built in links[link.name].items():
            write_tensors(built.state_dict(), folder / files[task])
        module = mas.outer_links[link.name]
        ends = {"source": link.source, "target": link.target, "feedback": link.feedback}
        sizes = {"kind": module.kind, "in_features": module.in_features, "out_features": module.out_features}
        table.append({**ends, **sizes, "weights": files.get(None, {"tasks": files})})
    write_json(folder / "links.json", {"links": table})
    if plan.release_layout:
        write_outer_links(links, mas, plan.style, folder)
    for name in LINK_CODE:
        shutil.copyfile(ROOT / name, folder / name)


def _stage_composite(mas: RecursiveMASModel, plan: Plan, folder: Path) -> None:
    """The composite: what `save_pretrained` writes, with its parts inside or named by repository."""
    original = mas.config
    mas.config = copy.deepcopy(original)
    try:
        for role, entry in mas.config.agents.items():
            entry["source"] = plan.agents[role].id
        mas.save_pretrained(folder, copy_agents=plan.self_contained)
    finally:
        mas.config = original
    shutil.rmtree(folder / "links", ignore_errors=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))

    def place(repository: Repository, name: str, local_name: str, links: dict) -> object:
        """The `weights` entry for the links of one name; writes them where the composite holds them."""
        weights: dict[str | None, Any] = {}
        for task, link in links.items():
            if not link.state_dict():
                continue
            if plan.self_contained:
                weights[task] = f"links/{link_filename(local_name, task)}"
                write_tensors(link.state_dict(), folder / weights[task])
            else:
                weights[task] = {
                    "source": repository.id,
                    "revision": None,
                    "filename": link_filename(name, task),
                }
        return weights.get(None) if None in links else {"tasks": weights}

    for role, entry in config["agents"].items():
        links = inner_links_of(mas, role)
        weights = place(plan.agents[role], "inner_link", role, links)
        entry["inner_link"] = {"kind": mas.agents[role].inner_link.kind, "weights": weights}
        entry["model_type"] = mas.agents[role].model.config.model_type  # of what runs
        entry["revision"] = None
    for link, entry in zip(mas.topology.links, config["links"], strict=True):
        entry["weights"] = place(plan.outer_links, link.name, link.name, outer_links_of(mas, link.name))
    config["link_task"] = original.link_task
    config.pop("name_or_path", None)
    write_json(folder / "config.json", config)
    shutil.copyfile(ROOT / "system_loader.py", folder / "system_loader.py")
