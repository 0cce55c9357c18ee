"""Batches of prompts: ids and received latents as embeddings; heads that rounds, rows and roles share, read once."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from .agent_recursivemas import RecursiveMASAgent
from .caches_recursivemas import Prefix, can_crop
from .errors_recursivemas import InputError
from .memories_recursivemas import WorkingMemory
from .prompts_recursivemas import Slot

# A forward pass over a few positions costs as much as one over about so many: it reads the same weights.
PASS_COST = 16


@dataclass
class PromptBatch:
    """A batch of prompts with their slots filled, padded on the left.

    Attributes:
        inputs_embeds: (batch, length, hidden_size).
        attention_mask: (batch, length).
        past_key_values: cache of the first `past` positions, or `None`.
        past: number of leading positions that `past_key_values` holds.
        rows: what each row was made of, token ids and latents (n, hidden_size).
        where: agent and round, for error messages.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    past_key_values: Cache | None = None
    past: int = 0
    rows: Sequence[Sequence[torch.Tensor | list[int]]] = ()
    where: str = ""

    @property
    def latent(self) -> bool:
        """Whether there is more in the embeddings than tokens."""
        return any(isinstance(part, torch.Tensor) and len(part) for row in self.rows for part in row)

    def input_ids(self, padding: int) -> torch.Tensor:
        """(batch, length) token ids, for what reads ids beside the embeddings; `padding` for rows without a token.

        Latents, and positions that are masked, repeat the row's first token: it stands in the prompt anyway, so that
        no penalty on the prompt's tokens falls on one that is not there.
        """
        mask = self.attention_mask.bool().cpu()
        ids = torch.empty(mask.shape, dtype=torch.long)
        for index, row in enumerate(self.rows):
            first = next((part[0] for part in row if len(part) and not isinstance(part, torch.Tensor)), padding)
            parts = [[first] * len(part) if isinstance(part, torch.Tensor) else part for part in row]
            ids[index] = first
            ids[index, mask[index]] = torch.tensor([token for part in parts for token in part], dtype=torch.long)
        return ids.to(self.attention_mask.device)

    def continued(self, agent: RecursiveMASAgent, written: Mapping[int, list[int]]) -> "PromptBatch":
        """Some rows of the prompt with what was written behind them, row -> token ids; without a cache."""
        rows = [[*self.rows[row], ids] for row, ids in written.items()]
        return PromptBatch(*embed_rows(agent, rows), rows=rows, where=self.where)


class Heads:
    """Token ids that each row of prompts starts with, read once.

    Args:
        agent: whose model reads them; any of the roles of one base.
        rows: of each row.
        shared: how many at the start all rows have; these are read for one row.
        behind: heads that these begin with, of as many rows or of one that stands for all; read once for all that
            stand behind them.
    """

    def __init__(
        self, agent: RecursiveMASAgent, rows: list[list[int]], shared: int = 0, behind: "Heads | None" = None
    ) -> None:
        self.agent, self.rows, self.shared, self.behind = agent, rows, shared, behind
        self._prefix: Prefix | None = None

    def lengths(self, count: int) -> list[int]:
        """How many tokens so many rows start with."""
        lengths = list(map(len, self.rows))
        return lengths if len(lengths) == count else lengths * count

    def narrowed(self, rows: list[int]) -> "Heads | None":
        """Those of some rows, read as far as they are; `None` where what is read cannot be parted."""
        if len(self.rows) == 1:
            return self
        other = copy.copy(self)
        other.rows = [self.rows[row] for row in rows]
        other.behind = self.behind and self.behind.narrowed(rows)
        other._prefix = self._prefix and self._prefix.narrowed(rows)
        return other if self._prefix is None or other._prefix is not None else None

    @torch.no_grad()
    def read(self) -> Prefix:
        """Their keys and values; computed at the first call."""
        if self._prefix is None:
            before, done = None, [0] * len(self.rows)
            if self.behind is not None:
                before, done = self.behind.read(), self.behind.lengths(len(self.rows))
            if self.shared > max(done):
                before = self._read_on(before, [self.rows[0][done[0] : self.shared]])
                done = [self.shared] * len(self.rows)
            self._prefix = self._read_on(before, [row[past:] for row, past in zip(self.rows, done, strict=True)])
            self.behind = None  # it is given up when all that stand behind it are read
        return self._prefix

    def _read_on(self, before: Prefix | None, rows: list[list[int]]) -> Prefix:
        cache: Cache = self.agent.new_cache()
        masks = []
        if before is not None:
            cache, mask = before.branch(), before.attention_mask
            if len(mask) < len(rows):
                cache.batch_repeat_interleave(len(rows))
                mask = mask.expand(len(rows), -1)
            masks.append(mask)
        if any(rows):
            embeds, mask = embed_rows(self.agent, [[row] for row in rows])
            masks.append(mask)
            plain = before is None and len(rows) == 1  # nothing is masked
            self.agent.encode(embeds, None if plain else torch.cat(masks, dim=1), cache)
        return Prefix(cache, torch.cat(masks, dim=1))


