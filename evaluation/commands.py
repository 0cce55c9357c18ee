"""What commands share: the arguments that choose a system, its tools, a progress bar."""

import argparse
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..agent_options_recursivemas import ROLE_OPTIONS, validate_place
from ..configuration_recursivemas import MODE, RUN_FIELDS, SETTLING_FIELDS
from ..errors_recursivemas import InputError
from ..fields_recursivemas import ANYTHING, Kind, validate_field, validate_fields, whole
from ..files_recursivemas import parse_json
from ..folders_recursivemas import is_unused
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import Question, as_inputs
from ..runs_recursivemas import AUTO
from ..system_loader import ROOT, load_mas_system
from ..tasks import TASKS
from ..toolbox.python import python_tool
from ..toolbox.search import provider_here, search_tool
from ..tools_recursivemas import Tools, calculator
from .metrics import JUDGES

# Tools that need nothing: name -> tags and their functions, see `RecursiveMASModel.solve`.
TOOLS: dict[str, Tools] = {"calculator": {"python": calculator}}
TOOL_NAMES = (*TOOLS, "python", "search", "none")

# What the options of commands may be.
LIMITS = {
    "rounds": RUN_FIELDS["num_rounds"],
    "max_rounds": SETTLING_FIELDS["max_rounds"],
    "latent_steps": RUN_FIELDS["latent_steps"],
    "task": RUN_FIELDS["task"],
    "mode": MODE,
    "batch_size": whole(1, 1_000_000),
    "max_new_tokens": whole(1, 1_000_000),
    "num_questions": whole(1, 1_000_000),
    "num_rows": whole(1, 1_000_000),
    "seed": whole(-(2**63), 2**63 - 1),
}

SMALL_AGENT = 10_000_000  # parameters


def add_system_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """The arguments that say which system to load and where, and how it answers; of `several`, a list or `None`."""
    what = "folder, Hub repository, small/NAME or style"
    if several:
        parser.add_argument("--system", action="append", help=f"{what}; repeatable (default: those that ship)")
    else:
        parser.add_argument("--system", default=str(ROOT), help=f"{what} (default: the shipped one)")
    parser.add_argument("--dataset", default="math500", help="of a released system: chooses links and settings")
    parser.add_argument("--device", help="for example cuda (default: the CPU)")
    parser.add_argument("--dtype", default="auto", help="of the agents (default: as stored, or what computes faster)")
    parser.add_argument(
        "--loading",
        metavar="JSON",
        help='how agents are loaded, for all or by role: {"attn_implementation": {"solver": "eager"}}',
    )
    parser.add_argument("--batch-size", type=int, default=32, help="questions that run side by side (default: 32)")
    parser.add_argument("--latent-steps", type=int, help="latent steps of a rollout (default: the system's)")
    parser.add_argument("--max-new-tokens", type=int, help="most tokens of an answer (default: the system's)")
    parser.add_argument(
        "--tools",
        nargs="+",
        action=ToolNames,
        metavar="TOOL",
        help=f"answer the calls in what the system writes: {', '.join(TOOL_NAMES)} (default: those declared by roles)",
    )
    parser.add_argument("--allow-code", action="store_true", help="let programs that the system writes run")
    parser.add_argument("--search-index", help="what the tool search looks into, see recursivemas index")
    parser.add_argument("--task", help="default, math, choice, code or reasoning (default: the system's)")
    parser.add_argument(
        "--override", action="append", default=[], metavar="ROLE=FOLDER",
        help="a locally trained folder in the place of a role's, or of outer_links; repeatable",
    )  # fmt: skip
    add_trust_argument(parser)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """The argument that says whose agent's own code may run; nobody is asked on the terminal."""
    parser.add_argument(
        "--trust-remote-code",
        action="append",
        default=[],
        metavar="ROLE",
        help="run the code that this role's agent brings (default: none; repeatable)",
    )


def number_of_rounds(text: str) -> int | str:
    """What --rounds says: a number, or "auto"."""
    return text if text == AUTO else int(text)


def add_data_arguments(parser: argparse.ArgumentParser, num_questions: int, seed: int = 20000) -> None:
    """The arguments that say which questions are asked, by default so many, and when their answers are right."""
    parser.add_argument("--data", default="arithmetic", help=f"a JSON-lines file, or a task: {', '.join(TASKS)}")
    parser.add_argument(
        "--num-questions", type=int, default=num_questions, help=f"how many (default: {num_questions})"
    )
    parser.add_argument("--seed", type=int, default=seed, help=f"of the generated questions (default: {seed})")
    parser.add_argument("--levels", type=int, nargs="+", help="of the generated questions (default: all of the task)")
    parser.add_argument("--metric", choices=JUDGES, help="when an answer is right (default: the task's own, or exact)")


