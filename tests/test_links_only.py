"""Publications that name base models of the Hub at their commits, and hold links only."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from loopback_hub import LoopbackHub, Worker
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.errors_recursivemas import ConfigError
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.upload import check, code, plan, scan, stage
from released import place_in_cache
from snippets import code_blocks
from tiny import tiny_base, tiny_chain

QUESTION = "What is the answer?"
BASES = {"expert": "qwen3_5", "learner": "llama"}  # one of a multimodal checkpoint


def system_on_the_hub(folder: Path) -> tuple[Path, Path]:
    """(a system of links whose agents are `makers/expert` and `makers/learner`, the folder with these)."""
    for index, (role, architecture) in enumerate(BASES.items()):
        for part in tiny_base(architecture, seed=index):
            part.save_pretrained(folder / "bases" / role)
        (folder / "bases" / role / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    tiny_chain(BASES).save_pretrained(folder / "system")
    config = json.loads((folder / "system" / "config.json").read_text())
    for role, entry in config["agents"].items():
        entry["source"] = f"makers/{role}"
    (folder / "system" / "config.json").write_text(json.dumps(config))
    return folder / "system", folder / "bases"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with `system`, whose base models are in the Hub cache, and `staged`."""
    folder = tmp_path_factory.mktemp("links-only")
    system, bases = system_on_the_hub(folder)
    place_in_cache(bases, Path(constants.HF_HUB_CACHE), "makers")
    stage.stage(str(system), folder / "staged", plan.Options("my-org", "Tiny", QUESTION))
    return folder


def test_base_models_of_the_hub_are_named_at_their_commits_and_not_copied(workplace):
    staged = workplace / "staged"
    assert {path.name for path in staged.rglob("*.safetensors")} == {
        *("inner_link.safetensors", "expert_to_learner.safetensors", "learner_to_expert.safetensors")
    }
    expected, found = (RecursiveMASModel.from_pretrained(workplace / "system"), plan.load_plan(staged))
    for role, entry in json.loads((staged / "Tiny" / "config.json").read_text())["agents"].items():
        base = found.agents[role].base
        assert base == {"source": f"makers/{role}", "revision": entry["revision"]} and len(entry["revision"]) == 40
        assert entry["source"] == base["source"]
        assert entry["inner_link"]["weights"]["source"] == found.agents[role].id
        folder = staged / found.agents[role].name
        assert scan.scan(folder) == code.foreign_code(folder, "agent") == []
        card = ModelCard.load(folder / "README.md")
        assert card.data.base_model == base["source"] and card.data.license == "apache-2.0"
        assert card.data.pipeline_tag is None  # a pipeline would look for weights
        assert f'from_pretrained("{base["source"]}", revision="{base["revision"]}")' in card.text
        agent = RecursiveMASAgent.from_pretrained(folder)
        for name, tensor in expected.agents[role].state_dict().items():
            assert torch.equal(agent.state_dict()[name], tensor)
    whole = RecursiveMASModel.from_pretrained(staged / "Tiny", clones=staged)
    assert whole.solve(QUESTION, max_new_tokens=6)[0].text == expected.solve(QUESTION, max_new_tokens=6)[0].text


def test_weights_go_along_where_that_is_asked_for(workplace, tmp_path):
    for option in ("with_weights", "release_layout"):
        options = plan.Options("my-org", "Tiny", QUESTION, **{option: True})
        found = stage.stage(str(workplace / "system"), tmp_path / option, options)
        assert not any(repository.base for repository in found.repositories)
        assert len(list((tmp_path / option).glob("*/model.safetensors"))) == 2


