"""LoRA roles: one base, a role's own adapter beside it; as exact as the merged model, and no other role changes."""

import json
import shutil

import pytest
import torch
from recursivemas.adapters_recursivemas import AdaptedLayer, is_adapted
from recursivemas.errors_recursivemas import CheckpointError, ConfigError, InputError
from recursivemas.release import check as release_check
from recursivemas.system_loader import load_mas_system
from recursivemas.training.init_links import init_system
from recursivemas.upload import check, plan, probe, stage
from safetensors.torch import load_file, save_file
from test_sharing import QUESTIONS, SETTINGS, storages
from tiny import tiny_chain
from transformers import AutoModelForCausalLM

RANKS = {"q_proj": 3, "down_proj": 8, "o_proj": 1}  # each its own, and its own alpha
ALPHAS = {"q_proj": 7, "down_proj": 8, "o_proj": 2.5}


def write_adapter(model, folder, rslora=False, seed=5):
    """An adapter of random weights in PEFT's files; returns weight -> what it adds to it."""
    torch.manual_seed(seed)
    tensors, deltas = {}, {}
    for name, layer in model.named_modules():
        if (kind := name.rpartition(".")[2]) in RANKS:
            down = 0.3 * torch.randn(RANKS[kind], layer.in_features)
            up = 0.3 * torch.randn(layer.out_features, RANKS[kind])
            tensors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
            deltas[f"{name}.weight"] = ALPHAS[kind] / RANKS[kind] ** (0.5 if rslora else 1) * up @ down
    settings = {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "somewhere", "bias": "none"},
        **{"r": RANKS["o_proj"], "lora_alpha": ALPHAS["o_proj"], "use_rslora": rslora, "use_dora": False},
        **{"target_modules": list(RANKS), "lora_dropout": 0.1, "inference_mode": True, "modules_to_save": None},
        "rank_pattern": {key: RANKS[key] for key in ("q_proj", "down_proj")},
        "alpha_pattern": {key: ALPHAS[key] for key in ("q_proj", "down_proj")},
    }  # fmt: skip
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return deltas


