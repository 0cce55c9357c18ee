"""What the two doors `solve` and `generate` make of their settings: who writes, from what, how much, until when."""

import copy
import warnings

import pytest
import torch
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.errors_recursivemas import RecursiveMASError
from recursivemas.generation_recursivemas import answer_config
from recursivemas.links_recursivemas import InnerLink
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.tools_recursivemas import calculator
from tiny import chain_links, chain_prompts, script, tiny_chain
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

QUESTION = "How many apples are 12 + 3 apples?"
ROLES = ("planner", "critic", "solver")


def rebuilt(mas: RecursiveMASModel, **parts: RecursiveMASAgent) -> RecursiveMASModel:
    """The system again after its agents were changed, with some of them replaced."""
    agents, outer_links = dict(mas.agents.items()) | parts, dict(mas.outer_links.items())
    return RecursiveMASModel(copy.deepcopy(mas.config), agents, outer_links)


def says(mas: RecursiveMASModel, role: str, vector: torch.Tensor) -> RecursiveMASAgent:
    """An agent of the system whose latents are all one vector."""
    link = InnerLink("linear_adapter", len(vector))
    with torch.no_grad():
        link.proj1.weight.zero_()
        link.proj1.bias.copy_(vector)
    return RecursiveMASAgent(mas.agents[role].model, link, mas.agents[role].tokenizer, role)


def ids_after(mas: RecursiveMASModel, **settings) -> list[int]:
    """The ids that `generate` adds to the question's."""
    inputs = mas.tokenizer(QUESTION, return_tensors="pt")
    return mas.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :].tolist()


class EndsAtOnce(LogitsProcessor):
    """Wants to end the answer at every step, as far as lengths allow."""

    def __init__(self, eos: int) -> None:
        self.eos = eos

    def __call__(self, input_ids, scores):
        scores[:, self.eos] += 1e4
        return scores


def ends_at_once(mas: RecursiveMASModel) -> LogitsProcessorList:
    return LogitsProcessorList([EndsAtOnce(mas.tokenizer.eos_token_id)])


# Both doors are one method


class Heard(LogitsProcessor):
    """Keeps what the decoding agent would say first: it depends on all that came before, even where words do not."""

    def __call__(self, input_ids, scores):
        if not hasattr(self, "scores"):
            self.scores = scores.clone()
        return scores


def heard(mas: RecursiveMASModel, door: str, **settings) -> torch.Tensor:
    """Scores of the answer's first token, (vocabulary,), by one of the two doors."""
    listener = Heard()
    settings = {"max_new_tokens": 1, "logits_processor": LogitsProcessorList([listener]), **settings}
    if door == "solve":
        mas.solve(QUESTION, **settings)
    else:
        ids_after(mas, **settings)
    return listener.scores[0]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def versatile():
    """A system with prompts for two tasks."""
    mas = tiny_chain()
    for entry in mas.config.prompts.values():
        entry["math"] = {phase: f"Compute. {text}" for phase, text in entry["default"].items()}
    return mas


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        ({"num_rounds": 1}, {}),
        ({"latent_steps": 1}, {}),
        ({"mode": "text"}, {}),
        ({"mode": "alone"}, {}),
        ({"task": "math"}, {}),
        ({"message_tokens": 2}, {"mode": "text"}),
        ({"prompts": chain_prompts([[role] for role in ROLES], chain_links(*ROLES), system="Be another.")}, {}),
    ],
    ids=["rounds", "steps", "text", "alone", "task", "message tokens", "prompts"],
)
def test_a_setting_of_the_method_means_the_same_in_generate_as_in_solve(versatile, settings, others):
    expected = heard(versatile, "solve", **settings, **others)
    assert not same(expected, heard(versatile, "solve", **others)), "the setting changes nothing"
    assert same(heard(versatile, "generate", **settings, **others), expected)


