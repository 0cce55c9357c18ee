"""The composite as a text-generation model: loading, saving, `generate`, `solve`, and what they refuse."""

import json
import shutil
from threading import Thread

import pytest
import torch
from recursivemas import answering_recursivemas as answering
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.errors_recursivemas import ArgumentError, CheckpointError, ConfigError, InputError, RecursiveMASError
from recursivemas.links_recursivemas import InnerLink, OuterLink
from recursivemas.mixtures_recursivemas import ExpectedEmbeddingLink
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.prompts_recursivemas import questions_of_ids
from recursivemas.system_loader import load_mas_system
from safetensors.torch import load_file, save_file
from tiny import tiny_chain
from transformers import AutoTokenizer, GenerationConfig, TextIteratorStreamer, pipeline

QUESTIONS = ["Why?", "How many apples are 12 + 3 apples?"]


def ids_of(mas, questions):
    return mas.tokenizer(questions, return_tensors="pt", padding=True)


# Saving and loading


def test_a_saved_system_gives_the_same_tokens(chain, chain_folder):
    loaded = load_mas_system(chain_folder)
    for mode in ("latent", "text"):
        texts = [[s.text for s in mas.solve(QUESTIONS, mode=mode, max_new_tokens=8)] for mas in (chain, loaded)]
        assert texts[0] == texts[1]


def test_a_saved_system_has_the_same_weights_to_the_bit(chain, chain_folder, tmp_path):
    loaded = load_mas_system(chain_folder)
    loaded.save_pretrained(tmp_path)
    again = load_mas_system(tmp_path)
    for key, value in chain.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value) and torch.equal(again.state_dict()[key], value), key


