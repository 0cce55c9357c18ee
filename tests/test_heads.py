"""Heads of prompts that roles of one base share are read once, and nothing that is computed changes."""

import json
import shutil

import pytest
import torch
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.batching_recursivemas import embed_rows, prompt_builders
from recursivemas.engine_recursivemas import Run
from recursivemas.links_recursivemas import InnerLink
from recursivemas.prompts_recursivemas import Slot
from recursivemas.system_loader import load_mas_system
from test_lora import change, write_adapter
from tiny import chain_links, chain_prompts, tiny_agent, tiny_chain

ROLES = ("planner", "solver")
TOLD = "A long text that every agent is told before every question, whoever it may be in the end."
LONG = "How many apples are 12 + 3 apples, where 5 more apples are eaten by somebody who counts to 100?"
SETTINGS = {"num_rounds": 2, "latent_steps": 3, "max_new_tokens": 4, "return_latents": True}


def save_one_base(path, architecture, roles=ROLES):
    """A system whose roles all have the first one's base, in its folder."""
    prompts = chain_prompts([[role] for role in roles], chain_links(*roles), system=TOLD)
    tiny_chain(dict.fromkeys(roles, architecture), prompts=prompts).save_pretrained(path)
    for role in roles[1:]:
        shutil.rmtree(path / "agents" / role)
        change(path, **{role: {"source": f"agents/{roles[0]}"}})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_one_base(tmp_path_factory.mktemp("heads") / "system", "llama")


def counted(decoders, ask):
    """What `ask` gives, and the positions of each forward pass of some decoders meanwhile."""
    passes = []

    def count(module, args, kwargs):
        embeds = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
        passes.append(embeds.shape[0] * embeds.shape[1])

    hooks = [each.register_forward_pre_hook(count, with_kwargs=True) for each in {id(d): d for d in decoders}.values()]
    given = ask()
    for hook in hooks:
        hook.remove()
    return given, passes


def positions(mas, questions, **settings):
    decoders = [agent.decoder for agent in mas.agents.values()]
    solutions, passes = counted(decoders, lambda: mas.solve(questions, **{**SETTINGS, **settings}))
    return sum(passes), solutions


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.text == other.text and one.latents.keys() == other.latents.keys()
        for key in one.latents:
            torch.testing.assert_close(one.latents[key], other.latents[key], atol=1e-5, rtol=1e-4)


def common(mas, question):
    """The token ids that the prompts of all roles start with, up to their first slots."""
    rows = []
    for role, renderer in mas.renderers.items():
        for phase in ("first", "feedback"):
            rows.append(renderer.pieces(TOLD, mas.config.prompts[role]["default"][phase], question)[0])
    return next(n for n, ids in enumerate(zip(*rows, strict=False)) if len(set(ids)) > 1)


@pytest.mark.parametrize("num_rounds", [1, 2])
def test_what_the_prompts_of_two_roles_of_one_base_start_with_is_read_once(folder, num_rounds):
    mas, apart = load_mas_system(folder), load_mas_system(folder, share_bases=False)
    once, solutions = positions(mas, LONG, num_rounds=num_rounds)
    twice, expected = positions(apart, LONG, num_rounds=num_rounds)
    assert twice - once == common(mas, LONG) > 80
    assert_same(solutions, expected)


def test_a_batch_reads_what_its_roles_share_of_each_row_once_and_what_all_rows_share_for_one_row(folder):
    mas, apart = load_mas_system(folder), load_mas_system(folder, share_bases=False)
    questions = [LONG, f"{LONG} And why?", LONG[5:]]
    once, solutions = positions(mas, questions)
    twice, expected = positions(apart, questions)
    shared, longest = common(mas, ""), max(common(mas, question) for question in questions)
    assert twice - once >= shared + len(questions) * (longest - shared - 16) > 150
    assert_same(solutions, expected)


def test_what_keeps_no_positions_is_read_by_each_role(tmp_path):
    """Sliding windows."""
    path = save_one_base(tmp_path / "system", "gemma3_text")
    mas, apart = load_mas_system(path), load_mas_system(path, share_bases=False)
    assert mas.shared_bases
    once, solutions = positions(mas, [LONG])
    twice, expected = positions(apart, [LONG])
    assert once == twice
    assert_same(solutions, expected)


def test_a_role_with_an_adapter_reads_its_own_head(tmp_path):
    roles = ("planner", "critic", "solver")
    path = save_one_base(tmp_path / "system", "qwen3", roles)
    write_adapter(load_mas_system(path).agents["planner"].model, path / "adapters" / "critic")
    change(path, critic={"adapter": {"source": "./adapters/critic"}})
    mas, apart = load_mas_system(path), load_mas_system(path, share_bases=False)
    once, solutions = positions(mas, [LONG])
    twice, expected = positions(apart, [LONG])
    assert twice - once == common(mas, LONG), "planner and solver, the critic not"
    assert_same(solutions, expected)


