import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation.measure import load_rows, wilson_interval
from recursivemas.evaluation.solve import read_questions
from recursivemas.tasks import arithmetic

QUESTIONS = ["Why?", "How many apples are 12 + 3 apples?"]


@pytest.fixture(scope="module")
def expected(chain):
    return [solution.text for solution in chain.solve(QUESTIONS, max_new_tokens=5)]


def solve(folder, capsys, *arguments):
    status = cli.main(["solve", "--system", str(folder), "--max-new-tokens", "5", "--json", *arguments])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_questions_come_as_arguments_from_a_file_and_from_standard_input(
    chain_folder, expected, capsys, tmp_path, monkeypatch
):
    (tmp_path / "q.jsonl").write_text(f"{json.dumps({'question': QUESTIONS[0]})}\n\n{QUESTIONS[1]}\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(QUESTIONS).encode())))
    for arguments in (QUESTIONS, ["--file", str(tmp_path / "q.jsonl")], []):
        status, rows = solve(chain_folder, capsys, *arguments)
        assert status == 0
        assert [(row["question"], row["text"]) for row in rows] == list(zip(QUESTIONS, expected, strict=True))
        counts = {"prompt_tokens", "latent_positions", "slot_positions", "new_tokens", "rounds", "turns", "seconds"}
        assert counts == set(rows[0]["usage"])


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--rounds", "1"], {"num_rounds": 1}),
        (["--latent-steps", "2"], {"latent_steps": 2}),
        (["--control", "text_last"], {"control": "text_last"}),
        (["--mode", "text", "--max-new-tokens", "3"], {"mode": "text", "max_new_tokens": 3}),
    ],
)
def test_settings_of_the_command_reach_the_system(chain, chain_folder, capsys, arguments, settings):
    def counted(usage):
        return {name: count for name, count in usage.items() if name != "seconds"}

    usual = {"max_new_tokens": 5}
    (expected,), (other,) = (chain.solve(QUESTIONS[1:], **chosen) for chosen in (usual | settings, usual))
    _, (row,) = solve(chain_folder, capsys, *arguments, QUESTIONS[1])
    assert row["text"] == expected.text and counted(row["usage"]) == counted(expected.usage)
    assert counted(other.usage) != counted(expected.usage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solve", "--rounds", "0", "Why?"], "--rounds"),
        (["solve", "--mode", "telepathy", "Why?"], "telepathy"),
        (["solve", "--file", "nowhere.txt"], "nowhere.txt"),
        (["solve", " "], "empty"),
        (["evaluate", "--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_message_and_status_2(chain_folder, capsys, arguments, message):
    assert cli.main([arguments[0], "--system", str(chain_folder), *arguments[1:]]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and not captured.out


def test_a_system_that_is_not_there_is_one_message_and_status_2(capsys):
    assert cli.main(["solve", "--system", "no/where", "Why?"]) == 2
    assert "no/where" in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_a_line_without_question_is_named():
    with pytest.raises(InputError, match="line 2"):
        read_questions(["Why?", '{"text": "x"}'], "file")


def test_evaluation_counts_exact_answers_and_stores_every_one(chain, chain_folder, tmp_path, capsys):
    answers = [s.answer for s in chain.solve(QUESTIONS, num_rounds=1, max_new_tokens=5)]
    rows = [
        {"question": QUESTIONS[0], "answer": answers[0], "level": 1},
        {"question": QUESTIONS[1], "answer": "no", "level": 2},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        "evaluate",
        "--system",
        str(chain_folder),
        "--data",
        str(tmp_path / "data.jsonl"),
        "--max-new-tokens",
        "5",
    ]
    output = tmp_path / "results" / "out.json"
    assert cli.main([*command, "--rounds", "1", "2", "--group-by", "level", "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    assert {"date", "commit", "versions", "machine"} <= results.keys()
    first = results["figures"][0]
    assert (first["mode"], first["num_rounds"], first["accuracy"]) == ("latent", 1, 0.5)
    assert first["answers"] == answers
    assert first["by_group"] == {"1": [1, 1], "2": [0, 1]}
    assert [row["mode"] for row in results["figures"]] == ["latent", "latent", "text", "text", "alone"]
    assert output.with_suffix(".png").stat().st_size > 1000
    assert "latent" in capsys.readouterr().out


def test_rows_of_a_file_need_question_and_answer(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": 3}\n{"question": "b"}\n')
    with pytest.raises(InputError, match="line 2"):
        load_rows(str(tmp_path / "data.jsonl"), 10, 0)


def test_no_more_rows_than_asked_for_are_read(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": 3}\n\n{"question": "b", "answer": "4"}\n')
    rows = [{"question": "a", "answer": "3"}, {"question": "b", "answer": "4"}]
    for count in (1, 2, 3):
        assert load_rows(str(tmp_path / "data.jsonl"), count, 0) == rows[:count]


def test_generated_questions_are_the_same_for_a_seed_and_right():
    rows = load_rows("arithmetic", 30, 5)
    assert rows == load_rows("arithmetic", 30, 5) != load_rows("arithmetic", 30, 6)
    for row in rows:
        assert arithmetic.reduction_chain(row["question"], row["num_operators"])[-1] == row["answer"]


def test_the_wilson_interval_of_published_examples():
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20."""
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(right, total) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.slow
def test_an_openai_client_gets_the_answer_from_the_server(chain_folder, expected):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "recursivemas.cli", "serve", "--system", str(chain_folder), "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    body = {
        "model": chain_folder.name,
        "messages": [{"role": "user", "content": QUESTIONS[1]}],
        "max_tokens": 5,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        for _ in range(120):
            try:
                reply = json.load(urllib.request.urlopen(request, timeout=60))
                break
            except (ConnectionError, urllib.error.URLError):
                assert server.poll() is None, "the server stopped"
                time.sleep(1)
    finally:
        server.kill()
        server.wait()
    assert reply["choices"][0]["message"]["content"] == expected[1]
