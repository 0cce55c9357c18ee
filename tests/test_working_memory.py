"""Links of kind `cache`: a receiver of one base goes on from the sender's keys and values, as if it had read all."""

import itertools
import json
import shutil

import pytest
import torch
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.batching_recursivemas import PromptBuilder
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.errors_recursivemas import ConfigError, InputError
from recursivemas.links_recursivemas import CacheLink, InnerLink, OuterLink
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.prompts_recursivemas import as_inputs, template_for
from recursivemas.system_loader import load_mas_system
from recursivemas.training.init_links import init_system
from recursivemas.training.run import build_objective
from tiny import chain_prompts, tiny_base

QUESTIONS = ["How much is 2 + 3, then, and why?", "Why?", "Name one colour of the sky at night."]
STEPS, NEW = 4, 6


def cached_system(architecture="qwen3", roles=("planner", "critic", "solver"), feedback=True, **settings):
    """A chain of roles of one base that hand over working memory, the last one back to the first."""
    model, tokenizer = tiny_base(architecture, 0)
    width = model.get_input_embeddings().embedding_dim
    agents = {}
    for seed, role in enumerate(roles):
        torch.manual_seed(seed)
        agents[role] = RecursiveMASAgent(model, InnerLink("ln_res_adapter", width), tokenizer, role)
    links = [{"source": a, "target": b, "kind": "cache"} for a, b in itertools.pairwise(roles)]
    links += [{"source": roles[-1], "target": roles[0], "kind": "cache", "feedback": True}] * feedback
    stages = [[role] for role in roles]
    config = RecursiveMASConfig(
        agents={role: {"source": f"agents/{role}"} for role in roles},
        stages=stages,
        links=links,
        decoding_role=roles[-1],
        prompts=chain_prompts(stages, links),
        **{"num_rounds": 2, "latent_steps": STEPS} | settings,
    )
    return RecursiveMASModel(
        config, agents, {f"{x['source']}_to_{x['target']}": CacheLink(width, width) for x in links}
    )


@pytest.fixture(scope="module")
def system():
    return cached_system()


