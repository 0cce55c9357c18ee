"""What the doors of a system refuse, in our words and before anything is done."""

import pytest
import torch
from recursivemas.bases_recursivemas import _unusable
from recursivemas.errors_recursivemas import ArgumentError, CheckpointError, InputError, RecursiveMASError
from recursivemas.system_loader import load_mas_system
from transformers import AutoModelForCausalLM

SETTINGS = {"num_rounds": -3, "latent_steps": "x", "mode": "nope", "num_beams": -1, "eos_token_id": "x", "prompts": 3}


def test_settings_that_no_load_would_take_are_not_saved(chain_folder, tmp_path):
    mas = load_mas_system(chain_folder)
    for name, value in SETTINGS.items():
        before = getattr(mas.generation_config, name, None)
        setattr(mas.generation_config, name, value)
        with pytest.raises(RecursiveMASError):
            mas.save_pretrained(tmp_path / "saved")
        setattr(mas.generation_config, name, before)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("size", ["ten", -1, 0, True, 1.5, "5"], ids=repr)
def test_a_size_of_shards_that_is_none_is_refused(size, chain, tmp_path):
    for door in (chain, chain.agents["critic"]):
        with pytest.raises(ArgumentError, match="max_shard_size"):
            door.save_pretrained(tmp_path / "saved", max_shard_size=size)
    assert not (tmp_path / "saved").exists()


def test_an_agent_says_what_to_use_in_place_of_a_forward_pass(chain):
    with pytest.raises(InputError, match=r"agent\.model"):
        chain.agents["critic"](input_ids=torch.ones(1, 2, dtype=torch.long))


def test_an_option_that_cannot_be_used_is_named_where_it_was_said(chain_folder):
    with pytest.raises(CheckpointError, match="look at attn_implementation"):
        load_mas_system(chain_folder, attn_implementation={"critic": "flash_attention_9"})
    assert _unusable(ImportError("bitsandbytes"), {"quantization_config": 1}).endswith("leave out quantization_config")
    assert _unusable(ValueError("broken"), {"dtype": "auto", "trust_remote_code": False}) is None


def test_what_transformers_ignores_is_taken(chain_folder):
    mas = AutoModelForCausalLM.from_pretrained(chain_folder, trust_remote_code=True, low_cpu_mem_usage=True)
    assert mas.config.decoding_role == "solver"


@pytest.mark.parametrize("prompts", [3, True, b"x", [1]], ids=repr)
def test_prompts_that_are_no_path_open_nothing(prompts, chain, monkeypatch):
    monkeypatch.setattr("builtins.open", None)
    with pytest.raises(InputError, match="prompts"):
        chain.solve("Why?", prompts=prompts)
