"""The small systems that ship do what their cards claim, on fresh questions; their cards show what was measured."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation.measure import measure, without
from recursivemas.evaluation.results import markdown
from recursivemas.small_systems.build import differences, start_system, train_inner_links
from recursivemas.small_systems.pretrain import pretrain_agent
from recursivemas.small_systems.recipes import CPU_CAPABILITY, RECIPES, shipped_folder
from recursivemas.system_loader import load_mas_system
from recursivemas.tasks import facts, registers, variables
from recursivemas.tools_recursivemas import calculator

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {name: shipped_folder(name) for name in RECIPES}
TOOLS = {"deliberation": {"python": calculator}}
FURTHER = [name for name in FOLDERS if name != "sequential"]
SEED = 31  # of questions that no measurement used


FEWER = [pytest.param(name, marks=[pytest.mark.slow] * (name == "mixture")) for name in FURTHER]


@pytest.fixture(scope="module", params=FEWER)
def system(request):
    torch.set_num_threads(1)
    return request.param, load_mas_system(FOLDERS[request.param])


def accuracy(name, mas, mode="latent", num_rounds=4, num_questions=60, **arguments):
    rows = RECIPES[name].task_module().generate(num_questions, seed=SEED)
    arguments = {"tools": TOOLS.get(name), "batch_size": num_questions, **arguments}
    return measure(mas, rows, mode, num_rounds, **arguments)["accuracy"]


def test_recursion_climbs_over_latents_as_over_text(system):
    name, mas = system
    latent = [accuracy(name, mas, num_rounds=num_rounds) for num_rounds in (1, 2, 4)]
    assert latent[0] < 0.4 and latent[0] + 0.1 < latent[1] and latent[1] + 0.1 < latent[2]
    assert latent[2] > 0.85
    assert abs(latent[2] - accuracy(name, mas, "text")) < 0.1


def test_the_decoding_agent_alone_falls_far_behind(system):
    name, mas = system
    assert accuracy(name, mas, "alone") + 0.2 < accuracy(name, mas)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_shipped_system_is_small_and_whole(name):
    folder = FOLDERS[name]
    weights = [*folder.glob("agents/*/model.safetensors"), *folder.glob("links/*.safetensors")]
    assert sum(file.stat().st_size for file in weights) <= 10e6
    mas = load_mas_system(folder)
    assert {parameter.dtype for parameter in mas.parameters()} == {torch.float32}
    assert mas.config.prompts == RECIPES[name].task_module().PROMPTS
    assert {entry["source"] for entry in mas.config.agents.values()} == {f"agents/{role}" for role in mas.agents}


@pytest.mark.parametrize(
    "role", [pytest.param(r, marks=[pytest.mark.slow] * bool(n)) for n, r in enumerate(registers.SPECIALISTS)]
)
def test_the_summarizer_needs_every_specialist(role):
    mas = load_mas_system(FOLDERS["mixture"])
    assert accuracy("mixture", without(mas, [role])) < 0.3
    assert accuracy("mixture", mas) > 0.9  # the whole system is as it was


def test_the_toolcaller_needs_its_tool():
    mas = load_mas_system(FOLDERS["deliberation"])
    assert accuracy("deliberation", mas, tools=None) == 0.0


def test_the_command_line_answers_calls(capsys):
    question = "a=c b=4 c=d d=7 e=b f=2 376*a"
    assert cli.main(["solve", "--system", str(FOLDERS["deliberation"]), "--tools", "calculator", question]) == 0
    assert capsys.readouterr().out == "<python>376*7</python><result>2632</result>\\boxed{2632}\n"


def test_only_known_roles_can_be_left_out():
    mas = load_mas_system(FOLDERS["mixture"])
    assert without(mas, []) is mas
    with pytest.raises(InputError, match=r"(?s)judge.*adder"):
        without(mas, ["judge"])


@pytest.mark.parametrize("name", FURTHER)
def test_a_card_shows_the_stored_figures(name):
    card = (FOLDERS[name] / "README.md").read_text()
    results = json.loads((ROOT / "evaluation" / "results" / f"{name}.json").read_text())
    assert results["settings"]["num_questions"] >= 500 and results["settings"]["style"] == name
    assert markdown(results) in card
    controls = json.loads((ROOT / "evaluation" / "results" / f"{name}-controls.json").read_text())
    assert markdown(controls) in card and len(controls["controls"]) == 18
    for path in (ROOT / "evaluation" / "results").glob(f"{name}-without-*.json"):
        (figure,) = json.loads(path.read_text())["figures"]
        low, high = figure["interval"]
        assert f"{figure['accuracy']:.3f} ({low:.3f}–{high:.3f})" in card


@pytest.mark.parametrize("task", [registers, facts, variables])
def test_targets_of_a_row_lead_to_its_answer_at_its_level(task):
    rows = task.generate(120, seed=7, num_rounds=8)
    assert task.generate(120, seed=7, num_rounds=8) == rows
    assert [row[task.GROUP_BY] for row in rows[: len(task.LEVELS)]] == list(task.LEVELS)
    for row in rows:
        assert set(row["targets"]) == set(task.PROMPTS)
        assert all(len(texts) == 8 for texts in row["targets"].values())
        said = list(row["targets"].values())[-1]
        final = said[-1].removeprefix("<python>").removesuffix("</python>")
        assert (calculator(final) if task is variables else final) == row["answer"] != "error"
        # One round fewer than the answer needs does not have it.
        rounds = next(index for index, text in enumerate(said) if text == said[-1])
        assert task is facts or rounds + 1 == row[task.GROUP_BY]


def test_the_registers_rule_is_one_to_one():
    states = [registers.write([a, b, c], 1) for a in range(10) for b in range(10) for c in range(10)]
    assert len({registers.join(registers.step(state)) for state in states}) == 1000
    assert registers.step("372:2") == {"adder": "0:1", "subtracter": "5:1", "multiplier": "2:1"}
    assert registers.generate_answer("372:2") == "536"


def test_who_does_not_know_a_fact_repeats_it():
    known = facts.FACTS["K", "a"]
    assert facts.hop("K.a.d", "expert") == facts.hop("K.a.d", "learner") == f"{known}.d"
    assert facts.hop("K.d.a", "learner") == "K.d.a" and facts.hop("K.d.a", "expert") != "K.d.a"
    assert facts.hop("K") == "K" and len(facts.hops("K.a.b.c.d.e.f")) == 1


def test_a_chain_of_definitions_is_followed_one_deep_at_a_time():
    question = "a=c b=4 c=d d=7 e=b f=2 376*a"
    assert variables.chain(question) == ["376*a", "376*c", "376*d", "376*7"]


@pytest.mark.parametrize("task", [registers, facts, variables])
def test_pretraining_examples_are_balanced_and_fill_every_slot(task):
    for role, entry in task.PROMPTS.items():
        rows = task.pretraining_examples(role, 40 * len(task.LEVELS), seed=3)
        for prompt, template in entry["default"].items():
            of_prompt = [row for row in rows if row["prompt"] == prompt]
            assert len(of_prompt) * len(entry["default"]) == len(rows)
            assert {row[task.GROUP_BY] for row in of_prompt} == set(task.LEVELS)
            for row in of_prompt:
                assert all(f"<|latents:{sender}|>" in template for sender in row["messages"])
                assert template.count("<|latents:") == len(row["messages"])
                assert bool(row["question"]) == ("<|question|>" in template)
    with pytest.raises(ValueError, match="judge"):
        task.pretraining_examples("judge", 1)


# Recipes rebuild what ships


@pytest.fixture
def one_thread():
    """Sums over several threads round in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_shipped_outer_links_settings_and_prompts_to_the_bit(name, one_thread):
    shipped, built = load_mas_system(FOLDERS[name]), start_system(name, FOLDERS[name])
    for link, module in shipped.outer_links.items():
        expected, found = module.state_dict(), built.outer_links[link].state_dict()
        assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    kinds = {"kind": "ln_res_adapter"}  # what training puts in the place of the untrained ones
    for entry in built.config.agents.values():
        entry["inner_link"] = kinds
    same = {"agents", "stages", "links", "decoding_role", "prompts", "num_rounds", "latent_steps", "latent_halting",
            "message_tokens", "task", "style"}  # fmt: skip
    assert {key: getattr(built.config, key) for key in same} == {key: getattr(shipped.config, key) for key in same}
    assert built.generation_config.to_diff_dict() == shipped.generation_config.to_diff_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sequential", "mixture"])
