"""Adaptive depth: rows leave by themselves, and each one's answer is that of the number of rounds that it used."""

import json
import shutil

import pytest
import torch
from recursivemas.cli import main
from recursivemas.depth_recursivemas import change
from recursivemas.errors_recursivemas import ConfigError, InputError
from recursivemas.evaluation.calibrate import choose
from recursivemas.evaluation.depth import bounds, candidates, depth_at, traces
from recursivemas.runs_recursivemas import SIGNALS
from recursivemas.system_loader import ROOT
from tiny import tiny_chain, tiny_system

QUESTIONS = ["Why?", "How many apples are 12 + 3 apples?", "A longer question, about nothing at all."]
MOST = 4
NEVER = {"signal": "latents", "threshold": -1, "max_rounds": MOST}


def seen(mas, questions=QUESTIONS, **settings):
    """What every signal sees of each question over all rounds."""
    settings |= {"max_new_tokens": 1, "return_latents": True}
    solutions = mas.solve(questions, num_rounds="auto", settling=NEVER, **settings)
    return [traces(mas.topology, MOST, solution) for solution in solutions]


def telling(rows, signal):
    """The threshold at which the rows take the most different numbers of rounds."""
    tried = candidates(signal, rows)
    return max(tried, key=lambda value: len({depth_at(row[signal], value, MOST)[0] for row in rows}))


def assert_laws(mas, signal, questions=QUESTIONS, **settings):
    """Adaptive answers and latents are those alone, and those of the number of rounds used, which differ by row."""
    rows = seen(mas, questions, **settings)
    threshold = telling(rows, signal)
    settling = {"signal": signal, "threshold": threshold, "max_rounds": MOST}
    settings |= {"max_new_tokens": 4, "return_latents": True}
    together = mas.solve(questions, num_rounds="auto", settling=settling, **settings)
    used = [solution.usage["rounds"] for solution in together]
    assert [depth_at(row[signal], threshold, MOST) for row in rows] == [
        (solution.usage["rounds"], solution.usage["turns"]) for solution in together
    ]
    for question, solution in zip(questions, together, strict=True):
        (alone,) = mas.solve(question, num_rounds="auto", settling=settling, **settings)
        (fixed,) = mas.solve(question, num_rounds=solution.usage["rounds"], **settings)
        assert alone.text == solution.text == fixed.text
        assert alone.usage["rounds"] == solution.usage["rounds"] and alone.usage["turns"] == solution.usage["turns"]
        assert solution.latents.keys() >= fixed.latents.keys()
        for key, latents in fixed.latents.items():
            torch.testing.assert_close(solution.latents[key], latents, atol=1e-4, rtol=1e-4)
    return used


@pytest.mark.parametrize("signal", SIGNALS)
def test_rows_leave_by_themselves_and_answer_as_alone_and_as_with_so_many_rounds(chain, signal):
    assert len(set(assert_laws(chain, signal))) > 1


def test_rows_leave_where_caches_cannot_be_set_back():
    """Sliding windows and recurrent states: their heads are read anew."""
    mas = tiny_chain({"planner": "gemma3_text", "solver": "qwen3_5_text"})
    assert len(set(assert_laws(mas, "latents"))) > 1


@pytest.mark.slow
def test_rows_leave_with_a_halting_system_that_sends_rows_of_different_lengths(chain):
    assert_laws(chain, "rounds", latent_halting=True, control_tokens=False, latent_steps=6)


def test_rows_leave_where_roles_work_side_by_side_and_a_role_stands_behind_the_decoder():
    links = [{"source": e, "target": "judge"} for e in ("left", "right")]
    links += [{"source": "judge", "target": "scribe"}, {"source": "scribe", "target": "left", "feedback": True}]
    links += [{"source": "judge", "target": "right", "feedback": True}]
    architectures = {"left": "qwen2", "right": "qwen3", "judge": "llama", "scribe": "mistral"}
    mas = tiny_system(architectures, [["left", "right"], ["judge"], ["scribe"]], links, "judge")
    assert len(set(assert_laws(mas, "latents"))) > 1


