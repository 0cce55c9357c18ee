"""A save is one step: whatever happens meanwhile, there is the old system or the new one; and a mixture says so."""

import json
import os
import random
import re
import shutil

import pytest
import torch
from faults import DISTURBED, Faults, works
from recursivemas.cli import help_texts, main
from recursivemas.errors_recursivemas import CheckpointError
from recursivemas.folders_recursivemas import is_unused, replacing, settle
from recursivemas.system_loader import ROOT, load_mas_system
from safetensors.torch import load_file, save_file
from tiny import tiny_chain
from transformers import AutoConfig


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with two systems of one shape, `old` and `new`, in which every weight differs."""
    folder = tmp_path_factory.mktemp("pair")
    mas = tiny_chain(num_rounds=2)
    mas.save_pretrained(folder / "old")
    with torch.no_grad():
        for parameter in mas.parameters():
            parameter.mul_(1.01)
    mas.config.num_rounds = 3
    mas.save_pretrained(folder / "new")
    return folder


@pytest.fixture(scope="module")
def everything_that_writes(tmp_path_factory):
    return works(tmp_path_factory.mktemp("works"))


@pytest.mark.parametrize("name", ["save", pytest.param("stage", marks=pytest.mark.slow), "results"])
def test_a_killed_writer_leaves_the_old_state_or_the_new_and_the_same_again_completes_it(name, everything_that_writes):
    """`make faults` tries more of them, and every command that writes."""
    faults = Faults(name, everything_that_writes[name])
    for seed in range(2):
        faults.kill(random.Random(seed))
    faults.fill_disk(5_000)
    assert not [text for text in faults.counts if DISTURBED in text], faults.counts
    assert not [text for text in faults.counts if "again" in text and "again: new" not in text], faults.counts


def interrupted(pair, place, moved):
    """A folder whose save was killed when so many of its files had been moved: the new system over the old one."""
    shutil.copytree(pair / "old", place)
    shutil.copytree(pair / "new", place / ".saving" / "files")
    names = sorted(path.relative_to(pair / "new").as_posix() for path in (pair / "new").rglob("*") if path.is_file())
    (place / ".saving" / "journal.json").write_text(json.dumps({"files": names, "owned": {}}))
    for name in random.Random(moved).sample(names, moved):
        os.replace(place / ".saving" / "files" / name, place / name)
    return place


@pytest.mark.parametrize("moved", [0, 1, 9])
@pytest.mark.parametrize(
    "load", [load_mas_system, lambda place: AutoConfig.from_pretrained(place, trust_remote_code=True)]
)
def test_a_load_finishes_a_save_that_was_interrupted_when_all_was_written(pair, tmp_path, moved, load):
    place = interrupted(pair, tmp_path / "system", moved)
    load(place)
    assert (
        not list(place.glob(".saving*")) and AutoConfig.from_pretrained(place, trust_remote_code=True).num_rounds == 3
    )
    for path in [*pair.glob("new/links/*"), *pair.glob("new/agents/*/*")]:
        assert (place / path.relative_to(pair / "new")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "journal",
    [
        "[]",
        "{",
        '{"files": ["../outside"], "owned": {}}',
        '{"files": [], "owned": {"..": ["*"]}}',
        '{"files": [], "owned": {"": ["../*"]}}',
        '{"files": [], "owned": {"out": ["*"]}}',
        '{"files": ["out/outside"], "owned": {}}',
    ],
)
def test_what_is_finished_at_load_never_leaves_the_folder(pair, tmp_path, journal):
    place = interrupted(pair, tmp_path / "system", 0)
    (place / ".saving" / "journal.json").write_text(journal)
    (tmp_path / "elsewhere").mkdir()
    for file in (tmp_path / "outside", tmp_path / "elsewhere" / "mine"):
        file.write_text("mine")
    (place / "out").symlink_to(tmp_path / "elsewhere")
    (place / ".saving" / "files" / "out").mkdir()
    (place / ".saving" / "files" / "out" / "outside").write_text("foreign")
    with pytest.raises(CheckpointError, match="interrupted"):
        load_mas_system(place)
    assert (tmp_path / "outside").read_text() == (tmp_path / "elsewhere" / "mine").read_text() == "mine"
    assert not (tmp_path / "elsewhere" / "outside").exists()


def test_what_an_interrupted_save_would_bring_is_never_taken_from_elsewhere(pair, tmp_path):
    place = interrupted(pair, tmp_path / "system", 0)
    shutil.move(place / ".saving", tmp_path / "elsewhere")
    (place / ".saving").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="interrupted"):
        load_mas_system(place)
    assert (tmp_path / "elsewhere" / "journal.json").exists() and (tmp_path / "elsewhere/files/config.json").exists()


FILES = ["links/planner.safetensors", "links/critic_to_solver.safetensors", "agents/critic/model.safetensors"]


@pytest.mark.parametrize("file", FILES)
def test_weights_of_two_saves_are_not_loaded_together(pair, tmp_path, file):
    place = shutil.copytree(pair / "old", tmp_path / "system")
    shutil.copy(pair / "new" / file, place / file)
    with pytest.raises(CheckpointError, match="two saves") as error:
        load_mas_system(place)
    assert file in str(error.value) and "weights.json" in str(error.value)
    (place / "weights.json").unlink()
    load_mas_system(place)  # on purpose


def test_an_agents_repository_holds_the_weights_of_one_save(pair, tmp_path):
    for name in ("old", "new"):
        load_mas_system(pair / name).agents["critic"].save_pretrained(tmp_path / name)
    agent = type(load_mas_system(pair / "old").agents["critic"])
    agent.from_pretrained(tmp_path / "old")
    shutil.copy(tmp_path / "new" / "inner_link.safetensors", tmp_path / "old")
    with pytest.raises(CheckpointError, match="two saves"):
        agent.from_pretrained(tmp_path / "old")


def edit_config(place):
    config = json.loads((place / "config.json").read_text())
    config["num_rounds"] = 1
    (place / "config.json").write_text(json.dumps(config))


BY_HAND = {
    "settings": edit_config,
    "a template": lambda place: (place / "agents/critic/chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    ),
    "no stamp": lambda place: (place / "weights.json").unlink(),
    "a link": lambda place: save_file(
        {name: tensor * 2 for name, tensor in load_file(place / FILES[0]).items()}, place / FILES[0]
    ),
}


@pytest.mark.parametrize("change", BY_HAND.values(), ids=BY_HAND)
def test_what_is_changed_by_hand_is_loaded(pair, tmp_path, change):
    place = shutil.copytree(pair / "old", tmp_path / "system")
    change(place)
    assert load_mas_system(place).solve("Why?", max_new_tokens=1)


@pytest.mark.parametrize("stamp", ["[]", '{"weights": 5}', '{"weights": {"links/planner.safetensors": {}}}'])
def test_a_broken_stamp_is_named(pair, tmp_path, stamp):
    place = shutil.copytree(pair / "old", tmp_path / "system")
    (place / "weights.json").write_text(stamp)
    with pytest.raises(CheckpointError, match=r"weights\.json"):
        load_mas_system(place)


def test_check_holds_every_byte_of_a_save_against_its_stamp(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("recursivemas.release.check.run_limited", lambda *_: ("", None))  # of which others are laws
    place = shutil.copytree(pair / "old", tmp_path / "system")
    assert main(["check", str(place)]) == 0
    content = bytearray((place / FILES[2]).read_bytes())
    content[-1] ^= 1
    (place / FILES[2]).write_bytes(content)
    assert main(["check", str(place)]) == 1
    assert FILES[2] in capsys.readouterr().out


def test_what_the_old_system_had_beside_its_weights_does_not_count_for_the_new_one(pair, tmp_path):
    place = shutil.copytree(pair / "old", tmp_path / "system")
    stale = [place / "agents/critic" / name for name in ("model.safetensors.index.json", "added_tokens.json")]
    for file in (*stale, mine := place / "agents/critic/notes.json"):
        file.write_text("{}")
    load_mas_system(pair / "new").save_pretrained(place)
    assert not any(file.exists() for file in stale) and mine.exists()


def test_a_system_is_saved_into_the_folder_that_it_was_loaded_from(pair, tmp_path):
    place = shutil.copytree(pair / "old", tmp_path / "system")
    mas = load_mas_system(place)
    before = (place / FILES[2]).stat().st_ino
    with torch.no_grad():
        next(mas.outer_links["critic_to_solver"].parameters()).add_(1)
    mas.save_pretrained(place)
    assert (place / FILES[2]).stat().st_ino == before  # the agents stay as they are
    again = load_mas_system(place).state_dict()
    assert all(torch.equal(again[name], value) for name, value in mas.state_dict().items())


def test_a_writer_that_fails_leaves_no_trace(pair, tmp_path):
    for place in (tmp_path / "new", shutil.copytree(pair / "old", tmp_path / "there")):
        before = sorted(place.rglob("*"))
        with pytest.raises(CheckpointError, match="as it was") as error, replacing(place) as new:
            (new / "config.json").write_text("{}")
            raise OSError(28, "No space left on device")
        assert "No space left" in str(error.value) and sorted(place.rglob("*")) == before
    assert not (tmp_path / "new").exists()


def test_something_in_the_way_is_found_before_anything_is_moved(tmp_path):
    (tmp_path / "links").write_text("mine")
    with pytest.raises(CheckpointError, match="in the way"), replacing(tmp_path) as new:
        (new / "links").mkdir()
        (new / "links" / "a").write_text("a")
        (new / "b").write_text("b")
    assert [path.name for path in tmp_path.iterdir()] == ["links"]


def test_remains_of_a_killed_writer_are_no_output_and_go_with_the_next(tmp_path):
    (tmp_path / ".saving-dead" / "files").mkdir(parents=True)
    assert is_unused(tmp_path)
    with replacing(tmp_path) as new, replacing(tmp_path) as other:  # two at once
        (new / "a").write_text("new")
        (other / "a").write_text("other")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "new"
    settle(tmp_path)


OVERWRITING = {
    "init-links": lambda pair, place: [
        *("init-links", "--system", str(pair / "old"), "--agent", f"critic={pair / 'new/agents/critic'}"),
        *("--no-probe", "--output", str(place)),
    ],
    "convert": lambda pair, place: ["convert", "sequential_light", str(place)],
    "publish stage": lambda pair, place: [
        *("publish", "stage", str(pair / "old"), "--namespace", "o", "--name", "N", "--output", str(place)),
    ],
    "train": lambda pair, place: [
        *("train", "outer", "--system", str(pair / "old"), "--data", "no.jsonl", "--output", str(place)),
    ],
    "import-prompts": lambda pair, place: ["import-prompts", "no", "--style", "mixture", "--output", str(place)],
}  # fmt: skip


DATA = ("--data", "arithmetic", "--num-questions", "2")
ONE_FILE = {  # commands that write one
    "evaluate": ["evaluate", *DATA],
    "controls": ["controls", *DATA],
    "score": ["score", "--metric", "exact", "--file", "no.jsonl"],
    "trace": ["trace", "1+1"],
    "train data": ["train", "data", "--data", "arithmetic", "--system", "no"],
    "index": ["index", str(ROOT / "docs")],
}


def files_of(place):
    return {path: path.stat().st_mtime_ns for path in place.rglob("*")}


@pytest.mark.parametrize("command", ONE_FILE.values(), ids=ONE_FILE)
def test_no_command_writes_over_a_file_unless_it_is_told_to(tmp_path, capsys, command):
    place = tmp_path / "notes.json"
    place.write_text("somebody's")
    before = files_of(tmp_path)
    assert main([*command, "--output", str(place)]) == 2
    assert str(place) in capsys.readouterr().err and files_of(tmp_path) == before


@pytest.mark.parametrize("name", ["step.json", "step.png", "gsm8k.json", "gsm8k.md", "gsm8k.jsonl", "gsm8k.png"])
def test_no_benchmark_writes_over_figures_unless_it_is_told_to(tmp_path, capsys, name):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "How many?", "answer": "Two. #### 2"}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("somebody's")
    command = ["bench", "step", "--quick"] if name.startswith("step") else ["benchmark", "gsm8k", "--data", str(rows)]
    before = files_of(tmp_path)
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    assert name in capsys.readouterr().err and files_of(tmp_path) == before


def test_every_command_with_an_output_is_among_these():
    writing = {
        name.split()[0] for name in (*OVERWRITING, *ONE_FILE, "bench", "benchmark", "solve")
    }  # solve: test_long_work.py
    found = {name.split()[0] for name, text in help_texts().items() if re.search("^  --output", text, re.M)}
    assert found == writing - {"convert"}  # whose folder is no option


@pytest.mark.parametrize("command", OVERWRITING.values(), ids=OVERWRITING)
def test_no_command_overwrites_what_is_there_unless_it_is_told_to(pair, tmp_path, capsys, command):
    place = shutil.copytree(pair / "new", tmp_path / "system")
    before = files_of(tmp_path)
    assert main(command(pair, place)) == 2
    assert str(place) in capsys.readouterr().err and files_of(tmp_path) == before


def test_init_links_replaces_a_system_when_it_is_told_to(pair, tmp_path):
    place = shutil.copytree(pair / "new", tmp_path / "system")
    assert main([*OVERWRITING["init-links"](pair, place), "--replace"]) == 0
    loaded, expected = load_mas_system(place), load_mas_system(pair / "old")
    assert loaded.config.agents["critic"]["source"] == str(pair / "new/agents/critic")
    for role in ("planner", "solver"):  # the others' models are where they belong
        found = loaded.agents[role].model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.agents[role].model.state_dict().items())
