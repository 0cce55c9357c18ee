"""The two losses of the method, as modules that hold the links they train and nothing else.

The agents stand outside the module tree: state dicts, optimizers, DistributedDataParallel and checkpoints see links
only. Every loss is a mean over rows of means over a row's tokens, so that it does not depend on how rows are spread
over batches, accumulation steps and processes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..agent_recursivemas import RecursiveMASAgent, Rollout
from ..batching_recursivemas import PromptBatch, PromptBuilder, embed_rows
from ..caches_recursivemas import can_crop
from ..handover_recursivemas import hand_over
from ..links_recursivemas import AnyOuterLink
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import phase_of
from .caches import differentiable_cache
from .data import Example, Part

IGNORE_INDEX = -100  # the label of positions that no loss counts


@dataclass
class TargetStates:
    """What an agent computed at the positions that predict its target text, aligned on the right.

    Attributes:
        hidden_states: last hidden states h_t, from which token t + 1 follows, (batch, tokens, hidden_size).
        labels: the tokens that follow, (batch, tokens); `IGNORE_INDEX` on padding, which stands on the left.
        lengths: number of target tokens of each row, the end-of-sequence token included.
    """

    hidden_states: torch.Tensor
    labels: torch.Tensor
    lengths: list[int]


def target_states(agent: RecursiveMASAgent, prompt: PromptBatch, targets: list[list[int]]) -> TargetStates:
    """Runs an agent over prompts and their targets (teacher forcing).

    Args:
        agent: a frozen one.
        prompt: the prompts of a batch, with each row's target but for its last token behind it.
        targets: token ids of each row's target text.
    """
    lengths = [len(target) for target in targets]
    tokens = max(lengths)
    labels = [[IGNORE_INDEX] * (tokens - len(target)) + target for target in targets]
    new = prompt.inputs_embeds[:, prompt.past :]
    hidden_states = agent.encode(new, prompt.attention_mask, prompt.past_key_values)[:, -tokens:]
    short = tokens - hidden_states.shape[1]
    if short:  # an empty prompt in front of the longest target cannot be; a longer target than any prompt can
        hidden_states = functional.pad(hidden_states, (0, 0, short, 0))
    return TargetStates(hidden_states, torch.tensor(labels, device=hidden_states.device), lengths)


def text_states(agent: RecursiveMASAgent, parts: list[Part]) -> TargetStates:
    """`target_states` of prompts with the other roles' target texts in their slots."""
    rows = [[*part.text_pieces, part.target_ids[:-1]] for part in parts]
    return target_states(agent, PromptBatch(*embed_rows(agent, rows)), [part.target_ids for part in parts])


