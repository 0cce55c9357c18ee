"""Checking: each staged repository by itself, in a clean process with an empty cache, no network, and limits."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging

from ..adapters_recursivemas import WEIGHTS, adapter_tensors
from ..bases_recursivemas import SMALL_FILES, WEIGHT_FILES
from ..errors_recursivemas import CheckpointError
from ..link_files_recursivemas import link_filename
from ..modeling_recursivemas import RecursiveMASModel
from ..release.limits import run_limited
from ..sources_recursivemas import SNAPSHOT, Source
from ..system_loader import load_mas_system
from . import probe
from .code import foreign_code
from .files import CHECKED, PLAN, files_of, fingerprint, write_json
from .links import inner_links_of, outer_links_of
from .plan import Plan, Repository, load_plan
from .scan import scan
from .space import space_problems, staged_in

TOLERANCE = 1e-4  # of hidden states, relative to their size
WHOLE = ("composite", "space")  # repositories that load all others


@dataclass
class Finding:
    """What the check of one repository found; no problems is a pass."""

    repository: Repository
    problems: list[str]
    base_models: list[str]  # that it names and does not hold: source@revision


def check(folder: Path) -> list[Finding]:
    """Scans every staged repository, loads it like a stranger, and compares it with the system that it came from.

    What holds something that must not go out, or any code but this clone's, is not loaded at all.
    A pass of all of them is recorded in the staged folder; `push` asks for that record. Base models that repositories
    name are the files of the named commits in this machine's Hub cache, fetched before if need be: these alone lie in
    the stranger's cache.

    Raises:
        InputError: the folder was not staged.
    """
    folder = Path(folder)
    plan = load_plan(folder)
    (folder / CHECKED).unlink(missing_ok=True)
    mas = load_mas_system(plan.system)
    findings, prints = [], {PLAN: fingerprint(folder / PLAN)}
    for repository in logging.tqdm(staged_in(folder, plan), desc="Checking", unit="repository", leave=False):
        place = folder / repository.name
        prints[repository.name] = fingerprint(place)
        if repository.kind == "space":
            problems = space_problems(plan, place)
        else:
            problems = scan(place) or foreign_code(place, repository.kind)
        if not problems:
            found, error = load_alone(plan, repository, folder)
            problems += [error] if error else differences(expected_of(mas, plan, repository), found)
        if not (place / "README.md").is_file():
            problems.append("README.md: missing")
        if fingerprint(place) != prints[repository.name]:
            problems.append("changed while it was checked")
        bases = [f"{base.repository}@{base.revision}" for base in base_models(plan, repository)]
        findings.append(Finding(repository, problems, bases))
    if not any(finding.problems for finding in findings):
        write_json(folder / CHECKED, prints)
    return findings


def base_models(plan: Plan, repository: Repository) -> list[Source]:
    """The places on the Hub of the base models that a staged repository names, each once."""
    whole = repository.kind in WHOLE
    named = plan.repositories if whole and not plan.self_contained else [repository]
    named = [each for each in named if each.kind == "agent" or whole]  # an adapter's is not read
    bases = {json.dumps(each.base): each.base for each in named if each.base is not None}
    return [Source(base["source"], revision=base["revision"]) for base in bases.values()]


def load_alone(plan: Plan, repository: Repository, folder: Path) -> tuple[dict, str | None]:
    """Runs the probe on a staged repository; returns what it gave, and what went wrong."""
    try:
        bases = [base.fetch((*SMALL_FILES, *WEIGHT_FILES)) for base in base_models(plan, repository)]
    except CheckpointError as error:
        return {}, f"its base model cannot be had: {error}"
    cached = [SNAPSHOT.match(base.path) for base in bases]
    if None in cached:
        return {}, f"a folder stands in the place of its base model: {bases[cached.index(None)].path}"
    # A composite finds the repositories that it references beside it, as they are staged.
    clones = "" if plan.self_contained and repository.kind != "space" else str(folder.resolve())
    place = (folder / repository.name).resolve()
    needed = [folder / each.name for each in plan.repositories] if repository.kind in WHOLE else [place]
    needed += [Path(base.path) for base in bases]
    size = sum((each / path).stat().st_size for each in needed for path in files_of(each))
    arguments = (repository.kind, str(place), json.dumps(plan.question), clones)
    with tempfile.TemporaryDirectory() as cache:
        for match in filter(None, cached):
            Path(cache, Path(match["repository"]).name).symlink_to(match["repository"])
        output, problem = run_limited(probe.__file__, arguments, size, isolated=True, cache=cache)
    if problem is not None:
        return {}, f"does not load by itself: {problem}"
    return json.loads(output.splitlines()[-1]), None


def expected_of(mas: RecursiveMASModel, plan: Plan, repository: Repository) -> dict:
    """What the probe must give, computed from the system that was staged."""
    if repository.kind == "agent":
        agent = mas.agents[repository.role]
        links = inner_links_of(mas, repository.role)
        files = {link_filename("inner_link", task): link for task, link in links.items() if link.state_dict()}
        result = probe.probe_agent(agent, agent.model, agent.tokenizer, plan.question)
        return {**result, "links": {name: probe.digest(link.state_dict()) for name, link in files.items()}}
    if repository.kind == "adapter":
        return {"links": {WEIGHTS: probe.digest(adapter_tensors(mas.agents[repository.role].model))}}
    if repository.kind == "outer_links":
        built = {
            link_filename(name, task): link
            for name in mas.outer_links
            for task, link in outer_links_of(mas, name).items()
            if link.state_dict()
        }
        return {"links": {name: probe.digest(link.state_dict()) for name, link in built.items()}}
    return probe.probe_system(mas, mas.tokenizer, plan.question)


def differences(expected: dict, found: dict) -> list[str]:
    """Where what a repository gives is not what its source gives."""
    problems = []
    for key, what in (("tokens", "tokens"), ("prompt", "ids of a prompt"), ("settings", "generation settings")):
        if found.get(key) != expected.get(key):
            problems.append(f"other {what} than the source: {found.get(key)} instead of {expected.get(key)}")
    if found.get("links") != expected.get("links"):
        wrong = sorted(dict(set(expected.get("links", {}).items()) ^ set(found.get("links", {}).items())))
        problems.append(f"other link weights than the source: {', '.join(wrong)}")
    if "hidden_states" in expected:
        size = max(1.0, *map(abs, expected["hidden_states"]))
        pairs = zip(expected["hidden_states"], found["hidden_states"], strict=True)
        if (gap := max(abs(a - b) for a, b in pairs)) > TOLERANCE * size:
            problems.append(f"other hidden states than the source: they differ by {gap:.2g}")
    return problems
