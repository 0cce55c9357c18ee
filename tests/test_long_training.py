"""Training that is stopped, broken, finished, extended or changed: what was done is kept, nothing happens silently."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from recursivemas.errors_recursivemas import RecursiveMASError
from recursivemas.evaluation.interrupts import Interrupted
from recursivemas.training import run as runs
from recursivemas.training.checkpoints import SEAL_FILE, last_checkpoint, needed_files
from recursivemas.training.run import train
from recursivemas.training.trainer import LinkTrainer
from safetensors.torch import load_file
from test_training import flags, losses_of, rows_of, settings
from tiny import tiny_chain


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A system and rows on disk, and a finished run of six steps."""
    folder = tmp_path_factory.mktemp("workshop")
    tiny_chain().save_pretrained(folder / "system")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows_of(24))))
    train("outer", settings(folder, folder / "finished", save_total_limit=None))
    return folder


@pytest.fixture
def finished(workshop, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(workshop / "finished", tmp_path / "run")


def go_on(workshop, output, **changes):
    return train("outer", settings(workshop, output, save_total_limit=None, **changes), resume=True)


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same_links(one, other):
    for path in (one / "links").iterdir():
        a, b = load_file(path), load_file(other / "links" / path.name)
        if not all(a[key].equal(b[key]) for key in a):
            return False
    return True


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_finished_run_is_left_alone(workshop, finished, capsys, checkpoints):
    if not checkpoints:
        for path in (finished / "training").glob("checkpoint-*"):
            shutil.rmtree(path)
    before = files_of(finished)
    result = go_on(workshop, finished)
    assert "already finished" in capsys.readouterr().out
    assert files_of(finished) == before
    assert result == {name: json.loads(before["training/result.json"])[name] for name in ("step", "loss")}


def test_a_run_that_was_killed_while_it_saved_the_system_takes_no_further_step(workshop, finished, monkeypatch):
    whole = json.loads((finished / "training" / "result.json").read_text())
    (finished / "training" / "result.json").unlink()
    shutil.rmtree(finished / "links")
    monkeypatch.setattr(LinkTrainer, "training_step", lambda *_: pytest.fail("a step was taken"))
    result = go_on(workshop, finished)
    assert result["step"] == 6 and result["loss"] == pytest.approx(whole["loss"])
    assert same_links(workshop / "finished", finished)


def test_a_finished_run_whose_max_steps_grew_goes_on(workshop, finished):
    steps = [path.name for path in (finished / "training").glob("checkpoint-*")]
    result = go_on(workshop, finished, max_steps=9)
    losses = losses_of(finished)
    assert result["step"] == 9 and len(losses) == 9 and losses[:6] == losses_of(workshop / "finished")
    assert result["loss"] == pytest.approx(sum(losses) / 9, rel=1e-6)
    assert not same_links(workshop / "finished", finished)
    assert {path.name for path in (finished / "training").glob("checkpoint-*")} == {
        *steps, "checkpoint-8", "checkpoint-9"
    }  # fmt: skip


@pytest.mark.slow
def test_the_learning_rate_of_a_longer_run_is_that_of_its_schedule(workshop, finished):
    """The shorter schedule ended at zero; a step there would be lost."""
    train("outer", settings(workshop, finished.parent / "nine", max_steps=9))
    go_on(workshop, finished, max_steps=9)
    rates = [
        [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry][6:]
        for state in (
            json.loads((folder / "training" / "trainer_state.json").read_text())
            for folder in (finished, finished.parent / "nine")
        )
    ]
    assert rates[0] == pytest.approx(rates[1]) and rates[0][0] > 0


def test_the_first_step_of_a_longer_run_is_not_lost(workshop, finished):
    """At the shorter schedule's last rate, zero, it would change nothing."""
    go_on(workshop, finished, max_steps=7)
    assert not same_links(workshop / "finished", finished)


def test_a_run_does_not_get_shorter(workshop, finished):
    with pytest.raises(RecursiveMASError, match="max_steps: 6 -> 4"):
        go_on(workshop, finished, max_steps=4)


def harm(path, how):
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "sealed"),
    [("missing", True), ("cut", True), ("flipped", True), ("missing", False), ("cut", False)],
    ids=lambda value: value if isinstance(value, str) else "sealed" if value else "of an earlier version",
)
@pytest.mark.parametrize("name", needed_files(1))
def test_only_a_whole_checkpoint_counts(workshop, finished, capsys, name, how, sealed):
    folder = finished / "training"
    for path in folder.glob("checkpoint-*") if not sealed else []:
        (path / SEAL_FILE).unlink()
    assert last_checkpoint(folder).name == "checkpoint-6"
    harm(folder / "checkpoint-6" / name, how)
    assert last_checkpoint(folder, quiet=False).name == "checkpoint-4"
    said = capsys.readouterr().err
    assert "checkpoint-6 is not whole" in said and "going on from checkpoint-4" in said


