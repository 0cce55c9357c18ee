"""Checkpoints of a run: which are whole, and whether they are of the same run: its settings, rows and frozen parts."""

import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..errors_recursivemas import CheckpointError, ConfigError, InputError
from ..evaluation.results import fingerprint
from ..fields_recursivemas import is_whole
from ..files_recursivemas import read_object
from ..folders_recursivemas import write_text
from ..stamps_recursivemas import file_digest
from .arguments import SETTINGS, LinkTrainingArguments, canonical, default_of
from .data import Example
from .objectives import LinkObjective

SETTINGS_FILE = "training_config.json"
STAMP_FILE = "stamp.json"  # of the run: its rows and frozen parts
SEAL_FILE = "whole.json"  # of a checkpoint, written last: the hashes of its files
# Settings that may change between a run and its continuation: they do not change the weights.
FREE_SETTINGS = {
    "output", "output_dir", "eval_data", "eval_rows", "metric", "tools", "per_device_eval_batch_size", "eval_strategy",
    "eval_steps", "save_strategy", "save_steps", "save_total_limit", "logging_steps", "report_to", "disable_tqdm",
}  # fmt: skip


def needed_files(processes: int) -> list[str]:
    """What a checkpoint must hold so that a run goes on to the same bits."""
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return ["model.safetensors", "optimizer.pt", "scheduler.pt", *states, "trainer_state.json"]


def seal(checkpoint: Path, losses: tuple[float, int]) -> None:
    """Says that a checkpoint is complete; `losses` are the sum of the steps' losses and their number so far."""
    files = {path.name: file_digest(path) for path in sorted(checkpoint.iterdir()) if path.is_file()}
    write_text(checkpoint / SEAL_FILE, json.dumps({"losses": losses, "files": files}, indent=1) + "\n")


def sealed_losses(checkpoint: Path) -> tuple[float, int]:
    """What `seal` was told; of a checkpoint from before there were seals nothing is known."""
    path = checkpoint / SEAL_FILE
    total, steps = read_object(path, CheckpointError)["losses"] if path.is_file() else (0.0, 0)
    return float(total), int(steps)


def what_lacks(checkpoint: Path, processes: int = 1) -> str | None:
    """Why a checkpoint is not whole, in words; `None` if it is.

    One from before there were seals is whole if everything in it can be read.
    """
    for name in needed_files(processes):
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    path = checkpoint / SEAL_FILE
    try:
        if path.is_file():
            sealed_losses(checkpoint)
            for name, digest in read_object(path, CheckpointError)["files"].items():
                if not (checkpoint / name).is_file():
                    return f"{name} is missing"
                if file_digest(checkpoint / name) != digest:
                    return f"{name} is not what was written"
        else:
            for name in needed_files(processes):
                _read(checkpoint / name)
        read_object(checkpoint / "trainer_state.json", CheckpointError, lenient=True)["global_step"]
    except Exception as error:  # whatever a reader raises at a file that a kill has cut
        return f"a file cannot be read: {type(error).__name__}: {str(error)[:200]}"
    return None


def _read(path: Path) -> None:
    """Raises whatever its reader raises unless a file is complete."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            file.keys()
    elif path.suffix == ".json":
        read_object(path, CheckpointError, lenient=True)
    else:
        with zipfile.ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"{broken} has a wrong checksum")


def _by_step(folder: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, the newest first."""
    steps = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*") if path.is_dir()}
    return sorted((path for path, step in steps.items() if step.isdigit()), key=lambda path: -int(steps[path]))


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(folder: Path, processes: int = 1, quiet: bool = True) -> Path | None:
    """The newest whole checkpoint of a run; unless `quiet`, those that are not are named on standard error."""
    broken: dict[str, str] = {}
    for path in _by_step(folder):
        lacks = what_lacks(path, processes)
        if lacks is None:
            if broken and not quiet:
                said = "; ".join(f"{name} is not whole ({why})" for name, why in broken.items())
                print(f"{said}: going on from {path.name}, the checkpoint before", file=sys.stderr, flush=True)
            return path
        broken[path.name] = lacks
    if broken and not quiet:
        raise CheckpointError(
            "There is no whole checkpoint to go on from.",
            where=folder,
            found="; ".join(f"{name}: {why}" for name, why in broken.items()),
            hint="start anew in another `output`",
        )
    return None


