"""From the weights of a link to the link: its kind, and everything that may not fit."""

from collections.abc import Mapping
from typing import Any, overload

import torch

from .errors_recursivemas import CheckpointError
from .links_recursivemas import (
    CACHE,
    INNER_KINDS,
    OUTER_KINDS,
    RESAMPLER,
    SOFT_PROMPT,
    AnyInnerLink,
    AnyOuterLink,
    CacheLink,
    InnerLink,
    OuterLink,
    ResamplingLink,
    SoftPromptLink,
)
from .mixtures_recursivemas import (
    CODEBOOK,
    EXPECTED_EMBEDDING,
    ExpectedEmbeddingLink,
)


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
