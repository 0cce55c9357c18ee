"""Publishing: what is staged, what the check refuses, what reaches a Hub, and what a stranger can do with it."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import Exchange, LoopbackHub, Repo, Worker
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation.results import read_results
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.release_recursivemas import release_labels
from recursivemas.topology_recursivemas import Link, Topology
from recursivemas.upload import check, files, plan, push, scan, stage
from safetensors.torch import load_file, save_file
from snippets import code_blocks
from tiny import chain_links, tiny_chain, tiny_system

QUESTION = "What is the answer?"
RESULTS = {
    "date": "2026-01-31",
    "settings": {"style": "sequential", "data": "arithmetic", "num_questions": 7, "latent_steps": 5},
    "machine": {},
    "figures": [
        {"mode": "latent", "num_rounds": 2, "accuracy": 0.71429, "interval": [0.359, 0.918],
         "latent_positions": 20.0, "new_tokens": 3.0, "seconds": 0.1, "prompt_tokens": 9.0, "by_group": {}},
        {"mode": "alone", "num_rounds": 1, "accuracy": 0.14286, "interval": [0.026, 0.513],
         "latent_positions": 0.0, "new_tokens": 3.0, "seconds": 0.1, "prompt_tokens": 9.0, "by_group": {}},
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
    """A folder with the system `pair` in `system`, its results, and `staged`."""
    folder = tmp_path_factory.mktemp("publishing")
    pair.save_pretrained(folder / "system")
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "results.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    options = plan.Options(
        "my-org",
        "Tiny",
        QUESTION,
        release_layout=True,
        licence="mit",
        results=[str(folder / "results.json")],
        base_models={"expert": "Q/Base"},
    )
    stage.stage(str(folder / "system"), folder / "staged", options)
    return folder


@pytest.fixture
def unchecked(workplace, tmp_path):
    """A copy of the staged folder, to be changed."""
    return shutil.copytree(workplace / "staged", tmp_path / "staged")


@pytest.fixture(scope="module")
def checked(workplace):
    """The same folder after the check, without the clean processes in which it loads (a slow test runs those)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "load_alone", lambda *_: ({}, None))
        patch.setattr(check, "differences", lambda expected, found: [])
        check.check(workplace / "staged")
    assert (workplace / "staged" / files.CHECKED).is_file()
    return workplace


@pytest.fixture
def staged(checked, unchecked):
    """A copy of the staged folder that may be pushed, to be changed."""
    shutil.copy(checked / "staged" / files.CHECKED, unchecked)
    return unchecked


@pytest.mark.slow
def test_what_was_staged_passes_the_check(unchecked):
    """In a clean process for each repository."""
    findings = check.check(unchecked)
    assert [(finding.repository.id, finding.problems) for finding in findings if finding.problems] == []
    assert (unchecked / files.CHECKED).is_file()


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


def test_the_releases_files_follow_its_layout(pair, workplace):
    """Names, keys and manifests of the public release, and the same weights as the native files."""
    agent, links = workplace / "staged" / "Tiny-Expert-Base", workplace / "staged" / "Tiny-Outerlinks"
    assert read(agent / "adapter_config.json") == {"adapter_type": "ln_res_adapter"}
    manifest = read(links / "outerlink_config.json")
    assert (manifest["format_version"], manifest["paradigm"]) == (1, "distillation")
    assert [(a["legacy_key"], a["filename"], a["in_dim"], a["out_dim"]) for a in manifest["adapters"]] == [
        ("outer_el", "Expert-Learner-Outerlink.pt", 32, 48),
        ("outer_le", "Learner-Expert-Outerlink.pt", 48, 32),
    ]
    for released, native in (
        (agent / "adapter.pt", agent / "inner_link.safetensors"),
        (links / "Expert-Learner-Outerlink.pt", links / "expert_to_learner.safetensors"),
    ):
        tensors, expected = torch.load(released, weights_only=True), load_file(native)
        assert type(tensors) in (dict, type(pair.state_dict())) and tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)


