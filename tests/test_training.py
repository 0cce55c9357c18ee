"""The training path: data, closed-form starts, losses, the Trainer around them, and the commands."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from recursivemas import cli
from recursivemas.errors_recursivemas import ConfigError, InputError, NonFiniteError
from recursivemas.experiments.situations import SITUATIONS, as_stranger_writes, lift, with_stranger
from recursivemas.inspection.inspect import UntiedOuterObjective, _closeness
from recursivemas.links_recursivemas import OUTER_KINDS, OuterLink
from recursivemas.mixtures_recursivemas import ExpectedEmbeddingLink
from recursivemas.system_loader import ROOT, load_mas_system
from recursivemas.training import objectives
from recursivemas.training.arguments import (
    OWN_SETTINGS,
    PAPER,
    SETTINGS,
    LinkTrainingArguments,
    default_of,
    read_arguments,
)
from recursivemas.training.caches import differentiable_cache
from recursivemas.training.checkpoints import last_checkpoint
from recursivemas.training.data import DataError, Encoder, Example, read_rows, refuse_bad_rows
from recursivemas.training.objectives import InnerObjective, OuterObjective, OuterSettings
from recursivemas.training.run import build_objective, train, verdict
from recursivemas.training.start import (
    embedding_rms,
    embedding_scale,
    fit_outer_link,
    random_outer_link,
    ridge,
    shared_tokens,
    start_inner_link,
    token_bytes,
)
from safetensors.torch import load_file
from tiny import ARCHITECTURES, tiny_agent, tiny_chain
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ROLES = ("planner", "critic", "solver")
WORDS = ("three", "a plan", "seven apples and a pear", "no", "twelve")


def rows_of(count: int) -> list[dict]:
    """Rows with texts of different lengths, one a round."""
    return [
        {
            "question": f"How many are {index} and {index * 7}?",
            "targets": {role: [WORDS[(index + shift + r) % 5] for r in range(2)] for shift, role in enumerate(ROLES)},
            "answer": str(index),
        }
        for index in range(count)
    ]


def examples_of(mas, count: int, num_rounds: int = 2) -> list[Example]:
    rows, report = read_rows(rows_of(count), mas.topology.roles, num_rounds)
    return Encoder(mas).examples(rows, [mas.topology.schedule(num_rounds)], report)


def gradients_of(objective, examples) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    objective(examples)["loss"].backward()
    return {name: parameter.grad.clone() for name, parameter in objective.named_parameters()}


def outer_objective(mas, inner=(), kind=OuterObjective, **settings) -> OuterObjective:
    return kind(mas, list(mas.outer_links), inner, OuterSettings(**{"num_rounds": 2, "latent_steps": 5, **settings}))


# Data


def test_bad_rows_are_reported_with_count_lines_and_reason(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"question": "q", "targets": {"solver": "t"}, "answer": "a"})
    lines = [good, "{broken", json.dumps({"question": " "}), json.dumps({"question": "q"}), good, "[1]", "",
             json.dumps({"question": "q", "targets": {"solver": ["one"] * 2}})]  # fmt: skip
    path.write_text("\n".join(lines))
    rows, report = read_rows(path, ["solver"], num_rounds=3)
    assert [row.line for row in rows] == [1, 5]
    assert (report.rows, report.bad_rows) == (7, 5)
    text = str(report)
    assert "no question (line 3)" in text and "no target text for solver (line 4)" in text
    assert "2 target texts for solver, fewer than 3 rounds (line 8)" in text and "(line 2)" in text
    with pytest.raises(DataError, match="5 bad"):
        refuse_bad_rows(report)
    refuse_bad_rows(report, allowed=5)


def test_columns_of_the_release_are_read_as_they_are(tmp_path):
    path = tmp_path / "release.json"
    row = {"question": "q", "plan": "p", "refined_plan": "r", "answer": "a", "type": "math", "fn_name": None}
    deliberation = {"question": "q", "deliberation_reflector": "d", "answer": "a"}
    path.write_text(json.dumps({"data": [row]}))
    (read,), _ = read_rows(path, ROLES)
    assert read.targets == {"planner": ("p",), "critic": ("r",), "solver": ("a",)} and read.answer == "a"
    (read,), _ = read_rows([deliberation], ("reflector", "toolcaller"))
    assert read.targets == {"reflector": ("d",), "toolcaller": ("a",)}
    (read,), _ = read_rows([{"ask": "q", "say": "s"}], ("solver",), columns={"question": "ask", "solver": "say"})
    assert (read.inputs, read.targets["solver"]) == ({"question": "q"}, ("s",))


def test_no_more_rows_than_asked_for_are_read():
    rows = [{"question": " "}, *rows_of(5)]
    read, report = read_rows(rows, ROLES, 2, limit=2)
    assert [row.line for row in read] == [2, 3] and (report.rows, report.bad_rows) == (3, 1)


def test_a_dataset_on_disk_gives_the_rows_of_its_json_lines(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows_of(3)).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows_of(3))))
    assert read_rows(tmp_path / "saved", ROLES, 2)[0] == read_rows(tmp_path / "rows.jsonl", ROLES, 2)[0]


# Settings


def test_settings_are_defaults_then_file_then_assignments_then_flags(tmp_path, capsys):
    (tmp_path / "c.json").write_text('{"max_steps": 5, "learning_rate": 1, "seed": 2, "schedule": "linear"}')
    command = ["train", "outer", "--config", str(tmp_path / "c.json"), "--set=max_steps=7", "--set=seed=3",
               '--set=roles=["a"]', "--set=output=x", "--seed", "4", "--eval-rows", "9", "--show"]  # fmt: skip
    assert cli.main(command) == 0
    shown = json.loads(capsys.readouterr().out)
    expected = {"learning_rate": 1, "lr_scheduler_type": "linear", "max_steps": 7, "roles": ["a"], "output": "x",
                "seed": 4, "eval_rows": 9}  # fmt: skip
    assert {name: value for name, value in shown.items() if value != default_of(name)} == {**expected, "columns": {}}
    assert set(OWN_SETTINGS) < shown.keys()


def test_names_that_settings_had_before_are_understood():
    found = read_arguments(
        None, ["batch_size=4", "schedule=linear", "save_total_limit=3", "betas=[0.5, 0.6]", "trainer.bf16=true"]
    ).settings()
    now = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "lr_scheduler_type": "linear",
           "save_total_limit": 3, "adam_beta1": 0.5, "adam_beta2": 0.6, "bf16": True}  # fmt: skip
    assert {name: value for name, value in found.items() if value != default_of(name)} == {**now, "columns": {}}


def test_the_help_of_train_says_what_every_setting_means(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    own, others = capsys.readouterr().out.split("settings of transformers")
    assert all(f"--{name} " in own for name in OWN_SETTINGS)
    assert "--learning_rate" in others and "(default: 0.0005)" in others and "--fsdp" in others
    assert all(SETTINGS[name].metadata["help"] for name in OWN_SETTINGS)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learnin_rate=1", "learning_rate"),
        ("max_steps=many", "max_steps"),
        ("max_steps=0", "at least 1"),
        ("supervise=everyone", "receivers"),
        ("max_steps", "key=value"),
        ("batch_size=true", "batch_size"),
        ("betas=[0.9]", "betas"),
        ("adam_beta2=1", r"in \[0, 1\)"),
        ("roles=[1]", "roles"),
        ("columns={", "columns"),
        ("lr_scheduler_type=zigzag", "lr_scheduler_type"),
        ("dataloader_prefetch_factor=2", "dataloader_prefetch_factor"),
        ("num_train_epochs=2", "max_steps"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(assignment, message):
    with pytest.raises(ConfigError, match=message):
        read_arguments(None, [assignment])


# Closed-form start


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "é"]
    backend = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[("▁", "a"), ("a", "b")], byte_fallback=True)
    )
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_byte_level_and_sentencepiece_vocabularies_share_their_texts():
    theirs, ours = token_bytes(sentencepiece_tokenizer()), token_bytes(tiny_agent("qwen2", "a").tokenizer)
    assert theirs[b" a"] and theirs["é".encode()] and theirs[b"\n"] and theirs[b"a"] == 260
    assert {bytes([byte]) for byte in range(256)} <= ours.keys() & theirs.keys()
    assert b"</s>" not in theirs  # special tokens are matched by function, not by name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_tokens_have_the_same_text_and_eos_goes_to_eos(architecture):
    source, target = tiny_agent("llama", "a", seed=3), tiny_agent(architecture, "b", seed=4)
    a, b = shared_tokens(source, target)
    assert len(a) == len(set(a)) == len(set(b)) > 256
    assert (source.eos_token_ids[0], target.eos_token_ids[0]) in list(zip(a, b, strict=True))
    for i, j in zip(a, b, strict=True):
        texts = source.tokenizer.decode([i]), target.tokenizer.decode([j])
        assert texts[0] == texts[1] or i == source.eos_token_ids[0] or i == source.tokenizer.bos_token_id


def test_ridge_recovers_a_linear_map():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(5, 4), torch.randn(5), torch.randn(200, 4)
    found = ridge(x, x @ weight.T + bias, penalty=1e-9)
    torch.testing.assert_close(found[0], weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1], bias, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind, shape in OUTER_KINDS.items() if shape.residual or shape.layers == 1])
def test_every_kind_with_a_linear_path_starts_near_the_targets_embeddings(kind):
    source, target = tiny_agent("qwen3", "a"), tiny_agent("gemma3_text", "b", seed=1)
    with torch.no_grad():  # the target's space is a linear image of the source's
        a, b = map(torch.tensor, shared_tokens(source, target))
        mixing = torch.randn(source.hidden_size, target.hidden_size)
        target.get_input_embeddings().weight[b] = source.get_input_embeddings().weight[a] @ mixing
        wanted, random = target.embed(b), OuterLink(kind, source.hidden_size, target.hidden_size)(source.embed(a))
        found = fit_outer_link(source, target, kind)(source.embed(a))
    error = (found - wanted).pow(2).sum() / wanted.pow(2).sum()
    assert error < (0.1 if OUTER_KINDS[kind].norm else 1e-3)
    assert error < (random - wanted).pow(2).sum() / wanted.pow(2).sum() / 5


def test_a_kind_without_a_linear_path_has_no_closed_form():
    with pytest.raises(ConfigError, match="without a linear path"):
        fit_outer_link(tiny_agent("qwen3", "a"), tiny_agent("llama", "b"), "outer_ln_adapter")


def test_a_new_inner_link_speaks_at_the_scale_of_the_embeddings():
    agent = tiny_agent("gemma3_text", "a")  # whose embedding module scales
    link = start_inner_link(agent, "ln_res_adapter")
    said = link(torch.randn(50, agent.hidden_size) * 30)
    embeddings = agent.embed(torch.arange(len(agent.tokenizer)))
    assert float(said.detach().pow(2).mean().sqrt()) == pytest.approx(embedding_rms(embeddings), rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize("kind", OUTER_KINDS)
def test_a_random_outer_link_speaks_at_the_scale_of_the_receivers_embeddings(kind):
    source, target = tiny_agent("qwen3", "a"), tiny_agent("gemma3_text", "b")
    link = random_outer_link(source, target, kind)
    everything = source.embed(torch.arange(source.get_input_embeddings().num_embeddings))
    assert 0.5 < embedding_rms(link(everything)) / embedding_scale(target) < 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_the_expected_embedding_is_the_mean_embedding_under_the_models_own_distribution(architecture):
    agent = tiny_agent(architecture, "a")
    link = ExpectedEmbeddingLink(agent.hidden_size)
    link.bind(agent.model, agent.control_token_ids)
    ids = torch.arange(3, 9)[None]
    output = agent.model(input_ids=ids, output_hidden_states=True)
    everything = agent.embed(torch.arange(agent.get_input_embeddings().num_embeddings))
    torch.testing.assert_close(link(output.hidden_states[-1]), output.logits.softmax(-1) @ everything)
    assert not link.state_dict()


# Losses


def test_a_part_is_what_inference_reads_and_the_target_is_what_the_agent_would_write(chain):
    """The target of its round with its end-of-sequence token; in the slots, where asked, what was said before."""
    rows, _ = read_rows(rows_of(1), ROLES, 2)
    encoder, renderer, planner = Encoder(chain, "default"), chain.renderers["planner"], chain.agents["planner"]
    prompts, targets = chain.config.prompts["planner"], rows_of(1)[0]["targets"]
    for round_index, phase in ((1, "first"), (2, "feedback")):
        part = encoder.part(rows[0], "planner", round_index)
        pieces = renderer.pieces(prompts["system"], prompts["default"][phase], rows[0].inputs)
        assert part.pieces == pieces
        said = renderer.message_ids(targets["solver"][round_index - 2])
        assert part.text_pieces == [piece if isinstance(piece, list) else said for piece in pieces]
        assert part.target_ids == [*renderer.message_ids(targets["planner"][round_index - 1]), *planner.eos_token_ids]


def test_teacher_forced_latents_stand_for_the_words_of_a_target_and_not_for_its_end():
    mas = tiny_chain()
    for most in (2, 99):
        objective = outer_objective(mas, latent_steps=most)
        examples = examples_of(mas, 3)
        parts = [example.parts[1, "planner"] for example in examples]
        builder = objective._prompt_builders(examples)["planner"]
        _, going = objective._stage((1, "planner"), parts, builder, {})
        expected = [min(most, len(part.target_ids) - 1) for part in parts]
        assert [len(latents) for latents in going["critic"]] == expected


def test_the_first_teacher_forced_latent_is_the_first_of_a_rollout(chain):
    mas = tiny_chain()
    for latents in ("teacher", "rollout"):
        objective = outer_objective(mas, latents=latents, latent_steps=1)
        examples = examples_of(mas, 1)
        builder, part = objective._prompt_builders(examples)["planner"], examples[0].parts[1, "planner"]
        _, going = objective._stage((1, "planner"), [part], builder, {})
        sent = going["critic"][0] if latents == "teacher" else sent - going["critic"][0]  # noqa: F821
    assert sent.shape == (1, mas.agents["critic"].hidden_size) and float(sent.detach().abs().max()) < 1e-5


@pytest.mark.parametrize("latents", ["teacher", "rollout"])
@pytest.mark.parametrize("supervise", ["decoder", "receivers"])
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_rows(latents, supervise):
    mas = tiny_chain()
    outer = outer_objective(mas, latents=latents, supervise=supervise, earlier_rounds_weight=0.5)
    examples = examples_of(mas, 4)
    for objective in (outer, InnerObjective(mas, ROLES)):
        with torch.no_grad():
            whole, alone = objective(examples)["loss"], [objective([example])["loss"] for example in examples]
        assert float(whole) == pytest.approx(float(sum(alone)) / 4, abs=1e-4)


@pytest.mark.parametrize("latents", ["teacher", "rollout"])
def test_heads_that_are_read_once_change_no_loss_and_no_gradient(latents, monkeypatch):
    mas = tiny_chain()
    examples, results = examples_of(mas, 3), []
    for reuse in (True, False):
        objective = outer_objective(mas, latents=latents, supervise="receivers", earlier_rounds_weight=1.0)
        monkeypatch.setattr(objectives, "can_crop", lambda cache, reuse=reuse: reuse)
        results.append(gradients_of(objective, examples))
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], atol=1e-5, rtol=1e-4)


def test_what_no_trained_link_reaches_is_computed_once_for_an_example(monkeypatch):
    mas = tiny_chain()
    examples = examples_of(mas, 3)
    objective = outer_objective(mas, latents="rollout", supervise="receivers", loss="distill", num_rounds=1)
    asked, losses = [], []
    text_states = objectives.text_states
    monkeypatch.setattr(objectives, "text_states", lambda *args: asked.append("texts") or text_states(*args))
    rollout = type(mas.agents["planner"]).rollout
    monkeypatch.setattr(
        type(mas.agents["planner"]), "rollout", lambda *a, **k: asked.append(a[0].role) or rollout(*a, **k)
    )
    for order in (examples, examples[::-1]):
        asked.clear()
        losses.append(float(objective(order)["loss"].detach()))
    assert asked == ["critic"]  # whose thoughts the planner's latents change
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_loss_weights_add_the_mean_of_the_earlier_rounds():
    mas = tiny_chain()
    found = {w: outer_objective(mas, num_rounds=3, earlier_rounds_weight=w).weights for w in (0.0, 0.2)}
    assert found[0.0] == {(3, "solver"): 1.0}
    assert found[0.2] == {(1, "solver"): 0.1, (2, "solver"): 0.1, (3, "solver"): 1.0}
    weights = outer_objective(mas, num_rounds=2, earlier_rounds_weight=1.0, supervise="receivers").weights
    assert (1, "planner") not in weights and weights[2, "planner"] == pytest.approx(1 / 3)
    assert sum(weight for (r, _), weight in weights.items() if r == 1) == pytest.approx(1)


@pytest.mark.parametrize("latents", ["teacher", "rollout"])
def test_gradients_reach_every_link_of_every_kind_and_no_agent(latents):
    mas = tiny_chain()
    gradients = gradients_of(outer_objective(mas, ROLES, latent_steps=3, latents=latents), examples_of(mas, 2))
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    assert {name.split(".")[0] for name in gradients} == {"inner_links", "outer_links"}
    assert all(p.grad is None for agent in mas.agents.values() for p in agent.model.parameters())


@pytest.mark.parametrize("latents", ["teacher", "rollout"])
def test_activation_checkpointing_changes_no_loss_and_no_gradient(latents):
    mas = tiny_chain()
    examples, results = examples_of(mas, 2), []
    for checkpointing in (False, True):
        objective = outer_objective(mas, latents=latents, supervise="receivers", earlier_rounds_weight=1.0,
                                    activation_checkpointing=checkpointing).train()  # fmt: skip
        results.append(gradients_of(objective, examples))
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_through_the_cache_equal_those_without_one(architecture):
    agent = tiny_agent(architecture, "a")
    agent.requires_grad_(False)
    agent.inner_link.requires_grad_(True)
    torch.manual_seed(0)
    embeds, mask = torch.randn(2, 12, agent.hidden_size) * 0.6, torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    embeds[1, :5] = 0
    found = agent.rollout(embeds, mask, 4, differentiable_cache(agent)).latents
    thoughts, seen, seen_mask = [], embeds, mask
    for _ in range(4):
        thoughts.append(agent.inner_link(agent.encode(seen, seen_mask)[:, -1]))
        seen = torch.cat([seen, thoughts[-1][:, None]], dim=1)
        seen_mask = torch.cat([seen_mask, seen_mask[:, :1] * 0 + 1], dim=1)
    parameters = list(agent.inner_link.parameters())
    direction = torch.randn_like(found)
    with_cache = torch.autograd.grad((found * direction).sum(), parameters)
    without = torch.autograd.grad((torch.stack(thoughts, dim=1) * direction).sum(), parameters)
    for a, b in zip(with_cache, without, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=0)


def test_links_train_in_float32_beside_bfloat16_agents():
    mas = tiny_chain()
    for agent in mas.agents.values():
        agent.model.to(torch.bfloat16)
        agent.inner_link.to(torch.bfloat16)
    gradients = gradients_of(outer_objective(mas, ROLES, latent_steps=3), examples_of(mas, 2))
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients.values())
    assert {agent.dtype for agent in mas.agents.values()} == {torch.bfloat16}


def test_the_gradients_of_the_rounds_add_up_to_that_of_the_link():
    mas = tiny_chain()
    examples, settings = examples_of(mas, 3), {"latent_steps": 4, "earlier_rounds_weight": 0.5}
    tied = gradients_of(outer_objective(mas, ROLES, **settings), examples)
    untied = outer_objective(mas, ROLES, UntiedOuterObjective, **settings)
    untied(examples)["loss"].backward()
    for name, gradient in tied.items():
        _, link, parameter = name.split(".", 2)
        copies = [dict(untied.copies[link, r].named_parameters())[parameter].grad for r in (1, 2)]
        total = sum(copy for copy in copies if copy is not None)
        torch.testing.assert_close(total, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)


def test_closeness_tells_direction_from_length():
    agent = tiny_agent("gemma3_text", "a")
    ids = torch.arange(5, 15)
    found = _closeness(agent, 2 * agent.embed(ids), ids)
    assert found["cosine"] == pytest.approx(1) and found["scale"] == pytest.approx(2)
    assert _closeness(agent, agent.embed(ids), ids)["nearest_token"] == 1


# Runs


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A system and rows on disk."""
    folder = tmp_path_factory.mktemp("workshop")
    tiny_chain().save_pretrained(folder / "system")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows_of(24))))
    return folder


