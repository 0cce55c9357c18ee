"""What the arguments of loading mean for each agent, and where a system and its parts may lie."""

import json
import shutil

import pytest
import torch
from recursivemas import sources_recursivemas
from recursivemas.errors_recursivemas import CheckpointError
from recursivemas.kernels_recursivemas import computes_half
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.system_loader import load_mas_system
from safetensors.torch import load_file

QUESTION = "How many apples are 12 + 3 apples?"
ROLES = ("planner", "critic", "solver")


def attention_of(mas):
    return {role: agent.model.config._attn_implementation for role, agent in mas.agents.items()}


@pytest.mark.parametrize(
    ("arguments", "eager"),
    [
        ({}, set()),
        ({"attn_implementation": "eager"}, set(ROLES)),
        ({"attn_implementation": {"critic": "eager"}}, {"critic"}),
        ({"agent_kwargs": {"attn_implementation": "eager"}}, set(ROLES)),
        ({"agent_kwargs": {"attn_implementation": "sdpa", "critic": {"attn_implementation": "eager"}}}, {"critic"}),
    ],
)
def test_an_argument_is_for_every_agent_or_by_role(chain_folder, arguments, eager):
    attention = attention_of(load_mas_system(chain_folder, **arguments))
    assert attention == {role: "eager" if role in eager else "sdpa" for role in ROLES}


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_dtype_is_that_of_the_agents_and_leaves_the_links_as_they_are(chain_folder, name):
    mas = RecursiveMASModel.from_pretrained(chain_folder, **{name: "bfloat16"})
    links = [*mas.outer_links.values(), *(agent.inner_link for agent in mas.agents.values())]
    assert {agent.dtype for agent in mas.agents.values()} == {mas.dtype} == {torch.bfloat16}
    assert {parameter.dtype for link in links for parameter in link.parameters()} == {torch.float32}


@pytest.fixture(scope="module")
def half_folder(chain_folder, tmp_path_factory):
    """The system with agents that are stored in 16 bits, but for one."""
    folder = tmp_path_factory.mktemp("half") / "system"
    dtypes = {"planner": "bfloat16", "critic": "float16", "solver": "float32"}
    load_mas_system(chain_folder, dtype=dtypes).save_pretrained(folder)
    return folder


def files_of(folder):
    """Of each agent: its weights as they are stored, and the dtype that config.json states."""
    folders = {role: folder / "agents" / role for role in ROLES}
    return {
        role: (load_file(path / "model.safetensors"), json.loads((path / "config.json").read_text())["dtype"])
        for role, path in folders.items()
    }


def same_files(one, other):
    return all(
        one[role][1] == other[role][1]
        and one[role][0].keys() == other[role][0].keys()
        and all(torch.equal(value, other[role][0][key]) for key, value in one[role][0].items())
        for role in ROLES
    )


@pytest.mark.parametrize(
    ("fast", "options", "planner", "critic"),
    [
        (True, {}, torch.bfloat16, torch.float16),
        (False, {}, torch.float32, torch.float32),
        (False, {"device": "cpu"}, torch.float32, torch.float32),
        (False, {"device": {"planner": "meta"}}, torch.bfloat16, torch.float32),
        (False, {"device_map": {"critic": "cpu"}}, torch.float32, torch.float16),
        (False, {"device": "meta", "offload": "cpu"}, torch.bfloat16, torch.float16),
        (False, {"dtype": {"planner": "bfloat16"}}, torch.bfloat16, torch.float32),
        (False, {"dtype": "float16"}, torch.float16, torch.float16),
    ],
)
def test_auto_is_float32_where_16_bits_are_emulated(half_folder, monkeypatch, fast, options, planner, critic):
    monkeypatch.setattr("recursivemas.bases_recursivemas.computes_half", lambda: fast)
    agents = load_mas_system(half_folder, **options).agents
    assert (agents["planner"].dtype, agents["critic"].dtype) == (planner, critic)
    if options.get("dtype") != "float16":
        assert agents["solver"].dtype == torch.float32


