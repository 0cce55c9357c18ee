"""The system at the root of the repository: what the README says of it, on a few fresh questions."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from recursivemas import cli, fetch
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.evaluation.demo import REAL
from recursivemas.evaluation.measure import evaluate
from recursivemas.evaluation.results import markdown, read_results
from recursivemas.prompts_recursivemas import input_fields
from recursivemas.system_loader import ROOT, load_mas_system, read_style
from recursivemas.tasks import arithmetic, split_facts
from safetensors import safe_open
from safetensors.torch import load_file

RESULTS = ROOT / "evaluation" / "results" / "sequential.json"


@pytest.fixture(scope="module")
def mas():
    return load_mas_system()


@pytest.fixture(scope="module")
def figures(mas):
    rows = arithmetic.generate(48, levels=range(1, 13), seed=31)
    return rows, {
        (row["mode"], row["num_rounds"]): row
        for row in evaluate(mas, rows, ["latent", "text", "alone"], [1, 2, 3, 4], group_by="num_operators")
    }


@pytest.mark.parametrize("num_rounds", [1, 2, 3, 4])
def test_latents_solve_what_text_solves_and_every_round_three_operators_more(figures, num_rounds):
    rows, by_setting = figures
    latent, text = by_setting["latent", num_rounds], by_setting["text", num_rounds]
    solvable = sum(row["num_operators"] <= 3 * num_rounds for row in rows) / len(rows)
    assert latent["accuracy"] >= 0.98 * text["accuracy"]
    assert latent["accuracy"] == pytest.approx(solvable, abs=1 / len(rows))


def test_the_decoding_agent_alone_solves_only_single_steps(figures):
    groups = figures[1]["alone", 1]["by_group"]
    assert groups["1"] == [4, 4] and sum(right for right, _ in groups.values()) == 4


def test_each_agent_has_its_own_architecture_and_vocabulary(mas):
    assert len({agent.model.config.model_type for agent in mas.agents.values()}) == 3
    vocabularies = [agent.tokenizer.get_vocab() for agent in mas.agents.values()]
    assert len({json.dumps(vocabulary, sort_keys=True) for vocabulary in vocabularies}) == 3


def test_weights_are_float32_safetensors_of_less_than_15_megabytes():
    files = [*(ROOT / "agents").rglob("*.safetensors"), *(ROOT / "links").glob("*.safetensors")]
    assert len(files) == 3 + 6
    assert sum(path.stat().st_size for path in files) < 15e6
    for path in files:
        with safe_open(path, "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float32}  # noqa: SIM118


def test_the_figures_of_the_readme_are_the_stored_results():
    assert markdown(read_results(RESULTS)) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_clone_itself_answers_in_a_fresh_process(tmp_path):
    """AutoModel, AutoTokenizer and pipeline on the repository's root; the loader imported as in a clone."""
    code = """
import sys
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
root = sys.argv[1]
pipe = pipeline("text-generation", model=root, trust_remote_code=True)
print(pipe("3+5*2-4", return_full_text=False)[0]["generated_text"])
chats = [[{"role": "user", "content": q}] for q in ("3+5*2-4", "7*8-1+5*3")]
print(pipe(chats, batch_size=2)[1][0]["generated_text"][-1]["content"])
mas = AutoModelForCausalLM.from_pretrained(root, trust_remote_code=True)
assert type(mas) is type(AutoModel.from_pretrained(root, trust_remote_code=True))
tokenizer = AutoTokenizer.from_pretrained(root, trust_remote_code=True)
inputs = tokenizer("3+5*2-4", return_tensors="pt")
print(tokenizer.decode(mas.generate(**inputs)[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
sys.path.insert(0, root)
from system_loader import load_mas_system
print(load_mas_system().solve(["3+5*2-4"])[0].text)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, str(ROOT)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["2", "0", "2", "2"]


def test_the_demo_shows_the_answers_what_rounds_changed_and_the_cost(capsys):
    assert cli.main(["demo"]) == 0
    output = capsys.readouterr().out
    for question in ("5+6*0", "1*1-9+8+0+6", "6+3+8-0*1+9+9*6+3"):
        truth = arithmetic.reduction_chain(question, 12)[-1]
        assert f"{question} = ?" in output and f"r = 3: {truth}   (truth: {truth})" in output
    assert "round 1: thought 9+8-0*1+9+9*6+3 → 7-0*1+9+9*6+3 → 7*1+9+9*6+3" in output
    assert "latent positions" in output


def test_the_system_of_a_real_model_names_its_base_and_changes_nothing_on_the_way():
    folder = ROOT / "systems" / "smollm2"
    config = RecursiveMASConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    topology = config.validate_system()
    assert {entry["source"] for entry in config.agents.values()} == {fetch.MODELS["smollm2"].repository}
    assert not config.control_tokens and config.latent_halting
    assert set(input_fields(config.prompts)) == {"facts", "question"}
    assert config.prompts == read_style("reading")["prompts"] == split_facts.PROMPTS
    for link, entry in zip(topology.links, config.links, strict=True):
        weights = load_file(folder / "links" / f"{link.name}.safetensors")
        width = config.agents[link.source]["hidden_size"]
        assert (
            entry["snap"]
            and torch.equal(weights["proj1.weight"], torch.eye(width))
            and not weights["proj1.bias"].any()
        )
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 10_000_000


def test_a_trained_link_of_the_real_model_ships_beside_its_system_and_changes_nothing_else():
    configs = []
    for name in ("smollm2", "smollm2-fixed"):
        config = json.loads((ROOT / "systems" / name / "config.json").read_text(encoding="utf-8"))
        inner = [agent["inner_link"].pop("special_tokens", True) for agent in config["agents"].values()]
        ways = {key: config.pop(key) for key in ("latent_halting", "control_tokens")}
        configs.append((config["links"].pop(0)["kind"], ways, inner, config))
    (_, _, _, plain), (kind, ways, inner, trained) = configs
    assert trained == plain and kind == "outer_res_adapter"
    assert ways == {"latent_halting": False, "control_tokens": True} and inner == [True, True]
    folder = ROOT / "systems" / "smollm2-fixed"
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 10_000_000


@pytest.mark.slow
@pytest.mark.parametrize("system", REAL)
def test_the_real_models_latents_carry_what_its_text_carries(system, capsys):
    """Fetches the model where it is not here; minutes on two slow cores."""
    assert cli.main(["demo", "--system", system]) == 0
    rows = re.findall(r"^(latents|text|nothing) +(\d+) of 12", capsys.readouterr().out, re.M)
    right = {name: int(count) for name, count in rows}
    assert right["latents"] >= max(3, right["text"] - 3) and right["nothing"] <= 1