def settings(workshop: Path, output: Path, **changes) -> LinkTrainingArguments:
    values = {
        "system": str(workshop / "system"), "data": str(workshop / "rows.jsonl"), "output": str(output),
        "max_steps": 6, "per_device_train_batch_size": 4, "warmup_steps": 1, "learning_rate": 1e-3, "logging_steps": 1,
        "save_steps": 2, **PAPER,
    }  # fmt: skip
    return LinkTrainingArguments(**values | changes)


def losses_of(output: Path) -> list[float]:
    state = json.loads((output / "training" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize("kind", ["inner", "outer"])
def test_a_run_lowers_the_loss_saves_links_only_and_a_system_that_loads(workshop, tmp_path, kind):
    config = settings(workshop, tmp_path, max_steps=12, learning_rate=5e-3, eval_data=str(workshop / "rows.jsonl"),
                      eval_rows=5)  # fmt: skip
    result = train(kind, config)
    losses = losses_of(tmp_path)
    assert result["step"] == 12 and losses[-1] < losses[0] and {"eval_loss", "eval_accuracy"} <= result.keys()
    assert list((tmp_path / "training" / "runs").rglob("events.out.tfevents.*"))
    checkpoint = last_checkpoint(tmp_path / "training")
    saved = load_file(checkpoint / "model.safetensors")
    assert checkpoint.name == "checkpoint-12" and {key.split(".")[0] for key in saved} == {f"{kind}_links"}
    trained, before = load_mas_system(tmp_path), load_mas_system(workshop / "system")
    for name, link in trained.outer_links.items():
        same = torch.equal(link.proj1.weight, before.outer_links[name].proj1.weight)
        assert same == (kind == "inner")
    question = rows_of(1)[0]["question"]
    assert trained.solve(question, max_new_tokens=4)[0].text is not None


@pytest.mark.parametrize("kind", [pytest.param("inner", marks=pytest.mark.slow), "outer"])
def test_a_resumed_run_ends_with_the_same_bits(workshop, tmp_path, kind):
    changes = {"outer_kind": "outer_ln_res_adapter", "outer_start": "random"} if kind == "outer" else {}
    train(kind, settings(workshop, tmp_path / "whole", **changes))
    config = settings(workshop, tmp_path / "again", save_total_limit=3, **changes)
    train(kind, config)
    shutil.rmtree(tmp_path / "again" / "training" / "checkpoint-6")
    (tmp_path / "again" / "training" / "checkpoint-4" / "trainer_state.json").unlink()  # killed while it was written
    assert last_checkpoint(tmp_path / "again" / "training").name == "checkpoint-2"
    train(kind, config, resume=True)
    for path in (tmp_path / "whole" / "links").iterdir():
        a, b = load_file(path), load_file(tmp_path / "again" / "links" / path.name)
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_an_evaluation_that_a_run_did_not_begin_with_may_come_with_its_continuation(workshop, tmp_path):
    train("outer", settings(workshop, tmp_path, max_steps=4))
    shutil.rmtree(tmp_path / "training" / "checkpoint-4")
    result = train(
        "outer", settings(workshop, tmp_path, max_steps=4, eval_data=str(workshop / "rows.jsonl")), resume=True
    )
    assert "eval_accuracy" in result and "start_accuracy" not in result


def test_an_evaluation_counts_the_questions_that_the_system_answers(workshop, tmp_path):
    rows = rows_of(4)
    solutions = load_mas_system(workshop / "system").solve([row["question"] for row in rows])
    for row, solution in zip(rows, solutions, strict=True):
        row["answer"] = solution.answer
    rows[3]["answer"] = "something else"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    result = train("outer", settings(workshop, tmp_path / "run", max_steps=1, eval_data=str(path)))
    assert result["start_accuracy"] == 0.75


def test_a_run_says_whether_it_made_the_system_worse():
    assert "worse" in verdict({"start_accuracy": 0.9, "eval_accuracy": 0.5, "start_loss": 2.0, "eval_loss": 1.0})
    assert "worse" not in verdict({"start_accuracy": 0.5, "eval_accuracy": 0.9, "start_loss": 1.0, "eval_loss": 2.0})
    assert "worse" in verdict({"start_loss": 1.0, "eval_loss": 2.0})
    assert verdict({"eval_loss": 2.0}) is None and verdict({}) is None


def test_a_run_with_other_settings_is_not_gone_on_with(workshop, tmp_path):
    train("outer", settings(workshop, tmp_path, max_steps=2))
    with pytest.raises(InputError, match="earlier run"):
        train("outer", settings(workshop, tmp_path, max_steps=2))
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.001 -> 0\.5"):
        train("outer", settings(workshop, tmp_path, max_steps=2, learning_rate=0.5), resume=True)


@pytest.mark.slow
def test_a_run_that_began_under_earlier_names_of_its_settings_goes_on(workshop, tmp_path):
    train("outer", settings(workshop, tmp_path, max_steps=4))
    shutil.rmtree(tmp_path / "training" / "checkpoint-4")
    path = tmp_path / "training" / "training_config.json"
    before = json.loads(path.read_text())
    old = {name: before[name] for name in (*OWN_SETTINGS, "max_steps", "learning_rate", "warmup_steps", "seed")}
    old |= {"batch_size": 4, "schedule": "cosine", "betas": [0.9, 0.95], "keep_checkpoints": 2, "trainer": {}}
    path.write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=r"found: adam_beta2: 0\.95 -> 0\.9\n"):
        train("outer", settings(workshop, tmp_path, max_steps=4, adam_beta2=0.9), resume=True)
    assert train("outer", settings(workshop, tmp_path, max_steps=4), resume=True)["step"] == 4


@pytest.mark.slow
def test_a_run_encodes_every_row_once(workshop, tmp_path, monkeypatch):
    part, seen = Encoder.part, []
    monkeypatch.setattr(Encoder, "part", lambda self, row, *at: seen.append((row.line, *at)) or part(self, row, *at))
    train("outer", settings(workshop, tmp_path, max_steps=12, save_steps=0))  # two epochs
    assert len(seen) == len(set(seen)) == 24 * 2 * 3


@pytest.mark.slow
def test_accumulated_batches_equal_one_large_batch(workshop, tmp_path):
    train("outer", settings(workshop, tmp_path / "one", per_device_train_batch_size=8, save_steps=0, max_steps=3))
    train("outer", settings(workshop, tmp_path / "two", gradient_accumulation_steps=2, save_steps=0, max_steps=3))
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "two"), abs=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_rows(workshop, tmp_path, monkeypatch):
    whole = OuterObjective.forward

    def broken(self, examples):
        factor = float("nan") if any(example.row.line == 7 for example in examples) else 1
        return {"loss": whole(self, examples)["loss"] * factor}

    monkeypatch.setattr(OuterObjective, "forward", broken)
    with pytest.raises(NonFiniteError, match=r"rows of lines .*\b7\b"):
        train("outer", settings(workshop, tmp_path, max_steps=20))


