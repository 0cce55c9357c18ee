"""What does not fit is said: positions before anything is computed, numbers in the turn that computes them."""

import pytest
import torch
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.errors_recursivemas import InputError, NonFiniteError
from recursivemas.limits_recursivemas import position_limit
from recursivemas.training.data import Encoder, Report, Row
from tiny import tiny_chain
from transformers import AutoConfig

QUESTIONS = ["Why?", "How many apples are 12 + 3 apples?"]
LIMIT = 160
LONG = "How many? " * 40


@pytest.fixture(params=["gpt2", "llama"])
def short(request):
    """A chain whose second agent has few positions: learned, or rotary."""
    mas = tiny_chain({"first": "qwen3", "second": request.param, "third": "qwen2"})
    mas.agents["second"].model.config.max_position_embeddings = LIMIT
    return mas


def test_what_exceeds_an_agents_positions_is_refused_before_anything_is_computed(short, monkeypatch):
    def compute(*args, **kwargs):
        raise AssertionError("computed")

    monkeypatch.setattr(RecursiveMASAgent, "encode", compute)
    for questions, settings, turn in (
        ([*QUESTIONS, LONG], {}, "agent second, round 1, question 2"),
        (QUESTIONS, {"latent_steps": LIMIT + 1}, "agent second, round 1, question 0"),
        (QUESTIONS, {"mode": "text", "message_tokens": LIMIT}, "agent second, round 1, question 0"),
    ):
        with pytest.raises(InputError, match=rf"too few positions(?s:.*){turn}(?s:.*)at most {LIMIT}"):
            short.solve(questions, **settings)
        with pytest.raises(InputError, match=turn):
            short.generate(questions, **settings)


def test_the_slots_of_a_prompt_count(monkeypatch):
    mas = tiny_chain({"first": "qwen3", "second": "gpt2"})
    mas.agents["second"].model.config.max_position_embeddings = LIMIT
    settings = {"num_rounds": 1, "max_new_tokens": 4}
    mas.solve(QUESTIONS[:1], latent_steps=LIMIT // 2, **settings)
    monkeypatch.setattr(RecursiveMASAgent, "encode", None)
    with pytest.raises(InputError, match="agent second, round 1, question 0"):
        mas.solve(QUESTIONS[:1], latent_steps=LIMIT, **settings)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_new_tokens_count_and_an_answer_of_no_said_length_gets_what_is_left(architecture):
    mas = tiny_chain({"first": "qwen3", "second": architecture}, message_tokens=LIMIT)
    agent = mas.agents["second"]
    agent.model.config.max_position_embeddings = LIMIT
    agent.model.generation_config.eos_token_id = mas.generation_config.eos_token_id = []
    with pytest.raises(InputError, match=rf"agent second, round 2, question 0(?s:.*)new tokens {LIMIT}"):
        mas.solve(QUESTIONS, max_new_tokens=LIMIT)
    usage = mas.solve([QUESTIONS[0]], mode="alone")[0].usage
    assert usage["prompt_tokens"] + usage["new_tokens"] == LIMIT
    for most in (usage["new_tokens"], usage["new_tokens"] + 1):
        if most == usage["new_tokens"]:
            mas.solve([QUESTIONS[0]], mode="alone", max_new_tokens=most)
        else:
            with pytest.raises(InputError, match="too few positions"):
                mas.solve([QUESTIONS[0]], mode="alone", max_new_tokens=most)


def test_a_message_that_leaves_no_room_is_refused_before_its_reader_computes(monkeypatch):
    mas = tiny_chain({"first": "qwen3", "second": "gpt2"})
    mas.agents["second"].model.config.max_position_embeddings = LIMIT
    monkeypatch.setattr(type(mas.agents["first"]), "decode", lambda agent, ids: LONG)
    with pytest.raises(InputError, match=r"agent second, round 1, question 0 \('Why\?'\)(?s:.*)at most 160"):
        mas.solve(QUESTIONS[:1], mode="text", message_tokens=4, max_new_tokens=4)


@pytest.mark.parametrize(
    "model_type, settings, limit",
    [
        ("gpt2", {"n_positions": 77}, 77),
        ("llama", {"max_position_embeddings": 77}, 77),
        ("mpt", {"max_seq_len": 77}, 77),
        ("bloom", {}, None),
        ("mamba2", {}, None),
        ("qwen2", {"max_position_embeddings": 32, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4,
            "factor": 4.0, "original_max_position_embeddings": 32}}, 128),
        ("llama", {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4,
            "factor": 8.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0}}, 64),
    ],
)  # fmt: skip
def test_the_limit_is_what_the_configuration_says(model_type, settings, limit):
    assert position_limit(AutoConfig.for_model(model_type, **settings)) == limit


def test_training_counts_latents_too(chain):
    row = Row({"question": "Why?"}, dict.fromkeys(chain.agents, ("Yes.",)), line=7)
    turns = chain.topology.schedule(2)
    for steps, fits in ((4, True), (2000, False)):
        report = Report("rows")
        examples = Encoder(chain).examples([row], [turns], report, latent_steps=steps)
        assert bool(examples) is fits and (report.bad_rows == 0) is fits


def overflow_link(mas):
    with torch.no_grad():
        mas.outer_links["second_to_third"].ln_target.weight.mul_(1e6)


def overflow_inner_link(mas):
    with torch.no_grad():
        mas.agents["second"].inner_link.post_ln.weight.mul_(1e38)
        mas.agents["second"].inner_link.post_ln.bias.fill_(3e38)


def overflow_states(mas):
    with torch.no_grad():
        mas.agents["second"].decoder.norm.weight.mul_(6e4)


def overflow_head(mas):
    with torch.no_grad():
        mas.agents["third"].decoder.norm.weight.mul_(6e4)
        mas.agents["third"].model.get_output_embeddings().weight.mul_(1e4)


@pytest.mark.parametrize(
    "overflow, message",
    [
        (overflow_link, r"latents of the link(?s:.*)second_to_third, round 1(?s:.*)float16"),
        (overflow_inner_link, r"(latents|hidden states)(?s:.*)agent second, round 1(?s:.*)float16"),
        (overflow_states, r"hidden states(?s:.*)agent second, round 1(?s:.*)float16"),
        (overflow_head, r"(logits|hidden states)(?s:.*)agent third, round 1(?s:.*)float16"),
    ],
)
@pytest.mark.parametrize("door", ["solve", "generate"])
def test_numbers_that_overflow_are_an_error_that_names_who_and_when(overflow, message, door):
    mas = tiny_chain({"first": "qwen3", "second": "llama", "third": "qwen2"})
    for agent in mas.agents.values():
        agent.model.half()
    settings = {"num_rounds": 1, "latent_steps": 3, "max_new_tokens": 2, "do_sample": False}
    getattr(mas, door)(QUESTIONS, **settings)
    overflow(mas)
    with pytest.raises(NonFiniteError, match=message):
        getattr(mas, door)(QUESTIONS, **settings)


def test_sampling_from_logits_that_are_not_finite_is_the_same_error(chain):
    mas = tiny_chain({"first": "qwen3", "second": "llama"})
    mas.agents["second"].model.lm_head = torch.nn.Linear(48, len(mas.agents["second"].tokenizer))
    with torch.no_grad():
        mas.agents["second"].model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"logits(?s:.*)agent second, round 2(?s:.*)float32"):
        mas.solve(QUESTIONS, do_sample=True, max_new_tokens=3)
