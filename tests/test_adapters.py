"""Adapters of an agent's weights (LoRA and its like) are refused by name: beside its files, and unmerged at a save."""

import json
import shutil

import pytest
import torch
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.errors_recursivemas import CheckpointError, InputError
from recursivemas.system_loader import load_mas_system
from recursivemas.training.init_links import agent_entry, load_agent
from tiny import tiny_chain


@pytest.mark.parametrize(
    "files",
    [
        {"adapter_config.json": {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "base"}},
        {"adapter_config.json": {"target_modules": ["q_proj"]}},
        {"adapter_model.safetensors": None},
        {"adapter_model.bin": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("whole", [True, False], ids=["beside weights", "alone"])
def test_an_adapter_in_an_agents_folder_is_refused_by_name(files, whole, chain, chain_folder, tmp_path):
    folder = shutil.copytree(chain_folder, tmp_path / "system")
    agent = folder / "agents" / "critic"
    for name, content in files.items():
        (agent / name).write_text(json.dumps(content))
    if not whole:
        (agent / "config.json").unlink()
        (agent / "model.safetensors").unlink()
    message = rf"adapter lies(?s:.*)agent critic(?s:.*){next(iter(files))}(?s:.*)merge"
    if whole or "adapter_config.json" in files:
        with pytest.raises(CheckpointError, match=message):
            load_mas_system(folder)
    config = type(chain.config)(agents={"critic": agent_entry(str(agent))})
    if whole:
        with pytest.raises(CheckpointError, match=message):
            load_agent(config, "critic", folder)


def test_the_adapter_config_of_a_release_is_none(chain_folder, chain, tmp_path):
    folder = shutil.copytree(chain_folder, tmp_path / "system")
    (folder / "agents" / "critic" / "adapter_config.json").write_text('{"adapter_type": "ln_res_adapter"}')
    assert torch.equal(
        load_mas_system(folder).agents["critic"].embed(torch.tensor([5])),
        chain.agents["critic"].embed(torch.tensor([5])),
    )


class LoraLayer(torch.nn.Linear):
    """Stands in for a layer of PEFT."""


LoraLayer.__module__ = "peft.tuners.lora.layer"


@pytest.mark.parametrize("door", ["system", "agent"])
def test_an_unmerged_adapter_is_refused_before_anything_is_written(door, tmp_path):
    mas = tiny_chain()
    agent: RecursiveMASAgent = mas.agents["critic"]
    agent.model.model.layers[0].self_attn.q_proj = LoraLayer(4, 4)
    name = "agents.critic.model" if door == "system" else "model"
    with pytest.raises(InputError, match=rf"found: {name}.model.layers.0.self_attn.q_proj(?s:.*)merge_and_unload"):
        (mas if door == "system" else agent).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
