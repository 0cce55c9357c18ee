"""One training run: settings -> data, loop and Trainer -> the trained system on disk."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import TrainingArguments

from ..errors_recursivemas import CheckpointError, ConfigError, InputError
from ..evaluation.commands import TOOLS
from ..modeling_recursivemas import RecursiveMASModel
from ..system_loader import load_mas_system
from .config import TrainingConfig
from .data import Encoder, Report, check_lengths, read_rows, refuse_bad_rows
from .loops import InnerLoop, LinkLoop, OuterLoop
from .start import fit_outer_link, random_outer_link, set_inner_link, set_outer_link, start_inner_link
from .trainer import Examples, LinkTrainer

SETTINGS = "training_config.json"
# Settings that may change between a run and its continuation: they do not change the weights.
FREE_SETTINGS = {
    "output", "eval_data", "eval_rows", "tools", "logging_steps", "eval_steps", "save_steps", "keep_checkpoints",
}  # fmt: skip


def build_loop(kind: str, config: TrainingConfig, mas: RecursiveMASModel) -> LinkLoop:
    """The loop that the settings describe, with new links where they ask for them.

    Args:
        kind: "inner" or "outer".
        config: the settings.
        mas: the system; its links are replaced and made trainable in place.

    Raises:
        InputError: an unknown role or link, or one that has nothing to train.
    """
    if kind == "inner":
        roles = _known("roles", config.roles, list(mas.agents))
        if config.inner_kind is not None:
            for role in roles:
                set_inner_link(mas, role, start_inner_link(mas.agents[role], config.inner_kind))
        free = [role for role in roles if not _trainable(mas, role)]
        if free:
            raise InputError(
                "An inner link has nothing to train.",
                where=", ".join(free),
                found=mas.agents[free[0]].inner_link.kind,
                hint="start trainable ones, e.g. with `inner_kind=ln_res_adapter`",
            )
        return InnerLoop(mas, roles, config.squared_error_weight)
    num_rounds = config.num_rounds or mas.config.num_rounds
    used = [
        link.name
        for link in mas.topology.links
        if any(link in mas.topology.receivers(role, r, num_rounds) for r, role in mas.topology.schedule(num_rounds))
    ]
    names = _known(f"links, or links that send nothing in {num_rounds} rounds", config.links, used)
    if config.outer_kind is not None:
        for link in mas.topology.links:
            if link.name in names:
                source, target = mas.agents[link.source], mas.agents[link.target]
                start = fit_outer_link if config.outer_start == "closed_form" else random_outer_link
                set_outer_link(mas, link.name, start(source, target, config.outer_kind))
    senders = dict.fromkeys(link.source for link in mas.topology.links if link.name in used)
    return OuterLoop(
        mas,
        names,
        [role for role in senders if _trainable(mas, role)] if config.train_inner_links else (),
        num_rounds=num_rounds,
        latent_steps=config.latent_steps or mas.config.latent_steps,
        supervise=config.supervise,
        earlier_rounds_weight=config.earlier_rounds_weight,
        latents=config.latents,
        halting=mas.config.latent_halting if config.latent_halting is None else config.latent_halting,
        activation_checkpointing=config.activation_checkpointing,
    )


def _trainable(mas: RecursiveMASModel, role: str) -> bool:
    return any(True for _ in mas.agents[role].inner_link.parameters())


def _known(what: str, chosen: list[str] | None, names: list[str]) -> list[str]:
    unknown = sorted(set(chosen or ()) - set(names))
    if unknown:
        raise InputError(f"Unknown {what}.", found=", ".join(unknown), expected=", ".join(names))
    return names if chosen is None else chosen


def read_examples(
    kind: str, config: TrainingConfig, mas: RecursiveMASModel, source: str, limit: int | None
) -> tuple[Examples, Report]:
    """The rows of a source, as examples for a loop.

    Raises:
        DataError: more bad rows than allowed; the message is the report.
    """
    topology = mas.topology
    num_rounds = config.num_rounds or mas.config.num_rounds
    encoder = Encoder(mas, config.task or mas.config.task)
    if kind == "inner":
        chosen = _known("roles", config.roles, list(mas.agents))
        groups = [[(r, role) for role in chosen] for r in range(1, num_rounds + 1)]
        speakers = [*chosen, *(link.source for link in topology.links if link.target in chosen)]
    else:
        groups, speakers = [topology.schedule(num_rounds)], list(topology.roles)
    rows, report = read_rows(source, dict.fromkeys(speakers), num_rounds, config.columns, limit)
    parts = [part for group in groups for part in group]
    rows = check_lengths(rows, encoder, parts, config.max_length, report)
    refuse_bad_rows(report, rows, config.allowed_bad_rows)
    return Examples(rows, encoder, groups, text=kind == "inner"), report


def training_arguments(config: TrainingConfig, folder: Path) -> TrainingArguments:
    """transformers' arguments for the settings.

    Raises:
        ConfigError: an entry of `trainer` that transformers refuses.
    """
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_steps,
        "adam_beta1": config.betas[0],
        "adam_beta2": config.betas[1],
        "adam_epsilon": config.adam_epsilon,
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
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "report_to": "tensorboard",
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available(),
    }
    try:
        return TrainingArguments(**arguments | config.trainer)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "transformers refuses a training argument.", where="trainer", found=f"{config.trainer}: {error}"
        ) from error


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; one that a kill interrupted lacks its last file."""
    complete = {}
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        complete[state["global_step"]] = path
    return complete[max(complete)] if complete else None