def test_what_a_smaller_number_of_rounds_needs_is_computed_though_the_largest_does_not_need_it():
    """Two roles that hear of each other only a round later: an even number of rounds needs other turns than an odd."""
    links = [{"source": "a", "target": "b", "feedback": True}, {"source": "b", "target": "a", "feedback": True}]
    mas = tiny_system({"a": "qwen2", "b": "llama"}, [["a"], ["b"]], links, "a")
    assert mas.topology.schedule(4) == [(1, "b"), (2, "a"), (3, "b"), (4, "a")]
    assert len(set(assert_laws(mas, "latents"))) > 1


@pytest.mark.parametrize("signal", ["rounds", "latents"])
def test_messages_of_text_settle_too(chain, signal):
    """A message that is a copy of the one before ends the recursion; where latents would be compared, texts are."""
    settling = {"signal": signal, "threshold": 1.0, "max_rounds": MOST}
    solutions = chain.solve(QUESTIONS, num_rounds="auto", mode="text", settling=settling, max_new_tokens=8)
    fixed = chain.solve(QUESTIONS, num_rounds=1, mode="text", max_new_tokens=8)
    assert [s.text for s in solutions] == [s.text for s in fixed]
    assert {(s.usage["rounds"], s.usage["turns"]) for s in solutions} == {(1, 5)}  # the planner's second turn says so


def test_generate_writes_what_solve_writes(chain):
    settling = {"signal": "latents", "threshold": telling(seen(chain), "latents"), "max_rounds": MOST}
    given = {"num_rounds": "auto", "settling": settling, "max_new_tokens": 8}
    texts = [solution.text for solution in chain.solve(QUESTIONS, **given)]
    ids = chain.generate(QUESTIONS, **given)
    start = ids.shape[1] - 8
    assert [chain.tokenizer.decode(row[start:], skip_special_tokens=True) for row in ids] == texts


def test_a_change_is_the_largest_of_all_links_and_infinite_where_there_is_nothing_to_compare_with(chain):
    topology = chain.topology
    said = {(1, "planner", "critic"): "2+3", (1, "critic", "solver"): "2+3 ", (1, "solver", "planner"): "5"}
    assert change(topology, "turns", [(1, "planner")], said) == float("inf")
    assert change(topology, "turns", [(1, "critic")], said) == 0
    assert change(topology, "turns", [(1, "solver")], said) == 1
    assert change(topology, "rounds", [(1, "critic")], said) == float("inf")
    said[2, "planner", "critic"] = "2+4"
    assert change(topology, "rounds", [(2, "planner")], said) == pytest.approx(1 / 3)
    one, two = torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    said = {(1, "planner", "critic"): one, (2, "planner", "critic"): two}
    assert change(topology, "latents", [(2, "planner")], said) == pytest.approx(4 / 5)


def test_no_row_is_lost_by_the_chosen_threshold_and_the_cheapest_such_is_chosen():
    """Three rows over three rounds of three turns; the change of each stage is known by hand."""

    def row(*changes):
        ready = [0, 1, 1, 1, 2, 2, 2, 3]
        return {"turns": [(c, r, n + 1) for n, (c, r) in enumerate(zip(changes, ready, strict=True))]}

    inf = float("inf")
    rows = [row(inf, 0, 0, 0, 0, 0, 0, 0), row(inf, 0.5, 0.5, 0.1, 0, 0, 0, 0), row(inf, 0.3, 1, 1, 1, 1, 1, 0)]
    right = {1: [True, True, False], 2: [True, True, False], 3: [True, True, True]}
    found = choose("turns", rows, right)
    assert (found.threshold, found.lost, found.rounds_used) == (0.1, 0, (1 + 1 + 3) / 3)
    assert found.turns == (3 + 5 + 9) / 3
    assert choose("turns", rows, right, tolerance=0.4).threshold == 0.5  # one of three may be lost


