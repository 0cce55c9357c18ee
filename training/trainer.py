"""transformers' Trainer around the two loops: checkpoints of links only, evaluation of the whole system."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from ..errors_recursivemas import RecursiveMASError
from .data import Encoder, Row
from .loops import Example, LinkLoop


class NonFiniteError(RecursiveMASError, ArithmeticError):
    """A loss or a gradient that is NaN or infinite; the message names the batch."""


class Examples(Dataset):
    """Rows, and what of each makes an example.

    Args:
        rows: the rows.
        encoder: turns them into token ids.
        groups: the (round, role) pairs of one example; a row makes as many examples as there are groups.
        text: fill the slots with the senders' target texts (inner loop), or leave them open for latents (outer loop).
    """

    def __init__(self, rows: list[Row], encoder: Encoder, groups: list[list[tuple[int, str]]], text: bool) -> None:
        self.rows, self.groups = rows, groups
        self._encode = encoder.text_part if text else encoder.part

    def __len__(self) -> int:
        return len(self.rows) * len(self.groups)

    @property
    def lengths(self) -> list[int]:
        """Of each example, in characters of its row."""
        rows = [len(row.question) + sum(map(len, itertools.chain(*row.targets.values()))) for row in self.rows]
        return [length for length in rows for _ in self.groups]

    def __getitem__(self, index: int) -> Example:
        row, group = self.rows[index // len(self.groups)], self.groups[index % len(self.groups)]
        return Example(row.line, {(r, role): self._encode(row, role, r) for r, role in group})


class LikeLengths(Sampler):
    """A new order in each epoch in which the rows of a batch are of like length, and batches in random order.

    Rows are shuffled, cut into pools, sorted by length inside a pool and cut into batches; the batches are shuffled.
    The order depends on nothing but the arguments and the epoch, so that a resumed run sees the same batches.

    Args:
        lengths: of each row, in any unit.
        batch_size: rows of a global batch (of all processes).
        seed: of the order.
    """

    POOL = 16  # batches

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        whole = len(self.lengths) // self.batch_size * self.batch_size
        order = torch.randperm(len(self.lengths), generator=generator)[:whole].tolist()
        batches = []
        for start in range(0, whole, self.batch_size * self.POOL):
            pool = order[start : start + self.batch_size * self.POOL]
            pool.sort(key=self.lengths.__getitem__)
            batches += [pool[at : at + self.batch_size] for at in range(0, len(pool), self.batch_size)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[index]


def collate(examples: list[Example]) -> dict[str, list[Example]]:
    """A batch stays a list of examples, since the length of a prompt is known only when its latents are."""
    return {"examples": examples}


def gradient_norms(loop: LinkLoop) -> dict[str, float]:
    """Link -> L2 norm of the gradient of all its weights (0 where there is none)."""
    norms = {}
    for links in (loop.inner_links, loop.outer_links):
        for name, link in links.items():
            gradients = [parameter.grad.norm() for parameter in link.parameters() if parameter.grad is not None]
            norms[name] = float(torch.stack(gradients).norm()) if gradients else 0.0
    return norms


class WatchGradients(TrainerCallback):
    """Keeps the gradient norm of every link for the log, and stops at one that is not finite."""

    def __init__(self, trainer: "LinkTrainer") -> None:
        self.trainer = trainer
        self.norms: dict[str, float] = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.norms = gradient_norms(self.trainer.loop)
        broken = {name: norm for name, norm in self.norms.items() if not math.isfinite(norm)}
        if broken:
            self.trainer.stop("A gradient is not finite.", broken)


class LinkTrainer(Trainer):
    """Trains the links that a loop holds.

    Args:
        loop: the loss and the links.
        solve_arguments: for `mas.solve` in the evaluation.
        group_by_length: whether the rows of a batch are of like length, see `LikeLengths`.
        kwargs: see `Trainer`; the data sets are `Examples`.
    """

    def __init__(
        self, loop: LinkLoop, solve_arguments: dict[str, Any], group_by_length: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(model=loop, data_collator=collate, **kwargs)
        self.loop, self.solve_arguments, self.group_by_length = loop, solve_arguments, group_by_length
        self._lines: list[int] = []
        self._watch = WatchGradients(self)
        self.add_callback(self._watch)

    def stop(self, what: str, found: object) -> None:
        """Ends the run and names the batch."""
        raise NonFiniteError(
            what,
            where=f"step {self.state.global_step + 1}, rows of lines {', '.join(map(str, self._lines))}",
            found=found,
            hint="lower the learning rate, look at these rows, or go on from the last checkpoint",
        )

    def _get_train_sampler(self, train_dataset: Examples | None = None) -> Sampler:
        data = train_dataset or self.train_dataset
        if not self.group_by_length:
            return super()._get_train_sampler(data)
        return LikeLengths(data.lengths, self.args.train_batch_size * self.args.world_size, self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._lines = [example.line for example in inputs["examples"]]
        outputs = model(**inputs)
        if not bool(torch.isfinite(outputs["loss"])):
            self.stop("The loss is not finite.", float(outputs["loss"].detach()))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds the parts of the loss (means over all processes) and the links' gradient norms to a line."""
        if "loss" in logs:
            logs |= self._mean(self.loop.take_records(training=True), 1)
            logs |= {f"gradient_norm_{name}": norm for name, norm in self._watch.norms.items()}
        super().log(logs, *args, **kwargs)

    def _mean(self, values: dict[str, float], weight: float) -> dict[str, float]:
        """Means over the processes, each with its weight."""
        sums = torch.tensor([*(value * weight for value in values.values()), weight], dtype=torch.float64)
        sums = self.accelerator.reduce(sums.to(self.args.device), "sum")
        return dict(zip(values, (sums[:-1] / sums[-1].clamp_min(1e-30)).tolist(), strict=True))

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The loss and its parts on the evaluation rows, and the share of questions that the system answers.

        The processes share the rows; what is left of a batch counts too.
        """
        data = eval_dataset or self.eval_dataset
        own = range(self.args.process_index, len(data), self.args.world_size)
        step = self.args.per_device_eval_batch_size
        bars = {"disable": not self.is_world_process_zero(), "leave": False, "mininterval": 1}
        loop = self.loop.eval()
        loop.take_records(training=False)
        sums: dict[str, float] = {}
        with torch.no_grad():
            for start in tqdm(range(0, len(own), step), desc="evaluation: loss", unit="batch", **bars):
                examples = [data[index] for index in own[start : start + step]]
                values = {"loss": float(loop(examples)["loss"]), **loop.take_records(training=False)}
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value * len(examples) / len(own)
        metrics = self._mean(sums, len(own))
        answered = [row for row in data.rows if row.answer is not None]
        if answered:
            rows = answered[self.args.process_index :: self.args.world_size]
            right = 0
            for start in tqdm(range(0, len(rows), step), desc="evaluation: answers", unit="batch", **bars):
                batch = rows[start : start + step]
                solutions = self.loop.mas.solve([row.question for row in batch], **self.solve_arguments)
                right += sum(s.answer == row.answer.strip() for s, row in zip(solutions, batch, strict=True))
            metrics |= self._mean({"accuracy": right / max(1, len(rows))}, len(rows))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
