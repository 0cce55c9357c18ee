"""Training that holds on real models: distilled hand-overs, mixtures as targets, rollouts, the best links kept."""

import json
import math

import pytest
import torch
from recursivemas import cli
from recursivemas.batching_recursivemas import PromptBatch, embed_rows
from recursivemas.errors_recursivemas import InputError
from recursivemas.handover_recursivemas import hand_over
from recursivemas.mixtures_recursivemas import ExpectedEmbeddingLink
from recursivemas.system_loader import ROOT, load_mas_system
from recursivemas.thinking_recursivemas import Rollout
from recursivemas.training import own_answers
from recursivemas.training.arguments import KIND_DEFAULTS, LinkTrainingArguments, read_arguments
from recursivemas.training.data import Encoder, read_rows
from recursivemas.training.objectives import (
    InnerObjective,
    InnerSettings,
    OuterObjective,
    OuterSettings,
    divergence,
    target_states,
    text_states,
)
from recursivemas.training.run import hold_out, train, verdict
from recursivemas.training.start import extended, fit_outer_link, mean_norm, reference_link, start_inner_link
from recursivemas.training.store import TensorStore
from test_training import ROLES, examples_of, rows_of
from tiny import tiny_agent, tiny_chain


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    mas = tiny_chain(latent_steps=4)
    for role, agent in mas.agents.items():
        mas.set_link(role, ExpectedEmbeddingLink(agent.hidden_size, 0.3, mean_norm(agent), special_tokens=False))
    for link in mas.topology.links:
        mas.set_link(link.name, fit_outer_link(mas.agents[link.source], mas.agents[link.target]))
    mas.save_pretrained(folder / "system")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows_of(16))))
    return folder


def settings(workshop, output, kind, **changes) -> LinkTrainingArguments:
    values = {
        **KIND_DEFAULTS[kind], "system": str(workshop / "system"), "data": str(workshop / "rows.jsonl"),
        "output": str(output), "max_steps": 8, "per_device_train_batch_size": 4, "warmup_steps": 1,
        "logging_steps": 1, "num_rounds": 2, "report_to": "none", "disable_tqdm": True, "replay_steps": 2,
    }  # fmt: skip
    return LinkTrainingArguments(**values | changes)


def losses_of(output, part="loss") -> list[float]:
    state = json.loads((output / "training" / "trainer_state.json").read_text())
    return [entry[part] for entry in state["log_history"] if part in entry and "loss" in entry]


def test_the_logged_gradient_norms_of_the_links_make_up_the_total_before_clipping(workshop, tmp_path):
    train("outer", settings(workshop, tmp_path, "outer", max_steps=2, held_out=0, max_grad_norm=1e-3))
    totals = losses_of(tmp_path, "grad_norm")
    links = [losses_of(tmp_path, f"gradient_norm_{link.name}") for link in tiny_chain().topology.links]
    assert totals == pytest.approx([math.hypot(*of_step) for of_step in zip(*links, strict=True)], rel=1e-3)
    assert len(links) > 1 and min(totals) > 1e-2


# Outer loop


@torch.no_grad()
def test_the_divergence_is_that_of_the_distributions_and_nothing_for_the_same():
    mas = tiny_chain()
    agent = mas.agents["solver"]
    parts = [example.parts[1, "solver"] for example in examples_of(mas, 3, 1)]
    states = text_states(agent, parts)
    torch.testing.assert_close(divergence(agent, states, states), torch.zeros(3), atol=1e-6, rtol=0)
    other = text_states(agent, parts)
    other.hidden_states = other.hidden_states + 0.3 * torch.randn_like(other.hidden_states)
    expected = []
    for row, length in enumerate(states.lengths):
        p, q = (agent.logits(each.hidden_states[row, -length:]).log_softmax(-1) for each in (states, other))
        expected.append((p.exp() * (p - q)).sum(-1).mean())
    torch.testing.assert_close(divergence(agent, states, other), torch.stack(expected))


def outer(mas, inner=(), **changes) -> OuterObjective:
    given = {"num_rounds": 1, "latent_steps": 4, "loss": "distill", "latents": "rollout", "supervise": "receivers"}
    return OuterObjective(mas, list(mas.outer_links), inner, OuterSettings(**given | changes))


def test_thoughts_that_nothing_trained_reaches_are_thought_once(monkeypatch):
    mas = tiny_chain()
    objective, examples = outer(mas).train(), examples_of(mas, 3, 1)
    first = objective(examples)["loss"]
    thinks = []
    for role, agent in mas.agents.items():
        whole = agent.rollout
        monkeypatch.setattr(agent, "rollout", lambda *a, role=role, whole=whole: thinks.append(role) or whole(*a))
    again = objective(list(reversed(examples)))["loss"]
    torch.testing.assert_close(again, first)
    assert thinks == ["critic"], "the planner's thoughts are kept, the critic's depend on a trained link"


