"""What training adds to the training-free start, measured on the small sequential system that ships.

    python -m recursivemas.experiments.experiments starts --output evaluation/results/starts.json
    python -m recursivemas.experiments.experiments outer --output evaluation/results/outer_training.json
    python -m recursivemas.experiments.experiments lifts --output evaluation/results/outer_lifts.json
    python -m recursivemas.experiments.experiments gradients --output evaluation/results/gradients.json

`starts`: accuracy with no training at all, after the inner loop, and after both. `outer`: loss and accuracy over the
steps of the outer loop, from a random and from the ridge start, for each form of the loss; and with ridge starts that
know only some of the shared tokens. `lifts`: the same where the start is not good enough (situations.py).
`gradients`: norms by round, of the shipped links and of random ones, for each form of the loss.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..evaluation.commands import add_replace_argument, validate_file
from ..evaluation.measure import measure
from ..evaluation.plots import plot_curves
from ..evaluation.results import provenance
from ..inspection.inspect import gradients
from ..mixtures_recursivemas import ExpectedEmbeddingLink
from ..modeling_recursivemas import RecursiveMASModel
from ..system_loader import ROOT, load_mas_system
from ..tasks import TASKS
from ..training.arguments import PAPER, LinkTrainingArguments
from ..training.data import Encoder, read_rows, write_rows
from ..training.objectives import OuterSettings, text_states
from ..training.run import build_objective, read_curve, train
from ..training.start import fit_inner_link, fit_outer_link, shared_tokens, token_bytes
from .situations import SITUATIONS, lift

OPERATORS = range(7)  # of the questions of the outer loop: two rounds of three agents solve up to six
OUTER: dict[str, Any] = {
    **PAPER,
    "num_rounds": 2, "per_device_train_batch_size": 32, "learning_rate": 2e-3, "warmup_steps": 20, "logging_steps": 10,
    "eval_rows": 140, "threads": 1,
}  # fmt: skip
RECEIVERS: dict[str, Any] = {"supervise": "receivers", "earlier_rounds_weight": 1.0}
RANDOM: dict[str, Any] = {"outer_start": "random"}
NORM: dict[str, Any] = {"outer_kind": "outer_ln_res_adapter"}
LINEAR: dict[str, Any] = {"outer_kind": "outer_linear_adapter"}
RUNS: dict[str, dict[str, Any]] = {
    "random start, last round only": {**NORM, **RANDOM},
    "random start, earlier rounds at 0.1": {**NORM, **RANDOM, "earlier_rounds_weight": 0.1},
    "random start, every receiver in every round": {**NORM, **RANDOM, **RECEIVERS},
    "random linear start, every receiver in every round": {**LINEAR, **RANDOM, **RECEIVERS},
    "ridge start, last round only": NORM,
    "ridge start, every receiver in every round": {**NORM, **RECEIVERS},
    "ridge start, last round only, learning rate 1e-4": {**NORM, "learning_rate": 1e-4},
    "ridge start, every receiver in every round, epsilon 1e-4": {
        **NORM, **RECEIVERS, "learning_rate": 5e-4, "adam_epsilon": 1e-4,
    },
}  # fmt: skip
BOTH = "ridge start, every receiver in every round, epsilon 1e-4"  # the run that `starts` takes for "after both"
LOSSES: dict[str, dict[str, Any]] = {
    "last round only": {},
    "every receiver in every round": RECEIVERS,
    "every receiver in every round, learning rate 5e-4": {**RECEIVERS, "learning_rate": 5e-4},
}
SHARES = (0.5, 0.0)
SEED = 30_000  # of the fresh questions
arithmetic = TASKS["arithmetic"]


def write_questions(path: Path, count: int, seed: int) -> str:
    return write_rows(path, arithmetic.generate(count, OPERATORS, seed=seed, num_rounds=2))


def accuracies(mas: RecursiveMASModel, rounds: list[int], levels: range, count: int, mode: str = "latent") -> dict:
    """Accuracy with its interval over fresh questions, for each number of rounds."""
    rows = arithmetic.generate(count, levels, seed=SEED)
    figures = {num_rounds: measure(mas, rows, mode, num_rounds, batch_size=130) for num_rounds in rounds}
    return {r: {key: found[key] for key in ("accuracy", "interval")} for r, found in figures.items()}


@torch.no_grad()
def linear_inner_links(mas: RecursiveMASModel) -> None:
    """Replaces the inner links by ridge regressions over samples of the agents' own texts."""
    rows, _ = read_rows(arithmetic.generate(256, seed=40_000), mas.topology.roles, 4)
    encoder = Encoder(mas, "default")
    for role, agent in mas.agents.items():
        parts = [encoder.part(row, role, 1 + index % 4) for index, row in enumerate(rows)]
        states = text_states(agent, parts)
        valid = states.labels >= 0
        embeddings = agent.embed(states.labels[valid])
        mas.set_link(role, fit_inner_link(states.hidden_states[valid], embeddings))


