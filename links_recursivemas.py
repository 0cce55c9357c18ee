"""RecursiveLinks: the small trained modules that carry latent thoughts inside an agent and between agents.

Parameter names and arithmetic are those of the public release, so that its files load as they are. The paper
(arXiv 2604.25917) writes R_in(h) = h + W2 s(W1 h) and R_out(h) = W3 h + W2 s(W1 h); differs from the paper: the
release adds LayerNorms before and after, and biases everywhere. GELU is the exact (erf) form, LayerNorm eps is 1e-5.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast, overload

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


INNER_KINDS = {
    "linear_adapter": LinkShape(1, False, False),
    "linear_res_adapter": LinkShape(1, True, False),
    "adapter": LinkShape(2, False, False),
    "res_adapter": LinkShape(2, True, False),
    "ln_res_adapter": LinkShape(2, True, True),
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


# The inner kind that has no parameters, and so no file.
EXPECTED_EMBEDDING = "expected_embedding"


def _shape_of(kind: str, kinds: dict[str, LinkShape]) -> LinkShape:
    if kind not in kinds:
        raise ConfigError("Unknown kind of link.", where="kind", found=kind, expected=", ".join(kinds))
    return kinds[kind]


class InnerLink(nn.Module):
    """Last hidden state of an agent -> the same agent's next input embedding.

    `ln_res_adapter`: post_ln(x + proj2(gelu(proj1(pre_ln(x))))); the other kinds leave parts out.
    Computes in its own parameter dtype; the caller casts the result.

    Args:
        kind: one of `INNER_KINDS`, or a name of the paper's ablation (`ABLATION_KINDS`).
        hidden_size: width d of the agent.
    """

    def __init__(self, kind: str, hidden_size: int) -> None:
        super().__init__()
        self.kind = ABLATION_KINDS.get(kind, (kind,))[0]
        self.in_features = self.out_features = hidden_size
        shape = _shape_of(self.kind, INNER_KINDS)
        self.residual = shape.residual
        self.proj1 = nn.Linear(hidden_size, hidden_size)
        self.proj2 = nn.Linear(hidden_size, hidden_size) if shape.layers == 2 else None
        self.pre_ln = nn.LayerNorm(hidden_size) if shape.norm else None
        self.post_ln = nn.LayerNorm(hidden_size) if shape.norm else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., d), in the link's own dtype."""
        hidden_states = hidden_states.to(self.proj1.weight.dtype)
        update = self.proj1(hidden_states if self.pre_ln is None else self.pre_ln(hidden_states))
        if self.proj2 is not None:
            update = self.proj2(functional.gelu(update))
        output = hidden_states + update if self.residual else update
        return output if self.post_ln is None else self.post_ln(output)


def vocabulary_logits(model: PreTrainedModel, hidden_states: torch.Tensor) -> torch.Tensor:
    """Hidden states after the final norm (…, d) -> next-token logits (…, vocabulary), as the model computes them."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden_states)
    logits = logits * (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    softcap = getattr(config, "final_logit_softcapping", None)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


class ExpectedEmbeddingLink(nn.Module):
    """Last hidden state of an agent -> the expected embedding under the agent's own next-token distribution.

    softmax(head(h)) E, at temperature 1: it needs neither training nor data nor parameters of its own, and costs the
    vocabulary projection. Differs from the paper: its inner links are all trained.

    Args:
        hidden_size: width d of the agent.
    """

    kind = EXPECTED_EMBEDDING

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.in_features = self.out_features = hidden_size
        self._model: tuple[PreTrainedModel, ...] = ()

    def bind(self, model: PreTrainedModel) -> None:
        """Takes the head and the embeddings from the agent's model."""
        self._model = (model,)  # in a tuple, so that the model is no submodule and the state dict stays empty

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(…, d) -> (…, d), in the dtype of the agent's embeddings."""
        (model,) = self._model
        embeddings = cast(nn.Embedding, model.get_input_embeddings())
        logits = vocabulary_logits(model, hidden_states.to(embeddings.weight.dtype))
        probabilities = logits.float().softmax(-1).to(embeddings.weight.dtype)
        # Gemma scales inside its embedding module.
        return probabilities @ embeddings.weight * getattr(embeddings, "embed_scale", 1.0)


class OuterLink(nn.Module):
    """A latent thought in the source agent's embedding space -> the target agent's embedding space.

    `outer_ln_res_adapter`: ln_target(proj2(gelu(proj1(ln_source(x)))) + residual_proj(x)); the other kinds leave
    parts out. The inner width is 2 * out_features where the kind has LayerNorms, else out_features.
    Computes in its own parameter dtype; the caller casts the result.

    Args:
        kind: one of `OUTER_KINDS`, or a name of the paper's ablation (`ABLATION_KINDS`).
        in_features: width of the source agent.
        out_features: width of the target agent.
    """

    def __init__(self, kind: str, in_features: int, out_features: int) -> None:
        super().__init__()
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


def fitting_kinds(state_dict: Mapping[str, torch.Tensor], outer: bool) -> list[str]:
    """The kinds of link that have exactly the modules of a state dict."""
    modules = sorted({key.rpartition(".")[0] for key in state_dict})
    fitting = []
    for kind, shape in (OUTER_KINDS if outer else INNER_KINDS).items():
        names = ["proj1"] + ["proj2"] * (shape.layers == 2) + ["residual_proj"] * (outer and shape.residual)
        names += (["ln_source", "ln_target"] if outer else ["pre_ln", "post_ln"]) if shape.norm else []
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


@overload
def build_link(
    state_dict: Mapping[str, torch.Tensor],
    *,
    where: str,
    in_features: int,
    out_features: None = None,
    kind: str | None = None,
    dtype: torch.dtype | None = None,
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
) -> OuterLink: ...


def build_link(
    state_dict: Mapping[str, torch.Tensor],
    *,
    where: str,
    in_features: int,
    out_features: int | None = None,
    kind: str | None = None,
    dtype: torch.dtype | None = None,
) -> AnyInnerLink | OuterLink:
    """Builds a link around its weights; everything that does not fit is an error that names the key.

    Args:
        state_dict: plain parameter name -> tensor.
        where: file the weights come from, for error messages.
        in_features: width of the source agent.
        out_features: width of the target agent; `None` builds an inner link.
        kind: the kind stated by a config or manifest; `None` infers it from the keys.
        dtype: parameter dtype; `None` keeps the stored one.

    Raises:
        CheckpointError: keys, shapes, dtypes or values do not fit.
    """
    kind = kind or infer_kind(state_dict, out_features is not None, where)
    if kind == EXPECTED_EMBEDDING and out_features is None and not state_dict:
        return ExpectedEmbeddingLink(in_features)
    link: InnerLink | OuterLink
    with torch.device("meta"):
        link = InnerLink(kind, in_features) if out_features is None else OuterLink(kind, in_features, out_features)
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
    link.load_state_dict(state_dict, assign=True)
    return link if dtype is None else link.to(dtype)
