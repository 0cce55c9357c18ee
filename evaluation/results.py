"""Stored results: what they were measured on and with which code, how they are written and read, their tables."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..configuration_recursivemas import RUN_FIELDS
from ..errors_recursivemas import InputError
from ..fields_recursivemas import (
    NOTHING,
    OBJECT,
    TEXT,
    Kind,
    is_whole,
    list_of,
    number,
    table_of,
    validate_field,
    validate_fields,
)
from ..files_recursivemas import read_object
from ..folders_recursivemas import write_text
from ..runs_recursivemas import AUTO
from ..system_loader import ROOT

AMOUNT, COUNT = number(0, 1e15), Kind(is_whole, "a whole number")
BOUNDS = Kind(lambda value: list_of(number(-1, 1)).holds(value) and len(value) == 2, "two numbers from -1 to 1")
# What one setting's figures hold, see `measure`.
FIGURES = {
    "mode": TEXT,
    "num_rounds": RUN_FIELDS["num_rounds"],
    **dict.fromkeys(("rounds_used", "turns"), AMOUNT),
    "accuracy": number(0, 1),
    "interval": BOUNDS,
    "by_group": table_of(Kind(lambda value: list_of(COUNT).holds(value) and len(value) == 2, "[right, total]")),
    **dict.fromkeys(("seconds", "prompt_tokens", "latent_positions", "slot_positions", "new_tokens"), AMOUNT),
    "control": TEXT,
    "better": OBJECT,
    "release_accuracy": number(0, 1),
}
# What a benchmark's settings hold for cards.
BENCHMARK = {
    **dict.fromkeys(("benchmark", "title", "dataset", "data"), TEXT),
    "config": TEXT | NOTHING,
    **dict.fromkeys(("num_questions", "of", "samples", "latent_steps"), COUNT),
    "seeds": list_of(COUNT),
}
BETTER = {"difference": number(-1, 1), "interval": BOUNDS, "p": number(0, 1)}
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")
PROVENANCE = ("date", "commit", "versions", "machine")  # what every file of results says of where it comes from


def commit() -> str | None:
    """The commit of this clone, with "-dirty" where tracked files other than results differ from it.

    `None` outside a clone. A command that stores more than one result leaves the later ones' commit as clean as the
    first one's.
    """
    if not (ROOT / ".git").exists():  # an installed package may lie in somebody else's repository
        return None
    try:
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!*/results/*")
        return _git("rev-parse", "HEAD") + ("-dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def provenance() -> dict[str, Any]:
    """Where figures come from; every file of results holds it, see `PROVENANCE`."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "versions": {"recursivemas": __version__, "python": platform.python_version(), **libraries},
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


# What controls put in the slots, in words.
IN_SLOTS = {
    "latents": "latents",
    "none": "nothing",
    "other_question": "another question's latents",
    "noise": "noise of equal norm",
    "read_out": "their nearest tokens, as text",
    "text_first": "text cut to as many tokens, its start",
    "text_last": "text cut to as many tokens, its end",
    "alone": "the last agent alone",
    "alone_voted": "the last agent alone, as much compute, a vote",
}


def text_of(results: dict[str, Any]) -> str:
    """Results as they are stored."""
    return json.dumps(results, ensure_ascii=False, separators=(",", ":")) + "\n"


