"""Say whether a system is ready to run here.

Looks at the Hub cache, a folder of clones or the system's own folder, and never at the network: which repositories,
revisions and files are there or missing, their sizes, what they need in memory per dtype (from the headers of the
safetensors files; the links' .pt files count with their size), and whether that fits this machine. Where a system was
saved with a stamp (weights.json), every byte of its weights is held against that. If all is well, the system is loaded
and answers a question, in a process of its own with a limit of time and memory. The exit status is 0 only when it did:
then `recursivemas solve` runs too.

Examples:
  recursivemas check sequential_light
  recursivemas check mixture --clones ~/checkpoints
  recursivemas check distillation --dataset mbppplus --json
  recursivemas check path/to/system
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..adapters_recursivemas import SETTINGS as ADAPTER_SETTINGS
from ..adapters_recursivemas import WEIGHTS as ADAPTER_WEIGHTS
from ..adapters_recursivemas import adapter_place
from ..bases_recursivemas import VOCABULARY_FILES, load_model_config
from ..configuration_recursivemas import RecursiveMASConfig
from ..errors_recursivemas import CheckpointError, RecursiveMASError
from ..evaluation.commands import add_trust_argument
from ..gguf_recursivemas import agent_place
from ..link_files_recursivemas import find_link
from ..links_recursivemas import WEIGHTLESS
from ..loading_recursivemas import validate_architecture, validate_places
from ..sharing_recursivemas import BASE_FILES, Shared
from ..sources_recursivemas import Source
from ..stamps_recursivemas import STAMP, changed_files
from ..system_loader import find_system, released_config, released_shape
from . import trial
from .limits import free_ram, run_limited

OPTIONAL_FILES = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STORED_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

# dtype -> bytes of an agent: all parameters in bfloat16, or those of the linear layers quantised (a scale in bfloat16
# for every row, of int4 for every 128 values) and embeddings, projection and norms as they are.
PLANNED: dict[str, Callable[[tuple[int, int]], float]] = {
    "bfloat16": lambda parameters: 2 * sum(parameters),
    "int8": lambda parameters: 1.001 * parameters[0] + 2 * parameters[1],
    "int4": lambda parameters: (0.5 + 2 / 128) * parameters[0] + 2 * parameters[1],
}


def parameters_of(config: PreTrainedConfig) -> tuple[int, int]:
    """The parameters of a model's linear layers but the vocabulary projection, and all others; nothing is loaded."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = {id(part.weight): part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Linear)}
    linear.pop(id(head.weight), None)
    quantised = sum(linear.values())
    return quantised, sum(weight.numel() for weight in model.parameters()) - quantised


@dataclass
class Repository:
    """What is there of one repository."""

    name: str  # folder, or `org/name`
    revision: str | None  # the commit in the cache, else the revision asked for
    roles: list[str]  # what it is for
    folder: str | None  # where it lies; `None` where nothing of it is there
    files: dict[str, int] = field(default_factory=dict)  # name -> bytes on disk, of the files that the system needs
    problems: list[str] = field(default_factory=list)  # what is missing or broken
    parameters: int = 0  # number of an agent's parameters that are loaded
    stored_bytes: int = 0  # what those take as stored
    link_bytes: int = 0  # what the links take as stored
    agents: list[str] = field(default_factory=list)  # the roles whose base model it is
    same_base: str | None = None  # the earlier repository that holds the same base model, byte for byte


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "system", help="name of a released system, or a folder or cached repository with a config.json"
    )
    parser.add_argument(
        "--dataset", default="math500", help="of a released system: chooses the links (default: math500)"
    )
    parser.add_argument("--revision", help="of the repositories (default: as configured)")
    parser.add_argument("--clones", help="folder with local clones of the repositories")
    parser.add_argument("--cache-dir", help="of the Hub client (default: its own)")
    add_trust_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    names = ("system", "dataset", "revision", "clones", "cache_dir")
    report = check_system(**{name: getattr(arguments, name) for name in names}, trusted=arguments.trust_remote_code)
    print(json.dumps(report, indent=2) if arguments.json else describe(report))
    return 0 if report["ready"] else 1


