"""The probe of a new system: which settings of its links hold, and whether latents carry what text carries.

Every new outer link is probed by itself, between the two agents at its ends: the sender reads six facts and a
question, the receiver the question and what was handed over (tasks/split_facts.py), so that whatever the receiver
knows came along the link. A system whose own prompts ask in these fields, or a user's own questions, are answered by
the whole system instead, and scored against the questions' answers or, where they have none, those of text hand-over.
Text, nothing, and latents under a few settings are measured on some questions; of the settings the simplest is taken
that no other is surely better than. The verdict is on fresh questions.
"""

import copy
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..configuration_recursivemas import RecursiveMASConfig
from ..evaluation.commands import progress
from ..evaluation.measure import wilson_interval
from ..evaluation.metrics import METRICS
from ..evaluation.paired import mcnemar, only_right
from ..evaluation.results import provenance
from ..loading_recursivemas import fill_config
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import Slot, slot_marker, template_for
from ..solutions_recursivemas import Solution
from ..tasks import split_facts
from ..topology_recursivemas import Link
from .data import read_rows, refuse_bad_rows
from .start import CODEBOOK_SIZE, TEMPERATURE, codebook, start_mixture, texts_of

CHOOSING = 24  # questions on which settings are chosen
JUDGING, MOST = 48, 192  # fresh ones for the verdict: so many at a time, and at most, until it is clear
BATCH = 24
ANSWER_TOKENS = 24  # of the probe's own questions
ENOUGH = 0.8  # of what text carries
FREE = {"temperature": (TEMPERATURE, 0.5, 1.0), "norm": ("mean", None), "snap": (False, True)}  # the simplest first
FIELDS = {"question", "facts"}  # of the probe's own questions

Right = list[bool]  # of each question: was its answer right


@dataclass(frozen=True)
class Setting:
    """A way of handing over.

    Attributes:
        mode: "latents", "text" or "nothing".
        num_rounds: recursion rounds.
        temperature, norm: of the senders' mixtures, see `start_mixture`; without a temperature these stay as they are.
        codebook: whether these are over a codebook.
        snap: whether the outer links snap.
    """

    mode: Literal["latents", "text", "nothing"] = "latents"
    num_rounds: int = 1
    temperature: float | None = TEMPERATURE
    norm: float | str | None = "mean"
    codebook: bool = False
    snap: bool = False

    def __str__(self) -> str:
        if self.mode != "latents":
            return self.mode
        norm = "no norm" if self.norm is None else f"norm {self.norm}"
        mixture = f"temperature {self.temperature}, {norm}" if self.temperature else "the sender's own inner link"
        return f"latents: {mixture}" + ", codebook" * self.codebook + ", snapped" * self.snap


@dataclass
class Figure:
    """What a setting gave: which answers were right, and the seconds that one took on average."""

    right: Right
    seconds: float


Measure = Callable[[Setting], Figure]


def share(right: Right) -> float:
    """The share of right answers."""
    return sum(right) / len(right)


def surely_more(one: Right, other: Right) -> bool:
    """Whether one way is right more often than another on the same questions (exact p of McNemar's test < 0.05)."""
    wins, losses = only_right(one, other)
    return wins > losses and mcnemar(wins, losses) < 0.05


def choose(candidates: Sequence[Setting], measure: Measure, rounds: Sequence[int]) -> Setting:
    """The first of some settings, the simplest first, that the best of them is not surely better than."""
    found = [[r for n in rounds for r in measure(replace(each, num_rounds=n)).right] for each in candidates]
    best = max(found, key=sum)
    return next(each for each, right in zip(candidates, found, strict=True) if not surely_more(best, right))


def search(measure: Measure, start: Setting, free: Mapping[str, Sequence[Any]], rounds: Sequence[int]) -> Setting:
    """Chooses one attribute of a setting after another.

    Args:
        measure: measures a setting on the questions to choose on.
        start: what is taken where nothing is surely better.
        free: attribute -> its values, the simplest first.
        rounds: numbers of rounds over which snapping is judged; the first is that of all other attributes.
    """
    for name, values in free.items():
        candidates = [replace(start, **{name: value}) for value in values]
        start = choose(candidates, measure, rounds if name == "snap" else rounds[:1])
    return start


