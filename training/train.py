"""Train the links of a system: `inner` links agent by agent, `outer` links over unrolled recursion rounds.

Agents stay frozen. Settings: defaults, then --config, then --set (see training/config.py). Writes the trained system
to `output`, and checkpoints, TensorBoard logs and the settings to `output`/training.

Examples:
  recursivemas train inner --set system=my-system --set data=rows.jsonl --set output=my-system-1 \\
      --set inner_kind=ln_res_adapter
  recursivemas train outer --config outer.json --set learning_rate=1e-4
  recursivemas train outer --config outer.json --resume
  accelerate launch --num_processes 2 -m recursivemas.cli train outer --config outer.json
"""

import argparse
import dataclasses
import json

from .config import TrainingConfig, load_config


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("loop", choices=("inner", "outer"), help="which links are trained")
    parser.add_argument("--config", help="JSON file with the settings that differ from the defaults")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments", help="one setting; repeatable"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of `output`")
    parser.add_argument("--show", action="store_true", help="print all settings and stop")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    config: TrainingConfig = load_config(arguments.config, arguments.assignments)
    if arguments.show:
        print(json.dumps(dataclasses.asdict(config), indent=2))
        return 0
    from .run import train

    result = train(arguments.loop, config, arguments.resume)
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name}: {value:.6g}" for name, value in result.items()))
    return 0
