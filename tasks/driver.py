"""What the tasks share: rows over levels of difficulty in turn, each task giving one row by its own rules."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


def prompt_set(**templates: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Role -> its templates by name, without a system prompt, as `RecursiveMASConfig.prompts` wants them."""
    return {role: {"system": None, "default": by_name} for role, by_name in templates.items()}


@dataclass(frozen=True)
class Task:
    """The two kinds of rows of a task.

    Attributes:
        name: in `TASKS`.
        prompts: the system's prompt set, whose roles are in stage order.
        group_by: the field of a row that says how hard it is.
        levels: the values of that field.
        row: (level, number of rounds, random numbers) -> "question" (and the further fields that the prompts name),
            "targets" and "answer".
        example: (role, prompt, level, random numbers) -> "target", and "question", "messages" and "said" where they
            are not empty; `None` where agents are not pre-trained for the task.
    """

    name: str
    prompts: dict[str, dict[str, Any]]
    group_by: str
    levels: Sequence[int]
    row: Callable[[int, int, random.Random], Row]
    example: Callable[[str, str, int, random.Random], Row] | None = None

    def generate(
        self, num_examples: int, levels: Sequence[int] | None = None, seed: int = 0, num_rounds: int = 4
    ) -> list[Row]:
        """Questions with what every role should say in every round.

        The levels are taken in turn, so each is equally frequent. A row is `{"question", "targets", "answer",
        group_by}`; `targets[role][round - 1]` is the role's text.
        """
        rng, levels = random.Random(seed), self.levels if levels is None else levels
        chosen = [levels[index % len(levels)] for index in range(num_examples)]
        return [{**self.row(level, num_rounds, rng), self.group_by: level} for level in chosen]

    def pretraining_examples(
        self, role: str, num_examples: int, levels: Sequence[int] | None = None, seed: int = 0
    ) -> list[Row]:
        """Inputs and targets for the pre-training of one role.

        A row is `{"prompt", "question", "messages", "target", group_by}`: `prompt` names a template of the role
        (`prompts[role]["default"]`), and `messages` maps a sender to the text in its slot. Where there is "said", its
        texts already follow the prompt. Prompts and levels are equally frequent.

        Raises:
            ValueError: an unknown role, or a task that no agent is pre-trained for.
        """
        if self.example is None:
            raise ValueError(f"no agent is pre-trained for the {self.name} task")
        if role not in self.prompts:
            raise ValueError(f"unknown role {role!r} of the {self.name} task: choose from {', '.join(self.prompts)}")
        rng, levels = random.Random(seed), self.levels if levels is None else levels
        prompts = list(self.prompts[role]["default"])
        rows = []
        for index in range(num_examples):
            prompt, level = prompts[index % len(prompts)], levels[index // len(prompts) % len(levels)]
            example = {"question": "", "messages": {}, **self.example(role, prompt, level, rng)}
            rows.append({"prompt": prompt, **example, self.group_by: level})
        return rows
