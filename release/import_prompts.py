r"""Make a prompt set out of your own clone of the public RecursiveMAS code.

The released links were trained with the prompts of that code, which are its authors' text. This command calls the
clone's prompt builders (prompts.py) with markers in place of question and latents, checks on further questions that
the templates reproduce what the builders return, character for character, and writes them as a prompt set. It runs
the clone's code; nothing of it is copied anywhere but into the file you name.

Two things a template cannot say, because a builder decides them for each question: the interface of a programming
task (see --code-type and --function-name), and that a multiple-choice question which already asks for an option is
not asked again.

Examples:
  recursivemas import-prompts ~/RecursiveMAS --style sequential --output prompts.json
  recursivemas import-prompts ~/RecursiveMAS --style mixture --code-type function --output mixture.json
  recursivemas import-prompts ~/RecursiveMAS --style deliberation --tasks reasoning --output reasoning.json
  recursivemas solve --system sequential_light --prompts prompts.json "What is 3+5?"
"""

import argparse
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from ..configuration_recursivemas import RecursiveMASConfig
from ..errors_recursivemas import CheckpointError, InputError
from ..evaluation.commands import add_replace_argument, validate_output
from ..folders_recursivemas import write_text
from ..prompts_recursivemas import TASKS, slot_marker, validate_prompts
from ..system_loader import read_style, released_styles

QUESTION = "<|question|>"
# style -> "design" (the public code's name for it) and "roles": role -> names of its prompt builders, "first" and
# "feedback" (`{kind}` stands for math, code or reasoning); "slots": name of the module's constant that marks a slot ->
# the role whose latents go there; "arguments" of the builders.
STYLES = json.loads(Path(__file__).with_name("builders.json").read_text(encoding="utf-8"))
# task -> (the kind in a builder's name, questions: the first becomes the marker, on the others the template is tested)
OPTIONS = "\nA. {}\nB. {}\nC. {}\nD. {}"
PLAIN = ("\u27e6question\u27e7", r"What is $\frac{1}{2} + {x}$?", "Two lines:\n100% {}")
CHOICE = tuple(text + OPTIONS.format(*"pqrs") for text in PLAIN)
KINDS = {
    "default": ("math", PLAIN),
    "math": ("math", PLAIN),
    "choice": ("math", CHOICE),
    "code": ("code", PLAIN),
    "reasoning": ("reasoning", PLAIN),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="folder of the clone, or its prompts.py")
    parser.add_argument("--style", required=True, help=f"{', '.join(STYLES)}, or the name of a released system")
    parser.add_argument(
        "--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="which to import (default: all)"
    )
    parser.add_argument(
        "--code-type", default="complete", help="programming task: complete program or function (default: complete)"
    )
    parser.add_argument("--function-name", help="name of the function to write, with --code-type function")
    parser.add_argument("--output", type=Path, help="file to write (default: standard output)")
    add_replace_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.output is not None:
        validate_output(arguments.output, arguments.replace)
    released = released_styles()["styles"]
    style = released[arguments.style]["style"] if arguments.style in released else arguments.style
    extra = {"task_type": arguments.code_type, "fn_name": arguments.function_name}
    prompts, skipped = import_prompts(arguments.path, style, arguments.tasks, extra)
    text = json.dumps(prompts, indent=2, ensure_ascii=False)
    if arguments.output is None:
        print(text)
    else:
        write_text(arguments.output, text + "\n")
        print(f"{arguments.output}: {len(prompts)} roles, tasks {', '.join(t for t in TASKS if t not in skipped)}")
    for task in skipped:
        print(f"left out: {task} has a system text of its own; import it with --tasks {task}", file=sys.stderr)
    return 0


