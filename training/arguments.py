"""The settings of a training run: transformers' `TrainingArguments` and what links need beside them."""

import copy
import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import type_validator
from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import ParallelMode

from ..errors_recursivemas import ConfigError
from ..fields_recursivemas import did_you_mean
from ..files_recursivemas import read_object

# Earlier names of settings; `trainer.NAME` is NAME.
ALIASES = {
    "batch_size": ("per_device_train_batch_size", "per_device_eval_batch_size"),
    "schedule": ("lr_scheduler_type",),
    "keep_checkpoints": ("save_total_limit",),
    "betas": ("adam_beta1", "adam_beta2"),
}
# What a kind of run starts from where it is not the class's default: measured on a real model (docs/real-model.md).
KIND_DEFAULTS: dict[str, dict[str, Any]] = {
    "inner": {
        "max_steps": 2000, "learning_rate": 2e-3, "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-4},
    },
    "outer": {"max_steps": 400, "learning_rate": 4e-4},
}  # fmt: skip
# The losses of the paper, for comparison with it.
PAPER: dict[str, Any] = {
    "target": "next_token", "loss": "answers", "latents": "teacher", "supervise": "decoder",
    "earlier_rounds_weight": 0.0, "train_inner_links": False,
}  # fmt: skip
# Settings of `TrainingArguments` that would change nothing here -> what to use in their place.
REPLACED = {
    "resume_from_checkpoint": "--resume", "num_train_epochs": "max_steps",
    "gradient_checkpointing": "activation_checkpointing",
}  # fmt: skip


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass
class LinkTrainingArguments(TrainingArguments):
    """Settings of `recursivemas train inner` and `recursivemas train outer`; `HfArgumentParser` can read them.

    What each means stands beside it, and in `recursivemas train --help`. Fields of `TrainingArguments` that are here
    again have another default; `eval_steps` and `save_steps` of 0 mean "at the end only".

    Raises:
        ConfigError: a value cannot be used.
    """

    system: str = _setting(".", "the system whose links are trained: a folder or a Hub repository")
    output: str = _setting("", "folder for the trained system; checkpoints and logs go to its training/ folder")
    data: str = _setting("", "training rows: a file, a folder of `save_to_disk`, or a data set on the Hub")
    eval_data: str | None = _setting(None, "rows for the evaluation during training, in the same form")
    columns: dict[str, str] | str | None = _setting(
        None,
        'the columns that hold "question", other fields, "answer" and the roles\' texts, under other names (JSON)',
    )
    allowed_bad_rows: int = _setting(0, "leave out so many bad rows; more are an error, and all are reported")
    max_rows: int | None = _setting(None, "use only the first rows of the data")
    held_out: int = _setting(
        64, "without `eval_data`: the last rows of the data, at most a tenth, are evaluated and not trained on; 0 none"
    )
    eval_rows: int = _setting(200, "use only the first rows of the evaluation's data; 0 uses all")
    metric: Literal["exact", "contains", "math", "choice", "f1", "numeric"] = _setting(
        "exact", "when an answer is right in the evaluation"
    )
    tools: Literal["calculator"] | None = _setting(None, "answers the decoding agent's calls in the evaluation")
    max_length: int | None = _setting(
        None, "most positions of prompt and target, longer rows are bad rows; default the agents' own limits"
    )
    task: str | None = _setting(None, "chooses the prompts; default the system's")
    num_rounds: int | None = _setting(None, "rounds: to unroll (outer), of the prompts (inner); default the system's")
    roles: list[str] | None = _setting(None, "inner: whose inner links are trained; default all")
    inner_kind: str | None = _setting(None, "inner: start new links of this kind; default the present ones go on")
    links: list[str] | None = _setting(None, "outer: which outer links are trained; default all")
    outer_kind: str | None = _setting(None, "outer: start new links of this kind; default the present ones go on")
    outer_start: Literal["closed_form", "random"] = _setting("closed_form", "outer: how new outer links start")
    positions: int = _setting(4, "outer: how many positions a new link of kind `outer_resampler` hands over")
    train_inner_links: bool = _setting(True, "outer: train the inner links along, those that have weights")
    target: Literal["mixture", "next_token"] = _setting(
        "mixture",
        "inner: what a state becomes: the agent's sharpened expected embedding, or the next token's (the paper)",
    )
    rollout_rows: int = _setting(512, "inner, mixture: rows whose own rollouts give states, at each refresh; 0 none")
    rollout_refreshes: int = _setting(3, "inner, mixture: how often these are rolled out anew")
    replay_steps: int = _setting(
        150, "inner, mixture: last steps, at most a tenth, in which latents also replace their text"
    )
    squared_error_weight: float = _setting(1.0, "inner: of the relative squared error; 0 is the paper's pure cosine")
    loss: Literal["distill", "answers"] = _setting(
        "distill", "outer: what counts: what the receivers would say with texts in their slots, or their target texts"
    )
    supervise: Literal["decoder", "receivers"] = _setting(
        "receivers", "outer: whose texts count, the decoding agent's or those of every agent that receives latents"
    )
    earlier_rounds_weight: float = _setting(1.0, "outer: of the mean over earlier rounds; 0 is the last round only")
    latents: Literal["teacher", "rollout"] = _setting(
        "rollout", "outer: latents at the positions of the sender's target text, or rolled out as in inference"
    )
    latent_steps: int | None = _setting(None, "outer: most latents a sender sends; default the system's")
    latent_halting: bool | None = _setting(None, "outer, rollouts: end a row that has finished; default the system's")
    control_tokens: bool | None = _setting(None, "outer: whether latents that say a special token count and travel")
    activation_checkpointing: bool = _setting(False, "outer: less memory, stages are computed again on the way back")
    layer_checkpointing: bool = _setting(
        False, "outer: much less memory, agents' layers keep only what they read; with the former least of all"
    )
    load: dict[str, Any] | str | None = _setting(
        None,
        'further arguments of load_mas_system (JSON): {"attn_implementation": "sdpa", "device": {"solver": "cuda:1"}}',
    )
    dtype: str = _setting("auto", "of the agents, auto: as stored, or faster; links are always trained in float32")
    threads: int = _setting(0, "CPU threads of torch; 0 leaves its default")

    output_dir: str | None = _setting(None, "folder of checkpoints and logs; default training/ in `output`")
    max_steps: int = _setting(1000, "optimizer steps")
    per_device_train_batch_size: int = _setting(16, "rows of one process in one forward pass")
    per_device_eval_batch_size: int = _setting(16, "the same in the evaluation")
    learning_rate: float = _setting(5e-4, "peak, after `warmup_steps`")
    lr_scheduler_type: SchedulerType | str = "cosine"
    warmup_steps: float = 10
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = _setting(
        1e-6, "of AdamW; with torch's 1e-8, links that are good already take full steps along gradients that are noise"
    )
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    seed: int = _setting(0, "of new links and of the order of the rows")
    logging_steps: float = 10
    logging_first_step: bool = True
    eval_steps: float | None = _setting(0, "steps between two evaluations; 0 evaluates at the end only")
    save_strategy: SaveStrategy | str = "steps"
    save_steps: float = _setting(0, "steps between two checkpoints; 0 saves at the end only")
    save_total_limit: int | None = 2
    report_to: None | str | list[str] = "tensorboard"  # noqa: RUF036 (HfArgumentParser takes the second)
    remove_unused_columns: bool = False
    dataloader_drop_last: bool = True
    dataloader_pin_memory: bool = False
    ddp_find_unused_parameters: bool | None = False

    def __post_init__(self) -> None:
        for name in ("columns", "load"):
            given = getattr(self, name)
            try:
                setattr(self, name, json.loads(given) if isinstance(given, str) else given)
            except ValueError as error:
                raise ConfigError("A setting is not valid JSON.", where=name, found=given) from error
        self.columns = {} if self.columns is None else self.columns
        if not isinstance(self.load, dict | None):
            raise ConfigError("A setting cannot be used.", where="load", found=repr(self.load), expected="an object")
        if not isinstance(self.columns, dict) or not all(isinstance(name, str) for name in self.columns.values()):
            raise ConfigError(
                "A setting cannot be used.", where="columns", found=repr(self.columns), expected="an object of texts"
            )
        self._validate()
        self._given = {name: copy.deepcopy(getattr(self, name)) for name in SETTINGS}
        self.output_dir = self.output_dir or str(Path(self.output, "training"))
        if self.eval_steps and self.eval_data and self.eval_strategy == "no":
            self.eval_strategy = "steps"
        if self.save_steps and self.save_strategy == "no":
            self.save_strategy = "steps"
        self.eval_steps, self.save_steps = self.eval_steps or None, self.save_steps or self.max_steps
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        try:
            super().__post_init__()
            if self.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
                self._n_gpu = min(1, self.n_gpu)  # or Trainer would copy links into threads, away from their agents
        except (TypeError, ValueError, NotImplementedError) as error:
            changed = [name for name in SETTINGS if name not in OWN_SETTINGS and self._given[name] != default_of(name)]
            raise ConfigError("transformers refuses a setting.", where=", ".join(changed), found=error) from error

    def _validate(self) -> None:
        for name, hint in HINTS.items():
            value, members = getattr(self, name), {hint, *typing.get_args(hint)}
            try:
                if isinstance(value, bool) and members & {int, float}:
                    raise TypeError("a truth value is no number")
                type_validator(name, value, hint | int if float in members else hint)
            except TypeError as error:
                expected = inspect.formatannotation(hint)
                raise ConfigError(
                    "A setting has the wrong type or value.", where=name, found=repr(value), expected=expected
                ) from error
        for expected, (holds, names) in RANGES.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise ConfigError("A setting cannot be used.", where=name, found=value, expected=expected)
        for name, instead in REPLACED.items():
            if getattr(self, name) != default_of(name):
                raise ConfigError("A setting would change nothing.", where=name, hint=f"use `{instead}`")

    @property
    def place_model_on_device(self) -> bool | None:
        """Whether Trainer moves the system (`None`: it decides); agents that `load` puts somewhere stay there."""
        return False if self.load else super().place_model_on_device

    def settings(self) -> dict[str, Any]:
        """The settings as they were given, for JSON: all that this class declares, further ones where they differ."""
        mine = LinkTrainingArguments.__annotations__
        return {name: value for name, value in self._given.items() if name in mine or value != default_of(name)}


