"""The front door in a clone: `from system_loader import load_mas_system`.

Imported by its own name, from a clone or a published copy, it makes the folder around it the package `recursivemas`. A
class is the same one however a user came in: by `AutoModel…` with `trust_remote_code=True`, by this file, or by an
ordinary import.
"""

import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

ROOT = Path(__file__).resolve().parent
STYLES = ROOT / "styles"

# Imported from a clone, whose folder is the package: `import system_loader`, or by the folder's own name
if __package__ != "recursivemas":
    if "recursivemas" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "recursivemas", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules["recursivemas"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["recursivemas"])
    elif (other := Path(str(sys.modules["recursivemas"].__file__)).resolve().parent) != ROOT:
        raise ImportError(f"recursivemas is imported from {other} already; use {ROOT} in a process of its own")

from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.answers_recursivemas import extract_answer
from recursivemas.configuration_recursivemas import FIELDS, RecursiveMASConfig
from recursivemas.errors_recursivemas import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    InputError,
    RecursiveMASError,
)
from recursivemas.fields_recursivemas import did_you_mean, validate_fields
from recursivemas.files_recursivemas import read_object
from recursivemas.folders_recursivemas import settle
from recursivemas.links_recursivemas import InnerLink, OuterLink
from recursivemas.loading_recursivemas import read_configuration
from recursivemas.mixtures_recursivemas import EXPECTED_EMBEDDING
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.prompts_recursivemas import read_prompts, validate_task
from recursivemas.solutions_recursivemas import Solution
from recursivemas.sources_recursivemas import Source, split_arguments
from recursivemas.tools_recursivemas import calculator

__all__ = [
    "ROOT",
    "ArgumentError",
    "CheckpointError",
    "ConfigError",
    "InnerLink",
    "InputError",
    "OuterLink",
    "RecursiveMASAgent",
    "RecursiveMASConfig",
    "RecursiveMASError",
    "RecursiveMASModel",
    "Solution",
    "calculator",
    "extract_answer",
    "load_mas_system",
    "put_overrides",
    "read_prompts",
    "read_style",
    "release_settings",
    "released_config",
    "released_styles",
    "small_systems",
]


def small_systems() -> dict[str, Path]:
    """The small systems that a clone ships, by their names: `small/sequential`, `small/mixture`, …"""
    folders = {f"small/{path.parent.name}": path.parent for path in sorted(ROOT.glob("systems/*/config.json"))}
    return {"small/sequential": ROOT, **folders} if (ROOT / "config.json").is_file() else folders


def find_system(name: str | os.PathLike) -> str:
    """The folder of a small system by its name; what is no such name stays as it is.

    Raises:
        InputError: there is no such small system; nothing is looked for on the Hub by such a name.
    """
    text, known = str(name), small_systems()
    if text in known and not os.path.isdir(text):
        return str(known[text])
    ours = (
        text.startswith("small/") or text == str(ROOT) or (text.startswith("systems/") and os.path.isdir(ROOT / text))
    )
    if ours and not os.path.isfile(os.path.join(text, "config.json")):
        hint = did_you_mean(text.replace("systems/", "small/"), known)
        hint = hint or (None if known else "clone the repository: an installed package has no small systems")
        raise InputError("No such small system.", where="system", found=text, expected=", ".join(known), hint=hint)
    return text


