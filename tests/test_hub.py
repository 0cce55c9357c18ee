"""A system is a model repository wherever it lies: unmodified tools load it, and everything reaches its agents."""

import copy
import io
import json
import pickle
import shutil

import pytest
import torch
from recursivemas import cli
from recursivemas.chats_recursivemas import CHAT_TEMPLATES, split_opening
from recursivemas.configuration_recursivemas import AUTO_MAP
from recursivemas.engine_recursivemas import Run
from recursivemas.errors_recursivemas import InputError
from recursivemas.link_building_recursivemas import build_link
from recursivemas.sources_recursivemas import write_code
from recursivemas.system_loader import ROOT, load_mas_system
from tiny import TRANSFORMERS
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

SYSTEMS = sorted(path.parent for path in ROOT.glob("systems/*/config.json"))
CODE = sorted(path.name for path in ROOT.glob("*_recursivemas.py"))


# Every folder loads as it lies


@pytest.mark.parametrize("folder", SYSTEMS, ids=lambda folder: folder.name)
def test_every_shipped_system_holds_a_link_to_each_file_of_the_code(folder):
    """Copies of none: after a module was added, removed or renamed, `make code-links`."""
    links = {path.name: str(path.readlink()) if path.is_symlink() else "a file" for path in folder.glob("*.py")}
    assert links == {name: f"../../{name}" for name in CODE}, "run `make code-links`"


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mixture", "deliberation")]


@pytest.mark.parametrize("name", ["distillation", *SLOW])
def test_a_shipped_system_loads_by_the_auto_classes_as_it_lies(name):
    folder, question = str(ROOT / "systems" / name), "Why?"
    pipe = pipeline("text-generation", model=folder, trust_remote_code=True)
    expected = load_mas_system(folder).solve([question], num_rounds=1)[0].text
    assert pipe(question, return_full_text=False, num_rounds=1)[0]["generated_text"] == expected
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer([question], return_tensors="pt")
    ids = pipe.model.generate(**inputs, num_rounds=1)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) == expected


def test_a_system_that_auto_classes_loaded_is_saved_with_the_same_entries(chain_folder, tmp_path):
    mas = AutoModelForCausalLM.from_pretrained(chain_folder, trust_remote_code=True)
    mas.save_pretrained(tmp_path, copy_agents=True)
    first, again = (json.loads((folder / "config.json").read_text()) for folder in (chain_folder, tmp_path))
    assert again["auto_map"] == first["auto_map"] == AUTO_MAP


def test_code_is_never_written_through_a_link(tmp_path):
    """A folder of links to the modules, one of which has changed since: the module that it points to stays."""
    (tmp_path / "root").mkdir()
    (tmp_path / "system").mkdir()
    for name in CODE:
        shutil.copy(ROOT / name, tmp_path / "root")
        (tmp_path / "system" / name).symlink_to(f"../root/{name}")
    (tmp_path / "root" / "errors_recursivemas.py").write_text("older\n")
    write_code(tmp_path / "system", "modeling_recursivemas.py")
    assert (tmp_path / "root" / "errors_recursivemas.py").read_text() == "older\n"
    assert [path.name for path in sorted(tmp_path.glob("system/*")) if not path.is_symlink()] == [
        "errors_recursivemas.py"
    ]
    assert (tmp_path / "system" / "errors_recursivemas.py").read_bytes() == (
        ROOT / "errors_recursivemas.py"
    ).read_bytes()


@pytest.mark.skipif(
    TRANSFORMERS < (5, 24), reason="transformers' server before 5.24 looks for classes in transformers only"
)
def test_the_unmodified_server_of_transformers_loads_a_system(chain_folder):
    serving = pytest.importorskip("transformers.cli.serving.model_manager")
    manager = serving.ModelManager(device="cpu", trust_remote_code=True, attn_implementation="eager")
    mas = manager._load_model(f"{chain_folder}@main")
    assert type(mas).__name__ == "RecursiveMASModel"


# How agents are loaded is said once, at any door, for all of them or by role


def attention(mas):
    return {role: agent.model.config._attn_implementation for role, agent in mas.agents.items()}


def by_pipeline(folder, **options):
    return pipeline("text-generation", model=folder, trust_remote_code=True, model_kwargs=options).model


