"""RecursiveLinks: the small trained modules that carry latent thoughts inside an agent and between agents.

Parameter names and arithmetic are those of the public release, so that its files load as they are. The paper
(arXiv 2604.25917) writes R_in(h) = h + W2 s(W1 h) and R_out(h) = W3 h + W2 s(W1 h); differs from the paper: the
release adds LayerNorms before and after, and biases everywhere. GELU is the exact (erf) form, LayerNorm eps is 1e-5.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast, overload

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from .errors_recursivemas import CheckpointError, ConfigError


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


# Inner kinds that mix the agent's own token embeddings, over its whole vocabulary (no file) or a part of it.
EXPECTED_EMBEDDING = "expected_embedding"
CODEBOOK = "codebook"
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


def fitting_kinds(state_dict: Mapping[str, torch.Tensor], outer: bool) -> list[str]:
    """The kinds of link that have exactly the modules of a state dict."""
    if outer and {"queries", "vectors"} & state_dict.keys():
        return [RESAMPLER if "queries" in state_dict else SOFT_PROMPT]
    if "token_ids" in state_dict and not outer:
        return [CODEBOOK]
    modules = sorted({key.rpartition(".")[0] for key in state_dict})
    fitting = []
    for kind, shape in (OUTER_KINDS if outer else INNER_KINDS).items():
        names = ["proj1"] + ["proj2"] * (shape.layers == 2) + ["residual_proj"] * (outer and shape.residual)
        names += (["ln_source", "ln_target"] if outer else ["pre_ln", "post_ln"]) if shape.norm else []
        names += ["", "pre_ln", "residual_proj"] if shape.rescaled else []  # `norm` belongs to no module
        if sorted(names) == modules:
            fitting.append(kind)
    return fitting


def infer_kind(state_dict: Mapping[str, torch.Tensor], outer: bool, where: str) -> str:
    """The kind of link that a state dict belongs to.

    An inner `proj1` alone, or `proj1` and `proj2` alone, fit two kinds each; such a file needs the kind stated.

    Raises:
        CheckpointError: no kind, or more than one, has exactly these modules.
    """
    fitting = fitting_kinds(state_dict, outer)
    if len(fitting) != 1:
        what = "The weights fit no kind of link." if not fitting else "The weights fit more than one kind of link."
        raise CheckpointError(
            what,
            where=where,
            found=", ".join(sorted(state_dict)),
            expected="the parameters of " + ", ".join(fitting or (OUTER_KINDS if outer else INNER_KINDS)),
            hint="state the kind in the configuration (`kind`) or the manifest (`adapter_type`)",
        )
    return fitting[0]


AnyInnerLink = InnerLink | ExpectedEmbeddingLink
AnyOuterLink = OuterLink | ResamplingLink | SoftPromptLink | CacheLink


@overload
def build_link(
    state_dict: Mapping[str, torch.Tensor],
    *,
    where: str,
    in_features: int,
    out_features: None = None,
    kind: str | None = None,
    dtype: torch.dtype | None = None,
    options: Mapping[str, Any] = {},
) -> AnyInnerLink: ...


@overload
def build_link(
    state_dict: Mapping[str, torch.Tensor],
    *,
    where: str,
    in_features: int,
    out_features: int,
    kind: str | None = None,
    dtype: torch.dtype | None = None,
    options: Mapping[str, Any] = {},
) -> AnyOuterLink: ...


def build_link(
    state_dict: Mapping[str, torch.Tensor],
    *,
    where: str,
    in_features: int,
    out_features: int | None = None,
    kind: str | None = None,
    dtype: torch.dtype | None = None,
    options: Mapping[str, Any] = {},
) -> AnyInnerLink | AnyOuterLink:
    """Builds a link around its weights; everything that does not fit is an error that names the key.

    Args:
        state_dict: plain parameter name -> tensor.
        where: file the weights come from, for error messages.
        in_features: width of the source agent.
        out_features: width of the target agent; `None` builds an inner link.
        kind: the kind stated by a config or manifest; `None` infers it from the keys.
        dtype: parameter dtype; `None` keeps the stored one.
        options: what else the configuration says of the link, see `options` of the classes.

    Raises:
        CheckpointError: keys, shapes, dtypes or values do not fit.
    """
    kind = kind or infer_kind(state_dict, out_features is not None, where)
    if kind == EXPECTED_EMBEDDING and out_features is None and not state_dict:
        return ExpectedEmbeddingLink(in_features, **options)
    if kind == CACHE and out_features is not None and not state_dict:
        return CacheLink(in_features, out_features)
    if kind == CODEBOOK and out_features is None:
        return ExpectedEmbeddingLink(in_features, **options, token_ids=_codebook(state_dict, where))
    link: InnerLink | AnyOuterLink
    with torch.device("meta"):
        if out_features is None:
            link = InnerLink(kind, in_features)
        elif kind == RESAMPLER:
            positions = len(state_dict["queries"]) if "queries" in state_dict else 1
            link = ResamplingLink(in_features, out_features, positions, **options)
        elif kind == SOFT_PROMPT:
            link = SoftPromptLink(in_features, out_features, len(state_dict.get("vectors", [0])))
        else:
            link = OuterLink(kind, in_features, out_features, **options)
    expected = link.state_dict()
    for problem, keys in (
        ("is missing", expected.keys() - state_dict),
        ("is unexpected", state_dict.keys() - expected),
    ):
        if keys:
            raise CheckpointError(
                f"A weight of a link {problem}: {', '.join(sorted(keys))}.",
                where=where,
                found=", ".join(sorted(state_dict)),
                expected=f"{', '.join(sorted(expected))} ({link.kind})",
                hint="check that the stated kind and the weights belong together",
            )
    for key, tensor in state_dict.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"The shape of a link's weight does not fit its agents: {key}.",
                where=where,
                found=tuple(tensor.shape),
                expected=f"{tuple(expected[key].shape)} ({link.kind} {in_features} -> {link.out_features})",
                hint="check that the link and its agents belong to the same system and the same roles",
            )
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            found = "no values" if tensor.is_meta else "quantized" if tensor.is_quantized else tensor.layout
            raise CheckpointError(
                f"A link's weight is not stored plainly: {key}.", where=where, found=found, expected="a dense tensor"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"A link's weight is not a float tensor: {key}.", where=where, found=tensor.dtype, expected="float32"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"A link's weight holds NaN or infinity: {key}.",
                where=where,
                found=f"{int((~torch.isfinite(tensor)).sum())} values that are not finite",
                expected="finite numbers",
                hint="fetch the file again, or train the link again",
            )
    if dtype is None and len(dtypes := {tensor.dtype for tensor in state_dict.values()}) > 1:
        raise CheckpointError(
            "A link's weights have different dtypes.",
            where=where,
            found=", ".join(sorted(map(str, dtypes))),
            expected="one dtype",
            hint="load with `outer_dtype=torch.float32`, or save the link again",
        )
    link.load_state_dict(state_dict, assign=True)
    return link if dtype is None else link.to(dtype)


def _codebook(state_dict: Mapping[str, torch.Tensor], where: str) -> torch.Tensor:
    """The token ids of a codebook's file."""
    token_ids = state_dict.get("token_ids")
    whole = token_ids is not None and not token_ids.is_floating_point() and token_ids.dtype != torch.bool
    if token_ids is None or not whole or token_ids.ndim != 1 or not len(token_ids) or len(state_dict) > 1:
        raise CheckpointError(
            "A file holds no codebook.",
            where=where,
            found=", ".join(f"{name} {tuple(value.shape)}" for name, value in state_dict.items())[:200],
            expected="token_ids, whole numbers of shape (n,)",
            hint="make the codebook again with `recursivemas init-links`",
        )
    return token_ids