def test_gradients_flow_through_latent_steps_only_where_the_inner_link_is_trained_along(monkeypatch):
    for inner, flows in (((), False), (("critic",), True)):
        mas = tiny_chain()
        objective, seen = outer(mas, inner).train(), []
        whole = mas.agents["critic"].rollout

        def watch(*arguments, whole=whole, seen=seen):
            rollout = whole(*arguments)
            seen.append(rollout.hidden_states.requires_grad)
            return rollout

        monkeypatch.setattr(mas.agents["critic"], "rollout", watch)
        objective(examples_of(mas, 2, 1))["loss"].backward()
        assert seen == [flows]
        names = ("planner_to_critic", "critic_to_solver")
        assert all(mas.outer_links[name].proj1.weight.grad.abs().sum() > 0 for name in names)


@pytest.mark.parametrize(
    "kind", [None, *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("outer_resampler", "outer_soft_prompt"))]
)
def test_the_default_outer_loop_brings_latents_nearer_to_text(workshop, tmp_path, kind):
    changes = {} if kind is None else {"outer_kind": kind, "positions": 2, "learning_rate": 1e-2}
    result = train("outer", settings(workshop, tmp_path, "outer", max_steps=12, held_out=0, **changes))
    losses = losses_of(tmp_path)
    assert sum(losses[-4:]) < sum(losses[:4]) and result["step"] == 12
    trained = load_mas_system(tmp_path)
    link = trained.outer_links["critic_to_solver"]
    assert link.kind == (kind or "outer_res_adapter")
    solution = trained.solve("How many?", num_rounds=1, latent_halting=False, control_tokens=True)[0]
    assert solution.usage["slot_positions"] == (8 if kind is None else 4)


@torch.no_grad()
def test_a_linear_link_is_extended_without_changing_what_it_does():
    source, target = tiny_agent("qwen3", "a"), tiny_agent("llama", "b")
    link = fit_outer_link(source, target)
    link.snap = True
    longer, x = extended(link), torch.randn(2, 3, source.hidden_size)
    assert longer.kind == "outer_res_adapter" and longer.snap
    torch.testing.assert_close(longer(x), link(x))
    assert extended(longer) is longer


@torch.no_grad()
def test_a_soft_prompt_says_the_same_whatever_was_thought():
    source, target = tiny_agent("qwen3", "a"), tiny_agent("llama", "b")
    link = fit_outer_link(source, target, "outer_soft_prompt", positions=3)
    one, other = (torch.randn(2, 4, source.hidden_size) for _ in range(2))
    sent = [hand_over(source, link, Rollout(z, z, torch.tensor([4, 2]))) for z in (one, other)]
    assert all(torch.equal(a, b) for a, b in zip(*sent, strict=True)) and len(sent[0][0]) == 3
    assert torch.isin(target.nearest_token_ids(sent[0][0]), torch.arange(10**4)).all()


# The best links


def test_a_run_that_ends_worse_than_it_began_keeps_the_start_and_says_so(workshop, tmp_path):
    config = settings(workshop, tmp_path, "outer", eval_data=str(workshop / "rows.jsonl"), learning_rate=10.0)
    result = train("outer", config)
    assert result["eval_loss"] > result["start_loss"] and result["kept_step"] == 0
    assert "training made the system worse; the links of the start are kept" in verdict(result)
    start, kept = load_mas_system(workshop / "system"), load_mas_system(tmp_path)
    for name, link in start.outer_links.items():
        x = torch.randn(3, link.in_features)
        torch.testing.assert_close(kept.outer_links[name](x), link(x))


@pytest.mark.slow
def test_the_best_evaluation_on_the_way_is_kept(workshop, tmp_path):
    config = settings(workshop, tmp_path, "outer", eval_data=str(workshop / "rows.jsonl"), eval_steps=2)
    result = train("outer", config)
    history = json.loads((tmp_path / "training" / "trainer_state.json").read_text())["log_history"]
    scores = {e["step"]: (e["eval_accuracy"], -e["eval_loss"]) for e in history if "eval_loss" in e}
    best = max(scores, key=scores.__getitem__)
    assert len(scores) >= 4 and result.get("kept_step", result["step"]) == best
    assert ("kept_step" in result) == (best != result["step"])


