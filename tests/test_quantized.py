"""Agents whose weights are in int8 by torchao: smaller, right, saved and loaded as they are; one role or all."""

import pytest
import torch
from recursivemas.benchmarks.quantized import INT8, bytes_of
from recursivemas.system_loader import ROOT, load_mas_system
from recursivemas.tasks import TASKS

torchao = pytest.importorskip("torchao")
pytestmark = pytest.mark.slow
ROWS = TASKS["arithmetic"].generate(24, list(TASKS["arithmetic"].LEVELS), seed=77)


def kinds(agent):
    return {type(p).__name__ for p in agent.model.parameters()}


def right(mas):
    solutions = mas.solve([row["question"] for row in ROWS], num_rounds=4)
    return sum(solution.answer == row["answer"] for solution, row in zip(solutions, ROWS, strict=True))


@pytest.fixture(scope="module")
def plain():
    return load_mas_system(ROOT)


def test_all_roles_in_int8_are_smaller_right_and_saved_as_they_are(plain, tmp_path):
    mas = load_mas_system(ROOT, quantization_config=INT8)
    for role, agent in mas.agents.items():
        assert "Int8Tensor" in kinds(agent), role
        assert bytes_of([agent.model]) < 0.6 * bytes_of([plain.agents[role].model])
    assert right(mas) >= len(ROWS) - 1
    mas.save_pretrained(tmp_path / "int8")
    again = load_mas_system(tmp_path / "int8")
    for role, agent in again.agents.items():
        assert "Int8Tensor" in kinds(agent), role
    question = ROWS[0]["question"]
    assert again.solve([question])[0].text == mas.solve([question])[0].text


def test_one_role_in_int8_leaves_the_others_as_they_are(plain):
    first, *others = plain.agents
    mas = load_mas_system(ROOT, quantization_config={first: INT8})
    assert "Int8Tensor" in kinds(mas.agents[first])
    for role in others:
        for parameter, own in zip(mas.agents[role].parameters(), plain.agents[role].parameters(), strict=True):
            assert type(parameter) is type(own) and torch.equal(parameter, own)
    assert right(mas) >= len(ROWS) - 1


def test_latents_and_links_of_agents_in_int8_are_in_float32(plain):
    mas = load_mas_system(ROOT, quantization_config=INT8)
    (solution,) = mas.solve([ROWS[0]["question"]], return_latents=True)
    assert {latents.dtype for latents in solution.latents.values()} == {torch.float32}
    assert {p.dtype for link in mas.outer_links.values() for p in link.parameters()} == {torch.float32}


def test_bytes_count_every_storage_once_and_what_quantised_tensors_are_made_of():
    layer = torch.nn.Linear(64, 32, bias=False)
    twin = torch.nn.Linear(64, 32, bias=False)
    twin.weight = layer.weight
    assert bytes_of([layer, twin]) == 64 * 32 * 4
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(layer, Int8WeightOnlyConfig())
    assert 64 * 32 <= bytes_of([layer]) < 64 * 32 * 1.3
