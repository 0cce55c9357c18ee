"""Checking: each staged repository by itself, in a clean process with an empty cache and no network."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging

from ..link_files_recursivemas import link_filename
from ..modeling_recursivemas import RecursiveMASModel
from ..system_loader import load_mas_system
from . import probe
from .files import CHECKED, fingerprint, write_json
from .links import inner_links_of, outer_links_of
from .plan import Plan, Repository, load_plan
from .scan import scan

TOLERANCE = 1e-4  # of hidden states, relative to their size


@dataclass
class Finding:
    """What the check of one repository found; no problems is a pass."""

    repository: Repository
    problems: list[str]


def check(folder: Path) -> list[Finding]:
    """Scans every staged repository, loads it like a stranger, and compares it with the system that it came from.

    A pass of all of them is recorded in the staged folder; `push` asks for that record.

    Raises:
        InputError: the folder was not staged.
    """
    folder = Path(folder)
    plan = load_plan(folder)
    (folder / CHECKED).unlink(missing_ok=True)
    mas = load_mas_system(plan.system)
    findings = []
    for repository in logging.tqdm(plan.repositories, desc="Checking", unit="repository", leave=False):
        problems = scan(folder / repository.name)
        if not (folder / repository.name / "README.md").is_file():
            problems.append("README.md: missing")
        found, error = load_alone(plan, repository, folder)
        problems += [error] if error else differences(expected_of(mas, plan, repository), found)
        findings.append(Finding(repository, problems))
    if not any(finding.problems for finding in findings):
        prints = {repository.name: fingerprint(folder / repository.name) for repository in plan.repositories}
        write_json(folder / CHECKED, prints)
    return findings


def load_alone(plan: Plan, repository: Repository, folder: Path) -> tuple[dict, str | None]:
    """Runs the probe on a staged repository; returns what it gave, and what went wrong."""
    with tempfile.TemporaryDirectory() as home:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
        environment = {**kept, "HOME": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        # A composite finds the repositories that it references beside it, as they are staged.
        clones = "" if plan.self_contained else str(folder.resolve())
        place = str((folder / repository.name).resolve())
        question = json.dumps(plan.question)
        command = [sys.executable, "-I", "-W", "ignore", probe.__file__, repository.kind, place, question, clones]
        result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    if result.returncode:
        return {}, "does not load by itself: " + (result.stderr.strip() or "killed")[-2000:]
    return json.loads(result.stdout.splitlines()[-1]), None


def expected_of(mas: RecursiveMASModel, plan: Plan, repository: Repository) -> dict:
    """What the probe must give, computed from the system that was staged."""
    if repository.kind == "agent":
        agent = mas.agents[repository.role]
        links = inner_links_of(mas, repository.role)
        files = {link_filename("inner_link", task): link for task, link in links.items() if link.state_dict()}
        result = probe.probe_agent(agent, agent.model, agent.tokenizer, plan.question)
        return {**result, "links": {name: probe.digest(link.state_dict()) for name, link in files.items()}}
    if repository.kind == "outer_links":
        built = {
            link_filename(name, task): link
            for name in mas.outer_links
            for task, link in outer_links_of(mas, name).items()
        }
        return {"links": {name: probe.digest(link.state_dict()) for name, link in built.items()}}
    return probe.probe_system(mas, plan.question)


def differences(expected: dict, found: dict) -> list[str]:
    """Where what a repository gives is not what its source gives."""
    problems = []
    if found.get("tokens") != expected.get("tokens"):
        problems.append(f"other tokens than the source: {found.get('tokens')} instead of {expected.get('tokens')}")
    if found.get("links") != expected.get("links"):
        wrong = sorted(dict(set(expected.get("links", {}).items()) ^ set(found.get("links", {}).items())))
        problems.append(f"other link weights than the source: {', '.join(wrong)}")
    if "hidden_states" in expected:
        size = max(1.0, *map(abs, expected["hidden_states"]))
        pairs = zip(expected["hidden_states"], found["hidden_states"], strict=True)
        if (gap := max(abs(a - b) for a, b in pairs)) > TOLERANCE * size:
            problems.append(f"other hidden states than the source: they differ by {gap:.2g}")
    return problems