def test_halting_means_the_same_in_generate_as_in_solve(chain):
    """The planner's latents are the embedding that ends its text, so that with halting it sends nothing."""
    planner = chain.agents["planner"]
    mas = rebuilt(chain, planner=says(chain, "planner", planner.embed(torch.tensor(planner.eos_token_ids[0]))))
    by_halting = {halting: heard(mas, "solve", latent_halting=halting) for halting in (True, False)}
    assert not same(by_halting[True], by_halting[False])
    assert same(by_halting[False], heard(mas, "solve"))
    for halting, expected in by_halting.items():
        assert same(heard(mas, "generate", latent_halting=halting), expected)


@pytest.mark.parametrize("settings", [{"mode": "alone"}, {"task": "math"}, {"num_rounds": 1, "latent_steps": 1}])
def test_settings_of_the_method_may_stand_on_a_generation_config(versatile, settings):
    config = GenerationConfig(max_new_tokens=1, do_sample=False, **settings)
    expected, usual = heard(versatile, "solve", **settings), heard(versatile, "solve")
    assert not same(expected, usual)
    assert same(heard(versatile, "generate", generation_config=config), expected)
    named = {"mode": "latent", "task": "default", "num_rounds": 2, "latent_steps": 4}
    assert same(heard(versatile, "generate", generation_config=config, **named), usual), "what is said counts more"