@pytest.mark.parametrize("roles, keys", [(("expert", "learner"), "el le"), (("reader", "reviewer"), "12 21")])
def test_the_releases_rules_find_every_file_of_its_layout(roles, keys, tmp_path):
    """The composite with `weights` that name repositories only, as a released system is described."""
    system, staged = tiny_chain(dict(zip(roles, ("qwen3", "llama"), strict=True))), tmp_path / "staged"
    system.save_pretrained(tmp_path / "system")
    stage.stage(str(tmp_path / "system"), staged, plan.Options("my-org", "Tiny", QUESTION, release_layout=True))
    config = RecursiveMASConfig.from_dict(read(staged / "Tiny" / "config.json"))
    for agent in config.agents.values():
        agent["inner_link"] = {"weights": {"source": agent["source"]}}
    for link, key in zip(config.links, keys.split(), strict=True):
        link["weights"] = {"source": "my-org/Tiny-Outerlinks"}
        link["legacy_key"] = f"outer_{key}"
        del link["kind"]
    loaded = RecursiveMASModel.from_pretrained(staged / "Tiny", config=config, clones=staged)
    assert loaded.solve(QUESTION, max_new_tokens=6)[0].text == system.solve(QUESTION, max_new_tokens=6)[0].text
    for name, tensor in system.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


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
        # Not in the release: keys that are as plain, and keys that would not be.
        ([["a"], ["b"], ["b2"], ["a2"]], chain_links("a", "b", "b2", "a2"), "12 23 34 41"),
        ([["reader"], ["reviewer"]], chain_links("reader", "reviewer"), "12 21"),
        (
            [["a", "b"], ["solver"], ["sorter"]],
            [{"source": a, "target": b} for a, b in (("a", "solver"), ("b", "solver"), ("solver", "sorter"))],
            "13 23 34",
        ),
    ],
)
def test_keys_of_links_are_the_releases(stages, links, keys):
    topology = Topology(tuple(map(tuple, stages)), tuple(Link(**link) for link in links), stages[-1][-1])
    labels = release_labels(topology)
    assert " ".join(labels[link.source] + labels[link.target] for link in topology.links) == keys


def random_topology(rng):
    """Up to 120 roles in stages of any size, with few initials among them; all of them reach the last one."""
    letters = rng.sample("abcdefghijklmnopqrstuvwxyz", rng.choice([1, 2, 26]))
    count = rng.choice([1, 2, 3, 5, 9, 10, 11, 12, 30, 120])
    roles = [f"{rng.choice(letters)}{rng.choice(['', '_', '1'])}x{number}" for number in range(count)]
    stages = []
    while roles:
        size = rng.choice([1, 1, 2, 11])
        stages, roles = [*stages, tuple(roles[:size])], roles[size:]
    *others, last = [role for stage in stages for role in stage]
    return Topology(tuple(stages), tuple(Link(role, last, feedback=True) for role in others), last)


def test_no_two_links_of_any_system_have_one_key():
    rng = random.Random(0)
    for _ in range(300):
        topology = random_topology(rng)
        labels = release_labels(topology)
        assert list(labels) == list(topology.roles)
        keys = [f"outer_{labels[source]}{labels[target]}" for source in labels for target in labels]
        assert len(set(keys)) == len(keys) and all(key.replace("_", "").isalnum() for key in keys)


@pytest.mark.parametrize("keys, message", [(["outer_2s", None], "outer_2s"), ([None, None], "A1-Solver-Outerlink.pt")])
def test_links_with_one_key_or_one_file_are_not_staged(keys, message, tmp_path):
    roles = ["a_1", "a1" if keys[0] is None else "a2"]
    links = [{"source": role, "target": "solver", "legacy_key": key} for role, key in zip(roles, keys, strict=True)]
    agents = dict.fromkeys([*roles, "solver"], "qwen3")
    tiny_system(agents, [roles, ["solver"]], links, "solver").save_pretrained(tmp_path / "system")
    options = plan.Options("my-org", "Tiny", release_layout=True, base_models={"a_1": "Q/Base"})
    with pytest.raises(InputError, match=message):
        stage.stage(str(tmp_path / "system"), tmp_path / "staged", options)
    assert [path.name for path in tmp_path.iterdir()] == ["system"]


