"""Agents as Ray actors: each on a device or machine of its own, all at work at once on different batches.

The process that calls `solve` holds no weights. It hands every turn (one role in one round for one batch) to that
role's actor as soon as what the role receives is there. Latents go from actor to actor through Ray's object store;
besides them only texts, token ids and settings travel. A turn depends on nothing but what travels (what an actor
keeps between the rounds of a batch is a cache), so that batches whose actor dies are simply done again on a new one.

    mas = load_mas_system("deliberation", executor="ray", executor_options={
        "reflector": {"num_gpus": 1, "device": "cuda"},
        "toolcaller": {"num_gpus": 0.5, "device": "cuda", "replicas": 2},
    })
    mas.solve(questions, batch_size=8)
"""

import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.exceptions import OutOfMemoryError as MachineOutOfMemoryError
from transformers.utils import logging

from ..depth_recursivemas import Settling
from ..engine_recursivemas import Run, validate_halving
from ..errors_recursivemas import AgentLostError, ConfigError, InputError
from ..generation_recursivemas import AnswerSettings
from ..links_recursivemas import CacheLink
from ..memory_recursivemas import free_memory, is_out_of_memory
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import Question, as_text
from ..runs_recursivemas import RunSettings
from ..solutions_recursivemas import USAGE, Solution
from .jobs import Job, Sent, some

OPTIONS = ("num_cpus", "num_gpus", "resources", "device", "replicas")
TURNS_AHEAD = 2  # that an actor has at most: one runs, the next is there, so that it never waits for this process
MAX_ATTEMPTS = 3  # at a batch whose actors die
DEATHS = (RayActorError, MachineOutOfMemoryError)  # the second: Ray ended it, because the machine had no memory left
GRACE = 10  # seconds for actors that were ended to give back what they held
NOTICE = 60  # and for one that died in the midst of work, until a busy machine has noticed
CURE = (
    'give agents less (`executor_options={"ROLE": {"num_cpus": 0.5}}`), start Ray with what they need'
    " (`ray.init(num_cpus=…, num_gpus=…)` before, on a larger machine or cluster), or take no executor"
)
logger = logging.get_logger(__name__)


class AgentWorker:
    """The agents of one base of a system, with their links; `load` gives the system, told `only` their roles.

    `threads` are the processor threads to use; `None` leaves Ray's choice.
    """

    def __init__(self, roles: list[str], threads: int | None, load: Callable[..., RecursiveMASModel]) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.runs: dict[str, Run] = {}
        self.mas = load(only=roles)

    def ready(self) -> bool:
        """Answers when the agents are loaded."""
        return True

    def turn(
        self,
        batch: str,
        questions: list[Question],
        settings: tuple[dict[str, Any], dict[str, Any]],
        rounds: int | None,
        turn: tuple[int, str],
        keys: list[tuple[tuple, list[int] | None]],
        parted: None,
        *received: Any,
    ) -> Any:
        """Takes a role's turn in a round.

        Args:
            batch: names the batch and the attempt at it.
            rounds: of the run, where its rows have settled.
            turn: round (1 is the first) and role.
            keys: what `received` is: keys of the run's `latents` or `texts`, and which rows, where not all.
            parted: what `part` gave, which stops the turn where it failed.
            received: latents (see `pack`) or texts.

        Returns:
            The actor's usage so far, then the role's texts where it writes, then the latents of each of its links
            where it thinks; in the last turn of a batch the solutions, as dicts.
        """
        # What travels are fields: the classes have other names where the folder has another one.
        run_settings, answer = RunSettings(**settings[0]), AnswerSettings(**settings[1])
        run = self.runs.get(batch)
        if run is None:
            if rounds is not None:
                run_settings = replace(run_settings, num_rounds=rounds, settling=None)
            run = self.runs[batch] = Run(
                self.mas, questions, run_settings, answer.generation_config, tools=answer.message_tools
            )
        for (key, rows), sent in zip(keys, received, strict=True):
            if len(key) == 2:
                run.texts[key] = some(sent, rows)
            else:
                run.latents[key] = some(unpack(sent), rows)
        if turn == run.schedule[-1]:
            with torch.no_grad():
                prompt = run.last_prompt(answer.reuse)
            # What travelled is in this process's store, see `RayExecutor._finish`.
            return [dict(solution) for solution in run.answer(prompt, replace(answer, return_latents=False))]
        run.take_turn(*turn)
        usage = {name: getattr(run.usage, name) for name in (*USAGE, "seconds")}
        sends = sent_keys(run, turn)
        return usage, *(run.texts[key] if len(key) == 2 else pack(run.latents.pop(key)) for key in sends)

    @torch.no_grad()
    def read_out(self, role: str, sent: Any) -> list[str]:
        """What latents (see `pack`) that a role receives say, for each row."""
        return self.mas.agents[role].read_out_rows(unpack(sent))

    def part(self, batch: str, parts: list[tuple[str, list[int], int | None]], parted: None) -> None:
        """Rows of a batch go on apart.

        Args:
            batch: see `turn`; it is forgotten.
            parts: the name of each part, its rows, and where they have settled, the number of rounds.
            parted: what this gave for the batch itself, see `turn`.
        """
        run = self.runs.pop(batch, None)
        if run is None:  # the actor has only read what was sent
            return
        for name, rows, rounds in parts:
            settings = None if rounds is None else replace(run.settings, num_rounds=rounds, settling=None)
            self.runs[name] = run.narrowed(rows, settings)

    def forget(self, batch: str) -> None:
        """Drops what is kept of a batch."""
        self.runs.pop(batch, None)
        free_memory()