@pytest.mark.parametrize("door", ["solve", "generate"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"num_rounds": 0},
        {"num_rounds": True},
        {"num_rounds": "2"},
        {"latent_steps": -1},
        {"latent_steps": True},
        {"latent_steps": 2.0},
        {"task": "poetry"},
        {"mode": "telepathy"},
        {"prompts": {"planner": {}}},
        {"message_tokens": 0},
        {"message_tokens": -1},
        {"message_tokens": True},
        {"message_tokens": 1.5},
        {"latent_halting": "no"},
    ],
    ids=lambda arguments: "{}={}".format(*next(iter(arguments.items()))),
)
def test_both_doors_refuse_a_setting_that_cannot_be_used_before_any_compute(chain, monkeypatch, door, arguments):
    for agent in chain.agents.values():
        monkeypatch.setattr(agent, "encode", lambda *_, **__: pytest.fail("computed"))
        monkeypatch.setattr(agent.model, "generate", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(RecursiveMASError, match=next(iter(arguments))):
        if door == "solve":
            chain.solve(QUESTION, **arguments)
        else:
            ids_after(chain, **arguments)


# Lengths


def test_the_least_length_counts_the_answer_and_in_generate_the_question_too(chain):
    length = chain.tokenizer(QUESTION, return_tensors="pt")["input_ids"].shape[1]
    eos = chain.tokenizer.eos_token_id
    given = {"min_length": length + 3}, {"min_length": 2}, {"min_new_tokens": 2}, {}
    for settings, least in zip(given, (3, 0, 2, 0), strict=True):
        ids = ids_after(chain, max_new_tokens=9, logits_processor=ends_at_once(chain), **settings)
        assert len(ids) == least + 1 and ids.index(eos) == least, settings
    config = GenerationConfig(max_new_tokens=9, min_length=length + 3, do_sample=False, eos_token_id=eos)
    assert len(ids_after(chain, generation_config=config, logits_processor=ends_at_once(chain))) == 4
    for settings, least in (({"min_length": 3}, 3), ({"min_new_tokens": 2, "min_length": 5}, 2)):
        answer = chain.solve(QUESTION, max_new_tokens=9, logits_processor=ends_at_once(chain), **settings)[0]
        assert answer.usage["new_tokens"] == least + 1, settings


def test_the_greatest_length_is_the_callers_before_that_of_a_file(chain):
    mas = rebuilt(chain)
    mas.generation_config.max_new_tokens = 2
    length = mas.tokenizer(QUESTION, return_tensors="pt")["input_ids"].shape[1]
    assert len(ids_after(mas, min_new_tokens=2)) == 2
    assert len(ids_after(mas, max_new_tokens=4, min_new_tokens=4)) == 4
    assert len(ids_after(mas, max_length=length + 5, min_new_tokens=5)) == 5
    assert mas.solve(QUESTION, max_length=3, min_new_tokens=3)[0].usage["new_tokens"] == 3
    assert mas.generation_config.max_new_tokens == 2 and mas.generation_config.min_new_tokens is None


# Ends


def test_every_end_of_sequence_id_ends_an_answer():
    """Beside a longer row, so that what stands behind the end is padding."""
    mas = tiny_chain()
    decoder = mas.agents["solver"]
    second = mas.tokenizer.convert_tokens_to_ids("!")
    first = mas.tokenizer.eos_token_id
    decoder.model.generation_config.eos_token_id = [first, second]
    mas = rebuilt(mas)
    assert decoder.eos_token_ids == mas.config.eos_token_id == [first, second]
    for end in ("<|im_end|>", "!"):
        written = script(mas, [f"abc{end}", "xxxxxxxx"])
        short, long = mas.solve(["a", "b"], num_rounds=1, max_new_tokens=8, logits_processor=written)
        assert short.text.rstrip("!") == "abc" and short.usage["new_tokens"] == 4
        assert long.text == "xxxxxxxx" and long.usage["new_tokens"] == 8


def test_every_end_of_sequence_id_ends_the_latent_steps():
    mas = tiny_chain()
    planner = mas.agents["planner"]
    ends = [planner.tokenizer.eos_token_id, planner.tokenizer.convert_tokens_to_ids("!")]
    planner.model.generation_config.eos_token_id = ends
    for end, steps in ((ends[0], 0), (ends[1], 0), (ends[0] ^ 1, 4)):
        system = rebuilt(mas, planner=says(mas, "planner", planner.embed(torch.tensor(end)).detach()))
        usage = system.solve(QUESTION, num_rounds=1, latent_steps=4, latent_halting=True, max_new_tokens=1)[0].usage
        others = 4  # of the critic
        assert usage["latent_positions"] == steps + others, end


def test_the_end_ids_of_the_generation_config_come_before_the_tokenizers():
    mas = tiny_chain()
    decoder, own = mas.agents["solver"], mas.tokenizer.convert_tokens_to_ids("!")
    decoder.model.generation_config.eos_token_id = own
    mas = rebuilt(mas)
    assert decoder.eos_token_ids == [own]
    written = script(mas, ["ab<|im_end|>cd!", "xxxxxxxx"])
    solution, _ = mas.solve(["a", "b"], num_rounds=1, max_new_tokens=8, logits_processor=written)
    assert solution.text == "abcd!" and solution.usage["new_tokens"] == 6
    decoder.model.generation_config.eos_token_id = None
    assert decoder.eos_token_ids == [mas.tokenizer.eos_token_id]


@pytest.mark.parametrize("stop", ["six", ["nine", "six"]])
def test_stop_strings_end_an_answer_where_tools_run(chain, stop):
    written = script(chain, ["<python>2*3</python>"], ["it is six, or so"])
    settings = {"num_rounds": 1, "max_new_tokens": 40, "tools": {"python": calculator}, "stop_strings": stop}
    solution = chain.solve(QUESTION, logits_processor=written, **settings)[0]
    assert solution.text == "<python>2*3</python><result>6</result>it is six"


# What comes back


def test_the_task_says_what_an_answer_is(chain):
    written = {
        task: chain.solve(QUESTION, task=task, logits_processor=script(chain, ["12<|im_end|>"]))[0]
        for task in ("math", "default")
    }
    assert [(solution.text, solution.answer) for solution in written.values()] == [("12", None), ("12", "12")]


def test_nothing_comes_back_that_was_not_asked_for(chain):
    solution = chain.solve(QUESTION, max_new_tokens=1)[0]
    assert solution.latents is None and solution.messages is None
    solution = chain.solve(QUESTION, max_new_tokens=1, mode="text", return_latents=True)[0]
    assert set(solution.messages) == {(r, role) for r in (1, 2) for role in ROLES} - {(2, "solver")}
    assert not solution.latents


def test_progress_counts_every_question_once(chain):
    counts = []
    chain.solve([f"{number}?" for number in range(5)], batch_size=2, max_new_tokens=1, on_progress=counts.append)
    assert sorted(counts) == [1, 2, 2]


# Messages in `mode="text"`


@pytest.fixture(scope="module")
def talkers():
    """A system whose planner ends its message with its first token, and what that is."""
    mas = tiny_chain()
    planner, renderer = mas.agents["planner"], mas.renderers["planner"]
    prompts = mas.config.prompts["planner"]
    (prompt,) = renderer.pieces(prompts["system"], prompts["default"]["first"], QUESTION)
    end = planner.model.generate(torch.tensor([prompt]), max_new_tokens=1, do_sample=False)[0, -1].tolist()
    planner.model.generation_config.eos_token_id = [end]
    return rebuilt(mas), planner.decode([end])


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 1}, {"min_new_tokens": 6}, {"min_length": 6}, {"stop_strings": ["e", " ", "\0"]}],
    ids=lambda settings: next(iter(settings)),
)
def test_messages_have_neither_the_stops_nor_the_lengths_of_the_answer(talkers, settings):
    mas, message = talkers
    plain = mas.solve(QUESTION, mode="text", num_rounds=1, message_tokens=7, max_new_tokens=7)[0].messages
    assert plain[1, "planner"] == message
    arguments = {"max_new_tokens": 7, **settings, "tokenizer": mas.tokenizer}
    assert mas.solve(QUESTION, mode="text", num_rounds=1, message_tokens=7, **arguments)[0].messages == plain


