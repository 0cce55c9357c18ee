"""`recursivemas controls`: paired statistics against known values, and verdicts where the truth is known."""

import itertools
import json
import random
from collections import Counter

import numpy
import pytest
import torch
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation.controls import HAND_OVERS, among_others, compare, verdict
from recursivemas.evaluation.measure import measure
from recursivemas.evaluation.paired import mcnemar, paired_difference
from recursivemas.system_loader import load_mas_system
from recursivemas.tasks import arithmetic


def test_mcnemars_exact_p_of_published_examples():
    """Agresti's approval ratings (86 and 150 changed their minds); the binomial tail of 2 and 10 written out."""
    assert mcnemar(86, 150) == mcnemar(150, 86) == pytest.approx(3.716e-05, rel=1e-3)
    assert mcnemar(2, 10) == 2 * (1 + 12 + 66) / 2**12
    assert mcnemar(3, 3) == mcnemar(0, 0) == 1
    assert mcnemar(0, 2000) == 0


def test_the_interval_is_that_of_resampled_questions():
    rng = numpy.random.default_rng(1)
    one, other = rng.random(300) < 0.7, rng.random(300) < 0.5
    found = paired_difference(one.tolist(), other.tolist())
    gains = one.astype(int) - other.astype(int)
    resampled = gains[rng.integers(0, 300, (10_000, 300))].mean(axis=1)
    assert found["difference"] == pytest.approx(gains.mean())
    assert found["interval"] == pytest.approx(numpy.percentile(resampled, [2.5, 97.5]).tolist(), abs=0.01)
    assert found == paired_difference(one.tolist(), other.tolist())
    back = paired_difference(other.tolist(), one.tolist())
    assert (back["difference"], back["p"]) == (-found["difference"], found["p"])


def test_the_same_answers_differ_by_nothing():
    found = paired_difference([True, False, True], [True, False, True])
    assert found == {"difference": 0, "interval": [0, 0], "p": 1}


@pytest.mark.parametrize("counts", [(3, 2, 2), (4, 4), (1, 1), (2, 2, 1), (5, 1, 1, 1, 1, 1), (3, 3, 1), (9, 8, 1)])
def test_neighbours_have_different_answers(counts):
    answers = [str(index) for index, count in enumerate(counts) for _ in range(count)]
    random.Random(0).shuffle(answers)
    rows = [{"question": str(index), "answer": answer} for index, answer in enumerate(answers)]
    mixed = among_others(rows)
    assert sorted(mixed, key=str) == sorted(rows, key=str)
    assert all(a["answer"] != b["answer"] for a, b in itertools.pairwise([*mixed, mixed[0]]))


def test_one_question_has_no_other():
    with pytest.raises(InputError, match="no other"):
        among_others([{"question": "Why?", "answer": "1"}])


def figures_of(accuracies, count=100):
    """Figures of 100 questions of which the first ones are right."""
    figures = []
    for name, accuracy in accuracies.items():
        right = [index < accuracy * count for index in range(count)]
        figures.append({"control": name, "num_rounds": 1, "accuracy": accuracy, "right": right})
        if name != "latents":
            figures[-1]["better"] = paired_difference(figures[0]["right"], right)
    return figures


@pytest.mark.parametrize(
    ("latents", "none", "other", "noise", "says"),
    [
        (0.64, 0.02, 0.02, 0.04, "the channel carries the answer (least difference +0.60 [0.50, 0."),
        (0.64, 0.63, 0.02, 0.60, "it matters whose latents arrive, but nothing shows that they are better than none"),
        (0.64, 0.02, 0.64, 0.04, "nothing shows that the channel carries anything (least difference +0.00 [0.00, 0.0"),
        (0.02, 0.64, 0.64, 0.64, "nothing shows that the channel carries anything"),
        (0.06, 0.02, 0.02, 0.02, "nothing shows that the channel carries anything"),  # four questions: p = 0.125
    ],
)
def test_a_verdict_says_what_is_shown(latents, none, other, noise, says):
    figures = figures_of({"latents": latents, "none": none, "other_question": other, "noise": noise})
    assert f"r = 1: latents {latents:.2f}; none {none:.2f}, another question's {other:.2f}, noise" in verdict(
        figures, 1
    )
    assert says in verdict(figures, 1)


def test_the_shipped_channel_carries_the_answer(tmp_path, capsys):
    output = tmp_path / "results" / "channel.json"
    settings = ["--levels", "5", "6", "--num-questions", "12", "--rounds", "1", "2"]
    assert cli.main(["controls", *settings, "--output", str(output)]) == 0
    printed, results = capsys.readouterr().out, json.loads(output.read_text())
    assert output.with_suffix(".png").stat().st_size > 1000
    first, second = results["verdicts"]
    assert "r = 1" in first and "nothing shows" in first, "one round makes three steps of five and six"
    assert "r = 2: latents 1.00" in second and "the channel carries the answer" in second
    assert first in printed and second in printed and "text_last" in printed
    counts = Counter((row["control"], row["num_rounds"]) for row in results["rows"])
    assert counts == {(name, num_rounds): 12 for name in HAND_OVERS for num_rounds in (1, 2)}
    for figure in results["controls"]:
        key = figure["control"], figure["num_rounds"]
        rows = [row for row in results["rows"] if (row["control"], row["num_rounds"]) == key]
        assert sum(row["right"] for row in rows) == round(12 * figure["accuracy"])
        assert ("better" in figure) == (figure["control"] != "latents")
    same = {figure["control"]: figure["accuracy"] for figure in results["controls"] if figure["num_rounds"] == 2}
    assert same["read_out"] == same["text"] == same["text_first"] == 1 and same["other_question"] == 0


def test_links_that_carry_nothing_are_found_out():
    mas = load_mas_system()
    for link in mas.outer_links.values():
        for parameter in link.parameters():
            torch.nn.init.zeros_(parameter)
    rows = among_others(arithmetic.generate(6, levels=[2, 3], seed=5))
    figures = compare(mas, rows, [1], batch_size=1)
    assert "nothing shows that the channel carries anything" in verdict(figures, 1)
    texts = measure(mas, rows, mode="text", num_rounds=1)["right"]
    assert figures[list(HAND_OVERS).index("text")]["right"] == texts and all(texts)
