"""An agent's own repository: it loads alone, as an agent and as the base model that it is."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.errors_recursivemas import CheckpointError, ConfigError
from recursivemas.link_building_recursivemas import build_link
from recursivemas.links_recursivemas import InnerLink
from recursivemas.modeling_recursivemas import RecursiveMASModel
from tiny import ARCHITECTURES, tiny_agent
from transformers import AutoModel, AutoModelForCausalLM

TEXT = "What is the answer to the question?"


@torch.no_grad()
def thoughts(agent):
    inputs = agent.tokenizer(TEXT, return_tensors="pt").to(agent.device)
    return agent.think(agent.embed(inputs["input_ids"]), inputs["attention_mask"], 4)


def greedy_ids(model, tokenizer):
    return model.generate(**tokenizer(TEXT, return_tensors="pt"), max_new_tokens=8, do_sample=False).tolist()


@pytest.fixture(scope="module")
def agent():
    return tiny_agent("qwen3", "planner").eval()


@pytest.fixture(scope="module")
def repository(agent, tmp_path_factory):
    """The agent on disk, by itself; tests that change files work on a copy."""
    folder = tmp_path_factory.mktemp("agents") / "planner"
    agent.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_agent_is_the_same_after_saving_and_loading(architecture, tmp_path):
    agent = tiny_agent(architecture, "planner").eval()
    agent.save_pretrained(tmp_path)
    loaded = RecursiveMASAgent.from_pretrained(tmp_path)
    expected, found = agent.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    torch.testing.assert_close(thoughts(loaded), thoughts(agent), atol=1e-5, rtol=1e-5)  # bits depend on alignment
    assert not any(parameter.requires_grad for parameter in loaded.parameters()) and not loaded.training


@pytest.mark.parametrize("kind", ["linear_adapter", "linear_res_adapter", "adapter", "res_adapter"])
def test_the_kind_travels_where_the_weights_alone_do_not_tell_it(kind, tmp_path):
    tiny_agent("qwen2", "solver", kind).save_pretrained(tmp_path)
    assert RecursiveMASAgent.from_pretrained(tmp_path).inner_link.kind == kind


def test_a_link_without_parameters_needs_no_file(tmp_path):
    base = tiny_agent("qwen2", "solver")
    link = build_link({}, where="nowhere", in_features=base.hidden_size, kind="expected_embedding")
    agent = RecursiveMASAgent(base.model, link, base.tokenizer, "solver").eval()
    agent.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("inner_link*"))
    torch.testing.assert_close(thoughts(RecursiveMASAgent.from_pretrained(tmp_path)), thoughts(agent))


FRESH = """
import json, sys
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
folder, text = sys.argv[1:]
agent = AutoModel.from_pretrained(folder, trust_remote_code=True)
inputs = agent.tokenizer(text, return_tensors="pt")
hidden_states = agent.think(agent.embed(inputs["input_ids"]), inputs["attention_mask"], 4)
base = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = base.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, do_sample=False)
print(json.dumps([type(agent).__name__, type(base).__name__, hidden_states.sum().item(), ids.tolist()]))
"""


@pytest.mark.slow
def test_a_fresh_process_with_an_empty_cache_loads_it_both_ways(agent, repository, tmp_path):
    folder = shutil.copytree(repository, tmp_path / "A.Published-Agent")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-W", "ignore", "-c", FRESH, str(folder), TEXT]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    agent_class, base_class, total, ids = json.loads(result.stdout.splitlines()[-1])
    assert (agent_class, base_class) == ("RecursiveMASAgent", "Qwen3ForCausalLM")
    assert total == pytest.approx(thoughts(agent).sum().item(), rel=1e-5)
    assert ids == greedy_ids(agent.model, agent.tokenizer)


def test_without_trust_it_is_the_base_model_and_nothing_is_left_over(repository):
    base, info = AutoModelForCausalLM.from_pretrained(repository, output_loading_info=True)
    assert type(base).__name__ == "Qwen3ForCausalLM"
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])


def test_auto_model_passes_its_settings_to_the_base_model(repository):
    agent = AutoModel.from_pretrained(
        repository, trust_remote_code=True, dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert agent.dtype == torch.bfloat16 and agent.model.config._attn_implementation == "eager"
    assert agent.inner_link.proj1.weight.dtype == torch.float32  # links keep theirs


def test_a_loaded_agent_can_be_saved_and_loaded_again(repository, agent, tmp_path):
    loaded = AutoModel.from_pretrained(repository, trust_remote_code=True)
    loaded.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(repository))
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    torch.testing.assert_close(thoughts(again), thoughts(agent), atol=1e-5, rtol=1e-5)
    loaded.model.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert "auto_map" not in config and "inner_link" not in config


def test_inner_links_per_task_are_chosen_by_task(agent, tmp_path):
    links = {task: InnerLink("ln_res_adapter", agent.hidden_size) for task in ("math", "code")}
    agent.save_pretrained(tmp_path, inner_links=links, task="code")
    assert {"inner_link(math).safetensors", "inner_link(code).safetensors"} <= set(os.listdir(tmp_path))

    def loaded(**kwargs):
        return AutoModel.from_pretrained(tmp_path, trust_remote_code=True, **kwargs).inner_link.proj1.weight

    assert torch.equal(loaded(task="math"), links["math"].proj1.weight)
    assert torch.equal(loaded(), links["code"].proj1.weight)
    with pytest.raises(CheckpointError, match="choice"):
        RecursiveMASAgent.from_pretrained(tmp_path, task="choice")


def test_a_base_model_alone_is_no_agent(agent, tmp_path):
    agent.model.save_pretrained(tmp_path)
    agent.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="inner_link"):
        RecursiveMASAgent.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "inner_link.safetensors", "config.json"])
def test_a_missing_file_is_named(file, repository, tmp_path):
    folder = shutil.copytree(repository, tmp_path / "planner")
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=r"planner"):
        RecursiveMASAgent.from_pretrained(folder)


def test_a_system_can_take_its_agents_and_their_inner_links_from_agent_repositories(chain, chain_folder, tmp_path):
    """`weights` names the agent's repository and the file in it; `clones` stands in for the Hub."""
    system = shutil.copytree(chain_folder, tmp_path / "system")
    config = json.loads((system / "config.json").read_text())
    for role, agent in chain.agents.items():
        agent.save_pretrained(tmp_path / "clones" / "org" / role)
        weights = {"source": f"org/{role}", "revision": None, "filename": "inner_link.safetensors"}
        config["agents"][role]["source"] = f"org/{role}"
        config["agents"][role]["inner_link"]["weights"] = weights
        (system / "links" / f"{role}.safetensors").unlink()
    (system / "config.json").write_text(json.dumps(config))
    shutil.rmtree(system / "agents")
    loaded = RecursiveMASModel.from_pretrained(system, clones=tmp_path / "clones")
    question = [TEXT]
    assert loaded.solve(question, max_new_tokens=8)[0].text == chain.solve(question, max_new_tokens=8)[0].text
    loaded.save_pretrained(tmp_path / "whole", copy_agents=True)
    assert "auto_map" not in json.loads((tmp_path / "whole" / "agents" / "planner" / "config.json").read_text())
