"""Measuring: accuracy and cost of a system over questions with known answers."""

import argparse
import copy
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors_recursivemas import InputError
from ..fields_recursivemas import is_number
from ..files_recursivemas import parse_json, read_lines
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import slot_marker
from ..runs_recursivemas import AUTO
from ..solutions_recursivemas import USAGE, Solution
from ..tasks import TASKS
from .commands import inputs_of, progress, solve_arguments, validate_arguments
from .metrics import JUDGES
from .programs import CODE, program_row, require_allowed
from .rows import RowFile

DEPTH = {"rounds_used": "rounds", "turns": "turns"}  # figure -> what of a row's usage it is the mean of


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927, score interval), bounds in [0, 1]."""
    z = 1.959964
    centre = (right + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * (right * (total - right) / total + z * z / 4) ** 0.5
    # At 0 and 1 the bound is the proportion itself, which rounding would miss.
    return max(0.0, centre - half) if right else 0.0, min(1.0, centre + half) if right < total else 1.0


def load_rows(
    data: str, num_questions: int, seed: int, levels: list[int] | None = None, metric: str = "exact"
) -> list[dict]:
    """Rows with "question" and "answer": of a task by name, or of a JSON-lines file (its first `num_questions`).

    A row may hold more: what the system's prompts name is taken from it. `levels` says how hard a task's questions
    are, in turn (default: all that the task knows). Rows for the metric `code` have tests in place of an answer
    (programs.py).

    Raises:
        InputError: no such task or file, or a line without question and answer, or tests.
    """
    if data in TASKS:
        known = list(TASKS[data].LEVELS)
        if unknown := sorted(set(levels or ()) - set(known)):
            raise InputError("The task has no such level.", where="--levels", found=unknown, expected=known)
        rows = TASKS[data].generate(num_questions, levels or known, seed=seed)
        return [program_row(row, f"--data {data}") for row in rows] if metric == CODE else rows
    path = Path(data)
    if not path.is_file():
        raise InputError("No such data.", where="--data", found=data, expected=f"a file, or one of {', '.join(TASKS)}")
    rows = []
    for number, line in read_lines(path, InputError):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, InputError, where)
        if metric == CODE:
            rows.append(program_row(row, where))
            continue
        question, answer = (row.get("question"), row.get("answer")) if isinstance(row, dict) else (None, None)
        if not isinstance(question, str) or not (isinstance(answer, str) or is_number(answer)):
            raise InputError(
                "A line is no question with its answer.",
                where=where,
                found=line.decode("utf-8", "replace"),
                expected='{"question": "…", "answer": "…"}',
            )
        rows.append(row | {"answer": str(answer)})
    if not rows:
        raise InputError("There is nothing to measure.", where=path, found="no line", expected="a question a line")
    return rows[:num_questions]


def load_data(arguments: argparse.Namespace) -> tuple[list[dict], str]:
    """The rows that `add_data_arguments` describes, and the name of the metric that judges their answers."""
    validate_arguments(arguments)
    metric = arguments.metric or getattr(TASKS.get(arguments.data), "METRIC", "exact")
    require_allowed(metric, arguments.allow_code, f"--metric {metric}")
    JUDGES[metric].require()
    return load_rows(arguments.data, arguments.num_questions, arguments.seed, arguments.levels, metric), metric


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
        "tools": arguments.tools or mas.config.tools,
        "metric": metric,
    }


def questions_of(rows: list[dict], group_by: str | None) -> list[dict[str, Any]]:
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
    config.tools = {role: tags for role, tags in (config.tools or {}).items() if role not in roles} or None
    links = {link.name: mas.outer_links[link.name] for link in config.topology.links}
    remaining = RecursiveMASModel(config, {role: mas.agents[role] for role in config.topology.roles}, links)
    remaining.generation_config = copy.deepcopy(mas.generation_config)
    return remaining


def measure(
    mas: RecursiveMASModel,
    rows: list[dict],
    mode: str,
    num_rounds: int | str,
    group_by: str | None = None,
    metric: str = "exact",
    on_progress: Callable[[int], None] | None = None,
    row_file: RowFile | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Accuracy and cost of one setting; `metric` says when an answer is right (see metrics.py).

    `arguments` are those of `solve`. What the `row_file` holds is not asked again; every other answer is put there.

    Returns:
        "accuracy" with "interval"; "by_group" value -> [right, total]; per question on average "prompt_tokens",
        "latent_positions", "slot_positions", "new_tokens", "seconds", the "rounds_used" and the "turns" that agents
        took; for each row, its "answers" and whether they are "right", and with "auto" its "row_rounds"; of metrics
        that the public release judges by rules of its own, "release_accuracy" and the verdicts "release" by
        these.
    """
    setting = {"mode": mode, "num_rounds": num_rounds, "control": arguments.get("control")}
    answered = row_file.kept(setting) if row_file else {}
    if arguments.get("control") == "other_question" and len(answered) < len(rows):
        answered = {}  # which questions are neighbours matters
    remaining = [index for index in range(len(rows)) if index not in answered]
    judge = JUDGES[metric]
    lap = time.perf_counter()

    def keep(indices: list[int], solutions: list[Solution]) -> None:
        nonlocal lap
        seconds = (time.perf_counter() - lap) / len(indices)
        kept: list[dict[str, Any]] = []
        verdicts = judge.judge_solutions(solutions, [rows[remaining[index]] for index in indices])
        for index, solution, verdict in sorted(
            zip(indices, solutions, verdicts, strict=True), key=lambda each: each[0]
        ):
            index = remaining[index]
            row, usage = rows[index], solution.usage or {}
            found = {"answer": solution.answer, "right": verdict["strict"], "seconds": seconds}
            found |= {"release": verdict["release"]} if judge.has_release else {}
            answered[index] = found | {name: usage[name] for name in USAGE}
            answered[index] |= {name: usage.get(name) for name in ("rounds", "turns")}
            kept.append({**setting, "row": index, "question": row["question"], **answered[index]})
        if row_file:
            row_file.write(kept)
        lap = time.perf_counter()  # judging is no time of the system's

    if answered and on_progress:
        on_progress(len(answered))
    if remaining:
        questions = [inputs_of(rows[index], mas.input_fields) for index in remaining]
        settings = {**arguments, "mode": mode, "num_rounds": num_rounds, "on_progress": on_progress}
        mas.solve(questions, on_solutions=keep, **settings)
    found = [answered[index] for index in range(len(rows))]
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row, each in zip(rows, found, strict=True):
        if group_by in row:
            groups[str(row[group_by])][0] += each["right"]
            groups[str(row[group_by])][1] += 1
    right = [each["right"] for each in found]
    release = [each["release"] for each in found] if judge.has_release else []
    return {
        "mode": mode,
        "num_rounds": num_rounds,
        "accuracy": sum(right) / len(rows),
        "interval": wilson_interval(sum(right), len(rows)),
        "by_group": dict(groups),
        **{key: sum(each[key] for each in found) / len(rows) for key in ("seconds", *USAGE)},
        **_depth(num_rounds, found),
        "answers": [each["answer"] for each in found],
        "right": right,
        **({"release_accuracy": sum(release) / len(rows), "release": release} if judge.has_release else {}),
    }


def _depth(num_rounds: int | str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """How many rounds and turns the rows took; nothing where an earlier version kept rows without."""
    if any(each.get("turns") is None for each in found):
        return {}
    means = {name: sum(each[key] for each in found) / len(found) for name, key in DEPTH.items()}
    return means | ({"row_rounds": [each["rounds"] for each in found]} if num_rounds == AUTO else {})


def evaluate(
    mas: RecursiveMASModel, rows: list[dict], modes: list[str], rounds: Sequence[int | str], **arguments: Any
) -> list[dict[str, Any]]:
    """`measure` for every mode and number of rounds; "alone" has no rounds and is measured once."""
    settings = [(mode, r) for mode in modes for r in (rounds if mode != "alone" else [1])]
    figures = []
    with progress(len(settings) * len(rows), "Evaluating") as bar:
        for mode, num_rounds in settings:
            figures.append(measure(mas, rows, mode, num_rounds, on_progress=bar.update, **arguments))
    return figures