def test_the_check_hands_in_the_named_commits_alone_and_says_so(workplace, monkeypatch):
    """The processes in the place of which this stands are tried by the slow test below."""
    caches = []

    def run(script, arguments, size, isolated, cache):
        caches.append(sorted(path.name for path in Path(cache).iterdir()))
        return json.dumps({}), None

    monkeypatch.setattr(check, "run_limited", run)
    monkeypatch.setattr(check, "differences", lambda expected, found: [])
    staged, both = workplace / "staged", ["models--makers--expert", "models--makers--learner"]
    findings = check.check(staged)
    assert [problem for finding in findings for problem in finding.problems] == []
    assert caches == [both[:1], both[1:], [], both]
    commits = [base.base["revision"] for base in plan.load_plan(staged).repositories[:2]]
    expected = [f"makers/{role}@{commit}" for role, commit in zip(BASES, commits, strict=True)]
    assert [finding.base_models for finding in findings] == [expected[:1], expected[1:], [], expected]


def test_a_base_model_that_cannot_be_had_is_a_problem(workplace):
    found = plan.load_plan(workplace / "staged")
    repository = found.agents["expert"]
    repository.base["revision"] = "f" * 40
    assert "cannot be had" in check.load_alone(found, repository, workplace / "staged")[1]


@pytest.mark.parametrize(
    "entry",
    ["org/name", {}, {"source": 3}, {"source": "/somewhere"}, {"source": "./x"}, {"source": "a/b", "where": "x"}],
    ids=str,
)
def test_an_agent_names_its_base_model_by_a_repository_of_the_hub(entry, workplace, tmp_path):
    content = json.loads((workplace / "staged" / "Tiny-Expert-expert" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "base_model": entry}))
    with pytest.raises(ConfigError, match="base_model"):
        RecursiveMASAgent.from_pretrained(tmp_path)


@pytest.mark.slow
def test_a_stranger_gets_the_base_models_from_their_own_repositories(tmp_path):
    """Staged, checked and pushed by the command against a Hub; then every block of every card, by somebody else."""
    system, bases = system_on_the_hub(tmp_path)
    with LoopbackHub() as hub, Worker(hub, tmp_path / "client") as client:
        for role in BASES:
            hub.add(f"makers/{role}", bases / role)
        commits = {role: hub.repos[f"makers/{role}"].commits[-1][0] for role in BASES}
        staged = str(tmp_path / "staged")
        command = ["publish", "stage", str(system), "--namespace", "my-org", "--name", "Tiny", "--output", staged]
        spaces = ["--space"] * bool(find_spec("gradio"))  # whose page loads the whole system
        status, output = client.run(*command, *spaces)
        assert status == 0, output
        status, output = client.run("publish", "check", staged)
        assert status == 0 and output.count(f"makers/expert@{commits['expert']}") == 2 + len(spaces), output
        status, output = client.run("publish", "push", staged, "--yes")
        assert status == 0, output
        for role in BASES:  # it moves on, and what was published does not
            hub.repos[f"makers/{role}"].commit({"README.md": b"Nothing is here any more."})
        with Worker(hub, tmp_path / "stranger") as stranger:
            for name in ("my-org/Tiny-Expert-expert", "my-org/Tiny-Learner-learner", "my-org/Tiny"):
                files = hub.repos[name].commits[-1][1]
                assert not any("model" in file and file.endswith(".safetensors") for file in files)
                for block in code_blocks(files["README.md"].decode()):
                    status, output = stranger.block(block.language, block.code)
                    assert status == 0, f"{name}\n{block.code}\n{output}"


def test_an_adapter_on_a_model_of_the_hub_names_its_place_for_the_whole_system(chain):
    place = {"source": "Q/Base", "revision": "a" * 40}
    for adapted, places in (({"critic": None}, {"critic": place}), ({"critic": "planner"}, {"planner": place})):
        options = plan.Options("my-org", "Tiny", QUESTION, base_models=dict.fromkeys(chain.agents, "Q/Base"))
        found = plan.make_plan(chain.config, "x", options, {}, adapted, places)
        assert found.adapters["critic"].base == place and found.adapters["critic"].base_model == "Q/Base"
        assert [str(base) for base in check.base_models(found, found.composite)] == [f"Q/Base@{'a' * 40}"]
        assert check.base_models(found, found.adapters["critic"]) == []
