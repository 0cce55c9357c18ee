"""The benchmarks for lm-evaluation-harness: its YAMLs here name functions of this file.

A model reads the question in the words that a system's decoding agent reads when it answers alone, and both scorers
judge what it writes.
"""

import importlib
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if "recursivemas" not in sys.modules:  # the harness runs this file by its path: a clone is made the package
    door = importlib.util.spec_from_file_location("system_loader", ROOT / "system_loader.py")
    assert door is not None and door.loader is not None
    door.loader.exec_module(importlib.util.module_from_spec(door))

prompts = importlib.import_module("recursivemas.prompts_recursivemas")
read_style = importlib.import_module("recursivemas.system_loader").read_style
scoring = importlib.import_module("recursivemas.exams.scoring")
table = importlib.import_module("recursivemas.exams.table")

STYLE = read_style("sequential")


def docs(benchmark: Any, dataset: Any) -> Any:
    """A benchmark's rows, read from its own schema."""
    return type(dataset).from_list(table.read_rows(benchmark, dataset, benchmark.dataset))


def text(benchmark: Any, doc: dict[str, Any]) -> str:
    """What a model is asked."""
    _, template = prompts.template_for(STYLE["prompts"], STYLE["decoding_role"], benchmark.task, "alone")
    return template.replace(prompts.QUESTION, doc["question"])


def results(benchmark: Any, doc: dict[str, Any], written: list[str]) -> dict[str, float]:
    """Both verdicts on what a model wrote."""
    (verdict,) = scoring.verdicts(benchmark, [doc], [written[0]])
    return {name: float(right) for name, right in verdict.items()}


for _name, _benchmark in table.BENCHMARKS.items():
    for _function in (docs, text, results):
        globals()[f"{_name}_{_function.__name__}"] = partial(_function, _benchmark)