_FIELDS = {each.name: each for each in dataclasses.fields(LinkTrainingArguments) if each.init}
BASE_SETTINGS = {each.name: each for each in dataclasses.fields(TrainingArguments)}
# All settings, those that the class declares first.
SETTINGS = {name: _FIELDS[name] for name in dict.fromkeys([*LinkTrainingArguments.__annotations__, *_FIELDS])}
# What `TrainingArguments` lacks; its `activation_checkpointing` (since 5.24) is about the layers of a model.
OWN_SETTINGS = [name for name in SETTINGS if name == "activation_checkpointing" or name not in BASE_SETTINGS]
HINTS = {
    name: hint
    for name, hint in typing.get_type_hints(LinkTrainingArguments).items()
    if name in SETTINGS and name not in ("fsdp", "debug")  # which take more than their annotations say
}
RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "at least 1": (
        lambda value: value >= 1,
        ("max_steps", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
         "save_total_limit", "num_rounds", "latent_steps", "positions", "max_rows", "max_length"),
    ),
    "at least 0": (
        lambda value: value >= 0,
        ("allowed_bad_rows", "held_out", "eval_rows", "rollout_rows", "rollout_refreshes", "replay_steps",
         "warmup_steps",
         "eval_steps", "save_steps", "threads",
         "squared_error_weight", "earlier_rounds_weight", "weight_decay"),
    ),
    "more than 0": (lambda value: value > 0, ("learning_rate", "max_grad_norm", "adam_epsilon", "logging_steps")),
    "in [0, 1)": (lambda value: 0 <= value < 1, ("adam_beta1", "adam_beta2")),
}  # fmt: skip


