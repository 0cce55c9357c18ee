"""The two losses of the method, as modules that hold the links they train and nothing else.

The agents stand outside the module tree: state dicts, optimizers, DistributedDataParallel and checkpoints see links
only. Every loss is a mean over rows of means over a row's tokens, so that it does not depend on how rows are spread
over batches, accumulation steps and processes.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..agent_recursivemas import RecursiveMASAgent
from ..batching_recursivemas import PromptBatch, PromptBuilder, embed_rows
from ..caches_recursivemas import can_crop
from ..handover_recursivemas import hand_over
from ..links_recursivemas import AnyOuterLink, InnerLink
from ..mixtures_recursivemas import ExpectedEmbeddingLink
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import Slot, phase_of
from ..thinking_recursivemas import Rollout
from .caches import differentiable_cache, forget, in_chunks
from .data import Example, Part
from .layers import keep_only_inputs
from .losses import IGNORE_INDEX, TargetStates, cross_entropy, divergence, in_parts, row_means
from .start import fit_linear_path
from .store import TensorStore

FIT_ROWS = 512  # whose states a linear path is fitted to


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


def on_the_right(rows: list[torch.Tensor], like: TargetStates) -> TargetStates:
    """States of target texts (tokens, hidden_size), one row each, aligned like others of the same texts."""
    tokens = like.labels.shape[1]
    padded = torch.stack([functional.pad(row, (0, 0, tokens - len(row), 0)) for row in rows])
    return TargetStates(padded, like.labels, like.lengths)


class LinkObjective(nn.Module):
    """Base of the two objectives. What no trained link reaches is computed once for an example, and kept.

    Args:
        mas: the system; its links become trainable here where they are named, in float32.
        inner: roles whose inner links are trained.
        outer: names of the outer links that are trained.
    """

    # The loss is a mean already: Trainer must divide by accumulation steps and must not scale by processes.
    accepts_loss_kwargs = False
    mas: RecursiveMASModel
    step: int  # of the run, told by the trainer

    def __init__(self, mas: RecursiveMASModel, inner: Iterable[str] = (), outer: Iterable[str] = ()) -> None:
        super().__init__()
        self.inner_links = nn.ModuleDict({role: mas.agents[role].inner_link for role in inner})
        self.outer_links = nn.ModuleDict({name: mas.outer_links[name] for name in outer})
        for links in (self.inner_links, self.outer_links):
            links.float().requires_grad_(True)
        object.__setattr__(self, "mas", mas)
        self.step = 0
        self._kept = TensorStore()
        self._records: dict[bool, list[dict[str, float]]] = {True: [], False: []}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "LinkObjective":
        """Moves the whole system, which holds the links too."""
        self.mas._apply(fn)
        return self

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Trainer calls this (since transformers 5.24) where the setting is on; `OuterSettings` says so already."""

    @torch.no_grad()
    def _text_states(self, role: str, parts: list[Part]) -> list[torch.Tensor]:
        """States of the target texts with texts in the slots, (tokens, hidden_size) each; computed once."""
        agent = self.mas.agents[role]
        missing = [part for part in parts if (role, "text", id(part)) not in self._kept]
        if missing:
            states = text_states(agent, missing)
            for part, hidden_states, length in zip(missing, states.hidden_states, states.lengths, strict=True):
                self._kept.put((role, "text", id(part)), hidden_states[-length:], part)
        return [self._kept.get((role, "text", id(part)), agent.device) for part in parts]

    def record(self, values: dict[str, torch.Tensor]) -> None:
        """Adds the parts of a loss to what `take_records` gives; training and evaluation are kept apart."""
        self._records[self.training].append({name: float(value.detach()) for name, value in values.items()})

    def take_records(self, training: bool) -> dict[str, float]:
        """Means of what was recorded since the last call."""
        records = self._records[training]
        self._records[training] = []
        return {name: sum(record[name] for record in records) / len(records) for name in (records or [{}])[0]}