@dataclass(frozen=True)
class Verdict:
    """What a link, or a system, is worth. `outcome` is "works", "needs training" or "cannot tell"."""

    outcome: Literal["works", "needs training", "cannot tell"]
    text: str


def judge(name: str, text: Right, latents: Right, nothing: Right) -> Verdict:
    """The verdict from what text, latents and nothing gave on the same questions."""
    means = f"text {share(text):.2f}, latents {share(latents):.2f}, nothing handed over {share(nothing):.2f}"
    figures = f"{name}: {means} ({len(text)} questions)"
    if not surely_more(text, nothing):
        return cannot_tell(figures, "text carries nothing here either")
    close = "" if is_clear(text, latents) else f"; close to the line, {ENOUGH} of text"
    if surely_more(latents, nothing) and share(latents) >= ENOUGH * share(text):
        return Verdict("works", f"{figures}: the links work{close}")
    return Verdict("needs training", f"{figures}: this needs training (docs/training.md){close}")


def is_clear(text: Right, latents: Right) -> bool:
    """Whether more questions would hardly change on which side of `ENOUGH` latents are (one-sided 5 %)."""
    beyond = [a - ENOUGH * b for a, b in zip(latents, text, strict=True)]
    mean = sum(beyond) / len(beyond)
    variance = sum((each - mean) ** 2 for each in beyond) / len(beyond)
    return abs(mean) >= 1.645 * (variance / len(beyond)) ** 0.5


def cannot_tell(name: str, why: str) -> Verdict:
    """The verdict where there is nothing to compare latents with."""
    hint = "probe with questions that these agents can answer (--probe-data)"
    return Verdict("cannot tell", f"{name}: the probe cannot tell: {why}; {hint}")


# Questions


@dataclass(frozen=True)
class Question:
    """What is asked, by field, and the right answer where it is known."""

    inputs: dict[str, str]
    answer: str | None


def own_questions() -> list[Question]:
    """The questions that are asked where a user gives none."""
    rows = split_facts.generate(CHOOSING + MOST, levels=[1])
    return [Question({name: row[name] for name in sorted(FIELDS)}, row["answer"]) for row in rows]


def read_questions(path: str | Path, fields: Iterable[str], limit: int | None = CHOOSING + MOST) -> list[Question]:
    """A user's questions, so many of them; their answers count where every row has one.

    Raises:
        DataError: there is no such file, or a row lacks a field.
    """
    rows, report = read_rows(path, limit=limit, fields=list(fields))
    refuse_bad_rows(report)
    known = all(row.answer for row in rows)
    return [Question(row.inputs, row.answer if known else None) for row in rows]


def agree(one: str | None, other: str | None) -> bool:
    """Whether two answers have at least half of their words in common (F1)."""
    words = [re.findall(r"\w+", (answer or "").lower()) for answer in (one, other)]
    common = sum(min(each.count(word) for each in words) for word in set(words[0]))
    return words[0] == words[1] or 4 * common >= sum(map(len, words))


# What is probed


