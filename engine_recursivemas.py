"""The recursion engine: runs any topology for a batch of questions, over latents or over text.

For each round, for each role whose thoughts the answer depends on: put what was sent to it into the slots of its
prompt, think (latent rollout, inner link), send through the outer links. In the last round the decoder's prompt is
what `Run.decoder_prompt` returns; the caller generates from it.
"""

import copy
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from .agent_recursivemas import RecursiveMASAgent
from .caches_recursivemas import Prefix, cache_argument, can_crop
from .prompts_recursivemas import PromptRenderer, Slot, phase_of, template_for
from .topology_recursivemas import Topology

MODES = ("latent", "text", "alone")
# A forward pass over a few positions costs as much as one over about so many: it reads the same weights.
PASS_COST = 16


@dataclass
class Prompt:
    """A batch of prompts with their slots filled, padded on the left.

    Attributes:
        inputs_embeds: (batch, length, hidden_size).
        attention_mask: (batch, length).
        past_key_values: cache of the first `past` positions, or `None`.
        past: number of leading positions that `past_key_values` holds.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    past_key_values: Cache | None = None
    past: int = 0


@dataclass
class Usage:
    """What a batch cost, row by row where it differs.

    Attributes:
        prompt_tokens: text tokens in all prompts of all agents and rounds, as if read anew each time.
        latent_positions: latent thoughts sent, counted once for each sender and round.
        new_tokens: text tokens generated: messages in `mode="text"`, and the answer.
        seconds: stage (`"round 1, planner"`) -> wall-clock seconds for the whole batch.
    """

    prompt_tokens: list[int]
    latent_positions: list[int]
    new_tokens: list[int]
    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, what: str, amounts: list[int]) -> None:
        """Adds to each row's `what`; the roles of a stage may do so at the same time."""
        with self._lock:
            setattr(self, what, [a + b for a, b in zip(getattr(self, what), amounts, strict=True)])


class PromptBuilder:
    """Builds one role's prompts over the rounds of a batch, and reads their common heads once.

    What all rows start with is read for one row; what each row starts with in every round is read in the first.

    Args:
        agent: the role's agent.
        rows: phase -> pieces of each row (see `PromptRenderer.pieces`), for the phases that will be used.
        uses: how often `build` will be called.
    """

    def __init__(self, agent: RecursiveMASAgent, rows: dict[str, list[list[list[int] | Slot]]], uses: int) -> None:
        self.agent, self.rows, self.uses_left = agent, rows, uses
        self._prefix: Prefix | None = None
        heads = [_common([_head(pieces) for pieces in phases]) for phases in zip(*rows.values(), strict=True)]
        # Rows that differ after a shared head leave masked holes behind it, which only full attention ignores.
        shared = _common(heads) if can_crop(agent.new_cache()) else []
        self._shared_length = len(shared) if (len(heads) - 1) * len(shared) > PASS_COST else 0
        if (uses - 1) * min(map(len, heads)) <= PASS_COST:
            heads = [head[: self._shared_length] for head in heads]
        self._heads = heads if any(heads) else None

    def build(
        self,
        phase: str,
        messages: dict[str, list[torch.Tensor | list[int]]],
        reuse: bool = True,
        continuations: list[list[int]] | None = None,
    ) -> tuple[Prompt, list[int]]:
        """Fills the slots.

        Args:
            phase: "first", "feedback" or "alone".
            messages: source role -> what it sent to each row: latents (n, hidden_size) or token ids.
            reuse: whether the prompt may come with a cache.
            continuations: token ids that stand behind each row's prompt (in training, what is to be said).

        Returns:
            The batch of prompts, and the number of text tokens in each row's prompt.
        """
        self.uses_left -= 1
        rows = []
        for index, pieces in enumerate(self.rows[phase]):
            rows.append([messages[piece.role][index] if isinstance(piece, Slot) else piece for piece in pieces])
        tokens = [sum(len(part) for part in row if not isinstance(part, torch.Tensor)) for row in rows]
        if continuations is not None:
            rows = [[*row, ids] for row, ids in zip(rows, continuations, strict=True)]
        if not reuse:
            return Prompt(*embed_rows(self.agent, rows)), tokens
        opened = self._open_prefix(rows)
        if opened is None:
            return Prompt(*embed_rows(self.agent, rows), self.agent.new_cache()), tokens
        prefix, cache = opened
        tails = [[row[0][len(head) :], *row[1:]] for row, head in zip(rows, self._heads, strict=True)]
        embeds, mask = embed_rows(self.agent, tails)
        padding = embeds.new_zeros(embeds.shape[0], prefix.length, embeds.shape[2])
        embeds, mask = torch.cat([padding, embeds], dim=1), torch.cat([prefix.attention_mask, mask], dim=1)
        return Prompt(embeds, mask, cache, prefix.length), tokens

    def _open_prefix(self, rows: list[list]) -> tuple[Prefix, Cache] | None:
        if self._heads is None:
            return None
        if self._prefix is None:
            self._prefix = self._read_heads()
        cache = self._prefix.open(last_use=self.uses_left == 0)
        # Rows whose tails differ in length leave masked holes between head and tail. Full attention does not see
        # them; a sliding window or a recurrent state would count them, so such a prompt is read anew.
        tails = {sum(map(len, row)) - len(head) for row, head in zip(rows, self._heads, strict=True)}
        return None if len(tails) > 1 and not can_crop(cache) else (self._prefix, cache)

    @torch.no_grad()
    def _read_heads(self) -> Prefix:
        cache, length, mask = self.agent.new_cache(), self._shared_length, None
        if length:
            embeds, mask = embed_rows(self.agent, [[self._heads[0][:length]]])
            self.agent.encode(embeds, None, cache)
            cache.batch_repeat_interleave(len(self._heads))
            mask = mask.expand(len(self._heads), -1)
        rests = [[head[length:]] for head in self._heads]
        if any(rest for (rest,) in rests):
            embeds, rest_mask = embed_rows(self.agent, rests)
            mask = rest_mask if mask is None else torch.cat([mask, rest_mask], dim=1)
            self.agent.encode(embeds, mask, cache)
        return Prefix(cache, mask)


