"""transformers' Trainer around the two loops: checkpoints of links only, evaluation of the whole system."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..system_loader import (
    ConfigError,
    InputError,
    OuterLink,
    RecursiveMASError,
    RecursiveMASModel,
    load_mas_system,
)
from .config import TrainingConfig
from .data import Encoder, Report, Row, check_lengths, read_rows, refuse_bad_rows
from .loops import Example, InnerLoop, LinkLoop, OuterLoop
from .start import fit_outer_link, set_inner_link, set_outer_link, start_inner_link

LOOPS = ("inner", "outer")


class NonFiniteError(RecursiveMASError, ArithmeticError):
    """A loss or a gradient that is NaN or infinite; the message names the batch."""


class Examples(Dataset):
    """Rows and what of them makes one example: every part of the schedule (outer), or one round (inner)."""

    def __init__(self, rows: list[Row], encoder: Encoder, groups: list[list[tuple[int, str]]], text: bool) -> None:
        self.rows, self.groups = rows, groups
        self._encode = encoder.text_part if text else encoder.part

    def __len__(self) -> int:
        return len(self.rows) * len(self.groups)

    def __getitem__(self, index: int) -> Example:
        row, group = self.rows[index // len(self.groups)], self.groups[index % len(self.groups)]
        return Example(row.line, {(r, role): self._encode(row, role, r) for r, role in group})


def collate(examples: list[Example]) -> dict[str, list[Example]]:
    """A batch stays a list of examples; lengths are known only when the latents are."""
    return {"examples": examples}


class WatchGradients(TrainerCallback):
    """Logs the gradient norm of every link, and stops at gradients that are not finite."""

    def __init__(self, trainer: "LinkTrainer") -> None:
        self.trainer = trainer
        self.norms: dict[str, float] = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.norms = gradient_norms(self.trainer.loop)
        if not all(map(math.isfinite, self.norms.values())):
            self.trainer.stop(
                "A gradient is not finite.", {k: v for k, v in self.norms.items() if not math.isfinite(v)}
            )


def gradient_norms(loop: LinkLoop) -> dict[str, float]:
    """Link -> L2 norm of the gradient of all its weights."""
    norms = {}
    for links in (loop.inner_links, loop.outer_links):
        for name, link in links.items():
            gradients = [p.grad.norm() for p in link.parameters() if p.grad is not None]
            norms[name] = float(torch.stack(gradients).norm()) if gradients else 0.0
    return norms


class LinkTrainer(Trainer):
    """Trains the links that a loop holds.

    Args:
        loop: the loss and the links.
        eval_questions: questions with answers, for the accuracy of the whole system.
        solve_arguments: for `mas.solve` in the evaluation.
        kwargs: see `Trainer`.
    """

    def __init__(self, loop: LinkLoop, eval_questions: list[Row], solve_arguments: dict, **kwargs: Any) -> None:
        super().__init__(model=loop, data_collator=collate, **kwargs)
        self.loop, self.eval_questions, self.solve_arguments = loop, eval_questions, solve_arguments
        self._lines: list[int] = []
        self._watch = WatchGradients(self)
        self.add_callback(self._watch)

    def stop(self, what: str, found: object) -> None:
        """Ends the run and names the batch."""
        raise NonFiniteError(
            what,
            where=f"step {self.state.global_step + 1}, rows of lines {', '.join(map(str, self._lines))}",
            found=found,
            hint="lower the learning rate, look at these rows, or resume from the last checkpoint",
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._lines = [example.line for example in inputs["examples"]]
        outputs = model(**inputs)
        if not bool(torch.isfinite(outputs["loss"])):
            self.stop("The loss is not finite.", float(outputs["loss"]))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds the parts of the loss and the gradient norms to each line."""
        if "loss" in logs:
            logs |= self.loop.take_records(training=True)
            logs |= {f"gradient_norm_{name}": norm for name, norm in self._watch.norms.items()}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        """The loss on the evaluation rows, and the share of questions that the system answers."""
        self.loop.take_records(training=False)
        metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        records = self.loop.take_records(training=False)
        parts = {f"{metric_key_prefix}_{name}": value for name, value in records.items()}
        if self.eval_questions:
            own = self.eval_questions[self.args.process_index :: self.args.world_size]
            solutions = self.loop.mas.solve([row.question for row in own], **self.solve_arguments) if own else []
            hits = sum(s.answer == row.answer.strip() for s, row in zip(solutions, own, strict=True))
            counts = self.accelerator.reduce(torch.tensor([hits, len(own)], device=self.args.device), "sum").tolist()
            parts[f"{metric_key_prefix}_accuracy"] = counts[0] / counts[1]
        super().log(parts)
        return metrics | parts

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            return self.compute_loss(model, inputs).detach(), None, None


def build_loop(kind: str, config: TrainingConfig, mas: RecursiveMASModel) -> LinkLoop:
    """The loop that a configuration describes, with new links where it asks for them.

    Raises:
        InputError: an unknown role or link.
    """
    num_rounds = config.num_rounds or mas.config.num_rounds
    if kind == "inner":
        roles = _known("roles", config.roles, list(mas.agents))
        if config.inner_kind is not None:
            for role in roles:
                set_inner_link(mas, role, start_inner_link(mas.agents[role], config.inner_kind))
        frozen = [role for role in roles if not list(mas.agents[role].inner_link.parameters())]
        if frozen:
            raise InputError(
                "An inner link has nothing to train.",
                where=", ".join(frozen),
                found=mas.agents[frozen[0]].inner_link.kind,
                hint="start trainable ones, e.g. `inner_kind=ln_res_adapter`",
            )
        return InnerLoop(mas, roles, config.squared_error_weight)
    names = _known("links", config.links, list(mas.outer_links))
    if config.outer_kind is not None:
        for link in mas.topology.links:
            if link.name in names:
                source, target = mas.agents[link.source], mas.agents[link.target]
                if config.outer_start == "closed_form":
                    new = fit_outer_link(source, target, config.outer_kind)
                else:
                    new = OuterLink(config.outer_kind, source.hidden_size, target.hidden_size)
                set_outer_link(mas, link.name, new)
    trainable = [role for role in mas.agents if list(mas.agents[role].inner_link.parameters())]
    return OuterLoop(
        mas,
        names,
        trainable if config.train_inner_links else (),
        num_rounds=num_rounds,
        latent_steps=config.latent_steps or mas.config.latent_steps,
        supervise=config.supervise,
        earlier_rounds_weight=config.earlier_rounds_weight,
        latents=config.latents,
        halting=mas.config.latent_halting if config.latent_halting is None else config.latent_halting,
        activation_checkpointing=config.activation_checkpointing,
    )