def test_a_link_without_tasks_is_in_the_manifest_of_every_task(pair, tmp_path):
    system = system_with_tasks(pair, tmp_path / "system")
    config = read(system / "config.json")
    config["links"][1]["weights"] = "links/learner_to_expert.safetensors"
    (system / "config.json").write_text(json.dumps(config))
    stage.stage(str(system), tmp_path / "staged", plan.Options("my-org", "Tasks", QUESTION, release_layout=True))
    manifest = read(tmp_path / "staged" / "Tasks-Outerlinks" / "outerlink_config.json")
    assert {task: [a["filename"] for a in entry["adapters"]] for task, entry in manifest["tasks"].items()} == {
        task: [f"Expert-Learner-Outerlink({task}).pt", "Learner-Expert-Outerlink.pt"] for task in ("math", "code")
    }


@pytest.mark.parametrize("roles", [("a_1", "a1"), ("tool_caller", "toolcaller"), ("solver", "outerlinks")])
def test_two_repositories_never_get_one_name(roles, tmp_path):
    tiny_chain(dict(zip(roles, ("qwen3", "llama"), strict=True))).save_pretrained(tmp_path / "system")
    with pytest.raises(InputError, match="one name"):
        stage.stage(str(tmp_path / "system"), tmp_path / "staged", plan.Options("my-org", "Tiny"))


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