def import_prompts(path: Path, style: str, tasks: list[str], extra: dict[str, str | None]) -> tuple[dict, list[str]]:
    """Calls a clone's prompt builders, with `extra` as further arguments for those that know them.

    Returns:
        The prompt set, and the tasks that were left out because their system text differs from the first task's.

    Raises:
        InputError: there is no such style.
        CheckpointError: the clone has no such builders, or a template cannot reproduce what they return.
    """
    if style not in STYLES:
        raise InputError("Unknown collaboration style.", where="--style", found=style, expected=", ".join(STYLES))
    design, roles = STYLES[style]["design"], STYLES[style]["roles"]
    module = _load(path)
    systems = {task: _system(module, f"{design}_reasoning" if task == "reasoning" else design) for task in tasks}
    kept = [task for task in tasks if systems[task] == systems[tasks[0]]]
    prompts: dict[str, dict] = {}
    for role, builders in roles.items():
        prompts[role] = {"system": systems[tasks[0]]}
        for task in kept:
            kind, questions = KINDS[task]
            mas_task = "math" if task == "default" else task
            known = {**extra, **builders.get("arguments", {}), "mas_task": mas_task}
            prompts[role][task] = {
                phase: _template(module, builders[phase].format(kind=kind), builders["slots"], questions, known)
                for phase in ("first", "feedback")
                if phase in builders
            }
    fields = {"agents": {role: {"source": f"agents/{role}"} for role in roles}, "prompts": prompts}
    validate_prompts(prompts, RecursiveMASConfig(**{**read_style(style), **fields}).topology)
    return prompts, [task for task in tasks if task not in kept]


def _load(path: Path) -> ModuleType:
    """Imports the clone's prompts.py; its folder is on the import path meanwhile."""
    path = path / "prompts.py" if path.is_dir() else path
    if not path.is_file() or path.suffix != ".py":
        raise CheckpointError("There are no prompt builders.", where=path, expected="prompts.py of the public code")
    spec = importlib.util.spec_from_file_location("released_prompts", path)
    assert spec is not None and spec.loader is not None  # a file by the name of prompts.py
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise CheckpointError("The prompt builders cannot be imported.", where=path, found=found) from error
    finally:
        sys.path.remove(str(path.parent))
        for name in set(sys.modules) - before:
            del sys.modules[name]
    return module


def _system(module: ModuleType, design: str) -> str | None:
    """The system text of a design: what get_system_prompt says, else the constant SYSTEM_PROMPT."""
    if hasattr(module, "get_system_prompt"):
        return _call(module, "get_system_prompt", {"mas_design": design})
    return getattr(module, "SYSTEM_PROMPT", None)


def _call(module: ModuleType, name: str, known: dict[str, object]) -> str:
    """Calls a builder with those of the known arguments that it takes."""
    builder: Callable[..., str] | None = getattr(module, name, None)
    if builder is None:
        raise CheckpointError(
            "A prompt builder is missing.",
            where=module.__file__,
            found=", ".join(n for n in vars(module) if n.startswith("build_")) or "no builder",
            expected=name,
        )
    parameters = inspect.signature(builder).parameters
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    if unknown := [n for n in needed if n not in known]:
        raise CheckpointError(
            "A prompt builder needs an argument that is not known here.",
            where=f"{module.__file__}, {name}",
            found=", ".join(unknown),
            expected=", ".join(known),
        )
    return builder(**{n: known[n] for n in parameters if n in known})


def _template(
    module: ModuleType, name: str, slots: dict[str, str], questions: tuple[str, ...], known: dict[str, object]
) -> str:
    """A builder's prompt with our markers in it, tested on further questions."""
    markers = {getattr(module, constant, None): slot_marker(role) for constant, role in slots.items()}

    def build(question: str) -> str:
        text = _call(module, name, {**known, "question": question})
        for slot, marker in markers.items():
            text = text if slot is None else text.replace(slot, marker)
        return text

    marked, *tests = questions
    template = build(marked).replace(marked, QUESTION)
    for question in tests:
        expected, found = build(question), template.replace(QUESTION, question)
        if expected != found:
            at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(found))
            near = slice(max(0, at - 40), at + 40)
            raise CheckpointError(
                "A prompt builder does more than put the question into a fixed text.",
                where=f"{module.__file__}, {name}, question {question!r}",
                found=repr(found[near]),
                expected=repr(expected[near]),
            )
    return template