def test_rows_that_cannot_be_used_stop_a_run_before_any_compute(workshop, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows_of(8), {"question": "q"}])))
    with pytest.raises(DataError, match="no target text for planner"):
        train("outer", settings(workshop, tmp_path / "out", data=str(path)))
    with pytest.raises(DataError, match="exceed 30 positions"):
        train("outer", settings(workshop, tmp_path / "out", max_length=30))
    assert train("outer", settings(workshop, tmp_path / "out", data=str(path), allowed_bad_rows=1, max_steps=1))


def test_new_links_start_where_the_settings_say():
    mas = tiny_chain(outer_kind="outer_linear_adapter")
    build_objective("outer", LinkTrainingArguments(outer_kind="outer_ln_res_adapter"), mas)
    assert float(mas.outer_links["planner_to_critic"].proj2.weight.detach().abs().max()) == 0
    assert mas.config.links[0]["kind"] == "outer_ln_res_adapter"
    with pytest.raises(InputError, match="Unknown links"):
        build_objective("outer", LinkTrainingArguments(links=["planner_to_nobody"]), mas)
    with pytest.raises(InputError, match="send nothing in 1 rounds"):
        build_objective("outer", LinkTrainingArguments(links=["solver_to_planner"], num_rounds=1), mas)
    assert "solver_to_planner" not in build_objective("outer", LinkTrainingArguments(num_rounds=1), mas).outer_links