@dataclass(frozen=True)
class InnerSettings:
    """What the inner objective computes: the settings of these names, see `LinkTrainingArguments`.

    `latent_steps` bounds the links' own rollouts; `max_steps` is the run's length, which the two parts of `"mixture"`
    that are not there from the start are counted from.
    """

    target: Literal["mixture", "next_token"] = "next_token"
    squared_error_weight: float = 1.0
    rollout_rows: int = 0
    rollout_refreshes: int = 3
    replay_steps: int = 0
    latent_steps: int | None = None
    max_steps: int = 1000


class InnerObjective(LinkObjective):
    """Regresses each agent's inner link on embeddings, agents frozen.

    Loss of a state h: 1 - cos(R_in(h), e) + w |R_in(h) - e|^2 / mean |e|^2, the second term being relative to the
    row's own embeddings. Differs from the paper, whose MSE term is absolute and optional: the cosine alone
    leaves the length of the output free (set w = `squared_error_weight` = 0 for it).

    `target="next_token"` is the paper's: e is the embedding of the token that follows in the target text. On a real
    model its errors add up over a rollout (docs/real-model.md). `"mixture"` is what holds there:

    - e is what a reference link makes of the same state: the expected embedding at a low temperature, which also says
      where a text ends. The states of the target texts are computed once and kept on disk.
    - From the first of `rollout_refreshes` on, the link's own rollouts over `rollout_rows` rows are states too: what
      it meets when nobody corrects it, relabelled by the reference (DAgger, Ross et al. 2011, arXiv 1011.0686).
    - In the last `replay_steps` steps the agent reads its target text once as tokens and once as latents in their
      place, and KL(tokens || latents) of what it would say next is added.

    Args:
        mas: the system.
        roles: whose links are trained, side by side without touching each other.
        settings: see `InnerSettings`.
        references: role -> reference link, bound to its agent; needed for `"mixture"`.
        fresh: roles whose links are new.
    """

    def __init__(
        self,
        mas: RecursiveMASModel,
        roles: Iterable[str],
        settings: InnerSettings = InnerSettings(),
        references: Mapping[str, ExpectedEmbeddingLink] = MappingProxyType({}),
        fresh: Collection[str] = (),
    ) -> None:
        super().__init__(mas, inner=roles)
        self.settings, self.references, self.fresh = settings, references, fresh
        self._phases: dict[tuple[str, int], int] = {}  # of the rollouts in the store
        self._rolled = 0  # rows rolled out in the present phase

    def forward(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """The loss of a batch; each example holds one part a role."""
        total = torch.zeros(())
        records: dict[str, torch.Tensor] = {}
        for role, link in self.inner_links.items():
            parts = [part for example in examples for (_, name), part in example.parts.items() if name == role]
            if self.settings.target == "next_token":
                states, wanted = self._next_tokens(role, parts)
            else:
                states, wanted = self._mixtures(role, parts)
            scale = row_means(wanted.pow(2).sum(-1), states.labels)[:, None]
            latents = link(states.hidden_states).float()
            cosine = row_means(1 - functional.cosine_similarity(latents, wanted, dim=-1), states.labels).mean()
            error = row_means((latents - wanted).pow(2).sum(-1) / scale, states.labels).mean()
            total = total + cosine + self.settings.squared_error_weight * error
            records |= {f"{role}_cosine_loss": cosine, f"{role}_squared_error": error}
            if self.training and self.step >= self.settings.max_steps - self.settings.replay_steps:
                replay = self._replay(role, parts).mean()
                total = total + replay
                records[f"{role}_replay"] = replay
        self.record(records)
        return {"loss": total}

    @torch.no_grad()
    def fit_start(self, examples: list[Example], batch_size: int) -> None:
        """Starts the linear path of new links by regression, over the states of some target texts."""
        for role in self.fresh:
            link = cast(InnerLink, self.inner_links[role])
            if link.residual_proj is None:
                continue
            inputs, outputs = [], []
            for start in range(0, min(len(examples), FIT_ROWS), batch_size):
                batch = examples[start : start + batch_size]
                parts = [part for example in batch for (_, name), part in example.parts.items() if name == role]
                wanted = self._next_tokens if self.settings.target == "next_token" else self._mixtures
                states, targets = wanted(role, parts)
                counts = states.labels != IGNORE_INDEX
                inputs.append(states.hidden_states[counts].cpu())
                outputs.append(targets[counts].cpu())
            fit_linear_path(link, torch.cat(inputs), torch.cat(outputs))

    def _next_tokens(self, role: str, parts: list[Part]) -> tuple[TargetStates, torch.Tensor]:
        """States of the target texts, and the embeddings of the tokens that follow."""
        agent = self.mas.agents[role]
        with torch.no_grad():
            states = text_states(agent, parts)
            return states, agent.embed(states.labels.clamp_min(0)).float()

    @torch.no_grad()
    def _mixtures(self, role: str, parts: list[Part]) -> tuple[TargetStates, torch.Tensor]:
        """States of the target texts and of the link's own rollouts, and what the reference makes of each, once."""
        agent, rows = self.mas.agents[role], self._text_states(role, parts)
        missing = [index for index, part in enumerate(parts) if (role, "text_mixture", id(part)) not in self._kept]
        self._relabel(role, "text_mixture", [parts[index] for index in missing], [rows[index] for index in missing])
        wanted = [self._kept.get((role, "text_mixture", id(part)), agent.device) for part in parts]
        if self.training and self.settings.rollout_rows:
            self._roll_out(role, parts)
            for index, part in enumerate(parts):
                if (role, "rollout", id(part)) in self._kept:
                    for known, name in ((rows, "rollout"), (wanted, "rollout_mixture")):
                        known[index] = torch.cat([known[index], self._kept.get((role, name, id(part)), agent.device)])
        lengths = list(map(len, rows))
        labels = [[0] * n + [IGNORE_INDEX] * (max(lengths) - n) for n in lengths]
        hidden_states, mixtures = (nn.utils.rnn.pad_sequence(values, batch_first=True) for values in (rows, wanted))
        return TargetStates(hidden_states, torch.tensor(labels, device=agent.device), lengths), mixtures

    def _relabel(self, role: str, name: str, parts: list[Part], rows: list[torch.Tensor]) -> None:
        """Keeps what the reference makes of each row's states (n, hidden_size)."""
        if not rows:
            return
        reference = self.references[role]
        mixtures = in_parts(self.mas.agents[role], lambda known: reference(known).float(), torch.cat(rows)[None])
        for part, mixture in zip(parts, mixtures.split(list(map(len, rows))), strict=True):
            self._kept.put((role, name, id(part)), mixture, part)

    def _roll_out(self, role: str, parts: list[Part]) -> None:
        """Renews the states that the link meets in its own rollouts, for some rows of each phase of the run."""
        agent, settings = self.mas.agents[role], self.settings
        phase = self.step * (settings.rollout_refreshes + 1) // settings.max_steps
        if phase > max(self._phases.values(), default=0):
            self._rolled = 0
        due = [part for part in parts if self._phases.get((role, id(part)), 0) < phase]
        if not due or self._rolled >= settings.rollout_rows * len(self.inner_links):
            return
        self._rolled += len(due)
        embeds, mask = embed_rows(agent, [part.text_pieces for part in due])
        steps = settings.latent_steps or self.mas.config.latent_steps
        rollout = agent.rollout(embeds, mask, steps, halting=True)
        lengths = (rollout.lengths + 1).tolist()  # where it should end, too
        rows = [states[:length] for states, length in zip(rollout.hidden_states, lengths, strict=True)]
        for part, states in zip(due, rows, strict=True):
            self._kept.put((role, "rollout", id(part)), states, part)
            self._phases[role, id(part)] = phase
        self._relabel(role, "rollout_mixture", due, rows)

    def _replay(self, role: str, parts: list[Part]) -> torch.Tensor:
        """KL(the target text as tokens || as latents) of what follows each of its positions, (batch,)."""
        agent, rows = self.mas.agents[role], self._text_states(role, parts)
        link = self.inner_links[role]
        # No gradient reaches the prompt, which is most of what is read.
        prompts: list[list[list[int] | Slot]] = [
            [[token for piece in part.text_pieces for token in piece]] for part in parts
        ]
        builder = PromptBuilder(agent, {"first": prompts}, uses=2)
        latents = [link(row[:-1]) for row in rows]
        prompt, _ = builder.build("first", {}, can_crop(agent.new_cache()), latents)
        student = target_states(agent, prompt, [part.target_ids for part in parts])
        forget(prompt.past_key_values)
        return divergence(agent, on_the_right(rows, student), student)


@dataclass(frozen=True)
class OuterSettings:
    """What the outer objective computes: the settings of these names, see `LinkTrainingArguments`.

    `loss="distill"` teaches a receiver by itself: what it would say next with the sender's text in its slot, at
    every position of its target text, is what it should say with the latents there. `latent_steps` is the most
    latents a sender sends (teacher-forced), or the steps of a rollout; `activation_checkpointing` keeps only what
    travels between stages, `layer_checkpointing` of each layer of an agent only what it reads.
    """

    num_rounds: int | None = None
    latent_steps: int | None = None
    latent_halting: bool | None = None
    control_tokens: bool | None = None
    supervise: Literal["decoder", "receivers"] = "decoder"
    earlier_rounds_weight: float = 0.0
    loss: Literal["distill", "answers"] = "answers"
    latents: Literal["teacher", "rollout"] = "teacher"
    activation_checkpointing: bool = False
    layer_checkpointing: bool = False


class OuterObjective(LinkObjective):
    """A loss of a system's texts over unrolled rounds, with gradients through every link of every round.

    One loss: L(last round) + w mean over earlier rounds L(round), where L(round) is the mean over the supervised roles
    of that round. L is the cross-entropy of the target text (`loss="answers"`, the paper's), or the divergence from
    what the role would say with texts in its slots (`"distill"`). `supervise="decoder"` with w = 0 is the paper's;
    w = 0.1 its variant; `supervise="receivers"` takes the text of every agent that received latents in that round.

    Latents are teacher-forced (`latents="teacher"`: those at the positions that predict the sender's target text, its
    end-of-sequence token left out) or rolled out as in inference (`"rollout"`: gradients through the latent steps).
    Differs from the public trainer, which sends the positions one later, so that its first latent stands for the
    second token while a rollout's first stands for the first. Gradients flow through the latent steps of a rollout
    where the sender's inner link is trained along, or the receivers' own texts do not count; elsewhere they end at the
    outer link, since what flows through ten steps and more of a large model explodes (docs/real-model.md). Thoughts
    that no trained link reaches are the same in every epoch, like what the receivers would say with texts.

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
        self.num_rounds = settings.num_rounds or config.most_rounds
        self.latent_steps = settings.latent_steps or config.latent_steps
        self.halting = config.latent_halting if settings.latent_halting is None else settings.latent_halting
        self.control_tokens = config.control_tokens if settings.control_tokens is None else settings.control_tokens
        self.schedule = topology.schedule(self.num_rounds)
        supervised = {
            (r, role)
            for r, role in self.schedule
            if (settings.supervise == "receivers" and topology.incoming(role, r)) or role == topology.decoding_role
        }
        if settings.layer_checkpointing:
            for agent in mas.agents.values():
                keep_only_inputs(agent)
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
            again = self.settings.activation_checkpointing and self.training
            run = partial(checkpoint, self._stage, use_reentrant=False) if again else self._stage
            given = (stage, parts, builders[role], messages)
            if self.settings.latents == "rollout" and again:  # its two passes are never there at the same time
                (losses, _), (_, going) = run(*given, True, False), run(*given, False, True)
            else:
                losses, going = run(*given, True, True)
            for target, messages_out in going.items():
                sent[round_index, role, target] = messages_out
            if losses is not None:
                loss = losses.mean().to(self.mas.device)  # agents may be on several
                total = total + self.weights[stage] * loss
                name = "divergence" if self.settings.loss == "distill" else "cross_entropy"
                records[f"{role}_round_{round_index}_{name}"] = loss
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
        says: bool = True,
        sends: bool = True,
    ) -> tuple[torch.Tensor | None, dict[str, list[torch.Tensor]]]:
        """One role in one round: the loss of each row where it counts, and what goes out on each link."""
        round_index, role = stage
        agent, targets = self.mas.agents[role], [part.target_ids for part in parts]
        build = partial(builder.build, phase_of(round_index), messages, can_crop(agent.new_cache()))
        receivers = self.mas.topology.receivers(role, round_index, self.num_rounds)
        losses, states = None, None
        if says and (stage in self.weights or self.settings.latents == "teacher"):
            prompt, _ = build([target[:-1] for target in targets])
            states = target_states(agent, prompt, targets)
            forget(prompt.past_key_values)
            if stage in self.weights and self.settings.loss == "distill":
                losses = divergence(agent, on_the_right(self._text_states(role, parts), states), states)
            elif stage in self.weights:
                losses = cross_entropy(agent, states)
        if not (receivers and sends):
            return losses, {}
        if self.settings.latents == "teacher":
            assert states is not None
            rollout = self._teacher_rollout(role, round_index, states)
        else:
            rollout = self._rollout(role, parts, messages, build)
        going = {}
        for link in receivers:
            receiver = self.mas.agents[link.target]
            sent = hand_over(agent, self.outer_link(link.name, round_index), rollout)
            rows = [row.to(receiver.device) for row in sent]
            going[link.target] = rows if self.control_tokens else receiver.without_control_tokens(rows)
        return losses, going

    def _rollout(
        self, role: str, parts: list[Part], messages: dict[str, list[torch.Tensor]], build: Callable[[], Any]
    ) -> Rollout:
        """A role's thoughts over its prompt, as in inference; those that nothing trained reaches are kept."""
        agent, trained = self.mas.agents[role], role in self.inner_links
        keep = not messages and not trained
        if keep and all((role, "thoughts", id(part)) in self._kept for part in parts):
            both = [self._kept.get((role, "thoughts", id(part)), agent.device) for part in parts]
            lengths = torch.tensor([pair.shape[1] for pair in both], device=agent.device)
            states, thoughts = (
                nn.utils.rnn.pad_sequence([pair[index] for pair in both], batch_first=True) for index in (0, 1)
            )
            return Rollout(states, thoughts, lengths)
        through = trained or (self.settings.supervise == "decoder" and bool(messages))
        with torch.set_grad_enabled(through and torch.is_grad_enabled()):
            prompt, _ = build()
            cache = prompt.past_key_values
            if cache is None:
                cache = differentiable_cache(agent) if through else agent.new_cache()
            if through and self.settings.layer_checkpointing:
                cache = in_chunks(cache)
            new = prompt.inputs_embeds[:, prompt.past :]
            rollout = agent.rollout(
                new, prompt.attention_mask, self.latent_steps, cache, self.halting, self.control_tokens
            )
        forget(cache)
        forget(prompt.past_key_values)
        if keep:
            exact = torch.promote_types(rollout.hidden_states.dtype, rollout.latents.dtype)
            pairs = torch.stack([rollout.hidden_states.to(exact), rollout.latents.to(exact)], dim=1)
            for part, pair, length in zip(parts, pairs, rollout.lengths.tolist(), strict=True):
                self._kept.put((role, "thoughts", id(part)), pair[:, :length], part)
        return rollout

    def _teacher_rollout(self, role: str, round_index: int, states: TargetStates) -> Rollout:
        """The positions that predict a target text as thoughts, from the left; its end-of-sequence is left out."""
        tokens, most = states.labels.shape[1], self.latent_steps
        lengths = torch.tensor([min(n - 1, most) for n in states.lengths], device=states.hidden_states.device)
        longest = max(1, int(lengths.max()))
        rows = [h[tokens - n :][:longest] for h, n in zip(states.hidden_states, states.lengths, strict=True)]
        hidden_states = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Rollout(hidden_states, self.inner_link(role, round_index)(hidden_states), lengths)
