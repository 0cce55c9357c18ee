"""Agents with weights in int8 (torchao) against float32: memory, accuracy on fresh questions, time.

Needs `pip install recursivemas[torchao]`. The base model is what the system names; agents out of a GGUF file are
unpacked when they are loaded (docs/scale.md), and so are those of the base that `recursivemas fetch smollm2` brings.
"""

import argparse
import gc
import importlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..evaluation.measure import load_rows
from ..evaluation.measure import measure as ask
from ..system_loader import find_system, load_mas_system
from ..tasks import TASKS
from .harness import Option, chosen, row

OPTIONS = {
    "system": Option("folder or Hub repository of the system", "systems/smollm2", "small/sequential", kind=str),
    "data": Option("the task whose questions are asked", "split_facts", "arithmetic", kind=str, choices=list(TASKS)),
    "num_questions": Option("questions", 100, 4),
    "seed": Option("of the questions", 30000),
    "rounds": Option("recursion rounds", 1),
}
INT8 = {
    "quant_method": "torchao",
    "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}},
}


def parts_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a quantised one is made of; a plain one itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from parts_of(getattr(tensor, name))


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """The bytes of all parameters and buffers, each storage once."""
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    storages = (part.untyped_storage() for tensor in tensors for part in parts_of(tensor.detach()))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    importlib.import_module("torchao")
    rows = load_rows(arguments.data, arguments.num_questions, arguments.seed)
    metric = getattr(TASKS[arguments.data], "METRIC", "exact")
    dtype, system = str(arguments.dtype).removeprefix("torch."), find_system(arguments.system)
    roles = list(load_mas_system(system, dtype=dtype).agents)
    ways: dict[str, Any] = {dtype: None, "int8": INT8}
    ways |= {f"int8, {role} only": {role: INT8} for role in roles}
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for name, settings in ways.items():
        gc.collect()
        loading = {} if settings is None else {"quantization_config": settings}
        mas = load_mas_system(system, dtype=dtype, **loading).to(arguments.device)
        size = bytes_of(agent.model for agent in mas.agents.values())
        found[name] = size, ask(mas, rows, "latent", arguments.rounds, metric=metric)
        del mas
    lines = []
    for name, (size, figures) in found.items():
        line = row(name, f"bytes / {dtype}", [size / found[dtype][0]], {"a question": [figures["seconds"]]})
        low, high = figures["interval"]
        same = sum(a == b for a, b in zip(figures["answers"], found[dtype][1]["answers"], strict=True))
        said = {"MB of agents": f"{size / 1e6:.1f}", "accuracy": f"{figures['accuracy']:.3f} ({low:.2f}–{high:.2f})"}
        lines.append({**line, "extra": {**said, f"answers as in {dtype}": f"{same} of {len(rows)}"}})
    return chosen(arguments, "system", "data", "num_questions", "seed", "rounds"), lines