def read_style(style: str | os.PathLike) -> dict:
    """The table of a collaboration style: `stages`, `links`, `decoding_role` `prompts`, and `tools` if it has any.

    Together with `agents` it makes a configuration: `RecursiveMASConfig(agents=..., **read_style("mixture"))`.

    Args:
        style: sequential, mixture, distillation or deliberation; or a JSON file of your own with these keys.

    Raises:
        InputError: there is no such style.
        ConfigError: the file is no style, or describes a system that cannot run.
    """
    path = Path(style) if str(style).endswith(".json") else STYLES / f"{style}.json"
    names = sorted(file.stem for file in STYLES.glob("*.json") if not file.stem.startswith("released"))
    if not os.path.isfile(path) or path.stem.startswith("released"):
        expected, hint = f"{', '.join(names)}, or a JSON file of your own", did_you_mean(style, names)
        raise InputError("Unknown collaboration style.", where="style", found=style, expected=expected, hint=hint)
    table = read_object(path, ConfigError)
    fields = {name: FIELDS[name] for name in ("stages", "links", "decoding_role", "prompts")}
    validate_fields(table, {**fields, "tools": FIELDS["tools"]}, str(path), ConfigError, required=fields)
    return table


def released_styles() -> dict:
    """The public release as a table: `styles`, `datasets` and `defaults` (styles/released.json)."""
    return json.loads((STYLES / "released.json").read_text(encoding="utf-8"))


def release_settings(style: str, dataset: str = "math500") -> dict[str, Any]:
    """The release's recommended settings of a released system for a dataset.

    Returns:
        "task", "num_rounds", "latent_steps", "batch_size", "samples" (runs a question), and "generation" (settings of
        transformers).

    Raises:
        InputError: there is no such released system.
    """
    release = released_styles()
    if style not in release["styles"]:
        raise InputError(
            "Unknown system.",
            where="style",
            found=style,
            expected=f"{', '.join([*release['styles'], *small_systems()])}; a folder with a config.json; or a Hub"
            " repository (org/name)",
            hint=did_you_mean(style, [*release["styles"], *small_systems()]),
        )
    entry = release["styles"][style]
    # "evalplus/mbppplus", "MBPP+" and "MATH-500" are known by their plain names.
    name = re.sub(r"[^a-z0-9]", "", dataset.lower().rpartition("/")[2].replace("+", "plus"))
    settings: dict[str, Any] = {"task": "math"}
    generation: dict[str, Any] = {}
    for layer in (release["defaults"], release["datasets"].get(name, {}), entry.get("datasets", {}).get(name, {})):
        settings |= layer
        generation |= layer.get("generation", {})
    return settings | {"generation": generation}


def released_shape(source: str) -> PreTrainedConfig | None:
    """The configuration of a released agent's base model as far as sizes go, without a download; of others `None`."""
    shapes = json.loads((STYLES / "released_shapes.json").read_text(encoding="utf-8"))
    name = next((name for name in shapes if source.startswith("RecursiveMAS/") and source.endswith(name)), None)
    return None if name is None else AutoConfig.for_model(**shapes[name])


def released_config(
    style: str,
    dataset: str = "math500",
    task: str | None = None,
    revision: str | dict[str, str] | None = None,
) -> tuple[RecursiveMASConfig, GenerationConfig]:
    """The configuration of a released system, and the release's generation settings for a dataset.

    Args:
        style: name of a released system, see `released_styles`.
        dataset: what the system is for: chooses the prompts, the links where a system has them per task (`code` for
            mbppplus and livecodebench, `math` for everything else), and the recommended settings.
        task: chooses the prompts and the links in place of `dataset`.
        revision: of every repository, or role -> revision (`outer_links` for the repository of outer links).

    Raises:
        InputError: unknown style, task or role.
    """
    entry, settings = released_styles()["styles"].get(style), release_settings(style, dataset)
    assert entry is not None  # or `release_settings` has said so
    task = settings["task"] if task is None else task
    validate_task(task)
    parts = [*entry["agents"], "outer_links"]
    if isinstance(revision, dict) and not revision.keys() <= set(parts):
        raise InputError("Unknown role.", where="revision", found=", ".join(revision), expected=", ".join(parts))
    revisions = {part: revision.get(part) if isinstance(revision, dict) else revision for part in parts}
    table = read_style(entry["style"])
    agents = {}
    for role, agent in entry["agents"].items():
        place = {"source": agent["source"], "revision": revisions[role]}
        agents[role] = {**place, "model_type": agent["model_type"], "inner_link": {"weights": place}}
    outer = {"source": entry["outer_links"], "revision": revisions["outer_links"]}
    config = RecursiveMASConfig(
        style=style,
        agents=agents,
        num_rounds=settings["num_rounds"],
        latent_steps=settings["latent_steps"],
        task=task,
        link_task=("code" if task == "code" else "math") if entry["per_task"] else None,
        **{**table, "links": [{**link, "weights": dict(outer)} for link in table["links"]]},
    )
    return config, GenerationConfig(**settings["generation"])


