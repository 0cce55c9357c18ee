"""What a user of the command line can do wrong is one message and status 2, before anything is loaded or fetched."""

import importlib.metadata
import json
import os
import shlex
import socket
import subprocess
import sys

import pytest
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation import commands, solve
from recursivemas.release.check import check_system
from recursivemas.system_loader import ROOT, find_system, load_mas_system, small_systems


def message_of(capsys, *arguments):
    status = cli.main(list(map(str, arguments)))
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "") and "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["solve", "--latent-steps", "-1", "q"], "--latent-steps"),
        (["solve", "--rounds", str(10**30), "q"], "--rounds"),
        (["solve", "--batch-size", "0", "q"], "--batch-size"),
        (["solve", "--max-new-tokens", "0", "q"], "--max-new-tokens"),
        (["solve", "--mode", "telepathy", "q"], "--mode"),
        (["solve", "--task", "cooking", "q"], "--task"),
        (["solve", "--device", "nonsense", "q"], "device"),
        (["solve", "--device", "cuda:99", "q"], "device"),
        (["solve", "--dtype", "int8", "q"], "dtype"),
        (["solve", "--dtype", "nonsense", "q"], "dtype"),
        (["solve", "--system", " ", "q"], "--system"),
        (["evaluate", "--num-questions", str(10**12)], "--num-questions"),
        (["evaluate", "--num-questions", "2", "--rounds", "1", "0"], "--rounds"),
        (["controls", "--num-questions", "0"], "--num-questions"),
        (["inspect", "thoughts", "--rounds", "0", "--questions", "q"], "--rounds"),
        (["init-links", "--style", "distillation", "--temperature", "nan", "--output", "x"], "--temperature"),
        (["init-links", "--style", "distillation", "--codebook-size", "0", "--output", "x"], "--codebook-size"),
        (["serve", "--port", "99999"], "--port"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--device", "nonsense"], "device"),
        (["import-prompts", str(ROOT / "LICENSE"), "--style", "sequential"], "LICENSE"),
        (["convert", "sequentail_light", "x"], "did you mean `sequential_light`"),
    ],
)
def test_arguments_are_judged_before_anything_is_loaded(arguments, named, capsys, monkeypatch):
    def never(*_, **__):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(commands, "load_mas_system", never)
    assert named in message_of(capsys, *arguments)


def test_what_the_system_of_the_machine_refuses_is_one_message(capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "file" in message_of(capsys, "solve", "--file", tmp_path / "file" / "below", "--system", "x/y")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in message_of(capsys, "serve", "--port", port)


def test_a_full_disk_is_one_message(capsys, monkeypatch):
    def full(arguments):
        raise OSError(28, "No space left on device", "there.json")

    monkeypatch.setattr(solve, "run", full)
    assert "No space left on device" in (text := message_of(capsys, "solve", "q")) and "there.json" in text


@pytest.mark.parametrize(
    ("error", "extra"),
    [
        (ModuleNotFoundError("No module named 'ray'", name="ray"), "ray"),
        (ImportError("Using the `Trainer` with `PyTorch` requires `accelerate>=1.1.0`: run pip install"), "train"),
        (RuntimeError("TensorBoardCallback requires tensorboard to be installed."), "train"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(error, extra, capsys, monkeypatch):
    def missing(arguments):
        raise error

    monkeypatch.setattr(solve, "run", missing)
    assert f"pip install recursivemas[{extra}]" in message_of(capsys, "solve", "q")


def test_a_fault_of_the_project_itself_is_not_hidden(monkeypatch):
    def faulty(arguments):
        raise RuntimeError("a fault")

    monkeypatch.setattr(solve, "run", faulty)
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main(["solve", "q"])


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.slow
def test_a_closed_pipe_ends_a_command_quietly():
    code = f"import sys; sys.path.insert(0, {str(ROOT.parent)!r}); from recursivemas import cli; sys.exit(cli.main())"
    line = f"{sys.executable} -c {shlex.quote(code)} train outer --show | true"
    assert subprocess.run(["bash", "-c", line], capture_output=True, text=True).stderr == ""


def test_small_systems_have_names_of_their_own_and_never_reach_for_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = small_systems()
    assert names["small/sequential"] == ROOT and names["small/mixture"] == ROOT / "systems" / "mixture"
    assert load_mas_system("small/mixture", only=[]).config.name_or_path == str(ROOT / "systems" / "mixture")
    for wrong in ("small/mixtrue", "systems/mixture"):
        with pytest.raises(InputError, match="did you mean `small/mixture`"):
            find_system(wrong)
    assert find_system("org/name") == "org/name"


# Help


def test_help_of_every_command_is_printed_without_importing_torch():
    words = [*cli.COMMANDS, "publish stage", "bench step"]
    if json.loads(cli.HELP.read_text())["transformers"] != importlib.metadata.version("transformers"):
        words.remove("train")  # shows transformers' settings too
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT.parent)!r})\n"
        "from recursivemas import cli\n"
        f"for words in {words!r}:\n"
        "    try: cli.main([*words.split(), '--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "    else: raise AssertionError(words)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("examples:") >= len(words) - 2


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="other versions of Python print help in other words")
def test_the_stored_help_is_what_the_parsers_say(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stored = json.loads(cli.HELP.read_text(encoding="utf-8"))
    same = stored["transformers"] == importlib.metadata.version("transformers")
    for words, text in cli.help_texts().items():
        if words != "train" or same:
            assert stored["help"][words] == text, "run `make help-texts`"
        assert str(ROOT) not in text, "a path of this machine"


def test_the_check_knows_small_systems_by_their_names(monkeypatch):
    monkeypatch.setattr("recursivemas.release.check.run_limited", lambda *_: ("", None))  # of which others are laws
    report = check_system("small/mixture")
    assert report["ready"] and report["system"] == "mixture"
