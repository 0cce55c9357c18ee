"""Show the shipped system at work: what every round changed, the answers, and what latents cost against text.

Examples:
  recursivemas demo
  recursivemas demo "9-4*3+8-1"
"""

import argparse
import time
from statistics import mean

from ..modeling_recursivemas import RecursiveMASModel
from ..system_loader import load_mas_system
from ..tasks import arithmetic
from .commands import limit_threads

ROUNDS = (1, 2, 3)
REPEATS = 5


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("questions", nargs="*", help="digit arithmetic, read from left to right, modulo 10")


def read_latents(mas: RecursiveMASModel, latents: dict, role: str, round_index: int) -> str:
    """What a role sent in a round, as the tokens of the receiver that are nearest to its latents."""
    for (sent_in, source, target), sent in latents.items():
        if (sent_in, source) == (round_index, role):
            receiver = mas.agents[target]
            return receiver.decode(receiver.nearest_token_ids(sent).tolist())
    return ""


def run(arguments: argparse.Namespace) -> int:
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
                latents = solution.latents or {}
                for round_index in range(1, num_rounds + 1):
                    said = [read_latents(mas, latents, role, round_index) for role in mas.topology.roles]
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


def _truth(question: str) -> str | None:
    """The right answer, or `None` for a question that is no arithmetic."""
    try:
        return arithmetic.reduction_chain(question, len(question) // 2)[-1]
    except (ValueError, KeyError, IndexError):
        return None
