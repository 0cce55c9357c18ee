"""Questions of several hops over a made-up world of facts: the task of the small `distillation` system.

The world has 20 entities (`A` … `T`) and six relations (`a` … `f`), each of which leads from every entity to another
one. `K.c.a` asks for the entity that relation a leads to from where c leads to from K; an agent that makes one hop
writes `M.a`. The larger expert was taught all 120 facts, the smaller learner the 60 of the relations a, b and c. Each
makes ONE hop of what it was sent if it knows the fact, and repeats it otherwise; an entity alone stays as it is. So a
round makes one hop (the expert's), or two if the learner knows the next fact; without the expert, a question stops at
the first d, e or f.

    python -c "from recursivemas.tasks.facts import generate; print(generate(1, [3], seed=0))"
"""

import random

from .driver import Row, Task, prompt_set

ENTITIES = "ABCDEFGHIJKLMNOPQRST"
RELATIONS = "abcdef"
KNOWN = {"expert": RELATIONS, "learner": "abc"}  # in stage order
GROUP_BY = "num_hops"  # the field of a row that says how hard its question is
LEVELS = range(1, 7)  # the values of that field

PROMPTS = prompt_set(
    expert={"first": "Follow <|question|>", "feedback": "Follow <|latents:learner|>"},
    learner={"first": "Follow <|latents:expert|>", "alone": "Solve <|question|>"},
)


# (entity, relation) -> entity; every relation is a permutation of the entities.
_WORLD = random.Random(42)
FACTS = {
    (entity, relation): target
    for relation in RELATIONS
    for entity, target in zip(ENTITIES, _WORLD.sample(ENTITIES, len(ENTITIES)), strict=True)
}


def hop(state: str, role: str = "expert") -> str:
    """One hop by `role`, or the state as it is where nothing is left to do or the role does not know the fact."""
    entity, *relations = state.split(".")
    if not relations or relations[0] not in KNOWN[role]:
        return state
    return ".".join([FACTS[entity, relations[0]], *relations[1:]])


def hops(state: str, role: str = "expert") -> str:
    """As far as `role` alone gets with any number of hops."""
    while (following := hop(state, role)) != state:
        state = following
    return state


def random_state(num_hops: int, rng: random.Random) -> str:
    return ".".join([rng.choice(ENTITIES), *(rng.choice(RELATIONS) for _ in range(num_hops))])


def _row(num_hops: int, num_rounds: int, rng: random.Random) -> Row:
    """Each role hops from what it was sent; the answer is one entity."""
    question = state = random_state(num_hops, rng)
    targets: dict[str, list[str]] = {role: [] for role in PROMPTS}
    for _ in range(num_rounds):
        for role, texts in targets.items():
            state = hop(state, role)
            texts.append(state)
    return {"question": question, "targets": targets, "answer": hops(question)}


def _example(role: str, prompt: str, num_hops: int, rng: random.Random) -> Row:
    """`num_hops` counts the hops that were left before the other role's.

    Alone, the learner is trained to go at once as far as its facts lead.
    """
    if prompt == "alone":
        question = random_state(num_hops, rng)
        return {"question": question, "target": hops(question, role)}
    if role == "expert" and prompt == "first":
        question = random_state(num_hops, rng)
        return {"question": question, "target": hop(question, role)}
    (sender,) = PROMPTS.keys() - {role}
    # What the expert sends has a hop less; what the learner sends has one or two less, or none left to make.
    state = random_state(num_hops - 1, rng)
    return {"messages": {sender: state}, "target": hop(state, role)}


TASK = Task("facts", PROMPTS, GROUP_BY, LEVELS, _row, _example)
generate, pretraining_examples = TASK.generate, TASK.pretraining_examples
