"""Adaptive depth: a row whose recursion has settled leaves the batch, and is answered from the round it reached."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import torch

from .batching_recursivemas import PromptBatch, embed_rows
from .engine_recursivemas import Run, System
from .errors_recursivemas import ArgumentError
from .generation_recursivemas import AnswerSettings
from .memories_recursivemas import cache_links
from .runs_recursivemas import RunSettings
from .solutions_recursivemas import Solution
from .topology_recursivemas import Topology

Key = tuple[int, str, str]  # round, source, target


def change(topology: Topology, signal: str, turns: Collection[tuple[int, str]], said: Mapping[Key, object]) -> float:
    """How much what the turns of one stage sent differs from what it is compared with; the most of all their links.

    "turns" compares what a role sends with what it received (it passes on what it read), "rounds" and "latents" with
    what it sent a round before. The first two compare read-outs, the third the vectors themselves; messages of
    text are compared as such.

    Args:
        topology: of the system.
        signal: one of `SIGNALS`.
        turns: (round, role) pairs.
        said: of one row, (round, source, target) -> the text of what was sent; with "latents", (n, width).

    Returns:
        From 0, where nothing differs; infinity where there is nothing to compare with. Texts differ by at most 1.
    """
    most, compared = 0.0, False
    for round_index, role in turns:
        received = [(round_index - link.feedback, link.source, role) for link in topology.incoming(role, round_index)]
        for link in topology.outgoing(role):
            key = (round_index, role, link.target)
            if key not in said:
                continue
            others = received if signal == "turns" else [(round_index - 1, role, link.target)]
            if not others or not all(other in said for other in others):
                return float("inf")
            distance = _text_distance if isinstance(said[key], str) else _latent_distance
            most, compared = max(most, *(distance(said[key], said[other]) for other in others)), True
    return most if compared else float("inf")


def _text_distance(one, other) -> float:
    one, other = one.strip(), other.strip()
    return 0.0 if one == other else 1 - SequenceMatcher(None, one, other, autojunk=False).ratio()


def _latent_distance(one, other) -> float:
    """Length of the difference in relation to that of the longer; positions that one lacks are zeros."""
    short = len(one) - len(other)
    one, other = one.float(), other.float()
    one = torch.nn.functional.pad(one, (0, 0, 0, max(0, -short)))
    other = torch.nn.functional.pad(other, (0, 0, 0, max(0, short)))
    return float((one - other).norm() / max(float(one.norm()), float(other.norm()), 1e-12))


def stages(topology: Topology, most: int) -> Iterator[tuple[list[tuple[int, str]], int, int]]:
    """What a run of up to so many rounds does before its answer, stage by stage.

    Yields:
        The (round, role) pairs of a stage; the last round before whose answer everything has run once they have (0
        while there is none); and how many turns that makes.
    """
    taken: set[tuple[int, str]] = set()
    for last in range(1, most + 1):
        before = topology.schedule(last)[:-1]
        for turns in topology.by_stage([turn for turn in before if turn not in taken]):
            taken.update(turns)
            yield turns, last if taken.issuperset(before) else last - 1, len(taken)


@dataclass(frozen=True)
class Departure:
    """Rows that leave a batch behind a stage.

    Attributes:
        places: of those that leave, among the rows that were left before.
        staying: places of the others.
        settings: of the run that they answer with: of so many rounds.
        turns: that were taken until then, the answer's too.
    """

    places: list[int]
    staying: list[int]
    settings: RunSettings
    turns: int


class Settling:
    """Which rows of a batch have settled, found out stage by stage, wherever the turns are taken.

    Args:
        system: whose topology and links count.
        settings: they say what settling means, and the most rounds.
        count: number of rows.

    Attributes:
        rows: those that have not left.
        turns: of the next stage, (round, role) pairs; what they send is to be told.

    Raises:
        ArgumentError: the system hands over working memory.
    """

    def __init__(self, system: System, settings: RunSettings, count: int) -> None:
        if handing := cache_links(system.outer_links):
            raise ArgumentError(
                "Rows cannot leave a run whose roles go on from each other's working memory.",
                where='num_rounds="auto"',
                found=f"links of kind cache: {', '.join(handing)}",
                hint="say a number of rounds",
            )
        self.topology, self.settings, self.rows = system.topology, settings, list(range(count))
        self._said: list[dict[Key, object]] = [{} for _ in self.rows]
        self._settled: set[int] = set()
        self._stages = stages(self.topology, settings.num_rounds)
        self.turns: list[tuple[int, str]] = []
        self._ready = self._taken = 0
        self._go_on()

    def _go_on(self) -> None:
        self.turns, self._ready, self._taken = next(self._stages, ([], self._ready, self._taken))

    @property
    def signal(self) -> str:
        """One of `SIGNALS`; "latents" compares vectors, the others texts."""
        return self.settings.settling["signal"]  # type: ignore[index]

    def hear(self, said: Mapping[Key, Sequence[object]]) -> Departure:
        """Takes in what the turns of the stage sent to each of the rows, and says which leave behind it.

        After the last stage all do.
        """
        for key, each in said.items():
            for row, sent in zip(self.rows, each, strict=True):
                self._said[row][key] = sent
        for row in self.rows:
            changed = change(self.topology, self.signal, self.turns, self._said[row])
            if changed <= self.settings.settling["threshold"]:  # type: ignore[index]
                self._settled.add(row)
        ready, taken = self._ready, self._taken
        self._go_on()
        if not self.turns:
            ready, self._settled = self.settings.num_rounds, set(self.rows)
        leaving = self._settled if ready else set()
        places: dict[bool, list[int]] = {True: [], False: []}
        for place, row in enumerate(self.rows):
            places[row in leaving].append(place)
        self.rows = [row for row in self.rows if row not in leaving]
        settings = replace(self.settings, num_rounds=ready or self.settings.num_rounds, settling=None)
        return Departure(places[True], places[False], settings, taken + 1)


class AdaptiveRun:
    """Takes the turns of a run for each row for as many rounds as it needs.

    After each stage the rows that have settled leave: with the last round before whose answer everything is there. The
    others go on without them. Nothing is computed to find out but the read-outs of what is sent anyway.

    Args:
        run: before its first turn; its settings say what `settling` means, and the most rounds.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.settling = run, Settling(run.system, run.settings, len(run.questions))
        # Row -> the run that it left with, and its place there; a run of its own for each departure.
        self.left: dict[int, tuple[Run, int]] = {}

    def decoder_prompt(self, reuse: bool = True) -> PromptBatch:
        """Runs everything before the answers and returns the decoding agent's prompt, each row's of its last round."""
        run, topology = self.run, self.run.topology
        while rows := self.settling.rows:
            turns = self.settling.turns
            run.take_turns(turns)
            departure = self.settling.hear(self._listen(run, turns))
            if departure.places:
                gone = run.narrowed(departure.places, departure.settings)
                gone.turns_taken = departure.turns
                self.left |= {rows[place]: (gone, index) for index, place in enumerate(departure.places)}
                run = run.narrowed(departure.staying) if departure.staying else run
        groups = {id(group): group for group, _ in self.left.values()}
        if len(groups) == 1:
            return next(iter(groups.values())).last_prompt(reuse)
        prompts = {name: group.last_prompt(reuse=False) for name, group in groups.items()}
        agent = self.run.agents[topology.decoding_role]
        prompt_rows = [prompts[id(group)].rows[place] for _, (group, place) in sorted(self.left.items())]
        return PromptBatch(*embed_rows(agent, prompt_rows), rows=prompt_rows, where=f"agent {agent.role}")

    def answer(self, prompt: PromptBatch, answer: AnswerSettings) -> list[Solution]:
        """The decoding agent's answers to the batch, from `decoder_prompt`."""
        last = max((group for group, _ in self.left.values()), key=lambda group: group.settings.num_rounds)
        written = last.write(prompt, answer)
        left = (self.left[row] for row in range(len(written)))
        return [run.solution(place, *each, answer) for (run, place), each in zip(left, written, strict=True)]

    def _listen(self, run: Run, turns: list[tuple[int, str]]) -> dict[Key, Sequence[object]]:
        """What the turns of a stage sent to each row, as far as the signal needs it."""
        said: dict[Key, Sequence[object]] = {}
        for round_index, role in turns:
            for link in run.topology.outgoing(role):
                key = (round_index, role, link.target)
                if key in run.latents:
                    sent = run.latents[key]
                    said[key] = (
                        sent if self.settling.signal == "latents" else run.agents[link.target].read_out_rows(sent)
                    )
                elif (round_index, role) in run.texts:
                    said[key] = run.texts[round_index, role]
        return said


def paced(run: Run) -> Run | AdaptiveRun:
    """What takes the turns of a run, as its settings have it."""
    return AdaptiveRun(run) if run.settings.settling else run
