"""The queue before a model: one thread answers, and requests that ask alike share a batch."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from ..modeling_recursivemas import RecursiveMASModel
from ..solutions_recursivemas import Solution
from ..tools_recursivemas import ToolBox, Tools
from .functions import CALL
from .metrics import Metrics
from .requests import Asked


class QueueFull(Exception):
    """So many requests wait that no more is taken."""


class Ended(Exception):
    """The server ends."""


class Left(Exception):
    """Nobody waits for the answer any more."""


class Job:
    """A request on its way.

    Args:
        asked: what is asked.
        tell: called in the model's thread with what happens, a name and its values:
            ("turn", round, role, seconds) after a turn, ("text", choice, text so far), ("done", solutions),
            ("error", exception). The last two end it. Turns and texts are told only to who asked for a stream.
    """

    def __init__(self, asked: Asked, tell: Callable[[tuple], None]) -> None:
        self.asked, self.tell, self.left = asked, tell, False


class Solver:
    """Answers jobs with one system, in a thread of its own.

    What waits is taken in its order. With the first one go those behind it that ask alike (`Asked.key`), as many as
    fit a batch; nobody is waited for. If a batch fails, each of its jobs is tried alone, so that no request suffers
    from another's question.

    Args:
        mas: the system; nobody else uses it meanwhile.
        arguments: of `solve`, which requests may override.
        tool_names: the tools that there are; a request that says nothing has all of them.
        make_tools: names of tools, a space between two -> tag and function of each.
        batch_size: questions that run side by side.
        limit: jobs that may wait.

    Attributes:
        running: how many questions the model works on.
    """

    def __init__(
        self,
        mas: RecursiveMASModel,
        arguments: dict[str, Any] | None = None,
        *,
        tool_names: Sequence[str] = (),
        make_tools: Callable[[str], Tools | None] | None = None,
        batch_size: int = 32,
        limit: int = 1024,
    ) -> None:
        self.mas, self.arguments = mas, arguments or {}
        self.tool_names, self.make_tools = tuple(tool_names), lru_cache(make_tools or (lambda names: None))
        self.batch_size, self.limit = batch_size, limit
        self.metrics = Metrics()
        self._waiting: deque[Job] = deque()
        self._change = threading.Condition()
        self._closed, self.running = False, 0
        self._thread = threading.Thread(target=self._work, name="solver", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are answered."""
        return self._thread.is_alive() and not self._closed

    @property
    def length(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Lets a job wait for its turn.

        Raises:
            QueueFull: too many wait.
            Ended: the thread has ended, or will.
        """
        with self._change:
            if self._closed:
                raise Ended
            if len(self._waiting) >= self.limit:
                raise QueueFull
            self._waiting.append(job)
            self.metrics.set("queue_length", len(self._waiting))
            self._change.notify()

    def leave(self, job: Job) -> None:
        """Says that nobody waits for a job; the model is free within a latent step if nobody else is in its batch."""
        job.left = True
        with self._change, contextlib.suppress(ValueError):
            self._waiting.remove(job)
            self.metrics.set("queue_length", len(self._waiting))

    def end(self) -> None:
        """Lets the thread end, within a latent step; who waits is told that nobody answers."""
        with self._change:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
            self._change.notify()
        for job in waiting:
            job.tell(("error", Ended()))

    def close(self) -> None:
        """Ends the thread."""
        self.end()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                jobs = self._take()
                self.metrics.set("queue_length", len(self._waiting))
            self._answer(jobs)

    def _take(self) -> list[Job]:
        """The first job and those that go with it, out of the queue."""
        first = self._waiting.popleft()
        jobs, room, others = [first], self.batch_size - len(first.asked.questions), deque[Job]()
        for job in self._waiting:
            if job.asked.key == first.asked.key and len(job.asked.questions) <= room:
                jobs.append(job)
                room -= len(job.asked.questions)
            else:
                others.append(job)
        self._waiting = others
        return jobs

    def _answer(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if not job.left]
        if not jobs:
            return
        try:
            self._run_questions(sum(len(job.asked.questions) for job in jobs))
            self._solve(jobs)
        except Left:
            for job in jobs:
                job.tell(("error", Ended()))  # whoever is still there
        except Exception as error:  # whatever it is, it is told, and the others are answered
            if len(jobs) == 1:
                jobs[0].tell(("error", error))
                return
            for job in jobs:
                self._answer([job])
        finally:
            self._run_questions(0)

    def _run_questions(self, count: int) -> None:
        self.running = count
        self.metrics.set("questions_running", count)

    def _solve(self, jobs: list[Job]) -> None:
        asked = jobs[0].asked
        questions = [question for job in jobs for question in job.asked.questions]
        arguments = {**self.arguments, **asked.arguments}
        names = self.tool_names if asked.tools is None else asked.tools
        tools = (self.make_tools(" ".join(names)) if names else None) or {}  # `None` would be the system's own
        if asked.functions:
            tools = ToolBox(tools, ending=[CALL, *asked.functions])
        streams = [job for job in jobs if job.asked.stream]
        since = time.perf_counter()

        def on_step() -> None:
            if self._closed or all(job.left for job in jobs):
                raise Left

        def on_turn(round_index: int, role: str) -> None:
            nonlocal since
            now = time.perf_counter()
            for job in streams if rows is None or not rows.begun else ():
                job.tell(("turn", round_index, role, now - since))
            since = now
            on_step()

        rows: Rows | None = None
        beams = arguments.get("num_beams", self.mas.generation_config.num_beams) or 1
        if streams and not tools and not arguments.get("complete_answer") and beams == 1:
            arguments["streamer"] = rows = Rows(self.mas, jobs, arguments)
        with _seeded(asked.seed):
            solutions = self.mas.solve(
                questions,
                tools=tools,
                batch_size=self.batch_size,
                on_turn=on_turn,
                on_step=on_step,
                **{**arguments, "keep_order": True},
            )
        self._count(solutions)
        for job in jobs:
            own, solutions = solutions[: len(job.asked.questions)], solutions[len(job.asked.questions) :]
            job.tell(("done", own))

    def _count(self, solutions: list[Solution]) -> None:
        self.metrics.add("batches_total")
        self.metrics.add("questions_total", len(solutions))
        totals = {name: sum(solution.usage[name] for solution in solutions) for name in solutions[0].usage
                  if name != "seconds"}  # fmt: skip
        self.metrics.add("latent_steps_total", totals["latent_positions"])
        for kind in ("prompt", "new"):
            self.metrics.add("tokens_total", totals[f"{kind}_tokens"], kind=kind)
        self.metrics.add("tokens_total", totals["slot_positions"], kind="slot")
        for stage, seconds in solutions[0].usage["seconds"].items():
            role = self.mas.config.decoding_role if stage == "answer" else stage.partition(", ")[2]
            self.metrics.add("role_seconds_total", seconds, role=role)


def _seeded(seed: int | None) -> contextlib.AbstractContextManager:
    """Random numbers of a request's own; those of the process go on afterwards as if nothing had been."""
    stack = contextlib.ExitStack()
    if seed is not None:
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(seed)
    return stack


class Rows(BaseStreamer):
    """Tells jobs their texts while a batch is written, token by token.

    `generate` puts an empty prompt first, then one token a row. A batch that is not the jobs' (memory sufficed for a
    part only) tells nothing; the whole texts come with the solutions.

    Args:
        mas: the system.
        jobs: of the batch, whose questions are its rows in this order.
        arguments: of `solve`.
    """

    def __init__(self, mas: RecursiveMASModel, jobs: list[Job], arguments: dict[str, Any]) -> None:
        self.agent = mas.agents[mas.config.decoding_role]
        config = mas.generation_config
        ends = arguments.get("eos_token_id", config.eos_token_id)
        ends = self.agent.eos_token_ids if ends is None else ends
        self.ends = {ends} if isinstance(ends, int) else set(ends)
        places = [(job, choice) for job in jobs for choice in range(len(job.asked.questions))]
        self.rows = [_Row(job, choice) for job, choice in places]
        self.listening, self.begun = True, False

    def put(self, value: torch.Tensor) -> None:
        if value.numel() == 0:  # the prompt
            return
        self.begun = True
        tokens = [value.flatten().tolist()] if len(self.rows) == 1 else value.reshape(-1, 1).tolist()
        self.listening = self.listening and len(tokens) == len(self.rows)
        if not self.listening:
            return
        for row, new in zip(self.rows, tokens, strict=True):
            if row.open and row.job.asked.stream and not row.job.left:
                row.take(new, self.agent.decode, self.ends)

    def end(self) -> None:
        pass


class _Row:
    """A text that grows: only its last tokens are decoded again for each new one."""

    def __init__(self, job: Job, choice: int) -> None:
        self.job, self.choice, self.open = job, choice, True
        self.text, self.ids = "", list[int]()
        self.start = self.read = 0  # `ids[start:read]` is decoded again, so that what follows is spaced as behind it

    def take(self, new: list[int], decode: Callable[[list[int]], str], ends: set[int]) -> None:
        for token in new:
            self.ids.append(token)
            if token in ends:
                self.open = False
                break
        known, whole = decode(self.ids[self.start : self.read]), decode(self.ids[self.start :])
        if len(whole) > len(known) and not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            self.text += whole[len(known) :]
            self.start, self.read = self.read, len(self.ids)
            self.job.tell(("text", self.choice, self.text))
