"""Thinking: what is computed with one frozen language model, and the latent rollout."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.utils import logging

from .caches_recursivemas import cache_argument, can_crop, new_cache, past_length
from .errors_recursivemas import InputError
from .limits_recursivemas import position_limit
from .links_recursivemas import AnyInnerLink
from .mixtures_recursivemas import vocabulary_logits
from .steps_recursivemas import CompiledSteps

logger = logging.get_logger(__name__)
HALTING_CHECK = 8  # latent steps between two looks at whether all rows have ended, on an accelerator


@dataclass
class Rollout:
    """What an agent thought, for a batch.

    Attributes:
        hidden_states: last-layer hidden states h_1 … h_m after the final norm, (batch, steps, hidden_size).
        latents: inner(h_1) … inner(h_m), (batch, steps, hidden_size), in the inner link's dtype.
        lengths: how many leading steps of each row count, (batch,); less than `steps` only with halting.
    """

    hidden_states: torch.Tensor
    latents: torch.Tensor
    lengths: torch.Tensor


class ThinkingAgent(PreTrainedModel):
    """What is computed with an agent's base model, tokenizer and inner link; `RecursiveMASAgent` brings them."""

    model: Any  # a `PreTrainedModel` that generates, which no type of transformers says
    inner_link: AnyInnerLink
    tokenizer: PreTrainedTokenizerBase
    role: str
    _half_norms: torch.Tensor | None = None
    _control_token_ids: torch.Tensor | None = None
    _compiled_steps: CompiledSteps | None = None

    @property
    def hidden_size(self) -> int:
        """Width of the embedding space that latents of this agent live in."""
        return self.get_input_embeddings().embedding_dim

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the base model (links keep their own)."""
        return self.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Where inputs of the base model go."""
        return self.get_input_embeddings().weight.device

    @property
    def decoder(self) -> PreTrainedModel:
        """The text model under the vocabulary projection (inside a multimodal model, its language part)."""
        decoder = self.model.get_decoder()
        if decoder is not self.model and isinstance(decoder, PreTrainedModel):
            return decoder
        return self.model.model  # transformers does not find Llama 4's, and takes ModernBERT's head for one

    @property
    def position_limit(self) -> int | None:
        """Most positions of a prompt with all that follows it; `None` where nothing limits them."""
        return position_limit(self.decoder.config)

    @property
    def eos_token_ids(self) -> list[int]:
        """End-of-sequence ids: those of the generation config, else the tokenizer's."""
        ids = self.model.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return [ids] if isinstance(ids, int) else list(ids or [])

    @property
    def control_token_ids(self) -> torch.Tensor:
        """Ids (n,) of the tokens that are no text: the special ones, and those that end a sequence; on the CPU."""
        if self._control_token_ids is None:
            ids = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
            ids |= {*self.tokenizer.all_special_ids, *self.eos_token_ids}
            size = self.get_input_embeddings().num_embeddings
            self._control_token_ids = torch.tensor(sorted(i for i in ids if i < size), dtype=torch.long)
        return self._control_token_ids

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows; masked wherever it stands."""
        pad = self.tokenizer.pad_token_id
        return self.eos_token_ids[0] if pad is None else pad

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return cast(torch.nn.Embedding, self.model.get_input_embeddings())

    def new_cache(self) -> DynamicCache:
        """An empty cache that knows the layer types (sliding window, linear attention)."""
        return new_cache(self.decoder.config)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(batch, length) ids -> (batch, length, hidden_size) embeddings, scaled where the model scales them."""
        return self.get_input_embeddings()(input_ids)

    def decode(self, token_ids: list[int]) -> str:
        """Generated ids -> text, without special tokens and otherwise unchanged."""
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def encode(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs the decoder over new positions, without the vocabulary projection.

        Args:
            inputs_embeds: embeddings of the new positions, (batch, new, hidden_size).
            attention_mask: over past and new positions, (batch, past + new); `None` where nothing is masked.
            past_key_values: cache, extended in place; `None` computes without one.
            position_ids: of the new positions, (batch, new), where they are known already.

        Returns:
            Hidden states after the final norm, (batch, new, hidden_size).
        """
        new = inputs_embeds.shape[1]
        past = 0 if past_key_values is None else past_length(past_key_values)
        if past is None:  # a recurrent state alone masks what it reads, not what it has read
            past, attention_mask = 0, None if attention_mask is None else attention_mask[:, -new:]
        if position_ids is not None:
            pass
        elif attention_mask is None:
            position_ids = torch.arange(past, past + new, device=inputs_embeds.device)[None]
        else:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -new:]
        decoder = self.decoder
        return decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=past_key_values is not None,
            **cache_argument(decoder.forward, past_key_values),
        ).last_hidden_state

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm (…, hidden_size) -> next-token logits (…, vocabulary)."""
        return vocabulary_logits(self.model, hidden_states)

    def rollout(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        latent_steps: int,
        past_key_values: Cache | None = None,
        halting: bool = False,
        control_tokens: bool = True,
        on_step: Callable[[], object] | None = None,
    ) -> Rollout:
        """Thinks: the last hidden state, through the inner link, becomes the next input embedding.

        `latent_steps` steps need the prompt and `latent_steps` - 1 single positions (the release's semantics).

        Args:
            inputs_embeds: the prompt, or what of it is not in `past_key_values` yet, (batch, new, hidden_size).
            attention_mask: over the whole prompt, (batch, length); zeros on padding, which stands on the left.
            latent_steps: number of steps m >= 0.
            past_key_values: cache that holds the head of the prompt; extended in place (not by compiled steps).
            halting: a row ends before the first step that says an end-of-sequence token: the one that is nearest to
                its latent, or where the inner link mixes the agent's own tokens, the likeliest one.
            control_tokens: whether steps count that say a special token; if not, a row ends before the first.
            on_step: called before each step; what it raises ends the rollout.
        """
        cache = self.new_cache() if past_key_values is None else past_key_values
        batch, length = attention_mask.shape
        hidden_states, latents = [], []
        lengths = torch.zeros(batch, dtype=torch.long, device=inputs_embeds.device)
        finished = torch.zeros(batch, dtype=torch.bool, device=inputs_embeds.device)
        # All masks and positions are slices of these; nothing is rebuilt, and nothing waits for the device, in a step.
        whole_mask = torch.cat([attention_mask, attention_mask.new_ones(batch, max(0, latent_steps - 1))], dim=1)
        position_ids = (whole_mask.cumsum(-1) - 1).clamp(min=0)
        mask: torch.Tensor | None = whole_mask
        step_mask = mask
        plain = can_crop(cache) and self.decoder.config._attn_implementation == "sdpa"
        if bool(attention_mask.all()):
            mask = step_mask = None
        elif plain:
            step_mask = whole_mask[:, None, None].bool()  # what the model would make of `mask`, again and again
        compiled = plain and not torch.is_grad_enabled()
        ending = None
        if halting or not control_tokens:
            ending = torch.tensor(self.eos_token_ids) if control_tokens else self.control_token_ids
            ending = ending.to(finished.device)
        new = inputs_embeds.shape[1]
        for step in range(latent_steps):
            if on_step:
                on_step()
            end = length + step
            seen = mask if step == 0 else step_mask
            seen = None if seen is None else seen[..., :end]
            positions = position_ids[:, end - new : end]
            if step == 1 and compiled and self._compiled_steps is not None:
                self._compiled_steps.start(cache, whole_mask)
            taken = self._take_compiled_step(inputs_embeds, positions) if step and compiled else None
            if taken is None:
                state = self.encode(inputs_embeds, seen, cache, positions)[:, -1]
                taken = state, *self.inner_link.step(state)
            hidden_states.append(taken[0])
            latents.append(taken[1])
            if ending is not None:
                said = self.nearest_token_ids(taken[1]) if taken[2] is None else taken[2]
                finished = finished | self._is_end(said, ending)
                # An accelerator must finish all its work to answer, so it is asked now and then only.
                if (finished.is_cpu or step % HALTING_CHECK == 0) and bool(finished.all()):
                    break
            lengths = lengths + ~finished
            inputs_embeds, new = latents[-1][:, None].to(inputs_embeds.dtype), 1
        if not hidden_states:
            empty = inputs_embeds.new_zeros(batch, 0, self.hidden_size)
            return Rollout(empty, empty, lengths)
        return Rollout(torch.stack(hidden_states, dim=1), torch.stack(latents, dim=1), lengths)

    def compile_steps(self, enabled: bool = True) -> None:
        """Lets latent steps run as compiled graphs (or no more): slow at first for each batch size, then faster.

        Where a graph cannot be made, steps run as ever, after one warning. Not to be used by two threads at a time.
        """
        self._compiled_steps = CompiledSteps(self.decoder, self.inner_link) if enabled else None

    def _take_compiled_step(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None:
        if self._compiled_steps is None:
            return None
        try:
            return self._compiled_steps(inputs_embeds, position_ids)
        except Exception as error:  # a compiler fails in many ways
            if self._compiled_steps.steps_taken:
                raise  # the cache that steps without a graph would need ends at the prompt
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            logger.warning_once(f"Latent steps cannot be compiled and run without ({reason}).")
            self._compiled_steps = None
            return None

    def think(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, latent_steps: int) -> torch.Tensor:
        """Hidden states of latent steps over a prompt.

        Args:
            inputs_embeds: (batch, length, hidden_size).
            attention_mask: (batch, length), zeros on padding, which stands on the left.
            latent_steps: number of steps m >= 0.

        Returns:
            The hidden states h_1 … h_m (before the inner link), (batch, latent_steps, hidden_size).

        Raises:
            InputError: shapes do not fit, or padding stands on the right.
        """
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != self.hidden_size:
            raise InputError(
                "`inputs_embeds` does not fit the agent.",
                where=f"think, agent {self.role}",
                found=tuple(inputs_embeds.shape),
                expected=f"(batch, length, {self.hidden_size})",
            )
        if attention_mask.shape != inputs_embeds.shape[:2] or not bool(attention_mask[:, -1].all()):
            raise InputError(
                "`attention_mask` does not fit `inputs_embeds`, or padding stands on the right.",
                where=f"think, agent {self.role}",
                found=tuple(attention_mask.shape),
                expected=f"{tuple(inputs_embeds.shape[:2])}, with ones in the last column",
                hint="pad on the left",
            )
        return self.rollout(inputs_embeds, attention_mask, latent_steps).hidden_states

    def _is_end(self, token_ids: torch.Tensor, ending: torch.Tensor) -> torch.Tensor:
        """(batch,) said ids -> (batch,): are they among those that end a row?"""
        return torch.isin(token_ids, ending)

    def without_control_tokens(self, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        """Rows of received latents (n, hidden_size), without the positions whose nearest token is no text."""
        control = self.control_token_ids.to(self.device)
        read = self.nearest_token_ids(torch.cat(rows)).split(list(map(len, rows)))
        return [row[~torch.isin(ids, control)] for row, ids in zip(rows, read, strict=True)]

    def snap(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (…, hidden_size) -> the embeddings of their nearest tokens that are text, (…, hidden_size)."""
        return self.embed(self.nearest_token_ids(latents, control_tokens=False))

    def read_out(self, latents: torch.Tensor) -> str:
        """What latents (n, hidden_size) that this agent received say: the text of their nearest tokens."""
        return self.decode(self.nearest_token_ids(latents).tolist())

    def read_out_rows(self, rows: list[torch.Tensor]) -> list[str]:
        """`read_out` of each row."""
        read = self.nearest_token_ids(torch.cat(rows)).split(list(map(len, rows)))
        return [self.decode(ids.tolist()) for ids in read]

    def nearest_token_ids(self, vectors: torch.Tensor, control_tokens: bool = True) -> torch.Tensor:
        """Vectors in this agent's embedding space (…, hidden_size) -> ids of the nearest (L2) embeddings (…).

        `control_tokens=False` looks among the tokens that are text only.

        |v - e|^2 is smallest where v e - |e|^2 / 2 is largest; costs one vocabulary projection.
        """
        embeddings = self.get_input_embeddings()
        weight = embeddings.weight
        scale: Any = getattr(embeddings, "embed_scale", 1.0)  # Gemma scales inside its embedding module
        if self._half_norms is None or self._half_norms.device != weight.device:
            self._half_norms = (weight.float() * scale).pow(2).sum(-1) / 2
        closeness = (vectors.to(weight) @ weight.T).float() * scale - self._half_norms
        if not control_tokens:
            closeness[..., self.control_token_ids.to(weight.device)] = -torch.inf
        return closeness.argmax(-1)