def sent_keys(run: Run, turn: tuple[int, str]) -> list[tuple]:
    """What a turn sends: keys of the run's `texts`, (round, role), and `latents`, (round, source, target)."""
    links = run.heard_links(*turn) if run.settings.thinks else []
    return [turn] * run.settings.writes + [(*turn, link.target) for link in links]


def pack(latents: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Latents of each row, (n, width), as one tensor (sum of n, width) on the processor, and their lengths."""
    return torch.cat(latents).cpu(), list(map(len, latents))


def unpack(packed: tuple[torch.Tensor, list[int]]) -> list[torch.Tensor]:
    """The inverse of `pack`."""
    return list(packed[0].split(packed[1]))


def needs_of(place: dict[str, Any]) -> dict[str, float]:
    """What an actor with these options takes, by Ray's names of resources."""
    plain = {"CPU": place.get("num_cpus", 0), "GPU": place.get("num_gpus", 0), **place.get("resources", {})}
    return {name: amount for name, amount in plain.items() if amount}


def validate_resources(needs: dict[str, tuple[int, dict[str, float]]], grace: float | None = None) -> None:
    """Checks that all actors find a place; Ray would wait for ever.

    Args:
        needs: role -> number of its actors, and what each takes.
        grace: seconds that others have to give back what they hold; default `GRACE`.

    Raises:
        InputError: the cluster has too little, or none of its machines enough for an actor, or others hold it.
    """
    total: dict[str, float] = defaultdict(float)
    for count, each in needs.values():
        for name, amount in each.items():
            total[name] += count * amount
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for role, (_, each) in needs.items():
        if not any(all(machine.get(name, 0) >= amount for name, amount in each.items()) for machine in machines):
            raise InputError(
                "No machine of the Ray cluster has what an agent needs.",
                where=f"executor_options, {role}",
                found=_amounts({name: max((m.get(name, 0) for m in machines), default=0) for name in each}),
                expected=_amounts(each),
                hint=CURE,
            )
    everything, roles = ray.cluster_resources(), ", ".join(needs)
    if short := _missing(total, everything):
        raise InputError(
            "The Ray cluster has too little for all agents side by side.",
            where="executor_options",
            found=_amounts({name: everything.get(name, 0) for name in short}),
            expected=f"{_amounts(short)} for {roles}",
            hint=CURE,
        )
    if not fit_side_by_side(machines, [each for count, each in needs.values() for _ in range(count)]):
        raise InputError(
            "The machines of the Ray cluster have no places for all agents side by side.",
            where="executor_options",
            found=" | ".join(_amounts({name: machine.get(name, 0) for name in total}) for machine in machines),
            expected=", ".join(f"{count} × ({_amounts(each)}) for {role}" for role, (count, each) in needs.items()),
            hint=f"an agent lives on one machine, a fraction of a GPU on one GPU; {CURE}",
        )
    deadline = time.monotonic() + (GRACE if grace is None else grace)
    while short := _missing(total, free := ray.available_resources()):
        if time.monotonic() > deadline:
            raise InputError(
                "Others hold what the agents need of the Ray cluster.",
                where="executor_options",
                found=_amounts({name: free.get(name, 0) for name in short}) + " free",
                expected=f"{_amounts(short)} for {roles}",
                hint=f"end what holds it (`mas.executor.shutdown()`), or {CURE}",
            )
        time.sleep(0.2)


def fit_side_by_side(machines: list[dict[str, float]], needs: list[dict[str, float]]) -> bool:
    """Whether actors find places, the largest first, each on the first machine that has what it takes.

    Parts of a GPU are parts of one.
    """
    free = [dict(machine) for machine in machines]
    units = [[1.0] * int(machine.get("GPU", 0)) for machine in machines]
    for each in sorted(needs, key=_size, reverse=True):
        for machine, gpus in zip(free, units, strict=True):
            wanted = each.get("GPU", 0)
            rooms = [index for index, room in enumerate(gpus) if room >= min(1, wanted) - 1e-6]
            if len(rooms) >= wanted and not _missing(each, machine):
                break
        else:
            return False
        for index in rooms[: math.ceil(wanted)]:
            gpus[index] -= min(1, wanted)
        for name, amount in each.items():
            machine[name] -= amount
    return True


def _size(each: Mapping[str, float]) -> tuple[float, float]:
    return each.get("GPU", 0), each.get("CPU", 0)


def _missing(needed: Mapping[str, float], there: Mapping[str, float]) -> dict[str, float]:
    """The needed amounts of what there is too little of."""
    return {name: amount for name, amount in needed.items() if there.get(name, 0) < amount - 1e-6}


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


class RayExecutor:
    """Solves batches by actors, see `RecursiveMASModel.solve_batches`; stands in its place.

    Args:
        mas: the system, whose agents need no weights.
        load: `load_mas_system` with its arguments; each actor loads its agent by it, given `only` (and `device`).
        options: role -> `num_cpus`, `num_gpus`, `resources` (of Ray; fractions let actors share a GPU), `device` (of
            the agent) and `replicas` (how many actors share the role's batches; more where an agent is the
            bottleneck). Roles of one base live in one actor, which holds it once, unless their options differ.

    An actor that dies is replaced by a new one, and the batches that it had are done again from their first round.

    Raises:
        ConfigError: an unknown role or option.
        InputError: the cluster has not what the actors need.
    """

    def __init__(
        self, mas: RecursiveMASModel, load: Callable[..., RecursiveMASModel], options: dict[str, dict] | None = None
    ) -> None:
        options = options or {}
        for role, own in options.items():
            if role not in mas.topology.roles or set(own) - set(OPTIONS):
                raise ConfigError(
                    "`executor_options` cannot be used.",
                    where=f"executor_options, {role}",
                    found=", ".join(own),
                    expected=f"role -> {', '.join(OPTIONS)}; roles {', '.join(mas.topology.roles)}",
                )
            if (gpus := own.get("num_gpus", 0)) > 1 and gpus != int(gpus):
                raise ConfigError(
                    "An actor takes a part of one GPU, or whole ones.",
                    where=f"executor_options, {role}, num_gpus",
                    found=gpus,
                    expected="at most 1, or a whole number",
                )
        if not ray.is_initialized():
            ray.init(include_dashboard=False)  # what actors and Ray warn of comes to this process's standard error
        self.mas, self.topology = mas, mas.topology
        # Roles of one base, with the same options, have one host: the first of them, by whose name its actors go.
        self.hosts = {role: role for role in self.topology.roles}
        for roles in mas.shared_bases:
            for role in roles:
                self.hosts[role] = next(other for other in roles if options.get(other) == options.get(role))
        for link in self.topology.links:
            if (
                isinstance(mas.outer_links[link.name], CacheLink)
                and self.hosts[link.source] != self.hosts[link.target]
            ):
                raise ConfigError(
                    "Working memory does not leave an actor.",
                    where=f"links, {link.name}",
                    found=f"other `executor_options` for {link.source} than for {link.target}",
                    expected="the same for both, so that one actor has both",
                )
        places = {}
        for role in dict.fromkeys(self.hosts.values()):
            own = dict(options.get(role, {}))
            count, device = own.pop("replicas", 1), own.pop("device", None)
            places[role] = (count, device, {"num_cpus": 1, **own})
        self._needs = {role: (count, needs_of(place)) for role, (count, _, place) in places.items()}
        validate_resources(self._needs)
        # Ray sends a class that it decorates by value, with whatever its methods name; this one the actors import.
        # Ray's own restarts would give back an empty actor under the same name, in the midst of its batches.
        actor_class: Any = ray.remote(max_restarts=0)(AgentWorker)
        self._starts: dict[str, Callable[[], Any]] = {}
        for role, (_, device, place) in places.items():
            loading = load if device is None else partial(load, device=device)
            threads = int(place["num_cpus"]) or None
            hosted = [other for other, host in self.hosts.items() if host == role]
            self._starts[role] = partial(actor_class.options(**place).remote, hosted, threads, loading)
        self._lock = threading.Lock()
        self.replicas: dict[str, list] = {}
        for role in sorted(places, key=lambda role: _size(self._needs[role][1]), reverse=True):
            self.replicas[role] = [self._starts[role]() for _ in range(places[role][0])]
        ray.get([actor.ready.remote() for actor in self._actors])

    @property
    def _actors(self) -> list[Any]:
        return [actor for actors in self.replicas.values() for actor in actors]

    def __call__(
        self,
        batches: list[list[Question]],
        settings: RunSettings,
        answer: AnswerSettings,
        on_turn: Callable[[int, str], None] | None = None,
    ) -> Iterator[tuple[int, list[Solution]]]:
        """Yields each batch's index and solutions, as they are finished.

        Raises:
            AgentLostError: actors died in all attempts at a batch.
        """
        # Of this run only the schedule and the settings are used.
        if settings.settling and not Settling(self.mas, settings, 1).turns:  # who answers waits for nobody
            settings = replace(settings, settling=None)
        run = Run(self.mas, batches[0], settings, answer.generation_config)
        shared = ray.put((vars(settings), vars(answer)))
        settle = partial(Settling, self.mas, settings) if settings.settling else None
        todo = deque(Job(index, questions, run.schedule, settle) for index, questions in enumerate(batches))
        active: list[Job] = []
        pending: dict[ray.ObjectRef, tuple[Job, tuple, list]] = {}
        solved: dict[int, dict[int, Solution]] = defaultdict(dict)  # batch -> row -> what a job gave
        # Back-pressure: no more batches under way than keep every actor busy.
        limit, most = TURNS_AHEAD * len(self._actors), max(map(len, batches))
        try:
            while todo or active:
                while todo and len(active) < limit:
                    active += todo.popleft().parts(most)
                load = Counter(job.actors[self.hosts[turn[-1]]] for job, turn, _ in pending.values())
                for job in active:  # the oldest batch first
                    for turn in [turn for turn in job.waiting if job.done.issuperset(self._senders(turn, run))]:
                        host = self.hosts[turn[-1]]
                        actor = job.actors.get(host) or min(self.replicas[host], key=load.__getitem__)
                        if load[actor] < TURNS_AHEAD:
                            load[actor] += 1
                            job.actors[host] = actor
                            job.waiting.remove(turn)
                            refs, keys = self._submit(job, actor, turn, run, shared)
                            pending[refs[0]] = (job, turn, list(zip(keys, refs[1:], strict=True)))
                (ref,), _ = ray.wait(list(pending), num_returns=1)
                job, turn, sent = pending.pop(ref)
                if job not in active:
                    continue  # an earlier attempt
                try:
                    value = ray.get(ref)
                    if turn == job.answer:
                        value = self._finish(job, value, answer.return_latents)
                    else:
                        self._note(job, turn, value, sent)
                        going_on = job.waiting or any(other is job for other, _, _ in pending.values())
                        parts = [job] if job.settling is None or going_on else self._part(job, run)
                except (*DEATHS, ObjectLostError) as error:
                    for lost, place in self._lost(job, turn[-1], error, active):
                        self._forget(active[place])
                        active[place] = lost
                    continue
                except RayTaskError as error:
                    if not is_out_of_memory(error.cause):
                        raise
                    validate_halving(job.questions, settings, error.cause)
                    most = len(job.questions) // 2
                    again = job.parts(most)
                else:
                    again = []
                    if on_turn and len(turn) == 2:
                        on_turn(*turn)
                    if turn != job.answer:
                        active[active.index(job) : active.index(job) + 1] = parts
                        continue
                    solved[job.index].update(zip(job.rows, value, strict=True))
                self._forget(job)
                active[active.index(job) : active.index(job) + 1] = again
                if not again and len(solved[job.index]) == len(batches[job.index]):
                    yield (
                        job.index,
                        [solution for _, solution in sorted(solved.pop(job.index).items(), key=itemgetter(0))],
                    )
        finally:  # an actor goes on to hold a run until it is told
            for job in active:
                self._forget(job)

    def _lost(self, job: Job, role: str, error: Exception, active: list[Job]) -> list[tuple[Job, int]]:
        """What is done in place of the batches under way that an actor's death, or what was lost with it, has hit.

        The actor is replaced. What it kept of a batch (its part of the usage, working memory) is gone with it, so that
        every batch that goes on there is done again.

        Raises:
            AgentLostError: it was the last attempt at the batch.
        """
        host = self.hosts[role]
        actor = job.actors[host]
        if not isinstance(error, ObjectLostError):  # which another actor's machine has lost
            self._replace(host, actor)
        if job.attempt >= MAX_ATTEMPTS:
            raise AgentLostError(
                "An agent's actor died in every attempt at a batch.",
                where=f"agent {role}, {MAX_ATTEMPTS} attempts, first question {as_text(job.questions[0])[:100]!r}",
                found=" ".join(str(error).split()),
                hint="a smaller batch_size, fewer agents on its machine, or more memory; the actor's own output and"
                " `ray logs` say more",
            ) from error
        logger.warning(f"An actor of {role} died, its batches are done again on another: {str(error)[:200]}")
        hit = []
        for place, other in enumerate(active):
            goes_on = any(self.hosts[role] == host for _, role in other.ahead)
            if other is job or (other.actors.get(host) is actor and goes_on):
                hit.append((other.again(other.attempt + (other is job)), place))
        return hit

    def _replace(self, host: str, actor: Any) -> None:
        """Puts a new actor in the place of one that died, unless another thread has."""
        with self._lock:
            if actor not in self.replicas[host]:
                return
            ray.kill(actor)  # it may be out of reach only
            validate_resources({host: (1, self._needs[host][1])}, NOTICE)
            self.replicas[host][self.replicas[host].index(actor)] = self._starts[host]()

    def _note(self, job: Job, turn: tuple, value: Any, sent: list[tuple[tuple, ray.ObjectRef]]) -> None:
        """Keeps what an actor gave for what a job waited for."""
        if len(turn) == 3:
            job.heard[turn] = value
            return
        job.done.add(turn)
        job.sent.update((key, Sent(ref)) for key, ref in sent)
        known = job.usage.setdefault(self.hosts[turn[1]], value)
        if len(value["seconds"]) > len(known["seconds"]):  # of a later turn; they may come mixed
            job.usage[self.hosts[turn[1]]] = value
        if job.settling is not None and job.settling.signal != "latents":
            job.waiting += [key for key, _ in sent if len(key) == 3]

    def _part(self, job: Job, run: Run) -> list[Job]:
        """What goes on in a job's place behind a stage: those of its rows that have settled, and the others."""
        said: dict[tuple, list] = {}
        assert job.settling is not None
        for key in (key for turn in job.settling.turns for key in sent_keys(run, turn)):
            if len(key) == 2:
                texts = ray.get(job.sent[key].ref)
                said |= {(*key, link.target): texts for link in self.topology.outgoing(key[1])}
            else:
                said[key] = job.heard.pop(key) if key in job.heard else unpack(ray.get(job.sent[key].ref))
        departure = job.settling.hear(said)
        job.waiting = list(job.settling.turns)
        if not departure.places:
            return [job]
        parts = [job.part(departure.places, departure)]
        about: list[tuple] = [(parts[0].name, departure.places, departure.settings.num_rounds)]
        if departure.staying:
            parts.append(job.part(departure.staying))
            about.append((parts[1].name, departure.staying, None))
        for host, actor in job.actors.items():
            parted = actor.part.remote(job.name, about, job.parted.get(host))
            for part in parts:
                part.parted[host] = parted
        return parts

    def _senders(self, turn: tuple, run: Run) -> list[tuple[int, str]]:
        """The turns that a turn hears from, or whose words a reading reads."""
        if len(turn) == 3:
            return [turn[:2]]
        if len(run.schedule) == 1:
            return []
        round_index, role = turn
        return [(round_index - link.feedback, link.source) for link in self.topology.incoming(role, round_index)]

    def _submit(self, job: Job, actor: Any, turn: tuple, run: Run, settings: ray.ObjectRef) -> tuple[list, list]:
        role = turn[-1]
        if len(turn) == 3:
            return [actor.read_out.remote(role, job.sent[turn].ref)], []
        sent = [key for sender in self._senders(turn, run) for key in sent_keys(run, sender)]
        keys = [key for key in sent if len(key) == 2 or key[2] == role]
        outgoing = sent_keys(run, turn) if turn != job.answer else []
        rounds = None if job.departure is None else job.departure.settings.num_rounds
        received = [(key, job.sent[key].rows) for key in keys]
        refs = actor.turn.options(num_returns=1 + len(outgoing)).remote(
            *(job.name, job.questions, settings, rounds, turn, received, job.parted.get(self.hosts[role])),
            *(job.sent[key].ref for key in keys),
        )
        return (refs if outgoing else [refs]), outgoing

    def _finish(self, job: Job, rows: list[dict], return_latents: bool) -> list[Solution]:
        """Adds to the decoding agent's solutions what the other actors used and sent."""
        others = [usage for host, usage in job.usage.items() if host != self.hosts[self.topology.decoding_role]]
        texts, latents = {}, {}
        for key, sent in job.sent.items():
            if len(key) == 2:
                texts[key] = some(ray.get(sent.ref), sent.rows)
            elif return_latents:
                latents[key] = some(unpack(ray.get(sent.ref)), sent.rows)
        solutions = []
        for index, fields in enumerate(rows):
            usage = fields["usage"]
            for other in others:
                for name in USAGE:
                    usage[name] += other[name][index]
                usage["seconds"] |= other["seconds"]
            if job.departure is not None:
                usage["turns"] = job.departure.turns
            fields["messages"] = {key: each[index] for key, each in texts.items()} or None
            fields["latents"] = {key: each[index] for key, each in latents.items()} or None
            solutions.append(Solution(**fields))
        return solutions

    def _forget(self, job: Job) -> None:
        for actor in job.actors.values():
            actor.forget.remote(job.name)

    def shutdown(self) -> None:
        """Ends the actors."""
        for actor in self._actors:
            ray.kill(actor)
