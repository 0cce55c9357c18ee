"""Many questions, in several threads, for a long time: no answer lost or swapped, no memory that grows.

    python tests/soak.py --minutes 60

Threads ask the shipped system questions whose answers are known from one run alone: alone and in batches, over latents
and text, in several numbers of rounds. Some callers leave in the middle of a run, some ask what cannot be. Resident
memory is read each minute; after the first tenth it may not grow by more than a tenth.
"""

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from recursivemas.errors_recursivemas import RecursiveMASError
from recursivemas.system_loader import load_mas_system
from recursivemas.tasks import arithmetic

SETTINGS = [{"num_rounds": r, "mode": mode} for r in (1, 2, 3) for mode in ("latent", "text")] + [{"mode": "alone"}]
GROWTH = 1.10  # of resident memory, after the first tenth
THREADS = 3


class Left(Exception):
    """A caller that went away."""


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def ask(mas, known: dict, counts: Counter, rng: random.Random, ends: float) -> None:
    """Asks until time is over; counts what came of it."""
    questions = sorted({question for question, _ in known})
    while time.monotonic() < ends:
        chosen, setting = rng.sample(questions, rng.randint(1, 6)), rng.randrange(len(SETTINGS))
        arguments = dict(SETTINGS[setting], batch_size=rng.randint(1, 6))
        kind = rng.random()
        if kind < 0.1:
            left = rng.randint(1, 3)

            def leave(*_: object, left: int = left, turns: list = []) -> None:  # noqa: B006 (one a call)
                turns.append(None)
                if len(turns) >= left:
                    turns.clear()
                    raise Left

            arguments["on_turn"] = leave
        elif kind < 0.15:
            arguments |= rng.choice([{"num_rounds": 0}, {"temperature": "hot"}, {"max_new_tokens": 10**6}])
        try:
            solutions = mas.solve(chosen, **arguments)
        except Left:
            counts["left"] += 1
        except RecursiveMASError:
            counts["refused" if 0.1 <= kind < 0.15 else "refused without reason"] += 1
        else:
            for question, solution in zip(chosen, solutions, strict=True):
                counts["right" if known[question, setting] == solution.text else "another answer"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mas, rng = load_mas_system(), random.Random(arguments.seed)
    questions = [row["question"] for row in arithmetic.generate(24, seed=arguments.seed)]
    known = {
        (question, index): solution.text
        for index, setting in enumerate(SETTINGS)
        for question, solution in zip(questions, mas.solve(questions, **setting), strict=True)
    }
    counts: Counter[str] = Counter()
    begin = time.monotonic()
    ends = begin + 60 * arguments.minutes
    threads = [
        threading.Thread(target=ask, args=(mas, known, counts, random.Random(rng.random()), ends))
        for _ in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    sizes = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(60.0, 6 * arguments.minutes))
        sizes.append(resident())
        done = (time.monotonic() - begin) / 60
        print(f"{done:6.1f} min  {sizes[-1] / 1e6:7.1f} MB  {dict(counts)}", file=sys.stderr, flush=True)
    settled = sizes[max(1, len(sizes) // 10) :] or sizes
    grown = settled[-1] / settled[0]
    wrong = counts["another answer"] + counts["refused without reason"]
    found = {**counts, "megabytes": [round(size / 1e6, 1) for size in sizes], "growth": round(grown, 3)}
    print(json.dumps(found) if arguments.json else f"{found}")
    return int(bool(wrong) or grown > GROWTH or not counts["right"])


if __name__ == "__main__":
    sys.exit(main())
