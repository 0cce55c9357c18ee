"""How the small systems that ship are made: recipes.json, from which `small_systems.build` makes them from nothing.

Every figure there and here matters to the bit: on one thread of a processor of one kind, the same recipe gives the
same weights.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..system_loader import ROOT, read_style
from ..tasks import TASKS

THREADS = 1
CPU_CAPABILITY = "AVX512"  # of torch, with which the shipped weights were made; others round otherwise


@dataclass(frozen=True)
class AgentRecipe:
    """One agent, trained from nothing.

    Attributes:
        model_type: transformers' architecture.
        tokenizer_family: of `tokenizers.FAMILIES`.
        tokenizer_seed: of the order of its ids.
        hidden_size, intermediate_size, num_hidden_layers, head_dim: of its configuration.
        steps: of the optimizer.
        batch_size: examples of a step.
        learning_rate: peak of one cycle.
        seed: of weights and examples.
    """

    model_type: str
    tokenizer_family: str
    tokenizer_seed: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 3
    head_dim: int = 32
    steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """One small system: its agents, its topology, and how its inner links are trained (outer links are closed-form).

    Attributes:
        task: of `TASKS`; gives prompts and training rows.
        agents: role -> recipe.
        num_rounds, latent_steps, max_new_tokens: defaults of the system; the last for answers and messages.
        inner: settings of the inner loop that differ from `INNER`.
        rows: number of training rows; the data's seed is the run's plus 10, the evaluation's plus 20.
        topology: `stages`, `links` and `decoding_role` where they are not those of the style of that name.
    """

    task: str
    agents: dict[str, AgentRecipe]
    num_rounds: int
    latent_steps: int
    max_new_tokens: int
    inner: dict[str, Any] = field(default_factory=dict)
    rows: int = 4000
    topology: dict[str, Any] | None = None

    def task_module(self) -> ModuleType:
        return TASKS[self.task]


# Settings of the inner loop. The shipped links were trained with torch's own epsilon.
INNER: dict[str, Any] = {
    "inner_kind": "ln_res_adapter", "num_rounds": 4, "max_steps": 600, "per_device_train_batch_size": 32,
    "learning_rate": 2e-3, "warmup_steps": 30, "adam_epsilon": 1e-8, "logging_steps": 50, "seed": 0,
    "threads": THREADS,
}  # fmt: skip


def _read_recipes() -> dict[str, Recipe]:
    table = json.loads(Path(__file__).with_name("recipes.json").read_text(encoding="utf-8"))
    return {
        name: Recipe(**{**entry, "agents": {role: AgentRecipe(**given) for role, given in entry["agents"].items()}})
        for name, entry in table.items()
    }


RECIPES = _read_recipes()


def shipped_folder(name: str) -> Path:
    """Where a small system lies in the repository: the sequential one is the repository's own."""
    return ROOT if name == "sequential" else ROOT / "systems" / name


def topology_of(name: str) -> dict[str, Any]:
    """`stages`, `links` and `decoding_role` of a recipe; the links without their names in the public release."""
    table = RECIPES[name].topology or read_style(name)
    links = [{key: value for key, value in link.items() if key != "legacy_key"} for link in table["links"]]
    return {"stages": table["stages"], "links": links, "decoding_role": table["decoding_role"]}