def starts(count: int) -> dict[str, Any]:
    """Accuracy at 1 to 4 rounds over 0 to 12 operators, by how much was trained."""
    levels, rounds = arithmetic.LEVELS, [1, 2, 3, 4]
    mas = load_mas_system(ROOT)
    results = {
        "text hand-over": accuracies(mas, rounds, levels, count, "text"),
        "inner links trained, outer links ridge (as shipped)": accuracies(mas, rounds, levels, count),
    }
    with tempfile.TemporaryDirectory() as scratch:
        config = LinkTrainingArguments(
            system=str(ROOT),
            output=str(Path(scratch, "trained")),
            data=write_questions(Path(scratch, "train.jsonl"), 6000, 1),
            max_steps=200,
            **{**OUTER, **RUNS[BOTH]},
        )
        train("outer", config)
        trained = load_mas_system(config.output)
        results["inner links trained, then outer links from ridge"] = accuracies(trained, rounds, levels, count)
    for role, agent in mas.agents.items():
        mas.set_link(role, ExpectedEmbeddingLink(agent.hidden_size))
    results["nothing trained: expected embedding, ridge"] = accuracies(mas, rounds, levels, count)
    linear_inner_links(mas)
    results["nothing trained: linear inner links, ridge"] = accuracies(mas, rounds, levels, count)
    return {"questions": count, "seed": SEED, "operators": list(levels), "accuracy": results}


def partial_system(folder: Path, share: float) -> str:
    """The shipped system with ridge links that saw a share of the tokens that the task uses (and all others)."""
    mas = load_mas_system(ROOT)
    used = [bytes([character]) for character in b"0123456789+-*"]
    known = set(random.Random(0).sample(used, round(share * len(used))))
    for link in mas.topology.links:
        source, target = mas.agents[link.source], mas.agents[link.target]
        hidden = {token_bytes(source.tokenizer)[text] for text in used if text not in known}
        pairs = [pair for pair in zip(*shared_tokens(source, target), strict=True) if pair[0] not in hidden]
        tokens = [a for a, _ in pairs], [b for _, b in pairs]
        mas.set_link(link.name, fit_outer_link(source, target, tokens=tokens))
    mas.save_pretrained(folder)
    return str(folder)


def curve(system: str, folder: Path, data: dict[str, Any], steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One run of the outer loop: losses, gradient norms and accuracy over the steps, and what came of it."""
    run = {"system": system, "output": str(folder), "max_steps": steps, "eval_steps": max(1, steps // 4), **data}
    train("outer", LinkTrainingArguments(**{**run, **OUTER, **settings}))
    after = accuracies(load_mas_system(folder), [1, 2], OPERATORS, 560)
    return {"settings": settings, **read_curve(folder), "accuracy_after": after}


def outer(steps: int, only: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Curves of the outer loop; gives what there is after each run."""
    results: dict[str, Any] = {}
    report = {"steps": steps, "operators": list(OPERATORS), "rounds": 2, "settings": OUTER, "runs": results}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        data = {
            "data": write_questions(place / "train.jsonl", 6000, 1),
            "eval_data": write_questions(place / "eval.jsonl", 140, 2),
        }
        for index, (name, settings) in enumerate(RUNS.items()):
            if only is None or name in only:
                results[name] = curve(str(ROOT), place / f"run{index}", data, steps, settings)
                yield report
        for share in SHARES:
            name = f"ridge start that saw {share:.0%} of the task's tokens"
            system = partial_system(place / f"partial{share}", share)
            before = accuracies(load_mas_system(system), [1, 2], OPERATORS, 560)
            for loss, settings in LOSSES.items():
                if only is None or f"{name}, {loss}" in only:
                    run = curve(system, place / f"partial{share}{loss}", data, steps, settings)
                    results[f"{name}, {loss}"] = {"accuracy_before": before, **run}
                    yield report


def lifts(steps: int | None = None, only: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """What the outer loop makes of each situation; gives what there is after each."""
    results: dict[str, Any] = {}
    for name, situation in SITUATIONS.items():
        if only is None or name in only:
            with tempfile.TemporaryDirectory() as scratch:
                results[name] = lift(situation, Path(scratch), steps)
            yield {"seed": SEED, "runs": results}


def round_gradients() -> dict[str, Any]:
    """Gradient norms of every link by round, see `inspection`."""
    count, num_rounds = 32, 4
    results: dict[str, Any] = {}
    forms: dict[str, dict[str, Any]] = {"last round only": {}, "earlier rounds at 0.1": {"earlier_rounds_weight": 0.1}}
    starts: dict[str, dict[str, Any]] = {"random links": {**NORM, **RANDOM}, "shipped links": {}}
    for start, links in starts.items():
        for loss, settings in {**forms, "every receiver in every round": RECEIVERS}.items():
            torch.manual_seed(0)
            mas = load_mas_system(ROOT)
            build_objective("outer", LinkTrainingArguments(**links), mas)
            rows, report = read_rows(arithmetic.generate(count, seed=50_000), mas.topology.roles, num_rounds)
            examples = Encoder(mas).examples(rows, [mas.topology.schedule(num_rounds)], report)
            results[f"{start}, {loss}"] = gradients(mas, examples, OuterSettings(num_rounds=num_rounds, **settings))
    return {"rows": count, "seed": 50_000, "rounds": num_rounds, "gradients": results}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recursivemas.experiments.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", choices=("starts", "outer", "lifts", "gradients"))
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    add_replace_argument(parser)
    parser.add_argument("--questions", type=int, default=520, help="of `starts` (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of each run (default: 200 in `outer`; its own in `lifts`)")
    parser.add_argument("--only", action="append", help="a run of `outer` or `lifts`; repeatable (default: all)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    validate_file(arguments.output, arguments.replace, beside=(".png",))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    made = {**provenance(), "experiment": arguments.experiment}
    experiments: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
        "starts": lambda: [starts(arguments.questions)],
        "outer": lambda: outer(arguments.steps or 200, arguments.only),
        "lifts": lambda: lifts(arguments.steps, arguments.only),
        "gradients": lambda: [round_gradients()],
    }
    for report in experiments[arguments.experiment]():
        if "runs" in report:
            plot_curves(report["runs"], arguments.output.with_suffix(".png"))
        arguments.output.write_text(json.dumps({**made, **report}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
