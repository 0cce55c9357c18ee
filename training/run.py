"""One training run: settings -> data, objective and Trainer -> the trained system on disk."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, cast

import torch

from ..agent_recursivemas import RecursiveMASAgent
from ..errors_recursivemas import ConfigError, InputError
from ..evaluation.interrupts import Interrupted, interruptible, signals_to
from ..evaluation.metrics import METRICS
from ..evaluation.results import PROVENANCE, provenance
from ..folders_recursivemas import write_text
from ..links_recursivemas import ABLATION_KINDS, OUTER_KINDS, AnyOuterLink, SoftPromptLink
from ..memories_recursivemas import cache_links
from ..modeling_recursivemas import RecursiveMASModel
from ..system_loader import load_mas_system
from .arguments import LinkTrainingArguments
from .checkpoints import (
    SETTINGS_FILE,
    STAMP_FILE,
    finished,
    last_checkpoint,
    sealed_losses,
    stamp_of,
    step_of,
    validate_continuation,
    validate_settings,
)
from .data import Encoder, Example, Report, read_rows, refuse_bad_rows
from .objectives import InnerObjective, InnerSettings, LinkObjective, OuterObjective, OuterSettings
from .start import extended, fit_outer_link, random_outer_link, reference_link, start_inner_link
from .trainer import LinkTrainer

Kind = Literal["inner", "outer"]
LEAST_TO_HOLD_OUT = 100  # rows
DEFAULT_INNER_KIND = "rescaled_adapter"  # of a new inner link where the present one has nothing to train


def build_objective(kind: Kind, arguments: LinkTrainingArguments, mas: RecursiveMASModel) -> LinkObjective:
    """The objective that the settings describe; the system's links are replaced and made trainable in place.

    Raises:
        InputError: an unknown role or link, or one that has nothing to train.
    """
    if kind == "inner":
        roles = _known("roles", arguments.roles, list(mas.agents))
        references, fresh = {}, []
        for role in roles:
            agent = mas.agents[role]
            references[role] = reference_link(agent)
            new = arguments.inner_kind or (None if _trainable(mas, role) else DEFAULT_INNER_KIND)
            if new is not None:
                mas.set_link(role, start_inner_link(agent, new))
                fresh.append(role)
        return InnerObjective(mas, roles, inner_settings(arguments), references, fresh)
    if handing := cache_links(mas.outer_links):
        raise InputError(
            "Links of kind cache hand over working memory: they have nothing to train, and no gradient passes them.",
            where=f"links, {', '.join(handing)}",
            hint="train a system whose links hand over latents",
        )
    names, roles = trained_links(arguments, mas)
    for link in mas.topology.links:
        if link.name not in names:
            continue
        if arguments.outer_kind is None:
            mas.set_link(link.name, extended(mas.outer_links[link.name]))
        else:
            ends, snap = (mas.agents[link.source], mas.agents[link.target]), mas.outer_links[link.name].snap
            mas.set_link(link.name, new_outer_link(arguments, *ends, snap))
    return OuterObjective(mas, names, roles, outer_settings(arguments))


def trained_links(arguments: LinkTrainingArguments, mas: RecursiveMASModel) -> tuple[list[str], list[str]]:
    """The outer links that the outer loop trains, and the roles whose inner links it trains along.

    Raises:
        InputError: an unknown link, or one that sends nothing in these rounds.
    """
    num_rounds = arguments.num_rounds or mas.config.most_rounds
    used = [
        link
        for link in mas.topology.links
        if any(link in mas.topology.receivers(role, r, num_rounds) for r, role in mas.topology.schedule(num_rounds))
    ]
    what = f"links, or links that send nothing in {num_rounds} rounds"
    names = _known(what, arguments.links, [link.name for link in used])
    senders = dict.fromkeys(link.source for link in used)
    return names, [role for role in senders if _trainable(mas, role)] if arguments.train_inner_links else []


def inner_settings(arguments: LinkTrainingArguments) -> InnerSettings:
    """What of the settings the inner objective has a field for."""
    settings = InnerSettings(**_of(arguments, InnerSettings))
    # Replaying pays at the small rates of a run's end only: at 5e-4 it diverged (docs/real-model.md).
    return dataclasses.replace(settings, replay_steps=min(settings.replay_steps, settings.max_steps // 10))


def outer_settings(arguments: LinkTrainingArguments) -> OuterSettings:
    """What of the settings the outer objective has a field for."""
    return OuterSettings(**_of(arguments, OuterSettings))


def _of(arguments: LinkTrainingArguments, settings: type) -> dict[str, Any]:
    return {each.name: getattr(arguments, each.name) for each in dataclasses.fields(settings)}


def new_outer_link(
    arguments: LinkTrainingArguments, source: RecursiveMASAgent, target: RecursiveMASAgent, snap: bool
) -> AnyOuterLink:
    """An outer link of the kind that the settings name, where they let it start."""
    assert arguments.outer_kind is not None
    if arguments.outer_start == "random" and arguments.outer_kind in (*OUTER_KINDS, *ABLATION_KINDS):
        return random_outer_link(source, target, arguments.outer_kind)
    link = fit_outer_link(source, target, arguments.outer_kind, positions=arguments.positions)
    link.snap = snap and not isinstance(link, SoftPromptLink)
    return link


def _trainable(mas: RecursiveMASModel, role: str) -> bool:
    return any(True for _ in mas.agents[role].inner_link.parameters())


def _known(what: str, chosen: list[str] | None, names: list[str]) -> list[str]:
    unknown = sorted(set(chosen or ()) - set(names))
    if unknown:
        raise InputError(f"Unknown {what}.", found=", ".join(unknown), expected=", ".join(names))
    return names if chosen is None else chosen


def read_examples(
    kind: Kind, arguments: LinkTrainingArguments, mas: RecursiveMASModel, source: str, limit: int | None
) -> tuple[list[Example], Report]:
    """The rows of a source, as examples for an objective; and the report of what was read.

    Raises:
        DataError: more bad rows than allowed; the message is the report.
    """
    topology = mas.topology
    num_rounds = arguments.num_rounds or mas.config.most_rounds
    encoder = Encoder(mas, arguments.task)
    if kind == "inner":
        chosen = _known("roles", arguments.roles, list(mas.agents))
        groups = [[(r, role) for role in chosen] for r in range(1, num_rounds + 1)]
        speakers = [*chosen, *(link.source for link in topology.links if link.target in chosen)]
    else:
        groups, speakers = [topology.schedule(num_rounds)], list(topology.roles)
    columns = cast(dict[str, str], arguments.columns)
    # The evaluation asks the whole system, whatever is trained.
    fields = encoder.input_fields([*topology.schedule(num_rounds), *(turn for group in groups for turn in group)])
    rows, report = read_rows(source, dict.fromkeys(speakers), num_rounds, columns, limit, fields, topology.roles)
    steps = (arguments.latent_steps or mas.config.latent_steps) if kind == "outer" else 0
    quiet = arguments.process_index > 0
    examples = encoder.examples(rows, groups, report, arguments.max_length, quiet, steps)
    refuse_bad_rows(report, arguments.allowed_bad_rows)
    return examples, report


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
    """Whether training made the evaluation better, in words; the accuracy counts where it is known and differs.

    `None` where there is nothing to compare: no evaluation, or one that a resumed run did not begin with.
    """
    accuracies = [summary.get(f"{when}_accuracy") for when in ("start", "eval")]
    key = "loss" if accuracies[0] == accuracies[1] else "accuracy"
    if f"start_{key}" not in summary:
        return None
    before, after = summary[f"start_{key}"], summary[f"eval_{key}"]
    text = f"evaluation: {key} {before:.4g} before, {after:.4g} after"
    if after < before if key == "accuracy" else after > before:
        text += "; training made the system worse"
    if "kept_step" in summary:
        kept = summary["kept_step"]
        text += (
            f"; the links of {'the start' if kept == 0 else f'step {kept}'} are kept ({summary['kept_' + key]:.4g})"
        )
    return text


def hold_out(examples: list[Example], count: int) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and those of the last `count` rows (at most a tenth, and none of fewer than 100 rows)."""
    lines = sorted({example.row.line for example in examples})
    share = min(count, len(lines) // 10) if len(lines) >= LEAST_TO_HOLD_OUT else 0
    held = set(lines[len(lines) - share :])
    return [e for e in examples if e.row.line not in held], [e for e in examples if e.row.line in held]


def train(kind: Kind, arguments: LinkTrainingArguments, resume: bool = False) -> dict[str, Any]:
    """Trains links and writes the system, checkpoints and logs.

    Args:
        kind: whose links are trained.
        arguments: the settings of the run.
        resume: go on from the last whole checkpoint under `<output>/training/`, to the same weights as if the run had
            never stopped. A finished run stays as it is, unless `max_steps` grew.

    Returns:
        Step, mean loss, and the evaluation at the end.

    Raises:
        ConfigError, InputError, CheckpointError: before any compute.
        NonFiniteError: a loss or gradient is not finite.
        Interrupted: by Ctrl-C or SIGTERM; a run under way is saved first.
    """
    for name in ("system", "output", "data"):
        if not getattr(arguments, name):
            raise ConfigError("A setting is missing.", where=name, hint=f"give it with --{name}")
    folder = Path(str(arguments.output_dir))

    def say() -> str:
        saved = last_checkpoint(folder, arguments.world_size)
        if saved is None:
            return "interrupted before anything of the run was saved"
        return f"interrupted; the same command with --resume goes on from {saved}"

    with interruptible(say):
        return _train(kind, arguments, resume, folder)


def _train(kind: Kind, arguments: LinkTrainingArguments, resume: bool, folder: Path) -> dict[str, Any]:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    checkpoint = last_checkpoint(folder, arguments.world_size, quiet=not resume or arguments.process_index > 0)
    done = finished(folder, checkpoint, arguments.max_steps) if resume else None
    if checkpoint and not resume:
        hint = "go on with --resume, remove the folder, or choose another `output`"
        raise InputError("There are checkpoints of an earlier run.", where=checkpoint, hint=hint)
    if resume and not checkpoint and not done:
        raise InputError("There is no complete checkpoint to go on from.", where=folder, hint="start without --resume")
    METRICS[arguments.metric].require()
    if resume:
        validate_settings(arguments, folder)
    torch.manual_seed(arguments.seed)  # for new links
    mas = load_mas_system(arguments.system, dtype=arguments.dtype, task=arguments.task, **(arguments.load or {}))  # type: ignore[arg-type]
    examples, report = read_examples(kind, arguments, mas, arguments.data, arguments.max_rows)
    evaluation, eval_report = None, None
    if arguments.eval_data:
        evaluation, eval_report = read_examples(kind, arguments, mas, arguments.eval_data, arguments.eval_rows or None)
    else:
        examples, evaluation = hold_out(examples, arguments.held_out)
    arguments.eval_on_start = bool(evaluation) and not resume
    global_batch = arguments.per_device_train_batch_size * arguments.world_size
    if len(examples) < global_batch:
        raise InputError(
            "There are fewer examples than one batch holds.",
            where=arguments.data,
            found=len(examples),
            expected=f"at least {global_batch} (per_device_train_batch_size times processes)",
        )
    objective = build_objective(kind, arguments, mas)
    stamp = stamp_of(objective, examples, arguments.world_size)
    if resume:
        validate_continuation(folder, checkpoint, stamp, set(objective.state_dict()))
    if done:
        if arguments.process_index == 0:
            more = "; a larger `max_steps` goes on" if checkpoint else ""
            print(f"already finished at step {done['step']}: nothing was changed{more}", flush=True)
        return {name: value for name, value in done.items() if name not in PROVENANCE}
    if arguments.process_index == 0:
        trainable = sum(parameter.numel() for parameter in objective.parameters())
        print(report, *([eval_report] if eval_report else []), sep="\n")
        print(f"{kind} loop: {trainable:,} trainable parameters, {len(examples)} examples", flush=True)
        write_text(folder / STAMP_FILE, json.dumps(stamp, indent=2) + "\n")
        write_text(folder / SETTINGS_FILE, json.dumps(arguments.settings(), indent=2) + "\n")
    if isinstance(objective, InnerObjective) and not checkpoint:
        objective.fit_start(examples, arguments.per_device_eval_batch_size)
    trainer = LinkTrainer(objective, arguments, train_dataset=examples, eval_dataset=evaluation)
    if checkpoint:
        trainer.losses = sealed_losses(checkpoint)
    if checkpoint and step_of(checkpoint) >= arguments.max_steps:  # stopped between the last step and the end
        trainer.go_on(checkpoint)
    else:
        with signals_to(trainer.interrupt):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.interrupted is not None:
        step, saved = trainer.state.global_step, folder / f"checkpoint-{trainer.state.global_step}"
        raise Interrupted(
            f"interrupted at step {step} of {arguments.max_steps}; it is saved in {saved}, and the same command with"
            " --resume goes on",
            trainer.interrupted,
        )
    summary = {"step": trainer.state.global_step, "loss": trainer.mean_loss()}
    if evaluation:
        summary |= trainer.evaluate() | start_of(trainer.state.log_history) | trainer.keep_best()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        mas.requires_grad_(False)
        mas.config.num_rounds, mas.config.settling = mas.config.most_rounds, None  # other links settle otherwise
        mas.save_pretrained(arguments.output)
        write_text(folder / "result.json", json.dumps(summary | provenance(), indent=2) + "\n")
        if (text := verdict(summary)) is not None:
            print(text, flush=True)
    trainer.accelerator.wait_for_everyone()
    return summary