def remove_old(folder: Path, limit: int | None) -> None:
    """Removes the oldest checkpoints beyond a number, by the time of their last change."""
    found = sorted(_by_step(folder), key=lambda path: path.stat().st_mtime_ns)
    for path in found[:-limit] if limit else []:
        shutil.rmtree(path, ignore_errors=True)


def finished(folder: Path, checkpoint: Path | None, max_steps: int) -> dict[str, Any] | None:
    """The result of a run that ended at `max_steps` or later and whose system was saved, else `None`.

    Where the last checkpoint was lost, while earlier ones are there, the run has not ended.
    """
    try:
        result = read_object(folder / "result.json", CheckpointError)
        ended = result["step"] >= max_steps and (checkpoint is None or step_of(checkpoint) >= max_steps)
        return result if ended else None
    except (CheckpointError, KeyError, TypeError):
        return None


def validate_settings(arguments: LinkTrainingArguments, folder: Path) -> None:
    """Checks that the settings are those of the run that is to go on; `max_steps` may have grown.

    Raises:
        ConfigError: settings that change the weights differ, or those of the run cannot be read.
    """
    path = folder / SETTINGS_FILE
    before = canonical(read_object(path, ConfigError))
    now = arguments.settings()
    pairs = {name: [given.get(name, default_of(name)) for given in (before, now)] for name in SETTINGS}
    changed = {name: (a, b) for name, (a, b) in pairs.items() if a != b and name not in FREE_SETTINGS}
    before_steps, steps = changed.get("max_steps", (None, 0))
    if is_whole(before_steps) and before_steps < steps:
        del changed["max_steps"]
    if changed:
        raise ConfigError(
            "The settings differ from those of the run that is to go on.",
            where=path,
            found="; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in sorted(changed.items())),
            hint="go on with the same settings, or start a new run from the trained system",
        )


def stamp_of(objective: LinkObjective, examples: Sequence[Example], processes: int) -> dict[str, Any]:
    """What a run depends on beside its settings.

    Returns:
        "processes"; the number of "rows" and the hash of their "texts"; the hash of the "prompts" as they are encoded;
        that of the "frozen" weights, see `fingerprint`.
    """
    texts, prompts = hashlib.sha256(), hashlib.sha256()
    rows = {example.row.line: example.row for example in examples}
    for row in rows.values():
        texts.update(json.dumps([row.inputs, row.targets, row.answer], sort_keys=True).encode())
    for example in examples:
        for turn, part in sorted(example.parts.items()):
            prompts.update(repr(turn).encode())
            part.update(prompts)
    frozen = [(name, value) for name, value in objective.mas.named_parameters() if not value.requires_grad]
    return {
        "processes": processes,
        "rows": len(rows),
        "texts": texts.hexdigest(),
        "prompts": prompts.hexdigest(),
        "frozen": fingerprint(frozen),
    }


def validate_continuation(folder: Path, checkpoint: Path | None, stamp: dict[str, Any], links: set[str]) -> None:
    """Checks that rows and frozen parts are those of the run, and that a checkpoint holds its links.

    Raises:
        InputError: the rows, their prompts, the agents or the number of processes differ.
        CheckpointError: the checkpoint holds other links.
    """
    path = folder / STAMP_FILE
    if path.is_file():
        before = read_object(path, InputError)
        names = {
            "processes": "the number of processes", "rows": "the number of rows of `data`",
            "texts": "the texts of the rows of `data`",
            "prompts": "what the system's prompts and tokenizers make of the rows",
            "frozen": "the weights of the system that stay as they are (agents, links that are not trained)",
        }  # fmt: skip
        changed = [name for name in names if before.get(name) != stamp[name]]
        if {"rows", "texts"} & set(changed):
            changed = [name for name in changed if name != "prompts"]  # which follow
        if changed:
            counts = {name: f" ({before.get(name)} -> {stamp[name]})" for name in ("processes", "rows")}
            raise InputError(
                "What is trained on differs from what the run that is to go on began with.",
                where=path,
                found="; ".join(names[name] + counts.get(name, "") for name in changed),
                hint="go on with the same data and system, or start a new run from the trained system",
            )
    if checkpoint is None:
        return
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        found = set(file.keys())
    if found != links:
        raise CheckpointError(
            "A checkpoint holds other links than this run trains.",
            where=checkpoint,
            found=", ".join(sorted(found - links)) or "too few",
            expected=", ".join(sorted(links)),
        )