def check_system(
    system: str,
    dataset: str = "math500",
    revision: str | None = None,
    clones: str | None = None,
    cache_dir: str | None = None,
    trusted: Collection[str] = (),
) -> dict:
    """Looks at everything that a system needs (and unpacks GGUF files, once), and not at the network; then tries it.

    Args:
        system, dataset, revision, clones, cache_dir: as `load_mas_system` takes them.
        trusted: roles whose agents may run code of their own.

    Returns:
        `ready`, `answers` (whether it did; `None` where it was not tried), `problem` (why not), `system`, `task` (of
        the links), `repositories`, `memory` (dtype -> bytes of all agents and links but the `uncounted` ones, whose
        weights are not there), `largest_agent` (dtype -> bytes), `machine`, `fits` (`None` where nobody can say), and
        `fetch` (commands for what is missing).

    Raises:
        InputError, ConfigError, CheckpointError: there is no such system, or its config.json is wrong.
    """
    system, hub = find_system(system), {"local_files_only": True, "cache_dir": cache_dir}
    source = Source(system, revision=revision, hub=hub, clones=clones)
    if "/" in system or os.path.isdir(system):
        config = RecursiveMASConfig.from_dict(source.json("config.json"), name_or_path=system)
        if source.is_download:
            validate_places(config, source)
    else:
        config, _ = released_config(system, dataset, revision=revision)
    topology = config.validate_system()
    repositories: dict[str, Repository] = {}

    def repository(place: Source, role: str) -> Repository:
        fresh = Repository(str(place).partition("@")[0], place.commit or place.revision, [], place.folder)
        known = repositories.setdefault(str(place), fresh)
        known.roles += [role] * (role not in known.roles)
        return known

    for role, entry in config.agents.items():
        try:
            place = agent_place(source, entry)
        except RecursiveMASError as error:  # a GGUF file that cannot be unpacked
            found = repository(source.other(entry["source"], entry.get("revision")), role)
            found.problems.append(" ".join(str(error).split()))
        else:
            (found := repository(place, role)).agents.append(role)
            _check_agent(found, place, entry, role, role in trusted)
            if (adapter := adapter_place(source, entry)) is not None:
                _check_adapter(repository(adapter, role))
    links = [(role, entry.get("inner_link") or {}) for role, entry in config.agents.items()]
    links += [(link.name, entry) for link, entry in zip(topology.links, config.links, strict=True)]
    for name, entry in links:
        if entry.get("kind") not in WEIGHTLESS:
            _check_link(repository, source, entry, name, config.link_task)
    if "/" in system or os.path.isdir(system):
        _check_stamp(source, list(repositories.values()))
    _find_shared(list(repositories.values()))
    report = _report(config, list(repositories.values()), cache_dir)
    if report["ready"]:
        arguments = {"style": system, "dataset": dataset, "revision": revision, "clones": clones}
        arguments |= {"cache_dir": cache_dir}
        for name in ("style", "clones", "cache_dir"):
            if (place_here := arguments[name]) is not None and os.path.exists(place_here):
                arguments[name] = os.path.abspath(place_here)
        trust = {"trust_remote_code": dict.fromkeys(trusted, True)}
        size = sum(repository["bytes"] for repository in report["repositories"])
        _, report["problem"] = run_limited(trial.__file__, [json.dumps(arguments | trust)], size)
        report["answers"] = report["ready"] = report["problem"] is None
    return report


def _check_agent(found: Repository, place: Source, entry: dict, role: str, trusted: bool) -> None:
    """Files, config and weight headers of an agent."""
    if found.folder is None or not os.path.isdir(found.folder):
        found.problems.append("nothing of it is there")
        return
    folder = Path(found.folder)
    files = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    agent_config = None
    try:
        agent_config = load_model_config(place.fetch(()), role, trusted)
        hidden_size = agent_config.get_text_config().hidden_size
        validate_architecture(entry, agent_config, hidden_size, role)
    except RecursiveMASError as error:
        found.problems.append(" ".join(str(error).split()))
    vocabulary = next((name for name in VOCABULARY_FILES if name in files), "tokenizer.json")
    names = ["config.json", vocabulary, *(name for name in OPTIONAL_FILES if name in files)]
    weights, problem = _weight_files(folder)
    if problem is not None:
        found.problems.append(problem)
    for name in (*names, *weights):
        if name in files:
            found.files[name] = files[name]
        else:
            found.problems.append(f"missing: {name}")
    for name in weights if len(found.agents) == 1 else ():  # of a base that a role has already, nothing is new
        if name in files:
            try:
                _count(found, folder / name, agent_config)
            except CheckpointError as error:
                found.problems.append(" ".join(str(error).split()))


