"""A tokenizer may know tokens that its model has no embedding for, as long as no prompt can hold one."""

import pytest
from recursivemas import cli
from recursivemas.errors_recursivemas import CheckpointError, InputError
from recursivemas.system_loader import load_mas_system
from recursivemas.training.init_links import agent_entry, load_agent
from tiny import tiny_agent, tiny_chain

SURPLUS = "<image_soft_token>"


def saved_agent(folder, special=True, in_template=False):
    """A model whose tokenizer has one token more than embeddings, as Gemma 3 of 1B and 270M."""
    agent = tiny_agent("gemma3_text", "learner")
    size = agent.get_input_embeddings().num_embeddings
    assert len(agent.tokenizer) == size
    agent.tokenizer.add_tokens([SURPLUS], special_tokens=special)
    if in_template:
        agent.tokenizer.chat_template = SURPLUS + agent.tokenizer.chat_template
    agent.model.save_pretrained(folder)
    agent.tokenizer.save_pretrained(folder)
    return size


def test_a_token_that_no_prompt_holds_disturbs_nobody(tmp_path, chain_folder):
    size = saved_agent(tmp_path / "learner")
    output = tmp_path / "system"
    arguments = ["init-links", "--style", "distillation", "--agent", f"expert={chain_folder}/agents/critic"]
    arguments += ["--agent", f"learner={tmp_path}/learner", "--output", str(output), "--no-probe"]
    assert cli.main(arguments) == 0
    mas = load_mas_system(output)
    assert len(mas.agents["learner"].tokenizer) == size + 1
    assert mas.solve([f"Why {SURPLUS}?"], max_new_tokens=2)
    mas.config.prompts["learner"]["default"]["first"] += SURPLUS
    with pytest.raises(InputError, match=rf"agent learner(?s:.*)token {size}, '{SURPLUS}'"):
        mas.solve(["Why?"], num_rounds=2, max_new_tokens=2)


@pytest.mark.parametrize("kind", [{"special": False}, {"in_template": True}], ids=str)
def test_a_token_that_prompts_can_hold_is_refused_by_every_door(kind, tmp_path):
    saved_agent(tmp_path / "learner", **kind)
    mas = tiny_chain({"learner": "gemma3_text", "other": "llama"})
    mas.save_pretrained(tmp_path / "system")
    config = type(mas.config)(agents={"learner": agent_entry(str(tmp_path / "learner"))})
    with pytest.raises(CheckpointError, match=rf"agent learner(?s:.*){SURPLUS}"):
        load_agent(config, "learner", tmp_path)
    for file in (tmp_path / "learner").iterdir():
        (tmp_path / "system" / "agents" / "learner" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=rf"agent learner(?s:.*){SURPLUS}"):
        load_mas_system(tmp_path / "system")
