"""The recursion engine: runs any topology for a batch of questions, over latents or over text.

For each round, for each role on whose latents the answer depends: put what was sent to it into the slots of its
prompt, think (latent rollout, inner link), send through the outer links. In the last round the decoding role answers.
"""

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from .agent_recursivemas import RecursiveMASAgent
from .answers_recursivemas import extract_answer
from .batching_recursivemas import PromptBatch, PromptBuilder, prompt_builders
from .chats_recursivemas import split_question
from .controls_recursivemas import stand_in
from .errors_recursivemas import InputError, OutOfMemoryError
from .generation_recursivemas import (
    AnswerSettings,
    continues_cache,
    ends_of,
    generate_from,
    message_config,
    trim,
    watched,
    write_answers,
    write_with_tools,
)
from .handover_recursivemas import hand_over
from .limits_recursivemas import name_of, validate_finite, validate_positions
from .links_recursivemas import AnyOuterLink, CacheLink
from .memories_recursivemas import (
    WorkingMemory,
    cache_links,
    continued_turn,
    remember,
)
from .memory_recursivemas import is_out_of_memory
from .modules_recursivemas import Modules
from .prompts_recursivemas import PromptRenderer, Question, as_inputs, as_text, template_for, text_tokens
from .runs_recursivemas import RunSettings
from .solutions_recursivemas import USAGE, Solution, Usage
from .tools_recursivemas import ToolBox
from .topology_recursivemas import Link, Topology

logger = logging.get_logger(__name__)


class Residency:
    """Keeps only the working agent on its accelerator; the others wait in CPU memory.

    Args:
        agents: role -> agent.
        devices: role -> accelerator.
    """

    def __init__(self, agents: dict[str, RecursiveMASAgent], devices: dict[str, str | torch.device]) -> None:
        self.agents, self.devices = agents, devices
        self.resident: str | None = None

    def enter(self, role: str) -> None:
        """Moves a role's agent to its accelerator, once the one that was there has gone; a base of both stays."""
        if role == self.resident:
            return
        if self.resident is not None:
            leaving, entering = self.agents[self.resident], self.agents[role]
            if leaving.get_input_embeddings().weight is entering.get_input_embeddings().weight:
                staying = set(map(id, entering.parameters()))
                for parameter in leaving.parameters():  # a link, an adapter
                    parameter.data = parameter.data.to("cpu") if id(parameter) not in staying else parameter.data
            else:
                leaving.to("cpu")  # type: ignore[arg-type]
            self.resident = None  # until the other is there, for which memory may not suffice
        self.agents[role].to(self.devices[role])  # type: ignore[arg-type]
        self.resident = role


class System(Protocol):
    """What a run needs of a system; `RecursiveMASModel` is one."""

    agents: Modules[RecursiveMASAgent]
    outer_links: Modules[AnyOuterLink]
    topology: Topology
    renderers: dict[str, PromptRenderer]
    residency: Residency | None


