"""Tasks of the small systems, by name.

Each module says a task's rules and offers, by way of a `driver.Task`: PROMPTS (the system's prompt set), `generate`
(rows with "question", "answer" and per-role "targets"), GROUP_BY (the field of a row that says how hard it is), LEVELS
(the values of that field), `pretraining_examples` for the pre-training of its agents, and where needed WORDS (what its
agents say besides single characters: the tokenizers merge it into few tokens).
"""

from types import ModuleType

from . import arithmetic, facts, registers, variables

TASKS: dict[str, ModuleType] = {module.TASK.name: module for module in (arithmetic, registers, facts, variables)}
