"""Train the links of a system: `inner` links agent by agent, `outer` links over unrolled recursion rounds.

`data` makes training rows out of questions: what the system's own agents say when they hand over text, which both
loops learn from without a reference answer.

Agents stay frozen. Settings: defaults, then --config, then --set, then flags such as --learning_rate 1e-4. Writes the
trained system to `output`, and checkpoints, TensorBoard logs and the settings to `output`/training.

Examples:
  recursivemas train data --system my-system --data questions.jsonl --output rows.jsonl
  recursivemas train outer --system my-system --data rows.jsonl --output my-system-1
  recursivemas train outer --system my-system --data rows.jsonl --output four --outer_kind outer_resampler
  recursivemas train inner --system my-system --data rows.jsonl --output my-system-1 --inner_kind ln_res_adapter
  recursivemas train outer --config outer.json --learning_rate 1e-4 --set columns='{"question": "problem"}'
  recursivemas train outer --config outer.json --resume
  recursivemas train outer --system sequential_light --dry-run --max_length 4096 --layer_checkpointing
  accelerate launch --num_processes 2 -m recursivemas.cli train outer --config outer.json
"""

import argparse
import json
from typing import Any

from transformers import HfArgumentParser

from ..evaluation.commands import add_replace_argument, validate_output
from .arguments import (
    BASE_SETTINGS,
    OWN_SETTINGS,
    REPLACED,
    SETTINGS,
    LinkTrainingArguments,
    default_of,
    read_arguments,
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        f"{parser.prog} {{data,inner,outer}} [--config FILE] [--set KEY=VALUE] [--SETTING VALUE] [--resume] ..."
    )
    parser.add_argument("kind", choices=("data", "inner", "outer"), help="which links are trained, or data for it")
    parser.add_argument("--config", help="JSON file with the settings that differ from the defaults")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments",
        help="one setting, its value as JSON or text; repeatable",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of `output`")
    add_replace_argument(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what the run needs in memory, from configurations alone, and stop",
    )
    parser.add_argument("--show", action="store_true", help="print the settings and stop")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    own = parser.add_argument_group("settings")
    others = parser.add_argument_group("settings of transformers' TrainingArguments")
    flags = HfArgumentParser(LinkTrainingArguments, add_help=False)._actions  # type: ignore[arg-type]
    for action in sorted(flags, key=lambda action: list(SETTINGS).index(action.dest)):
        name = action.dest
        if name not in REPLACED:
            default = default_of(name)
            meaning = action.help or BASE_SETTINGS[name].metadata["help"]
            action.help = meaning if default in (None, "") else f"{meaning} (default: {default})"
            action.default = argparse.SUPPRESS  # only what is given counts over --config and --set
            (own if name in OWN_SETTINGS else others)._add_action(action)
            action.option_strings = action.option_strings[:1]  # --learning-rate is read too, and not printed


def run(arguments: argparse.Namespace) -> int:
    flags = {name: value for name, value in vars(arguments).items() if name in SETTINGS}
    settings = read_arguments(arguments.config, arguments.assignments, flags, arguments.kind)
    if arguments.show:
        print(json.dumps(settings.settings(), indent=2))
        return 0
    if arguments.dry_run:
        from .plan import describe, plan

        found = plan(arguments.kind, settings)
        print(json.dumps(found) if arguments.json else describe(found))
        return 0
    if arguments.kind == "data":
        from .own_answers import write_own_answers

        result: dict[str, Any] = dict(write_own_answers(settings, arguments.replace))
    else:
        from .run import train

        if settings.output and not arguments.resume:  # checkpoints are for `train` to judge
            validate_output(settings.output, arguments.replace, besides=("training",))
        result = train(arguments.kind, settings, arguments.resume)
    if arguments.json:
        print(json.dumps(result))
    else:
        texts = {name: value if isinstance(value, str) else f"{value:.6g}" for name, value in result.items()}
        print("\n".join(f"{name}: {text}" for name, text in texts.items()))
    return 0
