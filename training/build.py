"""Build a small system from its pre-trained agents: inner links trained, outer links in closed form.

    python -m recursivemas.training.build --system sequential --output .

Reads `agents/` of the output folder and writes `config.json`, `links/`, the tokenizer and `generation_config.json`
beside it. Inner links are trained on fresh rows of the system's task (`ln_res_adapter`, cosine plus relative squared
error); outer links are ridge regressions between the token embeddings that two vocabularies share.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ..system_loader import RecursiveMASConfig, RecursiveMASModel
from .arguments import LinkTrainingArguments
from .data import write_rows
from .init_links import init_system
from .pretrain import SYSTEMS
from .run import train


@dataclass(frozen=True)
class Recipe:
    """How a small system is put together; its task and agents stand in `pretrain.SYSTEMS`.

    Attributes:
        config: topology and defaults of the system, as in config.json.
        rows: number of training rows.
        training: settings of the inner loop (see training/arguments.py).
        max_new_tokens: of the answer and of messages.
    """

    config: dict[str, Any]
    rows: int
    training: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 32


INNER_LOOP = {
    "inner_kind": "ln_res_adapter", "num_rounds": 4, "max_steps": 600, "per_device_train_batch_size": 32,
    "learning_rate": 2e-3, "warmup_steps": 30, "logging_steps": 50,
}  # fmt: skip
RECIPES = {
    "sequential": Recipe(
        config={
            "style": "sequential",
            "stages": [["planner"], ["critic"], ["solver"]],
            "links": [
                {"source": "planner", "target": "critic"},
                {"source": "critic", "target": "solver"},
                {"source": "solver", "target": "planner", "feedback": True},
            ],
            "decoding_role": "solver",
            "num_rounds": 3,
            "latent_steps": 24,
            "latent_halting": True,
        },
        rows=4000,
        training=INNER_LOOP,
    ),
    "mixture": Recipe(
        config={
            "style": "mixture",
            "stages": [["adder", "subtracter", "multiplier"], ["summarizer"]],
            "links": [
                {"source": "adder", "target": "summarizer"},
                {"source": "subtracter", "target": "summarizer"},
                {"source": "multiplier", "target": "summarizer"},
                {"source": "summarizer", "target": "adder", "feedback": True},
                {"source": "summarizer", "target": "subtracter", "feedback": True},
                {"source": "summarizer", "target": "multiplier", "feedback": True},
            ],
            "decoding_role": "summarizer",
            "num_rounds": 4,
            "latent_steps": 8,
            "latent_halting": True,
        },
        rows=4000,
        training={**INNER_LOOP, "max_steps": 1500},
        max_new_tokens=8,
    ),
    "distillation": Recipe(
        config={
            "style": "distillation",
            "stages": [["expert"], ["learner"]],
            "links": [
                {"source": "expert", "target": "learner"},
                {"source": "learner", "target": "expert", "feedback": True},
            ],
            "decoding_role": "learner",
            "num_rounds": 4,
            "latent_steps": 16,
            "latent_halting": True,
        },
        rows=4000,
        training={**INNER_LOOP, "max_steps": 1500},
        max_new_tokens=16,
    ),
    "deliberation": Recipe(
        config={
            "style": "deliberation",
            "stages": [["reflector"], ["toolcaller"]],
            "links": [
                {"source": "reflector", "target": "toolcaller"},
                {"source": "toolcaller", "target": "reflector", "feedback": True},
            ],
            "decoding_role": "toolcaller",
            "num_rounds": 4,
            "latent_steps": 16,
            "latent_halting": True,
        },
        rows=4000,
        training={**INNER_LOOP, "max_steps": 3000},
        max_new_tokens=48,
    ),
}


def start_system(name: str, folder: Path) -> RecursiveMASModel:
    """The system of a recipe around the agents of a folder, nothing trained."""
    recipe, task = RECIPES[name], SYSTEMS[name].task_module()
    config = RecursiveMASConfig(
        **recipe.config,
        agents={role: {"source": f"agents/{role}"} for role in SYSTEMS[name].agents},
        prompts=task.PROMPTS,
        message_tokens=recipe.max_new_tokens,
    )
    mas = init_system(config, folder)
    decoder = mas.agents[config.decoding_role]
    mas.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=recipe.max_new_tokens,
        bos_token_id=decoder.tokenizer.bos_token_id,
        eos_token_id=decoder.eos_token_ids,
        pad_token_id=decoder.pad_token_id,
    )
    return mas


def build(name: str, output: Path, seed: int = 0) -> dict[str, Any]:
    """Trains the inner links and writes the system; returns the result of the training."""
    recipe, task = RECIPES[name], SYSTEMS[name].task_module()
    with tempfile.TemporaryDirectory() as scratch:
        start_system(name, output).save_pretrained(Path(scratch, "start"))
        write_rows(Path(scratch, "train.jsonl"), task.generate(recipe.rows, seed=seed + 10))
        write_rows(Path(scratch, "eval.jsonl"), task.generate(260, seed=seed + 20))
        settings = {
            "system": str(Path(scratch, "start")),
            "output": str(Path(scratch, "trained")),
            "data": str(Path(scratch, "train.jsonl")),
            "eval_data": str(Path(scratch, "eval.jsonl")),
            "eval_rows": 260,
            "seed": seed,
        }
        result = train("inner", LinkTrainingArguments(**settings | recipe.training))
        # Neither the agents, which lie there already, nor the remote code, of which the repository has one copy.
        ignored = shutil.ignore_patterns("agents", "training", "*.py")
        shutil.copytree(Path(scratch, "trained"), output, ignore=ignored, dirs_exist_ok=True)
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recursivemas.training.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--system", required=True, choices=list(RECIPES))
    parser.add_argument("--output", required=True, type=Path, help="folder with agents/, where the system is written")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    print(json.dumps(build(arguments.system, arguments.output, arguments.seed), indent=2))


if __name__ == "__main__":
    main()
