"""Publishing: what is staged, what the check refuses, what reaches a Hub, and what a stranger can do with it."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from recursivemas.system_loader import InputError, Link, RecursiveMASConfig, RecursiveMASModel, Topology
from recursivemas.upload import check, plan, push, scan, stage
from recursivemas.upload.cards import read_results
from safetensors.torch import load_file, save_file
from tiny import chain_links, tiny_chain

QUESTION = "What is the answer?"
RESULTS = {
    "date": "2026-01-31",
    "settings": {"style": "sequential", "data": "arithmetic", "num_questions": 7, "latent_steps": 5},
    "machine": {},
    "figures": [
        {"mode": "latent", "num_rounds": 2, "accuracy": 0.71429, "interval": [0.359, 0.918],
         "latent_positions": 20.0, "new_tokens": 3.0, "seconds": 0.1},
        {"mode": "alone", "num_rounds": 1, "accuracy": 0.14286, "interval": [0.026, 0.513],
         "latent_positions": 0.0, "new_tokens": 3.0, "seconds": 0.1},
    ],
}  # fmt: skip


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pair():
    system = tiny_chain({"expert": "qwen3", "learner": "llama"})
    system.config.style = "distillation"
    return system


@pytest.fixture(scope="module")
def workplace(pair, tmp_path_factory):
    """A folder with the system `pair` in `system`, its results, and the staged and checked `staged`."""
    folder = tmp_path_factory.mktemp("publishing")
    pair.save_pretrained(folder / "system")
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "results.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    options = stage.Options(
        "my-org",
        "Tiny",
        QUESTION,
        legacy=True,
        results=[str(folder / "results.json")],
        base_models={"expert": "Q/Base"},
    )
    stage.stage(str(folder / "system"), folder / "staged", options)
    findings = check.check(folder / "staged")
    assert [(finding.repository.id, finding.problems) for finding in findings if finding.problems] == []
    return folder


@pytest.fixture
def staged(workplace, tmp_path):
    """A copy of the staged folder, to be changed."""
    return shutil.copytree(workplace / "staged", tmp_path / "staged")


# Staging


def test_every_repository_of_a_system_is_staged_in_role_order(workplace):
    found = plan.load_plan(workplace / "staged")
    names = ["Tiny-Expert-Base", "Tiny-Learner", "Tiny-Outerlinks", "Tiny"]
    assert [repository.id for repository in found.repositories] == [f"my-org/{name}" for name in names]
    assert [repository.kind for repository in found.repositories] == ["agent", "agent", "outer_links", "composite"]
    folders = {path.name for path in (workplace / "staged").iterdir() if path.is_dir()}
    assert folders == set(names) and not list(workplace.glob("*.partial"))


def test_the_composite_references_the_other_repositories_and_holds_no_weights(workplace):
    composite = workplace / "staged" / "Tiny"
    config = read(composite / "config.json")
    assert {role: entry["source"] for role, entry in config["agents"].items()} == {
        "expert": "my-org/Tiny-Expert-Base",
        "learner": "my-org/Tiny-Learner",
    }
    assert config["links"][0]["weights"]["source"] == "my-org/Tiny-Outerlinks"
    assert not list(composite.rglob("*.safetensors"))


def test_legacy_files_follow_the_releases_layout(pair, workplace):
    """Names, keys and manifests of the public release, and the same weights as the native files."""
    agent, links = workplace / "staged" / "Tiny-Expert-Base", workplace / "staged" / "Tiny-Outerlinks"
    assert read(agent / "adapter_config.json") == {"adapter_type": "ln_res_adapter"}
    manifest = read(links / "outerlink_config.json")
    assert (manifest["format_version"], manifest["paradigm"]) == (1, "distillation")
    assert [(a["legacy_key"], a["filename"], a["in_dim"], a["out_dim"]) for a in manifest["adapters"]] == [
        ("outer_el", "Expert-Learner-Outerlink.pt", 32, 48),
        ("outer_le", "Learner-Expert-Outerlink.pt", 48, 32),
    ]
    for legacy, native in (
        (agent / "adapter.pt", agent / "inner_link.safetensors"),
        (links / "Expert-Learner-Outerlink.pt", links / "expert_to_learner.safetensors"),
    ):
        tensors, expected = torch.load(legacy, weights_only=True), load_file(native)
        assert type(tensors) in (dict, type(pair.state_dict())) and tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_the_releases_rules_find_every_legacy_file(pair, workplace):
    """The composite with `weights` that name repositories only, as a released system is described."""
    staged = workplace / "staged"
    config = RecursiveMASConfig.from_dict(read(staged / "Tiny" / "config.json"))
    for agent in config.agents.values():
        agent["inner_link"] = {"weights": {"source": agent["source"]}}
    for link in config.links:
        link["weights"] = {"source": "my-org/Tiny-Outerlinks"}
        link["legacy_key"] = f"outer_{link['source'][0]}{link['target'][0]}"
        del link["kind"]
    loaded = RecursiveMASModel.from_pretrained("released", config=config, clones=staged)
    assert loaded.solve(QUESTION, max_new_tokens=6)[0].text == pair.solve(QUESTION, max_new_tokens=6)[0].text


@pytest.mark.parametrize(
    "stages, links, keys",
    [
        ([["planner"], ["critic"], ["solver"]], chain_links("planner", "critic", "solver"), "12 23 31"),
        ([["reflector"], ["toolcaller"]], chain_links("reflector", "toolcaller"), "rt tr"),
        (
            [["math", "code", "science"], ["summarizer"]],
            [{"source": role, "target": "summarizer"} for role in ("math", "code", "science")]
            + [{"source": "summarizer", "target": role, "feedback": True} for role in ("math", "code", "science")],
            "1s 2s 3s s1 s2 s3",
        ),
    ],
)
def test_legacy_keys_are_the_releases(stages, links, keys):
    topology = Topology(tuple(map(tuple, stages)), tuple(Link(**link) for link in links), stages[-1][-1])
    labels = stage.legacy_labels(topology)
    assert " ".join(labels[link.source] + labels[link.target] for link in topology.links) == keys


def system_with_tasks(pair, folder):
    """A system on disk with links per task: "math" those of `pair`, "code" others."""
    pair.save_pretrained(folder)
    config = read(folder / "config.json")
    names = {**{role: config["agents"][role]["inner_link"] for role in config["agents"]}}
    names |= {f"{entry['source']}_to_{entry['target']}": entry for entry in config["links"]}
    for name, entry in names.items():
        files = {task: f"links/{name}({task}).safetensors" for task in ("math", "code")}
        entry["weights"] = {"tasks": files}
        tensors = load_file(folder / "links" / f"{name}.safetensors")
        save_file(tensors, folder / files["math"])
        save_file({key: tensor * 0.5 for key, tensor in tensors.items()}, folder / files["code"])
    config["link_task"] = "math"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("self_contained", [False, True])
def test_links_per_task_stay_links_per_task(self_contained, pair, tmp_path):
    system = system_with_tasks(pair, tmp_path / "system")
    options = stage.Options("my-org", "Tasks", QUESTION, legacy=True, self_contained=self_contained)
    stage.stage(str(system), tmp_path / "staged", options)
    agent = tmp_path / "staged" / "Tasks-Expert"
    assert read(agent / "innerlink_config.json")["tasks"]["code"] == {"adapter.pt": "adapter(code).pt"}
    manifest = read(tmp_path / "staged" / "Tasks-Outerlinks" / "outerlink_config.json")
    assert manifest["tasks"]["math"]["adapters"][0]["filename"] == "Expert-Learner-Outerlink(math).pt"
    where = {} if self_contained else {"clones": tmp_path / "staged"}
    for task in ("math", "code"):
        expected = RecursiveMASModel.from_pretrained(system, link_task=task)
        found = RecursiveMASModel.from_pretrained(tmp_path / "staged" / "Tasks", link_task=task, **where)
        keys = [key for key in expected.state_dict() if "link" in key]
        assert keys and all(torch.equal(expected.state_dict()[key], found.state_dict()[key]) for key in keys)
    assert found.solve(QUESTION, max_new_tokens=6)[0].text == expected.solve(QUESTION, max_new_tokens=6)[0].text


def test_a_folder_that_was_not_staged_is_never_replaced(workplace, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for replace in (False, True):
        with pytest.raises(InputError):
            stage.stage(str(workplace / "system"), tmp_path, stage.Options("my-org", "Tiny"), replace)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "options",
    [
        {"namespace": "my org", "name": "Tiny"},
        {"namespace": "my-org", "name": "x" * 96},
        {"namespace": "my-org", "name": "Tiny", "base_models": {"poet": "Q/Base"}},
        {"namespace": "my-org", "name": "Tiny", "results": ["missing.json"]},
    ],
)
def test_options_that_cannot_be_used_stage_nothing(options, workplace, tmp_path):
    with pytest.raises(InputError):
        stage.stage(str(workplace / "system"), tmp_path / "staged", stage.Options(**options))
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)  # a write beyond this fails, as on a full disk
from recursivemas import cli
sys.exit(cli.main(sys.argv[2:]))
"""