def test_the_last_rows_are_held_out_of_long_data_only():
    mas = tiny_chain()
    rows, report = read_rows(rows_of(120), ROLES, 1)
    examples = Encoder(mas).examples(rows, [mas.topology.schedule(1)] * 2, report)
    train_on, held = hold_out(examples, 64)
    assert {e.row.line for e in held} == set(range(109, 121)) and len(train_on) == 2 * 108
    assert hold_out(examples[:100], 64) == (examples[:100], [])
    assert hold_out(examples, 0) == (examples, [])


# Inner loop


def inner(mas, **changes) -> InnerObjective:
    references = {role: reference_link(mas.agents[role]) for role in ROLES}
    for role in ROLES:
        mas.set_link(role, start_inner_link(mas.agents[role], "rescaled_adapter"))
    given = {"target": "mixture", "latent_steps": 3, "max_steps": 8, "rollout_refreshes": 1, "rollout_rows": 2}
    return InnerObjective(mas, ROLES, InnerSettings(**given | changes), references, ROLES).train()


def test_a_state_becomes_what_the_reference_makes_of_it():
    mas = tiny_chain()
    objective, examples = inner(mas), examples_of(mas, 3, 1)
    parts = [example.parts[1, "critic"] for example in examples]
    states, wanted = objective._mixtures("critic", parts)
    agent = mas.agents["critic"]
    text = text_states(agent, parts)
    for row, length in enumerate(text.lengths):
        torch.testing.assert_close(states.hidden_states[row, :length], text.hidden_states[row, -length:])
        logits = agent.logits(text.hidden_states[row, -length:]) / 0.3
        mixture = logits.softmax(-1) @ agent.embed(torch.arange(logits.shape[-1]))
        expected = mixture / mixture.norm(dim=-1, keepdim=True) * mean_norm(agent)
        torch.testing.assert_close(wanted[row, :length], expected, atol=1e-4, rtol=1e-3)
    assert (states.labels >= 0).sum(-1).tolist() == text.lengths


def test_a_links_own_rollouts_are_states_from_the_first_refresh_on_and_for_so_many_rows():
    mas = tiny_chain()
    objective, examples = inner(mas), examples_of(mas, 3, 1)
    parts = [example.parts[1, "critic"] for example in examples]
    counts = []
    for step in (0, 4):
        objective.step = step
        counts.append((objective._mixtures("critic", parts[:2])[0].labels >= 0).sum())
    assert counts[1] > counts[0]
    before = len(objective._phases)
    objective._rolled = 100
    objective._mixtures("critic", parts[2:])
    assert len(objective._phases) == before


def test_latents_replace_their_text_in_the_last_steps_and_the_right_ones_cost_nothing():
    mas = tiny_chain()
    objective, examples = inner(mas, replay_steps=2, rollout_rows=0), examples_of(mas, 2, 1)
    for step, replayed in ((5, False), (6, True)):
        objective.step = step
        objective(examples)
        assert ("critic_replay" in objective.take_records(training=True)) == replayed
    agent, parts = mas.agents["critic"], [example.parts[1, "critic"] for example in examples]
    ids = {len(part.target_ids): part.target_ids for part in parts}

    class Exact(torch.nn.Module):
        def forward(self, states):  # of one row, its last one left out
            return agent.embed(torch.tensor(ids[len(states) + 1][:-1]))

    if len(ids) == len(parts):
        objective.inner_links["critic"] = Exact()
        torch.testing.assert_close(objective._replay("critic", parts), torch.zeros(2), atol=1e-5, rtol=0)


def test_a_state_is_labelled_once_in_a_run_and_a_rollouts_anew_where_it_is_rolled_out_anew(monkeypatch):
    mas = tiny_chain()
    objective, examples = inner(mas), examples_of(mas, 3, 1)
    parts = [example.parts[1, "critic"] for example in examples]
    labelled = []
    label = ExpectedEmbeddingLink.forward
    monkeypatch.setattr(
        ExpectedEmbeddingLink, "forward", lambda link, states: labelled.append(states) or label(link, states)
    )
    first = objective._mixtures("critic", parts)[1]
    again = objective._mixtures("critic", parts[1:])[1]
    torch.testing.assert_close(again, first[1:, : again.shape[1]])
    texts = sum(len(part.target_ids) for part in parts)
    assert sum(map(len, labelled)) == texts
    objective.step = 4
    states, wanted = objective._mixtures("critic", parts[:2])
    assert sum(map(len, labelled)) > texts
    reference = objective.references["critic"]
    valid = states.labels >= 0
    torch.testing.assert_close(wanted[valid], reference(states.hidden_states[None])[0][valid].float())


