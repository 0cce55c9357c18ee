"""`push_to_hub` of a system and of an agent: the whole layout in one commit, private unless said; or nothing."""

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
from loopback_hub import LoopbackHub, Worker
from recursivemas.errors_recursivemas import ArgumentError, InputError
from recursivemas.pushing_recursivemas import save_arguments
from recursivemas.saving_recursivemas import pinned
from recursivemas.system_loader import load_mas_system
from tiny import tiny_chain

WRONG = {
    "an unknown argument": ({"max_shard_sise": "1MB"}, ArgumentError, "did you mean `max_shard_size`"),
    "pickles": ({"safe_serialization": False}, ArgumentError, "safetensors"),
    "a name that the Hub does not take": ({"push_to_hub": True, "repo_id": "a/b/c"}, InputError, "repo_id"),
    "no name": ({"push_to_hub": True, "repo_id": ""}, InputError, "repo_id"),
    "pushing that nobody asked for": ({"repo_id": "me/mas"}, ArgumentError, "push_to_hub=True"),
    "a variant that leads out": ({"variant": "../x"}, ArgumentError, "variant"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_argument_that_cannot_be_used_is_refused_before_anything_is_written(wrong, chain, tmp_path):
    arguments, kind, named = WRONG[wrong]
    for door in (chain.save_pretrained, chain.agents["critic"].save_pretrained):
        with pytest.raises(kind, match=named):
            door(tmp_path / "saved", **arguments)
    assert not (tmp_path / "saved").exists()


def test_where_it_is_pushed_is_private_unless_said():
    assert save_arguments({"push_to_hub": True}, "some/where/mine", "x")[1].repo_id == "mine"
    assert save_arguments({"token": "t", "max_shard_size": "1MB"}, "x", "x") == ({"max_shard_size": "1MB"}, None)


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"variant": "half"}], ids=str)
def test_shards_and_variants_are_written_and_read_again(options, chain, tmp_path):
    expected = chain.solve("Why?", max_new_tokens=4)[0].text
    chain.save_pretrained(tmp_path / "saved", **options)
    files = sorted(path.name for path in (tmp_path / "saved" / "agents" / "critic").glob("model*"))
    reading = {"variant": options["variant"]} if "variant" in options else {}
    assert (len(files) > 2) if not reading else files == ["model.half.safetensors"]
    mas = load_mas_system(tmp_path / "saved", **reading)
    assert mas.solve("Why?", max_new_tokens=4)[0].text == expected
    mas.save_pretrained(tmp_path / "saved", max_shard_size="5GB")  # into the folder that it came from
    assert [path.name for path in (tmp_path / "saved" / "agents" / "critic").glob("model*")] == ["model.safetensors"]
    assert load_mas_system(tmp_path / "saved").solve("Why?", max_new_tokens=4)[0].text == expected


def test_a_process_that_is_not_the_main_one_writes_nothing(chain, tmp_path):
    assert chain.save_pretrained(tmp_path / "saved", is_main_process=False) is None
    assert not (tmp_path / "saved").exists()


# What the Hub prints on the page of a model with code of its own, under "Use this model"
SNIPPETS = """
from transformers import pipeline
pipe = pipeline("text-generation", model="me/mas", trust_remote_code=True)
messages = [{"role": "user", "content": "Who are you?"}]
pipe(messages)
from transformers import AutoTokenizer, AutoModelForCausalLM
tokenizer = AutoTokenizer.from_pretrained("me/mas", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("me/mas", trust_remote_code=True, dtype="auto")
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device)
outputs = model.generate(**inputs, max_new_tokens=40)
print(tokenizer.decode(outputs[0][inputs["input_ids"].shape[-1]:]))
"""
PUSHES = """
import json
from transformers import AutoModelForCausalLM
mas = AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=True)
oids = [mas.push_to_hub("me/mas", max_shard_size="20KB", commit_message="First").oid]
oids += [mas.push_to_hub("me/mas", tags=["new"]).oid]
oids += [mas.save_pretrained({other!r}, push_to_hub=True, private=False).oid]
oids += [mas.agents["critic"].push_to_hub("me/critic").oid]
try:
    mas.push_to_hub("me/broken", max_shard_sise="1MB")
except Exception as error:
    print(type(error).__name__)
again = AutoModelForCausalLM.from_pretrained("me/mas", trust_remote_code=True)
print(again.solve("Why?", max_new_tokens=4)[0].text == mas.solve("Why?", max_new_tokens=4)[0].text)
"""