def add_output_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """The arguments that say where the output goes, and whether it goes on where a run was stopped or begins anew."""
    parser.add_argument("--output", type=Path, help=what)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--resume", action="store_true", help="go on where a run was stopped: the same command, with --output"
    )
    add_replace_argument(ways)


class ToolNames(argparse.Action):
    """The names behind --tools, as one text; what follows them are questions, where a command takes any."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        names = list(itertools.takewhile(TOOL_NAMES.__contains__, values))
        rest = values[len(names) :]
        if not names or (rest and not hasattr(namespace, "questions")):
            parser.error(f"argument --tools: invalid choice: {rest[0]!r} (choose from {', '.join(TOOL_NAMES)})")
        namespace.tools, namespace.more_questions = " ".join(names), rest


def named_tools(names: str | None, *, allow_code: bool = False, search_index: str | None = None) -> Tools | None:
    """The tools of some names of `TOOL_NAMES`, a space between two.

    Args:
        names: `None` for those that roles declare, "none" for none.
        allow_code: whether the user lets model-written code run, which `python` needs.
        search_index: what `search` looks into; else it asks Tavily where its key is set.

    Raises:
        InputError: a name that is none, code that nobody allowed, or an index that is not there.
    """
    if names is None:
        return None
    tools: Tools = {}
    chosen = [name for name in dict.fromkeys(names.split()) if name != "none"]
    for name in chosen:
        tool = _tool(name, f"--tools {name}", "docs/tools.md says what holds it", allow_code, search_index)
        tools[name] = tool
        if name in TOOLS and "python" not in chosen:  # else that tag is Python's own
            tools |= TOOLS[name]
    return tools


def _tool(name: str, where: str, hint: str, allow_code: bool, search_index: str | None) -> Callable[[str], str]:
    """The tool of a name; the one place that says which there are, and when code may run.

    Raises:
        InputError: a name that is none, code that nobody allowed, or an index that is not there.
    """
    if name == "calculator":
        return calculator
    if name == "search":
        return search_tool(provider_here(search_index))
    if name != "python":
        known = ", ".join(TOOL_NAMES)
        raise InputError("Commands do not know a tool.", where=where, found=name, expected=known, hint=hint)
    if not allow_code:
        hint = f"add --allow-code; {hint}"
        raise InputError(
            "The tool python runs code that a model writes, which nobody allowed.", where=where, hint=hint
        )
    return python_tool()


def declared_tools(
    declared: Mapping[str, Iterable[str]], *, allow_code: bool = False, search_index: str | None = None
) -> Tools:
    """The tools that roles declare (`tools` of a configuration), by their tags.

    Raises:
        InputError: one cannot run: code that nobody allowed, nothing to search, or a tag that commands do not know.
    """
    tools: Tools = {}
    for role, tag in ((role, tag) for role, tags in declared.items() for tag in tags):
        where, hint = f"tools of {role}", "--tools none runs the system without; docs/tools.md"
        if tag == "search" and provider_here(search_index) is None:
            hint = f"add --search-index, or set TAVILY_API_KEY; {hint}"
            raise InputError("A role's tool has nothing to search.", where=where, found=tag, hint=hint)
        tools[tag] = _tool(tag, where, hint, allow_code, search_index)
    return tools


def load_from_arguments(arguments: argparse.Namespace, system: str | None = None) -> RecursiveMASModel:
    """The system that `add_system_arguments` describes; of several, this one.

    Its `tools` are those that its roles declare, if any.
    """
    validate_arguments(arguments)
    mas = load_mas_system(
        arguments.system if system is None else system,
        arguments.dataset,
        device=arguments.device,
        dtype=arguments.dtype,
        trust_remote_code=dict.fromkeys(arguments.trust_remote_code, True),
        override=named_texts(arguments.override, "--override", "ROLE=FOLDER"),
        **loading_options(arguments.loading),
    )
    if mas.config.tools and arguments.tools is None:
        chosen = {"allow_code": arguments.allow_code, "search_index": arguments.search_index}
        mas.tools = declared_tools(mas.config.tools, **chosen)
    limit_threads(mas)
    return mas


def loading_options(text: str | None) -> dict[str, Any]:
    """What `--loading` says, for `load_mas_system`.

    Raises:
        InputError: no JSON object, or a name that is not one of how agents are loaded.
    """
    if text is None:
        return {}
    content = parse_json(text, InputError, "--loading")
    own = {"dtype", "trust_remote_code"}  # have options of their own
    names = [name for name in (*ROLE_OPTIONS, "offload", "agent_kwargs") if name not in own]
    validate_fields(content, dict.fromkeys(names, ANYTHING), "--loading", InputError)
    return content


def solve_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_system_arguments` says of answering, for `RecursiveMASModel.solve`."""
    names = ("latent_steps", "task", "batch_size", "max_new_tokens")
    chosen = {"allow_code": arguments.allow_code, "search_index": arguments.search_index}
    return {name: getattr(arguments, name) for name in names} | {"tools": named_tools(arguments.tools, **chosen)}


