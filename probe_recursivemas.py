"""Asks a base model once whether it can be an agent: a few positions, answered from ids, from embeddings, in a batch.

What its class is called says nothing: a model that needs ids beside embeddings, or whose state counts padding, would
think without an error, and wrongly.
"""

import inspect
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from .caches_recursivemas import cache_argument, can_crop
from .errors_recursivemas import CheckpointError

LENGTH, STEPS, PADDING, HEAD = (
    6,
    3,
    3,
    5,
)  # of the prompt that is asked, in positions; the head is read before the rest
# How far from the model's own answer, relative to its norm, another way to it may lead. In 16 bits or fewer, rounding
# (and experts that are chosen otherwise for it) may lead astray by some percent; what reads other inputs, by more.
TOLERANCE = {torch.float32: 0.001, torch.float64: 0.001}
ROUNDED = 0.15
TAIL = 10
LOST = 0.2  # of what a head changes behind it: more is not rounding


Agent = Any  # a `RecursiveMASAgent`, which stands above this module


@dataclass(frozen=True)
class Traits:
    """What an agent's model can do beyond what every agent's must.

    Attributes:
        reads_on: the rest of a prompt can be read on the cache of its head.
        skips_holes: masked positions in the middle of a prompt count for nothing.
        plain_head: `agent.logits` of hidden states are the model's own.
    """

    reads_on: bool = True
    skips_holes: bool = True
    plain_head: bool = True


def accept_embeddings(model: PreTrainedModel) -> None:
    """Lets `generate` take embeddings where a model hands them on, and only its signature does not say so.

    transformers asks the signature of `prepare_inputs_for_generation`; multimodal Gemma 3, Bamba and others hand on
    all keyword arguments there. Whether they do so rightly, `probe` sees.
    """
    function: Any = getattr(type(model), "prepare_inputs_for_generation", None)
    if function is None:
        return  # it cannot write, as `probe` will see
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if "inputs_embeds" not in signature.parameters and parameters[-1].kind == inspect.Parameter.VAR_KEYWORD:
        taken = inspect.Parameter("inputs_embeds", inspect.Parameter.KEYWORD_ONLY, default=None)
        function.__signature__ = signature.replace(parameters=[*parameters[:-1], taken, parameters[-1]])


@torch.no_grad()
def probe(agent: Agent) -> Traits:
    """Asks an agent's model. Nothing is asked where its weights are not here (on `meta`, or offloaded).

    Raises:
        CheckpointError: the model cannot be an agent; it names what of it stands in the way.
    """
    if any(tensor.is_meta for tensor in itertools.chain(agent.model.parameters(), agent.model.buffers())):
        return Traits()
    key = _key(agent)
    if key is not None and key in _known:
        return _known[key]
    training = agent.model.training
    agent.model.eval()
    given = agent.inner_link
    try:
        traits = _Probe(agent).ask()
    finally:
        agent.inner_link = given
        agent.model.train(training)
    if key is not None:
        _known[key] = traits
    return traits


_known: dict[Hashable, Traits] = {}  # what this process has asked already


def _key(agent: Agent) -> Hashable | None:
    """What the answers depend on: all but the values of the weights; `None` where a module was changed by hand."""
    modules = list(agent.model.modules())
    if any("forward" in vars(module) for module in modules):
        return None
    config = agent.model.config
    settings = config.to_json_string(use_diff=False), config._attn_implementation
    return tuple((type(module), type(module).forward) for module in modules), settings, agent.dtype, agent.device