class PromptBuilder:
    """Builds one role's prompts over the rounds of a batch, and reads their common heads once.

    What all rows start with is read for one row; what each row starts with in every round is read in the first.

    Args:
        agent: the role's agent.
        rows: phase -> pieces of each row (see `PromptRenderer.pieces`), for the phases that will be used.
        uses: how often `build` will be called.
        stem: what the prompts start with in other roles of the base too, see `prompt_builders`.
    """

    def __init__(
        self,
        agent: RecursiveMASAgent,
        rows: dict[str, list[list[list[int] | Slot]]],
        uses: int,
        stem: Heads | None = None,
    ) -> None:
        self.agent, self.rows, self.uses_left = agent, rows, uses
        self._validate_ids()
        heads = _heads(rows)
        # Rows that differ after a shared head leave masked holes behind it, which only full attention ignores.
        self._holes = _skips_holes(agent)
        shared = _shared_length(heads) if self._holes else 0
        if (uses - 1) * min(map(len, heads)) <= PASS_COST:
            known = [0] * len(heads) if stem is None else stem.lengths(len(heads))
            heads = [head[: max(shared, length)] for head, length in zip(heads, known, strict=True)]
        self._heads = Heads(agent, heads, shared, stem) if any(heads) and agent.traits.reads_on else None

    def narrowed(self, rows: list[int]) -> "PromptBuilder":
        """What builds the prompts of some of the rows; heads that are read already stay read where they can."""
        if rows == list(range(len(next(iter(self.rows.values()))))):
            return self
        other = copy.copy(self)
        other.rows = {phase: [pieces[row] for row in rows] for phase, pieces in self.rows.items()}
        other._heads = self._heads and self._heads.narrowed(rows)
        return other

    def _validate_ids(self) -> None:
        """Raises InputError where a prompt holds a token that the model has no embedding for."""
        size = self.agent.get_input_embeddings().num_embeddings
        pieces = (piece for rows in self.rows.values() for row in rows for piece in row if isinstance(piece, list))
        largest = max((max(piece) for piece in pieces if piece), default=0)
        if largest >= size:
            raise InputError(
                "A prompt holds a token that its agent's model has no embedding for.",
                where=f"agent {self.agent.role}",
                found=f"token {largest}, {self.agent.tokenizer.convert_ids_to_tokens(largest)!r}",
                expected=f"ids below {size}",
                hint="take it out of the prompt",
            )

    def build(
        self,
        phase: str,
        messages: Mapping[str, Sequence[torch.Tensor | list[int]]],
        reuse: bool = True,
        continuations: Sequence[list[int] | torch.Tensor] | None = None,
        memory: WorkingMemory | None = None,
    ) -> tuple[PromptBatch, list[int]]:
        """Fills the slots.

        Args:
            phase: "first", "feedback" or "alone".
            messages: source role -> what it sent to each row: latents (n, hidden_size) or token ids.
            reuse: whether the prompt may come with a cache.
            continuations: token ids or latents that stand behind each row's prompt (in training, what is to be said).
            memory: what stands before each row's prompt; its cache is extended from then on.

        Returns:
            The batch of prompts, and the number of text tokens in each row's prompt.
        """
        self.uses_left -= 1
        rows = []
        for index, pieces in enumerate(self.rows[phase]):
            rows.append([messages[piece.role][index] if isinstance(piece, Slot) else piece for piece in pieces])
        tokens = [sum(len(part) for part in row if not isinstance(part, torch.Tensor)) for row in rows]
        if continuations is not None:
            rows = [[*row, behind] for row, behind in zip(rows, continuations, strict=True)]
        if memory is not None:
            return self._behind(memory, rows, reuse), tokens
        if not reuse:
            return PromptBatch(*embed_rows(self.agent, rows), rows=rows), tokens
        heads = self._heads_of(rows)
        if heads is None:
            return PromptBatch(*embed_rows(self.agent, rows), self.agent.new_cache(), rows=rows), tokens
        prefix = heads.read()
        tails = [[row[0][len(head) :], *row[1:]] for row, head in zip(rows, heads.rows, strict=True)]
        return self._on_cache(prefix.open(self.uses_left == 0), prefix.attention_mask, tails, rows), tokens

    def _behind(self, memory: WorkingMemory, rows: list[list], reuse: bool) -> PromptBatch:
        whole = [[*before, *row] for before, row in zip(memory.rows, rows, strict=True)]
        if not reuse:
            return PromptBatch(*embed_rows(self.agent, whole), rows=whole)
        return self._on_cache(memory.cache, memory.attention_mask, rows, whole)

    def _on_cache(self, cache: Cache, read: torch.Tensor, tails: list[list], rows: list[list]) -> PromptBatch:
        """The prompt whose positions in `read`, a mask (batch, past), a cache holds, and whose tails it does not."""
        embeds, mask = embed_rows(self.agent, tails)
        padding = embeds.new_zeros(embeds.shape[0], read.shape[1], embeds.shape[2])
        embeds, mask = torch.cat([padding, embeds], dim=1), torch.cat([read, mask], dim=1)
        return PromptBatch(embeds, mask, cache, read.shape[1], rows)

    def _heads_of(self, rows: list[list]) -> Heads | None:
        """The heads that these prompts go on from; `None` where each is read as a whole."""
        if self._heads is None:
            return None
        # Rows whose tails differ in length leave masked holes between head and tail. Full attention does not see
        # them; a sliding window or a recurrent state would count them, so such a prompt is read anew.
        tails = {sum(map(len, row)) - len(head) for row, head in zip(rows, self._heads.rows, strict=True)}
        return None if len(tails) > 1 and not self._holes else self._heads