def add_replace_argument(parser: argparse._ActionsContainer) -> None:
    """The argument without which nothing that is there is overwritten, see `validate_output`."""
    parser.add_argument("--replace", action="store_true", help="overwrite what an earlier command wrote there")


def validate_output(
    output: str | os.PathLike, replace: bool = False, besides: tuple[str, ...] = (), where: str = "--output"
) -> None:
    """Checks before any work that an output can be written, and that nothing is lost by it.

    Args:
        output: the folder or file.
        replace: what is there may be overwritten.
        besides: names in the folder that are not overwritten.
        where: the argument's name, for messages.

    Raises:
        InputError: the output is there, or cannot be written.
    """
    output = Path(output)
    if not replace and not is_unused(output, besides):
        holds = ", ".join(sorted(path.name for path in output.iterdir())[:5]) if output.is_dir() else "a file"
        raise InputError(
            "The output is there already.",
            where=f"{where} {output}",
            found=holds,
            hint="choose another, remove it, or say --replace to overwrite it",
        )
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise InputError("The output cannot be written.", where=f"{where} {output}", found=f"{there} is read-only")
    if there != output.absolute() and not there.is_dir():
        raise InputError("The output cannot be written.", where=f"{where} {output}", found=f"{there} is a file")


def validate_file(output: Path | None, replace: bool = False, beside: tuple[str, ...] = ()) -> None:
    """`validate_output` for a file, if any, and those of its name with other endings that are written `beside` it.

    Raises:
        InputError: one is there, or cannot be written.
    """
    for path in [output, *(output.with_suffix(ending) for ending in beside)] if output else []:
        if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
            found = "a folder" if path.is_dir() else "a file that is read-only"
            raise InputError("The output cannot be written.", where=f"--output {path}", found=found)
        validate_output(path, replace)


def validate_arguments(arguments: argparse.Namespace, limits: Mapping[str, Kind] = {}) -> None:
    """Judges what a command line says of a run, before anything is loaded or fetched; `limits` of a command's own.

    Raises:
        InputError: a value that cannot be used; it names the option.
    """
    for name, kind in {**LIMITS, **limits}.items():
        given = getattr(arguments, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None:
                validate_field(value, kind, f"--{name.replace('_', '-')}", InputError)
    for name in ("device", "dtype"):
        validate_place(getattr(arguments, name, None), name)
    system = getattr(arguments, "system", "x")
    if not all(str(name).strip() for name in (system if isinstance(system, list) else [system])):
        raise InputError("There is no system without a name.", where="--system")


def add_input_argument(parser: argparse.ArgumentParser) -> None:
    """The argument that adds fields to questions."""
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=TEXT", help="a field of every question; repeatable"
    )


def add_inputs(question: Question, assignments: Iterable[str]) -> Question:
    """A question with the fields that `--input` gives; what the question says itself stays.

    Raises:
        InputError: an assignment has no name or no text.
    """
    given = named_texts(assignments, "--input", "NAME=TEXT")
    return {**as_inputs(question), **given, **as_inputs(question)} if given else question


def named_texts(assignments: Iterable[str], where: str, form: str) -> dict[str, str]:
    """Name -> text of arguments of the form NAME=TEXT.

    Raises:
        InputError: an argument has no name or no text.
    """
    given = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if not (name and text):
            raise InputError(f"This is not given as {form}.", where=where, found=assignment)
        given[name] = text
    return given


def inputs_of(row: Mapping[str, Any], fields: Iterable[str], columns: Mapping[str, str] = {}) -> dict[str, Any]:
    """What a row says in the fields of a system; it may hold more than that. `columns` is field -> its column."""
    found = {name: row.get(columns.get(name, name)) for name in fields}
    return {name: value for name, value in found.items() if value is not None}


def limit_threads(mas: RecursiveMASModel) -> None:
    """One thread for agents so small that threads only wait for each other (50 times as slow on busy cores)."""
    if max(agent.num_parameters() for agent in mas.agents.values()) < SMALL_AGENT:
        torch.set_num_threads(1)


def progress(total: int, description: str, unit: str = "question") -> Any:
    """A progress bar (of tqdm) on standard error, for what takes more than two seconds."""
    return logging.tqdm(total=total, desc=description, unit=unit, leave=False, delay=2)
