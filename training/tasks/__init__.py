"""Tasks of the small systems, by name.

Each module offers PROMPTS (the system's prompt set), `generate(num_examples, …, seed)` (rows with "question", "answer"
and per-role "targets"), GROUP_BY (the field of a row that says how hard it is), and for the pre-training of its agents
`pretraining_examples`, OPERATOR_COUNTS and `shuffled_counts`.
"""

from types import ModuleType

from . import arithmetic

TASKS: dict[str, ModuleType] = {"arithmetic": arithmetic}