def test_the_layout_on_disk_is_agents_and_links(chain_folder):
    assert {path.name for path in (chain_folder / "links").iterdir()} == {
        f"{name}.safetensors"
        for name in ("planner", "critic", "solver", "planner_to_critic", "critic_to_solver", "solver_to_planner")
    }
    for role in ("planner", "critic", "solver"):
        names = {path.name for path in (chain_folder / "agents" / role).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not list(chain_folder.glob("*.bin")) + list(chain_folder.rglob("*.pt"))


def test_agents_from_elsewhere_are_referenced_unless_asked(chain_folder, tmp_path):
    config = json.loads((chain_folder / "config.json").read_text())
    config["agents"]["critic"]["source"] = str(chain_folder / "agents" / "critic")
    mas = load_mas_system(chain_folder, config=RecursiveMASConfig.from_dict(config))
    mas.save_pretrained(tmp_path / "referenced")
    assert not (tmp_path / "referenced" / "agents" / "critic").exists()
    mas.save_pretrained(tmp_path / "whole", copy_agents=True)
    assert (tmp_path / "whole" / "agents" / "critic" / "model.safetensors").exists()
    texts = {
        load_mas_system(tmp_path / name).solve(QUESTIONS[:1], max_new_tokens=6)[0].text
        for name in ("referenced", "whole")
    }
    assert texts == {mas.solve(QUESTIONS[:1], max_new_tokens=6)[0].text}


def test_saving_over_the_folder_it_came_from_keeps_it_loadable(chain, chain_folder, tmp_path):
    folder = shutil.copytree(chain_folder, tmp_path / "copy")
    load_mas_system(folder).save_pretrained(folder)
    assert load_mas_system(folder).solve(QUESTIONS, max_new_tokens=6)[1].text == (
        chain.solve(QUESTIONS, max_new_tokens=6)[1].text
    )


def test_every_tokenizer_pads_on_the_left_whatever_is_stored(chain_folder, tmp_path):
    folder = shutil.copytree(chain_folder, tmp_path / "copy")
    for path in folder.rglob("tokenizer_config.json"):
        edit_json(path, lambda c: c.update(padding_side="right"))
    mas = load_mas_system(folder)
    assert {agent.tokenizer.padding_side for agent in mas.agents.values()} == {mas.tokenizer.padding_side} == {"left"}


def test_agents_are_frozen_and_in_evaluation_mode(chain_folder):
    mas = load_mas_system(chain_folder)
    assert not any(parameter.requires_grad for parameter in mas.parameters())
    assert not mas.training and not any(module.training for module in mas.modules())


def test_arguments_that_name_configuration_fields_override_them(chain_folder):
    mas = load_mas_system(chain_folder, num_rounds=5, latent_steps=1)
    assert (mas.config.num_rounds, mas.config.latent_steps) == (5, 1)
    with pytest.raises(ArgumentError, match="foo"):
        load_mas_system(chain_folder, foo=1)


# Broken repositories


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def config_edit(change):
    return lambda folder: edit_json(folder / "config.json", change)


def link_edit(name, change):
    return lambda folder: edit_tensors(folder / "links" / f"{name}.safetensors", change)


def agent_edit(change):
    return lambda folder: edit_tensors(folder / "agents" / "critic" / "model.safetensors", change)


def swap_agents(folder):
    for old, new in (("critic", "x"), ("solver", "critic"), ("x", "solver")):
        (folder / "agents" / old).rename(folder / "agents" / new)


NORM = "model.norm.weight"
BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), CheckpointError, "config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), CheckpointError, "not valid JSON"),
    "newer version": (config_edit(lambda c: c.update(format_version=99)), ConfigError, "newer version"),
    "no agents": (config_edit(lambda c: c.update(agents={})), ConfigError, "names no agent"),
    "agent without source": (config_edit(lambda c: c["agents"]["critic"].pop("source")), ConfigError, "critic"),
    "role without agent": (config_edit(lambda c: c["agents"].pop("critic")), ConfigError, "agents"),
    "unknown key": (config_edit(lambda c: c["agents"]["critic"].update(path="x")), ConfigError, "path"),
    "unknown kind": (config_edit(lambda c: c["links"][0].update(kind="cubic")), ConfigError, "cubic"),
    "unknown role": (config_edit(lambda c: c["links"][0].update(target="judge")), ConfigError, "judge"),
    "rounds": (config_edit(lambda c: c.update(num_rounds=0)), ConfigError, "num_rounds"),
    "rounds that are no number": (config_edit(lambda c: c.update(num_rounds=True)), ConfigError, "num_rounds"),
    "steps": (config_edit(lambda c: c.update(latent_steps=-1)), ConfigError, "latent_steps"),
    "steps that are no number": (config_edit(lambda c: c.update(latent_steps=False)), ConfigError, "latent_steps"),
    "halting": (config_edit(lambda c: c.update(latent_halting="no")), ConfigError, "latent_halting"),
    "message": (config_edit(lambda c: c.update(message_tokens=0)), ConfigError, "message_tokens"),
    "message that is no number": (config_edit(lambda c: c.update(message_tokens=True)), ConfigError, "message_tokens"),
    "task": (config_edit(lambda c: c.update(task="poetry")), ConfigError, "poetry"),
    "slot": (
        config_edit(lambda c: c["prompts"]["critic"]["default"].update(first="<|question|>")),
        ConfigError,
        "slots of a template",
    ),
    "width": (config_edit(lambda c: c["agents"]["critic"].update(hidden_size=7)), ConfigError, "hidden_size"),
    "architecture": (config_edit(lambda c: c["agents"]["critic"].update(model_type="gpt2")), ConfigError, "gpt2"),
    "swapped agents": (
        swap_agents,
        RecursiveMASError,
        "critic",
    ),
    "no agent": (lambda f: shutil.rmtree(f / "agents" / "critic"), CheckpointError, "critic"),
    "no agent weights": (lambda f: (f / "agents/critic/model.safetensors").unlink(), CheckpointError, "critic"),
    "missing agent key": (agent_edit(lambda t: t.pop(NORM)), CheckpointError, NORM),
    "extra agent key": (agent_edit(lambda t: t.update(extra=torch.ones(1))), CheckpointError, "extra"),
    "agent shape": (agent_edit(lambda t: t.update({NORM: torch.ones(3)})), CheckpointError, NORM),
    "no chat template": (
        lambda f: (f / "agents/critic/chat_template.jinja").unlink(), CheckpointError, "no chat template"
    ),
    "no link": (lambda f: (f / "links/critic.safetensors").unlink(), CheckpointError, "links/critic.safetensors"),
    "missing link key": (link_edit("critic", lambda t: t.pop("proj1.bias")), CheckpointError, r"proj1\.bias"),
    "extra link key": (link_edit("critic", lambda t: t.update(x=torch.ones(1))), CheckpointError, "unexpected: x"),
    "link shape": (
        link_edit("planner_to_critic", lambda t: t.update({"ln_source.weight": torch.ones(5)})),
        CheckpointError,
        r"ln_source\.weight",
    ),
    "link with NaN": (
        link_edit("critic", lambda t: t["proj1.bias"].fill_(float("nan"))), CheckpointError, "NaN or infinity"
    ),
    "swapped links": (
        lambda f: shutil.copy(f / "links/planner_to_critic.safetensors", f / "links/critic_to_solver.safetensors"),
        CheckpointError,
        "critic_to_solver",
    ),
    "truncated link": (
        lambda f: (f / "links/critic.safetensors").write_bytes((f / "links/critic.safetensors").read_bytes()[:500]),
        CheckpointError,
        "links/critic.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_repository_is_an_error_that_names_the_break(name, chain_folder, tmp_path):
    breaks, error, message = BROKEN[name]
    folder = shutil.copytree(chain_folder, tmp_path / "broken")
    breaks(folder)
    with pytest.raises(error, match=message):
        load_mas_system(folder)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        load_mas_system(tmp_path / "nowhere")


def test_a_link_of_the_wrong_width_does_not_enter_a_composite(chain):
    links = dict(chain.outer_links.items()) | {"planner_to_critic": OuterLink("outer_adapter", 5, 6)}
    with pytest.raises(ConfigError, match="planner_to_critic"):
        RecursiveMASModel(chain.config, dict(chain.agents.items()), links)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"questions": []}, "no question"),
        ({"questions": ["  "]}, "empty"),
        ({"questions": ["Why?", ""]}, "number 2 of 2"),
        ({"questions": [3]}, "no text"),
        ({"num_rounds": 0}, "num_rounds"),
        ({"num_rounds": 1.5}, "num_rounds"),
        ({"latent_steps": -1}, "latent_steps"),
        ({"task": "poetry"}, "poetry"),
        ({"mode": "telepathy"}, "telepathy"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"num_return_sequences": 2}, "one result per question"),
        ({"prompts": {"planner": {}}}, "one entry for each role"),
        ({"prompts": "no-such-file.json"}, "no-such-file.json"),
    ],
)
def test_bad_input_is_refused_before_any_compute(chain, monkeypatch, arguments, message):
    monkeypatch.setattr(answering, "paced", lambda *_: pytest.fail("computed"))
    with pytest.raises(RecursiveMASError, match=message):
        chain.solve(**{"questions": QUESTIONS, **arguments})