def test_what_a_replay_costs_and_teaches_is_that_of_one_pass_over_prompt_and_latents():
    mas = tiny_chain()
    objective, examples = inner(mas, rollout_rows=0), examples_of(mas, 3, 1)
    agent, link = mas.agents["critic"], objective.inner_links["critic"]
    parts = [example.parts[1, "critic"] for example in examples]
    found = objective._replay("critic", parts)
    gradients = torch.autograd.grad(found.sum(), list(link.parameters()))
    teacher = text_states(agent, parts)
    states = [row[-n:] for row, n in zip(teacher.hidden_states, teacher.lengths, strict=True)]
    rows = [[*part.text_pieces, link(row[:-1])] for part, row in zip(parts, states, strict=True)]
    student = target_states(agent, PromptBatch(*embed_rows(agent, rows)), [part.target_ids for part in parts])
    whole = divergence(agent, teacher, student)
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-4)
    for one, other in zip(gradients, torch.autograd.grad(whole.sum(), list(link.parameters())), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


def test_the_default_inner_loop_makes_links_of_the_embeddings_length(workshop, tmp_path):
    train(
        "inner", settings(workshop, tmp_path, "inner", max_steps=10, rollout_rows=4, rollout_refreshes=1, held_out=0)
    )
    assert len(losses_of(tmp_path, "critic_replay")) == 1 and losses_of(tmp_path, "critic_cosine_loss")[0] < 0.1
    trained = load_mas_system(tmp_path)
    agent = trained.agents["critic"]
    assert agent.inner_link.kind == "rescaled_adapter"
    length = agent.inner_link(torch.randn(5, agent.hidden_size)).norm(dim=-1)
    torch.testing.assert_close(length, torch.full((5,), mean_norm(agent)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_new_link_starts_from_the_regression_on_the_agents_own_states():
    mas = tiny_chain()
    objective, examples = inner(mas, rollout_rows=0), examples_of(mas, 12, 1)
    before = float(objective(examples)["loss"])
    objective.fit_start(examples, batch_size=5)
    assert float(objective(examples)["loss"]) < before / 2


# Own answers, settings, storage


def test_own_answers_are_what_the_agents_say_over_text(tmp_path, capsys):
    """Of the shipped system, whose agents have something to say."""
    output, questions, asked = tmp_path / "rows.jsonl", tmp_path / "questions.jsonl", ["3+5*2-4", "9-1+2", "7*2-4+1"]
    questions.write_text("\n".join(json.dumps({"question": question, "answer": "7"}) for question in asked))
    command = ["train", "data", "--system", str(ROOT), "--data", str(questions), "--output", str(output),
               "--num_rounds", "2", "--per_device_eval_batch_size", "2"]  # fmt: skip
    assert cli.main(command) == 0
    assert "rows: 3\nleft_out: 0" in capsys.readouterr().out
    written = [json.loads(line) for line in output.read_text().splitlines()]
    solutions = load_mas_system(ROOT).solve(asked, mode="text", num_rounds=2, do_sample=False)
    for row, solution in zip(written, solutions, strict=True):
        assert row["answer"] == "7" and row["targets"]["solver"][-1] == solution.text
        assert row["targets"]["planner"] == [solution.messages[1, "planner"], solution.messages[2, "planner"]]
    before = output.read_bytes()
    assert cli.main(command) == 2 and output.read_bytes() == before


def test_what_a_kind_of_run_starts_from_gives_way_to_what_is_said():
    assert read_arguments(kind="inner").learning_rate == 2e-3 and read_arguments(kind="outer").max_steps == 400
    said = read_arguments(assignments=["learning_rate=1e-4", "lr_scheduler_type=linear"], kind="inner")
    assert said.learning_rate == 1e-4 and not said.lr_scheduler_kwargs


def test_a_store_gives_back_what_was_put(tmp_path):
    store = TensorStore(tmp_path)
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(2).bfloat16(), "c": torch.empty(0, 5), "d": torch.arange(6)}
    for key, tensor in tensors.items():
        store.put(key, tensor)
    store.put("a", tensors["a"] + 1)
    tensors["a"] = tensors["a"] + 1
    for key, tensor in tensors.items():
        got = store.get(key, torch.device("cpu"))
        assert torch.equal(got, tensor) and got.dtype == tensor.dtype
    assert "e" not in store and not list(tmp_path.iterdir())


def test_where_nobody_says_anything_no_file_is_written(workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(own_answers, "own_answers", lambda mas, rows, *_: iter([None] * len(rows)))
    config = settings(workshop, tmp_path / "rows.jsonl", "outer", max_rows=2)
    with pytest.raises(InputError, match="said nothing"):
        own_answers.write_own_answers(config)
    assert not list(tmp_path.glob("rows.jsonl*"))
