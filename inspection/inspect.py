"""See what links do: gradients of each round, fidelity of each link, and what agents say in latents.

gradients: norm of the loss's gradient for each link in each round of its use, the rounds told apart; and how much of
each is lost when they are added up in bfloat16, the last round first. fidelity: how near a link's output is to the
embedding that it stands for (share of positions whose nearest token is the right one, cosine, length relative to the
embedding). thoughts: the latents that travel while questions are answered, read as their nearest tokens in the
receiver's vocabulary.

Examples:
  recursivemas inspect gradients --data arithmetic --rounds 4 --plot gradients.png
  recursivemas inspect fidelity --system mine --data rows.jsonl --json
  recursivemas inspect thoughts --rounds 2 --questions "3+5*2-4" "9-4*3+1*5"
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from ..agent_recursivemas import RecursiveMASAgent
from ..errors_recursivemas import InputError
from ..evaluation.commands import add_input_argument, add_inputs, validate_arguments
from ..evaluation.plots import plot_fidelity, plot_gradients, plot_latents
from ..links_recursivemas import AnyOuterLink
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import Question, as_text
from ..system_loader import load_mas_system
from ..tasks import TASKS
from ..training.data import Encoder, Example, read_rows, refuse_bad_rows
from ..training.objectives import IGNORE_INDEX, OuterObjective, OuterSettings, text_states
from ..training.start import shared_tokens
from .trace import read_latents

PLOTS: dict[str, Callable[[Any, Path], None]]
PLOTS = {"gradients": plot_gradients, "fidelity": plot_fidelity, "thoughts": plot_latents}


BATCH = 32  # rows of one loss


class UntiedOuterObjective(OuterObjective):
    """The outer objective with a copy of every link for every round, so that the rounds' gradients are told apart.

    The gradient of a link is the sum of those of its copies.
    """

    def __init__(self, mas: RecursiveMASModel, names: list[str], inner: list[str], settings: OuterSettings) -> None:
        super().__init__(mas, names, inner, settings)
        self.rounds = range(1, self.num_rounds + 1)
        links = [*self.outer_links.items(), *self.inner_links.items()]
        self.copies = {(name, r): copy.deepcopy(link) for name, link in links for r in self.rounds}

    def inner_link(self, role: str, round_index: int) -> nn.Module:
        return self.copies.get((role, round_index), self.mas.agents[role].inner_link)

    def outer_link(self, name: str, round_index: int) -> AnyOuterLink:
        return cast(AnyOuterLink, self.copies.get((name, round_index), self.mas.outer_links[name]))


def _flat_gradient(link: nn.Module) -> torch.Tensor | None:
    """All gradients of a link as one vector in float32; `None` where no gradient arrived."""
    parameters = list(link.parameters())
    if all(parameter.grad is None for parameter in parameters):
        return None
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().float() for p in parameters])


def gradients(
    mas: RecursiveMASModel, examples: list[Example], settings: OuterSettings
) -> dict[str, dict[str, dict[int, float]]]:
    """Gradient norms of each link by the round that it sent in.

    Args:
        mas: the system.
        examples: with every part of the schedule.
        settings: of the outer objective.

    Returns:
        Link -> {"norms": {round: norm}, "lost_in_bfloat16": {round: share}}, means over the batches: the share of a
        round's gradient that rounding eats when it is added to the sum of the later rounds' in bfloat16 (1 and more:
        nothing is left).
    """
    inner = [role for role in mas.agents if list(mas.agents[role].inner_link.parameters())]
    objective = UntiedOuterObjective(mas, list(mas.outer_links), inner, settings)
    norms: dict[str, dict[int, list[float]]] = {}
    lost: dict[str, dict[int, list[float]]] = {}
    for start in range(0, len(examples), BATCH):
        for link in objective.copies.values():
            link.zero_grad(set_to_none=True)
        objective(examples[start : start + BATCH])["loss"].backward()
        for name in (*objective.inner_links, *objective.outer_links):
            total: torch.Tensor | None = None
            for r in reversed(objective.rounds):
                gradient = _flat_gradient(objective.copies[name, r])
                if gradient is None:
                    continue
                norm, before = gradient.norm(), total
                norms.setdefault(name, {}).setdefault(r, []).append(float(norm))
                total = gradient.bfloat16() if before is None else before + gradient.bfloat16()
                if before is not None:
                    error = (total.float() - before.float() - gradient).norm() / norm.clamp_min(1e-38)
                    lost.setdefault(name, {}).setdefault(r, []).append(float(error))
    return {
        name: {"norms": _means(by_round), "lost_in_bfloat16": _means(lost.get(name, {}))}
        for name, by_round in norms.items()
    }


def _means(by_round: dict[int, list[float]]) -> dict[int, float]:
    return {r: sum(values) / len(values) for r, values in sorted(by_round.items())}


@torch.no_grad()
def _closeness(agent: RecursiveMASAgent, vectors: torch.Tensor, token_ids: torch.Tensor) -> dict[str, float]:
    """How near vectors (n, d) are to the embeddings of tokens (n,)."""
    wanted = agent.embed(token_ids).float()
    vectors = vectors.float()
    return {
        "positions": len(token_ids),
        "nearest_token": float((agent.nearest_token_ids(vectors) == token_ids).float().mean()),
        "cosine": float(functional.cosine_similarity(vectors, wanted, dim=-1).mean()),
        "scale": float((vectors.norm(dim=-1) / wanted.norm(dim=-1)).mean()),
    }


@torch.no_grad()
def fidelity(mas: RecursiveMASModel, examples: list[Example], num_rounds: int) -> dict[str, dict[str, float]]:
    """Closeness of every link's output to the embedding that it stands for, on the agents' target texts.

    An inner link stands for the agent's next token, an outer link for the receiver's token with the same text; tokens
    that the receiver does not have are left out.
    """
    results = {}
    for role, agent in mas.agents.items():
        parts = [example.parts[1 + index % num_rounds, role] for index, example in enumerate(examples)]
        states = text_states(agent, parts)
        valid = states.labels != IGNORE_INDEX
        labels, thoughts = states.labels[valid], agent.inner_link(states.hidden_states[valid])
        results[role] = _closeness(agent, thoughts, labels)
        for link in mas.topology.outgoing(role):
            target = mas.agents[link.target]
            partner = dict(zip(*shared_tokens(agent, target), strict=True))
            known = torch.tensor([int(label) in partner for label in labels])
            ids = torch.tensor([partner[int(label)] for label in labels[known]], device=target.device)
            sent = mas.outer_links[link.name](thoughts[known]).to(target.device)
            results[link.name] = _closeness(target, sent, ids)
    return results


def thoughts(mas: RecursiveMASModel, questions: list[Question], **solve_arguments: Any) -> list[dict[str, Any]]:
    """What travelled while questions were answered: for each "question" (as one text), "answer" and "latents"."""
    solutions = mas.solve(questions, return_latents=True, tools={}, **solve_arguments)
    return [
        {"question": as_text(question), "answer": each.answer, "latents": read_latents(mas, each.latents or {})}
        for question, each in zip(questions, solutions, strict=True)
    ]


def _examples(arguments: argparse.Namespace, mas: RecursiveMASModel, num_rounds: int) -> list[Example]:
    if not arguments.data:
        raise InputError("There is no data.", where="--data", expected=f"a file of rows, or one of {', '.join(TASKS)}")
    source = arguments.data
    if source in TASKS:
        source = TASKS[source].generate(arguments.num_rows, seed=arguments.seed)
    encoder, turns = Encoder(mas, arguments.task), mas.topology.schedule(num_rounds)
    fields = encoder.input_fields(turns)
    rows, report = read_rows(source, mas.topology.roles, num_rounds, limit=arguments.num_rows, fields=fields)
    examples = encoder.examples(rows, [turns], report)
    refuse_bad_rows(report)
    return examples


def _table(kind: str, results: Any) -> str:
    lines = []
    if kind == "gradients":
        rounds = sorted({r for entry in results.values() for r in entry["norms"]})
        lines.append("gradient norm".ljust(28) + "".join(f"round {r}".rjust(11) for r in rounds))
        for key, form in (("norms", ".2e"), ("lost_in_bfloat16", ".0%")):
            if key == "lost_in_bfloat16":
                lines.append("lost in bfloat16")
            for name, entry in results.items():
                cells = [format(entry[key][r], form) if r in entry[key] else "" for r in rounds]
                lines.append(name.ljust(28) + "".join(cell.rjust(11) for cell in cells))
    elif kind == "fidelity":
        lines.append("link".ljust(28) + "nearest token   cosine    scale  positions")
        for name, e in results.items():
            values = f"{e['nearest_token']:13.3f}{e['cosine']:9.4f}{e['scale']:9.3f}{e['positions']:11d}"
            lines.append(name.ljust(28) + values)
    else:
        for result in results:
            lines.append(f"{result['question']}  ->  {result['answer']}")
            for said in result["latents"]:
                least = f"{min(said['cosines']):.3f}" if said["cosines"] else "-"
                place = f"  round {said['round']}, {said['source']} to {said['target']}"
                lines.append(f"{place:<42} {said['text']!r}  (least cosine {least})")
    return "\n".join(lines)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=PLOTS)
    parser.add_argument("--questions", nargs="+", default=[], metavar="QUESTION", help="of `thoughts`")
    add_input_argument(parser)
    parser.add_argument("--system", help="folder or Hub repository (default: the system of this repository)")
    parser.add_argument("--data", help=f"training rows (see docs/training.md), or one of {', '.join(TASKS)}")
    parser.add_argument("--num-rows", type=int, default=64, help="rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=50_000, help="of generated rows (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="recursion rounds (default: the system's)")
    parser.add_argument("--latent-steps", type=int, help="latent steps (default: the system's)")
    parser.add_argument("--task", help="chooses the prompts (default: the system's)")
    parser.add_argument("--latents", choices=("teacher", "rollout"), default="teacher", help="of `gradients`")
    parser.add_argument("--supervise", choices=("decoder", "receivers"), default="decoder", help="of `gradients`")
    parser.add_argument("--earlier-rounds-weight", type=float, default=0.0, help="of `gradients`")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--plot", type=Path, help="draw the result into this file")


def run(arguments: argparse.Namespace) -> int:
    validate_arguments(arguments)
    mas = load_mas_system(arguments.system) if arguments.system else load_mas_system()
    num_rounds = arguments.rounds or mas.config.most_rounds
    results: Any
    if arguments.what == "thoughts":
        questions = [add_inputs(question, arguments.input) for question in arguments.questions]
        results = thoughts(
            mas, questions, num_rounds=num_rounds, latent_steps=arguments.latent_steps, task=arguments.task
        )
    else:
        examples = _examples(arguments, mas, num_rounds)
        if arguments.what == "fidelity":
            results = fidelity(mas, examples, num_rounds)
        else:
            names = ("latent_steps", "supervise", "earlier_rounds_weight", "latents")
            settings = OuterSettings(num_rounds, **{name: getattr(arguments, name) for name in names})
            results = gradients(mas, examples, settings)
    print(json.dumps(results) if arguments.json else _table(arguments.what, results))
    if arguments.plot:
        PLOTS[arguments.what](results, arguments.plot)
    return 0