def test_generate_refuses_an_empty_prompt(chain):
    with pytest.raises(InputError, match="no question"):
        chain.generate(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(InputError, match="no question"):
        chain.generate()


def test_a_prompt_set_can_be_replaced_for_a_call(chain, tmp_path):
    prompts = json.loads(json.dumps(chain.config.prompts).replace("Question:", "Another wording:"))
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    texts = [
        chain.solve(QUESTIONS[:1], prompts=p, max_new_tokens=8)[0].text for p in (prompts, tmp_path / "prompts.json")
    ]
    assert texts[0] == texts[1] != chain.solve(QUESTIONS[:1], max_new_tokens=8)[0].text


# generate


def test_generate_returns_the_prompt_and_the_answer_of_solve(chain):
    inputs = ids_of(chain, QUESTIONS)
    output = chain.generate(**inputs, max_new_tokens=8)
    assert torch.equal(output[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    decoder = chain.agents["solver"]
    answers = [decoder.decode(row) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]
    assert answers == [s.text for s in chain.solve(QUESTIONS, max_new_tokens=8)]


def test_the_methods_own_settings_reach_generate(chain):
    inputs = ids_of(chain, QUESTIONS[1:])
    settings = {"num_rounds": 1, "latent_steps": 2}
    expected = chain.solve(QUESTIONS[1:], max_new_tokens=8, **settings)[0].text
    config = GenerationConfig(max_new_tokens=8, do_sample=False, **settings)
    for output in (
        chain.generate(**inputs, max_new_tokens=8, **settings),
        chain.generate(**inputs, generation_config=config),
    ):
        assert chain.agents["solver"].decode(output[0, inputs["input_ids"].shape[1] :].tolist()) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 3},
        {"return_dict_in_generate": True, "output_scores": True},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 5},
        {"cache_implementation": "static"},
    ],
)
def test_transformers_generation_settings_work(chain, settings):
    inputs = ids_of(chain, QUESTIONS)
    output = chain.generate(**inputs, max_new_tokens=6, **settings)
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    rows = len(QUESTIONS) * settings.get("num_return_sequences", 1)
    length = inputs["input_ids"].shape[1]
    assert sequences.shape[0] == rows and length < sequences.shape[1] <= length + 6