def put_overrides(config: RecursiveMASConfig, override: Mapping[str, str | os.PathLike]) -> None:
    """Puts locally trained parts in the places of a system's own.

    Args:
        config: the system's, changed here.
        override: role -> a folder with an agent, its inner link, or both: as the release writes it (`adapter.pt`, with
            or without the model), or as this project does (an agent's repository; of a system, the role's inner link).
            `outer_links` -> a folder with all outer links: with the release's manifest, or a system of this project.
            What a folder does not hold stays.

    Raises:
        InputError: no such role or folder, or nothing in it that could take the part's place.
    """
    for part, place in override.items():
        folder = Path(place).expanduser().resolve()
        where, parts = f"override, {part}", [*config.agents, "outer_links"]
        if part not in parts:
            hint = did_you_mean(part, parts)
            raise InputError("Unknown role.", where="override", found=part, expected=", ".join(parts), hint=hint)
        if not folder.is_dir():
            raise InputError("There is no such folder.", where=where, found=str(place))
        settle(folder)
        file = folder / "config.json"
        content = read_object(file, InputError) if file.is_file() else {}
        entry = config.agents.get(part, {})
        if found := bool(content) and content.get("model_type") != "recursivemas" and part in config.agents:
            fixed = ("source", "revision", "gguf_file", "model_type", "hidden_size")
            entry = {"source": str(folder)} | {name: of for name, of in entry.items() if name not in fixed}
            config.agents[part] = entry
        if part in config.agents:
            if link := _local_link(folder, content, part, "innerlink_config.json", "adapter*.pt"):
                entry["inner_link"], found = link, True
        else:
            names = [f"{link['source']}_to_{link['target']}" for link in config.links]
            links = [_local_link(folder, content, name, "outerlink_config.json") for name in names]
            found = all(links)
            ends = ("source", "target", "feedback", "legacy_key")
            config.links = [
                {name: of for name, of in old.items() if name in ends} | (new or {})
                for old, new in zip(config.links, links, strict=True)
            ]
        if not found:
            files = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
            raise InputError(
                "A folder holds nothing that could take the part's place.",
                where=where,
                found=f"{place}: {files or 'empty'}",
                expected="a system's folder, or one with outerlink_config.json, with all outer links"
                if part == "outer_links"
                else "a model's config.json, adapter.pt, or a system with this role",
            )


def _local_link(folder: Path, content: dict, name: str, *release: str) -> dict[str, Any] | None:
    """The entry of a link that lies in a folder with this config.json; `release` are the release's files of links."""
    links = {f"{link.get('source')}_to_{link.get('target')}": link for link in content.get("links", [])}
    inner = {role: agent.get("inner_link") for role, agent in content.get("agents", {}).items()}
    entry = content["inner_link"] if "inner_link" in content and "_to_" not in name else (links | inner).get(name)
    if entry is None:
        found = any(next(folder.glob(pattern), None) for pattern in release)
        return {"weights": {"source": str(folder)}} if found else None

    def there(weights: Any) -> Any:
        if isinstance(weights, dict):
            tasks = {task: there(of) for task, of in weights.get("tasks", {}).items()}
            return {"tasks": tasks} if tasks else weights
        return {"source": str(folder), "filename": weights or f"links/{name}.safetensors"}

    kept = {key: of for key, of in entry.items() if key not in ("source", "target", "feedback", "legacy_key", "task")}
    return kept if entry.get("kind") == EXPECTED_EMBEDDING else kept | {"weights": there(entry.get("weights"))}


