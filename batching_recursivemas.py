"""Batches of prompts: token ids and received latents as embeddings, heads that rounds and rows share read once."""

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
        self._validate_ids()
        heads = [_common([_head(pieces) for pieces in phases]) for phases in zip(*rows.values(), strict=True)]
        # Rows that differ after a shared head leave masked holes behind it, which only full attention ignores.
        self._holes = can_crop(agent.new_cache()) and agent.traits.skips_holes
        shared = _common(heads) if self._holes else []
        self._shared_length = len(shared) if (len(heads) - 1) * len(shared) > PASS_COST else 0
        if (uses - 1) * min(map(len, heads)) <= PASS_COST:
            heads = [head[: self._shared_length] for head in heads]
        self._heads = heads if any(heads) and agent.traits.reads_on else []

    def narrowed(self, rows: list[int]) -> "PromptBuilder":
        """What builds the prompts of some of the rows; heads that are read already stay read where they can."""
        if rows == list(range(len(next(iter(self.rows.values()))))):
            return self
        other = copy.copy(self)
        other.rows = {phase: [pieces[row] for row in rows] for phase, pieces in self.rows.items()}
        other._prefix = self._prefix and self._prefix.narrowed(rows)
        whole = self._prefix is None or other._prefix is not None
        other._heads = [self._heads[row] for row in rows] if self._heads and whole else []
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
        continuations: list[list[int]] | None = None,
        memory: WorkingMemory | None = None,
    ) -> tuple[PromptBatch, list[int]]:
        """Fills the slots.

        Args:
            phase: "first", "feedback" or "alone".
            messages: source role -> what it sent to each row: latents (n, hidden_size) or token ids.
            reuse: whether the prompt may come with a cache.
            continuations: token ids that stand behind each row's prompt (in training, what is to be said).
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
            rows = [[*row, ids] for row, ids in zip(rows, continuations, strict=True)]
        if memory is not None:
            return self._behind(memory, rows, reuse), tokens
        if not reuse:
            return PromptBatch(*embed_rows(self.agent, rows), rows=rows), tokens
        opened = self._open_prefix(rows)
        if opened is None:
            return PromptBatch(*embed_rows(self.agent, rows), self.agent.new_cache(), rows=rows), tokens
        prefix, cache = opened
        tails = [[row[0][len(head) :], *row[1:]] for row, head in zip(rows, self._heads, strict=True)]
        return self._on_cache(cache, prefix.attention_mask, tails, rows), tokens

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

    def _open_prefix(self, rows: list[list]) -> tuple[Prefix, Cache] | None:
        if not self._heads:
            return None
        if self._prefix is None:
            self._prefix = self._read_heads()
        cache = self._prefix.open(last_use=self.uses_left == 0)
        # Rows whose tails differ in length leave masked holes between head and tail. Full attention does not see
        # them; a sliding window or a recurrent state would count them, so such a prompt is read anew.
        tails = {sum(map(len, row)) - len(head) for row, head in zip(rows, self._heads, strict=True)}
        return None if len(tails) > 1 and not self._holes else (self._prefix, cache)

    @torch.no_grad()
    def _read_heads(self) -> Prefix:
        cache, length = self.agent.new_cache(), self._shared_length
        masks = []
        if length:
            embeds, mask = embed_rows(self.agent, [[self._heads[0][:length]]])
            self.agent.encode(embeds, None, cache)
            cache.batch_repeat_interleave(len(self._heads))
            masks.append(mask.expand(len(self._heads), -1))
        rests = [[head[length:]] for head in self._heads]
        if any(rest for (rest,) in rests):
            embeds, mask = embed_rows(self.agent, rests)
            masks.append(mask)
            self.agent.encode(embeds, torch.cat(masks, dim=1), cache)
        return Prefix(cache, torch.cat(masks, dim=1))


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
