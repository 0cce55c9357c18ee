"""Publish a system on the Hugging Face Hub, as the public release is published.

Three steps: `stage` writes every repository to a local folder (one for each agent, one for the outer links, one for
the whole system, each with its card), `check` loads each of them like a stranger and compares it with the source,
`push` sends them and updates the collection. `push` only says what it would do until it is told `--yes`. `all` does
the three in a row.

Examples:
  recursivemas publish stage my-system --namespace my-org --name Arithmetic --output staged
  recursivemas publish check staged
  recursivemas publish push staged
  recursivemas publish push staged --yes
  recursivemas publish all my-system --namespace my-org --name Arithmetic --output staged --release-layout \\
      --base-model planner=Qwen/Qwen3-1.7B --results evaluation/results/mine.json --yes
"""

import argparse
import dataclasses
import json

from ..errors_recursivemas import InputError
from ..evaluation.commands import add_input_argument, add_inputs
from .check import check
from .plan import Options
from .push import push
from .stage import stage

STEPS = {
    "stage": "write every repository of a system to a folder",
    "check": "load each staged repository like a stranger",
    "push": "send the staged repositories (without --yes: only say what would be sent)",
    "all": "stage, check and push",
}


def configure(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, what in STEPS.items():
        step = steps.add_parser(name, help=what, description=what)
        if name in ("stage", "all"):
            _add_stage_arguments(step)
        else:
            step.add_argument("staged", help="folder that `stage` wrote")
        if name in ("push", "all"):
            step.add_argument("--yes", action="store_true", help="push; otherwise only say what would be pushed")
            step.add_argument("--public", action="store_true", help="new repositories are public (default: private)")
            step.add_argument("--overwrite", action="store_true", help="replace repositories created elsewhere, too")
        step.add_argument("--json", action="store_true", help="print what was done as JSON")


def _add_stage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("system", help="folder, Hub repository or style")
    parser.add_argument("--namespace", required=True, help="user or organisation on the Hub")
    parser.add_argument("--name", required=True, help="of the system; the parts are NAME-Role and NAME-Outerlinks")
    parser.add_argument("--output", required=True, help="folder to stage in")
    parser.add_argument("--replace", action="store_true", help="replace what was staged there before")
    parser.add_argument("--question", default=Options.question, help="sample question of the cards and the check")
    add_input_argument(parser)
    parser.add_argument("--collection", help="title of the collection (default: by style)")
    parser.add_argument(
        "--licence", default=Options.licence, help="for the cards (default: what the base models' cards say)"
    )
    parser.add_argument(
        "--release-layout", "--legacy", action="store_true", help="add the public release's .pt files and manifests"
    )
    parser.add_argument(
        "--with-weights",
        action="store_true",
        help="copy the weights of agents from the Hub (default: these are named where they are, at their commits)",
    )
    parser.add_argument("--self-contained", action="store_true", help="the composite holds its agents and links")
    parser.add_argument(
        "--base-model", action="append", default=[], metavar="ROLE=ORG/NAME", help="what an agent was made of"
    )
    parser.add_argument("--authors", nargs="+", default=[], metavar="NAME", help="of the system, for the cards")
    parser.add_argument("--code", metavar="URL", help="where the code is developed, for the cards")
    parser.add_argument("--datasets", nargs="+", default=[], metavar="ORG/NAME", help="that the links learned from")
    parser.add_argument(
        "--results", nargs="+", default=[], metavar="FILE", help="from `recursivemas evaluate --output`"
    )
    parser.add_argument("--space", action="store_true", help="add a Space: the page of `recursivemas app`")


def _options(arguments: argparse.Namespace) -> Options:
    base_models = {}
    for assignment in arguments.base_model:
        role, _, model = assignment.partition("=")
        if not model:
            raise InputError(
                "A base model needs its role.", where="--base-model", found=assignment, expected="ROLE=ID"
            )
        base_models[role] = model
    names = {field.name for field in dataclasses.fields(Options)} - {"base_models", "question"}
    return Options(
        **{name: getattr(arguments, name) for name in names},
        base_models=base_models,
        question=add_inputs(arguments.question, arguments.input),
    )


def run(arguments: argparse.Namespace) -> int:
    report: dict = {}
    staged = getattr(arguments, "staged", None) or arguments.output
    failed = False

    def tell(*lines: str) -> None:
        if not arguments.json and lines:
            print(*lines, sep="\n")

    if arguments.step in ("stage", "all"):
        plan = stage(arguments.system, staged, _options(arguments), arguments.replace)
        report["staged"] = [repository.id for repository in plan.repositories]
        tell(f"staged in {staged}:", *(f"  {repository.id}: {repository.note}" for repository in plan.repositories))
    if arguments.step in ("check", "all"):
        findings = check(staged)
        report["problems"] = {finding.repository.id: finding.problems for finding in findings}
        report["base_models"] = {finding.repository.id: finding.base_models for finding in findings}
        tell("checked:")
        for finding in findings:
            tell(f"  {finding.repository.id}: {'problems' if finding.problems else 'right'}")
            tell(*(f"    {problem}" for problem in finding.problems))
            tell(*(f"    with {base} out of this machine's Hub cache" for base in finding.base_models))
        failed = any(report["problems"].values())
    if arguments.step in ("push", "all") and not failed:
        steps = push(staged, arguments.yes, arguments.public, arguments.overwrite)
        report["pushed" if arguments.yes else "would push"] = [dataclasses.asdict(step) for step in steps]
        tell("pushed:" if arguments.yes else "nothing was pushed; with --yes this would be:")
        tell(*(f"  {step.action} {step.target}: {step.detail}" for step in steps))
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    return int(failed)
