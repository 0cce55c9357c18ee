"""Latent steps and hand-overs that hold on real models: sharpened mixtures, codebooks, control tokens, resampling."""

import json

import pytest
import torch
from recursivemas.errors_recursivemas import CheckpointError, ConfigError
from recursivemas.handover_recursivemas import hand_over
from recursivemas.links_recursivemas import OuterLink, ResamplingLink
from recursivemas.mixtures_recursivemas import ExpectedEmbeddingLink
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.thinking_recursivemas import Rollout
from recursivemas.training.start import fit_outer_link
from tiny import tiny_agent, tiny_chain

QUESTIONS = ["What is 3+4?", "Name a fruit."]

ARCHITECTURES = ["qwen3", "gemma3_text"]


def bound(agent, **options):
    link = ExpectedEmbeddingLink(agent.hidden_size, **options)
    agent.set_inner_link(link)
    return link


def everything(agent):
    return agent.embed(torch.arange(agent.get_input_embeddings().num_embeddings))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_an_expected_embedding_is_sharpened_rescaled_and_free_of_special_tokens(architecture):
    agent = tiny_agent(architecture, "a")
    hidden_states = torch.randn(2, 3, agent.hidden_size)
    logits = agent.logits(hidden_states)
    plain = bound(agent, temperature=0.3)(hidden_states)
    torch.testing.assert_close(plain, (logits / 0.3).softmax(-1) @ everything(agent))
    rescaled = bound(agent, temperature=0.3, norm=2.5)(hidden_states)
    torch.testing.assert_close(rescaled.norm(dim=-1), torch.full((2, 3), 2.5))
    torch.testing.assert_close(torch.cosine_similarity(rescaled, plain, dim=-1), torch.ones(2, 3))
    logits[..., agent.control_token_ids] = -torch.inf
    without = bound(agent, special_tokens=False)(hidden_states)
    torch.testing.assert_close(without, logits.softmax(-1) @ everything(agent))


@torch.no_grad()
def test_a_codebook_of_all_tokens_is_the_whole_vocabulary():
    agent = tiny_agent("qwen3", "a")
    hidden_states = torch.randn(4, agent.hidden_size)
    options = {"temperature": 0.5, "norm": 1.5, "special_tokens": False}
    whole = bound(agent, **options).step(hidden_states)
    ids = torch.arange(agent.get_input_embeddings().num_embeddings)
    some = bound(agent, **options, token_ids=ids).step(hidden_states)
    torch.testing.assert_close(some[0], whole[0])
    assert torch.equal(some[1], whole[1])


@torch.no_grad()
def test_a_codebook_mixes_its_own_tokens_and_still_sees_the_end():
    agent = tiny_agent("qwen3", "a")
    ids = torch.tensor([20, 30, 40])
    link = bound(agent, token_ids=ids)
    head = agent.model.get_output_embeddings().weight
    end = agent.eos_token_ids[0]
    hidden_states = torch.stack([torch.randn(agent.hidden_size), 100 * head[end]])
    mixed, said = link.step(hidden_states)
    torch.testing.assert_close(mixed, agent.logits(hidden_states)[:, ids].softmax(-1) @ agent.embed(ids))
    assert said[1] == end and int(said[0]) in {20, 30, 40, *agent.control_token_ids.tolist()}


@pytest.mark.parametrize("broken", [{"temperature": 0}, {"temperature": True}, {"norm": -1.0}, {"special_tokens": 1}])
def test_an_option_that_cannot_be_used_is_an_error(broken):
    with pytest.raises(ConfigError, match=next(iter(broken))):
        ExpectedEmbeddingLink(4, **broken)


def test_a_codebook_of_foreign_tokens_is_an_error():
    agent = tiny_agent("qwen3", "a")
    with pytest.raises(ConfigError, match="codebook names tokens"):
        bound(agent, token_ids=torch.tensor([1, 10**6]))


def says(agent, monkeypatch, token_id):
    """Lets an agent's second latent step say a token."""
    step = agent.inner_link.step
    calls = []

    def spoken(hidden_states):
        calls.append(1)
        latents, _ = step(hidden_states)
        return latents, torch.full((len(latents),), token_id if len(calls) % 3 == 2 else 20)

    monkeypatch.setattr(agent.inner_link, "step", spoken)


@pytest.mark.parametrize("halting", [False, True])
@torch.no_grad()
def test_what_travels_ends_before_the_first_special_token(monkeypatch, halting):
    agent = tiny_agent("qwen3", "a")
    embeds, mask = torch.randn(2, 5, agent.hidden_size), torch.ones(2, 5, dtype=torch.long)
    special = next(i for i in agent.control_token_ids.tolist() if i not in agent.eos_token_ids)
    for token_id, released, ours in ((agent.eos_token_ids[0], 1 if halting else 3, 1), (special, 3, 1), (21, 3, 3)):
        with monkeypatch.context() as patch:
            says(agent, patch, token_id)
            assert agent.rollout(embeds, mask, 3, halting=halting).lengths.tolist() == [released] * 2
            says(agent, patch, token_id)
            kept = agent.rollout(embeds, mask, 3, halting=halting, control_tokens=False)
            assert kept.lengths.tolist() == [ours] * 2


@torch.no_grad()
def test_a_receiver_finds_no_control_token_in_what_it_gets():
    agent = tiny_agent("qwen3", "a")
    ids = torch.tensor([20, agent.eos_token_ids[0], 30, int(agent.control_token_ids[0])])
    (kept,) = agent.without_control_tokens([agent.embed(ids) + 1e-4])
    assert agent.nearest_token_ids(kept).tolist() == [20, 30]