# Commands


@pytest.mark.slow
@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_is_measured_over_text_before_and_after_the_outer_loop(tmp_path, name):
    result = lift(SITUATIONS[name], tmp_path, steps=2, questions=8, rows=64)
    assert result["steps"] == [1] and all(0 <= result[key][2]["accuracy"] <= 1 for key in ("text", "before", "after"))
    sent = [figures["latent_positions"] for figures in result["before"].values()]
    if name != "another alphabet":  # rounds times senders times steps, whatever the question
        steps = load_mas_system(tmp_path / "start").config.latent_steps
        senders = len(load_mas_system(tmp_path / "start").topology.roles)
        assert sent == [(senders - 1) * steps, (2 * senders - 1) * steps]


def test_a_stranger_writes_the_same_tokens_with_other_characters(tmp_path):
    with_stranger(tmp_path)
    ours, theirs = (load_mas_system(folder).agents["critic"].tokenizer for folder in (ROOT, tmp_path))
    row = as_stranger_writes({"question": "3+5*2", "targets": {"planner": ["8*2"], "critic": ["6"], "solver": ["6"]}})
    assert row["targets"] == {"planner": ["8*2"], "critic": ["G"], "solver": ["6"]}
    assert ours("6", add_special_tokens=False) == theirs("G", add_special_tokens=False)


