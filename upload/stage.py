"""Staging: every repository of a system, written to one local folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapters_recursivemas import base_of, is_adapted, save_adapter
from ..errors_recursivemas import InputError
from ..evaluation.commands import validate_output
from ..evaluation.results import read_results
from ..folders_recursivemas import is_unused, replacing, settle
from ..link_files_recursivemas import link_filename
from ..links_recursivemas import AnyInnerLink, AnyOuterLink, CacheLink
from ..loading_recursivemas import quiet_progress
from ..modeling_recursivemas import RecursiveMASModel
from ..saving_recursivemas import SavedLink, adapter_writers, agent_writers, pinned, places_on_hub, save_system
from ..sources_recursivemas import write_tensors
from ..system_loader import ROOT, load_mas_system
from ..training.checkpoints import SETTINGS_FILE
from .cards import Cards
from .files import CHECKED, PLAN, read_json, write_json
from .licences import agents_licences
from .links import inner_links_of, outer_links_of
from .plan import Options, Plan, Repository, make_plan
from .release_layout import write_inner_links, write_outer_links
from .space import write_space

# What a repository of outer links needs of the remote code, so that its links can be built from it alone.
LINK_CODE = tuple(f"{name}_recursivemas.py" for name in ("link_building", "links", "mixtures", "errors"))
# Of the settings of a training, those that a card shows; others name files of the machine
SHOWN_SETTINGS = (
    *("max_steps", "learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("weight_decay", "warmup_ratio", "num_rounds", "latent_steps", "max_rows", "seed"),
)
# What a composite has beside its code, so that `from system_loader import load_mas_system` works in a copy of it.
DOOR = ("__init__.py", "system_loader.py")


def stage(system: str, output: str | Path, options: Options, replace: bool = False) -> Plan:
    """Writes every repository of a system to a folder that appears only when it is complete.

    `system` is as `load_mas_system` takes it; `output` gets `<repository name>/` and the plan. `replace` replaces an
    earlier staged folder (its record of what was pushed stays).

    Raises:
        InputError: names that cannot be used, or a folder that is in the way.
        CheckpointError: the disk is full, or the system cannot be loaded.
    """
    output = Path(output)
    settle(output, trusted=True)
    staged_before = "format_version" in (read_json(output / PLAN) or {})
    if not is_unused(output) and not (replace and staged_before):
        hint = "choose another" + (", or --replace" if staged_before else "")
        raise InputError("The folder exists.", where="--output", found=output, hint=hint)
    validate_output(output, replace=True)
    results = [(Path(path), read_results(path, None)) for path in options.results]
    mas = load_mas_system(system)
    if Path(system).exists():
        system = str(Path(system).resolve())
    shared, adapted = owners_of(mas)
    plan = make_plan(mas.config, system, options, shared, adapted, places_on_hub(mas.config, mas.agents))
    cards = Cards(plan, mas, results, options, agents_licences(mas, plan, options), training_of(system))
    with replacing(output, {"": (CHECKED, "*/**/*")}) as new:
        for repository in quiet_progress(plan.repositories, "Staging", "repository"):
            folder = new / repository.name
            folder.mkdir()
            if repository.kind == "agent":
                _stage_agent(mas, plan, repository, folder)
            elif repository.kind == "adapter":
                save_adapter(mas.agents[repository.role].model, folder, repository.base_model)
            elif repository.kind == "outer_links":
                _stage_outer_links(mas, plan, folder)
            else:
                _stage_composite(mas, plan, folder)
            cards.save(repository, folder)
        if options.space:
            write_space(plan, new)
        plan.save(new)
    return plan


def owners_of(mas: RecursiveMASModel) -> tuple[dict[str, str], dict[str, str | None]]:
    """Who shares whose base: role -> role, of roles that run it as it is; and of roles with an adapter, if anybody."""
    shared: dict[str, str] = {}
    adapted: dict[str, str | None] = {}
    plain = [role for role in mas.topology.roles if not is_adapted(mas.agents[role].model)]
    for role in mas.topology.roles:
        agent = mas.agents[role]
        base, others = base_of(agent.model), ((other, mas.agents[other]) for other in plain)
        same = (name for name, other in others if other.model is base and other.tokenizer is agent.tokenizer)
        owner = next(same, None)
        if role not in plain:
            adapted[role] = owner
        elif owner is not None and owner != role:
            shared[role] = owner
    return shared, adapted


def training_of(system: str) -> dict[str, Any]:
    """The settings that a system's links were trained with, where its folder says them."""
    content = read_json(Path(system) / "training" / SETTINGS_FILE) or {}
    return {name: content[name] for name in SHOWN_SETTINGS if content.get(name) is not None}


def _stage_agent(mas: RecursiveMASModel, plan: Plan, repository: Repository, folder: Path) -> None:
    role = repository.role
    links = inner_links_of(mas, role)
    by_task = {task: link for task, link in links.items() if task is not None}
    task = mas.config.link_task if by_task else None
    mas.agents[role].save_pretrained(folder, inner_links=by_task or None, task=task, base_model=repository.base)
    if plan.release_layout:
        write_inner_links(links, role, folder)


def _stage_outer_links(mas: RecursiveMASModel, plan: Plan, folder: Path) -> None:
    links = {link.name: outer_links_of(mas, link.name) for link in mas.topology.links}
    table = []
    for link in mas.topology.links:
        files = {task: link_filename(link.name, task) for task in links[link.name]}
        if isinstance(mas.outer_links[link.name], CacheLink):  # has no file
            continue
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
    """The composite, with its parts inside or named by repository."""
    config, links = pinned(mas.config, mas.agents), {}
    for role, agent in mas.agents.items():
        home = plan.agents.get(role)
        place = None if home is None else home.id  # `push` pins its commit
        if home is not None and home.base is None:
            config.agents[role].pop("gguf_file", None)  # an ordinary folder there
            config.agents[role] |= {"source": place, "revision": None, "model_type": agent.model.config.model_type}
        if role in plan.adapters:
            config.agents[role]["adapter"] = {"source": plan.adapters[role].id, "revision": None}
        inside = plan.self_contained or home is None or role in home.shared_by
        links[role] = _saved(inner_links_of(mas, role), None if inside else place, "inner_link")
    for link in mas.topology.links:
        place = plan.outer_links.id
        links[link.name] = _saved(outer_links_of(mas, link.name), None if plan.self_contained else place, link.name)
    roles = list(mas.agents) if plan.self_contained else []
    save_system(
        folder,
        config,
        links,
        tokenizer=mas.tokenizer,
        generation_config=mas.generation_config,
        write_agents=agent_writers(mas.agents, config, folder, roles),
        write_adapters=adapter_writers(mas.agents, config, everything=True) if plan.self_contained else {},
    )
    for name in DOOR:
        shutil.copyfile(ROOT / name, folder / name)


def _saved(
    by_task: Mapping[str | None, AnyInnerLink | AnyOuterLink], repository: str | None, filename: str
) -> SavedLink:
    """A link as its composite holds or names it."""
    weights = {task: link.state_dict() for task, link in by_task.items()}
    link = next(iter(by_task.values()))
    return SavedLink(link.kind, weights, link.options, repository, filename)