@dataclass
class Subject:
    """What is probed as one: a link between two agents, or a whole system.

    Attributes:
        name: for people.
        system: what answers; its agents and links are those of the system that is probed.
        senders: roles whose mixtures may be changed.
        links: names of the outer links that may be changed.
        num_rounds: of the verdict.
        chosen_rounds: numbers of rounds with which settings are chosen, see `search`.
        answer_tokens: most of an answer; `None` is the system's default.
        codebook_size: of the codebooks.
        texts: role -> what it reads and says, for its codebook.
    """

    name: str
    system: RecursiveMASModel
    senders: list[str]
    links: list[str]
    num_rounds: int
    chosen_rounds: list[int]
    answer_tokens: int | None
    codebook_size: int
    texts: dict[str, list[str]] = field(default_factory=dict)

    def apply(self, setting: Setting) -> None:
        """Puts a setting into the new links."""
        for role in self.senders:
            agent = self.system.agents[role]
            token_ids = codebook(agent, self.codebook_size, self.texts[role]) if setting.codebook else None
            assert setting.temperature is not None
            self.system.set_link(role, start_mixture(agent, setting.temperature, setting.norm, token_ids))
        for name in self.links:
            link = self.system.outer_links[name]
            link.snap = setting.snap
            self.system.set_link(name, link)

    def solve(self, questions: Sequence[Question], setting: Setting, on_progress: Callable) -> list[Solution]:
        """Greedy answers to questions."""
        if setting.mode == "latents":
            self.apply(setting)
        solutions = self.system.solve(
            [question.inputs for question in questions],
            mode="text" if setting.mode == "text" else "latent",
            latent_steps=0 if setting.mode == "nothing" else None,
            num_rounds=setting.num_rounds,
            batch_size=BATCH,
            on_progress=on_progress,
            do_sample=False,
            max_new_tokens=self.answer_tokens,
            tools={},
        )
        for question, solution in zip(questions, solutions, strict=True):
            for (_, role), text in (solution.messages or {}).items():
                self.texts.setdefault(role, []).extend([text, *question.inputs.values()])
        return solutions

    def lacks_room(self, questions: Sequence[Question]) -> str | None:
        """Which agent's positions cannot hold its longest prompt and what follows it, in words."""
        config = self.system.config
        steps = max(config.latent_steps, config.message_tokens, self.answer_tokens or 0)
        for role, agent in self.system.agents.items():
            room = getattr(agent.model.config.get_text_config(), "max_position_embeddings", None)
            prompts = {template_for(config.prompts, role, config.task, phase) for phase in ("first", "feedback")}
            pieces = [
                self.system.renderers[role].pieces(*prompt, question.inputs)
                for prompt in prompts
                for question in questions
            ]
            longest = max(sum(steps if isinstance(piece, Slot) else len(piece) for piece in row) for row in pieces)
            if room is not None and longest + steps > room:
                return f"{role} has room for {room} positions, and the probe needs {longest + steps}"
        return None


class Meter:
    """Measures a subject on questions, every setting once; a `Measure`.

    Attributes:
        figures: setting -> what was measured, in order.
    """

    def __init__(self, subject: Subject, questions: Sequence[Question], on_progress: Callable) -> None:
        self.subject, self.questions, self.on_progress = subject, questions, on_progress
        self.figures: dict[Setting, Figure] = {}
        self._texts: dict[int, list[Solution]] = {}

    def __call__(self, setting: Setting) -> Figure:
        if setting not in self.figures:
            if setting.mode != "text" and any(question.answer is None for question in self.questions):
                self(Setting("text", setting.num_rounds))  # with which answers are compared
            started = time.perf_counter()
            solutions = self.subject.solve(self.questions, setting, self.on_progress)
            seconds = (time.perf_counter() - started) / len(self.questions)
            if setting.mode == "text":
                self._texts[setting.num_rounds] = solutions
            texts = self._texts.get(setting.num_rounds, solutions)
            right = [
                agree(solution.answer, text.answer)
                if question.answer is None
                else METRICS["contains"](solution, question.answer)
                for question, solution, text in zip(self.questions, solutions, texts, strict=True)
            ]
            self.figures[setting] = Figure(right, seconds)
        return self.figures[setting]


def pair_of(mas: RecursiveMASModel, link: Link) -> RecursiveMASModel:
    """A system of the two agents of a link, and of the link back where there is one, with the probe's prompts."""
    ends = {link.source: link.target, link.target: link.source}
    back = [each for each in mas.topology.links if (each.source, each.target) == (link.target, link.source)]
    sends, receives = ({key: entry[key] for key in ("system", "default")} for entry in split_facts.PROMPTS.values())
    told, answered = (slot_marker(role) for role in split_facts.PROMPTS)
    sends, receives = (
        json.loads(json.dumps(entry).replace(marker, slot_marker(role)))
        for entry, marker, role in ((sends, answered, link.target), (receives, told, link.source))
    )
    if not back:
        sends["default"].pop("feedback")
    config = RecursiveMASConfig(
        agents={role: copy.deepcopy(mas.config.agents[role]) for role in ends},
        stages=[[link.source], [link.target]],
        links=[
            {"source": link.source, "target": link.target},
            *({"source": each.source, "target": each.target, "feedback": True} for each in back),
        ],
        decoding_role=link.target,
        prompts={link.source: sends, link.target: receives},
        num_rounds=1,
        latent_steps=mas.config.latent_steps,
        latent_halting=mas.config.latent_halting,
        control_tokens=mas.config.control_tokens,
        message_tokens=max(1, mas.config.latent_steps),
        chat_template_kwargs=mas.config.chat_template_kwargs,
    )
    links = {each.name: mas.outer_links[each.name] for each in (link, *back)}
    return RecursiveMASModel(config, {role: mas.agents[role] for role in ends}, links)


