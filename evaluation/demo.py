"""Show a shipped system at work: what travelled, the answers, and what latents cost against text.

Without --system the small sequential one, which needs no download. `--system smollm2` is two SmolLM2-135M-Instruct, a
reader that sees some facts and an answerer that does not; the model is fetched first where it is not here. Its links
are untrained; `--system smollm2-fixed` thinks sixteen steps, as the public release does, over a trained link.

Examples:
  recursivemas demo
  recursivemas demo "9-4*3+8-1"
  recursivemas demo --system smollm2
"""

import argparse
import time
from statistics import mean
from typing import Any

from ..errors_recursivemas import InputError
from ..fetch import fetch_model, model_of
from ..solutions_recursivemas import Solution
from ..system_loader import load_mas_system, small_systems
from ..tasks import arithmetic, split_facts
from .commands import inputs_of, limit_threads, progress
from .measure import measure

ROUNDS = (1, 2, 3)
REPEATS = 5
REAL = {path.name: path for name, path in small_systems().items() if model_of(name)}  # of models that are fetched
SHOWN, COUNTED = 3, 12  # of its questions


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("questions", nargs="*", help="digit arithmetic, read from left to right, modulo 10")
    parser.add_argument("--system", choices=REAL, help="another system than the small sequential one")


def thought(solution: Solution, role: str, round_index: int) -> str:
    """What a role sent in a round, as the tokens of the receiver that are nearest to its latents."""
    thoughts = solution.thoughts or {}
    return next((text for key, text in thoughts.items() if key[:2] == (round_index, role)), "")


def run(arguments: argparse.Namespace) -> int:
    if arguments.system:
        if arguments.questions:
            hint = f'recursivemas solve --system systems/{arguments.system} --input facts="…" "…"'
            raise InputError("This demonstration asks its own questions.", where="questions", hint=hint)
        return _show_real(arguments.system)
    mas = load_mas_system()
    limit_threads(mas)
    questions = arguments.questions or [row["question"] for row in arithmetic.generate(3, levels=[2, 5, 8], seed=7)]
    sizes = ", ".join(f"{role} {agent.model.num_parameters() / 1e6:.1f} M" for role, agent in mas.agents.items())
    print(f"Agents ({sizes} parameters) of three architectures; each was trained to do ONE step of a calculation:")
    print("arithmetic on digits, from left to right, modulo 10. They hand over latent thoughts, not text.\n")
    mas.solve(questions[:1])  # warm up, so that the times below are comparable
    for question in questions:
        print(f"{question} = ?")
        for num_rounds in ROUNDS:
            solution = mas.solve([question], num_rounds=num_rounds, return_latents=True)[0]
            if num_rounds == ROUNDS[-1]:
                for round_index in range(1, num_rounds + 1):
                    said = [thought(solution, role, round_index) for role in mas.topology.roles]
                    last = "" if round_index < num_rounds else f" → solver writes {solution.text}"
                    print(f"    round {round_index}: thought " + " → ".join(filter(None, said)) + last)
            else:
                verdict = "the calculation is not finished" if solution.text != _truth(question) else "right"
                print(f"  r = {num_rounds}: {solution.text}   ({verdict})")
        print(f"  r = {ROUNDS[-1]}: {solution.text}   (truth: {_truth(question)})\n")
    solutions = {}
    alone = mas.solve(questions, mode="alone")
    print("The solver alone answers: " + ", ".join(str(solution.text) for solution in alone) + "\n")
    print(f"Cost per question at r = {ROUNDS[-1]}, {len(questions)} questions side by side, best of {REPEATS} turns:")
    seconds: dict[str, list[float]] = {"latent": [], "text": []}
    for _ in range(REPEATS):  # in turn, so that what else the machine does hits both
        for mode, times in seconds.items():
            started = time.perf_counter()
            solutions[mode] = mas.solve(questions, num_rounds=ROUNDS[-1], mode=mode)
            times.append((time.perf_counter() - started) / len(questions))
    for mode, times in seconds.items():
        usages = [solution.usage or {} for solution in solutions[mode]]
        positions, tokens = (mean(usage[key] for usage in usages) for key in ("latent_positions", "new_tokens"))
        cost = f"{positions:5.0f} latent positions {tokens:5.0f} tokens written {1000 * min(times):7.0f} ms"
        print(f"  {mode:<7}{cost}")
    return 0


def _show_real(system: str) -> int:
    """Two agents of one real language model: what travelled, and latents against text and nothing."""
    if model := model_of(f"small/{system}"):
        fetch_model(model)
    mas = load_mas_system(str(REAL[system]))
    size = mas.agents["reader"].model.num_parameters() / 1e6
    print(f"A reader and an answerer, each SmolLM2-135M-Instruct ({size:.0f} M parameters). Only the reader sees the")
    print("facts; what it thinks travels as vectors, not as text.\n")
    rows = split_facts.generate(COUNTED, seed=5)
    for row in rows[:SHOWN]:
        (solution,) = mas.solve(inputs_of(row, mas.input_fields), num_rounds=1, return_latents=True)
        print(f"facts     {row['facts']}")
        print(f"question  {row['question']}")
        print(f"travelled {thought(solution, 'reader', 1)!r} (the nearest tokens)")
        print(f"answer    {solution.text}   (truth: {row['answer']})\n")
    print(f"{COUNTED} questions, one round:")
    print("hand-over   right  positions handed over  s a question")
    ways: dict[str, dict[str, Any]] = {
        "latents": {"mode": "latent"}, "text": {"mode": "text"}, "nothing": {"mode": "latent", "control": "none"}
    }  # fmt: skip
    with progress(COUNTED * len(ways), "Asking") as bar:
        found = {
            name: measure(mas, rows, num_rounds=1, metric=split_facts.METRIC, on_progress=bar.update, **way)
            for name, way in ways.items()
        }
    for name, figures in found.items():
        right = round(figures["accuracy"] * COUNTED)
        print(f"{name:<10}{right:>4} of {COUNTED}{figures['slot_positions']:>16.1f}{figures['seconds']:>16.2f}")
    return 0


def _truth(question: str) -> str | None:
    """The right answer, or `None` for a question that is no arithmetic."""
    try:
        return arithmetic.reduction_chain(question, len(question) // 2)[-1]
    except (ValueError, KeyError, IndexError):
        return None