def default_of(name: str) -> Any:
    """The default of a setting."""
    setting = SETTINGS[name]
    return setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()


def canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their present names.

    Raises:
        ConfigError: a value that an earlier name cannot have.
    """
    found: dict[str, Any] = {}
    for given, value in settings.items():
        name = given.removeprefix("trainer.")
        if name == "trainer" and isinstance(value, dict):
            found |= canonical(value)
        elif name == "betas" and not (isinstance(value, list) and len(value) == 2):
            raise ConfigError("A setting cannot be used.", where=name, found=value, expected="two in [0, 1)")
        else:
            names = ALIASES.get(name, (name,))
            found |= zip(names, value if name == "betas" else [value] * len(names), strict=True)
    return found


def read_arguments(
    path: str | Path | None = None,
    assignments: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    kind: str | None = None,
) -> LinkTrainingArguments:
    """Defaults, then a JSON file with some of the settings, then `key=value` assignments, then flags.

    Args:
        path: the JSON file.
        assignments: a value is read as JSON where it is JSON, else as text.
        flags: name -> value.
        kind: "inner" or "outer", whose own defaults come first.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a value of the wrong type, or no such file.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        settings = canonical(read_object(path, ConfigError))
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError("An assignment has no value.", where="--set", found=assignment, expected="key=value")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        settings |= canonical({name: value})
    settings |= flags or {}
    for name in settings:
        if name not in SETTINGS:
            hint = did_you_mean(name, [*SETTINGS, *ALIASES]) or "`recursivemas train --help` lists all settings"
            raise ConfigError("Unknown setting.", where=path or "--set", found=name, hint=hint)
    defaults = KIND_DEFAULTS.get(kind or "", {})
    if not settings.keys().isdisjoint({"lr_scheduler_type", "lr_scheduler_kwargs"}):
        defaults = {name: value for name, value in defaults.items() if not name.startswith("lr_scheduler")}
    return LinkTrainingArguments(**(defaults | settings))
