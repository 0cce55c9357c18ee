"""Staging: every repository of a system, written to one local folder."""

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers.utils import logging

from ..configuration_recursivemas import RecursiveMASConfig
from ..errors_recursivemas import CheckpointError, InputError, RecursiveMASError
from ..evaluation.evaluate import read_results
from ..link_files_recursivemas import link_filename, read_link
from ..links_recursivemas import INNER_KINDS, build_link
from ..modeling_recursivemas import RecursiveMASModel
from ..sources_recursivemas import Source, write_tensors
from ..system_loader import ROOT, load_mas_system
from ..topology_recursivemas import Topology
from .cards import Card
from .plan import PLAN, PUSHED, Plan, Repository, load_plan, write_json

# What a repository of outer links needs of the remote code, so that its links can be built from it alone.
LINK_CODE = ("links_recursivemas.py", "errors_recursivemas.py")


@dataclass
class Options:
    """What a person decides about a publication; see `recursivemas publish stage --help`."""

    namespace: str
    name: str
    question: str = "What is 17 + 25?"
    collection: str | None = None
    licence: str = "mit"
    legacy: bool = False
    self_contained: bool = False
    base_models: dict[str, str] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)


def make_plan(config: RecursiveMASConfig, system: str, options: Options) -> Plan:
    """Names the repositories of a publication.

    Raises:
        InputError: a name that the Hub does not take, or a base model for an unknown role.
    """
    topology = config.topology
    unknown = set(options.base_models) - set(topology.roles)
    if unknown:
        raise InputError(
            "Unknown role.",
            where="--base-model",
            found=", ".join(sorted(unknown)),
            expected=", ".join(topology.roles),
        )
    style = config.style or options.name
    repositories = []
    for role in topology.roles:
        base = options.base_models.get(role) or _hub_name(config.agents[role]["source"])
        name = f"{options.name}-{_title(role)}" + (f"-{base.rpartition('/')[2]}" if base else "")
        note = f"{_title(role)}: agent with inner link" + (f", {base}" if base else "")
        repositories.append(Repository(f"{options.namespace}/{name}", "agent", note, role, base))
    links = f"{options.namespace}/{options.name}-Outerlinks"
    repositories.append(Repository(links, "outer_links", "Outer links between the agents"))
    whole = Repository(f"{options.namespace}/{options.name}", "composite", "The whole system: load this one")
    repositories.append(whole)
    for repository in repositories:
        try:
            validate_repo_id(repository.id)
        except HFValidationError as error:
            raise InputError(
                "The Hub does not take this name.",
                where="--namespace, --name",
                found=repository.id,
                expected="letters, digits, '-', '_' and '.', at most 96 characters",
            ) from error
    return Plan(
        system=system,
        namespace=options.namespace,
        style=style,
        collection=options.collection or f"{_title(style.partition('_')[0])}-Style RecursiveMAS",
        question=options.question,
        legacy=options.legacy,
        self_contained=options.self_contained,
        licence=options.licence,
        repositories=tuple(repositories),
    )


def _hub_name(source: str) -> str | None:
    """The Hub repository that an agent's `source` is, or `None` for a folder."""
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith(("agents/", "./", "../"))
    return source if is_name and not Path(source).exists() else None


def _title(role: str) -> str:
    """`tool_caller` -> `ToolCaller`, as the release writes roles in names."""
    return "".join(part[:1].upper() + part[1:] for part in role.split("_"))


def links_by_task(mas: RecursiveMASModel, weights: object, name: str, loaded, build: Callable) -> dict:
    """Task -> link, of a link that has weights per task; else `None` -> the loaded link.

    Args:
        mas: the system.
        weights: the link's `weights` in the configuration.
        name: the link's name, the role for an inner link.
        loaded: the link as the system holds it.
        build: (state dict, where it came from) -> link.
    """
    if not (isinstance(weights, dict) and "tasks" in weights):
        return {None: loaded}
    source = Source(mas.config.name_or_path)
    links = {}
    for task in weights["tasks"]:
        tensors, where, _ = read_link(source, weights, name, task)
        links[task] = build(tensors, where)
    return links


def inner_links_of(mas: RecursiveMASModel, role: str) -> dict:
    """Task -> inner link of an agent; the task is `None` where there is one for all."""
    link, width = mas.agents[role].inner_link, mas.agents[role].hidden_size
    weights = mas.config.agents[role]["inner_link"].get("weights")

    def build(tensors: dict[str, torch.Tensor], where: str):
        return build_link(tensors, where=where, in_features=width, kind=link.kind)

    return links_by_task(mas, weights, role, link, build)