def last_outer_link_says_the_end(mas):
    """The link to the decoding agent makes the receiver's end-of-sequence embedding of everything."""
    link = mas.topology.incoming(mas.config.decoding_role, 1)[0]
    agent, outer = mas.agents[link.target], mas.outer_links[link.name]
    with torch.no_grad():
        for parameter in outer.parameters():
            parameter.zero_()
        bias = (outer.proj2 or outer.proj1).bias if outer.ln_target is None else outer.ln_target.bias
        bias.copy_(agent.embed(torch.tensor(agent.eos_token_ids[0])))


def test_control_tokens_of_a_link_do_not_reach_the_prompt_unless_the_system_lets_them():
    mas = tiny_chain()
    last_outer_link_says_the_end(mas)
    (released,) = mas.solve(QUESTIONS[:1], num_rounds=1, latent_steps=3)
    (ours,) = mas.solve(QUESTIONS[:1], num_rounds=1, latent_steps=3, control_tokens=False)
    assert released.usage["slot_positions"] == ours.usage["slot_positions"] + 3


@torch.no_grad()
def test_snapped_thoughts_are_embeddings_of_tokens_that_are_text():
    agent = tiny_agent("gemma3_text", "a")
    ids = torch.tensor([[20, 30, agent.eos_token_ids[0]]])
    latents = agent.embed(ids) + 1e-3 * torch.randn(1, 3, agent.hidden_size)
    link = fit_outer_link(agent, agent)
    assert torch.equal(link.proj1.weight, torch.eye(agent.hidden_size)), "agents of one base start at the identity"
    link.snap = True
    (sent,) = hand_over(agent, link, Rollout(latents, latents, torch.tensor([3])))
    torch.testing.assert_close(sent[:2], agent.embed(ids)[0, :2])
    assert int(agent.nearest_token_ids(sent[2])) not in agent.control_token_ids.tolist()


@torch.no_grad()
def test_a_resampler_starts_as_the_last_thoughts_and_does_not_read_behind_the_end():
    torch.manual_seed(0)
    link = ResamplingLink(16, 16, 2)
    link.START = 30.0
    link.start(torch.eye(16), torch.zeros(16))
    states, latents, lengths = torch.randn(3, 5, 16), torch.randn(3, 5, 16), torch.tensor([5, 2, 3])
    sent = link(latents, states, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(sent[row], latents[row, length - 2 : length], atol=1e-5, rtol=1e-5)
    link.queries.normal_()
    torch.testing.assert_close(link(latents), link(latents, latents, torch.tensor([5, 5, 5])))
    before = link(latents, states, lengths)
    latents[1, 2:], states[1, 2:] = 9, 9
    torch.testing.assert_close(link(latents, states, lengths), before)


@torch.no_grad()
def test_a_resampler_hands_over_its_number_of_positions_and_nothing_for_no_thought():
    agent = tiny_agent("qwen3", "a")
    link = fit_outer_link(agent, agent, "outer_resampler", positions=3)
    latents = torch.randn(2, 4, agent.hidden_size)
    sent = hand_over(agent, link, Rollout(latents, latents, torch.tensor([4, 0])))
    assert [tuple(row.shape) for row in sent] == [(3, agent.hidden_size), (0, agent.hidden_size)]
    assert torch.isfinite(sent[0]).all()


def test_links_with_options_survive_saving_and_answer_the_same(tmp_path):
    mas = tiny_chain()
    first, second = (mas.topology.links[index] for index in (0, 1))
    source, target = mas.agents[first.source], mas.agents[first.target]
    codebook = ExpectedEmbeddingLink(
        source.hidden_size, 0.3, 1.25, special_tokens=False, token_ids=torch.arange(20, 60)
    )
    mas.set_link(first.source, codebook)
    mas.set_link(first.target, ExpectedEmbeddingLink(target.hidden_size, 0.5))
    mas.set_link(first.name, fit_outer_link(source, target, "outer_resampler", positions=2))
    snapping = OuterLink("outer_adapter", target.hidden_size, mas.agents[second.target].hidden_size, snap=True)
    mas.set_link(second.name, snapping)
    mas.config.control_tokens, mas.config.latent_halting = False, True
    expected = [solution.text for solution in mas.solve(QUESTIONS)]
    mas.save_pretrained(tmp_path, copy_agents=True)
    again = RecursiveMASModel.from_pretrained(tmp_path)
    assert [solution.text for solution in again.solve(QUESTIONS)] == expected
    entry = json.loads((tmp_path / "config.json").read_text())["agents"][first.source]["inner_link"]
    assert entry == {"kind": "codebook", "temperature": 0.3, "norm": 1.25, "special_tokens": False}
    assert again.outer_links[second.name].snap and again.outer_links[first.name].positions == 2


@pytest.mark.parametrize("tensors", [{}, {"token_ids": torch.rand(3)}, {"token_ids": torch.zeros(2, 2).int()}])
def test_a_broken_codebook_is_an_error(tensors):
    from recursivemas.link_building_recursivemas import build_link

    with pytest.raises(CheckpointError, match="no codebook"):
        build_link(tensors, where="x", in_features=4, kind="codebook")


@pytest.mark.parametrize(
    "entry",
    [{"kind": "adapter", "temperature": 0.3}, {"kind": "codebook", "norm": "large"}, {"temperature": 0.3}],
)
def test_options_of_a_mixture_stand_only_beside_one(entry):
    mas = tiny_chain()
    mas.config.agents["planner"]["inner_link"] = entry
    with pytest.raises(ConfigError, match="inner_link"):
        mas.config.validate_system()