def test_max_length_counts_the_callers_prompt(chain):
    inputs = ids_of(chain, QUESTIONS[:1])
    length = inputs["input_ids"].shape[1]
    chain.generation_config.max_new_tokens = 2
    try:
        assert chain.generate(**inputs, max_length=length + 5, min_new_tokens=5).shape[1] == length + 5
    finally:
        chain.generation_config.max_new_tokens = None


def test_stop_strings_see_the_answer(chain):
    inputs = ids_of(chain, QUESTIONS[:1])
    text = chain.solve(QUESTIONS[:1], max_new_tokens=8)[0].text
    output = chain.generate(**inputs, max_new_tokens=8, stop_strings=[text[:2]], tokenizer=chain.tokenizer)
    answer = chain.agents["solver"].decode(output[0, inputs["input_ids"].shape[1] :].tolist())
    assert text[:2] in answer and len(answer) < len(text)


@pytest.mark.parametrize("question", ["Say <|im_end|> twice", "<|latents:planner|> and <|question|>", "a\n b  {c} "])
def test_tokens_carry_any_question_to_the_agents_unchanged(question):
    for architecture in ("qwen2", "llama", "mistral", "gemma3_text"):
        mas = tiny_chain({"first": "qwen3", "second": architecture})
        inputs = mas.tokenizer([question, "x"], return_tensors="pt", padding=True)
        assert questions_of_ids(mas.tokenizer, inputs["input_ids"], inputs["attention_mask"]) == [question, "x"]


def test_the_chat_template_passes_the_users_text_through(chain):
    def text(*messages):
        return chain.tokenizer.apply_chat_template([*messages], tokenize=False)

    parts = [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]
    assert text({"role": "user", "content": "Why?"}) == text({"role": "user", "content": parts}) == "Why?"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert text(*turns) == "Be brief.\nWhy?"
    assert text(*turns, {"role": "assistant", "content": "Because"}) == "Be brief.\nWhy?\x1eBecause"


def test_a_streamer_yields_the_answer_and_not_the_question(chain):
    streamer = TextIteratorStreamer(chain.tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = ids_of(chain, QUESTIONS[:1])
    thread = Thread(target=chain.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 8})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert streamed == chain.solve(QUESTIONS[:1], max_new_tokens=8)[0].text


def test_a_pipeline_answers_texts_chats_and_batches(chain_folder, chain):
    pipe = pipeline("text-generation", model=str(chain_folder), trust_remote_code=True)
    expected = [s.text for s in chain.solve(QUESTIONS, max_new_tokens=8)]
    plain = pipe(QUESTIONS, max_new_tokens=8, do_sample=False, batch_size=2, return_full_text=False)
    assert [out[0]["generated_text"] for out in plain] == expected
    chat = pipe([{"role": "user", "content": QUESTIONS[1]}], max_new_tokens=8, do_sample=False)
    assert chat[0]["generated_text"][-1] == {"role": "assistant", "content": expected[1]}


