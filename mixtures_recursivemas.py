"""Inner links that mix the agent's own token embeddings, by what it would say next."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from .errors_recursivemas import ConfigError

# Over the whole vocabulary (no file), or over a part of it.
EXPECTED_EMBEDDING = "expected_embedding"
CODEBOOK = "codebook"


def vocabulary_logits(
    model: PreTrainedModel, hidden_states: torch.Tensor, rows: tuple[torch.Tensor, torch.Tensor | None] | None = None
) -> torch.Tensor:
    """Hidden states after the final norm (…, d) -> next-token logits (…, vocabulary), as the model computes them.

    Args:
        model: a causal language model.
        hidden_states: (…, d).
        rows: weight (n, d) and bias of some rows of its head, for the logits (…, n) of these tokens only.
    """
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden_states) if rows is None else functional.linear(hidden_states, *rows)
    logits = logits * (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


class ExpectedEmbeddingLink(nn.Module):
    """Last hidden state of an agent -> the expected embedding under the agent's own next-token distribution.

    softmax(head(h) / temperature) E, rescaled to `norm`: it needs neither training nor data, and costs the vocabulary
    projection, or with a codebook the projection on the codebook's tokens. Differs from the paper: its inner links
    are all trained. At temperature 1 the mixture drifts away from what a model reads as text within a few steps; a low
    temperature and the length of a token's embedding hold it (docs/real-model.md).

    Args:
        hidden_size: width d of the agent.
        temperature: of the softmax (> 0).
        norm: L2 norm of what comes out; `None` leaves it as it is.
        special_tokens: whether special tokens have a share in the mixture.
        token_ids: the codebook: ids (n,) of the tokens that have a share; `None` is the whole vocabulary.

    Raises:
        ConfigError: an option cannot be used.
    """

    token_ids: torch.Tensor

    def __init__(
        self,
        hidden_size: int,
        temperature: float = 1.0,
        norm: float | None = None,
        special_tokens: bool = True,
        token_ids: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind = EXPECTED_EMBEDDING if token_ids is None else CODEBOOK
        self.in_features = self.out_features = hidden_size
        self.temperature, self.norm, self.special_tokens = temperature, norm, special_tokens
        validate_mixture(vars(self), "inner_link")
        if token_ids is not None:
            self.register_buffer("token_ids", token_ids.to(torch.int32))
        self._model: tuple[PreTrainedModel, torch.Tensor] | None = None
        self._table: tuple[Any, ...] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What its entry of the configuration says beside kind and weights."""
        given = {"temperature": self.temperature, "norm": self.norm, "special_tokens": self.special_tokens}
        return {name: value for name, value in given.items() if value != MIXTURE_OPTIONS[name]}

    def bind(self, model: PreTrainedModel, control_token_ids: torch.Tensor) -> None:
        """Takes head and embeddings from the agent's model, and the ids that are no text.

        Raises:
            ConfigError: the codebook names a token that the model does not have.
        """
        # In a tuple, so that the model is no submodule and the state dict holds the codebook at most.
        self._model, self._table = (model, control_token_ids), None
        size = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
        if self.kind == CODEBOOK and not 0 <= int(self.token_ids.min()) <= int(self.token_ids.max()) < size:
            raise ConfigError(
                "A codebook names tokens that its agent does not have.",
                where="inner_link, token_ids",
                found=f"ids from {int(self.token_ids.min())} to {int(self.token_ids.max())}",
                expected=f"0 to {size - 1}",
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(…, d) -> (…, d), in the dtype of the agent's embeddings."""
        return self.step(hidden_states)[0]

    def step(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(…, d) -> the expected embeddings (…, d), and the likeliest next tokens (…), special ones included."""
        assert self._model is not None
        model, _ = self._model
        embeddings = cast(nn.Embedding, model.get_input_embeddings())
        weight = embeddings.weight
        ids, no_share, head, bias, rows = self._candidates(weight)
        logits = vocabulary_logits(
            model, hidden_states.to(weight.dtype), None if self.kind == EXPECTED_EMBEDDING else (head, bias)
        )
        likeliest = logits.argmax(-1)
        logits = logits.float() / self.temperature
        if no_share is not None:
            logits = logits.masked_fill(no_share, -torch.inf)
        # Gemma scales inside its embedding module.
        mixture = logits.softmax(-1).to(weight.dtype) @ rows * getattr(embeddings, "embed_scale", 1.0)
        if self.norm is not None:
            length = mixture.float().norm(dim=-1, keepdim=True).clamp_min(1e-12)
            mixture = (mixture.float() * (self.norm / length)).to(mixture.dtype)
        return mixture, likeliest if ids is None else ids[likeliest]

    def _candidates(self, weight: torch.Tensor) -> tuple[Any, ...]:
        """Ids, those without a share, rows of the head, its bias, rows of the embeddings; kept where weights stay."""
        assert self._model is not None
        place = (weight.device, weight.dtype)
        if self._table is not None and self._table[0] == place:
            return self._table[1:]
        model, control = self._model
        control = control.to(weight.device)
        if self.kind == EXPECTED_EMBEDDING:
            no_share = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
            no_share[control] = not self.special_tokens
            self._table = (place, None, None if self.special_tokens else no_share, None, None, weight)
            return self._table[1:]
        # The tokens that end a text stand beside the codebook's, so that an end is seen; they have no share in it.
        ids = self.token_ids.long().to(weight.device)
        beside = control[~torch.isin(control, ids)]
        no_share = torch.arange(len(ids) + len(beside), device=weight.device) >= len(ids)
        ids = torch.cat([ids, beside])
        if not self.special_tokens:
            no_share = no_share | torch.isin(ids, control)
        head: Any = model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        self._table = (
            place, ids, no_share, head.weight.detach()[ids], None if bias is None else bias.detach()[ids],
            weight.detach()[ids],
        )  # fmt: skip
        return self._table[1:]


MIXTURE_OPTIONS: dict[str, Any] = {"temperature": 1.0, "norm": None, "special_tokens": True}


def mixture_options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an expected embedding that an inner link's entry of a configuration states."""
    return {name: value for name, value in entry.items() if name in MIXTURE_OPTIONS}


def validate_mixture(options: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError unless the options of an expected embedding can be used."""
    temperature, norm = options.get("temperature", 1.0), options.get("norm", 1.0)
    for name, value in (("temperature", temperature), ("norm", norm)):
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
        if not number and not (name == "norm" and value is None):
            raise ConfigError(
                "An option of an inner link cannot be used.",
                where=f"{where}, {name}", found=repr(value)[:80], expected="a number > 0",
            )  # fmt: skip
    if not isinstance(options.get("special_tokens", True), bool):
        raise ConfigError(
            "An option of an inner link cannot be used.",
            where=f"{where}, special_tokens", found=repr(options["special_tokens"])[:80], expected="true or false",
        )  # fmt: skip
