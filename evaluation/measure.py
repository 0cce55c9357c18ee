"""Measuring: accuracy and cost of a system over questions with known answers."""

import argparse
import copy
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..engine_recursivemas import USAGE
from ..errors_recursivemas import InputError
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import slot_marker
from ..tasks import TASKS
from .commands import inputs_of, progress, solve_arguments
from .metrics import METRICS


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927, score interval), bounds in [0, 1]."""
    z = 1.959964
    centre = (right + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * (right * (total - right) / total + z * z / 4) ** 0.5
    # At 0 and 1 the bound is the proportion itself, which rounding would miss.
    return max(0.0, centre - half) if right else 0.0, min(1.0, centre + half) if right < total else 1.0


def load_rows(data: str, num_questions: int, seed: int, levels: list[int] | None = None) -> list[dict]:
    """Rows with "question" and "answer": of a task by name, or of a JSON-lines file (its first `num_questions`).

    A row may hold more: what the system's prompts name is taken from it. `levels` says how hard a task's questions
    are, in turn (default: all that the task knows).

    Raises:
        InputError: no such task or file, or a line without question and answer.
    """
    if data in TASKS:
        known = list(TASKS[data].LEVELS)
        if unknown := sorted(set(levels or ()) - set(known)):
            raise InputError("The task has no such level.", where="--levels", found=unknown, expected=known)
        return TASKS[data].generate(num_questions, levels or known, seed=seed)
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


def load_data(arguments: argparse.Namespace) -> tuple[list[dict], str]:
    """The rows that `add_data_arguments` describes, and the name of the metric that judges their answers."""
    if arguments.num_questions < 1:
        raise InputError("There is nothing to measure.", where="--num-questions", found=arguments.num_questions)
    metric = arguments.metric or getattr(TASKS.get(arguments.data), "METRIC", "exact")
    METRICS[metric].require()
    return load_rows(arguments.data, arguments.num_questions, arguments.seed, arguments.levels), metric


def described(
    arguments: argparse.Namespace, mas: RecursiveMASModel, num_questions: int, metric: str
) -> dict[str, Any]:
    """What results say of the questions and of how the system answered them."""
    return {
        "style": mas.config.style,
        "data": Path(arguments.data).name,
        "num_questions": num_questions,
        "seed": arguments.seed if arguments.data in TASKS else None,
        "levels": arguments.levels,
        **solve_arguments(arguments),
        "latent_steps": mas.config.latent_steps if arguments.latent_steps is None else arguments.latent_steps,
        "latent_halting": mas.config.latent_halting,
        "tools": arguments.tools,
        "metric": metric,
    }


def asked(rows: list[dict], group_by: str | None) -> list[dict[str, Any]]:
    """What results say of each question, for comparisons: "row", "question", "answer", its ids and its group."""
    kept = {"question", "answer", "id", "unique_id", "task_id", "question_id", group_by}
    return [{"row": index} | {name: row[name] for name in row if name in kept} for index, row in enumerate(rows)]


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
    links = {link.name: mas.outer_links[link.name] for link in config.topology.links}
    remaining = RecursiveMASModel(config, {role: mas.agents[role] for role in config.topology.roles}, links)
    remaining.generation_config = copy.deepcopy(mas.generation_config)
    return remaining


def measure(
    mas: RecursiveMASModel,
    rows: list[dict],
    mode: str,
    num_rounds: int,
    group_by: str | None = None,
    metric: str = "exact",
    on_progress: Callable[[int], None] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Accuracy and cost of one setting; `metric` says when an answer is right (see metrics.py).

    `arguments` are those of `solve`.

    Returns:
        "accuracy" with "interval"; "by_group" value -> [right, total]; per question on average "prompt_tokens",
        "latent_positions", "slot_positions", "new_tokens", "seconds"; for each row, its "answers" and whether they
        are "right"; of metrics that the public release judges by rules of its own, "release_accuracy" and the verdicts
        "release" by these.
    """
    started = time.perf_counter()
    questions = [inputs_of(row, mas.input_fields) for row in rows]
    solutions = mas.solve(questions, mode=mode, num_rounds=num_rounds, on_progress=on_progress, **arguments)
    seconds = time.perf_counter() - started
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    verdicts = [METRICS[metric].both(solution, row["answer"]) for solution, row in zip(solutions, rows, strict=True)]
    right, release = ([verdict[scorer] for verdict in verdicts] for scorer in ("strict", "release"))
    for row, is_right in zip(rows, right, strict=True):
        if group_by in row:
            groups[str(row[group_by])][0] += is_right
            groups[str(row[group_by])][1] += 1
    usages = [solution.usage or {} for solution in solutions]
    return {
        "mode": mode,
        "num_rounds": num_rounds,
        "accuracy": sum(right) / len(rows),
        "interval": wilson_interval(sum(right), len(rows)),
        "by_group": dict(groups),
        "seconds": seconds / len(rows),
        **{key: sum(usage[key] for usage in usages) / len(rows) for key in USAGE},
        "answers": [solution.answer for solution in solutions],
        "right": right,
        **({"release_accuracy": sum(release) / len(rows), "release": release} if METRICS[metric].has_release else {}),
    }


def evaluate(
    mas: RecursiveMASModel, rows: list[dict], modes: list[str], rounds: list[int], **arguments: Any
) -> list[dict[str, Any]]:
    """`measure` for every mode and number of rounds; "alone" has no rounds and is measured once."""
    settings = [(mode, r) for mode in modes for r in (rounds if mode != "alone" else [1])]
    figures = []
    with progress(len(settings) * len(rows), "Evaluating") as bar:
        for mode, num_rounds in settings:
            figures.append(measure(mas, rows, mode, num_rounds, on_progress=bar.update, **arguments))
    return figures