def outer_links_of(mas: RecursiveMASModel, name: str) -> dict:
    """Task -> outer link; the task is `None` where there is one for all."""
    link = mas.outer_links[name]
    position = [entry.name for entry in mas.topology.links].index(name)

    def build(tensors: dict[str, torch.Tensor], where: str):
        widths = {"in_features": link.in_features, "out_features": link.out_features}
        return build_link(tensors, where=where, kind=link.kind, **widths)

    return links_by_task(mas, mas.config.links[position].get("weights"), name, link, build)


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
    if output.exists():
        if not replace:
            raise InputError("The folder exists.", where="--output", found=output, hint="choose another, or --replace")
        load_plan(output)  # replaces nothing that was not staged
    results = [(Path(path), read_results(path)) for path in options.results]
    mas = load_mas_system(system)
    if Path(system).exists():
        system = str(Path(system).resolve())
    plan = make_plan(mas.config, system, options)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        card = Card(plan, mas, results, options.datasets)
        for repository in _progress(plan.repositories):
            folder = partial / repository.name
            folder.mkdir(parents=True)
            if repository.kind == "agent":
                _stage_agent(mas, plan, repository.role, folder)
            elif repository.kind == "outer_links":
                _stage_outer_links(mas, plan, folder)
            else:
                _stage_composite(mas, plan, folder)
            card.save(repository, folder)
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
    agent, links = mas.agents[role], inner_links_of(mas, role)
    if None in links:
        agent.save_pretrained(folder)
    else:
        agent.save_pretrained(folder, inner_links=links, task=mas.config.link_task)
    if plan.legacy:
        _write_legacy_inner_links(links, role, folder)


def _write_legacy_inner_links(links: dict, role: str, folder: Path) -> None:
    """`adapter.pt` or `adapter(<task>).pt`, with the release's manifests."""
    kind = next(iter(links.values())).kind
    if kind not in INNER_KINDS:
        raise InputError(
            "The public release has no such kind of inner link.",
            where=f"--legacy, agent {role}",
            found=kind,
            expected=", ".join(INNER_KINDS),
            hint="train the inner links, or stage without --legacy",
        )
    for task, link in links.items():
        torch.save(dict(link.state_dict()), folder / _legacy_filename("adapter", task))
    write_json(folder / "adapter_config.json", {"adapter_type": kind})
    if None not in links:
        tasks = {task: {"adapter.pt": _legacy_filename("adapter", task)} for task in links}
        write_json(folder / "innerlink_config.json", {"tasks": tasks})


def _legacy_filename(name: str, task: str | None) -> str:
    return f"{name}.pt" if task is None else f"{name}({task}).pt"


def _stage_outer_links(mas: RecursiveMASModel, plan: Plan, folder: Path) -> None:
    table, adapters = [], {}
    labels = legacy_labels(mas.topology)
    for link, entry in zip(mas.topology.links, mas.config.links, strict=True):
        links = outer_links_of(mas, link.name)
        module = mas.outer_links[link.name]
        widths = (module.in_features, module.out_features)
        ends = {"source": link.source, "target": link.target, "feedback": link.feedback}
        files = {task: link_filename(link.name, task) for task in links}
        for task, built in links.items():
            write_tensors(built.state_dict(), folder / files[task])
            if plan.legacy:
                ends_title = f"{_title(link.source)}-{_title(link.target)}"
                filename = _legacy_filename(f"{ends_title}-Outerlink", task)
                torch.save(dict(built.state_dict()), folder / filename)
                adapter = {
                    "legacy_key": entry.get("legacy_key") or f"outer_{labels[link.source]}{labels[link.target]}",
                    "filename": filename,
                    "adapter_type": built.kind,
                    "in_dim": widths[0],
                    "out_dim": widths[1],
                }
                adapters.setdefault(task, []).append(adapter)
        sizes = {"kind": module.kind, "in_features": widths[0], "out_features": widths[1]}
        table.append({**ends, **sizes, "weights": files.get(None, {"tasks": files})})
    write_json(folder / "links.json", {"links": table})
    if None in adapters:
        manifest = {"format_version": 1, "paradigm": plan.style, "adapters": adapters[None]}
        write_json(folder / "outerlink_config.json", manifest)
    elif adapters:
        tasks = {task: {"adapters": entries} for task, entries in adapters.items()}
        write_json(folder / "outerlink_config.json", {"tasks": tasks})
    for name in LINK_CODE:
        shutil.copyfile(ROOT / name, folder / name)


def legacy_labels(topology: Topology) -> dict[str, str]:
    """Role -> its label in the release's keys (`outer_12`, `outer_1s`, `outer_el`).

    A chain counts its roles, a pair has initials; roles side by side are counted, the others have initials.
    """
    side_by_side = [role for stage in topology.stages if len(stage) > 1 for role in stage]
    counted = [] if len(topology.roles) == 2 else side_by_side or list(topology.roles)
    return {role: str(counted.index(role) + 1) if role in counted else role[0] for role in topology.roles}


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
        weights = {}
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
