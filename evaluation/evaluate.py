"""Measure a system: accuracy and cost against recursion rounds, for latents, for text hand-over, and for one agent.

The data are fresh questions of a task that this repository generates (by name), or a JSON-lines file with "question"
and "answer". An answer counts when it equals the right one; a missing answer is wrong. The report is printed, and
with --output stored as JSON (settings, machine, figures with 95 % Wilson intervals, every answer) with a plot beside
(where more than one setting was measured).

Examples:
  recursivemas evaluate --data arithmetic --levels 1 2 3 4 5 6 7 8 9 --num-questions 900 --seed 20000
  recursivemas evaluate --data questions.jsonl --rounds 1 3 --modes latent text --output results/mine.json
  recursivemas evaluate --system systems/mixture --data registers --without adder
  recursivemas evaluate --data arithmetic --json | jq '.figures[] | [.mode, .num_rounds, .accuracy]'
"""

import argparse
import copy
import json
import os
import platform
import sys
import time
from collections import defaultdict
from datetime import date
from pathlib import Path

import torch
import transformers

from ..errors_recursivemas import InputError
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import slot_marker
from ..tasks import TASKS
from .solve import TOOLS, add_system_arguments, load_from_arguments, progress

MODES = ("latent", "text", "alone")


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927, score interval), bounds in [0, 1]."""
    z = 1.959964
    centre = (right + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * (right * (total - right) / total + z * z / 4) ** 0.5
    # At 0 and 1 the bound is the proportion itself, which rounding would miss.
    return max(0.0, centre - half) if right else 0.0, min(1.0, centre + half) if right < total else 1.0


def load_rows(data: str, num_questions: int, seed: int, levels: list[int] | None = None) -> list[dict]:
    """Rows with "question" and "answer": of a task by name, or of a JSON-lines file (its first `num_questions`).

    `levels` says how hard a task's questions are, in turn (default: all that the task knows).

    Raises:
        InputError: no such task or file, or a line without question and answer.
    """
    if data in TASKS:
        unknown = set(levels or ()) - set(TASKS[data].LEVELS)
        if unknown:
            raise InputError(
                "The task has no such level.",
                where="--levels",
                found=sorted(unknown),
                expected=list(TASKS[data].LEVELS),
            )
        return TASKS[data].generate(num_questions, levels or TASKS[data].LEVELS, seed=seed)
    path = Path(data)
    if not path.is_file():
        raise InputError("No such data.", where="--data", found=data, expected=f"a file, or one of {', '.join(TASKS)}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            row["answer"] = str(row["answer"])
            row["question"] = str(row["question"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                "A line is no question with its answer.",
                where=f"{path}, line {number}",
                found=f"{line[:80]} ({error!r})",
                expected='{"question": "…", "answer": "…"}',
            ) from error
        rows.append(row)
    return rows[:num_questions]


def without(mas: RecursiveMASModel, roles: list[str]) -> RecursiveMASModel:
    """The system without some of its roles (its parts are shared): their slots in the others' prompts stay empty.

    Raises:
        InputError: no such role.
        ConfigError: what is left cannot run.
    """
    if not roles:
        return mas
    if unknown := set(roles) - set(mas.topology.roles):
        found, expected = (", ".join(sorted(roles)) for roles in (unknown, mas.topology.roles))
        raise InputError("Unknown role.", where="without", found=found, expected=expected)
    config = copy.deepcopy(mas.config)
    config.stages = [kept for stage in config.stages if (kept := [role for role in stage if role not in roles])]
    config.links = [link for link in config.links if not {link["source"], link["target"]} & set(roles)]
    config.agents = {role: entry for role, entry in config.agents.items() if role not in roles}
    prompts = json.dumps({role: entry for role, entry in config.prompts.items() if role not in roles})
    for role in roles:
        prompts = prompts.replace(slot_marker(role), "")
    config.prompts = json.loads(prompts)
    topology = config.topology
    rest = RecursiveMASModel(
        config,
        {role: mas.agents[role] for role in topology.roles},
        {link.name: mas.outer_links[link.name] for link in topology.links},
    )
    rest.generation_config = copy.deepcopy(mas.generation_config)
    return rest


def measure(
    mas: RecursiveMASModel,
    rows: list[dict],
    mode: str,
    num_rounds: int,
    group_by: str | None = None,
    on_progress=None,
    **solve_arguments,
) -> dict:
    """Accuracy and cost of one setting.

    Returns:
        "accuracy" with "interval"; "by_group" value -> [right, total]; per question on average "prompt_tokens",
        "latent_positions", "new_tokens", "seconds"; "answers", one for each row.
    """
    started = time.perf_counter()
    solutions = mas.solve(
        [row["question"] for row in rows],
        mode=mode,
        num_rounds=num_rounds,
        on_progress=on_progress,
        **solve_arguments,
    )
    seconds = time.perf_counter() - started
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    right = [solution.answer == row["answer"] for solution, row in zip(solutions, rows, strict=True)]
    for row, is_right in zip(rows, right, strict=True):
        if group_by is not None and group_by in row:
            groups[str(row[group_by])][0] += is_right
            groups[str(row[group_by])][1] += 1
    figures = {
        "mode": mode,
        "num_rounds": num_rounds,
        "accuracy": sum(right) / len(rows),
        "interval": wilson_interval(sum(right), len(rows)),
        "by_group": dict(groups),
        "seconds": seconds / len(rows),
    }
    for key in ("prompt_tokens", "latent_positions", "new_tokens"):
        figures[key] = sum(solution.usage[key] for solution in solutions) / len(rows)
    return {**figures, "answers": [solution.answer for solution in solutions]}


def evaluate(mas: RecursiveMASModel, rows: list[dict], modes: list[str], rounds: list[int], **arguments) -> list[dict]:
    """`measure` for every mode and number of rounds; "alone" has no rounds and is measured once."""
    settings = [(mode, r) for mode in modes for r in (rounds if mode != "alone" else [1])]
    figures = []
    with progress(len(settings) * len(rows), "Evaluating") as bar:
        for mode, num_rounds in settings:
            figures.append(measure(mas, rows, mode, num_rounds, on_progress=bar.update, **arguments))
    return figures


def table(figures: list[dict]) -> str:
    """The figures as a table, per question on average."""
    head = "mode    rounds  accuracy  95 % interval  prompt tokens  latent positions  new tokens  ms"
    lines = [head, "-" * len(head)]
    for row in figures:
        low, high = row["interval"]
        rounds = "" if row["mode"] == "alone" else row["num_rounds"]
        lines.append(
            f"{row['mode']:<8}{rounds:>6}  {row['accuracy']:>8.3f}  {f'{low:.3f}–{high:.3f}':>13}"
            f"  {row['prompt_tokens']:>13.1f}  {row['latent_positions']:>16.1f}"
            f"  {row['new_tokens']:>10.1f}  {1000 * row['seconds']:.0f}"
        )
    return "\n".join(lines)


def markdown(results: dict) -> str:
    """Stored results as the table of a model card: accuracy by mode and rounds, and what a question costs."""
    lines = [
        "| hand-over | rounds | accuracy (95 % interval) | latent positions | tokens written |",
        "|---|---|---|---|---|",
    ]
    for row in results["figures"]:
        low, high = row["interval"]
        rounds = "–" if row["mode"] == "alone" else row["num_rounds"]
        lines.append(
            f"| {row['mode']} | {rounds} | {row['accuracy']:.3f} ({low:.3f}–{high:.3f})"
            f" | {row['latent_positions']:.1f} | {row['new_tokens']:.1f} |"
        )
    return "\n".join(lines)


def plot(figures: list[dict], group_by: str | None, path: Path) -> None:
    """Accuracy against rounds, accuracy against the group, and positions generated against rounds, side by side."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    by_mode: dict[str, list[dict]] = defaultdict(list)
    for row in figures:
        by_mode[row["mode"]].append(row)
    recursive = {mode: rows for mode, rows in by_mode.items() if mode != "alone"}
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    style = {"latent": ("C0", "o-"), "text": ("C1", "s--")}
    for mode, rows in recursive.items():
        colour, line = style[mode]
        x = [row["num_rounds"] for row in rows]
        y = [row["accuracy"] for row in rows]
        bars = [
            [a - row["interval"][0] for a, row in zip(y, rows, strict=True)],
            [row["interval"][1] - a for a, row in zip(y, rows, strict=True)],
        ]
        left.errorbar(x, y, bars, fmt=line, color=colour, capsize=3, label=f"{mode} hand-over")
        right.plot(x, [row["latent_positions"] + row["new_tokens"] for row in rows], line, color=colour, label=mode)
        if mode == "latent":
            right.plot(
                x, [row["new_tokens"] for row in rows], "o:", color=colour, label="latent: of these, text tokens"
            )
    for row in by_mode.get("alone", []):
        left.axhline(row["accuracy"], color="0.5", linestyle=":", label="decoding agent alone")
    left.set(xlabel="recursion rounds", ylabel="accuracy", ylim=(0, 1.05), title="Accuracy")
    left.legend()
    for row in recursive.get("latent", []):
        groups = sorted(row["by_group"].items(), key=lambda item: float(item[0]))
        accuracy = [r / n for _, (r, n) in groups]
        middle.plot([float(g) for g, _ in groups], accuracy, "o-", markersize=3, label=f"r = {row['num_rounds']}")
    middle.set(xlabel=(group_by or "").replace("_", " "), ylim=(0, 1.05), title="Latent hand-over, by question")
    middle.legend()
    right.set(xlabel="recursion rounds", title="Positions generated per question")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xticks(sorted({row["num_rounds"] for rows in recursive.values() for row in rows}))
    right.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def machine() -> dict:
    """What the figures were measured on."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="arithmetic", help=f"a JSON-lines file, or a task: {', '.join(TASKS)}")
    parser.add_argument("--num-questions", type=int, default=600, help="how many (default: 600)")
    parser.add_argument("--seed", type=int, default=20000, help="of the generated questions (default: 20000)")
    parser.add_argument("--levels", type=int, nargs="+", help="of the generated questions (default: all of the task)")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 3, 4], help="numbers of rounds to measure")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES, help="what to measure")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="ROLE", help="leave out roles: what they are worth"
    )
    parser.add_argument("--group-by", help="field of the rows to break accuracy down by (default: the task's own)")
    parser.add_argument("--from", dest="stored", help="show stored results again (JSON), and draw their plot anew")
    parser.add_argument("--output", help="JSON file for the results; a plot goes beside it (.png)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")
    add_system_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.stored:
        results, output = read_results(arguments.stored), Path(arguments.stored)
    else:
        results, output = _measure_all(arguments), Path(arguments.output) if arguments.output else None
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(results, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    if output and len(results["figures"]) > 1:
        try:
            plot(results["figures"], results["settings"]["group_by"], output.with_suffix(".png"))
        except ModuleNotFoundError as error:
            print(f"no plot: {error}; install recursivemas[plots]", file=sys.stderr)
    print(json.dumps(results, ensure_ascii=False) if arguments.json else table(results["figures"]))
    return 0


def read_results(path: str | Path) -> dict:
    """Results that `recursivemas evaluate --output` stored."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("Results cannot be read.", where=path, found=error, expected="a JSON file") from error
    if not isinstance(results, dict) or not {"date", "settings", "figures"} <= results.keys():
        raise InputError("A file holds no results.", where=path, expected="what `recursivemas evaluate` stored")
    return results