def _weight_files(folder: Path) -> tuple[list[str], str | None]:
    """Names of an agent's files of weights: one, or those of the index; and what is wrong with the index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"], None
    try:
        return [index.name, *sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))], None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [index.name], f"{index.name} is no index of weights ({type(error).__name__}: {error})"


def _count(found: Repository, path: Path, agent_config: PreTrainedConfig | None) -> None:
    """Adds the tensors of a safetensors file, from its header; the ones that the model leaves on disk do not count.

    Raises:
        CheckpointError: the header is broken, or the file has another length than it says.
    """
    if path.suffix != ".safetensors":
        return
    model_class = AutoModelForCausalLM._model_mapping.get(type(agent_config), None)  # type: ignore[arg-type]
    ignored = re.compile("|".join(getattr(model_class, "_keys_to_ignore_on_load_unexpected", None) or ["(?!)"]))
    try:
        with safe_open(path, "pt") as file:  # reads the header, and holds the file's length against it
            for name in file.keys():  # noqa: SIM118 (no dict)
                if not ignored.search(name):
                    tensor = file.get_slice(name)
                    number = torch.Size(tensor.get_shape()).numel()
                    found.parameters += number
                    found.stored_bytes += number * STORED_BYTES.get(tensor.get_dtype(), 1)
    except SafetensorError as error:
        problem = f"{path.stat().st_size} bytes: {error}"
        raise CheckpointError("broken:", where=path.name, found=problem, hint="fetch the file again") from error


def _check_link(
    repository: Callable[[Source, str], Repository], source: Source, entry: dict, name: str, task: str | None
) -> None:
    """Finds a link's file by the same rules as the loader."""
    weights = entry.get("weights")
    try:
        place, filename, _ = find_link(source, weights, name, task, entry.get("legacy_key"))
    except RecursiveMASError as error:
        elsewhere = weights if isinstance(weights, dict) and "source" in weights else None
        place = source.other(elsewhere["source"], elsewhere.get("revision")) if elsewhere else source
        found = repository(place, name)
        text = "nothing of it is there" if found.folder is None else " ".join(str(error).split())
        found.problems += [text] * (text not in found.problems)
        return
    found = repository(place, name)
    path = Path(found.folder or "", filename)
    try:
        there = place.find(filename) is not None
    except RecursiveMASError as error:  # it leads out of its repository
        found.problems.append(" ".join(str(error).split()))
        return
    if there and path.is_file():
        found.files[filename] = path.stat().st_size
        found.link_bytes += found.files[filename]
    else:
        found.problems.append(f"missing: {filename}")


def _check_adapter(found: Repository) -> None:
    """The two files of a role's adapter; what they take counts with the links."""
    for name in (ADAPTER_SETTINGS, ADAPTER_WEIGHTS):
        path = Path(found.folder or "", name)
        if found.folder is None or not path.is_file():
            found.problems.append(f"missing: {name}")
        else:
            found.files[name] = path.stat().st_size
            found.link_bytes += found.files[name] * (path.suffix == ".safetensors")


def _check_stamp(source: Source, repositories: list[Repository]) -> None:
    """Holds every byte of the weights in a system's folder against the stamp of its save."""
    if (folder := source.folder) is None:
        return
    for name in changed_files(source, Path(folder)):
        holders = [each for each in repositories if each.folder and Path(folder, name).is_relative_to(each.folder)]
        for holder in sorted(holders, key=lambda each: len(each.folder or ""))[-1:]:
            holder.problems.append(f"{name}: not what was saved with the rest (or changed on purpose: remove {STAMP})")


def _find_shared(repositories: list[Repository]) -> None:
    """Says of repositories of agents which hold the base model of an earlier one: they share it in memory."""
    bases = Shared[str](BASE_FILES)
    for each in repositories:
        if each.parameters and not each.problems and each.folder is not None:
            name = bases.get(Source(each.folder), (), partial(str, each.name))
            each.same_base = None if name == each.name else name


