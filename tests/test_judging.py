"""Laws of judging code: what the program in a text is, when outputs agree, and how tests of benchmarks are read."""

import base64
import json
import pickle
import zlib

import pytest
from recursivemas.errors_recursivemas import InputError
from recursivemas.sandbox.judging import (
    CodeTest,
    code_of,
    judge,
    livecodebench_tests,
    mbppplus_tests,
    passes,
    pickled_string,
    private_tests,
    same_output,
    with_imports,
)

FENCE = "```"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"So:\n{FENCE}python\nx = 1\n{FENCE}\nFor example\n{FENCE}python\nf(x)\n{FENCE}", "x = 1"),
        (f"<think>{FENCE}python\nno\n{FENCE}</think>{FENCE}python\nyes\n{FENCE}", "yes"),
        (f"{FENCE}python\nno\n{FENCE}</think>{FENCE}python\nyes\n{FENCE}", "yes"),
        (f"<think>{FENCE}python\nno\n{FENCE}", None),
        (f"{FENCE}\nf(1)\n{FENCE}\n{FENCE}python\nyes\n{FENCE}", "yes"),
        (f"{FENCE}Python3 \nyes\n{FENCE}", "yes"),
        (f"{FENCE}\nplain\n{FENCE}", "plain"),
        (f"{FENCE}python\ncut = off", "cut = off"),
        (f'{FENCE}python\ns = "`a`"\n\n{FENCE}', 's = "`a`"'),
        ("return 1", None),
        ("", None),
    ],
)
def test_the_program_in_a_text_is_its_first_python_block(text, code):
    assert code_of(text) == code


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        (" 1 2  \n3\n\n", "1 2\n3", True),
        ("1.0 2.50", "1 2.5", True),
        ("1e2", "100", True),
        ("YES", "yes", False),
        ("1 2 3", "1 2\n3", False),
        ("1  2", "1 2", True),
        ("a  b", "a b", False),
        ("0.1", "0.1000000000000000000001", False),
        ("1", "1\n1", False),
        ("", "0", False),
        ("nan", "nan", True),
        ("1_000", "1000", False),
    ],
)
def test_outputs_agree_line_by_line_and_numbers_by_their_worth(output, expected, same):
    assert same_output(output, expected) is same


def test_a_program_gets_the_imports_that_it_takes_for_granted_and_no_other():
    code = "from __future__ import annotations\ndef f(a: List[int], gcd=1): return deque(a), math.pi, gcd"
    lines = with_imports(code).split("\n")
    assert lines[0] == code.split("\n")[0] and lines[2:] == code.split("\n")[1:]
    assert lines[1] == "from collections import deque; from typing import List; import math"
    assert with_imports("x = sum([1])") == "x = sum([1])" and with_imports("x = (") == "x = ("


TWO_SUM = "class Solution:\n    def add(self, a: List[int], b: int) -> int:\n        return sum(a) + b"
CALL = CodeTest("6", "[1, 2]\n3", "add")
ECHO = CodeTest("3 5\n", "5 3\n")


@pytest.mark.parametrize(
    ("code", "test", "passed"),
    [
        (TWO_SUM, CALL, True),
        ("def add(a, b): return sum(a) + b", CALL, True),
        ("def add(a, b): return str(sum(a) + b)", CALL, False),
        ("def add(a, b): print(6)", CALL, False),
        ("import os\ndef add(a, b): os._exit(0)", CALL, False),
        ("class A(int):\n def __eq__(s, o): return True\ndef add(a, b): return A(5)", CALL, False),
        ("def add(a): return 6", CALL, False),
        ("print(*sorted(map(int, input().split())))", ECHO, True),
        ("if __name__ == '__main__': print(*sorted(map(int, sys.stdin.read().split())))", ECHO, True),
        ("print(5, 3)", ECHO, False),
        ("print(3, 5); 1 / 0", ECHO, False),
        ("x = (", ECHO, False),
        (None, ECHO, False),
    ],
)
def test_a_program_passes_a_test_or_says_why_not(code, test, passed):
    (verdict,) = passes(code, [test])
    assert verdict.passed is passed and (verdict.error is None) is passed


def test_programs_are_judged_side_by_side_and_a_lost_one_not_to_its_end():
    wrong = "print(input() == '1')"
    tests = [CodeTest("True", "1"), *[CodeTest("True", "2")] * 20]
    every, (only,) = judge([(wrong, tests), ("print(True)", tests)]), judge([(wrong, tests)], every_test=False)
    assert [verdict.passed for verdict in every[0]] == [True] + [False] * 20
    assert all(verdict.passed for verdict in every[1])
    assert "not run" in only[-1].error and not any(verdict.passed for verdict in only[1:])
    with pytest.raises(InputError, match="no test"):
        passes("x = 1", [])


def test_a_row_of_mbppplus_is_its_script():
    row = {
        "task_id": 2,
        "prompt": "Write a function to find the shared elements from the given two lists.",
        "code": "def shared(a, b): return tuple(set(a) & set(b))",
        "test_list": ["assert shared((3, 4), (4, 5)) == (4,)"],
        "test": "import numpy as np\nfrom math import inf\n\ndef assertion(out, exp, atol):\n"
        "    if atol: assert np.allclose(out, exp, atol=atol)\n    assert out == exp, f'{out} {exp}'\n\n"
        "inputs = [[(3, 4), (4, 5)], [(), (1,)]]\nresults = [(4,), ()]\n"
        "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(shared(*inp), exp, 0)\n",
    }
    assert [verdict.passed for verdict in passes(row["code"], mbppplus_tests(row))] == [True]
    assert [verdict.passed for verdict in passes(row["code"].replace("&", "|"), mbppplus_tests(row))] == [False]


def packed(value, protocol=4):
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def livecodebench_row(function=None, private=packed):
    kind = "functional" if function else "stdin"
    cases = [[{"input": i, "output": o, "testtype": kind}] for i, o in (("[1, 2]\n3", "6"), ("[]\n0", "0"))]
    return {
        "question_content": "Add.",
        "starter_code": "",
        "question_id": "1",
        "public_test_cases": json.dumps(cases[0]),
        "private_test_cases": private(json.dumps(cases[1])),
        "metadata": json.dumps({"func_name": function} if function else {}),
    }


@pytest.mark.parametrize("private", [packed, str, lambda text: packed(text, 0), lambda text: packed(text.encode())])
def test_a_row_of_livecodebench_is_its_public_and_private_tests(private):
    tests = livecodebench_tests(livecodebench_row("add", private))
    assert tests == [CodeTest("6", "[1, 2]\n3", "add"), CodeTest("0", "[]\n0", "add")]
    assert all(verdict.passed for verdict in passes(TWO_SUM, tests))
    assert [test.function for test in livecodebench_tests(livecodebench_row())] == [None, None]


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('ESCAPED')",)


@pytest.mark.parametrize(
    "value", [Harm(), [Harm()], ["[]"], {"a": "[]"}, ("[]", "[]"), 3, None, print, "no json", json.dumps({"a": 1})]
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_nothing_is_unpickled_but_one_string(value, protocol):
    with pytest.raises(InputError, match="cannot be read"):
        private_tests(packed(value, protocol))


@pytest.mark.parametrize("text", ["", "x", "[", "AAAA", base64.b64encode(zlib.compress(b"no pickle")).decode()])
def test_private_tests_that_are_none_are_named(text):
    with pytest.raises(InputError, match="private_test_cases"):
        private_tests(text)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickled_string_is_read_as_it_is(protocol):
    for value in ("", "é\n\\" * 300, "x" * 70000):
        assert pickled_string(pickle.dumps(value, protocol)) == value
