"""Left-to-right digit arithmetic modulo 10: the task of the small `sequential` system.

`3+5*2-4` -> `8*2-4` -> `6-4` -> `2`: there is no precedence, and every intermediate value is one digit. Each agent
makes ONE reduction of what it was sent, so a recursion round makes three, and a question with k operators is solved
in ceil(k / 3) rounds and in no fewer.

    python -c "from recursivemas.tasks.arithmetic import generate; print(generate(1, [3], seed=0))"
"""

import random
from collections.abc import Sequence
from typing import Any

OPERATORS = "+-*"
GROUP_BY = "num_operators"  # the field of a row that says how hard its question is
LEVELS = range(13)  # the values of that field: numbers of operators
ROLES = ("planner", "critic", "solver")  # in stage order

PROMPTS: dict[str, dict[str, Any]] = {
    "planner": {
        "system": None,
        "default": {"first": "Reduce <|question|>", "feedback": "Reduce <|question|>\nNow <|latents:solver|>"},
    },
    "critic": {"system": None, "default": {"first": "Reduce <|latents:planner|>"}},
    "solver": {"system": None, "default": {"first": "Reduce <|latents:critic|>", "alone": "Reduce <|question|>"}},
}


def reduce_once(expression: str) -> str:
    """Apply the leftmost operator of `expression`, modulo 10; a single digit reduces to itself."""
    if len(expression) == 1:
        return expression
    left, operator, right = int(expression[0]), expression[1], int(expression[2])
    value = {"+": left + right, "-": left - right, "*": left * right}[operator] % 10
    return f"{value}{expression[3:]}"


def reduction_chain(expression: str, num_reductions: int) -> list[str]:
    """The expression and its next `num_reductions` states (num_reductions + 1 strings)."""
    states = [expression]
    for _ in range(num_reductions):
        states.append(reduce_once(states[-1]))
    return states


def random_expression(num_operators: int, rng: random.Random) -> str:
    """A random expression of `num_operators` operators, 2 * num_operators + 1 characters long."""
    return rng.choice("0123456789") + "".join(
        rng.choice(OPERATORS) + rng.choice("0123456789") for _ in range(num_operators)
    )


def generate(
    num_examples: int, levels: Sequence[int] = LEVELS, seed: int = 0, num_rounds: int = 4
) -> list[dict[str, Any]]:
    """Questions with what every role should say in every round.

    The numbers of operators are taken in turn, so each is equally frequent. A row is `{"question", "targets",
    "answer", "num_operators"}`; `targets[role][round - 1]` is the role's text, and the answer is one digit.
    """
    rng = random.Random(seed)
    rows = []
    for index in range(num_examples):
        count = levels[index % len(levels)]
        question = random_expression(count, rng)
        states = reduction_chain(question, max(count, len(ROLES) * num_rounds))
        targets = {
            role: states[1 + stage : 1 + len(ROLES) * num_rounds : len(ROLES)] for stage, role in enumerate(ROLES)
        }
        rows.append({"question": question, "targets": targets, "answer": states[-1], "num_operators": count})
    return rows


def pretraining_examples(
    role: str, num_examples: int, levels: Sequence[int] = LEVELS, seed: int = 0
) -> list[dict[str, Any]]:
    """Inputs and targets for the pre-training of one role.

    A row is `{"prompt", "question", "messages", "target", "num_operators"}`: `prompt` names a template of the role
    (`PROMPTS[role]["default"]`), `messages` maps a sender to the text in its slot, and `num_operators` counts those of
    the expression to be reduced. Prompts and numbers of operators are equally frequent. In a feedback prompt the
    expression is a later state of the question (or the same digit), and the question must be ignored.
    """
    if role not in PROMPTS:
        raise ValueError(f"unknown role {role!r} of the arithmetic task: choose from {', '.join(PROMPTS)}")
    rng = random.Random(seed)
    prompts = list(PROMPTS[role]["default"])
    rows = []
    for index in range(num_examples):
        prompt = prompts[index % len(prompts)]
        count = levels[index // len(prompts) % len(levels)]
        question, messages = "", {}
        if prompt == "feedback":
            # Questions have at most 12 operators in use, three more than what the first round leaves of them.
            question_count = rng.randint(count, max(count + len(ROLES), LEVELS[-1]))
            question = random_expression(question_count, rng)
            expression = reduction_chain(question, question_count - count)[-1]
            messages["solver"] = expression
        else:
            expression = random_expression(count, rng)
            if role == "planner" or prompt == "alone":
                question = expression
            else:
                messages[ROLES[ROLES.index(role) - 1]] = expression
        rows.append(
            {
                "prompt": prompt,
                "question": question,
                "messages": messages,
                "target": reduce_once(expression),
                "num_operators": count,
            }
        )
    return rows
