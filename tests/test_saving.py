"""What a saved system says of its parts: where they are now, and nothing of where they came from."""

import json
import shutil

import pytest
import torch
from recursivemas.system_loader import RecursiveMASConfig, load_mas_system
from safetensors.torch import load_file

QUESTION = "How many apples are 12 + 3 apples?"
COMMIT = "0123456789abcdef" * 2 + "01234567"


def read(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def scattered(chain_folder, tmp_path_factory):
    """The chain with its parts elsewhere, at revisions: an agent, an inner link and an outer one; links per task."""
    place = tmp_path_factory.mktemp("scattered")
    elsewhere = shutil.copytree(chain_folder, place / "clones" / "org" / "parts")
    shutil.copytree(chain_folder / "agents" / "critic", place / "clones" / "org" / "critic")
    config = read(chain_folder)
    for role in config["agents"]:
        config["agents"][role]["revision"] = COMMIT
    config["agents"]["critic"]["source"] = "org/critic"
    part = {"source": "org/parts", "revision": COMMIT}
    config["agents"]["critic"]["inner_link"]["weights"] = part | {"filename": "links/critic.safetensors"}
    config["links"][0]["weights"] = part | {"filename": "links/planner_to_critic.safetensors"}
    files = {task: f"links/critic_to_solver({task}).safetensors" for task in ("math", "code")}
    config["links"][1]["weights"] = {"tasks": files}
    config["link_task"] = "math"
    folder = shutil.copytree(chain_folder, place / "system")
    shutil.rmtree(folder / "agents" / "critic")
    (folder / "links" / "critic.safetensors").unlink()
    (folder / "links" / "planner_to_critic.safetensors").unlink()
    for file in files.values():
        shutil.copy(elsewhere / "links" / "critic_to_solver.safetensors", folder / file)
    (folder / "config.json").write_text(json.dumps(config))
    return load_mas_system(folder, clones=place / "clones")


@pytest.mark.parametrize("copy_agents", [True, False])
def test_nothing_saved_keeps_the_place_or_the_revision_that_it_came_from(scattered, chain, copy_agents, tmp_path):
    scattered.save_pretrained(tmp_path, copy_agents=copy_agents)
    config = read(tmp_path)
    assert config.get("link_task") is None
    for role, entry in config["agents"].items():
        if role == "critic" and not copy_agents:  # it stays where it is, as it is
            assert (entry["source"], entry["revision"]) == ("org/critic", COMMIT)
        else:
            assert (entry["source"], entry.get("revision")) == (f"agents/{role}", None)
        assert not entry["inner_link"].get("weights")
    assert not any(entry.get("weights") for entry in config["links"])
    assert len(list((tmp_path / "links").iterdir())) == 6
    if copy_agents:
        loaded = load_mas_system(tmp_path)
        assert all(torch.equal(loaded.state_dict()[key], value) for key, value in chain.state_dict().items())


def test_saving_changes_nothing_in_the_system_that_is_saved(scattered, tmp_path):
    before = scattered.config.to_dict()
    scattered.save_pretrained(tmp_path, copy_agents=True)
    assert scattered.config.to_dict() == before
    assert before["agents"]["critic"]["revision"] == COMMIT and before["link_task"] == "math"


def test_the_settings_of_a_system_and_of_its_answers_are_saved(chain_folder, tmp_path):
    settings = {"num_rounds": 5, "latent_steps": 7, "latent_halting": True, "message_tokens": 9, "task": "math"}
    mas = load_mas_system(chain_folder, **settings)
    mas.generation_config.max_new_tokens = 3
    mas.save_pretrained(tmp_path)
    again = load_mas_system(tmp_path)
    assert {key: getattr(again.config, key) for key in settings} == settings
    assert again.generation_config.max_new_tokens == 3
    assert again.solve(QUESTION, num_rounds=1, min_new_tokens=3)[0].usage["new_tokens"] == 3


def test_given_weights_of_the_links_are_saved_in_place_of_the_current_ones(chain, tmp_path):
    state = {key: value + 1 if "link" in key else value for key, value in chain.state_dict().items()}
    chain.save_pretrained(tmp_path, state_dict=state)
    for name, prefix in (
        ("critic", "agents.critic.inner_link."),
        ("critic_to_solver", "outer_links.critic_to_solver."),
    ):
        saved = load_file(tmp_path / "links" / f"{name}.safetensors")
        assert saved and all(torch.equal(value, state[prefix + key]) for key, value in saved.items())


def test_everybody_may_read_what_is_saved(chain_folder):
    assert {file.stat().st_mode & 0o444 for file in (chain_folder / "links").iterdir()} == {0o444}


def test_what_is_in_the_folder_beside_the_system_stays(chain, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    chain.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_configuration_is_its_own_json(chain_folder):
    config = RecursiveMASConfig.from_pretrained(chain_folder)
    again = RecursiveMASConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == config.to_dict() and again.topology == config.topology