class Run:
    """One run of a system over a batch of questions, without gradients.

    Each turn's latents, what it sends and its first and last logits are finite, or NonFiniteError says whose are not.

    Args:
        system: agents, links and topology.
        questions: the batch, texts or field -> text; one may hold the start of its answer (chats_recursivemas.py).
        settings: see `RunSettings`.
        generation_config: of the answer; messages in `mode="text"` sample like it.
        on_turn: called with round and role when a turn is taken, the answer's too.
        on_step: called at each latent step and each token; what it raises ends the run.
        tools: role -> its tools, of roles that use some in their messages.

    Attributes:
        schedule: (round, role) pairs in running order; the last one answers.
        latents: (round, source, target) -> what was sent to each row, (n, width of the target).
        texts: (round, role) -> each row's message, where agents write them.
        usage: what it cost so far.
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
        self.on_turn, self.on_step, self.tools = on_turn or (lambda round_index, role: None), on_step, tools
        self.system, self.settings = system, settings
        self.questions, self.openings = map(list, zip(*map(split_question, questions), strict=True))
        self.generation_config, self.topology = generation_config, system.topology
        self.agents, self.outer_links = system.agents, system.outer_links
        self.schedule = settings.turns(self.topology)
        self.turns_taken = len(self.schedule)
        self.usage = Usage([0] * len(questions), [0] * len(questions), [0] * len(questions), [0] * len(questions))
        self.latents: dict[tuple[int, str, str], list[torch.Tensor]] = {}
        self.texts: dict[tuple[int, str], list[str]] = {}
        self._memories: dict[tuple[int, str, str], WorkingMemory] = {}  # (round, source, target) -> to be gone on from
        if settings.control not in (None, "none") and cache_links(self.outer_links):
            what, expected = "A control stands in for latents; a link hands over working memory.", 'none, or "none"'
            raise InputError(what, where="control", found=settings.control, expected=expected)
        self._builders: dict[str, PromptBuilder] = {}

    def decoder_prompt(self, reuse: bool = True) -> PromptBatch:
        """Runs everything before the answer and returns the decoding agent's prompt.

        Args:
            reuse: whether the prompt may come with a cache, which only one sequence a row can continue.
        """
        for turns in self.topology.by_stage(self.schedule[:-1]):
            self.take_turns(turns)
        return self.last_prompt(reuse)

    def take_turns(self, turns: list[tuple[int, str]]) -> None:
        """The turns of one stage in one round, see `take_turn`."""
        if self.system.residency is None and len({self.agents[role].device for _, role in turns}) > 1:
            # The roles of a stage do not wait for each other, and neither do their devices; those of one base do.
            groups: dict[int, list[tuple[int, str]]] = {}
            for turn in turns:
                groups.setdefault(id(self.agents[turn[1]].get_input_embeddings()), []).append(turn)
            with ThreadPoolExecutor(len(groups)) as pool:
                list(pool.map(self._take_turns, groups.values()))
        else:
            self._take_turns(turns)

    def narrowed(self, rows: list[int], settings: RunSettings | None = None) -> "Run":
        """The same run with some of its rows only, as far as it has come; and with other settings, where given."""
        other = copy.copy(self)
        other.questions, other.openings = ([of[row] for row in rows] for of in (self.questions, self.openings))
        counts: dict[str, Any] = {name: [getattr(self.usage, name)[row] for row in rows] for name in USAGE}
        other.usage = replace(self.usage, **counts, _lock=threading.Lock())  # with the same seconds
        other.latents = {key: [sent[row] for row in rows] for key, sent in self.latents.items()}
        other.texts = {key: [texts[row] for row in rows] for key, texts in self.texts.items()}
        other._builders = {role: builder.narrowed(rows) for role, builder in self._builders.items()}
        if settings is not None:
            other.settings, other.schedule = settings, settings.turns(self.topology)
        return other

    def last_prompt(self, reuse: bool = True) -> PromptBatch:
        """The decoding agent's prompt in the last round, once all turns before it are taken; see `decoder_prompt`."""
        if not any(self.openings):
            return self._prompt(*self.schedule[-1], reuse)
        role, prompt = self.topology.decoding_role, self._prompt(*self.schedule[-1], reuse=False)
        agent, read = self.agents[role], map(self.system.renderers[role].message_ids, self.openings)
        return prompt.continued(agent, dict(enumerate(read)))

    def _take_turns(self, turns: list[tuple[int, str]]) -> None:
        for round_index, role in turns:
            self.take_turn(round_index, role)

    @torch.no_grad()  # a thread has a gradient mode of its own
    def take_turn(self, round_index: int, role: str) -> None:
        """One role's thinking or writing in one round, once what it receives is in `latents` or `texts`."""
        started, settings = time.perf_counter(), self.settings
        config = None
        if settings.writes:
            config = message_config(self.generation_config, self.agents[role], settings.message_tokens)
        # Who thinks and writes reads the prompt twice, and its cache goes on only once; so do results of tools.
        once = not settings.thinks and role not in self.tools
        reuse = config is None or (once and continues_cache(config, {}))
        prompt = self._prompt(round_index, role, reuse)
        if settings.thinks:
            self._think(round_index, role, prompt)
        if config is not None:
            self._write(round_index, role, prompt, config)
        self.lap(f"round {round_index}, {role}", started, role)
        self.on_turn(round_index, role)

    @torch.no_grad()
    def answer(self, prompt: PromptBatch, answer: AnswerSettings) -> list[Solution]:
        """The decoding agent's answers to the batch, from its last prompt."""
        written = self.write(prompt, answer)
        return [self.solution(row, *each, answer) for row, each in enumerate(written)]

    @torch.no_grad()
    def write(self, prompt: PromptBatch, answer: AnswerSettings) -> list[tuple[list[int], int]]:
        """For each row, the ids of its answer, and how many of them are what was read in between (tools)."""
        role, task, started = self.topology.decoding_role, self.settings.task, time.perf_counter()
        agent = self.agents[role]
        watching = replace(answer, model_kwargs=watched(answer.model_kwargs, self.on_step))
        rows, read = write_answers(agent, self.system.renderers[role], prompt, task, watching)
        self.lap("answer", started, role)
        self.on_turn(*self.schedule[-1])
        return list(zip(rows, read, strict=True))

    def solution(self, row: int, new_ids: list[int], read_tokens: int, answer: AnswerSettings) -> Solution:
        """One row's result, out of what `write` gave for it."""
        text = self.agents[self.topology.decoding_role].decode(new_ids)
        usage: dict[str, Any] = {name: getattr(self.usage, name)[row] for name in USAGE}
        usage |= {"rounds": self.settings.num_rounds, "turns": self.turns_taken, "seconds": dict(self.usage.seconds)}
        usage["prompt_tokens"] += read_tokens
        usage["new_tokens"] += len(new_ids) - read_tokens
        own, ends = len(new_ids) - read_tokens, ends_of(answer.generation_config)
        cut = own >= (answer.generation_config.max_new_tokens or own + 1) and new_ids[-1] not in ends
        messages = {key: texts[row] for key, texts in self.texts.items()} or None
        latents, thoughts = None, None
        if answer.return_latents:
            latents = {key: sent[row] for key, sent in self.latents.items()}
            thoughts = {key: self.agents[key[2]].read_out(sent) for key, sent in latents.items()}
        found = extract_answer(self.openings[row] + text, self.settings.task)
        return Solution(text, found, usage, messages, latents, thoughts, "length" if cut else "stop")

    def lap(self, stage: str, started: float, role: str) -> None:
        """Adds the seconds since `started` to a stage's time."""
        if self.agents[role].device.type == "cuda":
            torch.cuda.synchronize(self.agents[role].device)  # once a stage, so that its time is its own
        self.usage.seconds[stage] = self.usage.seconds.get(stage, 0.0) + time.perf_counter() - started

    def _prompt(self, round_index: int, role: str, reuse: bool = True) -> PromptBatch:
        if self.system.residency is not None:
            self.system.residency.enter(role)
        if role not in self._builders:
            self._builders |= self._new_builders(role)
        messages, where = self._messages(round_index, role), f"agent {role}, round {round_index}"
        slots = [sum(map(len, sent)) for sent in zip(*messages.values(), strict=True)] or [0] * len(self.questions)
        self.usage.count("slot_positions", slots)
        builder, phase = self._builders[role], self.settings.phase(round_index)
        if round_index == max(r for r, other in self.schedule if other == role):
            del self._builders[role]  # with the keys and values that it keeps
        answers = (round_index, role) == self.schedule[-1]
        more = self.generation_config.max_new_tokens or 0 if answers else self.settings.positions_behind
        before = continued_turn(self.topology, self.outer_links, (round_index, role))
        memory = None if before is None else self._memories.pop((*before, role), None)  # in texts, or alone, none is
        read = [0] * len(slots) if memory is None else memory.lengths
        texts = map(text_tokens, builder.rows[phase])
        needs = [past + text + slot + more for past, text, slot in zip(read, texts, slots, strict=True)]
        validate_positions(
            self.agents[role].position_limit,
            dict(enumerate(needs)),
            where=where,
            name=lambda row: name_of(row, as_text(self.questions[row])),
            what=f"prompt, what was sent, and {more} new ones",
        )
        prompt, tokens = builder.build(phase, messages, reuse, memory=memory)
        prompt.where = where
        self.usage.count("prompt_tokens", tokens)
        return prompt

    def _new_builders(self, role: str) -> dict[str, PromptBuilder]:
        """What builds the prompts of the roles that run one model with a role."""
        rows: dict[str, dict[str, list]] = {}
        uses: dict[str, int] = {}
        for round_index, other in self.schedule:
            if self.agents[other].model is not self.agents[role].model or other in self._builders:
                continue
            phase, renderer = self.settings.phase(round_index), self.system.renderers[other]
            if phase not in rows.setdefault(other, {}):
                system, template = template_for(self.settings.prompts, other, self.settings.task, phase)
                chat = renderer.render(system, template)
                rows[other][phase] = [renderer.cut(chat, as_inputs(question)) for question in self.questions]
            before = continued_turn(self.topology, self.outer_links, (round_index, other))
            uses[other] = uses.get(other, 0) + (before is None or not self.settings.thinks)
        return prompt_builders({other: self.agents[other] for other in rows}, rows, uses)

    def _messages(self, round_index: int, role: str) -> dict[str, list]:
        """Source role -> what it sent to each row, or stands in for it: the slots of a role's prompt in a round."""
        messages: dict[str, list] = {}
        agent, renderer, settings = self.agents[role], self.system.renderers[role], self.settings
        for link in self.topology.incoming(role, round_index):
            sent = round_index - link.feedback
            if settings.silent:
                empty = torch.zeros(0, agent.hidden_size, device=agent.device)
                messages[link.source] = [empty] * len(self.questions)
            elif settings.thinks and isinstance(self.outer_links[link.name], CacheLink):
                messages[link.source] = [torch.zeros(0, agent.hidden_size, device=agent.device)] * len(self.questions)
            elif settings.thinks:
                rows = [row.to(agent.device) for row in self.latents[sent, link.source, link.target]]
                messages[link.source] = rows if settings.control_tokens else agent.without_control_tokens(rows)
            else:
                messages[link.source] = [renderer.message_ids(text) for text in self.texts[sent, link.source]]
            if settings.control and not settings.silent:
                texts = self.texts.get((sent, link.source))
                names = [(sent, link.source, link.target, as_text(question)) for question in self.questions]
                answers = (round_index, role) == self.schedule[-1]
                rows = messages[link.source]
                messages[link.source] = stand_in(settings.control, rows, agent, renderer, texts, names, answers)
        return messages

    def heard_links(self, round_index: int, role: str) -> list[Link]:
        """The links on which somebody who contributes to the answer hears a role's turn."""
        links = self.topology.outgoing(role)
        return [link for link in links if (round_index + link.feedback, link.target) in self.schedule]

    def _think(self, round_index: int, role: str, prompt: PromptBatch) -> None:
        rollout = self.agents[role].rollout(
            prompt.inputs_embeds[:, prompt.past :],
            prompt.attention_mask,
            self.settings.latent_steps,
            prompt.past_key_values,
            self.settings.latent_halting,
            self.settings.control_tokens,
            self.on_step,
        )
        self.usage.count("latent_positions", rollout.lengths.tolist())
        counts = torch.arange(rollout.latents.shape[1], device=rollout.latents.device) < rollout.lengths[:, None]
        thoughts = {"hidden states": rollout.hidden_states[counts], "latents": rollout.latents[counts]}
        validate_finite(thoughts, self.agents[role].dtype, f"agent {role}, round {round_index}")
        for link in self.heard_links(round_index, role):
            if isinstance(self.outer_links[link.name], CacheLink):
                assert prompt.past_key_values is not None
                self._memories[round_index, role, link.target] = remember(
                    self.agents[role], prompt.rows, prompt.attention_mask, prompt.past_key_values, rollout
                )
            sent = hand_over(self.agents[role], self.outer_links[link.name], rollout)
            self.latents[round_index, role, link.target] = sent
            dtype = self.agents[link.target].dtype  # the receiver reads them in its own
            where = f"link {link.name}, round {round_index}, from agent {role} to agent {link.target}"
            validate_finite({"latents of the link": torch.cat(sent).to(dtype)}, dtype, where)

    def _write(self, round_index: int, role: str, prompt: PromptBatch, config: GenerationConfig) -> None:
        agent, arguments = self.agents[role], watched({}, self.on_step)
        if role in self.tools:
            rows, read = write_with_tools(
                agent, self.system.renderers[role], prompt, self.tools[role], config, arguments
            )
            self.usage.count("prompt_tokens", read)
            self.usage.count("new_tokens", [len(ids) - count for ids, count in zip(rows, read, strict=True)])
        else:
            rows = trim(generate_from(agent, prompt, config, arguments), ends_of(config))
            self.usage.count("new_tokens", list(map(len, rows)))
        self.texts[round_index, role] = list(map(agent.decode, rows))