def test_a_run_keeps_no_keys_and_values_of_a_role_behind_its_last_turn(folder):
    mas = load_mas_system(folder)
    run = Run(mas, [LONG], mas.config.run_settings(num_rounds=2), mas.generation_config)
    for turns in mas.topology.by_stage(run.schedule[:-1]):
        run.take_turns(turns)
    assert list(run._builders) == ["solver"]
    run.last_prompt()
    assert not run._builders


@pytest.fixture
def agents():
    """Four agents of one model."""
    first = tiny_agent("llama", "a")
    links = [InnerLink("ln_res_adapter", first.hidden_size) for _ in "bcd"]
    others = [
        RecursiveMASAgent(first.model, link, first.tokenizer, role) for role, link in zip("bcd", links, strict=True)
    ]
    return dict(zip("abcd", (first, *others), strict=True))


def random_ids(length, seed):
    return torch.randint(3, 20, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_exact(agent, builder, heads, sent):
    """A prompt is what the model makes of its ids and latents without any cache."""
    prompt, _ = builder.build("first", {"other": sent})
    found = agent.encode(prompt.inputs_embeds[:, prompt.past :], prompt.attention_mask, prompt.past_key_values)
    assert prompt.past > 0
    for row, (head, latents) in enumerate(zip(heads, sent, strict=True)):
        embeds, mask = embed_rows(agent, [[head, latents, [5, 6]]])
        torch.testing.assert_close(found[row, -1], agent.encode(embeds, mask)[0, -1], atol=1e-5, rtol=1e-5)


def rows_of(heads):
    return {"first": [[ids, Slot("other"), [5, 6]] for ids in heads]}


@torch.no_grad()
def test_of_several_roles_those_that_share_more_read_that_once_too(agents):
    start, more, other = random_ids(40, 0), [1, *random_ids(50, 1)], [2, *random_ids(30, 2)]
    heads = {"a": [start + more + [7]], "b": [start + more + [8]], "c": [start + other], "d": [random_ids(60, 9)]}
    builders = prompt_builders(agents, {role: rows_of(rows) for role, rows in heads.items()}, dict.fromkeys("abcd", 1))
    latents = [torch.ones(2, agents["a"].hidden_size)]
    _, passes = counted(
        [agents["a"].decoder],
        lambda: [assert_exact(agents[role], builders[role], heads[role], latents) for role in "abc"],
    )
    whole = sum(len(heads[role][0]) + 4 for role in "abc")
    assert sum(passes) == whole + whole - 2 * len(start) - len(more), "what reads each prompt as a whole counts too"
    prompt, _ = builders["d"].build("first", {"other": latents})
    assert prompt.past == 0, "nobody starts like it, and it is used once"


@pytest.mark.parametrize("when", ["before anything is read", "behind one role", "behind both"])
@torch.no_grad()
def test_rows_that_leave_go_on_behind_their_own_part_of_what_roles_share(agents, when):
    start, rows = random_ids(30, 0), [random_ids(length, length) for length in (45, 60, 52)]
    heads = {role: [start + row + own for row in rows] for role, own in (("a", [1] * 3), ("b", [2] * 9))}
    builders = prompt_builders(agents, {role: rows_of(each) for role, each in heads.items()}, {"a": 3, "b": 3})
    generator = torch.Generator().manual_seed(3)
    sent = [torch.randn(length, agents["a"].hidden_size, generator=generator) for length in (3, 0, 2)]
    for role in {"behind one role": "a", "behind both": "ab"}.get(when, ""):
        assert_exact(agents[role], builders[role], heads[role], sent)
    for left in ([2, 0], [1]):
        for role, builder in builders.items():
            own = [[each[row] for row in left] for each in (heads[role], sent)]
            assert_exact(agents[role], builder.narrowed(left), *own)
    for role, builder in builders.items():  # the whole batch goes on as before
        assert_exact(agents[role], builder, heads[role], sent)


def test_working_memory_that_is_handed_on_needs_no_head(tmp_path):
    """The solver goes on behind all that the planner read: one pass over the planner's prompt, without a stop."""
    path = save_one_base(tmp_path / "system", "llama")
    content = json.loads((path / "config.json").read_text())
    content["links"][0]["kind"] = "cache"
    (path / "config.json").write_text(json.dumps(content))
    (path / "links" / "planner_to_solver.safetensors").unlink()
    mas = load_mas_system(path)
    ask = {**SETTINGS, "num_rounds": 1, "return_latents": False}
    _, passes = counted([mas.agents["planner"].decoder], lambda: mas.solve(LONG, **ask))
    assert passes[0] > common(mas, LONG)
