"""A system is a model repository wherever it lies: unmodified tools load it, and everything reaches its agents."""

import copy
import io
import pickle
import shutil

import pytest
import torch
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.links_recursivemas import build_link
from recursivemas.sources_recursivemas import write_code
from recursivemas.system_loader import ROOT, load_mas_system
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

SYSTEMS = sorted(path.parent for path in ROOT.glob("systems/*/config.json"))
CODE = sorted(path.name for path in ROOT.glob("*_recursivemas.py"))


# Every folder loads as it lies


@pytest.mark.parametrize("folder", SYSTEMS, ids=lambda folder: folder.name)
def test_every_shipped_system_holds_a_link_to_each_file_of_the_code(folder):
    """Copies of none: after a module was added, removed or renamed, `make code-links`."""
    links = {path.name: str(path.readlink()) if path.is_symlink() else "a file" for path in folder.glob("*.py")}
    assert links == {name: f"../../{name}" for name in CODE}, "run `make code-links`"


@pytest.mark.parametrize("name", ["distillation", "mixture", "deliberation"])
def test_a_shipped_system_loads_by_the_auto_classes_as_it_lies(name):
    folder, question = str(ROOT / "systems" / name), "Why?"
    pipe = pipeline("text-generation", model=folder, trust_remote_code=True)
    expected = load_mas_system(folder).solve([question], num_rounds=1)[0].text
    assert pipe(question, return_full_text=False, num_rounds=1)[0]["generated_text"] == expected
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer([question], return_tensors="pt")
    ids = pipe.model.generate(**inputs, num_rounds=1)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) == expected


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
