"""The benchmarks run, measure what they say, and report in one form."""

import json

import pytest
import torch
from recursivemas import cli
from recursivemas.benchmarks import baselines, harness
from recursivemas.benchmarks.bench import BENCHMARKS
from recursivemas.benchmarks.systems import random_agent, random_questions, random_system

SLOW = (
    "loading",
    "pipeline",
    "sandbox",
    "serve",
    "training",
    "growth",
    "recursion",
    "batch",
    "half",
    "quantized",
    "scale",
    "floor",
    "memory",
    "exam",
)  # they start processes, or take seconds
NEEDS = {"handover": "avp", "pipeline": "ray", "serve": "uvicorn", "quantized": "torchao"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in BENCHMARKS])
def test_every_benchmark_reports_in_one_form(name, tmp_path, capsys):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert cli.main(["bench", name, "--quick", "--json", "--output", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / f"{name}.json").read_text())
    assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert printed["benchmark"] == name and printed["settings"]["shape"] == "tiny"
    assert printed["machine"]["threads"] == 1 and {"date", "commit", "versions"} <= printed.keys()
    assert printed["rows"]
    for row in printed["rows"]:
        for figures in (row["value"], *row["seconds"].values()):
            assert 0 < figures["low"] <= figures["median"] <= figures["high"] or row["what"] == "exponent"


@pytest.mark.slow
def test_ways_run_in_turn_and_keep_their_own_times():
    order = []
    seconds = harness.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b") or 5.0}, repeats=2)
    assert order == ["a", "b"] * 3  # one warm-up
    assert seconds["b"] == [5.0, 5.0] and len(seconds["a"]) == 2 and max(seconds["a"]) < 1


def test_a_target_is_held_against_the_median():
    seconds = {"slow": [12.0, 10.0, 2.0], "fast": [1.0, 1.0, 1.0]}
    row = harness.ratio_row("x", seconds, "slow", "fast", ">= 10")
    assert row["met"] and row["value"] == {"median": 10.0, "low": 2.0, "high": 12.0}
    assert not harness.ratio_row("x", seconds, "slow", "fast", "<= 9")["met"]


def test_a_power_law_has_its_exponent():
    sizes = [1, 2, 4, 8]
    row = harness.exponent_row("x", sizes, {str(n): [3 * n**1.5, 7 * n**1.5] for n in sizes})
    assert row["value"]["median"] == pytest.approx(1.5)


def test_the_plain_way_thinks_the_same_thoughts():
    """What the benchmarks compare with computes the same as the engine."""
    agent = random_agent("tiny", "solo", torch.float32, "cpu")
    embeds = torch.randn(1, 9, agent.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fast = agent.rollout(embeds, torch.ones(1, 9, dtype=torch.long), 5).latents
    torch.testing.assert_close(
        baselines.recompute_thoughts(agent.model, agent.inner_link, embeds, 5), fast, atol=1e-4, rtol=1e-4
    )


def test_the_plain_way_writes_the_same_answer(tmp_path):
    mas = random_system(["tiny"] * 3, torch.float32, "cpu")
    mas.agents["agenta"].model.save_pretrained(tmp_path)
    (question,) = random_questions(20)
    ids = baselines.recompute_and_reload(mas, dict.fromkeys(mas.agents, str(tmp_path)), question, 2, 3, 8)
    (solution,) = mas.solve([question], num_rounds=2, latent_steps=3, max_new_tokens=8)
    assert mas.agents["agentc"].decode(ids[0].tolist()) == solution.text
    assert len(solution.text) == 8


def test_random_text_is_as_long_for_the_reader_as_for_the_writer():
    mas = random_system(["tiny"] * 2, torch.float32, "cpu")
    (solution,) = mas.solve(random_questions(16), mode="text", num_rounds=2, message_tokens=24, max_new_tokens=4)
    for text in solution.messages.values():
        assert len(text) == 24 and len(mas.renderers["agentb"].message_ids(text)) == 24