def test_init_links_makes_a_system_that_answers_and_swaps_an_agent(workshop, tmp_path, capsys):
    agents = workshop / "system" / "agents"
    command = ["init-links", "--style", "distillation", "--agent", f"expert={agents / 'planner'}", "--agent",
               f"learner={agents / 'critic'}", "--output", str(tmp_path / "pair"), "--rounds", "2"]  # fmt: skip
    assert cli.main(command) == 0
    pair = load_mas_system(tmp_path / "pair")
    assert {agent.inner_link.kind for agent in pair.agents.values()} == {"expected_embedding"}
    assert not list((tmp_path / "pair" / "links").glob("expert.*"))
    answer = pair.solve("How many?", latent_steps=3, max_new_tokens=4)[0].text
    pair.save_pretrained(tmp_path / "copy", copy_agents=True)
    assert load_mas_system(tmp_path / "copy").solve("How many?", latent_steps=3, max_new_tokens=4)[0].text == answer
    swap = ["init-links", "--system", str(tmp_path / "pair"), "--agent", f"learner={agents / 'solver'}", "--output",
            str(tmp_path / "swapped")]  # fmt: skip
    assert cli.main(swap) == 0
    swapped = load_mas_system(tmp_path / "swapped")
    assert swapped.agents["learner"].model.config.model_type == "qwen2"
    assert swapped.outer_links["expert_to_learner"].out_features == swapped.agents["learner"].hidden_size
    assert cli.main([*swap[:4], "nobody=x", *swap[5:]]) == 2 and "nobody" in capsys.readouterr().err


