"""Roles of one base share it: once in memory, once on disk, once published, and every answer stays as it was."""

import json
import shutil

import pytest
import torch
from recursivemas.errors_recursivemas import CheckpointError
from recursivemas.release import check
from recursivemas.system_loader import load_mas_system
from recursivemas.training.init_links import init_system
from recursivemas.upload import plan, stage
from tiny import tiny_chain

QUESTIONS = ["How much is 2 + 3, then?", "Why is it so?"]
SETTINGS = {"num_rounds": 2, "latent_steps": 3, "max_new_tokens": 6, "do_sample": False, "return_latents": True}


def storages(mas):
    """Distinct storages of all weights of the agents' base models."""
    return {
        weight.untyped_storage().data_ptr() for agent in mas.agents.values() for weight in agent.model.parameters()
    }


def assert_same_answers(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.text == other.text and one.latents.keys() == other.latents.keys()
        assert all(torch.equal(one.latents[key], other.latents[key]) for key in one.latents)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three roles, of which the first and the last have one base."""
    path = tmp_path_factory.mktemp("shared") / "system"
    tiny_chain({"planner": "qwen3", "critic": "llama", "solver": "qwen3"}).save_pretrained(path)
    content = json.loads((path / "config.json").read_text())
    content["agents"]["solver"]["source"] = "agents/planner"
    (path / "config.json").write_text(json.dumps(content))
    shutil.rmtree(path / "agents" / "solver")
    return path


@pytest.fixture(scope="module")
def shared(folder):
    return load_mas_system(folder)


@pytest.fixture(scope="module")
def answers(folder):
    """Those of the same system with a base for every role."""
    mas = load_mas_system(folder, share_bases=False)
    assert mas.shared_bases == [] and mas.agents["planner"].model is not mas.agents["solver"].model
    return mas.solve(QUESTIONS, **SETTINGS)


def test_a_base_of_two_roles_is_in_memory_once_and_the_answers_are_bit_for_bit_the_same(folder, shared, answers):
    apart = load_mas_system(folder, share_bases=False)
    per_base = len(list(shared.agents["planner"].model.parameters()))
    assert len(storages(apart)) - len(storages(shared)) == per_base
    assert shared.num_parameters() == apart.num_parameters() - shared.agents["planner"].model.num_parameters()
    assert shared.shared_bases == [("planner", "solver")]
    assert "one base: planner, solver" in repr(shared) and "one base:" not in repr(apart)
    assert_same_answers(shared.solve(QUESTIONS, **SETTINGS), answers)
    for mode in ("text", "alone"):
        found, expected = (mas.solve(QUESTIONS, mode=mode, max_new_tokens=4) for mas in (shared, apart))
        assert [each.text for each in found] == [each.text for each in expected]


def test_a_shared_base_is_written_once_and_loads_from_wherever_the_folder_goes(folder, shared, answers, tmp_path):
    shared.save_pretrained(tmp_path / "saved", copy_agents=True)
    assert sorted(path.name for path in (tmp_path / "saved" / "agents").iterdir()) == ["critic", "planner"]
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    again = load_mas_system(tmp_path / "moved")
    assert again.config.agents["solver"]["source"] == "agents/planner" and again.shared_bases
    assert_same_answers(again.solve(QUESTIONS, **SETTINGS), answers)
    again.save_pretrained(tmp_path / "moved")  # in place: the folder that is there stays
    assert_same_answers(load_mas_system(tmp_path / "moved").solve(QUESTIONS, **SETTINGS), answers)
    weights = tmp_path / "moved" / "agents" / "planner" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="two saves"):
        load_mas_system(tmp_path / "moved")


def test_equal_bytes_in_two_folders_are_one_base_and_one_other_byte_makes_two(folder, answers, tmp_path):
    path = shutil.copytree(folder, tmp_path / "system")
    shutil.copytree(path / "agents" / "planner", path / "agents" / "solver")
    content = json.loads((path / "config.json").read_text())
    content["agents"]["solver"]["source"] = "agents/solver"
    (path / "config.json").write_text(json.dumps(content))
    (path / "weights.json").unlink()
    mas = load_mas_system(path)
    assert (
        mas.shared_bases == [("planner", "solver")]
        and mas.agents["planner"].tokenizer is mas.agents["solver"].tokenizer
    )
    assert_same_answers(mas.solve(QUESTIONS, **SETTINGS), answers)
    template = path / "agents" / "solver" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# mine #}")
    mas = load_mas_system(path)  # the base stays one, the tokenizers do not
    assert mas.shared_bases and mas.agents["planner"].tokenizer is not mas.agents["solver"].tokenizer
    mas.save_pretrained(tmp_path / "two")
    assert "mine" in load_mas_system(tmp_path / "two").agents["solver"].tokenizer.chat_template
    weights = path / "agents" / "solver" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-300] ^= 1
    weights.write_bytes(content)
    assert load_mas_system(path).shared_bases == []


OTHERWISE = [
    {"dtype": {"planner": "float32", "solver": "bfloat16"}},
    {"attn_implementation": {"planner": "sdpa", "solver": "eager"}},
]


@pytest.mark.parametrize("options", OTHERWISE, ids=str)
def test_roles_that_are_loaded_otherwise_have_bases_of_their_own(options, folder):
    assert load_mas_system(folder, **options).shared_bases == []


def test_a_shared_base_is_not_moved_between_its_roles(folder, answers, monkeypatch):
    path_of = dict.fromkeys(("planner", "critic", "solver"), "cpu:0")
    mas = load_mas_system(folder, device=path_of, offload="cpu", only=None)
    moves, original = [], type(mas.agents["planner"]).to
    monkeypatch.setattr(
        type(mas.agents["planner"]),
        "to",
        lambda agent, place: moves.append((agent.role, place)) or original(agent, place),
    )
    mas.residency.enter("planner")
    mas.residency.enter("solver")
    assert moves == [("planner", "cpu:0"), ("solver", "cpu:0")]
    mas.residency.enter("critic")
    assert moves[2:] == [("solver", "cpu"), ("critic", "cpu:0")]
    assert_same_answers(mas.solve(QUESTIONS, **SETTINGS), answers)


def test_check_counts_a_shared_base_once_and_says_so(folder, shared, monkeypatch):
    monkeypatch.setattr(check, "run_limited", lambda *args: ("", None))  # the trial takes a process
    report = check.check_system(str(folder))
    bases = {id(agent.model): agent.model.num_parameters() for agent in shared.agents.values()}
    links = sum(repository["link_bytes"] for repository in report["repositories"])
    assert report["ready"] and report["memory"]["float32"] == 4 * sum(bases.values()) + links
    assert "one base of planner, solver: in memory once" in check.describe(report)


def test_a_shared_base_is_published_once(folder, answers, tmp_path):
    staged = stage.stage(str(folder), tmp_path / "staged", plan.Options("my-org", "Tiny", "Why?"))
    assert [(each.role, each.shared_by) for each in staged.repositories[:-2]] == [
        ("planner", ("solver",)),
        ("critic", ()),
    ]
    assert plan.load_plan(tmp_path / "staged").agents["solver"].role == "planner"
    mas = load_mas_system(tmp_path / "staged" / "Tiny", clones=str(tmp_path / "staged"))
    assert mas.shared_bases == [("planner", "solver")]
    assert_same_answers(mas.solve(QUESTIONS, **SETTINGS), answers)


def test_a_system_of_new_links_loads_a_base_once(folder, shared):
    config = type(shared.config).from_dict(shared.config.to_dict())
    mas = init_system(config, folder)
    assert mas.shared_bases == [("planner", "solver")]


def test_roles_without_weights_say_whose_base_is_one(folder):
    mas = load_mas_system(folder, only=["critic"])
    assert mas.shared_bases == [("planner", "solver")] and mas.agents["solver"].device.type == "meta"
