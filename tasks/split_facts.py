"""Split facts: one agent reads six facts, the other is asked about one of them; for language models that exist.

Three people with two facts each, in the words of everyday; the answer is one word of one fact. The reader reads the
field `facts` and the question, the answerer the question only, so that nothing but what is handed over can tell it.
Kinds of facts and their wordings are data (split_facts.json). Level 1 has the kinds and wordings to train on, level 2
the same kinds in other wordings (of facts and questions), level 3 kinds that levels 1 and 2 do not have. Level 4 has
many more kinds, to train on only: what is trained on few kinds learns these, and not to hand over.

    python -c "from recursivemas.tasks.split_facts import generate; print(generate(1, [3], seed=0))"
"""

import json
import random
from pathlib import Path
from typing import Any

from .driver import Row, Task

# "names"; "trained", "unseen" and "more": kind -> "facts" and "questions" (wordings) and "values". No value is a value
# of another kind, a name, or a word of a wording.
TABLE = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
TRAINED_WORDINGS = 3  # of a trained kind; those after them are level 2's
PEOPLE, FACTS_EACH = 3, 2
GROUP_BY = "level"  # the field of a row that says how far its question is from the training's
LEVELS = range(1, 4)  # the values of that field that are measured
TRAINED_LEVELS = (1, 4)  # those of `recursivemas train data`
METRIC = "contains"  # when an answer is right, see evaluation/metrics.py

# The prompts are those of the style `reading`: one place for both.
STYLE = Path(__file__).parents[1] / "styles" / "reading.json"
PROMPTS: dict[str, dict[str, Any]] = json.loads(STYLE.read_text(encoding="utf-8"))["prompts"]


def kinds_of(level: int) -> dict[str, dict[str, list[str]]]:
    """Kind -> its wordings and values at a level."""
    if level > 2:
        return TABLE["unseen" if level == 3 else "more"]
    chosen = slice(TRAINED_WORDINGS) if level == 1 else slice(TRAINED_WORDINGS, None)
    return {
        name: {**kind, "facts": kind["facts"][chosen], "questions": kind["questions"][chosen]}
        for name, kind in TABLE["trained"].items()
    }


def _row(level: int, num_rounds: int, rng: random.Random) -> Row:
    """The reader says the fact that is asked for, the answerer its word; every round is the same."""
    kinds = kinds_of(level)
    drawn: list[dict[str, str]] = []
    for name in rng.sample(TABLE["names"], PEOPLE):
        for kind in rng.sample(list(kinds), FACTS_EACH):
            taken = [fact["value"] for fact in drawn]
            value = rng.choice([value for value in kinds[kind]["values"] if value not in taken])
            text = rng.choice(kinds[kind]["facts"]).format(name=name, value=value)
            drawn.append({"name": name, "kind": kind, "value": value, "text": text})
    rng.shuffle(drawn)
    asked = rng.choice(drawn)
    return {
        "question": rng.choice(kinds[asked["kind"]]["questions"]).format(name=asked["name"]),
        "facts": " ".join(fact["text"] for fact in drawn),
        "answer": asked["value"],
        "kind": asked["kind"],
        "targets": {"reader": [asked["text"]] * num_rounds, "answerer": [asked["value"]] * num_rounds},
    }


TASK = Task("split_facts", PROMPTS, GROUP_BY, LEVELS, _row)
generate, pretraining_examples = TASK.generate, TASK.pretraining_examples
