"""Measure speed and memory; every figure is a ratio of two things that run in turn in one process.

Random weights at the shapes of real models: nothing is downloaded. The machine should have nothing else to do.

Examples:
  recursivemas bench rollout
  recursivemas bench step --shape qwen3-1.7b --device cuda --dtype bfloat16
  recursivemas bench recursion --agents qwen3-1.7b llama3.2-1b qwen2.5-1.5b --repeats 1
  recursivemas bench all --quick
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

import torch

from ..errors_recursivemas import InputError
from ..evaluation.commands import add_replace_argument, validate_file
from .harness import CLOCKS, Option, chosen, report, save, table, use_clock
from .systems import SHAPES

BENCHMARKS = {
    "rollout": "a latent rollout against recomputing everything",
    "profile": "where the time of a prompt and of latent steps goes",
    "half": "bfloat16 against float32, prompts and steps",
    "step": "a latent step against a step of greedy decoding",
    "floor": "a latent step against reading the bytes that it must read",
    "recursion": "a whole run against text hand-over, and against reloading and recomputing",
    "reuse": "what a later round reads against the first",
    "batch": "batches against one question at a time",
    "loading": "load time and peak memory against plain from_pretrained",
    "growth": "growth with rounds, agents, latent steps and prompt length",
    "handover": "thinking and handing over against the public avp package",
    "pipeline": "agents as Ray actors against one process; what travels against key/value caches",
    "serve": "the server: clients side by side against one by one, its own work, clients that leave, mixed requests",
    "sandbox": "a test of model-written code against a bare Python, and tests side by side",
    "quantized": "agents with weights in int8 against float32: memory, accuracy, time",
    "scale": "on paper: what a rate of questions needs of GPUs, for each released system",
    "memory": "planned memory of a training step against what it holds",
    "exam": "a published benchmark's run against `solve` on the same questions",
    "training": "the outer loop: batches, memory, resumption, two processes",
}


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, what in {**BENCHMARKS, "all": "all of them, with their defaults"}.items():
        command = commands.add_parser(name, help=what, description=what)
        for option, (text, default, _, kind, choices) in _options(name).items():
            flag = "--" + option.replace("_", "-")
            if default is False:
                command.add_argument(flag, action="store_true", help=text)
                continue
            values = default if isinstance(default, list) else [default]
            text += f" (default: {' '.join(map(str, values))})" if values else ""
            nargs = "+" if values is default else None
            command.add_argument(flag, type=kind, nargs=nargs, choices=choices, help=text)
        command.add_argument("--shape", help=f"{', '.join(SHAPES)} (default: qwen3-0.6b; tiny with --quick)")
        command.add_argument("--dtype", default="float32", help="of the agents (default: float32)")
        command.add_argument("--device", default="cpu", help="for example cuda (default: cpu)")
        command.add_argument("--threads", type=int, help="processor threads (default: torch's own choice)")
        command.add_argument(
            "--clock", choices=CLOCKS, default="wall", help="cpu: for a busy machine, with --threads 1"
        )
        command.add_argument("--repeats", type=int, help="how often each way runs (default: 3; 1 with --quick)")
        command.add_argument("--quick", action="store_true", help="small sizes: whether it runs, in seconds")
        command.add_argument("--output", type=Path, help="folder for <benchmark>.json and <benchmark>.png")
        add_replace_argument(command)
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _module(name: str):
    return importlib.import_module(f".{name}", __package__)


def _options(name: str) -> dict[str, Option]:
    return {} if name == "all" else _module(name).OPTIONS


def _filled(name: str, arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with a benchmark's own defaults where nothing was said."""
    values = argparse.Namespace(**vars(arguments))
    for option, (_, default, quick, *_) in _options(name).items():
        usual = quick if values.quick and quick is not None else default
        setattr(values, option, getattr(values, option, None) or usual)
    return values


def run(arguments: argparse.Namespace) -> int:
    arguments.shape = arguments.shape or ("tiny" if arguments.quick else "qwen3-0.6b")
    arguments.dtype = getattr(torch, arguments.dtype)
    arguments.repeats = arguments.repeats or (1 if arguments.quick else 3)
    if arguments.threads or arguments.quick:
        torch.set_num_threads(arguments.threads or 1)
    use_clock(arguments.clock)
    names = list(BENCHMARKS) if arguments.benchmark == "all" else [arguments.benchmark]
    for name in names if arguments.output else []:
        validate_file(arguments.output / f"{name}.json", arguments.replace, beside=(".png",))
    for name in names:
        values = _filled(name, arguments)
        load, threads = os.getloadavg()[0], torch.get_num_threads()
        try:
            settings, rows = _module(name).measure(values)
        except ModuleNotFoundError as error:
            if arguments.benchmark != "all":
                raise InputError(
                    "A benchmark needs a package that is not installed.",
                    where=name,
                    found=str(error),
                    hint=f"pip install {error.name}",
                ) from error
            print(f"{name}: left out, {error}", file=sys.stderr)
            continue
        torch.set_num_threads(threads)  # a training run sets its own
        shared = chosen(values, "shape", "dtype", "device", "repeats", "clock")
        shared["dtype"] = str(values.dtype).removeprefix("torch.")
        result = report(name, {**shared, **settings}, rows, load)
        print(json.dumps(result, ensure_ascii=False) if values.json else table(result), flush=True)
        if values.output:
            save(result, values.output)
    return 0
