"""The outer loop: batches against one sample at a time, memory, resumption, and two processes against one.

Runs on the system that ships, whatever `--shape` says: the data must be such that agents have target texts.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..system_loader import ROOT, load_mas_system
from ..tasks import TASKS
from ..training.arguments import PAPER, LinkTrainingArguments
from ..training.data import Encoder, Example, read_rows, write_rows
from ..training.objectives import OuterObjective, OuterSettings
from ..training.run import read_curve, train
from .harness import Option, chosen, in_turn, ratio_row, row, timed

OPTIONS = {
    "batch_size": Option("rows of a batch", 16, 4),
    "rounds": Option("numbers of rounds, the first for speed", [2, 1, 4], [1]),
}


def _objective(num_rounds: int, **settings: Any) -> OuterObjective:
    mas = load_mas_system(ROOT)
    what = OuterSettings(num_rounds, supervise="receivers", earlier_rounds_weight=1.0, **settings)
    return OuterObjective(mas, list(mas.outer_links), settings=what).train()


def _examples(objective: OuterObjective, count: int) -> list[Example]:
    mas = objective.mas
    rows, report = read_rows(TASKS["arithmetic"].generate(count, seed=1), mas.topology.roles, objective.num_rounds)
    return Encoder(mas).examples(rows, [objective.schedule], report)


def _step(objective: OuterObjective, examples: list[Example], batch_size: int) -> None:
    """Gradients of the mean loss of all examples, `batch_size` of them at a time."""
    objective.zero_grad()
    for start in range(0, len(examples), batch_size):
        (objective(examples[start : start + batch_size])["loss"] * batch_size / len(examples)).backward()


def _peak(num_rounds: int, checkpointing: bool, batch_size: int, threads: int) -> tuple[float, float]:
    """MiB that a step needs above what was held before it, and its seconds; in a process of its own."""
    torch.set_num_threads(threads)
    objective = _objective(num_rounds, activation_checkpointing=checkpointing)
    examples = _examples(objective, batch_size)
    _step(objective, examples[:1], 1)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    seconds = timed(lambda: _step(objective, examples, batch_size))
    return max(0.1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before), seconds


def _run_settings(folder: Path, name: str, batch_size: int, steps: int) -> LinkTrainingArguments:
    data = folder / "rows.jsonl"
    if not data.exists():
        write_rows(data, TASKS["arithmetic"].generate(4 * batch_size, seed=2))
    return LinkTrainingArguments(
        **PAPER,
        system=str(ROOT), data=str(data), output=str(folder / name), outer_kind="outer_ln_res_adapter", num_rounds=2,
        max_steps=steps, save_steps=1, save_total_limit=steps, logging_steps=1, warmup_steps=1,
        per_device_train_batch_size=batch_size, threads=1,
    )  # fmt: skip


def _train(settings: LinkTrainingArguments, resume: bool = False) -> list[float]:
    """Seconds of a training run, without its lines on standard output, where the report goes."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        return [timed(lambda: train("outer", settings, resume=resume))]


def resumption(folder: Path, batch_size: int, steps: int) -> dict:
    """Share of the links' weights that are equal in every bit after a stop and a resumption halfway."""
    seconds = {"whole run": _train(_run_settings(folder, "whole", batch_size, steps))}
    shutil.copytree(folder / "whole", folder / "resumed")
    for step in range(steps // 2 + 1, steps + 1):
        shutil.rmtree(folder / "resumed" / "training" / f"checkpoint-{step}")
    seconds["resumed"] = _train(_run_settings(folder, "resumed", batch_size, steps), resume=True)
    equal, total = 0, 0
    for path in (folder / "whole" / "links").iterdir():
        other = load_file(folder / "resumed" / "links" / path.name)
        for key, tensor in load_file(path).items():
            equal += int((tensor == other[key]).sum())
            total += tensor.numel()
    return row("stopped halfway and resumed", "share of bit-equal weights", [equal / total], seconds, ">= 1")


def two_processes(folder: Path, batch_size: int, steps: int) -> dict:
    """Share of steps whose losses agree to 1e-5, two gloo processes against one of the same global batch."""
    seconds = {"one process": _train(_run_settings(folder, "one", batch_size, steps))}
    two = _run_settings(folder, "two", batch_size // 2, steps)
    (folder / "two.json").write_text(json.dumps(two.settings()), encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "recursivemas.cli", "train", "outer", "--config", str(folder / "two.json")]
    seconds["two processes"] = [timed(lambda: subprocess.run(command, check=True, capture_output=True))]
    pairs = list(zip(*(read_curve(folder / name)["loss"] for name in ("one", "two")), strict=True))
    equal = sum(abs(a - b) <= 1e-5 for a, b in pairs) / len(pairs)
    what = "share of steps with losses equal to 1e-5"
    line = row("two processes, same global batch", what, [equal], seconds, ">= 1")
    return {**line, "extra": {"largest difference": f"{max(abs(a - b) for a, b in pairs):.1e}"}}


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    batch_size, rounds = arguments.batch_size, arguments.rounds
    rows = []
    for latents in ("teacher", "rollout"):
        objective = _objective(rounds[0], latents=latents)
        examples = _examples(objective, (1 if arguments.quick else 4) * batch_size)
        sizes = {"one sample at a time": 1, "batches": batch_size}
        ways = {name: partial(_step, objective, examples, size) for name, size in sizes.items()}
        seconds = in_turn(ways, arguments.repeats)
        rows.append(ratio_row(f"{latents} latents, batches of {batch_size}", seconds, *ways))
    context = multiprocessing.get_context("spawn")
    for num_rounds in sorted(rounds):
        found = {}
        for name in ("plain", "checkpointing"):
            setting = (num_rounds, name == "checkpointing", 4 * batch_size, torch.get_num_threads())
            if arguments.quick:  # whether it runs; the peak is that of all before, too
                found[name] = _peak(*setting)
            else:
                with context.Pool(1) as pool:
                    found[name] = pool.apply(_peak, setting)
        ratio = found["plain"][0] / found["checkpointing"][0]
        line = row(f"memory of a step, {num_rounds} rounds", "plain / activation checkpointing", [ratio],
                   {name: [seconds] for name, (_, seconds) in found.items()})  # fmt: skip
        rows.append({**line, "extra": {f"MiB {name}": round(peak) for name, (peak, _) in found.items()}})
    with tempfile.TemporaryDirectory() as scratch:
        rows.append(resumption(Path(scratch), batch_size, 2 if arguments.quick else 6))
    if not arguments.quick:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(two_processes(Path(scratch), batch_size, 6))
    return chosen(arguments, *OPTIONS), rows