def check_continuation(config: TrainingConfig, folder: Path, checkpoint: Path, loop: LinkLoop) -> None:
    """Checks that a checkpoint is one of this run.

    Raises:
        ConfigError: settings that change the weights differ from the run's.
        CheckpointError: the checkpoint holds other links.
    """
    before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    now = dataclasses.asdict(config)
    changed = {key: (before.get(key), now[key]) for key in now.keys() - FREE_SETTINGS if before.get(key) != now[key]}
    if changed:
        raise ConfigError(
            "The settings differ from those of the run that is to go on.",
            where=folder / SETTINGS,
            found="; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in sorted(changed.items())),
            hint="go on with the same settings, or start a new run from the trained system",
        )
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        found = set(file.keys())
    if found != set(loop.state_dict()):
        raise CheckpointError(
            "A checkpoint holds other links than this run trains.",
            where=checkpoint,
            found=", ".join(sorted(found - set(loop.state_dict()))) or "too few",
            expected=", ".join(sorted(loop.state_dict())),
        )


def read_curve(output: Path) -> dict[str, Any]:
    """Losses, gradient norms and accuracies over the steps of a finished run."""
    history = json.loads((output / "training" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    logs = [entry for entry in history if "loss" in entry]
    return {
        "steps": [entry["step"] for entry in logs],
        "loss": [entry["loss"] for entry in logs],
        "gradient_norm": [entry["grad_norm"] for entry in logs],
        "accuracy_during": {entry["step"]: entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry},
    }


def start_of(log_history: list[dict[str, Any]]) -> dict[str, float]:
    """The evaluation before the first step, with "start" in place of "eval" in the names."""
    first = next((entry for entry in log_history if entry["step"] == 0 and "eval_loss" in entry), {})
    return {f"start_{key.removeprefix('eval_')}": value for key, value in first.items() if key.startswith("eval_")}


def verdict(summary: dict[str, Any]) -> str | None:
    """Whether training made the evaluation better, in words; the accuracy counts where it is known.

    `None` where there is nothing to compare: no evaluation, or one that a resumed run did not begin with.
    """
    key = "accuracy" if "eval_accuracy" in summary else "loss"
    if f"start_{key}" not in summary:
        return None
    before, after = summary[f"start_{key}"], summary[f"eval_{key}"]
    text = f"evaluation: {key} {before:.4g} before, {after:.4g} after"
    if after < before if key == "accuracy" else after > before:
        text += "; training made the system worse: keep the start, or lower the learning rate (docs/training.md)"
    return text


def train(kind: str, config: TrainingConfig, resume: bool = False) -> dict[str, Any]:
    """Trains links and writes the system, checkpoints and logs.

    Args:
        kind: "inner" or "outer".
        config: the settings.
        resume: go on from the last complete checkpoint under `<output>/training/`, to the same weights as if the run
            had never stopped.

    Returns:
        Step, mean loss, and the evaluation at the end.

    Raises:
        ConfigError, InputError, CheckpointError: before any compute.
        NonFiniteError: a loss or gradient is not finite.
    """
    for name in ("system", "output", "data"):
        if not getattr(config, name):
            raise ConfigError("A setting is missing.", where=name, hint=f"give it with --set {name}=…")
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = Path(config.output, "training")
    checkpoint = last_checkpoint(folder)
    if checkpoint and not resume:
        raise InputError(
            "There are checkpoints of an earlier run.",
            where=checkpoint,
            hint="go on with --resume, remove the folder, or choose another `output`",
        )
    if resume and not checkpoint:
        raise InputError("There is no complete checkpoint to go on from.", where=folder, hint="start without --resume")
    arguments = training_arguments(config, folder)
    arguments.eval_on_start = bool(config.eval_data) and not resume
    torch.manual_seed(config.seed)  # for new links
    mas = load_mas_system(config.system, dtype=config.dtype, task=config.task)
    examples, report = read_examples(kind, config, mas, config.data, config.max_rows)
    evaluation, eval_report = None, None
    if config.eval_data:
        evaluation, eval_report = read_examples(kind, config, mas, config.eval_data, config.eval_rows or None)
    global_batch = config.batch_size * arguments.world_size
    if len(examples) < global_batch:
        raise InputError(
            "There are fewer examples than one batch holds.",
            where=config.data,
            found=len(examples),
            expected=f"at least {global_batch} (batch_size times processes)",
        )
    loop = build_loop(kind, config, mas)
    if checkpoint:
        check_continuation(config, folder, checkpoint, loop)
    if arguments.process_index == 0:
        trainable = sum(parameter.numel() for parameter in loop.parameters())
        print(report, *([eval_report] if eval_report else []), sep="\n")
        print(f"{kind} loop: {trainable:,} trainable parameters, {len(examples)} examples", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(config.to_json(), encoding="utf-8")
    trainer = LinkTrainer(
        loop,
        {
            "num_rounds": config.num_rounds,
            "latent_steps": config.latent_steps,
            "task": config.task,
            "batch_size": config.batch_size,
            "tools": TOOLS.get(config.tools),
        },
        group_by_length=config.group_by_length,
        args=arguments,
        train_dataset=examples,
        eval_dataset=evaluation,
    )
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    summary = {"step": trainer.state.global_step, "loss": result.training_loss}
    if evaluation is not None:
        summary |= trainer.evaluate() | start_of(trainer.state.log_history)
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        mas.requires_grad_(False)
        mas.save_pretrained(config.output)
        (folder / "result.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        if (text := verdict(summary)) is not None:
            print(text, flush=True)
    trainer.accelerator.wait_for_everyone()
    return summary