def _known(setting: str, chosen: list[str] | None, names: list[str]) -> list[str]:
    unknown = sorted(set(chosen or ()) - set(names))
    if unknown:
        raise InputError(f"Unknown {setting}.", where=setting, found=", ".join(unknown), expected=", ".join(names))
    return names if chosen is None else chosen


def read_examples(
    kind: str, config: TrainingConfig, mas: RecursiveMASModel, source: str, limit: int | None
) -> tuple[Examples, Report]:
    """The rows of a source, as examples for a loop; bad rows are reported, and refused beyond those allowed."""
    topology = mas.topology
    num_rounds = config.num_rounds or mas.config.num_rounds
    encoder = Encoder(mas, config.task or mas.config.task)
    if kind == "inner":
        chosen = _known("roles", config.roles, list(mas.agents))
        groups = [[(r, role) for role in chosen] for r in range(1, num_rounds + 1)]
        speakers = [*chosen, *(link.source for link in topology.links if link.target in chosen)]
    else:
        groups = [topology.schedule(num_rounds)]
        speakers = topology.roles
    rows, report = read_rows(source, dict.fromkeys(speakers), num_rounds, config.columns, limit)
    parts = [part for group in groups for part in group]
    rows = check_lengths(rows, encoder, parts, config.max_length, report)
    refuse_bad_rows(report, rows, config.allowed_bad_rows)
    return Examples(rows, encoder, groups, text=kind == "inner"), report


def training_arguments(config: TrainingConfig, folder: Path) -> TrainingArguments:
    """transformers' arguments for a configuration.

    Raises:
        ConfigError: an entry of `trainer` that transformers does not know.
    """
    arguments = {
        "output_dir": str(folder),
        "logging_dir": None,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_steps,
        "adam_beta1": config.betas[0],
        "adam_beta2": config.betas[1],
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "eval_strategy": "steps" if config.eval_steps and config.eval_data else "no",
        "eval_steps": config.eval_steps or None,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or config.max_steps,
        "save_total_limit": config.keep_checkpoints,
        "dataloader_drop_last": True,
        "remove_unused_columns": False,
        "report_to": "tensorboard",
        "ddp_find_unused_parameters": False,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    try:
        return TrainingArguments(**arguments | config.trainer)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "transformers refuses a training argument.", where="trainer", found=f"{config.trainer}: {error}"
        ) from error


def train(kind: str, config: TrainingConfig, resume: bool = False) -> dict[str, Any]:
    """Runs a loop and writes the trained system.

    Args:
        kind: "inner" or "outer".
        config: the settings.
        resume: go on from the last checkpoint under `<output>/training/`.

    Returns:
        Step, loss and evaluation at the end.

    Raises:
        ConfigError, InputError, CheckpointError: before any compute.
        NonFiniteError: a loss or gradient is not finite.
    """
    for name in ("system", "output", "data"):
        if not getattr(config, name):
            raise ConfigError("A setting is missing.", where=name, hint=f"set it with --set {name}=…")
    if config.threads:
        torch.set_num_threads(config.threads)
    output = Path(config.output)
    folder = output / "training"
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if last and not resume:
        raise InputError(
            "There are checkpoints of an earlier run.",
            where=last,
            hint="go on with --resume, remove the folder, or choose another `output`",
        )
    if resume and not last:
        raise InputError("There is no checkpoint to go on from.", where=str(folder), hint="start without --resume")
    arguments = training_arguments(config, folder)
    torch.manual_seed(config.seed)  # new links
    mas = load_mas_system(config.system, dtype=config.dtype, task=config.task)
    examples, report = read_examples(kind, config, mas, config.data, config.max_rows)
    evaluation = None
    if config.eval_data:
        evaluation, eval_report = read_examples(kind, config, mas, config.eval_data, config.eval_rows)
    loop = build_loop(kind, config, mas)
    if arguments.process_index == 0:
        print(report)
        if config.eval_data:
            print(eval_report)
        trainable = sum(p.numel() for p in loop.parameters())
        print(f"{kind} loop: {trainable:,} trainable parameters, {len(examples)} examples")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "training_config.json").write_text(config.to_json(), encoding="utf-8")
    trainer = LinkTrainer(
        loop,
        [row for row in evaluation.rows if row.answer is not None] if evaluation else [],
        {
            "num_rounds": config.num_rounds,
            "latent_steps": config.latent_steps,
            "task": config.task,
            "batch_size": config.batch_size,
        },
        args=arguments,
        train_dataset=examples,
        eval_dataset=evaluation,
    )
    result = trainer.train(resume_from_checkpoint=last)
    summary = {"step": trainer.state.global_step, "loss": result.training_loss}
    if evaluation:
        summary |= trainer.evaluate()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        mas.requires_grad_(False)
        mas.save_pretrained(output)
        (folder / "result.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return summary