def subjects_of(
    mas: RecursiveMASModel, new: Sequence[str], whole: Sequence[int] | None, codebook_size: int
) -> list[list[Subject]]:
    """What is probed of a system, in groups whose first one stands for the others: the same bases on both sides.

    Args:
        mas: the system.
        new: roles whose agents are new; the outer links that touch them are new too.
        whole: the system is probed as one, by its own prompts, and these are its `chosen_rounds`.
        codebook_size: of codebooks.
    """
    links = [link for link in mas.topology.links if {link.source, link.target} & set(new)]
    texts = {role: texts_of(mas.config.prompts[role]) for role in mas.agents}
    if whole is not None:
        names, rounds = [link.name for link in links], mas.config.most_rounds
        return [[Subject("the system", mas, list(new), names, rounds, list(whole), None, codebook_size, texts)]]
    groups: dict[str, list[Subject]] = {}
    settled: set[str] = set()
    for link in links:
        pair = pair_of(mas, link)
        senders = [link.source] if link.source in new and link.source not in settled else []
        settled.update(senders)
        subject = Subject(
            name=f"{link.source} -> {link.target}",
            system=pair,
            senders=senders,
            links=[link.name],
            num_rounds=1,
            chosen_rounds=list(range(1, len(pair.topology.links) + 1)),
            answer_tokens=ANSWER_TOKENS,
            codebook_size=codebook_size,
            texts={role: list(texts[role]) for role in pair.agents},
        )
        bases = [{**mas.config.agents[role], "inner_link": None} for role in (link.source, link.target)]
        key = json.dumps(bases, sort_keys=True) if link.source in new else link.name
        groups.setdefault(key, []).append(subject)
    return list(groups.values())


# The probe


