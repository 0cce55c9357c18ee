"""Adaptive depth: a row whose recursion has settled leaves the batch, and is answered from the round it reached."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

import torch
from transformers import GenerationConfig

from .batching_recursivemas import PromptBatch, embed_rows
from .engine_recursivemas import Run, System
from .errors_recursivemas import ArgumentError
from .generation_recursivemas import AnswerSettings
from .memories_recursivemas import cache_links
from .prompts_recursivemas import Question
from .runs_recursivemas import RunSettings
from .solutions_recursivemas import Solution
from .tools_recursivemas import ToolBox
from .topology_recursivemas import Topology

Key = tuple[int, str, str]  # round, source, target


def change(topology: Topology, signal: str, turns: Collection[tuple[int, str]], said: Mapping[Key, object]) -> float:
    """How much what the turns of one stage sent differs from what it is compared with; the most of all their links.

    "turns" compares what a role sends with what it received (it passes on what it read), "rounds" and "latents" with
    what it sent a round before. The first two compare read-outs, the third the vectors themselves.

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
            distance = _latent_distance if signal == "latents" else _text_distance
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


class AdaptiveRun:
    """Runs a batch in the way of `Run`, each row for as many rounds as it needs.

    After each stage the rows that have settled leave: with the last round before whose answer everything is there. The
    others go on without them. Nothing is computed to find out but the read-outs of what is sent anyway.

    Args: see `Run`; the settings say what `settling` means, and the most rounds.
    """

    def __init__(
        self,
        system: System,
        questions: Sequence[Question],
        settings: RunSettings,
        generation_config: GenerationConfig,
        on_turn: Callable[[int, str], None] | None = None,
        on_step: Callable[[], object] | None = None,
        tools: Mapping[str, ToolBox] = {},
    ) -> None:
        if handing := cache_links(system.outer_links):
            raise ArgumentError(
                "Rows cannot leave a run whose roles go on from each other's working memory.",
                where='num_rounds="auto"',
                found=f"links of kind cache: {', '.join(handing)}",
                hint="say a number of rounds",
            )
        self.run = Run(system, questions, settings, generation_config, on_turn, on_step, tools)
        self.said: list[dict[Key, object]] = [{} for _ in questions]
        # Row -> the run that it left with, and its place there; a run of its own for each departure.
        self.left: dict[int, tuple[Run, int]] = {}

    def decoder_prompt(self, reuse: bool = True) -> PromptBatch:
        """Runs everything before the answers and returns the decoding agent's prompt, each row's of its last round."""
        run, topology, settling = self.run, self.run.topology, self.run.settings.settling
        assert settling is not None
        rows, settled, count = list(range(len(self.said))), set(), 0
        for turns, ready, count in stages(topology, run.settings.num_rounds):
            run.take_turns(turns)
            self._listen(run, rows, turns)
            changes = {row: change(topology, settling["signal"], turns, self.said[row]) for row in rows}
            settled |= {row for row in rows if changes[row] <= settling["threshold"]}
            if ready and settled.intersection(rows):
                run, rows = self._leave(run, rows, settled, ready, count + 1)
            if not rows:
                break
        if rows:
            self._leave(run, rows, rows, run.settings.num_rounds, count + 1)
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

    def _listen(self, run: Run, rows: list[int], turns: list[tuple[int, str]]) -> None:
        """Keeps what the turns of a stage sent, as far as the signal needs it."""
        latents = self.run.settings.settling["signal"] == "latents"  # type: ignore[index]
        for round_index, role in turns:
            for link in run.topology.outgoing(role):
                key = (round_index, role, link.target)
                if key in run.latents:
                    sent = run.latents[key]
                    said = sent if latents else run.agents[link.target].read_out_rows(sent)
                elif (round_index, role) in run.texts:
                    said = run.texts[round_index, role]
                else:
                    continue
                for row, each in zip(rows, said, strict=True):
                    self.said[row][key] = each

    def _leave(
        self, run: Run, rows: list[int], settled: Collection[int], num_rounds: int, turns: int
    ) -> tuple[Run, list[int]]:
        """Settled rows leave a run with a number of rounds; returns the run without them, and its rows."""
        settings = replace(run.settings, num_rounds=num_rounds, settling=None)
        leaving = [place for place, row in enumerate(rows) if row in settled]
        staying = [place for place, row in enumerate(rows) if row not in settled]
        gone = run.narrowed(leaving, settings)
        gone.turns_taken = turns
        self.left |= {rows[place]: (gone, index) for index, place in enumerate(leaving)}
        return run.narrowed(staying) if staying else run, [rows[place] for place in staying]


def kind_of_run(settings: RunSettings) -> Callable[..., Run | AdaptiveRun]:
    """What runs a batch with these settings."""
    return AdaptiveRun if settings.settling else Run
