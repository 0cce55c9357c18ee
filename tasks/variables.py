r"""An expression whose variable hides behind other variables: the task of the small `deliberation` system.

`a=c b=4 c=d d=7 e=b f=2 376*a` asks for 376*7. The reflector replaces the variable of the expression by what its
definition says, ONE definition deep: `376*a` -> `376*c` -> `376*d` -> `376*7`. The tool-caller writes what it is sent
as a call of its calculator, `<python>376*c</python>`; in the next round the reflector works on that call. In the last
round the calculator answers the call (`<result>2632</result>`), and the tool-caller reads off `\boxed{2632}`. No agent
was taught to multiply, add or subtract. A chain of k definitions takes k rounds; a call with a variable left in it
fails (`<result>error</result>`). Every question defines six variables, so that other chains and numbers stand beside.

    python -c "from recursivemas.tasks.variables import generate; print(generate(1, [3], seed=0))"
"""

import random
import re
from collections.abc import Sequence
from typing import Any

from ..tools_recursivemas import calculator

NAMES = "abcdef"
NUMBERS = "23456789"
GROUP_BY = "depth"  # the field of a row that says how hard its question is
LEVELS = range(1, 5)  # the values of that field: definitions between the expression and its number
WORDS = ("<python>1</python>", "<python>1</python>", "<result>1</result>", "<result>error</result>", r"\boxed{1}")

PROMPTS: dict[str, dict[str, Any]] = {
    "reflector": {
        "system": None,
        "default": {
            "first": "Resolve <|question|>",
            "feedback": "Resolve <|question|>\nNow <|latents:toolcaller|>",
        },
    },
    "toolcaller": {
        "system": None,
        "default": {"first": "Call <|latents:reflector|>", "alone": "Solve <|question|>"},
    },
}


def call(expression: str) -> str:
    return f"<python>{expression}</python>"


def read(question: str) -> tuple[str, dict[str, str]]:
    """The expression and the definitions of a question."""
    *definitions, expression = question.split(" ")
    return expression, dict(definition.split("=") for definition in definitions)


def resolve_once(expression: str, definitions: dict[str, str]) -> str:
    """Replaces the variable of an expression by what it stands for; a number stays as it is."""
    return re.sub("[a-z]", lambda match: definitions[match[0]], expression)


def chain(question: str) -> list[str]:
    """The expression of a question and its states up to the one without a variable."""
    expression, definitions = read(question)
    states = [expression]
    while (following := resolve_once(states[-1], definitions)) != states[-1]:
        states.append(following)
    return states


def random_question(depth: int, rng: random.Random) -> str:
    """A question whose variable is `depth` definitions away from its number."""
    names = rng.sample(NAMES, len(NAMES))
    definitions = dict(zip(names[:depth], [*names[1:depth], rng.choice(NUMBERS)], strict=True))
    for index in range(depth, len(names)):
        # The others lead to numbers too, by themselves or through one another.
        later = names[index + 1 :]
        definitions[names[index]] = rng.choice(later) if later and rng.random() < 0.5 else rng.choice(NUMBERS)
    expression = f"{rng.randrange(100, 1000)}{rng.choice('+-*')}{names[0]}"
    return " ".join([*(f"{name}={definitions[name]}" for name in NAMES), expression])


def generate(
    num_examples: int, levels: Sequence[int] = LEVELS, seed: int = 0, num_rounds: int = 4
) -> list[dict[str, Any]]:
    r"""Questions with what every role should say in every round.

    The depths are taken in turn, so each is equally frequent. A row is `{"question", "targets", "answer", "depth"}`;
    `targets[role][round - 1]` is the role's text (the tool-caller's is its call, before the calculator answers), and
    the answer is a whole number.
    """
    rng = random.Random(seed)
    rows = []
    for index in range(num_examples):
        depth = levels[index % len(levels)]
        question = random_question(depth, rng)
        states = chain(question)
        answer = calculator(states[-1])
        states += states[-1:] * num_rounds
        said = states[1 : num_rounds + 1]
        targets = {"reflector": said, "toolcaller": [call(state) for state in said]}
        rows.append({"question": question, "targets": targets, "answer": answer, "depth": depth})
    return rows


def pretraining_examples(
    role: str, num_examples: int, levels: Sequence[int] = LEVELS, seed: int = 0
) -> list[dict[str, Any]]:
    r"""Inputs and targets for the pre-training of one role.

    A row is `{"prompt", "question", "messages", "said", "target", "depth"}`: `prompt` names a template of the role
    (`PROMPTS[role]["default"]`), `messages` maps a sender to the text in its slot, and `said` are a call and its
    result, which already follow the prompt (in a quarter of the tool-caller's rows; the target is then the boxed
    result). Prompts and depths are equally frequent. Alone, the tool-caller is trained to call its calculator at once
    with the number at the end of the chain.
    """
    if role not in PROMPTS:
        raise ValueError(f"unknown role {role!r} of the variables task: choose from {', '.join(PROMPTS)}")
    rng = random.Random(seed)
    prompts = list(PROMPTS[role]["default"])
    rows = []
    for index in range(num_examples):
        prompt = prompts[index % len(prompts)]
        depth = levels[index // len(prompts) % len(levels)]
        question = random_question(depth, rng)
        states = chain(question)
        messages: dict[str, str] = {}
        said: list[str] = []
        if role == "reflector":
            # In a feedback prompt: any later state, the finished one included.
            position = 0 if prompt == "first" else rng.randint(1, depth)
            target = states[min(position + 1, depth)]
            if prompt == "feedback":
                messages["toolcaller"] = call(states[position])
        else:
            expression = states[-1] if prompt == "alone" else rng.choice(states[1:])
            target = call(expression)
            if prompt == "first":
                question, messages = "", {"reflector": expression}
            if rng.random() < 0.25:
                result = calculator(expression)
                said, target = [target, f"<result>{result}</result>"], rf"\boxed{{{result}}}"
        row = {"prompt": prompt, "question": question, "messages": messages, "said": said, "target": target}
        rows.append({**row, "depth": depth})
    return rows
