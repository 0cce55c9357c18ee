"""See a system think: one question, every round, what each agent read, thought, sent and took.

The report holds a column for each agent and a row for each round: the prompt with its slots, the latents that were
sent (as the receiver's nearest tokens, with their cosine to these and their length), how alike they are to those of
the round before, and seconds. Beside it stand the answers over text and of the last agent alone, with what they cost.
With --output one HTML page that needs nothing else, for a browser; without, the same as text.

Examples:
  recursivemas trace "9-4*3+8-1" --rounds 3
  recursivemas trace "9-4*3+8-1" --output trace.html
  recursivemas trace --system systems/smollm2 --input facts="Ben works as a writer." "What is the job of Ben?"
  recursivemas trace "9-4*3" --json | jq '.turns[].sent[].text'
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch.nn import functional

from ..errors_recursivemas import InputError
from ..evaluation.commands import (
    add_input_argument,
    add_inputs,
    add_replace_argument,
    add_system_arguments,
    load_from_arguments,
    progress,
    solve_arguments,
    validate_file,
)
from ..folders_recursivemas import write_text
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import Question, Slot, as_inputs, as_text, template_for
from ..runs_recursivemas import RunSettings
from ..solutions_recursivemas import Solution

WAYS = ("latent", "text", "alone")
PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


@torch.no_grad()
def read_latents(mas: RecursiveMASModel, latents: dict[tuple[int, str, str], torch.Tensor]) -> list[dict[str, Any]]:
    """What travelled, read as tokens.

    Args:
        mas: the system.
        latents: (round, source, target) -> (positions, width of the target), as in `Solution.latents`.

    Returns:
        For each hand-over "round", "source", "target", "text" (of the receiver's nearest tokens), "tokens", "cosines"
        (to these tokens' embeddings), "norms", and "similarity", the cosine between the means of these latents and of
        those of the round before (`None` in the first, and where nothing was sent).
    """
    entries = []
    for (round_index, source, target), sent in latents.items():
        agent = mas.agents[target]
        ids = agent.nearest_token_ids(sent)
        cosines = functional.cosine_similarity(sent.float(), agent.embed(ids).float(), dim=-1)
        before = latents.get((round_index - 1, source, target))
        similarity = None
        if before is not None and len(before) and len(sent):
            means = (before.float().mean(0), sent.float().mean(0))
            similarity = round(float(functional.cosine_similarity(*means, dim=0)), 4)
        entries.append(
            {
                "round": round_index,
                "source": source,
                "target": target,
                "text": agent.tokenizer.decode(ids, clean_up_tokenization_spaces=False),
                "tokens": [agent.tokenizer.decode([index]) for index in ids.tolist()],
                "cosines": [round(value, 4) for value in cosines.tolist()],
                "norms": [round(value, 3) for value in sent.float().norm(dim=-1).tolist()],
                "similarity": similarity,
            }
        )
    return entries


def trace(
    mas: RecursiveMASModel, question: Question, ways: tuple[str, ...] = WAYS, **arguments: Any
) -> dict[str, Any]:
    """One question, looked at closely.

    Args:
        mas: the system.
        question: as `solve` takes it.
        ways: what the answer is compared with: "latent" first, "text" and "alone" where they are wanted.
        arguments: of `solve`.

    Returns:
        "question", "inputs", "roles" (with "model" and "hidden_size"), "num_rounds", "decoding_role", "turns" (a
        list of {"round", "role", "prompt", "sent", "wrote", "seconds"}; a piece of a prompt is {"text"} or {"slot",
        "positions"}) and "ways" (way -> {"text", "answer", "seconds", "usage"}).

    Raises:
        InputError, ConfigError: an argument cannot be used; before any compute.
    """
    solved = {}
    for way in ways:
        started = time.perf_counter()
        (solution,) = mas.solve(question, mode=way, return_latents=way == "latent", **arguments)
        solved[way] = (solution, time.perf_counter() - started)
    return trace_of(mas, question, solved, **arguments)


def trace_of(
    mas: RecursiveMASModel, question: Question, solved: dict[str, tuple[Solution, float]], **arguments: Any
) -> dict[str, Any]:
    """What `trace` returns, of a question that is answered already.

    Args:
        mas, question: what was asked what.
        solved: way -> solution and seconds; that over latents was asked with `return_latents`.
        arguments: of `solve`, as they were then.
    """
    found: dict[str, Any] = {}
    for way, (solution, seconds) in solved.items():
        usage = {name: value for name, value in solution.usage.items() if name != "seconds"}
        found[way] = {"text": solution.text, "answer": solution.answer, "seconds": round(seconds, 4), "usage": usage}
    latent, messages = solved["latent"][0], (solved["text"][0].messages or {} if "text" in solved else {})
    settings = mas.config.run_settings(
        num_rounds=arguments.get("num_rounds"), latent_steps=arguments.get("latent_steps"), task=arguments.get("task")
    )
    read = read_latents(mas, latent.latents or {})
    turns = []
    for round_index, role in settings.turns(mas.topology):
        last = (round_index, role) == settings.turns(mas.topology)[-1]
        taken = latent.usage["seconds"].get("answer" if last else f"round {round_index}, {role}", 0.0)
        turns.append(
            {
                "round": round_index,
                "role": role,
                "prompt": _prompt(mas, settings, question, round_index, role, read),
                "sent": [entry for entry in read if (entry["round"], entry["source"]) == (round_index, role)],
                "wrote": latent.text if last else None,
                "over_text": found.get("text", {}).get("text") if last else messages.get((round_index, role)),
                "seconds": round(taken, 4),
            }
        )
    return {
        "question": as_text(question),
        "inputs": as_inputs(question),
        "system": mas.config.name_or_path or "",
        "roles": [
            {"role": role, "model": agent.model.config.model_type, "hidden_size": agent.hidden_size}
            for role, agent in ((role, mas.agents[role]) for role in mas.topology.roles)
        ],
        "num_rounds": settings.num_rounds,
        "decoding_role": mas.topology.decoding_role,
        "turns": turns,
        "ways": found,
    }


def _prompt(
    mas: RecursiveMASModel,
    settings: RunSettings,
    question: Question,
    round_index: int,
    role: str,
    read: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The pieces of a prompt: texts, and slots with how many positions fill them."""
    incoming = {
        entry["source"]: len(entry["tokens"])
        for link in mas.topology.incoming(role, round_index)
        for entry in read
        if (entry["round"], entry["source"], entry["target"]) == (round_index - link.feedback, link.source, role)
    }
    system, template = template_for(settings.prompts, role, settings.task, settings.phase(round_index))
    pieces = mas.renderers[role].pieces(system, template, question)
    return [
        {"slot": piece.role, "positions": incoming.get(piece.role, 0)}
        if isinstance(piece, Slot)
        else {"text": mas.agents[role].tokenizer.decode(piece, clean_up_tokenization_spaces=False)}
        for piece in pieces
    ]


def as_page(found: dict[str, Any]) -> str:
    """A trace as one HTML page without scripts, fonts or files of others."""
    return PAGE.get_template("trace.html").render(found)


def as_lines(found: dict[str, Any]) -> str:
    """A trace as text for a terminal."""
    lines = [found["question"], ""]
    for turn in found["turns"]:
        lines.append(f"round {turn['round']}, {turn['role']}  ({turn['seconds']:.3f} s)")
        for sent in turn["sent"]:
            alike = "" if sent["similarity"] is None else f", {sent['similarity']:.2f} like the round before"
            least = f", least cosine {min(sent['cosines']):.2f}" if sent["cosines"] else ""
            lines.append(f"    to {sent['target']}: {sent['text']!r}  ({len(sent['tokens'])} positions{least}{alike})")
        if turn["wrote"] is not None:
            lines.append(f"    writes: {turn['wrote']}")
    lines.append("")
    for way, of in found["ways"].items():
        usage = of["usage"]
        cost = f"{usage['latent_positions']} latent positions, {usage['new_tokens']} tokens written"
        lines.append(f"{way:<7} {of['seconds']:7.3f} s  {cost:<45} {of['text']}")
    return "\n".join(lines)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question")
    add_input_argument(parser)
    parser.add_argument("--rounds", type=int, help="recursion rounds (default: the system's)")
    parser.add_argument("--without-comparison", action="store_true", help="latents only: no text, no agent alone")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="write the page there")
    add_replace_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the trace as JSON")
    add_system_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    validate_file(arguments.output, arguments.replace)
    mas = load_from_arguments(arguments)
    ways = WAYS[:1] if arguments.without_comparison else WAYS
    question = add_inputs(arguments.question, arguments.input)
    options = {**solve_arguments(arguments), "num_rounds": arguments.rounds}
    with progress(1, "Tracing") as bar:
        found = trace(mas, question, ways, **options)
        bar.update()
    if arguments.output:
        try:
            write_text(arguments.output, as_page(found))
        except OSError as error:
            raise InputError("A page cannot be written.", where=arguments.output, found=error) from error
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
    elif arguments.output:
        print(f"written to {arguments.output}")
    else:
        print(as_lines(found))
    return 0