def fingerprint(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A hash of weights by their names, shapes and up to 64 values of each, whatever their dtype and device."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights, key=lambda each: each[0]):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if weight.device.type != "meta":
            values = weight.detach().reshape(-1)
            values = values[:: max(1, len(values) // 64)][:64].to("cpu", torch.float32)
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def write_results(results: dict[str, Any], path: Path) -> None:
    """Stores results in one step; the folder is made where it is missing.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        write_text(path, text_of(results))
    except OSError as error:
        hint = "the answers are kept: make room, then the same command with --resume"
        raise InputError("Results cannot be written.", where=path, found=error, hint=hint) from error


def read_results(path: str | Path, figures: str | None = "figures") -> dict[str, Any]:
    """Results that a command with `--output` stored.

    Args:
        path: the file.
        figures: what it calls them: "figures" (of `evaluate` and `benchmark`), "controls", `None` for either.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    results = read_object(path, InputError)
    figures = figures or ("controls" if "figures" not in results and "controls" in results else "figures")
    hint = "give a file that `recursivemas evaluate --output` or `recursivemas controls --output` wrote"
    if not {"date", "settings", figures} <= results.keys():
        raise InputError("A file holds no results.", where=path, found=", ".join(results), hint=hint)
    settings, measured = results["settings"], results[figures]
    validate_field(settings, OBJECT, f"{path}, settings", InputError)
    validate_field(settings.get("group_by"), TEXT | NOTHING, f"{path}, settings, group_by", InputError)
    if not isinstance(measured, list) or not measured:
        raise InputError("A file of results holds no figures.", where=path, found=repr(measured), hint=hint)
    optional = {"better", "control", "release_accuracy", "rounds_used", "turns"}
    if "benchmark" in settings:
        where = f"{path}, settings"
        validate_fields(settings, BENCHMARK, where, InputError, required=BENCHMARK, also=settings)
        optional.discard("release_accuracy")
    if not any(isinstance(row, dict) and "control" in row for row in measured):
        optional.add("slot_positions")  # once, nobody counted them
    validate_field(results.get("verdicts", []), list_of(TEXT), f"{path}, verdicts", InputError)
    more = results.get("controls", []) if figures == "figures" else []
    if not isinstance(more, list):
        raise InputError("A file of results holds no figures.", where=path, found=repr(more)[:200], hint=hint)
    for index, row in enumerate([*measured, *more], start=1):
        where = f"{path}, figure {index}"
        validate_fields(row, FIGURES, where, InputError, required=FIGURES.keys() - optional, also=row)
        if "better" in row:
            validate_fields(row["better"], BETTER, f"{where}, better", InputError, required=BETTER, also=row["better"])
    return results


def table(figures: list[dict[str, Any]]) -> str:
    """The figures as a table, per question on average; of controls, with how much better the latents are."""
    controls = any("control" in row for row in figures)
    better = ["latents better by", "95 % interval", "p"] * controls
    costs = ["prompt tokens", "latent positions", *["slot positions"] * controls, "new tokens"]
    lines = [["hand-over" if controls else "mode", "rounds", "accuracy", "95 % interval", *better, *costs, "ms"]]
    for row in figures:
        name = row.get("control", row["mode"])
        rounds = f"auto, {row['rounds_used']:.2f}" if row["num_rounds"] == AUTO else str(row["num_rounds"])
        cells = [name, "" if name == "alone" else rounds]
        cells += [f"{row['accuracy']:.3f}", "{:.3f}–{:.3f}".format(*row["interval"])]
        if found := row.get("better"):
            low, high = found["interval"]
            cells += [f"{found['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{found['p']:.3g}"]
        else:
            cells += ["" for _ in better]
        cells += [f"{row[cost.replace(' ', '_')]:.1f}" for cost in costs]
        lines.append([*cells, f"{1000 * row['seconds']:.0f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def markdown(results: dict[str, Any]) -> str:
    """Stored results as the tables of a model card: accuracy by mode and rounds, cost; controls; what these say."""
    parts = ["\n".join(_modes(results))] if "figures" in results else []
    if results.get("controls"):
        parts.append("\n".join(_controls(results["controls"])))
    return "\n\n".join([*parts, *(f"Channel, {said}." for said in results.get("verdicts", []))])


def _modes(results: dict[str, Any]) -> list[str]:
    lines = ["| hand-over | rounds | accuracy (95 % interval) | latent positions | tokens written |", "|---" * 5 + "|"]
    for row in results["figures"]:
        low, high = row["interval"]
        rounds = "–" if row["mode"] == "alone" else row["num_rounds"]
        lines.append(
            f"| {row['mode']} | {rounds} | {row['accuracy']:.3f} ({low:.3f}–{high:.3f})"
            f" | {row['latent_positions']:.1f} | {row['new_tokens']:.1f} |"
        )
        if "benchmark" in results["settings"]:
            lines += ["", f"By the public release's rules {row['release_accuracy']:.3f}."]
    return lines


def _controls(figures: list[dict[str, Any]]) -> list[str]:
    head = ("in the slots", "rounds", "accuracy (95 % interval)", "latents better by", "positions in slots")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in figures:
        (low, high), name = row["interval"], row.get("control", row["mode"])
        cells = [IN_SLOTS.get(name, name), "–" if row["mode"] == "alone" else row["num_rounds"]]
        cells.append(f"{row['accuracy']:.3f} ({low:.3f}–{high:.3f})")
        if better := row.get("better"):
            low, high = better["interval"]
            cells.append(f"{better['difference']:+.3f} ({low:+.3f} to {high:+.3f})")
        else:
            cells.append("")
        lines.append(f"| {' | '.join(map(str, cells))} | {row.get('slot_positions', 0):.1f} |")
    return lines