class _Script(nn.Module):
    """Stands in for an inner link: whatever is thought, the next embeddings are the given ones, (steps, width)."""

    def __init__(self, embeds: torch.Tensor) -> None:
        super().__init__()
        self.embeds, self.taken = embeds, 0

    def step(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        self.taken += 1
        return self.embeds[self.taken - 1].expand(len(hidden_states), -1), None


class _Say(LogitsProcessor):
    """Makes a model say the given ids."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = iter(ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self.ids)] = 0.0
        return forced


class _Probe:
    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        size = agent.model.get_input_embeddings().weight.shape[0]
        control = {*agent.control_token_ids.tolist(), agent.model.config.get_text_config().pad_token_id}
        text = [index for index in range(size) if index not in control] or list(range(size))
        # Tokens from all over the vocabulary: one row for the question, one for the neighbour.
        count = LENGTH + STEPS - 1
        spread = [text[(2 * index + 1) * len(text) // (4 * count + 2)] for index in range(2 * count + 1)]
        self.ids, self.other = spread[::2][:count], spread[1::2] + spread[::2]
        self.tolerance = TOLERANCE.get(agent.dtype, ROUNDED)
        self.reason: str | None = None  # why the last try failed

    def ask(self) -> Traits:
        if not self._tries(self._answer_from_ids):
            raise self._error("does not answer from token ids alone")
        plain_head = self._tries(self._project)
        holes = can_crop(self.agent.new_cache())
        for traits in (
            Traits(True, holes, plain_head),
            Traits(True, False, plain_head),
            Traits(False, False, plain_head),
        ):
            if self._tries(partial(self._can, traits)):
                return traits
        raise self._diagnose()

    def _can(self, traits: Traits) -> bool:
        remembers = not traits.reads_on or can_crop(self.agent.new_cache()) or self._remembers()
        return remembers and self._think(traits) and self._write(traits)

    def _remembers(self) -> bool:
        """Whether the end of a tail that is read on the state of its head knows of that head, be it little.

        A tail is longer than convolutions reach: what they keep of a head is not all that there is of it.
        """
        tail = [*self.other, *self.ids][:TAIL]
        rows = torch.tensor([[*head[:HEAD], *tail] for head in (self.ids, self.ids[::-1])], device=self.agent.device)
        embeds, mask, cache = self.agent.embed(rows), torch.ones_like(rows), self.agent.new_cache()
        whole = self.agent.encode(embeds, mask)[:, -1].float()
        self.agent.encode(embeds[:, :HEAD], mask[:, :HEAD], cache)
        read_on = self.agent.encode(embeds[:, HEAD:], mask, cache)[:, -1].float()
        known, changed = read_on[0] - read_on[1], whole[0] - whole[1]
        return bool((known - changed).norm() <= LOST * changed.norm())

    def _answer_from_ids(self) -> bool:
        """The model's own hidden states and logits, from ids, all positions at once."""
        kept: list[Any] = []
        hook = self.agent.decoder.register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            ids = torch.tensor([self.ids], device=self.agent.device)
            self.own = self.agent.model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        self.hidden_states = kept[-1].last_hidden_state
        return True

    def _project(self) -> bool:
        """Whether the agent makes the model's logits of its hidden states; models leave padded vocabulary out."""
        return self._close(self.agent.logits(self.hidden_states)[..., : self.own.shape[-1]], self.own)

    def _rows(self, holes: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings and mask of the prompt behind padding, of a neighbour, and of the prompt with a hole in it."""
        prompt, length = self.ids[:LENGTH], PADDING + LENGTH
        rows: list[list[int | None]] = [[*[None] * PADDING, *prompt], [*self.other[:length]]]
        if holes:
            before = HEAD - 1
            rows.append([None, *prompt[:before], *[None] * (PADDING - 1), *prompt[before:]])
        device = self.agent.device
        mask = torch.tensor([[int(token is not None) for token in row] for row in rows], device=device)
        return self.agent.embed(torch.tensor([[token or 0 for token in row] for row in rows], device=device)), mask

    def _read_head(self, embeds: torch.Tensor, mask: torch.Tensor, reads_on: bool) -> tuple[Cache, int]:
        cache = self.agent.new_cache()
        if reads_on:
            self.agent.encode(embeds[:, :HEAD], mask[:, :HEAD], cache)
        return cache, HEAD * reads_on

    def _think(self, traits: Traits, rows: tuple[torch.Tensor, torch.Tensor] | None = None) -> bool:
        embeds, mask = rows or self._rows(traits.skips_holes)
        cache, past = self._read_head(embeds, mask, traits.reads_on)
        self.agent.inner_link = _Script(
            self.agent.embed(torch.tensor(self.ids[LENGTH:] * 2, device=self.agent.device))
        )
        states = self.agent.rollout(embeds[:, past:], mask, STEPS, cache).hidden_states
        return all(self._close(states[row], self.hidden_states[0, LENGTH - 1 :]) for row in range(0, len(states), 2))

    def _write(self, traits: Traits, rows: tuple[torch.Tensor, torch.Tensor] | None = None) -> bool:
        embeds, mask = rows or self._rows(traits.skips_holes)
        cache, _ = self._read_head(embeds, mask, traits.reads_on)
        said = self.ids[LENGTH:]
        settings = GenerationConfig(
            max_new_tokens=len(said), do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
        )
        output: ModelOutput = self.agent.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Say(said)]),
            **cache_argument(self.agent.model.forward, cache),
        )
        logits = torch.stack(output["logits"], dim=1)
        own = self.own[0, LENGTH - 1 : LENGTH - 1 + len(said)]
        return all(self._close(logits[row], own) for row in range(0, len(logits), 2))

    def _close(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether values are about the model's own (of which NaN and infinity are compared with nothing)."""
        found, expected = found.float(), expected.float()
        if not bool(expected.isfinite().all()):
            return True
        error = float((found - expected).norm() / expected.norm().clamp_min(1e-20))
        if not error <= self.tolerance:
            self.reason = f"an error of {error:.2g} of the model's own values"
        return error <= self.tolerance

    def _tries(self, question: Callable[[], bool]) -> bool:
        try:
            return question()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # foreign models fail in many ways
            self.reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            return False

    def _diagnose(self) -> CheckpointError:
        """Asks for one thing after another, until one fails."""
        agent, prompt = self.agent, torch.tensor([self.ids[:LENGTH]], device=self.agent.device)
        alone = agent.embed(prompt), torch.ones_like(prompt)
        embeds, mask = self._rows(False)
        plain = Traits(False, False)
        whole = agent.embed(torch.tensor([self.ids], device=agent.device))
        for feature, question in (
            ("needs token ids beside embeddings", lambda: self._close(agent.encode(whole, None), self.hidden_states)),
            (
                "is not causal: earlier positions see later ones",
                lambda: self._close(agent.encode(alone[0], None), self.hidden_states[:, :LENGTH]),
            ),
            ("keeps a state that cannot be continued position by position", lambda: self._think(plain, alone)),
            ("counts padding", lambda: self._think(plain, (embeds[:1], mask[:1]))),
            ("keeps a state that depends on the other rows of a batch", lambda: self._think(plain)),
            ("cannot write from embeddings", lambda: self._write(plain, alone)),
            ("counts padding when it writes", lambda: self._write(plain, (embeds[:1], mask[:1]))),
        ):
            if not self._tries(question):
                return self._error(feature)
        return self._error("writes otherwise in a batch")

    def _error(self, feature: str) -> CheckpointError:
        return CheckpointError(
            f"An agent's model cannot think in latents: it {feature}.",
            where=f"agent {self.agent.role}, {type(self.agent.model).__name__}",
            found=self.reason,
            expected="a causal language model that reads embeddings as it reads ids, alone and in a padded batch",
            hint="take a model of another architecture",
        )
