"""Left-to-right digit arithmetic modulo 10: the task of the small `sequential` system.

`3+5*2-4` -> `8*2-4` -> `6-4` -> `2`: there is no precedence, and every intermediate value is one digit. Each agent
makes ONE reduction of what it was sent, so a recursion round makes three, and a question with k operators is solved
in ceil(k / 3) rounds and in no fewer.

    python -c "from recursivemas.tasks.arithmetic import generate; print(generate(1, [3], seed=0))"
"""

import random

from .driver import Row, Task, prompt_set

OPERATORS = "+-*"
GROUP_BY = "num_operators"  # the field of a row that says how hard its question is
LEVELS = range(13)  # the values of that field: numbers of operators
ROLES = ("planner", "critic", "solver")  # in stage order

PROMPTS = prompt_set(
    planner={"first": "Reduce <|question|>", "feedback": "Reduce <|question|>\nNow <|latents:solver|>"},
    critic={"first": "Reduce <|latents:planner|>"},
    solver={"first": "Reduce <|latents:critic|>", "alone": "Reduce <|question|>"},
)


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


def _row(num_operators: int, num_rounds: int, rng: random.Random) -> Row:
    """Each role makes one reduction of what it was sent; the answer is one digit."""
    question = random_expression(num_operators, rng)
    said = len(ROLES) * num_rounds
    states = reduction_chain(question, max(num_operators, said))
    targets = {role: states[1 + stage : 1 + said : len(ROLES)] for stage, role in enumerate(ROLES)}
    return {"question": question, "targets": targets, "answer": states[-1]}


def _example(role: str, prompt: str, num_operators: int, rng: random.Random) -> Row:
    """`num_operators` counts those of the expression to be reduced.

    In a feedback prompt the expression is a later state of the question (or the same digit), and the question must be
    ignored.
    """
    if prompt == "feedback":
        # Questions have at most 12 operators in use, three more than what the first round leaves of them.
        question_operators = rng.randint(num_operators, max(num_operators + len(ROLES), LEVELS[-1]))
        question = random_expression(question_operators, rng)
        expression = reduction_chain(question, question_operators - num_operators)[-1]
        return {"question": question, "messages": {"solver": expression}, "target": reduce_once(expression)}
    expression = random_expression(num_operators, rng)
    if role == "planner" or prompt == "alone":
        return {"question": expression, "target": reduce_once(expression)}
    return {"messages": {ROLES[ROLES.index(role) - 1]: expression}, "target": reduce_once(expression)}


TASK = Task("arithmetic", PROMPTS, GROUP_BY, LEVELS, _row, _example)
generate, pretraining_examples = TASK.generate, TASK.pretraining_examples