def by_auto_class(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


@pytest.mark.parametrize("door", [by_auto_class, by_pipeline, load_mas_system])
def test_how_agents_attend_is_said_at_every_door(door, chain_folder):
    roles = ("planner", "critic", "solver")
    assert attention(door(str(chain_folder), attn_implementation="eager")) == dict.fromkeys(roles, "eager")
    mas = door(str(chain_folder), attn_implementation={"critic": "eager"}, dtype={"solver": torch.float64})
    assert attention(mas) == {"planner": "sdpa", "critic": "eager", "solver": "sdpa"}
    assert {role: agent.dtype for role, agent in mas.agents.items()}["solver"] == torch.float64
    assert "dtype" not in mas.config.to_diff_dict() and "attn_implementation" not in mas.config.to_json_string()


@pytest.mark.parametrize("door", [by_auto_class, load_mas_system])
def test_quantisation_and_memory_reach_the_agents_that_they_are_meant_for(door, chain_folder, monkeypatch):
    """What is asked of transformers for each agent; a quantizer's library is not needed for that."""
    asked, load = {}, AutoModelForCausalLM.from_pretrained

    def spy(place, **options):
        if "agents" not in str(place):
            return load(place, **options)
        role = str(place).rstrip("/").rpartition("/")[2]
        asked[role] = options
        for name in ("quantization_config", "max_memory", "device_map"):
            options = {key: value for key, value in options.items() if key != name}
        return load(place, **options)

    settings = {"quant_method": "quanto", "weights": "int8"}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    door(str(chain_folder), quantization_config=settings, max_memory={0: "1GB"})
    assert [asked[role]["quantization_config"] for role in asked] == [settings] * 3
    assert [asked[role]["max_memory"] for role in asked] == [{0: "1GB"}] * 3
    door(str(chain_folder), quantization_config={"planner": settings}, device_map={"critic": {"": "cpu"}})
    assert {role: options.get("quantization_config") for role, options in asked.items()} == {
        "planner": settings, "critic": None, "solver": None
    }  # fmt: skip
    assert [role for role, options in asked.items() if "device_map" in options] == ["critic"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"attn_implementation": {"critc": "eager"}},
            r"attn_implementation(?s:.*)critc(?s:.*)did you mean `critic`",
        ),
        ({"dtype": {"critic": "float32", "other": "float32"}}, r"where: dtype(?s:.*)found: other"),
        ({"quantization_config": {"critic": {}, "other": {}}}, r"where: quantization_config(?s:.*)found: other"),
        ({"device_map": {"planner": "cpu", "model.layers": "cpu"}}, r"where: device_map(?s:.*)found: model.layers"),
    ],
    ids=str,
)
def test_a_role_that_is_none_is_refused_in_every_option(options, named, chain_folder):
    for door in (by_auto_class, load_mas_system):
        with pytest.raises(Exception, match=named) as caught:
            door(str(chain_folder), **options)
        assert type(caught.value).__name__ == "InputError"


def test_the_command_line_says_how_agents_are_loaded(chain_folder, capsys, monkeypatch):
    asked = {}

    def spy(*names, **options):
        asked.update(options)
        raise InputError("Enough.")

    monkeypatch.setattr("recursivemas.evaluation.commands.load_mas_system", spy)
    loading = '{"attn_implementation": {"critic": "eager"}, "quantization_config": {"quant_method": "quanto"}}'
    assert cli.main(["solve", "Why?", "--system", str(chain_folder), "--loading", loading]) == 2
    assert asked["attn_implementation"] == {"critic": "eager"}
    assert asked["quantization_config"] == {"quant_method": "quanto"}
    for wrong, named in (("{", "--loading"), ('{"atn": 1}', "attn_implementation"), ("[]", "no object")):
        assert cli.main(["solve", "Why?", "--system", str(chain_folder), "--loading", wrong]) == 2
        assert named in capsys.readouterr().err


# A loaded system is an ordinary object


def by_torch(mas):
    file = io.BytesIO()
    torch.save(mas, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda mas: pickle.loads(pickle.dumps(mas)), by_torch])
@pytest.mark.parametrize("kind", ["ln_res_adapter", "expected_embedding"])
def test_a_copy_of_a_loaded_system_answers_alike_and_shares_nothing(copied, kind):
    from tiny import tiny_chain

    mas = tiny_chain()
    if kind == "expected_embedding":
        mas.set_link("critic", build_link({}, where="", in_features=mas.agents["critic"].hidden_size, kind=kind))
    expected = mas.solve("Why?", max_new_tokens=4)[0].text
    other = copied(mas)
    with torch.no_grad():
        for parameter in mas.parameters():
            parameter.zero_()
    assert other.solve("Why?", max_new_tokens=4)[0].text == expected


def test_training_mode_leaves_frozen_agents_as_they_answer():
    from tiny import tiny_chain

    mas = tiny_chain()
    mas.train()
    assert mas.training and not any(part.training for agent in mas.agents.values() for part in agent.model.modules())
    mas.agents["critic"].model.requires_grad_(True)
    mas.train()
    assert mas.agents["critic"].model.training and not mas.agents["planner"].model.training


def test_a_system_says_what_to_use_in_place_of_a_forward_pass(chain):
    with pytest.raises(InputError, match=r"no forward pass(?s:.*)`generate` or `solve`"):
        chain(torch.tensor([[1]]))


# Chats


def ids_of_chat(mas, chat, **options):
    return mas.tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True, **options)


def said(role, content):
    return {"role": role, "content": content}


ASKED = [said("user", "3+5*2-4"), said("assistant", "9"), said("user", "1+1")]


