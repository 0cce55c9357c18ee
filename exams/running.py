"""Answering a benchmark's questions: in fixed batches, each with a seed of its own.

What a batch gives depends on its rows, the seed and the number of the sample only, so that a run that was stopped goes
on to the same answers, and several processes that share the batches (`accelerate launch`) give what one does.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..evaluation.commands import inputs_of
from ..evaluation.controls import HAND_OVERS
from ..evaluation.rows import RowFile, kept_rows
from ..modeling_recursivemas import RecursiveMASModel
from ..solutions_recursivemas import USAGE
from .scoring import verdicts
from .table import Benchmark, Row

ALONE_VOTED = "alone_voted"  # the last agent alone, so many times that it costs as much; the answer that most gave
MODES = {**HAND_OVERS, ALONE_VOTED: HAND_OVERS["alone"]}


class Pass(NamedTuple):
    """All questions once: what stands for the latents (a name of `MODES`), a seed, the number of the sample."""

    control: str
    seed: int
    sample: int


class Key(NamedTuple):
    """One answer: of a pass to a question, by its number in the benchmark."""

    run: Pass
    row: int


@dataclass
class Share:
    """Which of several processes this is; together they give what one would.

    Attributes:
        rank: number of this process, of `world`.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def of_launcher(cls) -> "Share":
        """As `accelerate launch` or `torchrun` says; the processes can then exchange rows."""
        share = cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        if share.world > 1 and not torch.distributed.is_initialized():
            # One may have much longer batches than another, and runs code tests.
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
        return share

    @property
    def device(self) -> str | None:
        """The device of this process, where there is more than one."""
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if self.world > 1 and torch.cuda.is_available() else None

    def path(self, output: Path) -> Path:
        """Where this process keeps its rows while it runs: beside the output, see `keeping_rows`."""
        return output.with_name(f"{output.stem}.rank{self.rank}{output.suffix}") if self.rank else output

    def exchanged(self, rows: dict[Key, dict]) -> dict[Key, dict]:
        """The rows of all processes."""
        if self.world == 1:
            return rows
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, rows)
        return {key: row for each in gathered for key, row in each.items()}


def rows_of_others(output: Path, own: Path, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whole rows that other processes of a stopped run have kept; there may have been more or fewer than now.

    Raises:
        InputError: they are those of another run, or cannot be read.
    """
    paths = [output.with_suffix(".rows.jsonl"), *files_of_others(output)]
    return [row for path in paths if path != own and path.is_file() for row in kept_rows(path, asked)]


def files_of_others(output: Path) -> list[Path]:
    """The files of rows of all processes but the first."""
    return sorted(output.parent.glob(f"{output.stem}.rank*.rows.jsonl"))


def batches_of(rows: Sequence[Row], batch_size: int, in_order: bool) -> list[list[int]]:
    """Indices of rows in batches: by length, so that little is padding; `in_order` where neighbours matter."""
    order = sorted(range(len(rows)), key=lambda index: 0 if in_order else len(rows[index]["question"]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if in_order and len(batches) > 1 and len(batches[-1]) == 1:  # the last has a neighbour too
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def seed_of(run: Pass, batch: int) -> int:
    """The seed of a batch: equal for all hand-overs, so that these are compared under equal conditions."""
    digest = hashlib.sha256(f"{run.seed} {run.sample} {batch}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


@dataclass
class Runner:
    """Answers passes over a benchmark's rows and judges them, a batch at a time.

    Attributes:
        mas: the system.
        benchmark, rows: what is asked.
        batches: indices of rows, see `batches_of`.
        options: arguments of `solve`, the same for all passes.
        sampling: generation settings for votes where `options` do not sample.
        row_file: where answers are kept as they come.
        share: which batches are this process's.
        done: answers that are there.
        on_progress: called with numbers of questions.
    """

    mas: RecursiveMASModel
    benchmark: Benchmark
    rows: Sequence[Row]
    batches: list[list[int]]
    options: dict[str, Any]
    sampling: dict[str, Any]
    row_file: RowFile | None = None
    share: Share = field(default_factory=Share)
    done: dict[Key, dict[str, Any]] = field(default_factory=dict)
    on_progress: Callable[[int], None] = lambda count: None

    def keep(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes answers of a stopped run."""
        for row in rows:
            self.done[Key(Pass(row["control"], row["seed"], row["sample"]), row["row"])] = dict(row)

    def run(self, passes: Sequence[Pass]) -> None:
        """Answers what is not answered yet; afterwards every process has all answers."""
        for run in passes:
            for number, batch in enumerate(self.batches):
                if number % self.share.world == self.share.rank:
                    missing = [index for index in batch if Key(run, index) not in self.done]
                    if missing:
                        self._answer(run, number, batch, missing)
                    self.on_progress(len(batch))
        self.done = self.share.exchanged(self.done)

    def of(self, run: Pass) -> list[dict[str, Any]]:
        """The answers of a pass, by the rows' order."""
        return [self.done[Key(run, index)] for index in range(len(self.rows))]

    def _answer(self, run: Pass, number: int, batch: list[int], missing: list[int]) -> None:
        started = time.perf_counter()
        torch.manual_seed(seed_of(run, number))
        settings = {**self.options, **MODES[run.control], "batch_size": max(2, len(batch)), "keep_order": True}
        if run.control == ALONE_VOTED:
            settings |= self.sampling
        questions = [inputs_of(self.rows[index], self.mas.input_fields) for index in batch]
        solutions = self.mas.solve(questions, **settings)
        seconds = (time.perf_counter() - started) / len(batch)
        rows, texts = [self.rows[index] for index in batch], [solution.text for solution in solutions]
        kept = []
        for index, solution, verdict in zip(batch, solutions, verdicts(self.benchmark, rows, texts), strict=True):
            usage = solution.usage or {}
            row = {"row": index, "question": self.rows[index]["question"], **run._asdict()}
            row |= {"mode": MODES[run.control]["mode"], "num_rounds": self.options["num_rounds"]}
            row |= {"prediction": solution.text, **verdict, "seconds": seconds}
            row |= {name: usage[name] for name in USAGE}
            if index in missing:
                self.done[Key(run, index)] = row
                kept.append(row)
        if self.row_file:
            self.row_file.write(kept)