def test_a_run_goes_on_from_the_checkpoint_before_to_the_same_bits(workshop, finished, capsys):
    harm(finished / "training" / "checkpoint-6" / "optimizer.pt", "cut")
    shutil.rmtree(finished / "links")
    result = go_on(workshop, finished)
    assert "going on from checkpoint-4" in capsys.readouterr().err
    assert same_links(workshop / "finished", finished)
    assert result["loss"] == pytest.approx(json.loads((finished / "training/result.json").read_text())["loss"])
    assert last_checkpoint(finished / "training").name == "checkpoint-6"


def test_without_a_whole_checkpoint_each_is_named_with_its_fault(workshop, finished):
    for path in (finished / "training").glob("checkpoint-*"):
        (path / "scheduler.pt").unlink()
    with pytest.raises(RecursiveMASError, match=r"checkpoint-6: scheduler\.pt is missing; checkpoint-4"):
        go_on(workshop, finished)


def one_row_more(rows):
    return [*rows, rows_of(25)[-1]]


def another_target(rows):
    return [{**rows[0], "targets": {**rows[0]["targets"], "critic": "another plan"}}, *rows[1:]]


def another_order(rows):
    return rows[::-1]


@pytest.mark.parametrize(
    ("change", "named"),
    [(one_row_more, "24 -> 25"), (another_target, "texts of the rows"), (another_order, "texts of the rows")],
)
def test_changed_rows_are_refused(workshop, finished, tmp_path, change, named):
    """At the path of the rows that the run began with."""
    rows = workshop / "rows.jsonl"
    before = rows.read_text()
    try:
        rows.write_text("\n".join(map(json.dumps, change(rows_of(24)))))
        with pytest.raises(RecursiveMASError, match=named):
            go_on(workshop, finished, max_steps=9)
    finally:
        rows.write_text(before)
    go_on(workshop, finished)


@pytest.mark.parametrize("part", ["prompts", "agent"])
def test_a_system_that_changed_is_refused(workshop, finished, tmp_path, part):
    system = workshop / "system"
    kept = shutil.copytree(system, tmp_path / "kept")
    try:
        if part == "prompts":
            config = json.loads((system / "config.json").read_text())
            prompts = json.dumps(config["prompts"]).replace("<|question|>", "<|question|> Think!")
            config["prompts"] = json.loads(prompts)
            (system / "config.json").write_text(json.dumps(config))
        else:
            from safetensors.torch import save_file

            path = system / "agents" / "critic" / "model.safetensors"
            save_file({name: value * 1.5 for name, value in load_file(path).items()}, path, {"format": "pt"})
            (system / "weights.json").unlink()  # which would tell that it is no longer one save
        with pytest.raises(RecursiveMASError, match="prompts" if part == "prompts" else "weights of the system"):
            go_on(workshop, finished, max_steps=9)
    finally:
        shutil.rmtree(system)
        shutil.copytree(kept, system)


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_run_saves_and_goes_on_to_the_same_bits(workshop, tmp_path, monkeypatch, signum):
    step = LinkTrainer.training_step

    def interrupted_step(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signum)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LinkTrainer, "training_step", interrupted_step)
        with pytest.raises(Interrupted, match=r"step 3 of 6.*checkpoint-3.*--resume") as stopped:
            train("outer", settings(workshop, tmp_path, save_steps=0))
    assert stopped.value.signum == signum and signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler)
    assert last_checkpoint(tmp_path / "training").name == "checkpoint-3"
    go_on(workshop, tmp_path, save_steps=0)
    assert same_links(workshop / "finished", tmp_path)


def test_an_interruption_before_the_first_step_says_that_nothing_was_saved(workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "build_objective", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="before anything"):
        train("outer", settings(workshop, tmp_path))


def test_older_checkpoints_go_only_when_a_new_one_is_whole(workshop, tmp_path, monkeypatch):
    """As if killed while the second checkpoint is sealed."""
    calls = []

    def seal(checkpoint, losses):
        calls.append(checkpoint)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return whole(checkpoint, losses)

    from recursivemas.training import trainer

    whole = trainer.seal
    monkeypatch.setattr(trainer, "seal", seal)
    with pytest.raises(RuntimeError, match="killed"):
        train("outer", settings(workshop, tmp_path, save_total_limit=1))
    assert (tmp_path / "training" / "checkpoint-2" / SEAL_FILE).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_how_to_go_on_and_ends_with_the_signals_status(workshop, tmp_path, signum):
    config = settings(workshop, tmp_path / "run", max_steps=2000, save_steps=0, threads=1)
    command = [sys.executable, "-m", "recursivemas.cli", "train", "outer", *flags(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "'loss'" in line:
            break
    time.sleep(0.2)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signum and "--resume" in errors and "Traceback" not in errors
    assert last_checkpoint(tmp_path / "run" / "training") is not None