def _measure_all(arguments: argparse.Namespace) -> dict:
    if arguments.num_questions < 1:
        raise InputError("There is nothing to measure.", where="--num-questions", found=arguments.num_questions)
    rows = load_rows(arguments.data, arguments.num_questions, arguments.seed, arguments.levels)
    group_by = arguments.group_by or getattr(TASKS.get(arguments.data), "GROUP_BY", None)
    mas = without(load_from_arguments(arguments), arguments.without)
    figures = evaluate(
        mas,
        rows,
        arguments.modes,
        arguments.rounds,
        group_by=group_by,
        latent_steps=arguments.latent_steps,
        task=arguments.task,
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
        tools=TOOLS.get(arguments.tools),
    )
    settings = {
        "style": mas.config.style,
        "data": Path(arguments.data).name,
        "num_questions": len(rows),
        "seed": arguments.seed if arguments.data in TASKS else None,
        "levels": arguments.levels,
        "latent_steps": mas.config.latent_steps if arguments.latent_steps is None else arguments.latent_steps,
        "latent_halting": mas.config.latent_halting,
        "batch_size": arguments.batch_size,
        "tools": arguments.tools,
        "without": arguments.without,
        "group_by": group_by,
    }
    return {"date": date.today().isoformat(), "settings": settings, "machine": machine(), "figures": figures}
