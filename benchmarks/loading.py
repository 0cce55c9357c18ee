"""Time and peak memory of loading a system, against plain `from_pretrained` of the same agents.

Each load runs in a process of its own, so that its peak memory is its own; the clock starts after the imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from ..system_loader import ROOT
from .harness import in_turn, ratio_row, row
from .systems import random_system

COMPOSITE = """
from recursivemas.system_loader import load_mas_system
def load(folder, roles):
    return load_mas_system(folder)
"""
PLAIN = """
from recursivemas.system_loader import load_mas_system  # the same imports
from transformers import AutoModelForCausalLM, AutoTokenizer
def load(folder, roles):
    return [(AutoModelForCausalLM.from_pretrained(f"{folder}/agents/{role}"),
             AutoTokenizer.from_pretrained(f"{folder}/agents/{role}")) for role in roles]
"""
SCRIPT = """
import json, resource, sys, time
started = time.perf_counter()
system = load(sys.argv[1], sys.argv[2:])
seconds = time.perf_counter() - started
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", nargs="+", help="shapes of the agents (default: two of --shape)")


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    shapes = arguments.agents or [arguments.shape] * 2
    with tempfile.TemporaryDirectory() as folder:
        mas = random_system(shapes, arguments.dtype, "cpu")
        mas.save_pretrained(folder, copy_agents=True)
        roles = list(mas.agents)
        del mas
        peaks: dict[str, list[float]] = {"system": [], "agents alone": []}

        def load(script: str, way: str) -> float:
            environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, "-c", script + SCRIPT, folder, *roles]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            seconds, peak = json.loads(done.stdout.splitlines()[-1])
            peaks[way].append(peak)
            return seconds

        scripts = {"system": COMPOSITE, "agents alone": PLAIN}
        ways = {way: (lambda way=way, script=script: load(script, way)) for way, script in scripts.items()}
        seconds = in_turn(ways, arguments.repeats, warm_up=not arguments.quick)
    peaks = {way: values[-arguments.repeats :] for way, values in peaks.items()}
    values = [a / b for a, b in zip(peaks["system"], peaks["agents alone"], strict=True)]
    memory = row("peak memory", "system / agents alone (GiB)", values, {})
    memory["extra"] = {way: f"{max(values):.2f} GiB" for way, values in peaks.items()}
    return {"agents": " ".join(shapes)}, [ratio_row("load time", seconds, "system", "agents alone"), memory]