@pytest.mark.parametrize(
    ("chat", "whole", "last"),
    [
        ([said("user", " Why? ")], " Why? ", " Why? "),
        (ASKED, "User: 3+5*2-4\n\nAssistant: 9\n\nUser: 1+1", "1+1"),
        ([said("system", "Be brief."), *ASKED[2:]], "Be brief.\n1+1", "1+1"),
        ([said("user", "a"), said("user", "b")], "User: a\n\nUser: b", "b"),
        ([said("user", "a"), said("assistant", None), said("tool", "4")], "User: a\n\nAssistant: \n\nTool: 4", "a"),
        ([said("user", "a\x1eb"), said("assistant", "c\x1ed")], "a b\x1ec d", "a b\x1ec d"),
        ([said("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], "ab", "ab"),
    ],
)
def test_turns_of_a_chat_never_touch_each_other(chat, whole, last, chain):
    for template, expected in ((CHAT_TEMPLATES["whole"], whole), (CHAT_TEMPLATES["last"], last)):
        text = chain.tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
        assert text == expected
        text = chain.tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert text == expected


def test_a_chat_without_a_question_is_refused(chain):
    with pytest.raises(Exception, match="needs a message of the user"):
        chain.tokenizer.apply_chat_template([said("system", "Be brief.")], tokenize=False)


def test_the_systems_that_ship_answer_the_last_question_of_a_chat():
    pipe = pipeline("text-generation", model=str(ROOT), trust_remote_code=True)
    expected = load_mas_system().solve("3+5*2-4")[0].text
    for before in ([], [said("system", "Be brief.")], ASKED[1:], [said("user", "9-1"), said("assistant", "8")]):
        chat = [*before, said("user", "3+5*2-4")]
        assert pipe(chat)[0]["generated_text"][-1]["content"] == expected
    for folder in (ROOT, *SYSTEMS):
        conversation = json.loads((folder / "config.json").read_text())["conversation"]
        assert conversation == ("whole" if folder.name.startswith("smollm2") else "last")
        assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATES[conversation]


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("options", [{}, {"mode": "alone"}, {"num_beams": 2}], ids=str)
def test_a_prefilled_answer_is_continued(architecture, options):
    """Of a batch, one row with a start and one without: each as by itself, the latter as ever."""
    from tiny import tiny_chain

    mas = tiny_chain({"first": "qwen3", "second": architecture})
    plain, start = [said("user", "Why? <|im_end|>")], "So <|im_end|>: "
    whole = mas.generate(**ids_of_chat(mas, plain, add_generation_prompt=True), max_new_tokens=4, **options)
    given = ids_of_chat(mas, [*plain, said("assistant", start)], continue_final_message=True)
    assert split_opening(mas.tokenizer.decode(given["input_ids"][0], skip_special_tokens=False))[1] == start
    alone = mas.generate(**given, max_new_tokens=4, **options)
    texts = [plain[0]["content"], "".join([plain[0]["content"], "\x1e", start])]
    both = mas.tokenizer(texts, return_tensors="pt", padding=True)
    rows = mas.generate(**both, max_new_tokens=4, **options)[:, both["input_ids"].shape[1] :]
    assert torch.equal(rows[0], whole[0, -rows.shape[1] :]) and torch.equal(rows[1], alone[0, -rows.shape[1] :])
    if not options:  # by hand: the decoding agent's prompt, the start, and what its model writes next
        seen, settings = mas.agents["second"], mas.config.run_settings()
        prompt = Run(mas, ["Why? <|im_end|>"], settings, mas.generation_config).decoder_prompt(reuse=False)
        start_ids = torch.tensor([mas.renderers["second"].message_ids(start)])
        embeds = torch.cat([prompt.inputs_embeds, seen.embed(start_ids)], dim=1)
        with torch.no_grad():
            logits = seen.model(inputs_embeds=embeds, logits_to_keep=1).logits
        assert logits[0, -1].argmax() == rows[1, 0]


def test_a_pipeline_continues_a_prefilled_answer(chain_folder, chain):
    pipe = pipeline("text-generation", model=str(chain_folder), trust_remote_code=True)
    chat = [said("user", "Why?"), said("assistant", "Because")]
    found = pipe(chat, max_new_tokens=4)[0]["generated_text"]
    given = ids_of_chat(chain, chat, continue_final_message=True)
    new = chain.generate(**given, max_new_tokens=4)[0, given["input_ids"].shape[1] :]
    assert found == [chat[0], said("assistant", "Because" + chain.tokenizer.decode(new, skip_special_tokens=True))]


def test_the_start_of_an_answer_counts_among_the_positions(chain):
    limit = chain.agents[chain.config.decoding_role].position_limit
    given = ids_of_chat(chain, [said("user", "Why?"), said("assistant", "so " * limit)], continue_final_message=True)
    with pytest.raises(InputError, match="start of the answer"):
        chain.generate(**given, max_new_tokens=4)
