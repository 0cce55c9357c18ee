"""Tasks by name: those of the small systems, and one for language models that exist (`split_facts`).

Each module says a task's rules and offers, by way of a `driver.Task`: PROMPTS (the system's prompt set), `generate`
(rows with "question", the further fields that the prompts name, "answer" and per-role "targets"), GROUP_BY (the field
of a row that says how hard it is), LEVELS (the values of that field), `pretraining_examples` for the pre-training of
its agents, METRIC where an answer need not be equal (see evaluation/metrics.py), and where needed WORDS (what its
agents say besides single characters: the tokenizers merge it into few tokens).
"""

from types import ModuleType

from . import arithmetic, facts, registers, split_facts, variables

TASKS: dict[str, ModuleType] = {
    module.TASK.name: module for module in (arithmetic, registers, facts, variables, split_facts)
}
