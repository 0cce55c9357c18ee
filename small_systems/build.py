"""Build a small system from nothing: agents pre-trained, inner links trained, outer links in closed form.

    python -m recursivemas.small_systems.build --system mixture --output runs/systems
    python -m recursivemas.small_systems.build --system sequential --output runs/systems --agents .

Everything is said by one table, recipes.json. What lies in `OUTPUT/SYSTEM/agents` already (from an interrupted run, or
copied from --agents) is not trained again: pre-training takes 4 to 21 minutes an agent on one core. At the end every
file of weights is held against the one that ships (see `differences`).
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from ..configuration_recursivemas import RecursiveMASConfig
from ..modeling_recursivemas import RecursiveMASModel
from ..sources_recursivemas import write_code
from ..training.arguments import PAPER, LinkTrainingArguments
from ..training.data import write_rows
from ..training.init_links import init_system
from ..training.run import train
from .pretrain import pretrain_agent
from .recipes import INNER, RECIPES, THREADS, shipped_folder, topology_of


def start_system(name: str, folder: Path) -> RecursiveMASModel:
    """The system of a recipe around the agents of a folder: outer links as they ship, inner links untrained."""
    recipe = RECIPES[name]
    config = RecursiveMASConfig(
        style=name,
        **topology_of(name),
        agents={role: {"source": f"agents/{role}", "revision": None} for role in recipe.agents},
        prompts=recipe.task_module().PROMPTS,
        num_rounds=recipe.num_rounds,
        latent_steps=recipe.latent_steps,
        latent_halting=True,
        conversation="last",
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


def train_inner_links(name: str, folder: Path) -> dict[str, Any]:
    """Trains the inner links of a recipe around the agents of a folder, and writes the whole system there.

    Returns what `train` does.
    """
    recipe = RECIPES[name]
    settings = {**PAPER, **INNER, **recipe.inner}
    with tempfile.TemporaryDirectory() as scratch:
        start_system(name, folder).save_pretrained(Path(scratch, "start"))
        task, seed = recipe.task_module(), settings["seed"]
        arguments = LinkTrainingArguments(
            system=str(Path(scratch, "start")),
            output=str(Path(scratch, "trained")),
            data=write_rows(Path(scratch, "train.jsonl"), task.generate(recipe.rows, seed=seed + 10)),
            eval_data=write_rows(Path(scratch, "eval.jsonl"), task.generate(260, seed=seed + 20)),
            eval_rows=260,
            **settings,
        )
        result = train("inner", arguments)
        # Not the agents, which lie there already; the code is written apart, because it may lie there as links.
        ignored = shutil.ignore_patterns("agents", "training", "*.py")
        shutil.copytree(Path(scratch, "trained"), folder, ignore=ignored, dirs_exist_ok=True)
        write_code(folder, "modeling_recursivemas.py")
    return result


def build(name: str, folder: Path) -> dict[str, Any]:
    """Builds a small system in a folder; agents that are there already stay as they are."""
    torch.set_num_threads(THREADS)
    for role in RECIPES[name].agents:
        if not (folder / "agents" / role / "model.safetensors").is_file():
            pretrain_agent(name, role, folder / "agents" / role)
    return train_inner_links(name, folder)


def differences(name: str, folder: Path) -> dict[str, float]:
    """File of weights of the shipped system -> largest difference of a folder's from it; 0 is equal in every bit.

    Infinity where a file or a tensor is missing. Zero is promised for the outer links, and where torch's
    `get_cpu_capability` is `CPU_CAPABILITY` for all; elsewhere inner links differ by rounding, and agents, after
    thousands of steps, in everything but what they can do.
    """
    shipped, found = shipped_folder(name), {}
    for path in sorted([*shipped.glob("agents/*/*.safetensors"), *shipped.glob("links/*.safetensors")]):
        place = path.relative_to(shipped)
        expected, other = load_file(path), load_file(folder / place) if (folder / place).is_file() else {}
        gaps = [float((expected[key] - other[key]).abs().max()) for key in expected.keys() & other.keys()]
        found[place.as_posix()] = max(gaps) if expected.keys() == other.keys() else float("inf")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recursivemas.small_systems.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--system", choices=list(RECIPES), action="append", help="repeatable (default: all)")
    parser.add_argument("--output", required=True, type=Path, help="each system is built in a folder of its name here")
    parser.add_argument("--agents", type=Path, help="take the agents from this system's folder instead of training")
    arguments = parser.parse_args(argv)
    unequal = 0
    for name in arguments.system or RECIPES:
        folder = arguments.output / name
        if arguments.agents is not None:
            shutil.copytree(arguments.agents / "agents", folder / "agents", dirs_exist_ok=True)
        print(json.dumps({"system": name, **build(name, folder)}))
        for path, same in differences(name, folder).items():
            verdict = "equal to the shipped one in every bit" if same else "DIFFERS from the shipped one"
            print(f"{name}/{path}: {verdict}")
            unequal += not same
    return 1 if unequal else 0


if __name__ == "__main__":
    raise SystemExit(main())
