"""The metric code: programs are judged by the tests of their rows, in every schema, by every command that judges."""

import io
import json
import sys

import pytest
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation import evaluate as command
from recursivemas.evaluation import programs
from recursivemas.evaluation.metrics import JUDGES
from recursivemas.evaluation.programs import program_row
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.solutions_recursivemas import Solution

DOUBLE = "def double(x):\n    return 2 * x"
LCB = {
    "question_content": "Double a number.", "starter_code": "class Solution:\n    def double(self, x):\n", "metadata":
    '{"func_name": "double"}', "public_test_cases": '[{"input": "3", "output": "6", "testtype": "functional"}]',
    "private_test_cases": "[]", "question_id": "1",
}  # fmt: skip
MBPP = {
    "task_id": 2, "prompt": "Double a number.", "test_list": ["assert double(1) == 2"],
    "test": "assert double(4) == 8", "code": DOUBLE,
}  # fmt: skip
CALLS = {"question": "Write double.", "tests": [{"function": "double", "arguments": [4], "output": 8}]}
# A row, a program that is right, one that is wrong
ROWS = [
    (MBPP, DOUBLE, "def double(x):\n    return x + 1"),
    (LCB, "class Solution:\n    def double(self, x):\n        return 2 * x", DOUBLE.replace("2 *", "3 *")),
    ({"question": "Write double.", "tests": ["assert double(1) == 2", "assert double(4) == 8"]}, DOUBLE,
     "def double(x):\n    return x + 1"),
    (CALLS, DOUBLE, "def double(x):\n    return '8'"),
    ({"question": "Print the double.", "tests": [{"input": "4\n", "output": "8\n"}]}, "print(2 * int(input()))",
     "print(input())"),
]  # fmt: skip


def block(code: str) -> str:
    return f"```python\n{code}\n```"


def test_programs_are_judged_by_the_tests_of_their_rows():
    example = block(DOUBLE) + "\nand\n" + block("print(double(4))")
    rows = [row for row, *_ in ROWS for _ in range(2)] + [CALLS] * 4
    texts = [block(code) for _, *codes in ROWS for code in codes]
    texts += [example, block("import os") + "\n" + block(DOUBLE), None, "It is 8."]
    verdicts = [(each["strict"], each["release"]) for each in JUDGES["code"].judge_rows(texts, rows)]
    assert verdicts[:-4] == [(right, right) for _ in ROWS for right in (True, False)]
    assert verdicts[-4:] == [(True, True), (True, False), (False, False), (False, False)]
    solutions = [Solution(text or "", None) for text in texts[:2]]
    assert [each["strict"] for each in JUDGES["code"].judge_solutions(solutions, rows[:2])] == [True, False]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"question": "?"}, "no field 'test'"),
        ({"question": "?", "tests": []}, "no test"),
        ({"question": "?", "tests": [" "]}, "no text"),
        ({"question": "?", "tests": [{"input": "1"}]}, "a test is"),
        ({"question": "?", "tests": [{"input": "1", "output": 1}]}, "no texts"),
        ({"question": "?", "tests": [{"function": "f", "arguments": 1, "output": 1}]}, "no list"),
        ({"question": "?", "tests": 5}, "int"),
        ({"tests": ["assert f()"]}, "no field"),
        ({"question": 5, "tests": ["assert f()"]}, "no text"),
        (LCB | {"metadata": "{"}, "cannot be read"),
        ([], "[]"),
        (None, "None"),
        ("test", "test"),
    ],
)
def test_a_row_without_tests_or_question_is_named(row, found):
    with pytest.raises(InputError) as error:
        program_row(row, "rows.jsonl, line 2")
    assert found in str(error.value)


def test_of_all_schemas_there_is_a_question():
    for row, *_ in ROWS:
        read = program_row(row, "here")
        assert read["question"].strip() and read["answer"] == "all tests pass" and programs.tests_of(read, "here")


def test_score_runs_programs_only_where_that_is_allowed(capsys, monkeypatch):
    rows = [{"id": 1, "prediction": block(DOUBLE), **CALLS}, {"prediction": None, **CALLS, "answer": 5}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert cli.main(["score", "--metric", "code"]) == 2
    assert "--allow-code" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert cli.main(["score", "--metric", "code", "--allow-code"]) == 0
    printed = capsys.readouterr()
    verdicts = [{"strict": right, "release": right} for right in (True, False)]
    assert list(map(json.loads, printed.out.splitlines())) == [a | b for a, b in zip(rows, verdicts, strict=True)]
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"prediction": "x", "answer": "y"}\n'))
    assert cli.main(["score", "--metric", "code", "--allow-code"]) == 2
    assert "standard input, line 1" in capsys.readouterr().err


def test_evaluate_judges_programs_and_reports_both_scorers(capsys, monkeypatch, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row, *_ in ROWS), encoding="utf-8")
    options = ["evaluate", "--data", str(path), "--metric", "code", "--rounds", "1", "--modes", "latent", "--json"]
    monkeypatch.setattr(command, "load_from_arguments", pytest.fail)
    assert cli.main(options) == 2
    assert "--allow-code" in capsys.readouterr().err
    monkeypatch.undo()
    texts = [block(wrong if number == 1 else right) for number, (_, right, wrong) in enumerate(ROWS)]
    texts[2] = block("import os") + "\n" + texts[2]

    def solve(mas, questions, on_solutions, **_):
        assert len(questions) == len(ROWS)
        usage = {"rounds": 1, "turns": 1, "prompt_tokens": 1, "latent_positions": 1, "slot_positions": 1,
                 "new_tokens": 1}  # fmt: skip
        on_solutions([3, 1, 0, 2, 4], [Solution(texts[index], None, usage=usage) for index in (3, 1, 0, 2, 4)])

    monkeypatch.setattr(RecursiveMASModel, "solve", solve)
    output = tmp_path / "results.json"
    assert cli.main([*options, "--allow-code", "--output", str(output)]) == 0
    (figure,) = json.loads(capsys.readouterr().out)["figures"]
    assert figure["right"] == [True, False, True, True, True]
    assert figure["release"] == [True, False, False, True, True]
    assert json.loads(output.read_text(encoding="utf-8"))["settings"]["metric"] == "code"
