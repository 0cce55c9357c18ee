"""A system's own answers as training rows: what its agents say when they hand over text instead of latents."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch

from ..errors_recursivemas import ConfigError, InputError
from ..evaluation.commands import progress, validate_file
from ..modeling_recursivemas import RecursiveMASModel
from ..system_loader import load_mas_system
from ..tasks import TASKS
from .arguments import LinkTrainingArguments
from .data import Encoder, Row, read_rows, refuse_bad_rows

TASK_ROWS = 1600  # of a task by name, where `max_rows` does not say how many


def own_answers(mas: RecursiveMASModel, rows: list[Row], num_rounds: int, batch_size: int) -> Iterator[dict | None]:
    """Answers questions over text, greedily, and gives what every role said in every round.

    Args:
        mas: the system.
        rows: questions, and answers where they are known.
        num_rounds: rounds.
        batch_size: questions that run side by side.

    Yields:
        For each row a training row, or `None` where some role said nothing.
    """
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        solutions = mas.solve(
            [row.inputs for row in batch],
            mode="text",
            num_rounds=num_rounds,
            batch_size=batch_size,
            do_sample=False,
            tools={},
        )
        for row, solution in zip(batch, solutions, strict=True):
            said = {**(solution.messages or {}), (num_rounds, mas.topology.decoding_role): solution.text}
            targets = {role: [said[r, role] for r in range(1, num_rounds + 1)] for role in mas.topology.roles}
            if any(not text.strip() for texts in targets.values() for text in texts):
                yield None
            else:
                yield {**row.inputs, "targets": targets} | ({} if row.answer is None else {"answer": row.answer})


def write_own_answers(arguments: LinkTrainingArguments, replace: bool = False) -> dict[str, int]:
    """`recursivemas train data`: questions in, rows with the system's own answers out, each written as it is there.

    Args:
        arguments: `system`, `data` (rows with questions, or a task by name), `output` (the file), and where wanted
            `num_rounds`, `max_rows`, `task`, `columns`, `seed`, `dtype`, `per_device_eval_batch_size`.
        replace: a file that is there may be overwritten.

    Returns:
        "rows" written, and "left_out" because an agent said nothing.

    Raises:
        ConfigError, InputError, CheckpointError: before any compute.
    """
    for name in ("output", "data"):
        if not getattr(arguments, name):
            raise ConfigError("A setting is missing.", where=name, hint=f"give it with --{name}")
    output = Path(arguments.output)
    validate_file(output, replace)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = None if arguments.use_cpu else arguments.device
    mas = load_mas_system(arguments.system, dtype=arguments.dtype, task=arguments.task, device=device)
    num_rounds = arguments.num_rounds or mas.config.most_rounds
    fields = Encoder(mas, arguments.task).input_fields(mas.topology.schedule(num_rounds))
    source = arguments.data
    if source in TASKS:
        task = TASKS[source]
        levels = getattr(task, "TRAINED_LEVELS", task.LEVELS)
        source = task.generate(arguments.max_rows or TASK_ROWS, levels, seed=arguments.seed)
    columns = cast(dict[str, str], arguments.columns)
    rows, report = read_rows(source, (), num_rounds, columns, arguments.max_rows, fields, mas.topology.roles)
    refuse_bad_rows(report, arguments.allowed_bad_rows)
    count = {"rows": 0, "left_out": 0}
    unfinished = output.with_name(output.name + ".partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    with unfinished.open("w", encoding="utf-8") as file, progress(len(rows), "Asking the system") as bar:
        for row in own_answers(mas, rows, num_rounds, arguments.per_device_eval_batch_size):
            bar.update(1)
            count["left_out" if row is None else "rows"] += 1
            if row is not None:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
    if not count["rows"]:
        unfinished.unlink()
        raise InputError(
            "The agents said nothing, to any question.",
            where=arguments.system,
            found=f"{count['left_out']} questions without a text of every role",
            hint="look at `recursivemas solve --mode text`, and at the prompts",
        )
    os.replace(unfinished, output)
    return count