def _head(pieces: list[list[int] | Slot]) -> list[int]:
    """The token ids that a prompt starts with; at least one position stays outside, to think from."""
    head = pieces[0] if pieces and not isinstance(pieces[0], Slot) else []
    return head if len(pieces) > 1 else head[:-1]


def _common(rows: list[list[int]]) -> list[int]:
    """What all rows start with."""
    shortest = min(rows, key=len)
    length = next((i for i, token in enumerate(shortest) if any(row[i] != token for row in rows)), len(shortest))
    return shortest[:length]


def embed_rows(
    agent: RecursiveMASAgent, rows: list[list[torch.Tensor | list[int]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids and latents (n, hidden_size) -> embeddings, padded on the left, and their mask.

    Gradients flow to the latents.
    """
    length = max(sum(map(len, row)) for row in rows)
    ids, latents, is_latent, mask = [], [], [], []
    for row in rows:
        padding = length - sum(map(len, row))
        row_ids, row_is_latent = [0] * padding, [False] * padding
        for part in row:
            if isinstance(part, torch.Tensor):
                latents.append(part)
                row_ids += [0] * len(part)
            else:
                row_ids += part
            row_is_latent += [isinstance(part, torch.Tensor)] * len(part)
        ids.append(row_ids)
        is_latent.append(row_is_latent)
        mask.append([0] * padding + [1] * (length - padding))
    embeds = agent.embed(torch.tensor(ids, dtype=torch.long, device=agent.device))
    if latents:
        where = torch.tensor(is_latent, device=agent.device)[..., None]
        embeds = embeds.masked_scatter(where, torch.cat(latents).to(embeds))
    return embeds, torch.tensor(mask, dtype=torch.long, device=agent.device)


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
        """Moves a role's agent to its accelerator, after the one that was there has gone."""
        if role == self.resident:
            return
        if self.resident is not None:
            self.agents[self.resident].to("cpu")
        self.agents[role].to(self.devices[role])
        self.resident = role


class Run:
    """One run of a topology over a batch of questions.

    Args:
        agents: role -> agent.
        outer_links: link name -> outer link.
        renderers: role -> prompt renderer.
        topology: the system's topology.
        prompts: prompt set, checked.
        questions: the batch.
        num_rounds: recursion rounds (>= 1).
        latent_steps: latent steps of each rollout (>= 0; 0 sends nothing).
        task: chooses the templates.
        mode: "latent"; "text" (agents hand over generated text); "alone" (the decoder answers by itself).
        halting: see `RecursiveMASAgent.rollout`.
        message_config: generation settings of the messages in `mode="text"`.
        residency: moves agents to their accelerators as their stages come.
    """

    def __init__(
        self,
        *,
        agents: dict[str, RecursiveMASAgent],
        outer_links: dict[str, torch.nn.Module],
        renderers: dict[str, PromptRenderer],
        topology: Topology,
        prompts: dict,
        questions: list[str],
        num_rounds: int,
        latent_steps: int,
        task: str,
        mode: str = "latent",
        halting: bool = False,
        message_config: GenerationConfig | None = None,
        residency: Residency | None = None,
    ) -> None:
        self.agents, self.outer_links, self.renderers = agents, outer_links, renderers
        self.topology, self.prompts, self.task, self.questions = topology, prompts, task, questions
        self.mode, self.halting, self.message_config = mode, halting, message_config
        self.num_rounds, self.latent_steps, self.residency = num_rounds, latent_steps, residency
        self.schedule = topology.schedule(num_rounds)
        if mode == "alone" or (mode == "latent" and latent_steps == 0):
            self.schedule = self.schedule[-1:]  # nothing is sent, so nobody else need think
        self.usage = Usage([0] * len(questions), [0] * len(questions), [0] * len(questions))
        # (round, source, target) -> what was sent to each row: latents (n, width of the target), or texts
        self.latents: dict[tuple[int, str, str], list[torch.Tensor]] = {}
        self.texts: dict[tuple[int, str], list[str]] = {}
        self._builders: dict[str, PromptBuilder] = {}

    def phase(self, round_index: int) -> str:
        """Which template a round uses."""
        return "alone" if self.mode == "alone" else phase_of(round_index)

    def decoder_prompt(self, reuse: bool = True) -> Prompt:
        """Runs everything before the answer and returns the decoding agent's prompt.

        Args:
            reuse: whether the prompt may come with a cache, which only one sequence a row can continue.
        """
        senders = self.schedule[:-1]
        for _, group in itertools.groupby(senders, key=lambda turn: (turn[0], self.topology.stage_of(turn[1]))):
            turns = list(group)
            if self.residency is None and len({self.agents[role].device for _, role in turns}) > 1:
                # The roles of a stage do not wait for each other, and neither do their devices.
                take = partial(self.take_turn, torch.is_grad_enabled())  # a thread has a gradient mode of its own
                with ThreadPoolExecutor(len(turns)) as pool:
                    list(pool.map(take, *zip(*turns, strict=True)))
            else:
                for round_index, role in turns:
                    self.take_turn(torch.is_grad_enabled(), round_index, role)
        return self.last_prompt(reuse)

    def last_prompt(self, reuse: bool = True) -> Prompt:
        """The decoding agent's prompt in the last round, once all turns before it are taken; see `decoder_prompt`."""
        return self._prompt(*self.schedule[-1], reuse)

    def take_turn(self, gradients: bool, round_index: int, role: str) -> None:
        """One role's thinking (or writing) in one round, once what it receives is in `latents` (or `texts`)."""
        started = time.perf_counter()
        with torch.set_grad_enabled(gradients):
            prompt = self._prompt(round_index, role, self.mode != "text" or single_sequence(self.message_config))
            if self.mode == "text":
                self._write(round_index, role, prompt)
            else:
                self._think(round_index, role, prompt)
        self.lap(f"round {round_index}, {role}", started, role)

    def lap(self, stage: str, started: float, role: str) -> None:
        """Adds the seconds since `started` to a stage's time."""
        if self.agents[role].device.type == "cuda":
            torch.cuda.synchronize(self.agents[role].device)  # once a stage, so that its time is its own
        self.usage.seconds[stage] = self.usage.seconds.get(stage, 0.0) + time.perf_counter() - started

    def _prompt(self, round_index: int, role: str, reuse: bool = True) -> Prompt:
        if self.residency is not None:
            self.residency.enter(role)
        if role not in self._builders:
            rounds = [r for r, other in self.schedule if other == role]
            rows = {}
            for phase in dict.fromkeys(map(self.phase, rounds)):
                system, template = template_for(self.prompts, role, self.task, phase)
                rows[phase] = [self.renderers[role].pieces(system, template, question) for question in self.questions]
            self._builders[role] = PromptBuilder(self.agents[role], rows, len(rounds))
        messages = self._messages(round_index, role)
        prompt, tokens = self._builders[role].build(self.phase(round_index), messages, reuse)
        self.usage.count("prompt_tokens", tokens)
        return prompt

    def _messages(self, round_index: int, role: str) -> dict[str, list]:
        """Source role -> what it sent to each row, for the slots of a role's prompt in a round."""
        messages: dict[str, list] = {}
        if self.mode == "alone":
            return messages
        agent = self.agents[role]
        for link in self.topology.incoming(role, round_index):
            sent = round_index - link.feedback
            if self.mode == "text":
                texts = self.texts[sent, link.source]
                messages[link.source] = [self.renderers[role].message_ids(text) for text in texts]
            elif self.latent_steps == 0:
                empty = torch.zeros(0, agent.hidden_size, device=agent.device)
                messages[link.source] = [empty] * len(self.questions)
            else:
                rows = self.latents[sent, link.source, link.target]
                messages[link.source] = [row.to(agent.device) for row in rows]
        return messages

    def _think(self, round_index: int, role: str, prompt: Prompt) -> None:
        rollout = self.agents[role].rollout(
            prompt.inputs_embeds[:, prompt.past :],
            prompt.attention_mask,
            self.latent_steps,
            prompt.past_key_values,
            self.halting,
        )
        lengths = rollout.lengths.tolist()
        self.usage.count("latent_positions", lengths)
        for link in self.topology.receivers(role, round_index, self.num_rounds):
            sent = self.outer_links[link.name](rollout.thoughts)
            self.latents[round_index, role, link.target] = [
                latents[:length] for latents, length in zip(sent, lengths, strict=True)
            ]

    def _write(self, round_index: int, role: str, prompt: Prompt) -> None:
        agent = self.agents[role]
        config = copy.deepcopy(self.message_config)
        config.eos_token_id = agent.eos_token_ids
        config.pad_token_id = agent.pad_token_id
        config.bos_token_id = None
        ids = generate_from(agent, prompt, generation_config=config)
        self.texts[round_index, role] = texts = []
        rows = trim(ids, agent.eos_token_ids)
        self.usage.count("new_tokens", list(map(len, rows)))
        texts += map(agent.decode, rows)


def trim(output: torch.Tensor | ModelOutput, eos_token_ids: list[int]) -> list[list[int]]:
    """What `generate` returned, (batch, new) ids or an output that holds them as `sequences`.

    Returns:
        Each row's ids up to and including its first end-of-sequence token.
    """
    rows = []
    for row in (output if isinstance(output, torch.Tensor) else output.sequences).tolist():
        stop = next((i + 1 for i, token in enumerate(row) if token in eos_token_ids), len(row))
        rows.append(row[:stop])
    return rows


def single_sequence(config: GenerationConfig) -> bool:
    """Whether generation can continue a prompt's cache: one sequence per row, in transformers' default cache."""
    alone = config.num_beams in (None, 1) and config.num_return_sequences in (None, 1)
    return alone and config.cache_implementation is None and config.use_cache is not False


def generate_from(agent: RecursiveMASAgent, prompt: Prompt, **kwargs):
    """The base model's own `generate` from a prompt of embeddings; kwargs are transformers' generation arguments.

    Where the prompt's head is cached, transformers skips that part of the embeddings (they must have full length).
    """
    if prompt.past_key_values is not None:
        kwargs |= cache_argument(agent.model.forward, prompt.past_key_values)
    return agent.model.generate(inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask, **kwargs)
