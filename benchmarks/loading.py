"""Time and peak memory of loading a system, against plain `from_pretrained` of the same agents.

A plain load only maps the files: the weights come from the disk when they are first used. A system reads each of them
once while it loads, to refuse what is not finite. So it is also compared with plain agents whose weights were read.

Each load runs in a process of its own, so that its peak memory is its own; the clock starts after the imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial

from ..system_loader import ROOT
from .harness import Option, in_turn, ratio_row, row
from .systems import random_system

WAYS = ("system", "agents alone", "agents alone, weights read")
SCRIPT = """
import json, resource, sys, time
from recursivemas.system_loader import load_mas_system
from transformers import AutoModelForCausalLM, AutoTokenizer
way, folder, *roles = sys.argv[1:]
started = time.perf_counter()
if way == "system":
    system = load_mas_system(folder)
else:
    system = [(AutoModelForCausalLM.from_pretrained(f"{folder}/agents/{role}"),
               AutoTokenizer.from_pretrained(f"{folder}/agents/{role}")) for role in roles]
if way.endswith("weights read"):
    for parameter in (parameter for model, _ in system for parameter in model.parameters()):
        parameter.sum()
seconds = time.perf_counter() - started
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""
OPTIONS = {"agents": Option("shapes of the agents (default: two of --shape)", [], kind=str)}


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    shapes = arguments.agents or [arguments.shape] * 2
    with tempfile.TemporaryDirectory() as folder:
        mas = random_system(shapes, arguments.dtype, "cpu")
        mas.save_pretrained(folder, copy_agents=True)
        roles = list(mas.agents)
        del mas
        peaks: dict[str, list[float]] = {way: [] for way in WAYS}

        def load(way: str) -> float:
            environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, "-c", SCRIPT, way, folder, *roles]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            seconds, peak = json.loads(done.stdout.splitlines()[-1])
            peaks[way].append(peak)
            return seconds

        seconds = in_turn({way: partial(load, way) for way in WAYS}, arguments.repeats, warm_up=not arguments.quick)
    rows = []
    for way in WAYS[1:]:
        rows.append(ratio_row("load time", {key: seconds[key] for key in ("system", way)}, "system", way))
        values = [a / b for a, b in zip(peaks["system"], peaks[way], strict=True)][-arguments.repeats :]
        memory = row("peak memory", f"system / {way}", values, {})
        memory["extra"] = {key: f"{max(peaks[key]):.2f} GiB" for key in ("system", way)}
        rows.append(memory)
    return {"agents": " ".join(shapes)}, rows
