"""transformers' Trainer around the two objectives: checkpoints of links only, evaluation of the whole system."""

import json
import math
import signal
import sys
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerState

from ..errors_recursivemas import NonFiniteError
from ..evaluation.commands import TOOLS
from ..evaluation.interrupts import Interrupted
from ..evaluation.metrics import METRICS
from .arguments import LinkTrainingArguments
from .checkpoints import SEAL_FILE, remove_old, seal
from .data import Example
from .objectives import LinkObjective


def collate(examples: list[Example]) -> dict[str, list[Example]]:
    """A batch stays a list of examples, since the length of a prompt is known only when its latents are."""
    return {"examples": examples}


def gradient_norms(objective: LinkObjective) -> dict[str, float]:
    """Link -> L2 norm of the gradient of all its weights (0 where there is none)."""
    norms = {}
    for name, link in [*objective.inner_links.items(), *objective.outer_links.items()]:
        gradients = [parameter.grad.norm() for parameter in link.parameters() if parameter.grad is not None]
        norms[name] = float(torch.stack(gradients).norm()) if gradients else 0.0
    return norms


class WatchGradients(TrainerCallback):
    """Keeps the gradient norm of every link for the log; stops at one that is not finite, and when interrupted."""

    def __init__(self, trainer: "LinkTrainer") -> None:
        self.trainer = trainer
        self.norms: dict[str, float] = {}

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.objective.step = state.global_step

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.norms = gradient_norms(self.trainer.objective)
        broken = {name: norm for name, norm in self.norms.items() if not math.isfinite(norm)}
        if broken:
            self.trainer.stop("A gradient is not finite.", broken)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        total, steps = self.trainer.losses
        self.trainer.losses = (total, steps + 1)
        if self.trainer.is_interrupted():
            control.should_save = control.should_training_stop = True


