"""RecursiveLinks: the small trained modules that carry latent thoughts inside an agent and between agents.

Parameter names and arithmetic are those of the public release, so that its files load as they are. The paper
(arXiv 2604.25917) writes R_in(h) = h + W2 s(W1 h) and R_out(h) = W3 h + W2 s(W1 h); differs from the paper: the
release adds LayerNorms before and after, and biases everywhere. GELU is the exact (erf) form, LayerNorm eps is 1e-5.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from .errors_recursivemas import ConfigError
from .mixtures_recursivemas import (
    EXPECTED_EMBEDDING,
    ExpectedEmbeddingLink,
)


class LinkShape(NamedTuple):
    """What a kind of link is made of."""

    layers: int
    residual: bool
    norm: bool
    rescaled: bool = False  # inner links only: a linear path beside the layers, and a length of what comes out


INNER_KINDS = {
    "linear_adapter": LinkShape(1, False, False),
    "linear_res_adapter": LinkShape(1, True, False),
    "adapter": LinkShape(2, False, False),
    "res_adapter": LinkShape(2, True, False),
    "ln_res_adapter": LinkShape(2, True, True),
    "rescaled_adapter": LinkShape(2, False, False, True),
}
OUTER_KINDS = {
    "outer_linear_adapter": LinkShape(1, False, False),
    "outer_linear_res_adapter": LinkShape(1, True, False),
    "outer_adapter": LinkShape(2, False, False),
    "outer_res_adapter": LinkShape(2, True, False),
    "outer_ln_adapter": LinkShape(2, False, True),
    "outer_ln_res_adapter": LinkShape(2, True, True),
}
# The names of the paper's ablation -> (inner kind, outer kind).
ABLATION_KINDS = {
    "1layer": ("linear_adapter", "outer_linear_adapter"),
    "1layer_res": ("linear_res_adapter", "outer_linear_res_adapter"),
    "2layer": ("adapter", "outer_adapter"),
    "2layer_res": ("res_adapter", "outer_res_adapter"),
    "2layer_ln_res": ("ln_res_adapter", "outer_ln_res_adapter"),
}


# The outer kinds that hand over a fixed number of positions, however many latent steps there were.
RESAMPLER, SOFT_PROMPT = "outer_resampler", "outer_soft_prompt"
# The outer kind that hands over working memory in place of latents, between roles of one base.
CACHE = "cache"
WEIGHTLESS = (EXPECTED_EMBEDDING, CACHE)  # kinds without a file


def _shape_of(kind: str, kinds: dict[str, LinkShape]) -> LinkShape:
    if kind not in kinds:
        raise ConfigError("Unknown kind of link.", where="kind", found=kind, expected=", ".join(kinds))
    return kinds[kind]


class InnerLink(nn.Module):
    """Last hidden state of an agent -> the same agent's next input embedding.

    `ln_res_adapter`: post_ln(x + proj2(gelu(proj1(pre_ln(x))))); the other kinds leave parts out. Not of the release:
    `rescaled_adapter`, residual_proj(x) + proj2(gelu(proj1(pre_ln(x)))) with twice the width inside, brought to the
    length `norm`, which starts from a regression and cannot leave the length of a token's embedding.
    Computes in its own parameter dtype; the caller casts the result.

    Args:
        kind: one of `INNER_KINDS`, or a name of the paper's ablation (`ABLATION_KINDS`).
        hidden_size: width d of the agent.
    """

    norm: torch.Tensor
    options: Mapping[str, Any] = MappingProxyType({})  # of its entry in the configuration, beside kind and weights

    def __init__(self, kind: str, hidden_size: int) -> None:
        super().__init__()
        self.kind = ABLATION_KINDS.get(kind, (kind,))[0]
        self.in_features = self.out_features = hidden_size
        shape = _shape_of(self.kind, INNER_KINDS)
        self.residual = shape.residual
        middle = hidden_size * (2 if shape.rescaled else 1)
        self.proj1 = nn.Linear(hidden_size, middle)
        self.proj2 = nn.Linear(middle, hidden_size) if shape.layers == 2 else None
        self.pre_ln = nn.LayerNorm(hidden_size) if shape.norm or shape.rescaled else None
        self.post_ln = nn.LayerNorm(hidden_size) if shape.norm else None
        self.residual_proj = nn.Linear(hidden_size, hidden_size) if shape.rescaled else None
        self.register_buffer("norm", torch.ones(1) if shape.rescaled else None)

    def step(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(..., d) -> (..., d) as `forward` gives it; this link does not know which token it says."""
        return self(hidden_states), None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., d), in the link's own dtype."""
        hidden_states = hidden_states.to(self.proj1.weight.dtype)
        update = self.proj1(hidden_states if self.pre_ln is None else self.pre_ln(hidden_states))
        if self.proj2 is not None:
            update = self.proj2(functional.gelu(update))
        if self.residual_proj is not None:
            output = self.residual_proj(hidden_states) + update
            return output * (self.norm / output.norm(dim=-1, keepdim=True).clamp_min(1e-12))
        output = hidden_states + update if self.residual else update
        return output if self.post_ln is None else self.post_ln(output)


