"""The Space of a publication: what is staged runs, the check refuses what is not ours, and a push sends it."""

import json
import runpy
import shutil
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import RepoCard
from loopback_hub import LoopbackHub, Worker
from recursivemas import system_loader
from recursivemas.errors_recursivemas import InputError
from recursivemas.upload import check, files, plan, space, stage
from tiny import tiny_chain

QUESTION = 'What is "it"?'


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    system = tiny_chain({"expert": "qwen3", "learner": "llama"})
    system.config.style = "distillation"
    system.save_pretrained(folder / "system")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space.metadata, "version", lambda package: "6.0.0")  # whether it is installed or not
        stage.stage(str(folder / "system"), folder / "staged", plan.Options("my-org", "Tiny", QUESTION, space=True))
    return folder / "staged"


@pytest.fixture
def changed(staged, tmp_path):
    """A copy of the Space, to be changed."""
    return shutil.copytree(staged / "Tiny-Space", tmp_path / "Tiny-Space")


@pytest.mark.slow
def test_a_staged_space_asks_its_system(staged, monkeypatch):
    pytest.importorskip("gradio", reason="needs the extra [app]")
    load = system_loader.load_mas_system
    there = partial(load, clones=str(staged))
    monkeypatch.setattr(system_loader, "load_mas_system", lambda name, **kw: there(staged / Path(name).name, **kw))
    found = runpy.run_path(str(staged / "Tiny-Space" / "app.py"), run_name="space")
    assert found["examples"] == [{"question": QUESTION}]
    texts = [entry["props"].get("value") for entry in found["page"].config["components"]]
    assert QUESTION in texts and any("expert → learner" in str(text) for text in texts)
    (ask,) = (fn.fn for fn in found["page"].fns.values() if fn.api_name == "ask")
    *cards, trace = list(ask(QUESTION, ["latent"], 1, 2))[-1]
    (solution,) = load(str(staged.parent / "system")).solve(QUESTION, num_rounds=1, latent_steps=2)
    assert f"{solution.usage['new_tokens']} tokens written" in cards[0] and "iframe" in trace


def test_a_space_says_what_it_is_and_needs(staged):
    data = RepoCard.load(staged / "Tiny-Space" / "README.md").data.to_dict()
    assert (data["sdk"], data["sdk_version"], data["app_file"]) == ("gradio", "6.0.0", "app.py")
    assert data["models"] == [repository.id for repository in plan.load_plan(staged).repositories]
    assert len(data["short_description"]) <= 60
    needed = (staged / "Tiny-Space" / "requirements.txt").read_text().split()
    assert any(line.startswith("torch") for line in needed) and not any("extra" in line for line in needed)
    own = [path for path in files.files_of(staged / "Tiny-Space") if path.parts[0] == "recursivemas"]
    assert own == sorted(Path("recursivemas", path) for path in space.package_files())
    assert not list((staged / "Tiny-Space").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("recursivemas/app.py", "print(1)", "not this clone's code"),
        ("recursivemas/more.json", "{}", "not this clone's code"),
        ("app.py", "print(1)", "not the page"),
        ("more.py", "print(1)", "not the page"),
        ("notes.txt", "hf_" + "a" * 34, "token"),
        ("run.sh", "true", "kind that does not belong"),
    ],
)
def test_what_is_not_ours_in_a_space_is_found(name, text, message, staged, changed):
    found = plan.load_plan(staged)
    assert space.space_problems(found, changed) == []
    (changed / name).write_text(text)
    (problem,) = space.space_problems(found, changed)
    assert problem.startswith(name) and message in problem


def test_a_role_keeps_its_name(tmp_path):
    system = tiny_chain({"expert": "qwen3", "space": "llama"})
    system.save_pretrained(tmp_path / "system")
    with pytest.raises(InputError, match="name of a role"):
        stage.stage(str(tmp_path / "system"), tmp_path / "staged", plan.Options("o", "Tiny", QUESTION, space=True))
    assert not (tmp_path / "staged").exists()


@pytest.mark.slow
def test_a_space_is_checked_by_itself_and_pushed_last(staged, tmp_path):
    pytest.importorskip("gradio", reason="needs the extra [app]")
    findings = check.check(staged)
    assert [(finding.repository.id, finding.problems) for finding in findings][-1] == ("my-org/Tiny-Space", [])
    assert not [finding for finding in findings if finding.problems]
    with LoopbackHub() as hub, Worker(hub, tmp_path / "client") as client:
        status, output = client.run("publish", "push", str(staged), "--yes")
        assert status == 0, output
        assert list(hub.repos)[-1] == "my-org/Tiny-Space" and hub.repos["my-org/Tiny-Space"].private
        there = dict(hub.repos["my-org/Tiny-Space"].commits[-1][1])
        del there[".gitattributes"]
        local = staged / "Tiny-Space"
        assert there == {path.as_posix(): (local / path).read_bytes() for path in files.files_of(local)}
        assert client.run("publish", "push", str(staged), "--yes")[0] == 0
    record = json.loads((staged / files.CHECKED).read_text())
    assert "Tiny-Space" in record
    (staged / "Tiny-Space" / "notes.txt").write_text("later")
    with LoopbackHub() as hub, Worker(hub, tmp_path / "client") as client:
        status, output = client.run("publish", "push", str(staged))
        assert status == 2 and "changed since the check" in output
