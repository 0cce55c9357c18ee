"""The settings of a training run: one typed table for the inner and the outer loop, small JSON files over it."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors_recursivemas import ConfigError


@dataclass
class TrainingConfig:
    """Settings of `recursivemas train inner` and `recursivemas train outer`.

    Attributes:
        system: the system whose links are trained: a folder or a Hub repository.
        output: folder for the trained system; checkpoints and logs go to its `training/` folder.
        data: training rows, see training/data.py: a file, a folder of `save_to_disk`, or a data set on the Hub.
        eval_data: rows for the evaluation during training, in the same form.
        columns: "question", "answer" or a role -> the column that holds it, where the names are others.
        allowed_bad_rows: leave out so many bad rows; more are an error. All of them are reported.
        max_rows: use only the first rows.
        eval_rows: use only the first rows of `eval_data`.
        tools: answers the decoding agent's calls in the evaluation, a name as in `recursivemas evaluate --tools`.
        max_length: most positions of prompt and target; longer rows are bad rows. Default: the agents' own limits.
        task: chooses the prompts; default the system's.
        num_rounds: rounds to unroll (outer), or whose prompts are trained on (inner); default the system's.
        roles: inner loop: whose inner links are trained; default all.
        inner_kind: inner loop: start new inner links of this kind; default the present ones go on.
        links: outer loop: names of the outer links that are trained; default all.
        outer_kind: outer loop: start new outer links of this kind; default the present ones go on.
        outer_start: how new outer links start: "closed_form" or "random", see training/start.py.
        train_inner_links: outer loop: train the inner links along.
        squared_error_weight: inner loop: weight of the relative squared error; 0 is the paper's pure cosine.
        supervise: outer loop: whose texts count: "decoder", or "receivers" for every agent that receives latents.
        earlier_rounds_weight: outer loop: weight of the mean over the earlier rounds; 0 is the last round only.
        latents: outer loop: "teacher" (at the positions of the sender's target text) or "rollout" (as in inference).
        latent_steps: outer loop: most latents a sender sends; default the system's.
        latent_halting: outer loop, rollouts: end a row where its agent has finished; default the system's.
        activation_checkpointing: outer loop: compute each stage again on the way back, for memory.
        dtype: of the agents; "auto" keeps the checkpoints'. Links are trained in float32 in any case.
        learning_rate: peak, after `warmup_steps`.
        schedule: transformers' name of the learning-rate schedule.
        warmup_steps: steps from 0 to the peak.
        betas: of AdamW.
        adam_epsilon: of AdamW; larger than torch's 1e-8, with which links that are good already take full steps along
            gradients that are nothing but noise.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped at this norm.
        max_steps: optimizer steps.
        batch_size: rows of one process in one forward pass.
        group_by_length: make batches of rows of like length, which need less padding.
        gradient_accumulation_steps: forward passes for one optimizer step.
        seed: of new links and of the order of the rows.
        logging_steps: steps between two lines of the log.
        eval_steps: steps between two evaluations; 0 evaluates at the end only.
        save_steps: steps between two checkpoints; 0 saves at the end only.
        keep_checkpoints: how many checkpoints stay.
        threads: CPU threads of torch; 0 leaves its default.
        trainer: further fields of transformers' `TrainingArguments` (deepspeed, fsdp, bf16, …), passed as they are.

    Raises:
        ConfigError: a value cannot be used.
    """

    system: str = "."
    output: str = ""
    data: str = ""
    eval_data: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    allowed_bad_rows: int = 0
    max_rows: int | None = None
    eval_rows: int = 200
    tools: Literal["calculator"] | None = None
    max_length: int | None = None
    task: str | None = None
    num_rounds: int | None = None
    roles: list[str] | None = None
    inner_kind: str | None = None
    links: list[str] | None = None
    outer_kind: str | None = None
    outer_start: Literal["closed_form", "random"] = "closed_form"
    train_inner_links: bool = False
    squared_error_weight: float = 1.0
    supervise: Literal["decoder", "receivers"] = "decoder"
    earlier_rounds_weight: float = 0.0
    latents: Literal["teacher", "rollout"] = "teacher"
    latent_steps: int | None = None
    latent_halting: bool | None = None
    activation_checkpointing: bool = False
    dtype: str = "auto"
    learning_rate: float = 5e-4
    schedule: str = "cosine"
    warmup_steps: int = 10
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_steps: int = 1000
    batch_size: int = 16
    group_by_length: bool = False
    gradient_accumulation_steps: int = 1
    seed: int = 0
    logging_steps: int = 10
    eval_steps: int = 0
    save_steps: int = 0
    keep_checkpoints: int = 2
    threads: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name, hint in hints.items():
            setattr(self, name, _checked(name, getattr(self, name), hint))
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "logging_steps", "keep_checkpoints"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("allowed_bad_rows", "eval_rows", "warmup_steps", "eval_steps", "save_steps", "threads"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("squared_error_weight", "earlier_rounds_weight", "weight_decay"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            self._require(name, getattr(self, name) > 0, "more than 0")
        for name in ("num_rounds", "latent_steps", "max_rows", "max_length"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        self._require("betas", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two in [0, 1)")

    def _require(self, name: str, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            raise ConfigError("A setting cannot be used.", where=name, found=getattr(self, name), expected=expected)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value, if it is of the annotated type (whole numbers pass as floats)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _checked(name, value, next(argument for argument in arguments if argument is not type(None)))
    if origin is Literal:
        fits = value in arguments
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif origin is list:
        fits = isinstance(value, list)
        value = [_checked(f"{name}, an item", item, arguments[0]) for item in value] if fits else value
    else:
        fits = isinstance(value, origin or hint)
    if not fits:
        expected = ", ".join(map(repr, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
        raise ConfigError("A setting has the wrong type or value.", where=name, found=repr(value), expected=expected)
    return value


def load_config(path: str | Path | None = None, assignments: Iterable[str] = ()) -> TrainingConfig:
    """Defaults, then a JSON file with some of the settings, then `key=value` assignments.

    A value is read as JSON where it is JSON, else as text; `trainer.key=value` sets one entry of a table.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of the wrong type, or no such file.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError("A configuration cannot be read.", where=path, found=error, expected="JSON") from error
        if not isinstance(settings, dict):
            raise ConfigError("A configuration is not an object.", where=path, found=type(settings).__name__)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError("An assignment has no value.", where="--set", found=assignment, expected="key=value")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        name, dot, entry = key.partition(".")
        if dot:
            settings[name] = {**settings.get(name, {}), entry: value}
        else:
            settings[name] = value
    known = [setting.name for setting in dataclasses.fields(TrainingConfig)]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                "Unknown setting.",
                where=path or "--set",
                found=key,
                expected=", ".join(known),
                hint=f"did you mean `{near[0]}`?" if near else None,
            )
    return TrainingConfig(**settings)