class SnappingLink(nn.Module):
    """An outer link that may snap, see `hand_over`."""

    snap: bool

    @property
    def options(self) -> dict[str, Any]:
        """What its entry of the configuration says beside kind and weights."""
        return {"snap": True} if self.snap else {}


class OuterLink(SnappingLink):
    """A latent thought in the source agent's embedding space -> the target agent's embedding space.

    `outer_ln_res_adapter`: ln_target(proj2(gelu(proj1(ln_source(x)))) + residual_proj(x)); the other kinds leave
    parts out. The inner width is 2 * out_features where the kind has LayerNorms, else out_features.
    Computes in its own parameter dtype; the caller casts the result.

    Args:
        kind: one of `OUTER_KINDS`, or a name of the paper's ablation (`ABLATION_KINDS`).
        in_features: width of the source agent.
        out_features: width of the target agent.
        snap: whether each latent becomes the embedding of its nearest token before the link, see `hand_over`.
    """

    def __init__(self, kind: str, in_features: int, out_features: int, snap: bool = False) -> None:
        super().__init__()
        self.snap = snap
        self.kind = ABLATION_KINDS.get(kind, (None, kind))[1]
        self.in_features, self.out_features = in_features, out_features
        shape = _shape_of(self.kind, OUTER_KINDS)
        middle = out_features * (2 if shape.norm else 1)
        self.proj1 = nn.Linear(in_features, middle)
        self.proj2 = nn.Linear(middle, out_features) if shape.layers == 2 else None
        self.residual_proj = nn.Linear(in_features, out_features) if shape.residual else None
        self.ln_source = nn.LayerNorm(in_features) if shape.norm else None
        self.ln_target = nn.LayerNorm(out_features) if shape.norm else None

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """(..., d_source) -> (..., d_target), in the link's own dtype."""
        latents = latents.to(self.proj1.weight.dtype)
        output = self.proj1(latents if self.ln_source is None else self.ln_source(latents))
        if self.proj2 is not None:
            output = self.proj2(functional.gelu(output))
        if self.residual_proj is not None:
            output = output + self.residual_proj(latents)
        return output if self.ln_target is None else self.ln_target(output)