def test_a_full_disk_leaves_nothing_and_a_second_run_completes(workplace, tmp_path):
    command = ["publish", "stage", str(workplace / "system"), "--namespace", "my-org", "--name", "Tiny"]
    command += ["--output", str(tmp_path / "staged")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL_DISK, "100000", *command],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2 and "Staging stopped" in result.stderr, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    stage.stage(str(workplace / "system"), tmp_path / "staged", stage.Options("my-org", "Tiny"))
    assert plan.load_plan(tmp_path / "staged").composite.id == "my-org/Tiny"


# Cards


def test_cards_carry_the_metadata_of_the_release(workplace):
    staged = workplace / "staged"
    agent, composite = (ModelCard.load(staged / name / "README.md").data for name in ("Tiny-Expert-Base", "Tiny"))
    assert (agent.license, agent.pipeline_tag, agent.library_name) == ("mit", "text-generation", "transformers")
    assert agent.base_model == "Q/Base" and {"recursivemas", "distillation"} <= set(agent.tags)
    assert composite.base_model == ["my-org/Tiny-Expert-Base", "my-org/Tiny-Learner"]
    (result,) = composite.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("arithmetic", "accuracy", 0.7143)


def test_results_in_a_card_are_those_of_the_file(workplace, tmp_path):
    card = (workplace / "staged" / "Tiny" / "README.md").read_text()
    assert "| latent | 2 | 0.714 | 0.359–0.918 | 20.0 | 3.0 |" in card and "(results.png)" in card
    assert (workplace / "staged" / "Tiny" / "results.png").is_file()
    assert "Results" not in (workplace / "staged" / "Tiny-Learner" / "README.md").read_text()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="holds no results"):
        read_results([str(tmp_path / "other.json")])