def test_the_train_command_runs_both_loops(workshop, tmp_path, capsys):
    base = [f"--set=system={workshop / 'system'}", f"--set=data={workshop / 'rows.jsonl'}", "--set=max_steps=1",
            "--set=batch_size=2", "--json"]  # fmt: skip
    assert cli.main(["train", "inner", *base, f"--set=output={tmp_path / 'i'}", "--set=inner_kind=adapter"]) == 0
    assert cli.main(["train", "outer", *base, "--output", str(tmp_path / "o"), "--activation-checkpointing"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 1


@pytest.mark.parametrize("what", ["gradients", "fidelity", "thoughts"])
def test_the_inspect_command_prints_json_and_draws(workshop, tmp_path, capsys, what):
    command = ["inspect", what, "--system", str(workshop / "system"), "--data", str(workshop / "rows.jsonl"), "--json",
               "--rounds", "2", "--num-rows", "3", "--plot", str(tmp_path / "plot.png"),
               "--questions", "How many?"]  # fmt: skip
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    links = {*ROLES, "planner_to_critic", "critic_to_solver", "solver_to_planner"}
    if what == "thoughts":
        assert [said["round"] for said in found[0]["latents"]] == [1, 1, 1, 2, 2]
    else:
        assert set(found) == links
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert cli.main([*command[:6], "--num-rows", "3", "--questions", "How many?"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def launch(*arguments: str, processes: int = 1) -> subprocess.Popen:
    # accelerate starts several processes with --multi_gpu only; without a GPU they talk over gloo.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "recursivemas.cli"]
    if processes == 1:
        command = [sys.executable, "-m", "recursivemas.cli"]
    return subprocess.Popen([*command, "train", "outer", *arguments])


def flags(arguments: LinkTrainingArguments) -> list[str]:
    changed = {name: value for name, value in arguments.settings().items() if value and value != default_of(name)}
    return [word for name, value in changed.items() for word in (f"--{name}", str(value))]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(workshop, tmp_path):
    evaluation = {"eval_data": str(workshop / "rows.jsonl"), "eval_rows": 7, "threads": 1}
    one = settings(workshop, tmp_path / "one", per_device_train_batch_size=8, **evaluation)
    two = settings(workshop, tmp_path / "two", **evaluation)
    train("outer", one)
    assert launch(*flags(two), processes=2).wait(300) == 0
    results = [json.loads((tmp_path / name / "training" / "result.json").read_text()) for name in ("one", "two")]
    figures = [{key: value for key, value in result.items() if isinstance(value, int | float)} for result in results]
    assert len(figures[0]) > 4 and figures[0] == pytest.approx(figures[1], abs=1e-5)
    assert all({"date", "commit", "versions", "machine"} <= result.keys() for result in results)
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "two"), abs=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(workshop, tmp_path):
    changes = {"max_steps": 60, "save_steps": 1, "threads": 1}
    train("outer", settings(workshop, tmp_path / "whole", **changes))
    config = settings(workshop, tmp_path / "killed", **changes)
    run = launch(*flags(config))
    while last_checkpoint(tmp_path / "killed" / "training") is None:
        assert run.poll() is None
        time.sleep(0.05)
    time.sleep(0.6)
    assert run.poll() is None, "the run was over before it could be killed"
    run.kill()
    run.wait()
    assert launch(*flags(config), "--resume").wait(300) == 0
    for path in (tmp_path / "whole" / "links").iterdir():
        a, b = load_file(path), load_file(tmp_path / "killed" / "links" / path.name)
        assert all(torch.equal(a[key], b[key]) for key in a)