def test_the_bound_is_the_fewest_rounds_at_which_a_row_is_right():
    figures = [
        {"mode": "latent", "num_rounds": 1, "accuracy": 0.5, "right": [True, False, False, True]},
        {"mode": "latent", "num_rounds": 3, "accuracy": 0.5, "right": [True, True, False, False]},
        {"mode": "latent", "num_rounds": "auto", "rounds_used": 2.5, "accuracy": 1, "right": [True] * 4},
        {"mode": "alone", "num_rounds": 1, "accuracy": 0, "right": [False] * 4},
    ]
    (bound,) = bounds(figures)
    assert (bound["accuracy"], bound["rounds_used"]) == (0.75, (1 + 3 + 3 + 1) / 4)
    assert bound["curve"] == [[1, 0.5], [2.5, 1], [3, 0.5]]


def test_auto_without_a_calibration_is_an_error_that_says_how_to_come_by_one(chain):
    with pytest.raises(InputError, match="recursivemas calibrate"):
        chain.solve(QUESTIONS, num_rounds="auto")
    with pytest.raises(InputError, match="num_rounds"):
        chain.solve(QUESTIONS, num_rounds="automatic")
    for settling, name in (({**NEVER, "signal": "x"}, "signal"), ({**NEVER, "threshold": "0"}, "threshold")):
        with pytest.raises(InputError, match=name):
            chain.solve(QUESTIONS, num_rounds="auto", settling=settling)
    with pytest.raises(InputError, match="control"):
        chain.solve(QUESTIONS, num_rounds="auto", settling=NEVER, control="noise")
    with pytest.raises(ConfigError, match="settling"):
        tiny_chain({"a": "qwen2", "b": "llama"}, num_rounds="auto")


def test_auto_can_be_a_systems_default(tmp_path):
    mas = tiny_chain({"a": "qwen2", "b": "llama"}, num_rounds="auto", settling={**NEVER, "threshold": 100})
    mas.save_pretrained(tmp_path / "saved")
    again = type(mas).from_pretrained(tmp_path / "saved")
    assert again.config.num_rounds == "auto" and again.config.most_rounds == MOST
    usage = again.solve(QUESTIONS[0], max_new_tokens=2)[0].usage
    assert (usage["rounds"], usage["turns"]) == (2, 4)  # a and b, a again: all that the second answer needs
    assert again.solve(QUESTIONS[0], mode="alone", max_new_tokens=2)[0].usage["turns"] == 1


@pytest.mark.slow
def test_calibrate_stores_what_evaluate_measures_and_evaluate_warns_of_the_same_questions(tmp_path, capsys):
    """On the system that ships: nothing is lost, and at most 0.7 of its rounds and turns are taken."""
    skip = shutil.ignore_patterns("*.py", "*.json", "*.md", "tests", "runs", ".*", "__pycache__")
    system = tmp_path / "system"
    shutil.copytree(ROOT / "agents", system / "agents")
    shutil.copytree(ROOT / "links", system / "links", ignore=skip)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / name, system / name)
    content = json.loads((system / "config.json").read_text())
    content.pop("settling")
    (system / "config.json").write_text(json.dumps(content))
    asked = ["--system", str(system), "--data", "arithmetic", "--seed", "30001"]
    assert main(["calibrate", *asked, "--num-questions", "16", "--max-rounds", "4"]) == 0
    assert "stored in" in capsys.readouterr().out
    settling = json.loads((system / "config.json").read_text())["settling"]
    assert settling["max_rounds"] == 4 and settling["signal"] in SIGNALS
    rounds = ["--modes", "latent", "--rounds", "4", "auto", "--json"]
    assert main(["evaluate", *asked, "--num-questions", "16", *rounds]) == 0
    out, err = capsys.readouterr()
    assert "calibrated on these questions" in err
    full, auto = json.loads(out)["figures"]
    assert auto["accuracy"] == full["accuracy"] == 1.0
    assert auto["rounds_used"] <= 0.7 * 4 and auto["turns"] <= 0.7 * 12
    assert len(set(auto["row_rounds"])) > 1
    assert main(["evaluate", *asked, "--num-questions", "4", *rounds]) == 0
    assert "calibrated" not in capsys.readouterr().err
