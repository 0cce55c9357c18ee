"""What a run is said to need before anything is loaded, against what it then holds."""

import json

import pytest
import torch
from recursivemas import cli
from recursivemas.release.check import check_system
from recursivemas.system_loader import released_shape, released_styles
from recursivemas.training.arguments import LinkTrainingArguments
from recursivemas.training.data import Encoder, read_rows
from recursivemas.training.objectives import OuterObjective, OuterSettings
from recursivemas.training.plan import plan_of
from recursivemas.training.rehearsal import LiveBytes
from tiny import tiny_chain

LETTERS = "abcdefghijklmnopqrstuvwxyz " * 10


def held(**settings):
    """The most bytes of a step over long prompts whose slots stand in front, and what the plan says of it."""
    prompt = {"default": {"first": "<|question|>", "feedback": "<|latents:solver|><|question|>"}}
    prompts = {"planner": prompt, "solver": {"default": {"first": "<|latents:planner|><|question|>"}}}
    mas = tiny_chain({"planner": "qwen3", "solver": "llama"}, prompts=prompts, latent_steps=4)
    settings = {"supervise": "receivers", "earlier_rounds_weight": 1.0, "latents": "teacher"} | settings
    objective = OuterObjective(mas, list(mas.outer_links), list(mas.agents), OuterSettings(2, **settings)).train()
    rows = [
        {"question": LETTERS[5 * i :], "targets": dict.fromkeys(mas.agents, "abc def"), "answer": "x"}
        for i in (0, 1, 2)
    ]
    read, report = read_rows(rows, mas.topology.roles, 2)
    examples = Encoder(mas).examples(read, [objective.schedule], report)
    parts = [part for example in examples for part in example.parts.values()]
    positions = max(
        sum(len(p) for p in part.pieces if isinstance(p, list)) + len(part.target_ids) + 3 for part in parts
    )
    with LiveBytes() as live:
        objective(examples)["loss"].backward()
    gradients = sum(p.numel() * 4 for p in objective.parameters())
    arguments = LinkTrainingArguments(
        output="x",
        use_cpu=True,
        dtype="float32",
        max_length=positions,
        per_device_train_batch_size=3,
        num_rounds=2,
        **settings,
    )
    models = {role: agent.model.config for role, agent in mas.agents.items()}
    planned = plan_of("outer", arguments, mas.config, models, targets=max(len(part.target_ids) for part in parts))
    return planned["parts"]["activations"] + planned["parts"]["logits"] + gradients, live.peak


@pytest.mark.parametrize("loss", ["answers", "distill"])
def test_the_planned_peak_of_a_step_is_near_the_measured_one(loss):
    planned, measured = held(loss=loss)
    assert 0.85 < planned / measured < 1.2


def test_keeping_only_the_inputs_of_layers_makes_both_smaller():
    planned, measured = held()
    less_planned, less_measured = held(layer_checkpointing=True)
    assert less_measured < 0.7 * measured and less_planned < 0.7 * planned


def test_live_bytes_counts_what_is_alive_and_the_most_that_was():
    with LiveBytes() as live:
        one = torch.zeros(256)
        view = one[:3]
        two = one + 1
        del two
        three = one.view(16, 16).sum(0)
    assert (live.now, live.peak) == (1024 + 64, 2048)
    assert len(view) + len(three) == 19


@pytest.mark.slow
def test_a_dry_run_of_a_released_system_needs_nothing_of_it(capsys, monkeypatch):
    """Neither a network nor a cache; small positions, so that it is quick."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [
        "train",
        "outer",
        "--system",
        "sequential_light",
        "--output",
        "x",
        "--dry-run",
        "--json",
        "--dtype",
        "bfloat16",
    ]
    sizes = {}
    for more in ((), ("--layer_checkpointing",)):
        assert cli.main([*command, "--max_length", "64", "--per_device_train_batch_size", "1", *more]) == 0
        sizes[more] = json.loads(capsys.readouterr().out)
    plain, layers = sizes.values()
    assert plain["agents"]["planner"] == 2 * 1_720_574_976
    assert plain["parts"]["weights"] == sum(plain["agents"].values())
    assert plain["total"] == sum(plain["parts"].values()) and plain["positions"] == 64
    assert layers["parts"]["activations"] < plain["parts"]["activations"] / 2


def test_check_says_what_every_released_system_needs_without_a_download(tmp_path):
    for name, style in released_styles()["styles"].items():
        assert all(released_shape(agent["source"]) for agent in style["agents"].values()), name
    planned = check_system("sequential_light", cache_dir=str(tmp_path))["planned"]
    assert planned["bfloat16"] == 2 * (1_720_574_976 + 1_235_814_400 + 1_543_714_304)
    assert planned["bfloat16"] > planned["int8"] > planned["int4"] > planned["bfloat16"] / 4