def _report(config: RecursiveMASConfig, repositories: list[Repository], cache_dir: str | None) -> dict:
    links = sum(repository.link_bytes for repository in repositories)
    there = [repository for repository in repositories if repository.parameters]
    agents = [repository for repository in there if repository.same_base is None]
    sizes = {dtype: [agent.parameters * size for agent in agents] for dtype, size in BYTES.items()}
    sizes["as stored"] = [agent.stored_bytes for agent in agents]
    needed = {dtype: links + sum(own) for dtype, own in sizes.items()}
    largest = {dtype: links + max(own, default=0) for dtype, own in sizes.items()}
    gpus: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append({"name": torch.cuda.get_device_name(index), "free": free, "total": total})
    ram = free_ram()
    room = max((gpu["free"] for gpu in gpus), default=0)
    # Whose weights are not there is not counted, so that then only "does not fit" is certain.
    uncounted = [role for role in config.agents if not any(role in each.roles for each in there)]

    def fit(size: int, there: int | None) -> bool | None:
        return None if there is None or (uncounted and size <= there) else size <= there

    fits = {}
    for dtype, size in needed.items():
        fits[dtype] = {"ram": fit(size, ram)}
        if gpus:
            offloaded = fit(largest[dtype], room)
            fits[dtype] |= {"gpu": fit(size, room), "gpu, offload='cpu'": offloaded and fits[dtype]["ram"]}
    planned = {}  # of a released system, whether it is here or not
    shapes = [released_shape(entry["source"]) for entry in config.agents.values()]
    if all(shape is not None for shape in shapes):
        parameters = [parameters_of(shape) for shape in shapes if shape is not None]
        planned = {name: sum(map(size, parameters)) for name, size in PLANNED.items()}
    complete = not any(repository.problems for repository in repositories)
    fetch = []
    for repository in repositories:
        if repository.problems and not os.path.isabs(repository.name) and not os.path.isdir(repository.name):
            options = f" --revision {repository.revision}" if repository.revision else ""
            options += f" --cache-dir {cache_dir}" if cache_dir else ""
            fetch.append(f"hf download {repository.name}{options}")
    return {
        "system": config.style or config.name_or_path,
        "task": config.link_task,
        "ready": complete and (ram is None or any(fits["as stored"].values())),
        "complete": complete,
        "answers": None,
        "problem": None,
        "repositories": [asdict(r) | {"bytes": sum(r.files.values())} for r in repositories],
        "uncounted": uncounted,
        "memory": needed,
        "planned": planned,
        "largest_agent": largest,
        "machine": {"ram": ram, "gpus": gpus},
        "fits": fits,
        "fetch": fetch,
    }


def describe(report: dict) -> str:
    """The report for people."""
    lines = [f"{report['system']}" + (f", links for {report['task']}" if report["task"] else "")]
    for repository in report["repositories"]:
        state = "missing or broken" if repository["problems"] else "there"
        revision = f"  {repository['revision'][:12]}" if repository["revision"] else ""
        size = _size(repository["bytes"])
        lines.append(f"  {repository['name']}{revision}  {size}  {state}  ({', '.join(repository['roles'])})")
        lines += [f"    {problem}" for problem in repository["problems"]]
        if repository["same_base"] is not None:
            lines.append(f"    one base with {repository['same_base']}: in memory once")
        elif len(sharing := repository["agents"]) > 1:
            lines.append(f"    one base of {', '.join(sharing)}: in memory once")
    without = f" (without {', '.join(report['uncounted'])}: not there)" if report["uncounted"] else ""
    lines.append(f"memory for all agents and links{without}, and what it fits:")
    for dtype, size in report["memory"].items():
        places = {True: "fits", False: "does not fit", None: "unknown"}
        fits = ", ".join(f"{place}: {places[value]}" for place, value in report["fits"][dtype].items())
        lines.append(f"  {dtype:<10}{_size(size):>10}   {fits}")
    if report["planned"]:
        lines.append("weights of all agents, from their shapes, without links and what is computed:")
        lines += [f"  {dtype:<10}{_size(size):>10}" for dtype, size in report["planned"].items()]
    ram = report["machine"]["ram"]
    lines.append(f"free here: RAM {'unknown' if ram is None else _size(ram)}")
    lines += [f"  {gpu['name']}: {_size(gpu['free'])} of {_size(gpu['total'])}" for gpu in report["machine"]["gpus"]]
    if report["fetch"]:
        lines += ["fetch the rest with:", *(f"  {command}" for command in report["fetch"])]
    if report["answers"] is not None:
        lines.append("loads and answers" if report["answers"] else f"does not load and answer: {report['problem']}")
    lines.append("ready" if report["ready"] else "not ready")
    return "\n".join(lines)


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