# Checking


SPOILS = {
    "token": lambda f: (f / "README.md").write_text("hf_" + "a1B2" * 9),
    "private key": lambda f: (f / "note.txt").write_text("-----BEGIN RSA PRIVATE KEY-----"),
    "/home/somebody": lambda f: (f / "note.txt").write_text("trained in /home/somebody/runs"),
    "absolute path": lambda f: (f / "extra.json").write_text('{"a": ["/gpfs/runs/x"]}'),
    "a pickle": lambda f: (f / "extra.json").write_bytes(pickle.dumps({"a": 1})),
    "symbolic link": lambda f: (f / "extra.json").symlink_to(f / "README.md"),
    "does not belong": lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
    "adapter.pt": lambda f: (f / "adapter.pt").write_bytes(pickle.dumps(print, protocol=2)),
    "your Hugging Face token": lambda f: (f / "note.txt").write_text("a-token-of-this-session"),
    "model.safetensors": lambda f: save_file(
        {"a": torch.zeros(1)}, f / "model.safetensors", {"from": "/home/somebody/model"}
    ),
}


@pytest.mark.parametrize("message", SPOILS)
def test_the_scan_finds_what_must_not_go_out(message, staged, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-this-session")
    folder = staged / "Tiny-Expert-Base"
    assert scan.scan(folder) == []
    SPOILS[message](folder)
    problems = scan.scan(folder)
    assert len(problems) == 1 and message in problems[0], problems


def test_the_check_notices_changed_weights(pair, staged):
    """The repository still loads; only the comparison with the source can tell."""
    file = staged / "Tiny-Expert-Base" / "inner_link.safetensors"
    save_file({key: tensor + 0.1 for key, tensor in load_file(file).items()}, file)
    found_plan = plan.load_plan(staged)
    found, error = check.load_alone(found_plan, found_plan.agents["expert"], staged)
    assert error is None
    problems = check.differences(check.expected_of(pair, found_plan, found_plan.agents["expert"]), found)
    assert len(problems) == 2 and "inner_link.safetensors" in problems[0] and "thoughts" in problems[1]


def test_what_was_not_checked_or_changed_since_is_not_pushed(staged):
    (staged / "Tiny" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="changed since the check"):
        push.push(staged)
    (staged / plan.CHECKED).unlink()
    with pytest.raises(InputError, match="not checked"):
        push.push(staged)
