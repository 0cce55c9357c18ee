"""How answers are judged: the table of answers with both verdicts, math-verify beside, and what may go wrong."""

import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest
from agreement import library, pairs
from recursivemas import cli
from recursivemas.evaluation import prover as prover_module
from recursivemas.evaluation.mathematics import correct, equal
from recursivemas.evaluation.metrics import METRICS, f1_score
from recursivemas.evaluation.prover import Prover
from recursivemas.solutions_recursivemas import Solution

TABLE = [
    json.loads(line)
    for line in Path(__file__).with_name("scoring_table.jsonl").read_text(encoding="utf-8").splitlines()
]
KINDS = sorted({(row["metric"], row["kind"]) for row in TABLE})


def test_the_table_is_large_and_has_answers_that_only_one_scorer_takes():
    assert len(TABLE) >= 600 and {row["metric"] for row in TABLE} == METRICS.keys()
    assert {(row["strict"], row["release"]) for row in TABLE} == {(a, b) for a in (True, False) for b in (True, False)}


LONG = ("math", "further")  # hundreds of hard ones


@pytest.mark.parametrize(
    ("metric", "kind"), [pytest.param(*each, marks=pytest.mark.slow) if each == LONG else each for each in KINDS]
)
def test_both_scorers_judge_every_answer_of_the_table_as_it_says(metric, kind):
    rows = [row for row in TABLE if (row["metric"], row["kind"]) == (metric, kind)]
    wrong = [
        (row["prediction"], row["answer"], found)
        for row in rows
        if (found := METRICS[metric].judge(row["prediction"], row["answer"]))
        != {name: row[name] for name in ("strict", "release")}
    ]
    assert not wrong


@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_where_no_form_is_treacherous_the_strict_scorer_agrees_with_math_verify(count):
    verdicts = [
        (correct(prediction, gold), library(prediction, gold), prediction, gold)
        for _, prediction, gold in pairs(count, 0)
    ]
    assert [row for row in verdicts if row[0] != row[1]] == []
    assert 0.35 < sum(row[0] for row in verdicts) / count < 0.75


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\\",
        "{",
        "}" * 99,
        "\\frac{1}{",
        "\\boxed{",
        "$",
        "\\pm" * 40,
        "(" * 1500,
        "1,2" * 600,
        "a b " * 400,
        "\\text{" * 50,
        "$1500/month * 12 " + "number of months in a year " * 8,
        "\\boxed{1500 " + "per number of months in a year/annual payments " * 9 + "= $18,000/year}",
    ],
)
def test_no_answer_is_too_odd_to_be_judged(text):
    for metric in METRICS.values():
        for prediction, answer in ((text, "5"), ("5", text or "5"), (f"\\boxed{{{text}}}", "\\frac{1}{2}")):
            verdicts = metric.judge(prediction, answer)
            assert set(verdicts.values()) <= {True, False}
    assert not METRICS["math"].judge(text, "5")["strict"]


def test_nothing_written_is_wrong():
    for metric in METRICS.values():
        assert metric.judge(None, "5")["strict"] is False
        assert metric(Solution("", None), "5") is False


def test_what_takes_too_long_is_wrong_and_the_next_answer_is_judged():
    prove = Prover(seconds=2)
    assert not prove("9^{9^{9^{9^{9}}}}", "9^{9^{9^{9^{8}}}}")
    assert prove("2+x", "x+2")
    prove.close()


def test_a_process_that_ends_is_started_again():
    prove = Prover()
    assert prove("2+x", "x+2")
    prove._process.kill()
    prove._process.wait()
    assert prove("x^2-1", "(x-1)(x+1)")
    prove.close()