def test_a_recipe_gives_the_shipped_inner_links(name, one_thread, tmp_path):
    """To the bit on a processor like the one that made them, to rounding on any other."""
    shutil.copytree(FOLDERS[name] / "agents", tmp_path / "agents")
    train_inner_links(name, tmp_path)
    gaps = differences(name, tmp_path)
    links = [link for link in gaps if "_to_" in link or link.startswith("agents/")]  # outer links, and copied agents
    assert len(gaps) > len(links) > len(RECIPES[name].agents) and not any(gaps[link] for link in links)
    assert max(gaps.values()) <= (0 if torch.backends.cpu.get_cpu_capability() == CPU_CAPABILITY else 1e-5)


@pytest.mark.slow
def test_a_recipe_gives_a_shipped_agent(one_thread, tmp_path):
    """To the bit on a processor like the one that made it; on any other, an agent that can do as much."""
    pretrain_agent("mixture", "adder", tmp_path / "agents" / "adder", eval_examples=20)
    reports = [folder / "agents" / "adder" / "pretraining.json" for folder in (FOLDERS["mixture"], tmp_path)]
    shipped, found = (json.loads(path.read_text())["exact_match"] for path in reports)
    assert found >= shipped - 0.01
    if torch.backends.cpu.get_cpu_capability() == CPU_CAPABILITY:
        assert differences("mixture", tmp_path)["agents/adder/model.safetensors"] == 0
