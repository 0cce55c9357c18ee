"""Laws of the public release: five systems, nineteen repositories, loaded by their names and run exactly."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from recursivemas.answers_recursivemas import OPENINGS
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.errors_recursivemas import ConfigError, InputError
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.prompts_recursivemas import TASKS, validate_prompts
from recursivemas.system_loader import ROOT, load_mas_system, read_style, released_config, released_styles
from reference import reference_prompt, reference_solve
from released import ORGANIZATION, STYLES
from tiny import chain_prompts, tiny_base, tiny_system
from transformers import AutoModelForImageTextToText

QUESTIONS = ["What is 3+5?", "Add one to two, then double it, and say why.", "7*6"]
EXACT = {"dtype": "float32", "outer_dtype": "float32"}


@pytest.fixture(autouse=True)
def a_processor_with_bfloat16(monkeypatch):
    """ "auto" is what is stored there, see tests/test_loading.py."""
    monkeypatch.setattr("recursivemas.bases_recursivemas.computes_half", lambda: True)


def load(style, cache, *args, **kwargs):
    return load_mas_system(style, *args, cache_dir=cache, trust_remote_code=True, **kwargs)


def stored(path):
    return torch.load(path, weights_only=True)


def same_weights(link, path):
    """Whether a link holds exactly what a file says."""
    expected, found = stored(path), link.state_dict()
    return expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_table_of_the_release_names_its_nineteen_repositories():
    table = released_styles()["styles"]
    names = set()
    for style, built in STYLES.items():
        for role, agent in built.agents.items():
            expected = {"source": f"{ORGANIZATION}/{agent.repository}", "model_type": agent.architecture}
            assert table[style]["agents"][role] == expected
            names.add(agent.repository)
        assert table[style]["outer_links"] == f"{ORGANIZATION}/{built.outer_links}"
        names.add(built.outer_links)
        links = {link["legacy_key"]: (link["source"], link["target"]) for link in released_config(style)[0].links}
        assert links == built.links
    assert table.keys() == STYLES.keys() and len(names) == 19


@pytest.mark.parametrize("style", STYLES)
def test_a_released_system_loads_by_its_name(style, released_cache, released_clones):
    mas = load(style, released_cache)
    built = STYLES[style]
    task = "(math)" if built.tasks else ""
    for role, agent in built.agents.items():
        assert mas.agents[role].hidden_size == agent.width
        assert mas.agents[role].dtype == torch.bfloat16
        assert mas.agents[role].inner_adapter is mas.agents[role].inner_link
        assert same_weights(mas.agents[role].inner_adapter, released_clones / agent.repository / f"adapter{task}.pt")
    assert list(mas.outer_adapters) == list(built.links)
    for key, (source, target) in built.links.items():
        file = f"{source.title()}-{target.title()}-Outerlink{task}.pt"
        assert same_weights(mas.outer_adapters[key], released_clones / built.outer_links / file)
    assert mas.config.num_rounds == 3
    assert mas.config.latent_steps == (48 if style == "sequential_light" else 32)
    settings = mas.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 0.6, 0.95)
    assert settings.max_new_tokens == (1000 if style == "sequential_light" else 2000)
    assert settings.eos_token_id == mas.agents[mas.config.decoding_role].model.generation_config.eos_token_id


@pytest.mark.parametrize(
    ("dataset", "task", "link_task", "latent_steps", "temperature"),
    [
        ("mbppplus", "code", "code", 16, 0.2),
        ("evalplus/mbppplus", "code", "code", 16, 0.2),
        ("livecodebench", "code", "code", 32, 0.6),
        ("medqa", "choice", "math", 48, 0.6),
        ("gsm8k", "math", "math", 32, 0.6),
    ],
)
def test_the_dataset_chooses_links_prompts_and_settings(
    dataset, task, link_task, latent_steps, temperature, released_cache, released_clones
):
    mas = load("sequential_scaled", released_cache, dataset)
    assert (mas.config.task, mas.config.latent_steps) == (task, latent_steps)
    tokens = 4096 if dataset == "livecodebench" else 4000
    assert (mas.generation_config.temperature, mas.generation_config.max_new_tokens) == (temperature, tokens)
    agent = STYLES["sequential_scaled"].agents["critic"]
    file = released_clones / agent.repository / f"adapter({link_task}).pt"
    assert same_weights(mas.agents["critic"].inner_link, file)
    other = released_clones / agent.repository / f"adapter({'math' if link_task == 'code' else 'code'}).pt"
    assert not same_weights(mas.agents["critic"].inner_link, other)
    file = released_clones / "Sequential-Scaled-Outerlinks" / f"Solver-Planner-Outerlink({link_task}).pt"
    assert same_weights(mas.outer_adapters["outer_31"], file)


def test_the_task_chooses_in_place_of_the_dataset():
    config, _ = released_config("distillation", "math500", task="code")
    assert (config.task, config.link_task) == ("code", "code")
    config, _ = released_config("mixture", "mbppplus")
    assert (config.task, config.link_task) == ("code", None)
    with pytest.raises(InputError, match=r"(?s)Unknown task.*poetry"):
        released_config("mixture", task="poetry")


@pytest.mark.parametrize("num_rounds", [1, 3])
@pytest.mark.parametrize("style", STYLES)
def test_a_released_system_runs_exactly(style, num_rounds, released_cache, tmp_path):
    table = read_style(released_styles()["styles"][style]["style"])
    prompts = tmp_path / "prompts.json"
    links = [{key: link[key] for key in link if key != "legacy_key"} for link in table["links"]]
    prompts.write_text(json.dumps(chain_prompts(table["stages"], links, system="Antworte kurz.")))
    mas = load(style, released_cache, **EXACT, prompts=prompts if num_rounds == 3 else None)
    solutions = mas.solve(
        QUESTIONS, num_rounds=num_rounds, latent_steps=3, max_new_tokens=10, do_sample=False, return_latents=True
    )
    sent = {
        (round_index, link.source, link.target)
        for round_index in range(1, num_rounds + 1)
        for link in mas.topology.links
        if link in mas.topology.receivers(link.source, round_index, num_rounds)
    }
    decoder = mas.agents[mas.config.decoding_role]
    for question, solution in zip(QUESTIONS, solutions, strict=True):
        ids, latents = reference_solve(mas, question, num_rounds, 3, 10, task=mas.config.task)
        assert solution.text == decoder.decode(ids)
        assert solution.usage["new_tokens"] == len(ids)
        assert solution.latents.keys() == sent - {(num_rounds, mas.config.decoding_role, s[2]) for s in sent}
        for key, found in solution.latents.items():
            torch.testing.assert_close(found, latents[key], rtol=1e-4, atol=1e-4)


def test_latents_decide_what_a_released_system_says(released_cache):
    """Guards the law above against answers that no latent reaches."""
    mas = load("distillation", released_cache, **EXACT)
    kwargs = {"max_new_tokens": 16, "do_sample": False, "latent_steps": 3}
    texts = [mas.solve(QUESTIONS[0], num_rounds=rounds, **kwargs)[0].text for rounds in (1, 2, 3)]
    assert len(set(texts)) > 1


def test_clones_in_a_folder_give_the_same_answers(released_cache, released_clones):
    kwargs = {"max_new_tokens": 8, "do_sample": False, "latent_steps": 3}
    by_name = load("distillation", released_cache, **EXACT).solve(QUESTIONS, **kwargs)
    from_folder = load_mas_system("distillation", clones=released_clones, **EXACT).solve(QUESTIONS, **kwargs)
    assert [solution.text for solution in by_name] == [solution.text for solution in from_folder]


def test_bfloat16_agents_work_with_float32_links(released_cache):
    mas = load("sequential_scaled", released_cache, outer_dtype=torch.float32)
    exact = load("sequential_scaled", released_cache, **EXACT)
    assert {agent.dtype for agent in mas.agents.values()} == {torch.bfloat16}
    assert {p.dtype for link in mas.outer_links.values() for p in link.parameters()} == {torch.float32}
    kwargs = {"num_rounds": 1, "latent_steps": 2, "max_new_tokens": 4, "do_sample": False, "return_latents": True}
    rounded, precise = mas.solve(QUESTIONS, **kwargs), exact.solve(QUESTIONS, **kwargs)
    for a, b in zip(rounded, precise, strict=True):
        latents, expected = a.latents[1, "planner", "critic"], b.latents[1, "planner", "critic"]
        assert latents.dtype == torch.float32
        assert torch.cosine_similarity(latents, expected).min() > 0.95


def test_arguments_can_be_given_by_role(released_cache):
    mas = load("sequential_light", released_cache, dtype={"critic": "float32"}, device={"solver": "cpu"})
    assert mas.agents["critic"].dtype == torch.float32
    assert mas.agents["planner"].dtype == mas.agents["solver"].dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"(?s)Unknown role.*critique.*planner, critic, solver"):
        load("sequential_light", released_cache, device={"critique": "cpu"})
    with pytest.raises(InputError, match=r"(?s)Unknown role.*critique.*outer_links"):
        load("sequential_light", released_cache, revision={"critique": "main"})


def test_a_revision_is_a_commit_of_the_repository(released_cache):
    revisions = {
        role: (released_cache / f"models--{ORGANIZATION}--{agent.repository}" / "refs" / "main").read_text()
        for role, agent in STYLES["deliberation"].agents.items()
    }
    mas = load("deliberation", released_cache, revision=revisions)
    assert mas.config.agents["reflector"]["revision"] == revisions["reflector"]
    assert mas.config.agents["reflector"]["inner_link"]["weights"]["revision"] == revisions["reflector"]
    with pytest.raises(OSError, match=r"(?s)cannot be read.*Deliberation-Reflector.*@no-such-branch"):
        load("deliberation", released_cache, revision="no-such-branch")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"(?s)destillation.*sequential_light, sequential_scaled, mixture, distilla"):
        load_mas_system("destillation")


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3_5"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_text_part_of_a_multimodal_checkpoint_is_the_agent(architecture, seed, tmp_path):
    """Embeddings, hidden states and logits are those of the whole model, and nothing runs or stays of the vision part.

    The prompt is longer than Gemma's sliding window. Seed 0 ties the embeddings, as the published checkpoints do.
    """
    whole, tokenizer = tiny_base(architecture, seed)
    whole.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    mas = tiny_system({"writer": "qwen2"}, [["writer"]], [], "writer")
    mas.save_pretrained(tmp_path / "system")
    config = json.loads((tmp_path / "system" / "config.json").read_text())
    width = whole.config.get_text_config().hidden_size
    config["agents"]["writer"] |= {"source": str(tmp_path / "whole"), "hidden_size": width}
    config["agents"]["writer"]["model_type"] = architecture
    tiny_system({"writer": f"{architecture}_text"}, [["writer"]], [], "writer").save_pretrained(tmp_path / "links")
    os.replace(
        tmp_path / "links" / "links" / "writer.safetensors", tmp_path / "system" / "links" / "writer.safetensors"
    )
    (tmp_path / "system" / "config.json").write_text(json.dumps(config))
    (tmp_path / "system" / "weights.json").unlink()  # the link is of another save, on purpose
    agent = RecursiveMASModel.from_pretrained(tmp_path / "system").agents["writer"]
    for name, module in agent.model.named_modules():
        if "vision" in name or "visual" in name:
            assert architecture == "gemma3"
            module.register_forward_pre_hook(lambda *_: pytest.fail("the vision part ran"))
    ids = torch.randint(0, len(tokenizer), (2, 21), generator=torch.Generator().manual_seed(0))
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        expected = whole(input_ids=ids, output_hidden_states=True)
        mask = torch.ones_like(ids)
        hidden_states = agent.encode(agent.embed(ids), mask, agent.new_cache())
        torch.testing.assert_close(hidden_states, expected.hidden_states[-1], rtol=1e-4, atol=1e-4)
        logits = agent.model.get_output_embeddings()(hidden_states)
        torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-3)
        thoughts = agent.think(agent.embed(ids), mask, 1)
        torch.testing.assert_close(thoughts[:, 0], expected.hidden_states[-1][:, -1], rtol=1e-4, atol=1e-4)


CARD_USAGE = """
import sys
sys.modules["peft"] = None  # as if it were not installed
import transformers.utils.import_utils as imports
from system_loader import load_mas_system
mas = load_mas_system(style="distillation", device="cpu", trust_remote_code=True)
print(type(mas.agents["expert"].model).__name__, type(mas.agents["learner"].model).__name__)
mas = load_mas_system("sequential_light", "mbppplus")
print(mas.config.link_task, imports.is_peft_available())
"""


@pytest.mark.slow
def test_the_usage_on_the_release_cards_works_in_a_clone_without_peft(released_cache):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(released_cache)}
    run = subprocess.run(
        [sys.executable, "-c", CARD_USAGE], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["Qwen3_5ForCausalLM", "Qwen3_5ForCausalLM", "code", "False"]


# Styles are data


@pytest.mark.parametrize("style", ["sequential", "mixture", "distillation", "deliberation"])
def test_a_style_has_prompts_for_every_role_and_task(style):
    table = read_style(style)
    agents = {role: {"source": f"agents/{role}"} for stage in table["stages"] for role in stage}
    topology = RecursiveMASConfig(agents=agents, **table).validate_system()
    for role, entry in table["prompts"].items():
        assert set(entry) == {"system", *TASKS}
        for templates in (entry[task] for task in TASKS):
            for template in templates.values():
                question, *slots = (template.find("<|question|>"), template.find("<|latents:"))
                assert 0 <= question < 40
                assert slots[0] == -1 or slots[0] > question
            # What both phases share, and is read only once, holds the question and the instruction.
            first, feedback = templates["first"], templates.get("feedback", templates["first"])
            shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, feedback, strict=False))
            assert len(list(shared)) > 100
        if role == topology.decoding_role:
            assert r"\boxed{}" in entry["math"]["first"] and r"\boxed{}" in entry["choice"]["first"]
            assert "letter" in entry["choice"]["first"] and "```python" in entry["code"]["first"]
            assert all("alone" in entry[task] for task in TASKS)


def test_a_style_of_ones_own_is_the_same_json(tmp_path):
    table = {
        "stages": [["poet"], ["judge"]],
        "links": [{"source": "poet", "target": "judge"}, {"source": "judge", "target": "poet", "feedback": True}],
        "decoding_role": "judge",
    }
    table["prompts"] = chain_prompts(table["stages"], table["links"])
    path = tmp_path / "contest.json"
    path.write_text(json.dumps(table))
    own = read_style(path)
    validate_prompts(own["prompts"], RecursiveMASConfig(**own).topology)
    mas = tiny_system({"poet": "qwen3", "judge": "llama"}, own["stages"], own["links"], own["decoding_role"])
    assert mas.solve("Who wins?", max_new_tokens=2, num_rounds=3)[0].text is not None
    path.write_text(json.dumps({"stages": []}))
    with pytest.raises(ConfigError, match=r"(?s)lacks `links`, `decoding_role`, `prompts`.*contest.json"):
        read_style(path)
    with pytest.raises(InputError, match=r"(?s)Unknown collaboration style.*deliberation, distillation, mixture"):
        read_style("duel")


# What the release does beside the recursion


@pytest.mark.parametrize(
    ("dataset", "sign", "new_tokens"), [("math500", r"\boxed{", 16), ("mbppplus", "```python", 256)]
)
def test_an_answer_without_its_box_is_continued_once_when_asked(dataset, sign, new_tokens, released_cache):
    mas = load("sequential_light", released_cache, dataset, **EXACT)
    kwargs = {"num_rounds": 1, "latent_steps": 2, "max_new_tokens": 6, "do_sample": False}
    plain = mas.solve(QUESTIONS, **kwargs)
    continued = mas.solve(QUESTIONS, **kwargs, complete_answer=True)
    for before, after in zip(plain, continued, strict=True):
        assert sign not in before.text
        assert after.text.startswith(before.text) and after.text.count(sign) == 1
        more = after.usage["new_tokens"] - before.usage["new_tokens"]
        assert 1 <= more <= new_tokens


def test_the_continuation_is_what_the_agent_writes_after_prompt_answer_and_opening(released_cache):
    mas = load("sequential_light", released_cache, **EXACT)
    decoder, renderer = mas.agents["solver"], mas.renderers["solver"]
    _, line, new_tokens = OPENINGS["math"]
    kwargs = {"num_rounds": 1, "latent_steps": 2, "max_new_tokens": 6, "do_sample": False}
    for question, solution in zip(QUESTIONS, mas.solve(QUESTIONS, **kwargs, complete_answer=True), strict=True):
        ids, latents = reference_solve(mas, question, 1, 2, 6, task="math")
        ids = [*(token for token in ids if token not in decoder.eos_token_ids), *renderer.message_ids(line)]
        head = reference_prompt(mas, "solver", "first", question, "math", {"critic": latents[1, "critic", "solver"]})
        for _ in range(new_tokens):
            with torch.no_grad():
                embeds = torch.cat([head, decoder.embed(torch.tensor([ids]))], dim=1)
                ids.append(int(decoder.model(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in decoder.eos_token_ids:
                break
        assert solution.text == decoder.decode(ids)


def test_a_complete_answer_is_left_as_it_is(released_cache, monkeypatch):
    mas = load("sequential_light", released_cache, **EXACT)
    kwargs = {"num_rounds": 1, "latent_steps": 2, "max_new_tokens": 6, "do_sample": False}
    monkeypatch.setitem(OPENINGS, "math", ("", "never", 16))  # every text holds the empty one
    expected = [solution.text for solution in mas.solve(QUESTIONS, **kwargs)]
    assert [solution.text for solution in mas.solve(QUESTIONS, **kwargs, complete_answer=True)] == expected


def test_offloading_keeps_one_agent_on_its_device_and_changes_nothing(released_cache, monkeypatch):
    kwargs = {"num_rounds": 2, "latent_steps": 2, "max_new_tokens": 6, "do_sample": False}
    expected = load("sequential_light", released_cache, **EXACT).solve(QUESTIONS, **kwargs)
    # Two names of the same memory stand for the accelerator and for the CPU.
    device = {"planner": "cpu:0", "critic": "cpu:0", "solver": "cpu:0"}
    mas = load("sequential_light", released_cache, **EXACT, device=device, offload="cpu")
    moves, resident = [], set()
    agent_class = type(mas.agents["planner"])

    def move(agent, place):
        (resident.discard if place == "cpu" else resident.add)(agent.role)
        moves.append((agent.role, place))
        assert len(resident) <= 1
        return agent

    def encode(agent, *args):
        assert resident == {agent.role}
        return original(agent, *args)

    original = agent_class.encode
    monkeypatch.setattr(agent_class, "to", move)
    monkeypatch.setattr(agent_class, "encode", encode)
    found = mas.solve(QUESTIONS, **kwargs)
    assert [solution.text for solution in found] == [solution.text for solution in expected]
    stages = ["planner", "critic", "solver"] * 2
    assert [role for role, place in moves if place == "cpu:0"] == stages
    assert resident == {"solver"}
    with pytest.raises(InputError, match=r"(?s)`offload` cannot be used.*together with a device"):
        load("sequential_light", released_cache, offload="cpu")
    with pytest.raises(InputError, match="`offload` cannot be used"):
        load("sequential_light", released_cache, device="cpu", offload="disk")
