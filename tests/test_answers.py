"""Laws of `extract_answer`: what the decoding agent meant last, and never a guess."""

import pytest
from recursivemas.answers_recursivemas import extract_answer
from recursivemas.prompts_recursivemas import TASKS


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First \boxed{1}, or rather \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}, and then \boxed{3", r"\frac{1}{2}"),  # the last one was never closed
        (r"so \boxed { 7 } it is", "7"),
        (r"\boxed{}", ""),
        ("The answer is 12.", None),
        (r"\boxed{12", None),
    ],
)
def test_a_maths_answer_is_the_last_complete_box_and_nothing_else(text, answer):
    assert extract_answer(text, "math") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B", "B"),
        (" (c). ", "C"),
        (r"It could be A. \boxed{D}", "D"),
        ("The answer is A. No, wait: the answer is (C) after all.", "C"),
        ("Option A is wrong, so I take option B", "B"),
        (r"\boxed{two}, so the answer is J", "J"),
        (r"The answer is A, \boxed{B}", "B"),
        ("Answer: E", "E"),
    ],
)
def test_a_choice_is_the_letter_that_was_boxed_or_stated_last(text, answer):
    assert extract_answer(text, "choice") == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know.",
        "K",
        r"\boxed{42}",
        "A or B, who can say",
        r"\boxed{A}\boxed{B}",
        r"\boxed{A} or \boxed{B}",
        r"The answer is not \boxed{B}.",
        "I would not choose B",
        "The answer is B cells.",
        "The answer is Apples.",
    ],
)
def test_a_choice_is_never_guessed(text):
    assert extract_answer(text, "choice") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is a matter of taste.", None),
        ("The best option is a longer one.", None),
        ("The answer is: B.", "B"),
    ],
)
def test_an_article_is_no_letter_of_a_choice_and_a_colon_may_stand_before_one(text, answer):
    assert extract_answer(text, "choice") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("```python\nfirst()\n```\nBetter:\n```python\nsecond()\n```\n", "second()"),
        ("```\n\n  kept = 1\n\n```", "  kept = 1"),
        ("```python\nwhole()\n```\n```python\ncut", "whole()"),
        ("no block at all", None),
        ("```python\ncut", None),
    ],
)
def test_code_is_the_last_complete_block(text, answer):
    assert extract_answer(text, "code") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("```python\ndef f():\n    return 1\n```\nExample:\n```python\nprint(f())\n```", "def f():\n    return 1"),
        ("```python\nprint(1)\n```\nwrites\n```text\n1\n```", "print(1)"),
        ("```python\ndef f(): pass\n```\nBetter:\n```python\ndef f(): return 1\n```", "def f(): return 1"),
        ("~~~\nx = 1\n~~~", "x = 1"),
    ],
)
def test_an_example_after_the_program_is_not_the_program(text, answer):
    assert extract_answer(text, "code") == answer


@pytest.mark.parametrize(
    ("task", "thought", "said"),
    [("math", r"\boxed{3}", r"\boxed{4}"), ("choice", "The answer is A", "B"), ("default", "perhaps 3", "4"),
     ("code", "```python\nno()\n```", "```python\nyes()\n```")],
)  # fmt: skip
def test_thoughts_are_no_answer(task, thought, said):
    answer = extract_answer(said, task)
    for text in (f"<think>{thought}</think>{said}", f"{thought}</think>\n\n{said}", f"{said}\n<think>{thought}"):
        assert extract_answer(text, task) == answer is not None
    assert extract_answer(f"<think>{thought}", task) is None


@pytest.mark.parametrize("task", ["reasoning", "default"])
def test_where_no_form_is_asked_for_the_whole_text_is_the_answer_unless_there_is_a_box(task):
    assert extract_answer(" because it rains\n", task) == "because it rains"
    assert extract_answer(r"because \boxed{1}, no, \boxed{it rains}", task) == "it rains"
    assert extract_answer(" \n", task) is None


@pytest.mark.parametrize("task", TASKS)
def test_nothing_written_is_no_answer(task):
    assert extract_answer("", task) is None
