"""Batches under way: which turns of theirs are taken, what these sent, and who takes them."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..depth_recursivemas import Departure, Settling
from ..prompts_recursivemas import Question
from ..solutions_recursivemas import USAGE


def some(rows: list, places: list[int] | None) -> list:
    """The rows in some places; in all where none are said."""
    return rows if places is None else [rows[place] for place in places]


@dataclass
class Sent:
    """What a turn sent, a reference to latents or texts, and which of its rows are a job's (where not all)."""

    ref: Any
    rows: list[int] | None = None

    def some(self, places: list[int]) -> "Sent":
        """That of a part of the job."""
        return Sent(self.ref, places if self.rows is None else some(self.rows, places))


@dataclass
class Job:
    """A batch under way, or rows of one.

    What it waits for are turns, (round, role), and, where rows stop by themselves, readings of what was sent by the
    agents that receive it, (round, source, target).
    """

    index: int
    questions: list[Question]
    schedule: list[tuple[int, str]]
    settle: Callable[[int], Settling] | None = None  # of a number of rows, where these stop by themselves
    rows: list[int] = field(default_factory=list)  # the questions' places in their batch; all, where none are said
    attempt: int = 1
    name: str = field(default_factory=lambda: uuid.uuid4().hex)  # never another job's, whatever became of that
    actors: dict[str, Any] = field(default_factory=dict)  # host -> the replica that has its cache
    parted: dict[str, Any] = field(default_factory=dict)  # host -> what its actor's `part` gives
    waiting: list[tuple] = field(init=False)
    done: set[tuple[int, str]] = field(default_factory=set)
    sent: dict[tuple, Sent] = field(default_factory=dict)  # by key
    heard: dict[tuple, list[str]] = field(default_factory=dict)  # key -> what was sent, read by who received it
    usage: dict[str, dict] = field(default_factory=dict)  # host -> its last one
    settling: Settling | None = field(init=False)
    departure: Departure | None = None  # its rows have settled
    answer: tuple[int, str] | None = field(init=False)  # the turn that writes; none before rows have settled

    def __post_init__(self) -> None:
        self.rows = self.rows or list(range(len(self.questions)))
        self.settling = None if self.settle is None else self.settle(len(self.questions))
        self.waiting = list(self.schedule if self.settling is None else self.settling.turns)
        self.answer = self.schedule[-1] if self.settling is None else None

    def parts(self, most: int) -> "list[Job]":
        """Jobs of at most so many questions, from their first turn on."""
        starts = [slice(start, start + most) for start in range(0, len(self.questions), most)]
        return [Job(self.index, self.questions[s], self.schedule, self.settle, self.rows[s]) for s in starts]

    def again(self, attempt: int) -> "Job":
        """The same from its first turn on."""
        return Job(self.index, self.questions, self.schedule, self.settle, self.rows, attempt)

    def part(self, places: list[int], departure: Departure | None = None) -> "Job":
        """Some of its rows, as far as they have come; `departure` says that these have settled."""
        job = Job(self.index, some(self.questions, places), self.schedule, None, some(self.rows, places), self.attempt)
        job.settle, job.actors, job.done = self.settle, dict(self.actors), set(self.done)
        job.sent = {key: sent.some(places) for key, sent in self.sent.items()}
        for host, usage in self.usage.items():
            job.usage[host] = usage | {name: some(usage[name], places) for name in USAGE}
        if departure is None:
            job.settling, job.answer, job.waiting = self.settling, None, list(self.waiting)
        else:
            # The last turn of all is an answer's.
            job.departure, job.answer = departure, (departure.settings.num_rounds, self.schedule[-1][1])
            job.waiting = [job.answer]
        return job

    @property
    def ahead(self) -> list[tuple[int, str]]:
        """The turns that it may still take."""
        if self.departure is not None and self.answer is not None:
            return [self.answer]
        return [turn for turn in self.schedule if turn not in self.done]
