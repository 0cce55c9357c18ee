"""Questions that take long: every answer is kept as it comes, and a run that was stopped goes on behind them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation.rows import RowFile
from recursivemas.modeling_recursivemas import RecursiveMASModel
from safetensors.torch import load_file, save_file

QUESTIONS = ["A question of some length, the longest?", "Why?", "How many?", "How many are 12 + 3?", "And why not?"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    rows = [{"question": question, "answer": str(index)} for index, question in enumerate(QUESTIONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def commands(chain_folder, questions, tmp_path):
    """Command -> (its words, the file that keeps its rows)."""
    usual = ["--system", str(chain_folder), "--batch-size", "2", "--max-new-tokens", "4"]
    data = ["--data", str(questions), "--rounds", "1", "--output", str(tmp_path / "out.json")]
    return {
        "solve": (
            ["solve", *usual, "--file", str(questions), "--output", str(tmp_path / "out.jsonl")],
            tmp_path / "out.jsonl",
        ),
        "evaluate": (["evaluate", *usual, *data, "--modes", "latent", "alone"], tmp_path / "out.rows.jsonl"),
        "controls": (["controls", *usual, *data], tmp_path / "out.rows.jsonl"),
    }


COMMANDS = ["solve", "evaluate", pytest.param("controls", marks=pytest.mark.slow)]  # which is evaluate, many times


def without_time(value):
    if isinstance(value, dict):
        return {name: without_time(each) for name, each in value.items() if name not in ("seconds", "date", "commit")}
    return [without_time(each) for each in value] if isinstance(value, list) else value


def outcome(rows):
    """What a command has written in the end, without times."""
    if rows.name == "out.jsonl":
        return [without_time(json.loads(line)) for line in rows.read_text().splitlines()]
    assert not rows.exists()
    return without_time(json.loads((rows.parent / "out.json").read_text()))


@pytest.fixture
def stopped_after(monkeypatch):
    """Lets a signal come once, when so many batches of a command are answered and one more is."""

    def stop(batches, signum=signal.SIGTERM):
        solve_batches, seen = RecursiveMASModel.solve_batches, []

        def stopping(self, *args, **kwargs):
            for found in solve_batches(self, *args, **kwargs):
                seen.append(found)
                if len(seen) == batches + 1:
                    os.kill(os.getpid(), signum)
                yield found

        monkeypatch.setattr(RecursiveMASModel, "solve_batches", stopping)

    return stop


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_done_is_kept_and_gone_on_with(commands, stopped_after, capsys, command, signum):
    words, rows = commands[command]
    assert cli.main(words) == 0
    expected = outcome(rows)
    for path in rows.parent.iterdir():
        path.unlink()
    stopped_after(2, signum)
    assert cli.main(words) == 128 + signum
    message = capsys.readouterr().err
    assert "--resume" in message and str(rows) in message and "Traceback" not in message
    kept = rows.read_bytes()
    assert kept.count(b"\n") == 4 and all(json.loads(line) for line in kept.splitlines())
    assert cli.main([*words, "--resume"]) == 0
    assert outcome(rows) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_only_the_rest_is_answered(commands, stopped_after, monkeypatch, command):
    words, _ = commands[command]
    stopped_after(2)
    cli.main(words)
    solve, asked = RecursiveMASModel.solve, []
    monkeypatch.setattr(RecursiveMASModel, "solve", lambda *a, **k: asked.append(len(a[1])) or solve(*a, **k))
    assert cli.main([*words, "--resume"]) == 0
    assert asked[0] == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_line_that_a_kill_has_cut_is_answered_again(commands, stopped_after, capsys, command):
    words, rows = commands[command]
    assert cli.main(words) == 0
    expected = outcome(rows)
    for path in rows.parent.iterdir():
        path.unlink()
    stopped_after(2)
    cli.main(words)
    rows.write_bytes(rows.read_bytes()[:-9])
    assert cli.main([*words, "--resume"]) == 0
    assert "not whole" in capsys.readouterr().err and outcome(rows) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_a_finished_run_is_left_alone(commands, capsys, monkeypatch, command):
    words, rows = commands[command]
    assert cli.main(words) == 0
    before = {path: path.read_bytes() for path in rows.parent.iterdir() if path.suffix != ".png"}
    monkeypatch.setattr(RecursiveMASModel, "solve", lambda *_, **__: pytest.fail("something was computed"))
    assert cli.main([*words, "--resume"]) == 0
    assert "already finished" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in rows.parent.iterdir() if path.suffix != ".png"} == before


def another_question(words, questions, tmp_path):
    path = tmp_path / "others.jsonl"
    path.write_text(questions.read_text().replace("Why?", "Why so?"))
    return [str(path) if word == str(questions) else word for word in words]


def other_settings(words, questions, tmp_path):
    return [*words, "--latent-steps", "2"]


def another_dtype(words, questions, tmp_path):
    return [*words, "--dtype", "bfloat16"]


@pytest.mark.parametrize(
    ("change", "named"),
    [(another_question, "questions"), (other_settings, "latent_steps"), (another_dtype, "dtype")],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_other_questions_and_settings_are_refused(
    commands, questions, tmp_path, stopped_after, capsys, command, change, named
):
    words, rows = commands[command]
    stopped_after(2)
    cli.main(words)
    before = rows.read_bytes()
    capsys.readouterr()
    assert cli.main([*change(words, questions, tmp_path), "--resume"]) == 2
    assert f"{named}: " in capsys.readouterr().err and rows.read_bytes() == before


def test_other_weights_at_the_same_place_are_refused(chain, commands, tmp_path, stopped_after, capsys):
    words, _ = commands["solve"]
    system = tmp_path / "system"
    chain.save_pretrained(system)
    words[words.index("--system") + 1] = str(system)
    stopped_after(2)
    cli.main(words)
    link = next((system / "links").glob("*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(link).items()}, link)
    assert cli.main([*words, "--resume"]) == 2
    assert "weights: " in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_answers_are_not_written_over(commands, stopped_after, capsys, command):
    words, rows = commands[command]
    stopped_after(2)
    cli.main(words)
    before = rows.read_bytes()
    assert cli.main(words) == 2
    assert "--resume" in capsys.readouterr().err and rows.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_replaced_is_that_of_a_run_alone(commands, stopped_after, capsys, command):
    words, rows = commands[command]
    assert cli.main(words) == 0
    expected = outcome(rows)
    assert cli.main(words) == 2 and "--replace" in capsys.readouterr().err and outcome(rows) == expected
    stopped_after(2)
    assert cli.main([*words, "--replace"]) == 128 + signal.SIGTERM
    assert cli.main([*words, "--replace"]) == 0
    assert outcome(rows) == expected


@pytest.mark.parametrize("command", ["solve", "evaluate"])
def test_what_was_to_be_replaced_is_kept_where_nothing_takes_its_place(commands, command):
    words, rows = commands[command]
    assert cli.main(words) == 0
    expected = outcome(rows)
    assert cli.main([*words, "--replace", "--system", "no/where"]) == 2
    assert outcome(rows) == expected


def a_folder(tmp_path):
    return tmp_path


def below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out.json"


def where_nobody_writes(tmp_path):
    return "/proc/nobody/out.json"


@pytest.mark.parametrize("place", [a_folder, below_a_file, where_nobody_writes])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_written_is_told_before_a_model_is_loaded(
    commands, monkeypatch, capsys, tmp_path, command, place
):
    monkeypatch.setattr(RecursiveMASModel, "from_pretrained", lambda *_, **__: pytest.fail("a system was loaded"))
    words = [*commands[command][0], "--output", str(place(tmp_path))]
    assert cli.main(words) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_left_of_a_run_that_did_not_begin(commands, command):
    words, rows = commands[command]
    assert cli.main([*words, "--system", "no/where"]) == 2
    assert not list(rows.parent.glob("out*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_resuming_needs_the_output(commands, capsys, command):
    words, _ = commands[command]
    at = words.index("--output")
    assert cli.main([*words[:at], *words[at + 2 :], "--resume"]) == 2
    assert "--output" in capsys.readouterr().err


def test_two_processes_do_not_write_one_file(tmp_path):
    with RowFile(tmp_path / "rows.jsonl", {}, resume=False) as first:
        first.write([{"row": 0}])
        with pytest.raises(InputError, match="Another process"):
            RowFile(tmp_path / "rows.jsonl", {}, resume=True)
    with RowFile(tmp_path / "rows.jsonl", {}, resume=True) as second:
        assert second.rows == [{"row": 0}]


def test_answers_are_printed_as_they_come_in_the_order_of_the_questions(commands, chain, monkeypatch, capsys):
    words, _ = commands["solve"]
    at, printed, solve_batches = words.index("--output"), [], RecursiveMASModel.solve_batches

    def listening(self, *args, **kwargs):
        for found in solve_batches(self, *args, **kwargs):
            printed.append(capsys.readouterr().out)
            yield found

    monkeypatch.setattr(RecursiveMASModel, "solve_batches", listening)
    assert cli.main([*words[:at], "--json"]) == 0
    printed.append(capsys.readouterr().out)
    assert [text.count("\n") for text in printed] == [0, 2, 2, 1]
    rows = [json.loads(line) for line in "".join(printed).splitlines()]
    expected = [solution.text for solution in chain.solve(QUESTIONS, max_new_tokens=4)]
    assert [(row["question"], row["text"]) for row in rows] == list(zip(QUESTIONS, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_stopped_goes_on(commands, signum):
    words, rows = commands["solve"]
    command = [sys.executable, "-m", "recursivemas.cli", *words, "--batch-size", "1", "--max-new-tokens", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (rows.exists() and rows.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum) and "Traceback" not in errors
    assert subprocess.run([*command, "--resume"], timeout=300, check=False).returncode == 0
    assert [json.loads(line)["question"] for line in rows.read_text().splitlines()] == QUESTIONS