def prompt_builders(
    agents: Mapping[str, RecursiveMASAgent],
    rows: Mapping[str, dict[str, list[list[list[int] | Slot]]]],
    uses: Mapping[str, int],
) -> dict[str, PromptBuilder]:
    """Role -> what builds its prompts. What the prompts of several roles start with is read once for all of them.

    Only where the model keeps all positions, and where that is longer than what one more pass costs.

    Args:
        agents: role -> agent; those that are asked for run one and the same model.
        rows, uses: role -> those of its `PromptBuilder`; a role that is used 0 times shares nothing.
    """
    first = agents[next(iter(rows))]
    sharing = [role for role in rows if uses[role]]
    stems: dict[str, Heads | None] = {}
    if len(sharing) > 1 and _skips_holes(first) and first.traits.reads_on:
        stems = _stems(first, {role: _heads(rows[role]) for role in sharing})
    return {role: PromptBuilder(agents[role], rows[role], uses[role], stems.get(role)) for role in rows}


def _stems(
    agent: RecursiveMASAgent, heads: dict[str, list[list[int]]], behind: Heads | None = None
) -> dict[str, Heads | None]:
    """Role -> the longest heads that it shares with another, which stand behind those that more share."""
    if len(heads) < 2:
        return dict.fromkeys(heads, behind)
    rows = [_common(list(each)) for each in zip(*heads.values(), strict=True)]
    lengths, stem, others = list(map(len, rows)), behind, len(heads) - 1
    shared = _common(rows)
    if (behind is None or len(behind.rows) == 1) and others * (min(lengths) - len(shared)) <= PASS_COST:
        rows = [shared]  # one row stands for all
    done = [0] if behind is None else behind.lengths(len(rows))
    if others * (min(map(len, rows)) - max(done)) > PASS_COST:
        stem = Heads(agent, rows, _shared_length(rows), behind)
    # What goes on in the same way shares more.
    ways: dict[tuple, dict[str, list[list[int]]]] = {}
    for role, own in heads.items():
        way = tuple(tuple(head[n : n + 1]) for head, n in zip(own, lengths, strict=True))
        ways.setdefault(way, {})[role] = own
    if len(ways) == 1:  # they are equal
        return dict.fromkeys(heads, stem)
    return {role: found for each in ways.values() for role, found in _stems(agent, each, stem).items()}


def _skips_holes(agent: RecursiveMASAgent) -> bool:
    """Whether what it reads behind a head may stand behind masked holes."""
    return can_crop(agent.new_cache()) and agent.traits.skips_holes


def _heads(rows: dict[str, list[list[list[int] | Slot]]]) -> list[list[int]]:
    """What each row's prompts start with in all phases."""
    return [_common(list(map(_head, phases))) for phases in zip(*rows.values(), strict=True)]


def _head(pieces: list[list[int] | Slot]) -> list[int]:
    """The token ids that a prompt starts with; at least one position stays outside, to think from."""
    head = pieces[0] if pieces and not isinstance(pieces[0], Slot) else []
    return head if len(pieces) > 1 else head[:-1]


def _common(rows: list[list[int]]) -> list[int]:
    """What all rows start with."""
    shortest = min(rows, key=len)
    length = next((i for i, token in enumerate(shortest) if any(row[i] != token for row in rows)), len(shortest))
    return shortest[:length]


def _shared_length(rows: list[list[int]]) -> int:
    """How many tokens at the start of all rows are to be read for one of them."""
    length = len(_common(rows))
    return length if (len(rows) - 1) * length > PASS_COST else 0


def embed_rows(
    agent: RecursiveMASAgent, rows: Sequence[Sequence[torch.Tensor | list[int]]]
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
