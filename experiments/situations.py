"""Situations in which links are not good enough as they start, for the outer loop to mend.

Each is a shipped system with one thing changed:

- `fixed number of latents`: nothing ends a rollout, as in the release, so that agents go on after they have finished.
- `fewer latents than tokens`: the same with fewer steps than the tokens of what a tool-caller says.
- `another alphabet`: one agent's vocabulary writes digits and operators as capital letters, so that it understands the
  others neither over text nor through closed-form links, which map a symbol to the same symbol.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..evaluation.commands import TOOLS
from ..evaluation.measure import measure
from ..modeling_recursivemas import RecursiveMASModel
from ..system_loader import ROOT, load_mas_system
from ..tasks import TASKS
from ..training.arguments import PAPER, LinkTrainingArguments
from ..training.data import write_rows
from ..training.run import read_curve, train
from ..training.start import fit_outer_link

ROUNDS = (1, 2)
SYMBOLS, LETTERS = "0123456789+-*", "ABCDEFGHIJPMT"
STRANGER = "critic"
SETTINGS: dict[str, Any] = {
    **PAPER,
    "num_rounds": 2, "per_device_train_batch_size": 32, "warmup_steps": 20, "logging_steps": 20, "eval_rows": 140,
    "threads": 1, "outer_kind": "outer_ln_res_adapter", "supervise": "receivers", "earlier_rounds_weight": 1.0,
}  # fmt: skip
ROLLOUT: dict[str, Any] = {"latents": "rollout", "train_inner_links": True}


def without_halting(shipped: Path, latent_steps: int, folder: Path) -> None:
    """Writes a shipped system whose rollouts all have the same number of steps."""
    mas = load_mas_system(shipped)
    mas.config.latent_halting, mas.config.latent_steps = False, latent_steps
    mas.save_pretrained(folder)


def with_stranger(folder: Path) -> None:
    """Writes the sequential system with a critic whose vocabulary spells the task's symbols as `LETTERS`."""
    load_mas_system(ROOT).save_pretrained(folder, copy_agents=True)
    path = folder / "agents" / STRANGER / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for symbol, letter in zip(SYMBOLS, LETTERS, strict=True):
        vocabulary[symbol], vocabulary[letter] = vocabulary[letter], vocabulary[symbol]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    mas = load_mas_system(folder)
    for link in mas.topology.links:
        mas.set_link(link.name, fit_outer_link(mas.agents[link.source], mas.agents[link.target]))
    mas.save_pretrained(folder)


def as_stranger_writes(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the arithmetic task in which the critic's texts are in its own alphabet."""
    texts = [text.translate(str.maketrans(SYMBOLS, LETTERS)) for text in row["targets"][STRANGER]]
    return {**row, "targets": {**row["targets"], STRANGER: texts}}


@dataclass(frozen=True)
class Situation:
    """A system that needs the outer loop, and how it is trained.

    Attributes:
        make: writes the system, with the links it starts from, into a folder.
        task: of `TASKS`.
        levels: of its questions.
        steps: of the outer loop.
        training: settings beside `SETTINGS`.
        rewrite: changes a row of training data.
    """

    make: Callable[[Path], None]
    task: str
    levels: Sequence[int]
    steps: int
    training: dict[str, Any] = field(default_factory=dict)
    rewrite: Callable[[dict], dict] = lambda row: row

    def write_rows(self, path: Path, count: int, seed: int) -> str:
        """Fresh training rows, as JSON lines."""
        rows = map(self.rewrite, TASKS[self.task].generate(count, self.levels, seed=seed, num_rounds=max(ROUNDS)))
        return write_rows(path, rows)

    def measure(self, mas: RecursiveMASModel, mode: str, count: int) -> dict[int, dict[str, Any]]:
        """Rounds -> accuracy with its interval, and what was sent and written, over fresh questions."""
        rows = TASKS[self.task].generate(count, self.levels, seed=30_000)
        tools = TOOLS.get(self.training.get("tools", ""))
        keys = ("accuracy", "interval", "latent_positions", "new_tokens")
        figures = {r: measure(mas, rows, mode, r, batch_size=140, tools=tools) for r in ROUNDS}
        return {r: {key: found[key] for key in keys} for r, found in figures.items()}


SITUATIONS = {
    "fixed number of latents": Situation(
        partial(without_halting, ROOT, 12), "arithmetic", range(7), 1200, {**ROLLOUT, "learning_rate": 2e-3}
    ),
    "fewer latents than tokens": Situation(
        partial(without_halting, ROOT / "systems" / "deliberation", 7), "variables", (1, 2), 1000,
        {**ROLLOUT, "learning_rate": 2e-3, "tools": "calculator"},
    ),
    "another alphabet": Situation(
        with_stranger, "arithmetic", range(7), 3000,
        {"outer_start": "random", "learning_rate": 2e-3}, as_stranger_writes,
    ),
}  # fmt: skip


def lift(
    situation: Situation, folder: Path, steps: int | None = None, questions: int = 560, rows: int = 12_000
) -> dict[str, Any]:
    """Accuracy over text, as the links start, and after the outer loop; and the run's curve.

    Args:
        situation: what to train.
        folder: for the systems and data.
        steps: of the outer loop (default: the situation's).
        questions: fresh ones, of each measurement.
        rows: of the training data.
    """
    steps = steps or situation.steps
    settings = {**SETTINGS, **situation.training, "max_steps": steps}
    situation.make(folder / "start")
    start = load_mas_system(folder / "start")
    config = LinkTrainingArguments(
        system=str(folder / "start"),
        output=str(folder / "trained"),
        data=situation.write_rows(folder / "train.jsonl", rows, seed=1),
        eval_data=situation.write_rows(folder / "eval.jsonl", min(140, questions), seed=2),
        eval_steps=max(1, steps // 8),
        **settings,
    )
    results = {
        "settings": settings,
        "questions": questions,
        "text": situation.measure(start, "text", questions),
        "before": situation.measure(start, "latent", questions),
    }
    train("outer", config)
    results["after"] = situation.measure(load_mas_system(folder / "trained"), "latent", questions)
    return results | read_curve(folder / "trained")