def probe(
    mas: RecursiveMASModel,
    new: Sequence[str],
    start: Setting,
    free: Mapping[str, Sequence[Any]],
    data: str | Path | None = None,
    codebook_size: int = CODEBOOK_SIZE,
) -> dict[str, Any]:
    """Chooses the settings of the new links of a system, puts them in, and judges what the system then does.

    Args:
        mas: the system.
        new: roles whose agents, and so whose links, are new.
        start: the setting to begin with, which stays where nothing is surely better or nothing can be told.
        free: what may be chosen, see `search`.
        data: a user's questions (JSON lines), see `read_questions`; default the probe's own.
        codebook_size: of codebooks.

    Returns:
        "probes", each with "name", "outcome", "verdict", the "setting" that was put in, and its "figures"; "data",
        and `provenance`.

    Raises:
        DataError: the user's questions cannot be read.
    """
    questions = own_questions() if data is None else read_questions(data, mas.input_fields)
    choosing = min(CHOOSING, len(questions) // 3)
    rounds = mas.config.most_rounds
    if data is not None:
        whole: Sequence[int] | None = [rounds]  # a user's questions may need all of them
    else:
        whole = range(1, min(rounds, 2) + 1) if set(mas.input_fields) == FIELDS else None
    groups = subjects_of(mas, new, whole, codebook_size)
    settled: dict[str, Setting] = {}
    probes = []
    for first, *others in groups:
        role = first.senders[0] if first.senders else first.system.topology.links[0].source
        begin = start if first.senders else settled.get(role, replace(start, temperature=None, norm=None))
        found = probe_one(first, begin, free if first.senders else _only_snap(free), questions, choosing)
        probes.append(found)
        for subject in others:
            subject.texts.update({sender: first.texts[role] for sender in subject.senders})
        for subject in (first, *others):
            settled.update(dict.fromkeys(subject.senders, found["setting"]))
            subject.apply(found["setting"])
        for subject in others:
            outcome = {"outcome": found["outcome"], "verdict": f"{subject.name}: as {first.name}, of the same bases"}
            probes.append({"name": subject.name, **outcome, "setting": found["setting"], "figures": []})
    fill_config(mas.config, mas.agents, mas.outer_links)
    for each in probes:
        each["setting"] = {name: getattr(each["setting"], name) for name in ("codebook", *FREE)}
    source = f"{split_facts.TASK.name}, level 1, seed 0" if data is None else str(data)
    return {**provenance(), "data": source, "probes": probes}


def probe_one(
    subject: Subject, start: Setting, free: Mapping[str, Sequence[Any]], questions: Sequence[Question], choosing: int
) -> dict[str, Any]:
    """One subject's entry of `probe`; `choosing` of the questions are chosen on, the others judged on."""
    text, nothing = (Setting(mode, subject.chosen_rounds[0]) for mode in ("text", "nothing"))
    figures: list[dict[str, Any]] = []
    if not subject.system.config.latent_steps:
        judged = cannot_tell(subject.name, "nothing is handed over (`latent_steps` is 0)")
    elif why := subject.lacks_room(questions):
        judged = cannot_tell(subject.name, why)
    else:
        # Text, nothing and the start; then each other value once, and snapping in each number of rounds.
        settings = 3 + sum(len(values) - 1 for values in free.values()) + start.codebook
        settings += (len(subject.chosen_rounds) - 1) * len(free.get("snap", ()))
        total = settings * choosing + 3 * (len(questions) - choosing)
        with progress(total, f"Probing {subject.name}") as bar:
            meter = Meter(subject, questions[:choosing], bar.update)
            if surely_more(meter(text).right, meter(nothing).right):
                start = search(meter, start, free, subject.chosen_rounds)
                if start.codebook:  # for people to compare
                    meter(replace(start, num_rounds=subject.chosen_rounds[0], codebook=False))
                judging = [replace(each, num_rounds=subject.num_rounds) for each in (text, start, nothing)]
                last = measure_until_clear(subject, judging, questions[choosing:], bar.update)
                judged = judge(subject.name, *(last[each].right for each in judging))
                figures = [*_rows(meter.figures), *_rows(last)]
            else:
                figures = _rows(meter.figures)
                means = f"text {share(meter(text).right):.2f}, nothing handed over {share(meter(nothing).right):.2f}"
                judged = cannot_tell(f"{subject.name}: {means} ({choosing} questions)", "even text carries nothing")
    return {
        "name": subject.name, "outcome": judged.outcome, "verdict": judged.text, "setting": start, "figures": figures
    }  # fmt: skip


def _only_snap(free: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """What is left to choose of a sender whose mixture stays as it is."""
    return {name: values for name, values in free.items() if name == "snap"}


def measure_until_clear(
    subject: Subject, settings: Sequence[Setting], questions: Sequence[Question], on_progress: Callable
) -> dict[Setting, Figure]:
    """Measures text, latents and nothing on `JUDGING` questions at a time, until `is_clear` or all are asked."""
    text, latents, _ = settings
    found: dict[Setting, Figure] = {}
    for begin in range(0, len(questions), JUDGING):
        meter = Meter(subject, questions[begin : begin + JUDGING], on_progress)
        for setting in settings:
            new, old = meter(setting), found.get(setting, Figure([], 0.0))
            right = old.right + new.right
            seconds = (old.seconds * len(old.right) + new.seconds * len(new.right)) / len(right)
            found[setting] = Figure(right, seconds)
        if is_clear(found[text].right, found[latents].right):
            break
    return found


def _rows(figures: Mapping[Setting, Figure]) -> list[dict[str, Any]]:
    """What was measured, as rows of results."""
    return [
        {
            "setting": str(setting),
            "num_rounds": setting.num_rounds,
            "num_questions": len(figure.right),
            "right": sum(figure.right),
            "accuracy": share(figure.right),
            "interval": wilson_interval(sum(figure.right), len(figure.right)),
            "seconds": figure.seconds,
        }
        for setting, figure in figures.items()
    ]


def table(found: Mapping[str, Any]) -> str:
    """The figures of a probe's entry, for people."""
    lines = [["hand-over", "rounds", "questions", "right", "95 % interval", "s a question"]]
    for row in found["figures"]:
        low, high = row["interval"]
        numbers = [str(row["num_rounds"]), str(row["num_questions"]), f"{row['accuracy']:.2f}"]
        lines.append([row["setting"], *numbers, f"{low:.2f}–{high:.2f}", f"{row['seconds']:.2f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in lines
    )