def test_auto_computes_with_the_stored_weights_and_saves_them_as_they_were(half_folder, monkeypatch, tmp_path):
    monkeypatch.setattr("recursivemas.bases_recursivemas.computes_half", lambda: False)
    mas, wide = load_mas_system(half_folder), load_mas_system(half_folder, dtype="float32")
    assert all(torch.equal(wide.state_dict()[key], value) for key, value in mas.state_dict().items())
    mas.save_pretrained(tmp_path / "saved")
    mas.agents["planner"].save_pretrained(tmp_path / "agent")
    before, after = files_of(half_folder), files_of(tmp_path / "saved")
    assert same_files(before, after)
    agent = load_file(tmp_path / "agent" / "model.safetensors")
    assert all(torch.equal(value, agent[key]) for key, value in before["planner"][0].items())
    assert json.loads((tmp_path / "agent" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {agent.dtype for agent in mas.agents.values()} == {torch.float32}, "saving changes nothing here"
    mas.agents["planner"].model.to(torch.float16)
    mas.save_pretrained(tmp_path / "told")
    assert files_of(tmp_path / "told")["planner"][1] == "float16", "what was asked for is written"


def test_the_processor_says_whether_it_has_bfloat16(monkeypatch):
    for capabilities, expected in (
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=capabilities: known, raising=False)
        assert computes_half() == expected


def test_only_the_named_agents_have_weights(chain, chain_folder):
    mas = load_mas_system(chain_folder, only=["solver"])
    assert {role: agent.device.type for role, agent in mas.agents.items()} == {
        "planner": "meta", "critic": "meta", "solver": "cpu"
    }  # fmt: skip
    alone = {"mode": "alone", "max_new_tokens": 4}
    assert mas.solve(QUESTION, **alone)[0].text == chain.solve(QUESTION, **alone)[0].text
    for role, agent in mas.agents.items():
        assert agent.eos_token_ids == chain.agents[role].eos_token_ids


def test_a_system_may_lie_in_a_folder_of_a_repository(chain, chain_folder, tmp_path):
    shutil.copytree(chain_folder, tmp_path / "systems" / "chain")
    mas = RecursiveMASModel.from_pretrained(tmp_path, subfolder="systems/chain")
    assert all(torch.equal(mas.state_dict()[key], value) for key, value in chain.state_dict().items())


def test_an_agent_may_lie_in_any_folder_of_its_repository(chain, chain_folder, tmp_path):
    folder = shutil.copytree(chain_folder, tmp_path / "system")
    (folder / "agents" / "critic").rename(folder / "the-critic")
    config = json.loads((folder / "config.json").read_text())
    config["agents"]["critic"]["source"] = "./the-critic"
    (folder / "config.json").write_text(json.dumps(config))
    mas = load_mas_system(folder)
    assert all(torch.equal(mas.state_dict()[key], value) for key, value in chain.state_dict().items())
    mas.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "agents" / "critic" / "model.safetensors").is_file()


def test_what_chat_templates_get_reaches_every_agent(chain_folder):
    thought = "<think>\n\n</think>"
    by_default, thinking = (
        load_mas_system(chain_folder, **settings) for settings in ({}, {"chat_template_kwargs": {}})
    )
    assert thought in by_default.renderers["planner"].render(None, "Why?")
    assert thought not in thinking.renderers["planner"].render(None, "Why?")


def test_tools_find_in_the_configuration_what_they_ask_of_the_decoding_agent(chain):
    agent = chain.agents["solver"]
    mirrored = (chain.config.vocab_size, chain.config.max_position_embeddings, chain.config.bos_token_id)
    assert mirrored == (len(agent.tokenizer), 1024, agent.tokenizer.bos_token_id)
    assert (chain.config.eos_token_id, chain.config.pad_token_id) == (agent.eos_token_ids, agent.pad_token_id)
    assert (chain.device, chain.dtype) == (agent.device, agent.dtype)
    assert not hasattr(chain, "init_continuous_batching"), "it would bypass the recursion"


@pytest.mark.parametrize(
    ("function", "read"),
    [("cached_file", lambda source: source.find("config.json")), ("snapshot_download", lambda s: s.fetch(("*",)))],
)
def test_a_connection_that_breaks_is_one_clear_error(monkeypatch, function, read):
    def broken(*_, **__):
        raise RemoteProtocolError("Server disconnected without sending a response.")

    monkeypatch.setattr(sources_recursivemas, function, broken)
    with pytest.raises(CheckpointError, match=r"(?s)cannot be read.*org/name.*RemoteProtocolError: Server disc"):
        read(sources_recursivemas.Source("org/name"))


class RemoteProtocolError(Exception):
    """As that of the Hub client's HTTP library: no `OSError`."""