def load_mas_system(
    style: str | os.PathLike = ROOT,
    dataset: str = "math500",
    *,
    device: str | torch.device | dict[str, str | torch.device] | None = None,
    dtype: str | torch.dtype | dict[str, str | torch.dtype] = "auto",
    outer_dtype: str | torch.dtype = "auto",
    trust_remote_code: bool | dict[str, bool] | None = None,
    task: str | None = None,
    revision: str | dict[str, str] | None = None,
    executor: str | None = None,
    executor_options: dict[str, dict] | None = None,
    override: Mapping[str, str | os.PathLike] | None = None,
    **kwargs: Any,
) -> RecursiveMASModel:
    """Loads a system: one of the public release by its name, or any other from its folder or Hub repository.

    Args:
        style: sequential_light, sequential_scaled, mixture, distillation or deliberation (the public release); a small
            system that the clone ships (`small/sequential`, `small/mixture`, …, see `small_systems`); or a folder or
            Hub repository with a system's config.json; by default this repository's own system.
        dataset: of a released system: chooses prompts, links and settings, see `released_config`. Other systems have
            these in their config.json.
        device: one device for all agents, or role -> device; default the CPU.
        dtype: of the agents, one for all or role -> dtype; "auto" keeps the checkpoints', but computes in
            float32 on a processor without bfloat16 instructions (twice the memory, up to six times the speed).
        outer_dtype: of the links; "auto" keeps the checkpoints'.
        trust_remote_code: role -> whether code that the agent's repository brings may run. A plain value changes
            nothing: the code of the system is this clone's.
        task: chooses the prompts, and of a released system the links, in place of `dataset`.
        revision: of the repository; for a released system also role -> revision.
        executor: "ray" lets every agent run as a Ray actor of its own; `solve` is used as ever (docs/performance.md).
        executor_options: role -> what its actors get, see `RayExecutor`.
        override: role or `outer_links` -> folder of a locally trained part, see `put_overrides`.
        kwargs: see `RecursiveMASModel.from_pretrained` (`clones`, `cache_dir`, `local_files_only`, `token`,
            `device_map`, `attn_implementation`, `quantization_config`, `prompts`, `offload`, ...).

    Raises:
        InputError: there is no such style.
        ConfigError, CheckpointError, ArgumentError: see `RecursiveMASModel.from_pretrained`.
    """
    kwargs |= {"device": device, "dtype": dtype, "outer_dtype": outer_dtype, "trust_remote_code": trust_remote_code}
    if executor is not None:
        if executor != "ray":
            raise InputError("Unknown executor.", where="executor", found=repr(executor), expected='"ray", or none')
        from recursivemas.distributed.ray_executor import RayExecutor  # needs an extra

        arguments = dict(kwargs, style=style, dataset=dataset, task=task, revision=revision, override=override)
        mas = load_mas_system(**arguments, only=[])
        load = importlib.import_module("recursivemas.system_loader").load_mas_system  # a name that actors can import
        mas.executor = RayExecutor(mas, partial(load, **arguments), executor_options)
        return mas
    name = find_system(style)
    if "/" in name or os.path.isdir(name):
        if isinstance(revision, dict):
            raise InputError("Revisions by role are for released systems.", where="revision", found=revision)
        if override:
            source = Source(name, revision=revision, hub=split_arguments(kwargs)[0])
            kwargs["config"] = read_configuration(source, None, None, {})
            kwargs["config"].name_or_path = ""  # it was read here, and now names folders of this machine
            put_overrides(kwargs["config"], override)
        return RecursiveMASModel.from_pretrained(name, task=task, revision=revision, **kwargs)
    config, generation = released_config(name, dataset, task, revision)
    put_overrides(config, override or {})
    return RecursiveMASModel.from_pretrained(name, config=config, generation_config=generation, **kwargs)