def recomputed(mas, question, num_rounds, new_tokens=NEW, steps=STEPS):
    """An independent loop: one question, everything read anew for each position, no cache; texts and latents."""
    context, sent = None, {}
    schedule = [(r, role) for r in range(1, num_rounds + 1) for role in mas.topology.roles]
    for round_index, role in schedule:
        agent, renderer = mas.agents[role], mas.renderers[role]
        phase = "first" if round_index == 1 else "feedback"
        chat = renderer.render(*template_for(mas.config.prompts, role, "default", phase))
        ids = [i for piece in renderer.cut(chat, as_inputs(question)) if isinstance(piece, list) for i in piece]
        own = agent.model.get_input_embeddings()(torch.tensor([ids]))
        embeds = own if context is None or (round_index, role) == schedule[0] else torch.cat([context, own], dim=1)

        def last(embeds, agent=agent):
            return agent.model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1:]

        if (round_index, role) == schedule[-1]:
            new = []
            while len(new) < new_tokens:
                new.append(int(agent.model.get_output_embeddings()(last(embeds)).argmax()))
                if new[-1] in agent.eos_token_ids:
                    break
                embeds = torch.cat([embeds, agent.model.get_input_embeddings()(torch.tensor([new[-1:]]))], dim=1)
            return agent.decode(new), sent
        latents = []
        for _ in range(steps):
            latents.append(agent.inner_link(last(embeds)))
            embeds = torch.cat([embeds, latents[-1]], dim=1)
        context, sent[round_index, role] = embeds, torch.cat(latents, dim=1)[0]


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("num_rounds", [1, 2, 3])
@torch.no_grad()
def test_going_on_from_a_working_memory_is_reading_everything_anew(architecture, num_rounds, system):
    mas = system if architecture == "qwen3" else cached_system(architecture)
    found = mas.solve(QUESTIONS, num_rounds=num_rounds, max_new_tokens=NEW, do_sample=False, return_latents=True)
    for question, solution in zip(QUESTIONS, found, strict=True):
        text, sent = recomputed(mas, question, num_rounds)
        assert solution.text == text
        for (round_index, source, _), latents in solution.latents.items():
            torch.testing.assert_close(latents, sent[round_index, source], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_beams_and_batches_of_one_read_the_same(system):
    """Beams cannot go on from one cache: they read everything anew."""
    together = system.solve(QUESTIONS, max_new_tokens=NEW, num_beams=2, do_sample=False)
    alone = [system.solve(q, max_new_tokens=NEW, num_beams=2, do_sample=False)[0].text for q in QUESTIONS]
    assert [each.text for each in together] == alone
    greedy = [system.solve(q, max_new_tokens=NEW, do_sample=False)[0].text for q in QUESTIONS]
    assert greedy == [recomputed(system, q, 2)[0] for q in QUESTIONS]


@torch.no_grad()
def test_rows_that_end_early_leave_nothing_behind(monkeypatch):
    """With halting, steps behind a row's end are not in the memory; rows of a batch do not see each other's."""
    mas = cached_system(feedback=False, num_rounds=1)
    agent_class = type(mas.agents["planner"])
    # The rows end after one, two, … steps, whatever they say; each question alone after as many.
    lengths = {question: 1 + index for index, question in enumerate(QUESTIONS)}
    original = agent_class.rollout

    def rollout(agent, embeds, mask, steps, cache=None, *args):
        thought = original(agent, embeds, mask, steps, cache)
        ends = torch.tensor([lengths[question] for question in asked])
        return type(thought)(thought.hidden_states, thought.latents, ends)

    monkeypatch.setattr(agent_class, "rollout", rollout)
    asked, settings = (
        QUESTIONS,
        {"max_new_tokens": NEW, "do_sample": False, "return_latents": True, "keep_order": True},
    )
    together = mas.solve(QUESTIONS, **settings)
    for question, solution in zip(QUESTIONS, together, strict=True):
        text, sent = recomputed(mas, question, 1, steps=lengths[question])
        assert solution.text == text and len(solution.latents[1, "planner", "critic"]) == lengths[question]
        torch.testing.assert_close(solution.latents[1, "critic", "solver"], sent[1, "critic"], atol=1e-4, rtol=1e-4)


def test_two_receivers_of_one_memory_have_a_copy_each(monkeypatch):
    """What the first one reads and thinks behind it is not before the second; both kinds of link go together."""
    mas = cached_system(feedback=False, num_rounds=1)
    assert mas.solve(QUESTIONS[0], mode="text", max_new_tokens=3, message_tokens=3)[0].messages
    config = type(mas.config).from_dict(mas.config.to_dict())
    config.links = [{"source": "planner", "target": role, "kind": "cache"} for role in ("critic", "solver")]
    config.links += [{"source": "critic", "target": "solver", "kind": "outer_linear_adapter"}]
    config.prompts = chain_prompts(config.stages, config.links)
    width = mas.agents["planner"].hidden_size
    torch.manual_seed(7)
    links = {f"planner_to_{role}": CacheLink(width, width) for role in ("critic", "solver")}
    links["critic_to_solver"] = OuterLink("outer_linear_adapter", width, width)
    both = RecursiveMASModel(config, dict(mas.agents.items()), links)
    settings = {"max_new_tokens": NEW, "do_sample": False, "return_latents": True}
    found = both.solve(QUESTIONS, **settings)
    behind = PromptBuilder._behind
    monkeypatch.setattr(
        PromptBuilder, "_behind", lambda builder, memory, rows, reuse: behind(builder, memory, rows, False)
    )
    for one, other in zip(found, both.solve(QUESTIONS, **settings), strict=True):  # read anew
        assert one.text == other.text
        for key, latents in other.latents.items():
            torch.testing.assert_close(one.latents[key], latents, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_it_is_saved_without_weights_loaded_and_made_by_init_links(system, tmp_path):
    system.save_pretrained(tmp_path / "system", copy_agents=True)
    assert sorted(path.stem for path in (tmp_path / "system" / "links").iterdir()) == ["critic", "planner", "solver"]
    assert [path.name for path in (tmp_path / "system" / "agents").iterdir()] == ["planner"]
    expected = system.solve(QUESTIONS, max_new_tokens=NEW, do_sample=False)
    found = load_mas_system(tmp_path / "system").solve(QUESTIONS, max_new_tokens=NEW, do_sample=False)
    assert [each.text for each in found] == [each.text for each in expected]
    config = RecursiveMASConfig.from_dict(json.loads((tmp_path / "system" / "config.json").read_text()))
    made = init_system(config, tmp_path / "system", outer_kind="cache")
    assert all(isinstance(link, CacheLink) for link in made.outer_links.values())
    assert made.solve(QUESTIONS[0], max_new_tokens=2)[0].usage["slot_positions"] == 0


def test_what_cannot_be_continued_is_refused(system, tmp_path):
    system.save_pretrained(tmp_path / "system", copy_agents=True)
    with pytest.raises(ConfigError, match=r"one base only(?s:.*)planner_to_critic(?s:.*)share_bases"):
        load_mas_system(tmp_path / "system", share_bases=False)
    content = json.loads((tmp_path / "system" / "config.json").read_text())
    content["links"] += [{"source": "planner", "target": "solver", "kind": "cache"}]
    twice = shutil.copytree(tmp_path / "system", tmp_path / "twice")
    (twice / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"one working memory(?s:.*)solver"):
        load_mas_system(twice)
    with pytest.raises(ConfigError, match=r"keep all positions(?s:.*)planner_to_critic"):
        cached_system("gemma3_text")
    with pytest.raises(InputError, match="nothing to train"):
        build_objective("outer", None, system)
    with pytest.raises(InputError, match="control"):
        system.solve(QUESTIONS, control="noise")
    assert system.solve(QUESTIONS[0], control="none", max_new_tokens=2)


def test_positions_count_what_is_gone_on_from(system, monkeypatch):
    """The last prompt stands behind five others: a limit that each of them keeps is too little for all."""
    agent_class = type(system.agents["planner"])
    usual = max(len(recomputed_ids(system, role)) for role in system.topology.roles) + STEPS + NEW
    monkeypatch.setattr(agent_class, "position_limit", usual + 40)
    calls = []
    monkeypatch.setattr(agent_class, "rollout", lambda *args: calls.append(args))
    with pytest.raises(InputError, match=r"agent critic, round 1|agent solver, round 1"):
        system.solve(QUESTIONS[0], max_new_tokens=NEW)
    assert not calls


def recomputed_ids(mas, role):
    renderer = mas.renderers[role]
    chat = renderer.render(*template_for(mas.config.prompts, role, "default", "feedback"))
    return [i for piece in renderer.cut(chat, as_inputs(QUESTIONS[0])) if isinstance(piece, list) for i in piece]
