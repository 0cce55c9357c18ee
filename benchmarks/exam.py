"""What a published benchmark's run costs over `solve` on the same batches: seeds, judging, answers kept."""

import argparse
import tempfile
from pathlib import Path

from ..evaluation.rows import keeping_rows
from ..exams.running import Pass, Runner, batches_of
from ..exams.table import BENCHMARKS
from .harness import Option, chosen, in_turn, ratio_row
from .systems import random_questions, random_system

OPTIONS = {
    "questions": Option("how many", 32, 4),
    "batch_size": Option("questions side by side", 8, 2),
    "question_tokens": Option("length of a question", 64, 16),
    "latent_steps": Option("of each rollout", 16, 2),
    "new_tokens": Option("of each answer", 64, 4),
}
MOST = 1.03


def measure(arguments: argparse.Namespace) -> tuple[dict, list[dict]]:
    mas = random_system([arguments.shape] * 2, arguments.dtype, arguments.device)
    questions = random_questions(arguments.question_tokens, arguments.questions)
    rows = [{"question": question, "answer": str(number)} for number, question in enumerate(questions)]
    batches = batches_of(rows, arguments.batch_size, in_order=True)
    options = {"num_rounds": 1, "latent_steps": arguments.latent_steps, "max_new_tokens": arguments.new_tokens}
    options |= {"do_sample": False, "min_new_tokens": arguments.new_tokens}

    def benchmark() -> None:
        with tempfile.TemporaryDirectory() as folder, keeping_rows(Path(folder) / "a.json", {}, False) as row_file:
            runner = Runner(mas, BENCHMARKS["gsm8k"], rows, batches, options, {}, row_file)
            runner.run([Pass("latents", 42, 0)])

    def solve() -> None:
        for batch in batches:
            asked = [questions[index] for index in batch]
            mas.solve(asked, batch_size=len(batch), keep_order=True, mode="latent", **options)

    seconds = in_turn({"benchmark": benchmark, "solve": solve}, arguments.repeats)
    target = f"<= {MOST}" if arguments.shape != "tiny" else None
    return chosen(arguments, *OPTIONS), [ratio_row("a benchmark's run", seconds, "benchmark", "solve", target)]
