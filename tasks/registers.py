"""A machine with three digit registers, whose rule nobody knows as a whole: the task of the small `mixture` system.

`372:2` asks for what the registers a, b, c = 3, 7, 2 hold after two steps of the rule (all modulo 10)

    a <- a + b    (the adder's)        b <- b - c    (the subtracter's)        c <- 2a + 3c    (the multiplier's)

so that `372:2` -> `052:1` -> `536`. The three specialists work side by side on the same state. Each was trained on
its own register alone and sends that with the number of steps left (`0:1`, `5:1`, `2:1`); the summarizer was trained
to join the three (`052:1`) and never saw the rule applied to less than all of them. A round makes one step, so a
question of k steps is solved in k rounds and in no fewer, and needs every specialist in each of them: the rule maps
the 1000 states onto themselves one to one, so whoever lacks a specialist is left with one guess in ten.

    python -c "from recursivemas.tasks.registers import generate; print(generate(1, [3], seed=0))"
"""

import random
from collections.abc import Sequence

from .driver import Row, Task, prompt_set

SPECIALISTS = ("adder", "subtracter", "multiplier")  # in the order of the registers
GROUP_BY = "num_steps"  # the field of a row that says how hard its question is
LEVELS = range(1, 5)  # the values of that field
MISSING = 0.1  # share of the summarizer's examples in which one specialist says nothing

JOIN = "Join <|latents:adder|>, <|latents:subtracter|>, <|latents:multiplier|>"
PROMPTS = prompt_set(
    adder={"first": "Add <|question|>", "feedback": "Add <|latents:summarizer|>"},
    subtracter={"first": "Subtract <|question|>", "feedback": "Subtract <|latents:summarizer|>"},
    multiplier={"first": "Multiply <|question|>", "feedback": "Multiply <|latents:summarizer|>"},
    summarizer={"first": JOIN, "alone": "Solve <|question|>"},
)


def write(registers: Sequence[int], num_steps: int) -> str:
    """`372:2`, or `372` where no step is left."""
    return "".join(map(str, registers)) + (f":{num_steps}" if num_steps else "")


def read(state: str) -> tuple[list[int], int]:
    """The registers and the number of steps left."""
    registers, _, num_steps = state.partition(":")
    return [int(digit) for digit in registers], int(num_steps or 0)


def step(state: str) -> dict[str, str]:
    """What each specialist makes of a state; where no step is left, its register as it stands."""
    (a, b, c), num_steps = read(state)
    registers = [(a + b) % 10, (b - c) % 10, (2 * a + 3 * c) % 10] if num_steps else [a, b, c]
    left = max(0, num_steps - 1)
    return {role: write([register], left) for role, register in zip(SPECIALISTS, registers, strict=True)}


def join(messages: dict[str, str]) -> str:
    """The state that the specialists' messages make up."""
    parts = [read(messages[role]) for role in SPECIALISTS]
    return write([register for (register,), _ in parts], parts[0][1])


def random_state(num_steps: int, rng: random.Random) -> str:
    return write([rng.randrange(10) for _ in SPECIALISTS], num_steps)


def generate_answer(state: str) -> str:
    """The registers after all steps that are left."""
    while read(state)[1]:
        state = join(step(state))
    return state


def _row(num_steps: int, num_rounds: int, rng: random.Random) -> Row:
    """The specialists write their registers, the summarizer the state; the answer is three digits."""
    question = state = random_state(num_steps, rng)
    targets: dict[str, list[str]] = {role: [] for role in PROMPTS}
    for _ in range(num_rounds):
        messages = step(state)
        state = join(messages)
        for role, text in {**messages, "summarizer": state}.items():
            targets[role].append(text)
    return {"question": question, "targets": targets, "answer": generate_answer(state)}


def _example(role: str, prompt: str, num_steps: int, rng: random.Random) -> Row:
    """`num_steps` counts the steps that are left before the specialists' turn.

    A state in a feedback prompt has one step less. Alone, the summarizer is trained to give the final answer at once;
    with a specialist missing, to guess the state as well as it can.
    """
    state = random_state(num_steps - (prompt == "feedback"), rng)
    if prompt == "alone":
        return {"question": state, "target": generate_answer(state)}
    if role == "summarizer":
        # After the last step the specialists repeat their registers: half of the states with one step left.
        messages = step(random_state(0, rng) if num_steps == 1 and rng.random() < 0.5 else state)
        target = join(messages)
        if rng.random() < MISSING:
            messages[rng.choice(SPECIALISTS)] = ""
        return {"messages": messages, "target": target}
    given = {"messages": {"summarizer": state}} if prompt == "feedback" else {"question": state}
    return {**given, "target": step(state)[role]}


TASK = Task("registers", PROMPTS, GROUP_BY, LEVELS, _row, _example)
generate, pretraining_examples = TASK.generate, TASK.pretraining_examples
