"""What a run is said to need before anything is loaded, against what it then holds."""

import json

import pytest
import torch
from recursivemas import cli
from recursivemas.release.check import check_system
from recursivemas.system_loader import released_shape, released_styles
from recursivemas.training import plan
from recursivemas.training.arguments import LinkTrainingArguments
from recursivemas.training.data import Encoder, read_rows
from recursivemas.training.objectives import OuterObjective, OuterSettings
from recursivemas.training.plan import plan_of
from recursivemas.training.rehearsal import LiveBytes
from tiny import tiny_chain

LETTERS = "abcdefghijklmnopqrstuvwxyz " * 10


def step(mas, rounds=2, batch=3, **settings):
    """An objective, examples of long prompts whose slots stand in front, and their most positions."""
    settings = {"supervise": "receivers", "earlier_rounds_weight": 1.0, "latents": "teacher"} | settings
    objective = OuterObjective(mas, list(mas.outer_links), list(mas.agents), OuterSettings(rounds, **settings)).train()
    rows = [
        {"question": LETTERS[5 * i :], "targets": dict.fromkeys(mas.agents, "abc def"), "answer": "x"}
        for i in range(batch)
    ]
    read, report = read_rows(rows, mas.topology.roles, rounds)
    examples = Encoder(mas).examples(read, [objective.schedule], report)
    parts = [part for example in examples for part in example.parts.values()]
    steps = mas.config.latent_steps
    words = max(sum(len(piece) if isinstance(piece, list) else steps for piece in part.pieces) for part in parts)
    return objective, examples, words + len(parts[0].target_ids), settings


def chain():
    prompt = {"default": {"first": "abcd<|question|>", "feedback": "<|latents:solver|><|question|>"}}
    prompts = {"planner": prompt, "solver": {"default": {"first": "<|latents:planner|><|question|>"}}}
    return tiny_chain({"planner": "qwen3", "solver": "llama"}, prompts=prompts, latent_steps=4)


def measured(objective, examples):
    """The most bytes of a step, gradients of the links aside."""
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        objective(examples)["loss"].backward()
    return live.peak


def held(batch=3, **settings):
    """The most bytes of a step, and what the plan says of it."""
    mas = chain()
    objective, examples, positions, settings = step(mas, batch=batch, **settings)
    found = measured(objective, examples)
    arguments = LinkTrainingArguments(
        output="x",
        use_cpu=True,
        dtype="float32",
        max_length=positions,
        per_device_train_batch_size=batch,
        num_rounds=2,
        **settings,
    )
    models = {role: agent.model.config for role, agent in mas.agents.items()}
    targets = len(examples[0].parts[1, "solver"].target_ids)
    planned = plan_of("outer", arguments, mas.config, models, targets=targets)
    return planned["parts"]["activations"] + planned["parts"]["logits"], found


LAYERS, STAGES = {"layer_checkpointing": True}, {"activation_checkpointing": True}


def slow(settings, name):
    return pytest.param(settings, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"loss": "answers"}, id="answers"),
        pytest.param(STAGES, id="stages"),
        pytest.param(LAYERS | STAGES, id="layers and stages"),
        pytest.param(LAYERS | {"batch": 1}, id="one row"),
        slow({"loss": "distill"}, "distill"),
        slow(LAYERS, "layers"),
        slow(STAGES | {"latents": "rollout"}, "rollouts"),
    ],
)
def test_the_planned_peak_of_a_step_is_near_the_measured_one(settings):
    planned, found = held(**settings)
    assert 0.9 < planned / found < 1.1


def test_stages_that_are_computed_again_hold_nothing_of_other_rounds():
    """But for what travels; a rollout's keys and masks are of a stage, too."""
    settings = {"latents": "rollout", "latent_steps": 2} | LAYERS | STAGES
    peaks = [measured(*step(chain(), rounds, **settings)[:2]) for rounds in (2, 4)]
    assert peaks[1] < 1.1 * peaks[0], peaks


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"latents": "teacher"}, id="teacher"),
        slow({"latents": "rollout"}, "rollouts"),
        slow({"latents": "rollout"} | LAYERS | STAGES, "rollouts, layers and stages"),
    ],
)
def test_few_layers_and_steps_say_what_all_would(settings, monkeypatch):
    mas, planned = chain(), []
    models = {role: agent.model.config for role, agent in mas.agents.items()}
    for layers, model in zip((5, 4), models.values(), strict=True):
        model.num_hidden_layers, model.layer_types = layers, ["full_attention"] * layers
    arguments = LinkTrainingArguments(
        output="x",
        use_cpu=True,
        max_length=90,
        per_device_train_batch_size=2,
        num_rounds=2,
        latent_steps=7,
        **settings,
    )
    for few in (2, 99):
        monkeypatch.setattr(plan, "FEW", few)
        planned.append(plan_of("outer", arguments, mas.config, models)["parts"])
    # Where the peak of a part moves as layers or steps are added, what few of them say is a little off.
    assert planned[0] == pytest.approx(planned[1], rel=0.02)


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
