"""How questions are answered: the settings of one run."""

from collections.abc import Sized
from dataclasses import dataclass
from typing import cast

from .errors_recursivemas import InputError
from .fields_recursivemas import validate_field, whole
from .prompts_recursivemas import (
    input_fields,
    phase_of,
    validate_questions,
)
from .topology_recursivemas import Topology

MODES = ("latent", "text", "alone")
# What may fill the slots in place of the latents, see `RunSettings.control`; for the last two, agents write texts too.
CONTROLS = ("none", "other_question", "noise", "read_out", "text_first", "text_last")
TEXT_CONTROLS = CONTROLS[-2:]
AUTO = "auto"  # as many rounds as a question needs, see `RunSettings.settling`
# What says that the recursion has settled, see `change` in depth_recursivemas.py.
SIGNALS = ("turns", "rounds", "latents")


@dataclass(frozen=True)
class RunSettings:
    """How questions are answered. Every door resolves its arguments into this, once (`config.run_settings`).

    Attributes:
        num_rounds: recursion rounds (>= 1); the most of them where `settling` is given.
        latent_steps: latent steps of each rollout (>= 0; 0 sends nothing).
        mode: "latent"; "text" (agents hand over generated text); "alone" (the decoding role answers by itself).
        task: chooses the templates.
        prompts: prompt set, checked.
        latent_halting: end each row's latent steps where its agent has finished.
        control_tokens: whether latents that say a special token count, and travel.
        message_tokens: most new tokens of a message in `mode="text"`.
        control: what stands in the slots in place of the latents, to see what these carry; only in `mode="latent"`.
            Of what the answer is written from: "none" (nothing), "other_question" (the latents of the next question of
            the batch), "noise" (of equal number and norms). Of every hand-over: "read_out" (the text of their nearest
            tokens), "text_first" and "text_last" (the sender's text, cut to as many tokens at its start or end).
        settling: a question stops where its recursion has settled (`num_rounds="auto"`): its `signal`, of `SIGNALS`,
            is at most `threshold`. Every row by itself: its answer is that of the number of rounds in its usage.
    """

    num_rounds: int
    latent_steps: int
    mode: str
    task: str
    prompts: dict
    latent_halting: bool
    control_tokens: bool
    message_tokens: int
    control: str | None = None
    settling: dict | None = None

    @property
    def silent(self) -> bool:
        """Whether nothing is handed over."""
        return self.mode == "alone" or (self.mode == "latent" and (self.latent_steps == 0 or self.control == "none"))

    @property
    def thinks(self) -> bool:
        """Whether agents hand over latents (or what stands in for them)."""
        return self.mode == "latent"

    @property
    def writes(self) -> bool:
        """Whether agents write texts before the answer; beside their latents where a control asks for both."""
        return self.mode == "text" or self.control in TEXT_CONTROLS

    @property
    def positions_behind(self) -> int:
        """Positions that an agent reads behind its prompt before the answer; the last latent goes to others only."""
        latents = max(0, self.latent_steps - 1) if self.thinks else 0
        return max(latents, self.message_tokens if self.writes else 0)

    def turns(self, topology: Topology) -> list[tuple[int, str]]:
        """(round, role) pairs in running order; the last one answers, alone where nothing is sent."""
        schedule = (topology.turns_up_to if self.settling else topology.schedule)(self.num_rounds)
        return schedule[-1:] if self.silent else schedule

    def may_answer(self, topology: Topology, turn: tuple[int, str]) -> bool:
        """Whether a turn of the run can be the one that writes the answer."""
        if self.settling:
            return turn[1] == topology.decoding_role
        return turn == (self.num_rounds, topology.decoding_role)

    def phase(self, round_index: int) -> str:
        """Which template a round uses."""
        return "alone" if self.mode == "alone" else phase_of(round_index)

    def input_fields(self, topology: Topology) -> list[str]:
        """The fields of a question that the prompts of this run name."""
        turns = [(role, self.task, self.phase(round_index)) for round_index, role in self.turns(topology)]
        return input_fields(self.prompts, turns)

    def validate_questions(self, questions: object, topology: Topology) -> None:
        """Raises InputError unless each question says something in the fields that the prompts name, and no others."""
        validate_questions(questions, self.input_fields(topology), input_fields(self.prompts))
        if self.control == "other_question" and len(cast(Sized, questions)) < 2:
            raise InputError(
                "There is no other question.", where="control='other_question'", found="one question", expected="two"
            )


def validate_count(name: str, value: object, least: int, most: int = 1_000_000) -> None:
    """Raises InputError unless a value is a whole number from `least` to `most` (`True` is none)."""
    validate_field(value, whole(least, most), name, InputError)