def test_the_composite_tokenizer_has_the_decoding_agents_vocabulary(chain_folder):
    composite = AutoTokenizer.from_pretrained(chain_folder, trust_remote_code=True)
    agent = AutoTokenizer.from_pretrained(chain_folder / "agents" / "solver")
    for text in ("Why?", "12 + 3\n\n x", "naïve ½"):
        assert composite(text)["input_ids"] == agent(text)["input_ids"]


# Parts


def test_transfer_is_the_outer_link_of_the_inner_link(chain):
    torch.manual_seed(0)
    hidden_states = torch.randn(2, 5, chain.agents["planner"].hidden_size)
    expected = chain.outer_links["planner_to_critic"](chain.agents["planner"].inner_link(hidden_states))
    assert torch.equal(chain.transfer("planner", "critic", hidden_states), expected)
    assert expected.shape == (2, 5, chain.agents["critic"].hidden_size)
    with pytest.raises(InputError, match="critic_to_planner"):
        chain.transfer("critic", "planner", hidden_states)


def test_set_link_puts_a_link_in_frozen_and_the_configuration_says_so(tmp_path):
    mas = tiny_chain()
    before = mas.solve(QUESTIONS[:1], max_new_tokens=8)[0].text
    planner = mas.agents["planner"]
    torch.manual_seed(3)
    links = {
        "planner": InnerLink("adapter", planner.hidden_size),
        "critic_to_solver": OuterLink(
            "outer_adapter", mas.agents["critic"].hidden_size, mas.agents["solver"].hidden_size
        ),
    }
    mas.config.links[1]["weights"] = {"tasks": {"math": "links/other.safetensors"}}  # where the one before came from
    for name, link in links.items():
        mas.set_link(name, link)
        assert not any(parameter.requires_grad for parameter in link.parameters())
    assert planner.inner_link is links["planner"] and mas.outer_links["critic_to_solver"] is links["critic_to_solver"]
    assert mas.config.agents["planner"]["inner_link"] == {"kind": "adapter"}
    assert mas.config.links[1] == {"source": "critic", "target": "solver", "kind": "outer_adapter"}
    answer = mas.solve(QUESTIONS[:1], max_new_tokens=8)[0].text
    mas.save_pretrained(tmp_path)
    assert answer == load_mas_system(tmp_path).solve(QUESTIONS[:1], max_new_tokens=8)[0].text != before


def test_an_expected_embedding_that_is_put_in_has_its_agents_head():
    mas = tiny_chain()
    mas.set_link("planner", ExpectedEmbeddingLink(mas.agents["planner"].hidden_size))
    hidden_states = torch.randn(2, mas.agents["planner"].hidden_size)
    found = mas.agents["planner"].inner_link(hidden_states)
    probabilities = mas.agents["planner"].logits(hidden_states).softmax(-1)
    torch.testing.assert_close(found, probabilities @ mas.agents["planner"].get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("name", "link", "error", "message"),
    [
        ("nobody", InnerLink("adapter", 32), InputError, "nobody"),
        ("planner", OuterLink("outer_adapter", 32, 48), InputError, "planner: OuterLink"),
        ("planner_to_critic", InnerLink("adapter", 32), InputError, "planner_to_critic: InnerLink"),
        ("planner", InnerLink("adapter", 7), ConfigError, "width 7"),
        ("planner_to_critic", OuterLink("outer_adapter", 32, 7), ConfigError, "32 -> 7"),
    ],
)
def test_a_link_that_does_not_fit_is_not_put_in(chain, name, link, error, message):
    before = {key: value.clone() for key, value in chain.state_dict().items()}
    with pytest.raises(error, match=message):
        chain.set_link(name, link)
    assert all(torch.equal(before[key], value) for key, value in chain.state_dict().items())


def test_think_refuses_what_does_not_fit(chain):
    agent = chain.agents["planner"]
    embeds = torch.zeros(1, 3, agent.hidden_size)
    with pytest.raises(InputError, match="inputs_embeds"):
        agent.think(embeds[..., :4], torch.ones(1, 3), 2)
    with pytest.raises(InputError, match="padding stands on the right"):
        agent.think(embeds, torch.tensor([[1, 1, 0]]), 2)