def test_several_answers_to_a_question_share_its_messages(chain):
    inputs = chain.tokenizer(QUESTION, return_tensors="pt")
    settings = {"mode": "text", "message_tokens": 3, "max_new_tokens": 3, "num_return_sequences": 2}
    assert chain.generate(**inputs, do_sample=True, **settings).shape[0] == 2


def test_a_sender_stops_at_its_own_end_of_sequence_and_at_no_other(chain):
    """For the decoding agent every token ends a text; for the planner so does every one, for the critic none does."""
    agents, passes = {role: copy.deepcopy(agent) for role, agent in chain.agents.items()}, {role: 0 for role in ROLES}
    for role, agent in agents.items():
        everything = list(range(len(agent.tokenizer)))
        agent.model.generation_config.eos_token_id = [agent.pad_token_id] if role == "critic" else everything

        def note(module, arguments, role=role):
            passes[role] += 1

        agent.model.register_forward_pre_hook(note)
    mas = rebuilt(chain, **agents)
    solution = mas.solve(QUESTION, mode="text", num_rounds=1, message_tokens=6, max_new_tokens=6)[0]
    assert passes == {"planner": 1, "critic": 6, "solver": 1}
    assert solution.usage["new_tokens"] == 1 + 6 + 1


# transformers


@pytest.mark.parametrize("mode", ["latent", "text"])
def test_nothing_that_transformers_gives_up_is_used(chain, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        chain.solve(QUESTION, mode=mode, num_rounds=2, max_new_tokens=2)
        ids_after(chain, mode=mode, num_rounds=2, max_new_tokens=2)


def test_an_answer_ends_where_its_agent_does_when_no_settings_say(chain):
    agent = chain.agents["solver"]
    config, _ = answer_config(agent, GenerationConfig(), {}, prompt_length=0, default_new_tokens=8)
    assert (config.eos_token_id, config.pad_token_id) == (agent.eos_token_ids, agent.pad_token_id)
    config, _ = answer_config(agent, GenerationConfig(eos_token_id=7), {}, prompt_length=0, default_new_tokens=8)
    assert config.eos_token_id == 7
