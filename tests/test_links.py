import pytest
import torch
from recursivemas.errors_recursivemas import CheckpointError
from recursivemas.link_building_recursivemas import build_link
from recursivemas.links_recursivemas import ABLATION_KINDS, INNER_KINDS, OUTER_KINDS, InnerLink, OuterLink
from torch.nn import functional


def norm(x, state, name):
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


INNER_FORMULAS = {
    "linear_adapter": lambda x, s: linear(x, s, "proj1"),
    "linear_res_adapter": lambda x, s: x + linear(x, s, "proj1"),
    "adapter": lambda x, s: linear(gelu(linear(x, s, "proj1")), s, "proj2"),
    "res_adapter": lambda x, s: x + linear(gelu(linear(x, s, "proj1")), s, "proj2"),
    "ln_res_adapter": lambda x, s: norm(
        x + linear(gelu(linear(norm(x, s, "pre_ln"), s, "proj1")), s, "proj2"), s, "post_ln"
    ),
    "rescaled_adapter": lambda x, s: (
        s["norm"]
        * functional.normalize(
            linear(gelu(linear(norm(x, s, "pre_ln"), s, "proj1")), s, "proj2") + linear(x, s, "residual_proj"), dim=-1
        )
    ),
}
OUTER_FORMULAS = {
    "outer_linear_adapter": lambda x, s: linear(x, s, "proj1"),
    "outer_linear_res_adapter": lambda x, s: linear(x, s, "proj1") + linear(x, s, "residual_proj"),
    "outer_adapter": lambda x, s: linear(gelu(linear(x, s, "proj1")), s, "proj2"),
    "outer_res_adapter": lambda x, s: linear(gelu(linear(x, s, "proj1")), s, "proj2") + linear(x, s, "residual_proj"),
    "outer_ln_adapter": lambda x, s: norm(
        linear(gelu(linear(norm(x, s, "ln_source"), s, "proj1")), s, "proj2"), s, "ln_target"
    ),
    "outer_ln_res_adapter": lambda x, s: norm(
        linear(gelu(linear(norm(x, s, "ln_source"), s, "proj1")), s, "proj2") + linear(x, s, "residual_proj"),
        s,
        "ln_target",
    ),
}


def random_link(kind, outer):
    torch.manual_seed(0)
    link = OuterLink(kind, 6, 10) if outer else InnerLink(kind, 6)
    for parameter in link.parameters():
        torch.nn.init.normal_(parameter)
    return link


@pytest.mark.parametrize("kind", INNER_KINDS)
def test_inner_links_compute_the_released_formula(kind):
    link, x = random_link(kind, outer=False), torch.randn(2, 3, 6)
    torch.testing.assert_close(link(x), INNER_FORMULAS[kind](x, link.state_dict()))


@pytest.mark.parametrize("kind", OUTER_KINDS)
def test_outer_links_compute_the_released_formula(kind):
    link, x = random_link(kind, outer=True), torch.randn(2, 3, 6)
    torch.testing.assert_close(link(x), OUTER_FORMULAS[kind](x, link.state_dict()))


@pytest.mark.parametrize("kind", OUTER_KINDS)
def test_the_inner_width_of_an_outer_link_doubles_with_layer_norms(kind):
    expected = 20 if OUTER_KINDS[kind].norm else 10
    assert OuterLink(kind, 6, 10).proj1.weight.shape == (expected, 6)


@pytest.mark.parametrize("name", ABLATION_KINDS)
def test_the_papers_names_build_the_same_links(name):
    inner, outer = ABLATION_KINDS[name]
    assert InnerLink(name, 4).kind == inner
    assert OuterLink(name, 4, 5).kind == outer


@pytest.mark.parametrize("kind", [*OUTER_KINDS, "ln_res_adapter"])
def test_a_kind_is_inferred_from_its_keys(kind):
    outer = kind.startswith("outer")
    link = random_link(kind, outer)
    built = build_link(link.state_dict(), where="f", in_features=6, out_features=10 if outer else None)
    x = torch.randn(1, 2, 6)
    assert built.kind == kind
    assert torch.equal(built(x), link(x))


@pytest.mark.parametrize("kind", ["adapter", "res_adapter", "linear_adapter", "linear_res_adapter"])
def test_a_kind_that_the_keys_do_not_decide_must_be_stated(kind):
    state = random_link(kind, outer=False).state_dict()
    with pytest.raises(CheckpointError, match="more than one kind"):
        build_link(state, where="f", in_features=6)
    assert build_link(state, where="f", in_features=6, kind=kind).kind == kind


def broken(change):
    state = random_link("ln_res_adapter", outer=False).state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("proj2.bias"), r"missing: proj2\.bias"),
        (lambda s: s.update(extra=torch.ones(1)), "unexpected: extra"),
        (lambda s: s.update({"proj1.weight": torch.ones(6, 5)}), r"proj1\.weight"),
        (lambda s: s["proj2.weight"].fill_(float("nan")), "NaN or infinity: proj2.weight"),
        (lambda s: s.update({"proj1.bias": torch.ones(6, dtype=torch.int64)}), "not a float tensor: proj1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    with pytest.raises(CheckpointError, match=message):
        build_link(broken(change), where="file", in_features=6, kind="ln_res_adapter")


def test_links_compute_in_their_own_dtype():
    link = InnerLink("ln_res_adapter", 6)
    assert link(torch.randn(1, 6, dtype=torch.bfloat16)).dtype == torch.float32
    assert link.bfloat16()(torch.randn(1, 6)).dtype == torch.bfloat16
