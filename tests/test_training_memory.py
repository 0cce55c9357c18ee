"""What a training step holds: less where it is asked for, and never another loss or gradient."""

import pytest
import torch
from architectures import any_base
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.links_recursivemas import InnerLink
from recursivemas.small_systems.tokenizers import build_tokenizer
from recursivemas.training import losses
from recursivemas.training.arguments import LinkTrainingArguments
from recursivemas.training.caches import differentiable_cache
from recursivemas.training.layers import keep_only_inputs
from test_training import examples_of, gradients_of, outer_objective
from tiny import ARCHITECTURES, CORPUS, TRANSFORMERS, tiny_chain


def both(mas, examples, **settings):
    """Loss and gradients without and with only the inputs of layers kept."""
    found = []
    for layers in (False, True):
        objective = outer_objective(mas, inner=list(mas.agents), layer_checkpointing=layers, **settings).train()
        found.append((objective(examples)["loss"].detach(), gradients_of(objective, examples)))
    return found


def assert_same(found):
    (loss, gradients), (other_loss, others) = found
    torch.testing.assert_close(other_loss, loss)
    assert gradients.keys() == others.keys() and any(bool(g.any()) for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("latents", ["teacher", "rollout"])
@pytest.mark.parametrize("stages", [False, True])
def test_keeping_only_the_inputs_of_layers_changes_no_loss_and_no_gradient(latents, stages):
    mas = tiny_chain()
    settings = {"latents": latents, "activation_checkpointing": stages, "loss": "distill", "supervise": "receivers"}
    assert_same(both(mas, examples_of(mas, 3), **settings))


@pytest.mark.parametrize("architecture", [*sorted(set(ARCHITECTURES) - {"qwen2", "mistral"}), "falcon_h1"])
def test_layers_of_every_kind_are_computed_again_on_the_cache_that_they_had(architecture):
    """Sliding windows, recurrent states and both in one layer, in rollouts that gradients flow through."""
    mas = tiny_chain({"planner": architecture, "solver": "llama"})
    assert_same(both(mas, examples_of(mas, 2), latents="rollout", supervise="receivers"))


def test_a_rollout_under_gradients_keeps_every_key_once():
    """Without, each latent step keeps all keys anew: what a step holds grows with the prompt."""
    mas = tiny_chain({"planner": "llama", "solver": "qwen2"})
    examples, held = examples_of(mas, 2), {}

    def counting(tensor):
        kept.append(tensor.untyped_storage())
        return tensor

    for layers in (False, True):
        for steps in (4, 12):
            settings = {"latents": "rollout", "latent_steps": steps, "supervise": "receivers"}
            objective = outer_objective(mas, list(mas.agents), layer_checkpointing=layers, **settings).train()
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(counting, lambda tensor: tensor):
                objective(examples)
            held[layers, steps] = sum({s.data_ptr(): s.nbytes() for s in kept}.values())
    more = [held[layers, 12] - held[layers, 4] for layers in (False, True)]
    assert more[1] < more[0] / 4, held


@pytest.mark.parametrize("loss", ["answers", "distill"])
def test_logits_in_parts_change_no_loss_and_no_gradient(loss, monkeypatch):
    mas = tiny_chain()
    examples, vocabulary = examples_of(mas, 3), mas.agents["solver"].get_input_embeddings().num_embeddings
    settings = {"loss": loss, "supervise": "receivers", "latents": "teacher"}
    kind, sizes, found = type(mas.agents["solver"]), [], []
    logits = kind.logits
    monkeypatch.setattr(kind, "logits", lambda agent, states: sizes.append(len(states)) or logits(agent, states))
    for at_once in (2**24, 3 * vocabulary):
        sizes.clear()
        monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
        objective = outer_objective(mas, **settings).train()
        found.append((objective(examples)["loss"].detach(), gradients_of(objective, examples)))
    assert_same(found)
    assert max(sizes) <= 5  # of the smallest vocabulary some more positions fit
    assert len(sizes) > 20


def test_a_model_without_marked_layers_is_refused(chain, monkeypatch):
    monkeypatch.setattr("recursivemas.training.layers.keep_only_inputs_of", lambda model: False)
    with pytest.raises(ValueError, match="layer_checkpointing"):
        keep_only_inputs(chain.agents["solver"])


def test_several_gpus_that_are_visible_are_not_shared_by_threads(monkeypatch):
    """Trainer would wrap the links in DataParallel; several processes are `accelerate launch`'s."""
    monkeypatch.setattr(LinkTrainingArguments, "_setup_devices", property(_two_gpus))
    arguments = LinkTrainingArguments(output="x", use_cpu=True)
    assert arguments.n_gpu == 1 and arguments.train_batch_size == arguments.per_device_train_batch_size


def _two_gpus(arguments):
    if "_n_gpu" not in vars(arguments) or arguments._n_gpu == -1:
        arguments._n_gpu, arguments.distributed_state = 2, None
    return torch.device("cpu")


# Before transformers 5.24 its state cannot be continued: it is refused as an agent (tests/test_architectures.py).
MAMBA = pytest.param("mamba", marks=pytest.mark.skipif(TRANSFORMERS < (5, 24), reason="refused as an agent"))
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mamba2", "falcon_mamba", "jamba", "nemotron_h")]


@pytest.mark.parametrize("architecture", [MAMBA, "bamba", *SLOW])
def test_recurrent_agents_train_in_rollouts_whatever_stands_beside_a_row(architecture):
    """Their models write into the states that gradients need; here each is replaced. Against no cache at all."""
    tokenizer = build_tokenizer("qwen2", CORPUS)
    model = any_base(architecture, tokenizer)
    agent = RecursiveMASAgent(model, InnerLink("ln_res_adapter", 32), tokenizer).requires_grad_(False)
    agent.inner_link.requires_grad_(True)
    torch.manual_seed(0)
    embeds, mask = torch.randn(2, 12, 32) * 0.6, torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = embeds[1, :5] = 0
    found = agent.rollout(embeds, mask, 4, differentiable_cache(agent)).latents
    for row, start in ((0, 0), (1, 5)):
        alone = agent.rollout(embeds[row : row + 1, start:], mask[row : row + 1, start:], 4).latents[0]
        torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=1e-4)
    thoughts, seen = [], embeds
    for _ in range(4):
        thoughts.append(agent.inner_link(agent.encode(seen, mask)[:, -1]))
        seen, mask = torch.cat([seen, thoughts[-1][:, None]], dim=1), torch.cat([mask, mask[:, -1:]], dim=1)
    parameters, direction = list(agent.inner_link.parameters()), torch.randn_like(found)
    with_cache = torch.autograd.grad((found * direction).sum(), parameters)
    without = torch.autograd.grad((torch.stack(thoughts, dim=1) * direction).sum(), parameters)
    for one, other in zip(with_cache, without, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3 * float(other.abs().max()), rtol=0)