class ResamplingLink(SnappingLink):
    """The thoughts of a rollout -> a fixed number of positions in the target agent's embedding space.

    Each learned query attends, in several heads, over the sender's hidden states; what it gathers are the latents,
    through `value`, and of the hidden states what `context` lets through, before a residual MLP. A head's score is
    q k(h) / sqrt(d) plus a learned bias for the distance of a step from the last one, so that at the start query j of
    n takes the j-th of the last n latents. Not in the paper, whose links hand over every latent.

    Args:
        in_features: width d of the source agent.
        out_features: width of the target agent.
        positions: how many positions are handed over (>= 1).
        snap: whether each latent becomes the embedding of its nearest token before the link, see `hand_over`.
    """

    kind = RESAMPLER
    DISTANCES = 64  # steps further from the end than this share one bias
    START = 5.0  # bias of the step that a query starts on

    def __init__(self, in_features: int, out_features: int, positions: int, snap: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.positions, self.snap = in_features, out_features, positions, snap
        self.heads = next(heads for heads in (8, 6, 4, 3, 2, 1) if in_features % heads == out_features % heads == 0)
        self.queries = nn.Parameter(torch.zeros(positions, in_features))
        self.position_bias = nn.Parameter(torch.zeros(self.heads, positions, self.DISTANCES))
        self.ln_source = nn.LayerNorm(in_features)
        self.key = nn.Linear(in_features, in_features, bias=False)
        self.value = nn.Linear(in_features, out_features)
        self.context = nn.Linear(in_features, out_features, bias=False)
        self.ln_target = nn.LayerNorm(out_features)
        self.proj1 = nn.Linear(out_features, 2 * out_features)
        self.proj2 = nn.Linear(2 * out_features, out_features)

    def start(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Starts where the last latents pass through a linear map (out_features, in_features) unchanged."""
        with torch.no_grad():
            nn.init.normal_(self.queries, std=0.02)
            self.position_bias.zero_()
            for j in range(self.positions):
                self.position_bias[:, j, min(self.positions - 1 - j, self.DISTANCES - 1)] = self.START
            self.value.weight.copy_(weight)
            self.value.bias.copy_(bias)
            for layer in (self.context.weight, self.proj2.weight, self.proj2.bias):
                layer.zero_()

    def forward(
        self,
        latents: torch.Tensor,
        hidden_states: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Resamples a batch of rollouts.

        Args:
            latents: (batch, steps, in_features).
            hidden_states: what they were made of, (batch, steps, in_features); default the latents themselves.
            lengths: how many leading steps of each row count, (batch,); default all.

        Returns:
            (batch, positions, out_features), in the link's own dtype; rows of length 0 hold nothing of use.
        """
        batch, steps, _ = latents.shape
        dtype = self.key.weight.dtype
        states = self.ln_source((latents if hidden_states is None else hidden_states).to(dtype))
        if lengths is None:
            lengths = torch.full((batch,), steps, device=latents.device)
        keys = self.key(states).view(batch, steps, self.heads, -1)
        queries = self.queries.view(self.positions, self.heads, -1)
        scores = torch.einsum("phc,bshc->bhps", queries, keys) * keys.shape[-1] ** -0.5
        distance = lengths[:, None] - 1 - torch.arange(steps, device=lengths.device)  # (batch, steps), < 0 behind it
        bias = self.position_bias[:, :, distance.clamp(0, self.DISTANCES - 1)]  # (heads, positions, batch, steps)
        scores = scores + bias.permute(2, 0, 1, 3)
        counts = (distance >= 0) | (lengths[:, None] == 0)
        weights = scores.masked_fill(~counts[:, None, None], -torch.inf).softmax(-1)
        values = (self.value(latents.to(dtype)) + self.context(states)).view(batch, steps, self.heads, -1)
        gathered = torch.einsum("bhps,bshc->bphc", weights, values).flatten(2)
        return gathered + self.proj2(functional.gelu(self.proj1(self.ln_target(gathered))))


class SoftPromptLink(nn.Module):
    """The same learned vectors whatever the sender thought: the control that a trained link must beat.

    What it gains is gained by tuning the receiver's prompt, and not by what travels.

    Args:
        in_features, out_features: widths of the source and the target agent.
        positions: how many vectors are handed over (>= 1).
    """

    kind, snap, options = SOFT_PROMPT, False, MappingProxyType[str, Any]({})

    def __init__(self, in_features: int, out_features: int, positions: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.positions = in_features, out_features, positions
        self.vectors = nn.Parameter(torch.zeros(positions, out_features))

    def forward(
        self,
        latents: torch.Tensor,
        hidden_states: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `ResamplingLink.forward`; only the batch's size counts."""
        return self.vectors.expand(len(latents), -1, -1)


class CacheLink(nn.Module):
    """Hands over the sender's working memory, see memories_recursivemas.py; nothing stands in the receiver's slot.

    Not in the paper: LatentMAS's way, as a baseline. It has no parameters.

    Args:
        in_features, out_features: the width of both agents.
    """

    kind, snap, options, positions = CACHE, False, MappingProxyType[str, Any]({}), 0

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    def forward(
        self,
        latents: torch.Tensor,
        hidden_states: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The latents as they are."""
        return latents


AnyInnerLink = InnerLink | ExpectedEmbeddingLink
AnyOuterLink = OuterLink | ResamplingLink | SoftPromptLink | CacheLink