@pytest.mark.parametrize("self_contained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_links_per_task_stay_links_per_task(self_contained, pair, tmp_path):
    system = system_with_tasks(pair, tmp_path / "system")
    options = plan.Options("my-org", "Tasks", QUESTION, release_layout=True, self_contained=self_contained)
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


@pytest.mark.parametrize("self_contained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_agent_of_a_multimodal_checkpoint_is_published_as_what_runs(self_contained, tmp_path):
    """Qwen 3.5 loads as its language part alone, which has a model type of its own."""
    tiny_chain({"expert": "qwen3_5", "learner": "qwen2"}).save_pretrained(tmp_path / "system")
    options = plan.Options("my-org", "Multi", QUESTION, self_contained=self_contained)
    stage.stage(str(tmp_path / "system"), tmp_path / "staged", options)
    expected = RecursiveMASModel.from_pretrained(tmp_path / "system")
    where = {} if self_contained else {"clones": tmp_path / "staged"}
    found = RecursiveMASModel.from_pretrained(tmp_path / "staged" / "Multi", **where)
    assert found.solve(QUESTION, max_new_tokens=6)[0].text == expected.solve(QUESTION, max_new_tokens=6)[0].text


def test_a_folder_that_was_not_staged_is_never_replaced(workplace, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for replace in (False, True):
        with pytest.raises(InputError):
            stage.stage(str(workplace / "system"), tmp_path, plan.Options("my-org", "Tiny"), replace)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_what_an_earlier_version_staged_is_replaced_but_not_pushed(workplace, staged):
    content = read(staged / "plan.json")
    (staged / "plan.json").write_text(json.dumps({**content, "format_version": 1}))
    with pytest.raises(InputError, match="format version 1"):
        push.push(staged)
    (staged / "pushed.json").write_text('{"my-org/Tiny": {"created": true}}')
    with pytest.raises(InputError, match="--replace"):
        stage.stage(str(workplace / "system"), staged, plan.Options("my-org", "Tiny"))
    stage.stage(str(workplace / "system"), staged, plan.Options("my-org", "Tiny"), replace=True)
    assert plan.load_plan(staged).composite.id in read(staged / "pushed.json")


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
        stage.stage(str(workplace / "system"), tmp_path / "staged", plan.Options(**options))
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)  # a write beyond this fails, as on a full disk
from recursivemas import cli
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_and_a_second_run_completes(workplace, tmp_path):
    command = ["publish", "stage", str(workplace / "system"), "--namespace", "my-org", "--name", "Tiny"]
    command += ["--output", str(tmp_path / "staged")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL_DISK, "100000", *command],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2 and "Saving stopped" in result.stderr, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    stage.stage(str(workplace / "system"), tmp_path / "staged", plan.Options("my-org", "Tiny"))
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


def test_a_card_states_the_licence_of_the_base_model_and_no_other(pair, tmp_path):
    """Of folders with a card: its own; of a system, what its agents share, or that they differ, or nothing."""
    pair.save_pretrained(tmp_path / "system", copy_agents=True)
    cards = {role: tmp_path / "system" / "agents" / role / "README.md" for role in pair.agents}

    def staged(**options):
        stage.stage(str(tmp_path / "system"), tmp_path / "staged", plan.Options("o", "N", **options), replace=True)
        names = ("N-Expert", "N-Learner", "N-Outerlinks", "N")
        found = [ModelCard.load(tmp_path / "staged" / name / "README.md").data.to_dict() for name in names]
        return [entry.get("license") for entry in found], found

    assert staged()[0] == [None, None, None, None]
    cards["expert"].write_text("---\nlicense: apache-2.0\n---\n")
    assert staged()[0] == ["apache-2.0", None, None, None]
    cards["learner"].write_text("---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE.txt\n---\n")
    licences, found = staged()
    assert licences == ["apache-2.0", "other", "other", "other"] and found[1]["license_name"] == "llama3.2"
    assert found[3]["license_name"] == "those-of-the-base-models"
    cards["learner"].write_text(cards["expert"].read_text())
    assert staged()[0] == ["apache-2.0"] * 4
    assert staged(licence="gpl-3.0")[0] == ["gpl-3.0"] * 4


def test_a_card_says_who_made_it_how_it_was_trained_and_what_to_ask(pair, tmp_path):
    pair.save_pretrained(tmp_path / "system")
    (tmp_path / "system" / "training").mkdir()
    settings = {"learning_rate": 0.0005, "max_steps": 300, "data": "/home/somebody/rows.jsonl"}
    (tmp_path / "system" / "training" / "training_config.json").write_text(json.dumps(settings))
    options = plan.Options("o", "N", QUESTION, authors=["A. Person"], code="https://example.org/code")
    stage.stage(str(tmp_path / "system"), tmp_path / "staged", options)
    card = ModelCard.load(tmp_path / "staged" / "N" / "README.md")
    assert card.data.widget == [{"text": QUESTION}] and card.data.pipeline_tag == "text-generation"
    assert "By A. Person." in card.text and "<https://example.org/code>" in card.text
    assert "| learning_rate | 0.0005 |" in card.text and "somebody" not in card.text
    links = ModelCard.load(tmp_path / "staged" / "N-Outerlinks" / "README.md").data
    assert links.pipeline_tag is None and links.library_name is None  # nothing that a pipeline could load


def test_results_in_a_card_are_those_of_the_file(workplace, tmp_path):
    card = (workplace / "staged" / "Tiny" / "README.md").read_text()
    assert "| latent | 2 | 0.714 (0.359–0.918) | 20.0 | 3.0 |" in card and "(results.png)" in card
    assert (workplace / "staged" / "Tiny" / "results.png").is_file()
    assert "Results" not in (workplace / "staged" / "Tiny-Learner" / "README.md").read_text()
    better = {"difference": 0.5, "interval": [0.1, 0.9], "p": 0.03}
    cost = {"slot_positions": 20.0, "by_group": {}}
    controls = [RESULTS["figures"][0] | cost | {"control": "latents"},
                RESULTS["figures"][0] | cost | {"control": "noise", "accuracy": 0.2, "better": better}]  # fmt: skip
    stored = {**RESULTS, "controls": controls, "verdicts": ["r = 2: the channel carries the answer"]}
    del stored["figures"]
    (tmp_path / "controls.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="holds no results"):
        read_results(tmp_path / "controls.json")
    arguments = {"namespace": "my-org", "name": "Tiny", "results": [str(tmp_path / "controls.json")]}
    stage.stage(str(workplace / "system"), tmp_path / "staged", plan.Options(**arguments))
    card = (tmp_path / "staged" / "Tiny" / "README.md").read_text()
    assert "| noise of equal norm | 2 | 0.200 (0.359–0.918) | +0.500 (+0.100 to +0.900) | 20.0 |" in card
    assert "Channel, r = 2: the channel carries the answer." in card
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="holds no results"):
        read_results(tmp_path / "other.json")


# Checking


SPOILS = {
    "token": lambda f: (f / "README.md").write_text("hf_" + "a1B2" * 9),
    "API key": lambda f: (f / "note.txt").write_text("sk-" + "a1B2" * 9),
    "GitHub token": lambda f: (f / "note.txt").write_text("ghp_" + "a1B2" * 9),
    "AWS key": lambda f: (f / "note.txt").write_text("AKIA" + "A1B2" * 4),
    "Slack token": lambda f: (f / "note.txt").write_text("xoxb-" + "a1B2" * 3),
    "private key": lambda f: (f / "note.txt").write_text("-----BEGIN RSA PRIVATE KEY-----"),
    "/home/somebody": lambda f: (f / "note.txt").write_text("trained in /home/somebody/runs"),
    "Users": lambda f: (f / "note.txt").write_text("trained in C:\\Users\\somebody"),
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
def test_the_scan_finds_what_must_not_go_out(message, unchecked, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-this-session")
    folder = unchecked / "Tiny-Expert-Base"
    assert scan.scan(folder) == []
    SPOILS[message](folder)
    problems = scan.scan(folder)
    assert len(problems) == 1 and message in problems[0], problems


def test_weights_are_no_pickle_whatever_their_header_begins_with(tmp_path):
    """A safetensors file begins with the length of its header: 640 bytes are `80 02`, as a pickle of protocol 2."""
    for size in range(800):
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"padding": "x" * size})
        if (tmp_path / "model.safetensors").read_bytes()[:2] == b"\x80\x02":
            break
    else:
        raise AssertionError("no header has this length")
    assert scan.scan(tmp_path) == []
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert "cannot be read" in scan.scan(tmp_path)[0]


@pytest.mark.slow
def test_the_check_notices_changed_weights(pair, unchecked):
    """The repository still loads; only the comparison with the source can tell."""
    file = unchecked / "Tiny-Expert-Base" / "inner_link.safetensors"
    save_file({key: tensor + 0.1 for key, tensor in load_file(file).items()}, file)
    found_plan = plan.load_plan(unchecked)
    found, error = check.load_alone(found_plan, found_plan.agents["expert"], unchecked)
    assert error is None
    problems = check.differences(check.expected_of(pair, found_plan, found_plan.agents["expert"]), found)
    assert len(problems) == 2 and "inner_link.safetensors" in problems[0] and "hidden states" in problems[1]


def test_a_fingerprint_is_of_names_and_contents(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    prints = []
    for name, content in (("one", "x"), ("one", "y"), ("two", "y"), ("b/two", "y"), ("one", "x")):
        file = tmp_path / "a" / name
        file.write_text(content)
        prints.append(files.fingerprint(tmp_path / "a"))
        file.unlink()
    assert len(set(prints)) == 4 and prints[0] == prints[-1]


def test_what_was_not_checked_or_changed_since_is_not_pushed(staged):
    (staged / "Tiny" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="changed since the check"):
        push.push(staged)
    (staged / files.CHECKED).unlink()
    with pytest.raises(InputError, match="not checked"):
        push.push(staged)


# A Hub: the unmodified client against a server on the loopback interface

WRITES = ("POST", "PUT", "PATCH", "DELETE")
NAMES = ["my-org/Tiny-Expert-Base", "my-org/Tiny-Learner", "my-org/Tiny-Outerlinks", "my-org/Tiny"]


@pytest.fixture(scope="module")
def server_and_client(tmp_path_factory):
    with LoopbackHub() as server, Worker(server, tmp_path_factory.mktemp("client")) as client:
        yield server, client


@pytest.fixture
def hub(server_and_client):
    server_and_client[0].reset()
    return server_and_client[0]


@pytest.fixture
def client(server_and_client):
    return server_and_client[1]


def push_command(staged, *flags):
    return ["publish", "push", str(staged), *flags]


def is_whole(hub, staged, name):
    """Whether a repository on the Hub holds exactly what was staged (the composite with its pins)."""
    there = dict(hub.repos[name].commits[-1][1])
    there.pop(".gitattributes", None)
    folder = staged / name.partition("/")[2]
    local = {path.as_posix(): (folder / path).read_bytes() for path in files.files_of(folder)}
    if name == NAMES[-1]:
        there.pop("config.json"), local.pop("config.json")
    return there == local


def test_a_push_without_yes_only_reads(hub, client, staged):
    status, output = client.run(*push_command(staged))
    assert status == 0 and "nothing was pushed" in output and all(f"create {name}" in output for name in NAMES)
    assert hub.repos == {} and hub.sent(*WRITES) == []


def test_a_push_creates_private_repositories_with_pinned_references_and_a_collection(hub, client, staged):
    status, output = client.run(*push_command(staged, "--yes"))
    assert status == 0, output
    assert list(hub.repos) == NAMES and all(repo.private for repo in hub.repos.values())
    assert all(is_whole(hub, staged, name) for name in NAMES)
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())  # the Hub's own and ours: nothing half-made
    heads = {name: repo.commits[-1][0] for name, repo in hub.repos.items()}
    config = json.loads(hub.repos["my-org/Tiny"].commits[-1][1]["config.json"])
    places = [*config["agents"].values()]
    places += [entry["inner_link"]["weights"] for entry in places] + [link["weights"] for link in config["links"]]
    assert len(places) == 6 and all(place["revision"] == heads[place["source"]] for place in places)
    (collection,) = hub.collections.values()
    assert collection["slug"].startswith("my-org/distillation-style-recursivemas-") and collection["private"]
    assert [item["id"] for item in collection["items"]] == NAMES
    assert collection["items"][0]["note"]["text"] == "Expert: agent with inner link, Q/Base"


def test_a_second_push_changes_nothing_and_mends_the_collection(hub, client, staged):
    client.run(*push_command(staged, "--yes"))
    (collection,) = hub.collections.values()
    before = json.dumps([collection, [repo.commits[-1][0] for repo in hub.repos.values()]])
    assert client.run(*push_command(staged, "--yes"))[0] == 0
    assert json.dumps([collection, [repo.commits[-1][0] for repo in hub.repos.values()]]) == before
    collection["items"].reverse()
    collection["items"].insert(1, {"_id": "theirs", "id": "my-org/Other", "type": "model"})
    collection["items"][0]["note"] = {"text": "?"}
    Exchange._number(collection)
    assert client.run(*push_command(staged, "--yes"))[0] == 0
    found = [item["id"] for item in collection["items"]]
    assert sorted(found) == sorted([*NAMES, "my-org/Other"]) and [name for name in found if name in NAMES] == NAMES
    assert "The whole system" in next(i for i in collection["items"] if i["id"] == "my-org/Tiny")["note"]["text"]


@pytest.mark.slow
def test_a_changed_system_replaces_its_own_files(hub, client, workplace, staged):
    client.run(*push_command(staged, "--yes"))
    stale = staged / "Tiny-Learner" / "adapter.pt"
    stale.unlink()
    (staged / "Tiny-Learner" / "adapter_config.json").unlink()
    record = {name: files.fingerprint(staged / name.partition("/")[2]) for name in NAMES}
    checked = {name.partition("/")[2]: value for name, value in record.items()}
    (staged / files.CHECKED).write_text(json.dumps(checked | {files.PLAN: files.fingerprint(staged / files.PLAN)}))
    assert client.run(*push_command(staged, "--yes"))[0] == 0
    assert all(is_whole(hub, staged, name) for name in NAMES)
    assert [len(hub.repos[name].commits) for name in NAMES] == [2, 3, 2, 3]  # the composite has a new pin


@pytest.mark.slow
def test_what_was_edited_on_the_website_stays(hub, client, staged):
    """The card, and files that no push has put there; a changed card of ours replaces our own, and --overwrite all."""
    client.run(*push_command(staged, "--yes"))
    repo = hub.repos["my-org/Tiny"]
    there = repo.commits[-1][1]
    edited = {**there, "README.md": there["README.md"] + b"\nEdited.\n", "picture.png": b"x"}
    repo.commit(edited)
    for name in ("Tiny", "Tiny-Learner"):
        card = staged / name / "README.md"
        card.write_text(card.read_text() + "\nStaged again.\n")
    record = {name.partition("/")[2]: files.fingerprint(staged / name.partition("/")[2]) for name in NAMES}
    (staged / files.CHECKED).write_text(json.dumps(record | {files.PLAN: files.fingerprint(staged / files.PLAN)}))
    for _ in range(2):
        status, output = client.run(*push_command(staged, "--yes"))
        assert status == 0 and output.count("as it was edited on the website") == 1, output
        found = repo.commits[-1][1]
        assert found["README.md"] == edited["README.md"] and found["picture.png"] == b"x"
        assert hub.repos["my-org/Tiny-Learner"].commits[-1][1]["README.md"].endswith(b"Staged again.\n")
    assert client.run(*push_command(staged, "--yes", "--overwrite"))[0] == 0
    assert is_whole(hub, staged, "my-org/Tiny")


@pytest.mark.parametrize(
    "method, path, status",
    [
        # A connection that breaks for good in the middle of an upload; the client tries for a while.
        pytest.param("PUT", r"^/lfs/", None, marks=pytest.mark.slow),
        ("PUT", r"^/lfs/", 403),
        # A connection that breaks at the commit.
        pytest.param("POST", r"Tiny-Learner/commit/", None, marks=pytest.mark.slow),
        pytest.param("POST", r"Tiny-Outerlinks/commit/", 409, marks=pytest.mark.slow),
        pytest.param("POST", r"/api/repos/create", 403, marks=pytest.mark.slow),
        pytest.param("POST", r"/api/collections", 403, marks=pytest.mark.slow),
    ],
)
def test_after_a_failure_nothing_half_made_looks_complete_and_a_second_run_completes(
    method, path, status, hub, client, staged
):
    hub.fail(method, path, status, times=1000)
    code, output = client.run(*push_command(staged, "--yes"))
    assert code == 2 and "goes on where it stopped" in output, output
    for name, repo in hub.repos.items():
        assert len(repo.commits) == 1 or is_whole(hub, staged, name)
    assert path == r"/api/collections" or "my-org/Tiny" not in hub.repos
    assert not any(collection["items"] for collection in hub.collections.values())
    stored = set(hub.lfs)
    hub.failures.clear()
    hub.requests.clear()
    code, output = client.run(*push_command(staged, "--yes"))
    assert code == 0, output
    assert all(is_whole(hub, staged, name) for name in NAMES)
    assert stored.isdisjoint(path.rpartition("/")[2] for path in hub.sent("PUT"))  # what had arrived is not sent again
    assert [item["id"] for (collection,) in [hub.collections.values()] for item in collection["items"]] == NAMES


@pytest.mark.slow
def test_a_connection_that_breaks_once_in_the_middle_of_an_upload_is_taken_up_again(hub, client, staged):
    hub.fail("PUT", r"^/lfs/", None, times=1)
    code, output = client.run(*push_command(staged, "--yes"))
    assert code == 0 and hub.failures[0].times == 0, output
    assert all(is_whole(hub, staged, name) for name in NAMES)


def test_a_repository_of_somebody_else_is_not_touched_unless_told(hub, client, staged):
    hub.repos["my-org/Tiny-Learner"] = Repo(private=False)
    hub.repos["my-org/Tiny-Learner"].commit({"README.md": b"mine", "model.safetensors": b"mine too"})
    code, output = client.run(*push_command(staged, "--yes"))
    assert code == 2 and "my-org/Tiny-Learner" in output and "--overwrite" in output
    assert hub.sent(*WRITES) == []
    assert client.run(*push_command(staged, "--yes", "--overwrite"))[0] == 0
    assert is_whole(hub, staged, "my-org/Tiny-Learner") and not hub.repos["my-org/Tiny-Learner"].private


@pytest.mark.slow
def test_an_empty_repository_is_filled_and_from_then_on_ours(hub, client, staged):
    """A run that broke off right after creating a repository leaves one."""
    hub.repos["my-org/Tiny-Learner"] = Repo(private=True)
    hub.repos["my-org/Tiny-Learner"].commit({".gitattributes": b""})
    for _ in range(2):
        code, output = client.run(*push_command(staged, "--yes"))
        assert code == 0 and is_whole(hub, staged, "my-org/Tiny-Learner"), output


def test_a_card_that_the_hub_refuses_stops_the_push_before_anything_is_written(hub, client, staged):
    card = staged / "Tiny" / "README.md"
    card.write_text(card.read_text().replace("license: mit", "license: no-such-licence"))
    checked = read(staged / files.CHECKED) | {"Tiny": files.fingerprint(staged / "Tiny")}
    (staged / files.CHECKED).write_text(json.dumps(checked))
    code, output = client.run(*push_command(staged, "--yes"))
    assert code == 2 and "README.md" in output and hub.repos == {}


BY_NAME = """
import json
from transformers import AutoModelForCausalLM, AutoTokenizer
mas = AutoModelForCausalLM.from_pretrained("my-org/Tiny", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("my-org/Tiny", trust_remote_code=True)
inputs = tokenizer("What is the answer?", return_tensors="pt")
print(json.dumps(mas.generate(**inputs, max_new_tokens=16, do_sample=False).tolist()))
"""


@pytest.mark.slow
def test_a_stranger_uses_every_card_as_it_is_printed(pair, hub, client, staged, tmp_path):
    """Fresh process, empty cache, empty folder: all code blocks of all cards, then the tokens of the source."""
    assert client.run(*push_command(staged, "--yes"))[0] == 0
    with Worker(hub, tmp_path / "stranger") as stranger:
        languages = []
        for name in NAMES:
            card = hub.repos[name].commits[-1][1]["README.md"].decode()
            for block in code_blocks(card):
                languages.append(block.language)
                status, output = stranger.block(block.language, block.code)
                assert status == 0 and (output.strip() or block.language == "bash"), f"{name}\n{block.code}\n{output}"
        assert languages.count("python") == 8 and languages.count("bash") == 1
        status, output = stranger.block("python", BY_NAME)
        assert status == 0, output
    inputs = pair.tokenizer(QUESTION, return_tensors="pt")
    expected = pair.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert json.loads(output.splitlines()[-1]) == expected.tolist()


@pytest.mark.slow
def test_without_a_token_a_private_system_says_so(hub, client, staged, tmp_path):
    assert client.run(*push_command(staged, "--yes"))[0] == 0
    with Worker(hub, tmp_path / "stranger", token=None) as stranger:
        status, output = stranger.block("python", BY_NAME)
    assert status == 1 and "my-org/Tiny" in output