def solve_batch(
    system: System,
    questions: list[Question],
    settings: RunSettings,
    answer: AnswerSettings,
    on_turn: Callable[[int, str], None] | None = None,
    on_step: Callable[[], object] | None = None,
    pace: Callable[[Run], Any] = lambda run: run,
) -> list[Solution] | None:
    """Answers a batch of questions; `None` where memory does not suffice for so many side by side.

    `pace` gives what takes a run's turns.

    Raises:
        OutOfMemoryError: see `validate_halving`.
    """
    try:
        run = pace(Run(system, questions, settings, answer.generation_config, on_turn, on_step, answer.message_tools))
        return run.answer(run.decoder_prompt(answer.reuse), answer)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        validate_halving(questions, settings, error)
    return None  # outside of the handler, so that nothing holds what the attempt had made


def validate_halving(questions: list[Question], settings: RunSettings, error: BaseException) -> None:
    """Says that a batch for which memory did not suffice goes on in halves.

    Raises:
        OutOfMemoryError: there is one question only, or fewer would be answered otherwise.
    """
    swaps = settings.control == "other_question"
    if swaps or len(questions) == 1:
        raise OutOfMemoryError(
            "There is not enough memory for a batch.",
            where=f"{len(questions)} question{'s' * (len(questions) > 1)} side by side",
            found=(str(error).strip() or type(error).__name__).splitlines()[0][:200],
            hint="a smaller batch_size"
            if swaps and len(questions) > 2
            else "fewer latent_steps or new tokens, a shorter question, agents on several devices, or offload",
        ) from error
    logger.warning(f"Not enough memory for {len(questions)} questions side by side: going on with half as many.")