class LinkTrainer(Trainer):
    """Trains the links that an objective holds.

    Args:
        objective: the loss and the links.
        args: the settings of the run.
        kwargs: see `Trainer`; the data sets are lists of examples.
    """

    args: LinkTrainingArguments
    objective: LinkObjective

    def __init__(self, objective: LinkObjective, args: LinkTrainingArguments, **kwargs: Any) -> None:
        super().__init__(model=objective, args=args, data_collator=collate, **kwargs)
        self.objective = objective
        self._lines: list[int] = []
        self._best: tuple[tuple[float, float], int] | None = None  # score and step of `best.safetensors`
        self.losses = (0.0, 0)  # sum of the steps' losses and their number, of the run that goes on too
        self.interrupted: int | None = None  # the signal that asks for the end
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

    def interrupt(self, signum: int) -> None:
        """What a signal does: the step under way is finished and saved; a second one ends everything."""
        if self.interrupted is not None:
            raise Interrupted(signum=signum)
        self.interrupted = signum
        print("interrupted: finishing this step and saving; once more stops at once", file=sys.stderr, flush=True)

    def is_interrupted(self) -> bool:
        """Whether a signal came to any of the processes, which all stop after the same step."""
        if self.args.world_size > 1:
            heard = torch.tensor(float(self.interrupted is not None), device=self.args.device)
            if self.interrupted is None and bool(self.accelerator.reduce(heard, "sum") > 0):
                self.interrupted = signal.SIGTERM
        return self.interrupted is not None

    def mean_loss(self) -> float:
        """The mean loss of all steps, over all processes; of a run that an earlier version began, of those since."""
        total, steps = self.losses
        return self._mean({"loss": total / max(1, steps)}, 1)["loss"]

    def go_on(self, checkpoint: Path) -> None:
        """Puts links and state of a checkpoint in place, for a run that has no step left to take."""
        self.objective.load_state_dict(load_file(checkpoint / "model.safetensors"))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses = (self.losses[0] + float(loss), self.losses[1])
        return loss

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Of a run whose `max_steps` grew, the learning rate is the longer schedule's from the first step on."""
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduler = self.lr_scheduler
        if checkpoint and isinstance(scheduler, LambdaLR):
            bases, factors = scheduler.base_lrs, [rate(scheduler.last_epoch) for rate in scheduler.lr_lambdas]
            scheduler._last_lr = [base * factor for base, factor in zip(bases, factors, strict=True)]
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = rate

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint that counts once it is whole; only then older ones go."""
        folder = Path(str(self.args.output_dir))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        (checkpoint / SEAL_FILE).unlink(missing_ok=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # each has written its random states
        total, steps = self.losses
        losses = (self._mean({"loss": total}, 1)["loss"], steps)
        if self.is_world_process_zero():
            seal(checkpoint, losses)
            remove_old(folder, limit)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._lines = [example.row.line for example in inputs["examples"]]
        outputs = model(**inputs)
        if not bool(torch.isfinite(outputs["loss"])):
            self.stop("The loss is not finite.", float(outputs["loss"].detach()))
        outputs["loss"] = outputs["loss"].to(self.args.device)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds the parts of the loss (means over all processes) and the links' gradient norms to a line."""
        if "loss" in logs:
            logs |= self._mean(self.objective.take_records(training=True), 1)
            most, total = self.args.max_grad_norm, logs.get("grad_norm") or 0.0
            scale = max(1.0, total / most) if most else 1.0  # the total is that before clipping, theirs that after it
            logs |= {f"gradient_norm_{name}": norm * scale for name, norm in self._watch.norms.items()}
        super().log(logs, *args, **kwargs)

    def _mean(self, values: dict[str, float], weight: float) -> dict[str, float]:
        """Means over the processes, each with its weight."""
        sums = torch.tensor([*(value * weight for value in values.values()), weight], dtype=torch.float64)
        sums = self.accelerator.reduce(sums.to(self.args.device), "sum")
        return dict(zip(values, (sums[:-1] / sums[-1].clamp_min(1e-30)).tolist(), strict=True))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss and its parts on the evaluation rows, and the share of questions that the system answers.

        The processes share the rows; what is left of a batch counts too.
        """
        data = cast(list[Example], eval_dataset or self.eval_dataset)
        own = range(self.args.process_index, len(data), self.args.world_size)
        step = self.args.per_device_eval_batch_size
        bars = {"disable": not self.is_world_process_zero(), "leave": False, "mininterval": 1}
        objective = self.objective.eval()
        objective.take_records(training=False)
        sums: dict[str, float] = {}
        with torch.no_grad():
            for start in tqdm(range(0, len(own), step), desc="evaluation: loss", unit="batch", **bars):
                examples = [data[index] for index in own[start : start + step]]
                values = {"loss": float(objective(examples)["loss"]), **objective.take_records(training=False)}
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + value * len(examples) / len(own)
        metrics = self._mean(sums, len(own))
        rows = {example.row.line: example.row for example in data}.values()
        answered = [(row.inputs, row.answer) for row in rows if row.answer is not None]
        if answered:
            mine = answered[self.args.process_index :: self.args.world_size]
            args, right = self.args, 0
            for start in tqdm(range(0, len(mine), step), desc="evaluation: answers", unit="batch", **bars):
                batch = mine[start : start + step]
                solutions = objective.mas.solve(
                    [inputs for inputs, _ in batch],
                    num_rounds=args.num_rounds,
                    latent_steps=args.latent_steps,
                    task=args.task,
                    batch_size=step,
                    tools=TOOLS[args.tools] if args.tools else {},
                )
                is_right = METRICS[args.metric]
                right += sum(is_right(s, answer) for s, (_, answer) in zip(solutions, batch, strict=True))
            metrics |= self._mean({"accuracy": right / max(1, len(mine))}, len(mine))
        self._remember((metrics.get("accuracy", 0.0), -metrics["loss"]))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def _best_file(self) -> Path:
        return Path(str(self.args.output_dir), "best.safetensors")

    def _remember(self, score: tuple[float, float]) -> None:
        """Keeps the links of the best evaluation so far, the one before the first step among them.

        `score` is the accuracy, where it is known, and then minus the loss.
        """
        if self._best is None and self.state.global_step and self._best_file.is_file():  # of the run that goes on
            with safe_open(self._best_file, "pt") as file:
                known = json.loads(file.metadata()["best"])
                self._best = tuple(known["score"]), known["step"]
        if self._best is None or score > self._best[0]:
            self._best = score, self.state.global_step
            if self.is_world_process_zero():
                self._best_file.parent.mkdir(parents=True, exist_ok=True)
                weights = {name: value.contiguous().cpu() for name, value in self.objective.state_dict().items()}
                what = json.dumps({"score": score, "step": self.state.global_step})
                beside = self._best_file.with_name(".best.safetensors")
                save_file(weights, beside, {"best": what})
                beside.replace(self._best_file)

    def keep_best(self) -> dict[str, float]:
        """After the last evaluation: puts back the links of an earlier one that was better; says which."""
        assert self._best is not None
        (accuracy, loss), step = self._best
        if step == self.state.global_step:
            return {}
        self.accelerator.wait_for_everyone()
        self.objective.load_state_dict(load_file(self._best_file))
        return {"kept_step": step, "kept_accuracy": accuracy, "kept_loss": -loss}