def test_threads_may_judge_at_the_same_time():
    """math-verify alone refuses: its limit of time is a signal."""
    found = []
    answers = [("x+1", "1+x"), ("x+1", "1+2x"), ("x^2-1", "(x-1)(x+1)"), ("\\sqrt{12}", "2\\sqrt{3}")] * 3
    threads = [threading.Thread(target=lambda pair=pair: found.append((pair, equal(*pair)))) for pair in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and {pair for pair, is_equal in found if not is_equal} == {("x+1", "1+2x")}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_a_process_of_its_own():
    assert equal("x+3", "3+x")
    child = os.fork()
    if child == 0:
        os._exit(0 if equal("x+4", "4+x") and not equal("x+4", "5+x") else 1)
    assert os.waitpid(child, 0)[1] == 0 and equal("x+5", "5+x")


def test_without_math_verify_the_command_that_installs_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(prover_module, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"prediction": "5", "answer": "5"}\n'))
    assert cli.main(["score", "--metric", "math"]) == 2
    assert "pip install 'recursivemas[benchmark]'" in capsys.readouterr().err
    assert cli.main(["evaluate", "--metric", "math"]) == 2  # before a system is loaded
    assert "recursivemas[benchmark]" in capsys.readouterr().err
    assert METRICS["numeric"].judge("so 5.0", "5")["strict"]


def test_f1_counts_words_that_are_shared_and_yes_and_no_as_a_whole():
    assert f1_score("The answer is New York", "New York City") == pytest.approx(0.8)
    assert f1_score("yes it is", "yes") == 0 and f1_score("Yes.", "yes") == 1 and f1_score("the", "an") == 0


# ── recursivemas score ──


def score(capsys, monkeypatch, rows, *arguments):
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    status = cli.main(["score", *arguments])
    printed = capsys.readouterr()
    return status, [json.loads(line) for line in printed.out.splitlines()], printed.err


def test_score_gives_back_the_same_rows_with_both_verdicts(capsys, monkeypatch, tmp_path):
    rows = [
        {"id": 7, "prediction": "so \\boxed{1.2}", "answer": "1.8", "more": {"é": [1, None]}},
        {"prediction": 5, "answer": 5.0},
        {"prediction": None, "answer": "x"},
    ]
    verdicts = [(False, True), (True, True), (False, False)]
    expected = [row | {"strict": a, "release": b} for row, (a, b) in zip(rows, verdicts, strict=True)]
    status, found, summary = score(capsys, monkeypatch, rows, "--metric", "math")
    assert (status, found) == (0, expected)
    assert "strict  1 right" in summary and "release 2 right" in summary
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = ("--metric", "math", "--file", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "a" / "out.jsonl"))
    assert score(capsys, monkeypatch, "", *command)[:2] == (0, [])
    assert [json.loads(line) for line in (tmp_path / "a" / "out.jsonl").read_text().splitlines()] == expected


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[1]", "no object"),
        ('{"answer": "5"}', "no prediction"),
        ('{"prediction": "5"}', "no answer"),
        ('{"prediction": ["5"], "answer": "5"}', "prediction is no text"),
        ('{"prediction": "5", "answer": null}', "answer is empty"),
        ('{"prediction": "5", "answer": " "}', "answer is empty"),
        ('{"prediction": true, "answer": "5"}', "prediction is no text"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_nothing_is_judged(line, says, capsys, monkeypatch):
    good = '{"prediction": "5", "answer": "5"}\n'
    status, rows, error = score(capsys, monkeypatch, f"{good}\n{line}\n{good}", "--metric", "exact")
    assert (status, rows) == (2, []) and "line 3" in error and says in error


def test_no_rows_are_an_error(capsys, monkeypatch):
    assert score(capsys, monkeypatch, "\n", "--metric", "exact")[0] == 2


# ── recursivemas compare ──


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def judged(rights, **more):
    return [
        {"question": f"q{i}", "answer": str(i), "group": "ab"[i % 2], "strict": right, "release": True, **more}
        for i, right in enumerate(rights)
    ]


def compared(capsys, *arguments):
    status = cli.main(["compare", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_two_files_are_compared_question_by_question_and_by_group(tmp_path, capsys):
    one = judged([True] * 8 + [False] * 2)
    other = judged([False] * 6 + [True] * 2 + [False] * 2)
    files = write(tmp_path / "a.jsonl", one), write(tmp_path / "b.jsonl", other[::-1])  # in any order
    status, out, _ = compared(capsys, *files, "--group-by", "group", "--json")
    found = json.loads(out)
    assert status == 0 and found["all"]["questions"] == 10
    assert (found["all"]["only_a"], found["all"]["only_b"], found["all"]["difference"]) == (6, 0, 0.6)
    assert found["all"]["p"] == pytest.approx(2 / 2**6)
    low, high = found["all"]["interval"]
    assert 0.2 <= low < 0.6 < high <= 1
    assert {name: row["questions"] for name, row in found["groups"].items()} == {"a": 5, "b": 5}
    assert json.loads(compared(capsys, *files, "--verdict", "release", "--json")[1])["all"]["difference"] == 0
    assert "+0.600" in compared(capsys, *files)[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[1:], "different questions"),
        (lambda rows: [*rows[1:], {**rows[0], "question": "another"}], "different questions"),
        (lambda rows: [*rows[1:], {**rows[0], "answer": "another"}], "different right answers"),
        (lambda rows: [*rows, rows[0]], "more than one row"),
        (lambda rows: [{name: row[name] for name in row if name != "strict"} for row in rows], "no verdict"),
        (lambda rows: [{name: row[name] for name in row if name != "question"} for row in rows], "which question"),
        (lambda rows: [{**row, "sample": i} for row in rows for i in (0, 1)], "more than one setting"),
    ],
)
def test_what_is_not_the_same_questions_once_is_refused(change, says, tmp_path, capsys):
    rows = judged([True, False, True])
    files = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", change(rows))
    for order in (files, files[::-1]):
        status, out, error = compared(capsys, *order)
        assert status == 2 and says in error and not out


def test_one_of_several_samples_is_chosen_by_name(tmp_path, capsys):
    rows = [row for i in (0, 1) for row in judged([bool(i)] * 4, sample=i)]
    path = write(tmp_path / "a.jsonl", rows)
    found = json.loads(compared(capsys, path, path, "--a", "sample=1", "--b", "sample=0", "--json")[1])
    assert found["all"]["difference"] == 1 and found["a"]["rows"] == ["sample=1"]
    assert "sample=0 or sample=1" in compared(capsys, path, path, "--a", "sample=5")[2].replace(
        "sample=0 or 1", "sample=0 or sample=1"
    )


def test_what_evaluate_and_controls_store_can_be_compared(chain_folder, tmp_path, capsys):
    rows = [{"question": f"How many apples are {i} + 3 apples?", "answer": str(i), "level": i % 2} for i in range(4)]
    data = write(tmp_path / "data.jsonl", rows)
    common = ["--system", str(chain_folder), "--data", data, "--max-new-tokens", "3", "--metric", "numeric"]
    evaluated, controlled = tmp_path / "e.json", tmp_path / "c.json"
    command = ["evaluate", *common, "--rounds", "1", "2", "--modes", "latent", "--group-by", "level"]
    assert cli.main([*command, "--output", str(evaluated)]) == 0
    assert cli.main(["controls", *common, "--output", str(controlled)]) == 0
    assert "release" in json.loads(evaluated.read_text())["figures"][0]
    status, out, error = compared(
        capsys, evaluated, controlled, "--a", "num_rounds=1", "--b", "control=latents", "--group-by", "level", "--json"
    )
    assert status == 0, error
    found = json.loads(out.splitlines()[-1])
    assert (found["all"]["only_a"], found["all"]["only_b"], found["all"]["questions"]) == (0, 0, 4)
    assert found["groups"].keys() == {"0", "1"}
    assert compared(capsys, evaluated, controlled, "--b", "control=latents")[0] == 2  # one of two numbers of rounds