def change(folder, **agents):
    content = json.loads((folder / "config.json").read_text())
    for role, entry in agents.items():
        content["agents"][role] |= entry
    (folder / "config.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A system whose critic and solver are the planner's base, each with an adapter; and the same of merged models."""
    place = tmp_path_factory.mktemp("lora")
    tiny_chain(dict.fromkeys(("planner", "critic", "solver"), "qwen3")).save_pretrained(place / "system")
    for role in ("critic", "solver"):
        shutil.rmtree(place / "system" / "agents" / role)
    shutil.copytree(place / "system", place / "merged")
    base = AutoModelForCausalLM.from_pretrained(place / "system" / "agents" / "planner")
    weights = load_file(place / "system" / "agents" / "planner" / "model.safetensors")
    for seed, role in enumerate(("critic", "solver")):
        deltas = write_adapter(base, place / "system" / "adapters" / role, role == "critic", seed)
        shutil.copytree(place / "merged" / "agents" / "planner", place / "merged" / "agents" / role)
        merged = {name: tensor + deltas.get(name, 0) for name, tensor in weights.items()}
        save_file(merged, place / "merged" / "agents" / role / "model.safetensors", {"format": "pt"})
        change(place / "system", **{role: {"source": "agents/planner", "adapter": {"source": f"./adapters/{role}"}}})
    (place / "merged" / "weights.json").unlink()
    return place


def assert_close_answers(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.text == other.text
        for key in other.latents:
            torch.testing.assert_close(one.latents[key], other.latents[key], atol=1e-4, rtol=1e-4)


def test_a_role_with_an_adapter_answers_as_the_merged_model_and_the_base_is_there_once(made):
    mas, merged = load_mas_system(made / "system"), load_mas_system(made / "merged")
    plain = load_mas_system(made / "system", only=["planner"]).agents["planner"].model
    layers = [m for role in ("critic", "solver") for m in mas.agents[role].model.modules()]
    adapters = [tensor for layer in layers if isinstance(layer, AdaptedLayer) for tensor in (layer.up, layer.down)]
    assert len(storages(mas)) == len(list(plain.parameters())) + len(adapters)
    assert mas.shared_bases == [("planner", "critic", "solver")] and merged.shared_bases == []
    expected = merged.solve(QUESTIONS, **SETTINGS)
    assert_close_answers(mas.solve(QUESTIONS, **SETTINGS), expected)
    for mode in ("text", "alone"):
        found, texts = (each.solve(QUESTIONS, mode=mode, max_new_tokens=4, message_tokens=4) for each in (mas, merged))
        assert [each.text for each in found] == [each.text for each in texts]
    # What the adapters change is nothing of the base's own role.
    hidden = torch.randn(2, 5, mas.agents["planner"].hidden_size, generator=torch.manual_seed(0))
    found, known, other = (s.agents[r].think(hidden, torch.ones(2, 5, dtype=torch.long), 3)
                           for s, r in ((mas, "planner"), (merged, "planner"), (mas, "critic")))  # fmt: skip
    assert torch.equal(found, known) and not torch.allclose(found, other, atol=1e-2)


def test_saving_writes_the_base_once_and_the_adapters_beside_it(made, tmp_path):
    mas = load_mas_system(made / "system")
    expected = mas.solve(QUESTIONS, **SETTINGS)
    mas.save_pretrained(tmp_path / "saved", copy_agents=True)
    files = {
        path.relative_to(tmp_path / "saved").as_posix() for path in (tmp_path / "saved").rglob("*/*/*.safetensors")
    }
    adapters = {f"adapters/{role}/adapter_model.safetensors" for role in ("critic", "solver")}
    assert files == {"agents/planner/model.safetensors", *adapters}
    assert "somewhere" not in (tmp_path / "saved" / "adapters" / "critic" / "adapter_config.json").read_text()
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    again = load_mas_system(tmp_path / "moved")
    for one, other in zip(again.solve(QUESTIONS, **SETTINGS), expected, strict=True):
        assert (
            all(torch.equal(one.latents[key], other.latents[key]) for key in other.latents) and one.text == other.text
        )
    weights = tmp_path / "moved" / "adapters" / "critic" / "adapter_model.safetensors"
    shutil.copy(tmp_path / "moved" / "adapters" / "solver" / "adapter_model.safetensors", weights)
    with pytest.raises(CheckpointError, match=r"two saves(?s:.*)adapters/critic"):
        load_mas_system(tmp_path / "moved")


def test_every_role_may_have_an_adapter(made, tmp_path):
    """The base is then no role's own, and is written all the same."""
    path = shutil.copytree(made / "system", tmp_path / "system")
    change(path, planner={"adapter": {"source": "./adapters/critic"}})
    (path / "weights.json").unlink()
    mas = load_mas_system(path)
    mas.save_pretrained(tmp_path / "saved", copy_agents=True)
    again = load_mas_system(tmp_path / "saved")
    expected = mas.solve(QUESTIONS, **SETTINGS)
    assert [each.text for each in again.solve(QUESTIONS, **SETTINGS)] == [each.text for each in expected]
    assert_close_answers(again.solve(QUESTIONS, **SETTINGS), expected)


def test_offload_moves_adapters_with_their_role_and_the_base_stays(made):
    expected = load_mas_system(made / "system").solve(QUESTIONS, **SETTINGS)
    mas = load_mas_system(made / "system", device="cpu:0", offload="cpu")
    assert_close_answers(mas.solve(QUESTIONS, **SETTINGS), expected)


def test_links_are_made_and_trained_for_a_role_with_an_adapter(made):
    """Gradients reach a link through an adapter, and neither base nor adapter is trained."""
    config = load_mas_system(made / "system", only=[]).config
    mas = init_system(type(config).from_dict(config.to_dict()), made / "system")
    assert is_adapted(mas.agents["critic"].model) and not is_adapted(mas.agents["planner"].model)
    latents = torch.randn(1, 4, mas.agents["critic"].hidden_size, requires_grad=True)
    mas.agents["critic"].encode(latents, None).sum().backward()
    assert latents.grad is not None and not any(p.requires_grad for p in mas.agents["critic"].parameters())


def settings_of(folder, **changes):
    path = folder / "adapters" / "critic" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights_of(folder, change):
    """Changes names and tensors of an adapter's file; what becomes `None` is left out."""
    path = folder / "adapters" / "critic" / "adapter_model.safetensors"
    changed = (change(name, tensor) for name, tensor in load_file(path).items())
    save_file({name: tensor.contiguous() for name, tensor in changed if tensor is not None}, path)


FIRST = "model.layers.0.self_attn.q_proj"
FAULTS = {
    "use_dora": lambda f: settings_of(f, use_dora=True),
    "peft_type": lambda f: settings_of(f, peft_type="LOHA"),
    "init_lora_weights": lambda f: settings_of(f, init_lora_weights="pissa"),
    "modules_to_save": lambda f: settings_of(f, modules_to_save=["lm_head"]),
    "are missing": lambda f: settings_of(f, target_modules=[*RANKS, "k_proj"]),
    "lora_alpha": lambda f: settings_of(f, lora_alpha="many"),
    "not whole": lambda f: weights_of(f, lambda name, t: (name, None if f"{FIRST}.lora_A" in name else t)),
    "does not fit": lambda f: weights_of(f, lambda name, t: (name, t[..., :-1] if "lora_A" in name else t)),
    "no linear layer": lambda f: weights_of(f, lambda name, t: (name.replace("layers.0.", "layers.77."), t)),
    "lm_head": lambda f: weights_of(f, lambda name, t: (name.replace(FIRST, "lm_head"), t)),
    "lora_embedding_A": lambda f: weights_of(
        f, lambda name, t: (name.replace("lora_A.weight", "lora_embedding_A"), t)
    ),
    "finite": lambda f: weights_of(f, lambda name, t: (name, t / 0)),
    "missing": lambda f: (f / "adapters" / "critic" / "adapter_model.safetensors").unlink(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_cannot_be_applied_as_it_is_is_refused_by_name(fault, made, tmp_path):
    path = shutil.copytree(made / "system", tmp_path / "system")
    FAULTS[fault](path)
    with pytest.raises(CheckpointError, match=rf"{fault}"):
        load_mas_system(path)


@pytest.mark.parametrize("adapter", ["somewhere", {"revision": "main"}, {"source": "../out"}], ids=str)
def test_an_adapter_is_a_place(adapter, made, tmp_path):
    path = shutil.copytree(made / "system", tmp_path / "system")
    change(path, critic={"adapter": adapter})
    with pytest.raises(ConfigError, match=r"adapter|source"):
        load_mas_system(path)


def test_a_merged_model_is_not_saved_beside_its_adapter(made, tmp_path):
    mas = load_mas_system(made / "system")
    mas.agents["critic"].model = load_mas_system(made / "merged", only=["critic"]).agents["critic"].model
    with pytest.raises(InputError, match=r"names an adapter(?s:.*)critic"):
        mas.save_pretrained(tmp_path / "saved")


@pytest.mark.filterwarnings("default::FutureWarning")  # PEFT's, of transformers' names
@pytest.mark.parametrize("role", ["critic", "solver"])
def test_an_adapter_computes_what_peft_computes(role, made):
    peft = pytest.importorskip("peft")
    mas = load_mas_system(made / "system")
    base = load_mas_system(made / "system", only=["planner"]).agents["planner"].model
    theirs = peft.PeftModel.from_pretrained(base, str(made / "system" / "adapters" / role)).eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        found, expected = mas.agents[role].model(input_ids=ids).logits, theirs(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("self_contained", [False, True])
def test_publishing_writes_the_adapters_repository_and_the_base_once(self_contained, made, tmp_path):
    options = plan.Options("my-org", "Tiny", "Why?", self_contained=self_contained)
    staged = stage.stage(str(made / "system"), tmp_path / "staged", options)
    kinds = [(each.role, each.kind, each.base_model) for each in staged.repositories[:-2]]
    base = "my-org/Tiny-Planner"
    assert kinds == [("planner", "agent", None), ("critic", "adapter", base), ("solver", "adapter", base)]
    folder = tmp_path / "staged" / "Tiny-Critic-Adapter"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    composite = tmp_path / "staged" / "Tiny"
    assert len(list(composite.rglob("model.safetensors"))) == self_contained
    mas = load_mas_system(composite, clones=None if self_contained else str(tmp_path / "staged"))
    assert mas.shared_bases == [("planner", "critic", "solver")]
    expected = load_mas_system(made / "system").solve(QUESTIONS, **SETTINGS)
    assert_close_answers(mas.solve(QUESTIONS, **SETTINGS), expected)
    found = probe.main("adapter", str(folder), "Why?", "")
    assert check.differences(check.expected_of(mas, staged, staged.adapters["critic"]), found) == []
    assert plan.load_plan(tmp_path / "staged").adapters.keys() == {"critic", "solver"}


def test_the_base_of_an_adapter_may_be_a_later_roles(made, tmp_path):
    path = shutil.copytree(made / "system", tmp_path / "system")
    change(path, planner={"adapter": {"source": "./adapters/critic"}}, solver={"adapter": None})
    staged = stage.stage(str(path), tmp_path / "staged", plan.Options("my-org", "Tiny", "Why?"))
    assert [each.kind for each in staged.repositories[:-2]] == ["adapter", "adapter", "agent"]
    assert {each.base_model for each in staged.adapters.values()} == {"my-org/Tiny-Solver"}
    mas = load_mas_system(tmp_path / "staged" / "Tiny", clones=str(tmp_path / "staged"))
    assert_close_answers(mas.solve(QUESTIONS, **SETTINGS), load_mas_system(path).solve(QUESTIONS, **SETTINGS))


def test_an_adapter_is_not_published_without_a_base(made, tmp_path):
    path = shutil.copytree(made / "system", tmp_path / "system")
    change(path, planner={"adapter": {"source": "./adapters/critic"}})
    with pytest.raises(InputError, match="published base"):
        stage.stage(str(path), tmp_path / "staged", plan.Options("my-org", "Tiny", "Why?"))
    with pytest.raises(InputError, match="--release-layout"):
        options = plan.Options("my-org", "Tiny", "Why?", release_layout=True)
        stage.stage(str(made / "system"), tmp_path / "staged", options)


def test_check_looks_at_adapters(made, tmp_path, monkeypatch):
    monkeypatch.setattr(release_check, "run_limited", lambda *args: ("", None))
    path = shutil.copytree(made / "system", tmp_path / "system")
    assert release_check.check_system(str(path))["ready"]
    (path / "adapters" / "critic" / "adapter_config.json").unlink()
    report = release_check.check_system(str(path))
    assert not report["ready"] and "missing: adapter_config.json" in release_check.describe(report)
