"""What an agent can hold: positions up to its limit, and numbers that are finite in its dtype."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedConfig

from .errors_recursivemas import InputError, NonFiniteError

# Kinds of rotary scaling whose factor may stand beside an unscaled `max_position_embeddings`.
STRETCHED = ("linear", "dynamic", "yarn")


def position_limit(config: PreTrainedConfig) -> int | None:
    """Most positions of a model by its configuration; `None` where nothing limits them (recurrent states, ALiBi)."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    rope: Any = getattr(text, "rope_parameters", None) or {}
    for settings in (rope, *rope.values()):  # of the model, or of each type of layer
        if isinstance(settings, Mapping) and settings.get("rope_type", settings.get("type")) in STRETCHED:
            original = settings.get("original_max_position_embeddings") or limit
            limit = max(limit, int(original * (settings.get("factor") or 1)))
    return limit


def validate_positions(
    limit: int | None, needs: Mapping[int, int], *, where: str, name: Callable[[int], str], what: str
) -> None:
    """Checks prompts with all that follows them against an agent's limit, before any of it is computed.

    Args:
        limit: most positions of the agent, see `position_limit`.
        needs: row -> positions that it needs.
        where: agent and round.
        name: row -> what its question is called.
        what: what is counted.

    Raises:
        InputError: a row needs more.
    """
    row = max(needs, key=needs.__getitem__)
    if limit is not None and needs[row] > limit:
        raise InputError(
            "An agent has too few positions.",
            where=f"{where}, {name(row)}",
            found=f"{needs[row]} positions ({what})",
            expected=f"at most {limit}, the agent's limit (max_position_embeddings)",
            hint="shorten the question, or ask for fewer latent steps (`latent_steps`) or tokens (`max_new_tokens`)",
        )


def name_of(index: int, text: str) -> str:
    """How messages name a question: its index among all, and its beginning."""
    return f"question {index} ({text[:60]!r}{'…' if len(text) > 60 else ''})"


def validate_finite(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, where: str) -> None:
    """Checks what a turn computed, in one look.

    Args:
        tensors: what it is -> values; as far as they count.
        dtype: that the agent, or the receiver, computes in.
        where: agent or link, and round.

    Raises:
        NonFiniteError: one holds NaN or infinity.
    """
    if not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all()):
        return
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    raise NonFiniteError(
        f"Numbers do not fit: {broken[0]} hold NaN or infinity.",
        where=where,
        found=f"{', '.join(broken)}, computed in {str(dtype).removeprefix('torch.')}",
        expected="finite numbers",
        hint='load this agent in a wider dtype (dtype={"<role>": "float32"}, or bfloat16 in place of float16); where '
        "it is float32, the weights of its links or of the model are too large",
    )


class FiniteLogits(LogitsProcessor):
    """Looks at the first logits of a generation, which all that was handed over reaches, and keeps the last.

    Tokens that are ruled out have logits of minus infinity; a row of nothing else, NaN or infinity are no logits.

    Args:
        dtype: that the agent computes in.
        where: agent and round.
    """

    def __init__(self, dtype: torch.dtype, where: str) -> None:
        self.dtype, self.where = dtype, where
        self._last: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        first, self._last = self._last is None, scores
        if first:
            self.look()
        return scores

    def look(self) -> None:
        """Raises NonFiniteError where the logits seen last are not finite."""
        if self._last is not None:
            validate_finite({"logits": self._last.amax(-1)}, self.dtype, self.where)
