"""What stands in for latents, so that it shows what they carry: each control against the same done by hand."""

import pytest
import torch
from recursivemas.controls_recursivemas import stand_in
from recursivemas.engine_recursivemas import Run
from recursivemas.errors_recursivemas import InputError
from recursivemas.generation_recursivemas import AnswerSettings

QUESTIONS = ["Why?", "How many apples are 12 + 3 apples?", "A longer question, about nothing at all."]
CONTROLS = ["none", "other_question", "noise", "read_out", "text_first", "text_last"]


def answers(mas, control=None, questions=QUESTIONS, **settings):
    return [s.text for s in mas.solve(questions, control=control, max_new_tokens=8, **settings)]


def run_of(mas, questions=QUESTIONS, **settings):
    """A run with all its turns taken but the last, and what writes its answers after a change by hand."""
    config, _ = mas._answer_config({"max_new_tokens": 8}, prompt_length=0)
    run = Run(mas, questions, mas.config.run_settings(**settings), config)
    for turn in run.schedule[:-1]:
        run.take_turn(*turn)
    return run, lambda: [s.text for s in run.answer(run.last_prompt(), AnswerSettings(config))]


def received(run):
    """The keys of the latents that the answer is written from."""
    round_index, role = run.schedule[-1]
    return [(round_index - link.feedback, link.source, role) for link in run.topology.incoming(role, round_index)]


def test_without_a_control_the_real_latents_stand_in_the_slots(chain):
    run, finish = run_of(chain)
    assert finish() == answers(chain) and set(run.latents) >= set(received(run))


def test_none_is_no_latent_steps(chain):
    none, silent = (chain.solve(QUESTIONS, max_new_tokens=8, **s) for s in ({"control": "none"}, {"latent_steps": 0}))
    for one, other in zip(none, silent, strict=True):
        assert one.text == other.text
        assert {**one.usage, "seconds": 0} == {**other.usage, "seconds": 0}
    assert [s.text for s in none] != answers(chain)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("num_rounds", [1, 2])
def test_another_questions_latents_are_those_that_the_next_question_is_answered_from(chain, count, num_rounds):
    """However many hand-overs they went through: with two questions, a swap at each of two would undo itself."""
    questions = QUESTIONS[:count]
    run, finish = run_of(chain, questions, num_rounds=num_rounds)
    for key in received(run):
        run.latents[key] = [*run.latents[key][1:], run.latents[key][0]]
    swapped = answers(chain, "other_question", questions, num_rounds=num_rounds)
    assert swapped == finish() != answers(chain, None, questions, num_rounds=num_rounds)


def test_batches_for_other_questions_keep_the_order_and_never_have_a_single_row(chain):
    questions = [QUESTIONS[index] for index in (2, 0, 1, 0, 2)]
    expected = answers(chain, "other_question", questions[:2]) + answers(chain, "other_question", questions[2:])
    assert answers(chain, "other_question", questions, batch_size=2) == expected
    for arguments, message in (({"questions": questions[:1]}, "one question"), ({"batch_size": 1}, "batch_size")):
        with pytest.raises(InputError, match=message):
            answers(chain, "other_question", **arguments)


def test_noise_has_the_norms_of_the_latents_and_nothing_else_of_them(chain):
    agent, renderer = chain.agents["solver"], chain.renderers["solver"]
    rows = [torch.randn(count, agent.hidden_size) for count in (3, 0, 500)]
    noise = stand_in("noise", rows, agent, renderer, None, ["a", "b", "c"], answers=True)
    for row, other in zip(rows, noise, strict=True):
        torch.testing.assert_close(other.norm(dim=-1), row.norm(dim=-1))
        assert torch.cosine_similarity(other, row, dim=-1).abs().sum() < 0.3 * len(row) + 1e-6
    turned = stand_in("noise", [-rows[2]], agent, renderer, None, ["c"], answers=True)
    torch.testing.assert_close(turned[0], noise[2])
    assert not torch.allclose(stand_in("noise", [rows[2]], agent, renderer, None, ["d"], answers=True)[0], noise[2])


def test_noise_does_not_depend_on_the_other_rows_of_a_batch(chain):
    together = answers(chain, "noise")
    assert together == [text for question in QUESTIONS for text in answers(chain, "noise", [question])]
    assert together == answers(chain, "noise", QUESTIONS[::-1])[::-1] != answers(chain)


@pytest.mark.parametrize("num_rounds", [1, 2])
def test_a_read_out_is_the_text_of_the_nearest_tokens_at_every_hand_over(chain, num_rounds):
    run, finish = run_of(chain, num_rounds=num_rounds)
    said = {}

    def messages(round_index, role):
        links = chain.topology.incoming(role, round_index)
        texts = {link.source: said[round_index - link.feedback, link.source] for link in links}
        return {source: list(map(chain.renderers[role].message_ids, rows)) for source, rows in texts.items()}

    run._messages = messages
    for round_index, role in run.schedule[:-1]:
        run.take_turn(round_index, role)
        (link,) = chain.topology.receivers(role, round_index, num_rounds)
        reader, sent = chain.agents[link.target], run.latents[round_index, role, link.target]
        said[round_index, role] = [reader.decode(reader.nearest_token_ids(row).tolist()) for row in sent]
    assert answers(chain, "read_out", num_rounds=num_rounds) == finish()


def test_a_cut_text_has_as_many_tokens_as_there_are_latents(chain):
    real = chain.solve(QUESTIONS, num_rounds=1, max_new_tokens=8, latent_steps=3)
    whole = chain.solve(QUESTIONS, num_rounds=1, max_new_tokens=8, mode="text")
    for control in ("text_first", "text_last"):
        cut = chain.solve(QUESTIONS, num_rounds=1, max_new_tokens=8, latent_steps=3, control=control)
        for one, other, full in zip(cut, real, whole, strict=True):
            assert one.usage["slot_positions"] == other.usage["slot_positions"] < full.usage["slot_positions"]
            assert one.usage["latent_positions"] == other.usage["latent_positions"]
            assert one.messages[1, "planner"] == full.messages[1, "planner"], "the first agent reads nothing of others"


def test_a_text_is_cut_at_its_end_or_its_start(chain):
    agent, renderer = chain.agents["solver"], chain.renderers["solver"]
    texts = ["Refine the plan of the others.", "Plan", "Plan the answer."]
    ids = list(map(renderer.message_ids, texts))
    rows = [torch.zeros(count, agent.hidden_size) for count in (3, 50, 0)]
    arguments = (rows, agent, renderer, texts, ["a", "b", "c"], False)
    assert stand_in("text_first", *arguments) == [ids[0][:3], ids[1], []]
    assert stand_in("text_last", *arguments) == [ids[0][-3:], ids[1], []]


@pytest.mark.parametrize("control", CONTROLS)
def test_generate_takes_a_control_as_solve_does(chain, control):
    chosen = QUESTIONS[:2]
    inputs = chain.tokenizer(chosen, return_tensors="pt", padding=True, padding_side="left")
    ids = chain.generate(**inputs, control=control, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
    decoder = chain.agents["solver"]
    assert [decoder.decode(row) for row in ids.tolist()] == answers(chain, control, chosen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control": "silence"}, "silence"),
        ({"control": "noise", "mode": "text"}, "mode 'text'"),
        ({"control": "none", "mode": "alone"}, "mode 'alone'"),
    ],
)
def test_a_control_that_cannot_be_is_an_error(chain, settings, message):
    with pytest.raises(InputError, match=message):
        chain.solve(QUESTIONS, **settings)
