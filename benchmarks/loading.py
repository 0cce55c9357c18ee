"""Time and peak memory of loading a system, with its bases shared and not, against plain `from_pretrained`.

A plain load only maps the files: the weights come from the disk when they are first used. A system reads each of them
once while it loads, to refuse what is not finite. So it is also compared with plain agents whose weights were read.
Agents of one shape are one base here, written once: the system shares it, "a base each" loads it for every role.

Each load runs in a process of its own, so that its peak memory is its own; the clock starts after the imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from ..system_loader import ROOT
from .harness import Option, in_turn, ratio_row, row
from .systems import random_system

WAYS = ("system", "a base each", "agents alone", "agents alone, weights read")
PAIRS = (("system", "a base each"), ("a base each", "agents alone"), ("a base each", "agents alone, weights read"))
SCRIPT = """
import json, resource, sys, time
from recursivemas.system_loader import load_mas_system
from transformers import AutoModelForCausalLM, AutoTokenizer
way, folder, *places = sys.argv[1:]
started = time.perf_counter()
if way in ("system", "a base each"):
    system = load_mas_system(folder, share_bases=way == "system")
else:
    system = [(AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)) for place in places]
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
        content = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        places = [f"{folder}/{content['agents'][role]['source']}" for role in mas.agents]
        del mas
        peaks: dict[str, list[float]] = {way: [] for way in WAYS}

        def load(way: str) -> float:
            environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, "-c", SCRIPT, way, folder, *places]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            seconds, peak = json.loads(done.stdout.splitlines()[-1])
            peaks[way].append(peak)
            return seconds

        seconds = in_turn({way: partial(load, way) for way in WAYS}, arguments.repeats, warm_up=not arguments.quick)
    rows = []
    for way, other in PAIRS:
        rows.append(ratio_row("load time", {key: seconds[key] for key in (way, other)}, way, other))
        values = [a / b for a, b in zip(peaks[way], peaks[other], strict=True)][-arguments.repeats :]
        memory = row("peak memory", f"{way} / {other}", values, {})
        memory["extra"] = {key: f"{max(peaks[key]):.2f} GiB" for key in (way, other)}
        rows.append(memory)
    return {"agents": " ".join(shapes)}, rows
