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

from ..tools_recursivemas import calculator
from .driver import Row, Task, prompt_set

NAMES = "abcdef"
NUMBERS = "23456789"
GROUP_BY = "depth"  # the field of a row that says how hard its question is
LEVELS = range(1, 5)  # the values of that field: definitions between the expression and its number
WORDS = ("<python>1</python>", "<python>1</python>", "<result>1</result>", "<result>error</result>", r"\boxed{1}")

PROMPTS = prompt_set(
    reflector={"first": "Resolve <|question|>", "feedback": "Resolve <|question|>\nNow <|latents:toolcaller|>"},
    toolcaller={"first": "Call <|latents:reflector|>", "alone": "Solve <|question|>"},
)


def call(expression: str) -> str:
    return f"<python>{expression}</python>"


def chain(question: str) -> list[str]:
    """The expression of a question and what it becomes, one definition after the other, until it has no variable."""
    *texts, expression = question.split(" ")
    definitions = dict(text.split("=") for text in texts)
    states = [expression]
    while (following := re.sub("[a-z]", lambda match: definitions[match[0]], states[-1])) != states[-1]:
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


def _row(depth: int, num_rounds: int, rng: random.Random) -> Row:
    """The reflector resolves, the tool-caller calls (before the calculator answers); the answer is a whole number."""
    question = random_question(depth, rng)
    states = chain(question)
    said = [*states[1:], *states[-1:] * num_rounds][:num_rounds]
    targets = {"reflector": said, "toolcaller": [call(state) for state in said]}
    return {"question": question, "targets": targets, "answer": calculator(states[-1])}


def _example(role: str, prompt: str, depth: int, rng: random.Random) -> Row:
    """`said` are a call and its result, in a quarter of the tool-caller's rows; the target is then the boxed result.

    Alone, the tool-caller is trained to call its calculator at once with the number at the end of the chain.
    """
    question = random_question(depth, rng)
    states = chain(question)
    if role == "reflector":
        if prompt == "first":
            return {"question": question, "said": [], "target": states[1]}
        position = rng.randint(1, depth)  # any later state, the finished one included
        messages = {"toolcaller": call(states[position])}
        return {"question": question, "messages": messages, "said": [], "target": states[min(position + 1, depth)]}
    expression = states[-1] if prompt == "alone" else rng.choice(states[1:])
    given = {"messages": {"reflector": expression}} if prompt == "first" else {"question": question}
    if rng.random() < 0.25:
        result = calculator(expression)
        said = [call(expression), f"<result>{result}</result>"]
        return {**given, "said": said, "target": rf"\boxed{{{result}}}"}
    return {**given, "said": [], "target": call(expression)}


TASK = Task("variables", PROMPTS, GROUP_BY, LEVELS, _row, _example)
generate, pretraining_examples = TASK.generate, TASK.pretraining_examples