@pytest.mark.slow
def test_a_push_uploads_the_whole_layout_and_leaves_what_is_not_its_own(chain_folder, tmp_path):
    """A system whose critic lies in a folder of this machine; the card is edited between two pushes."""
    system = shutil.copytree(chain_folder, tmp_path / "system")
    critic = shutil.move(system / "agents" / "critic", tmp_path / "critic")
    config = json.loads((system / "config.json").read_text())
    config["agents"]["critic"]["source"] = str(critic)
    (system / "config.json").write_text(json.dumps(config))
    with LoopbackHub() as hub, Worker(hub, tmp_path / "client") as client:
        code = PUSHES.format(folder=str(system), other=str(tmp_path / "other"))
        head, tail = code.split('oids += [mas.push_to_hub("me/mas", tags')
        status, output = client.block("python", head)
        assert status == 0, output
        (first,) = [hub.repos["me/mas"].commits[-1][1]]
        edited = first["README.md"] + b"\nEdited on the website.\n"
        hub.repos["me/mas"].commit({**first, "README.md": edited, "picture.png": b"x", "links/old.safetensors": b"x"})
        setup = head.partition("oids = ")[0] + "oids = []\n"
        status, output = client.block("python", setup + 'oids += [mas.push_to_hub("me/mas", tags' + tail)
        assert status == 0 and output.splitlines()[-2:] == ["ArgumentError", "True"], output
        status, output = client.block("python", SNIPPETS)
        assert status == 0, output
        assert set(hub.repos) == {"me/mas", "tester/other", "me/critic"}
        assert [hub.repos[name].private for name in ("me/mas", "tester/other", "me/critic")] == [True, False, True]
        second = hub.repos["me/mas"].commits[-1][1]
        assert {"agents/critic/model.safetensors.index.json", "links/planner.safetensors"} <= set(first)
        assert str(tmp_path).encode() not in second["config.json"] and "modeling_recursivemas.py" in second
        assert second["README.md"].endswith(b"Edited on the website.\n") and b"- new" in second["README.md"]
        assert "picture.png" in second and "links/old.safetensors" not in second
        shards = [name for name in second if name.startswith("agents/critic/model")]
        assert shards == ["agents/critic/model.safetensors"]
        assert "inner_link.safetensors" in hub.repos["me/critic"].commits[-1][1]


def test_agents_from_the_hub_are_named_at_the_commit_that_was_loaded(chain):
    config = copy.deepcopy(chain.config)
    config.agents["planner"]["source"], config.agents["critic"]["source"] = "org/one", "org/two"
    config.agents["critic"]["revision"] = "v1"
    model = SimpleNamespace(name_or_path=f"/cache/models--x/snapshots/{'a' * 40}")
    agents = dict.fromkeys(chain.agents, SimpleNamespace(model=model))
    found = {role: entry.get("revision") for role, entry in pinned(config, agents).agents.items()}
    assert found == {"planner": "a" * 40, "critic": "a" * 40, "solver": None}
    assert config.agents["planner"].get("revision") is None


def test_nothing_is_created_where_saving_fails(tmp_path, monkeypatch):
    def create(*arguments, **options):
        raise AssertionError("created")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    mas = tiny_chain()
    with pytest.raises(Exception, match=r"no weights to save"):
        mas.save_pretrained(tmp_path / "saved", state_dict={}, push_to_hub=True)