def row_means(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over each row's target tokens, (batch, tokens) -> (batch,)."""
    valid = labels != IGNORE_INDEX
    return (values * valid).sum(-1) / valid.sum(-1)


def cross_entropy(agent: RecursiveMASAgent, states: TargetStates) -> torch.Tensor:
    """Cross-entropy of each row's target text, (batch,), computed in float32."""
    logits = agent.logits(states.hidden_states).float()
    losses = functional.cross_entropy(
        logits.flatten(0, 1), states.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return row_means(losses.view_as(states.labels), states.labels)


class LinkObjective(nn.Module):
    """Base of the two objectives.

    Args:
        mas: the system; its links become trainable here where they are named, in float32.
        inner: roles whose inner links are trained.
        outer: names of the outer links that are trained.
    """

    # The loss is a mean already: Trainer must divide by accumulation steps and must not scale by processes.
    accepts_loss_kwargs = False
    mas: RecursiveMASModel

    def __init__(self, mas: RecursiveMASModel, inner: Iterable[str] = (), outer: Iterable[str] = ()) -> None:
        super().__init__()
        self.inner_links = nn.ModuleDict({role: mas.agents[role].inner_link for role in inner})
        self.outer_links = nn.ModuleDict({name: mas.outer_links[name] for name in outer})
        for links in (self.inner_links, self.outer_links):
            links.float().requires_grad_(True)
        object.__setattr__(self, "mas", mas)
        self._records: dict[bool, list[dict[str, float]]] = {True: [], False: []}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "LinkObjective":
        """Moves the whole system, which holds the links too."""
        self.mas._apply(fn)
        return self

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Trainer calls this (since transformers 5.24) where the setting is on; `OuterSettings` says so already."""

    def record(self, values: dict[str, torch.Tensor]) -> None:
        """Adds the parts of a loss to what `take_records` gives; training and evaluation are kept apart."""
        self._records[self.training].append({name: float(value.detach()) for name, value in values.items()})

    def take_records(self, training: bool) -> dict[str, float]:
        """Means of what was recorded since the last call."""
        records = self._records[training]
        self._records[training] = []
        return {name: sum(record[name] for record in records) / len(records) for name in (records or [{}])[0]}


class InnerObjective(LinkObjective):
    """Regresses each agent's inner link on the embeddings of its own target texts, agents frozen.

    Loss of a token: 1 - cos(R_in(h_t), Emb(y_{t+1})) + w |R_in(h_t) - Emb(y_{t+1})|^2 / mean |Emb|^2, the second term
    being relative to the row's own embeddings. Differs from the paper, whose MSE term is absolute and optional: the
    cosine alone leaves the length of the output free (set w = `squared_error_weight` = 0 for it). Links of several
    agents, those of `roles`, train side by side without touching each other.
    """

    def __init__(self, mas: RecursiveMASModel, roles: Iterable[str], squared_error_weight: float = 1.0) -> None:
        super().__init__(mas, inner=roles)
        self.squared_error_weight = squared_error_weight

    def forward(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """The loss of a batch; each example holds one part a role."""
        total = torch.zeros(())
        records: dict[str, torch.Tensor] = {}
        for role, link in self.inner_links.items():
            agent = self.mas.agents[role]
            parts = [part for example in examples for (_, name), part in example.parts.items() if name == role]
            with torch.no_grad():
                states = text_states(agent, parts)
                wanted = agent.embed(states.labels.clamp_min(0)).float()
                scale = row_means(wanted.pow(2).sum(-1), states.labels)[:, None]
            latents = link(states.hidden_states).float()
            cosine = row_means(1 - functional.cosine_similarity(latents, wanted, dim=-1), states.labels).mean()
            error = row_means((latents - wanted).pow(2).sum(-1) / scale, states.labels).mean()
            total = total + cosine + self.squared_error_weight * error
            records |= {f"{role}_cosine_loss": cosine, f"{role}_squared_error": error}
        self.record(records)
        return {"loss": total}


@dataclass(frozen=True)
class OuterSettings:
    """What the outer objective computes: the settings of these names, see `LinkTrainingArguments`.

    `latent_steps` is the most latents a sender sends (teacher-forced), or the steps of a rollout;
    `activation_checkpointing` keeps only what travels between stages.
    """

    num_rounds: int | None = None
    latent_steps: int | None = None
    latent_halting: bool | None = None
    control_tokens: bool | None = None
    supervise: Literal["decoder", "receivers"] = "decoder"
    earlier_rounds_weight: float = 0.0
    latents: Literal["teacher", "rollout"] = "teacher"
    activation_checkpointing: bool = False


class OuterObjective(LinkObjective):
    """Cross-entropy of a system's texts over unrolled rounds, with gradients through every link of every round.

    One loss: CE(last round) + w mean over earlier rounds CE(round), where CE(round) is the mean over the supervised
    roles of that round. `supervise="decoder"` with w = 0 is the paper's; w = 0.1 its variant; `supervise="receivers"`
    takes the text of every agent that received latents in that round.

    Latents are teacher-forced (`latents="teacher"`: those at the positions that predict the sender's target text, its
    end-of-sequence token left out) or rolled out as in inference (`"rollout"`: gradients through the latent steps).
    Differs from the public trainer, which sends the positions one later, so that its first latent stands for the
    second token while a rollout's first stands for the first.

    `links` names the outer links that are trained, `inner` the roles whose inner links are trained along.
    """

    def __init__(
        self,
        mas: RecursiveMASModel,
        links: Iterable[str],
        inner: Iterable[str] = (),
        settings: OuterSettings = OuterSettings(),
    ) -> None:
        super().__init__(mas, inner=inner, outer=links)
        config, topology, self.settings = mas.config, mas.topology, settings
        self.num_rounds = settings.num_rounds or config.num_rounds
        self.latent_steps = settings.latent_steps or config.latent_steps
        self.halting = config.latent_halting if settings.latent_halting is None else settings.latent_halting
        self.control_tokens = config.control_tokens if settings.control_tokens is None else settings.control_tokens
        self.schedule = topology.schedule(self.num_rounds)
        supervised = {
            (r, role)
            for r, role in self.schedule
            if (settings.supervise == "receivers" and topology.incoming(role, r)) or role == topology.decoding_role
        }
        self.weights = {}
        for r, role in supervised:
            peers = sum(other == r for other, _ in supervised)
            earlier = len({other for other, _ in supervised if other < self.num_rounds})
            weight = 1.0 if r == self.num_rounds else settings.earlier_rounds_weight / earlier
            if weight:
                self.weights[r, role] = weight / peers

    def forward(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """The loss of a batch; each example holds every part of the schedule."""
        sent: dict[tuple[int, str, str], list[torch.Tensor]] = {}
        builders = self._prompt_builders(examples)
        total = torch.zeros(())
        records: dict[str, torch.Tensor] = {}
        for stage in self.schedule:
            round_index, role = stage
            messages = {
                link.source: sent[round_index - link.feedback, link.source, role]
                for link in self.mas.topology.incoming(role, round_index)
            }
            parts = [example.parts[stage] for example in examples]
            if self.settings.activation_checkpointing and self.training:
                losses, going = checkpoint(self._stage, stage, parts, builders[role], messages, use_reentrant=False)
            else:
                losses, going = self._stage(stage, parts, builders[role], messages)
            for target, messages_out in going.items():
                sent[round_index, role, target] = messages_out
            if losses is not None:
                loss = losses.mean()
                total = total + self.weights[stage] * loss
                records[f"{role}_round_{round_index}_cross_entropy"] = loss
        self.record(records)
        return {"loss": total}

    def inner_link(self, role: str, round_index: int) -> nn.Module:
        """The inner link of a role in a round: the same in every round, unless a subclass says otherwise."""
        return self.mas.agents[role].inner_link

    def outer_link(self, name: str, round_index: int) -> AnyOuterLink:
        """The outer link that sends in a round: the same in every round, unless a subclass says otherwise."""
        return self.mas.outer_links[name]

    def _prompt_builders(self, examples: list[Example]) -> dict[str, PromptBuilder]:
        """Role -> what builds its prompts: the head of a prompt, which no link reaches, is read once.

        It is read without gradients, for all rounds. Not where a cache cannot be set back (sliding windows, recurrent
        states): there every stage reads all of its prompt.
        """
        builders = {}
        for role in dict.fromkeys(role for _, role in self.schedule):
            rounds = [r for r, other in self.schedule if other == role]
            rows = {
                phase_of(r): [example.parts[r, role].pieces for example in examples] for r in (rounds[0], rounds[-1])
            }
            # A head that is read by itself is spared the backward pass, which counts like a use.
            builders[role] = PromptBuilder(self.mas.agents[role], rows, uses=2 * len(rounds))
        return builders

    def _stage(
        self,
        stage: tuple[int, str],
        parts: list[Part],
        builder: PromptBuilder,
        messages: dict[str, list[torch.Tensor]],
    ) -> tuple[torch.Tensor | None, dict[str, list[torch.Tensor]]]:
        """One role in one round: the cross-entropy of each row where it counts, and what goes out on each link."""
        round_index, role = stage
        agent, targets = self.mas.agents[role], [part.target_ids for part in parts]
        build = partial(builder.build, phase_of(round_index), messages, can_crop(agent.new_cache()))
        receivers = self.mas.topology.receivers(role, round_index, self.num_rounds)
        losses, states = None, None
        if stage in self.weights or self.settings.latents == "teacher":
            prompt, _ = build([target[:-1] for target in targets])
            states = target_states(agent, prompt, targets)
            if stage in self.weights:
                losses = cross_entropy(agent, states)
        if not receivers:
            return losses, {}
        if self.settings.latents == "teacher":
            assert states is not None
            rollout = self._teacher_rollout(role, round_index, states)
        else:
            prompt, _ = build()
            cache = differentiable_cache(agent) if prompt.past_key_values is None else prompt.past_key_values
            new = prompt.inputs_embeds[:, prompt.past :]
            rollout = agent.rollout(
                new, prompt.attention_mask, self.latent_steps, cache, self.halting, self.control_tokens
            )
        going = {}
        for link in receivers:
            receiver = self.mas.agents[link.target]
            sent = hand_over(agent, self.outer_link(link.name, round_index), rollout)
            rows = [row.to(receiver.device) for row in sent]
            going[link.target] = rows if self.control_tokens else receiver.without_control_tokens(rows)
        return losses, going

    def _teacher_rollout(self, role: str, round_index: int, states: TargetStates) -> Rollout:
        """The positions that predict a target text as thoughts, from the left; its end-of-sequence is left out."""
        tokens, most = states.labels.shape[1], self.latent_steps
        lengths = torch.tensor([min(n - 1, most) for n in states.lengths], device=states.hidden_states.device)
        longest = max(1, int(lengths.max()))
        rows = [h[tokens - n :][:longest] for h, n in zip(states.hidden_states, states.lengths, strict=True)]
        hidden_states = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Rollout(hidden_states, self.inner_link(role, round_index)(hidden_states), lengths)
