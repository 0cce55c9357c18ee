"""Laws of the tools around released checkpoints: check, convert, import-prompts."""

import json
import shutil
import sys

import pytest
import torch
from recursivemas.cli import main
from recursivemas.errors_recursivemas import CheckpointError
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.prompts_recursivemas import TASKS
from recursivemas.release.check import check_system
from recursivemas.release.import_prompts import STYLES as IMPORTED_STYLES
from recursivemas.release.import_prompts import import_prompts
from recursivemas.system_loader import load_mas_system
from released import ORGANIZATION, STYLES
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTION = "What is 3+5?"
GREEDY = {"num_rounds": 2, "latent_steps": 3, "max_new_tokens": 12, "do_sample": False}


def cache_copy(cache, style, place):
    """A copy of the cached repositories of one system, to break."""
    names = [agent.repository for agent in STYLES[style].agents.values()] + [STYLES[style].outer_links]
    for name in names:
        folder = f"models--{ORGANIZATION}--{name}"
        shutil.copytree(cache / folder, place / folder, symlinks=True)
    return place


def snapshot(cache, repository):
    return next((cache / f"models--{ORGANIZATION}--{repository}" / "snapshots").iterdir())


# check


@pytest.mark.parametrize("style", STYLES)
def test_check_counts_what_the_loader_loads(style, released_cache, monkeypatch):
    # It is loaded here; that `check` tries it, tests/test_trust.py holds.
    monkeypatch.setattr("recursivemas.release.check.run_limited", lambda *_: ("", None))
    report = check_system(style, cache_dir=str(released_cache))
    assert report["ready"] and report["complete"] and not report["fetch"]
    mas = load_mas_system(style, cache_dir=released_cache)
    for role, agent in mas.agents.items():
        (found,) = (r for r in report["repositories"] if role in r["roles"])
        tied = agent.model.config.get_text_config().tie_word_embeddings
        assert found["parameters"] == agent.model.num_parameters(), (role, tied)
        assert found["stored_bytes"] == 2 * found["parameters"]
        assert found["revision"] == snapshot(released_cache, STYLES[style].agents[role].repository).name
    links = [agent.inner_link for agent in mas.agents.values()] + list(mas.outer_links.values())
    least = sum(p.numel() * p.element_size() for link in links for p in link.parameters())
    agents = sum(agent.model.num_parameters() for agent in mas.agents.values())
    assert report["memory"]["float32"] - report["memory"]["bfloat16"] == 2 * agents
    assert least <= report["memory"]["bfloat16"] - 2 * agents <= 1.5 * least + 20000  # what .pt files weigh
    assert report["memory"]["as stored"] == report["memory"]["bfloat16"]


def test_check_says_what_is_missing_and_how_to_fetch_it(released_cache, tmp_path, capsys):
    cache = cache_copy(released_cache, "sequential_scaled", tmp_path / "hub")
    agents = STYLES["sequential_scaled"].agents
    shutil.rmtree(cache / f"models--{ORGANIZATION}--{agents['planner'].repository}")
    shard = sorted(snapshot(cache, agents["critic"].repository).glob("model-*"))[0]
    shard.unlink()
    link = snapshot(cache, "Sequential-Scaled-Outerlinks") / "Critic-Solver-Outerlink(math).pt"
    link.unlink()
    assert main(["check", "sequential_scaled", "--cache-dir", str(cache), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    problems = {r["name"]: r["problems"] for r in report["repositories"]}
    assert problems[f"{ORGANIZATION}/{agents['planner'].repository}"] == ["nothing of it is there"]
    assert problems[f"{ORGANIZATION}/{agents['critic'].repository}"] == [f"missing: {shard.name}"]
    assert problems[f"{ORGANIZATION}/Sequential-Scaled-Outerlinks"] == [f"missing: {link.name}"]
    assert problems[f"{ORGANIZATION}/{agents['solver'].repository}"] == []
    assert report["uncounted"] == ["planner"] and report["fits"]["float32"]["ram"] is None  # nobody can say
    assert [command.split()[2] for command in report["fetch"]] == [n for n, p in problems.items() if p]
    assert main(["check", "sequential_scaled", "--cache-dir", str(cache)]) == 1
    text = capsys.readouterr().out
    assert f"hf download {ORGANIZATION}/{agents['planner'].repository}" in text and "not ready" in text


def test_check_sees_a_truncated_file_without_reading_it(released_cache, tmp_path):
    cache = cache_copy(released_cache, "distillation", tmp_path / "hub")
    file = snapshot(cache, STYLES["distillation"].agents["learner"].repository) / "model.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-100])
    report = check_system("distillation", cache_dir=str(cache))
    (problem,) = next(r["problems"] for r in report["repositories"] if "learner" in r["roles"])
    assert "model.safetensors" in problem and str(len(content) - 100) in problem
    assert not report["ready"]


def test_check_compares_memory_with_the_machine(released_cache, monkeypatch):
    monkeypatch.setattr("recursivemas.release.check.free_ram", lambda: 1000)
    report = check_system("deliberation", cache_dir=str(released_cache))
    assert report["complete"] and not report["ready"]
    assert report["machine"]["ram"] == 1000 and report["fits"]["float32"]["ram"] is False


@pytest.mark.slow
def test_check_takes_a_system_of_ones_own(chain_folder, capsys):
    assert main(["check", str(chain_folder)]) == 0
    assert "ready" in capsys.readouterr().out
    assert main(["check", "sequential_heavy"]) == 2
    assert "sequential_light, sequential_scaled" in capsys.readouterr().err


# convert


@pytest.mark.parametrize("style", ["sequential_scaled", pytest.param("mixture", marks=pytest.mark.slow)])
def test_a_converted_system_gives_the_same_tokens(style, released_cache, released_clones, tmp_path, monkeypatch):
    arguments = ["--cache-dir", str(released_cache)]
    if style == "mixture":
        arguments = ["--clones", str(released_clones), "--copy-agents"]
    assert main(["convert", style, str(tmp_path / "system"), *arguments]) == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(released_cache))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "system", trust_remote_code=True, dtype="float32", cache_dir=released_cache
    )
    original = load_mas_system(style, cache_dir=released_cache, dtype="float32")
    expected = original.solve(QUESTION, **GREEDY)[0]
    assert model.solve(QUESTION, **GREEDY)[0].text == expected.text
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "system", trust_remote_code=True)
    ids = tokenizer(QUESTION, return_tensors="pt").input_ids
    assert torch.equal(model.generate(ids, **GREEDY), original.generate(ids, **GREEDY))
    assert list(model.outer_adapters) == list(STYLES[style].links)
    assert model.generation_config.to_diff_dict() == original.generation_config.to_diff_dict()
    saved = json.loads((tmp_path / "system" / "config.json").read_text())
    assert not list(tmp_path.rglob("*.pt"))
    for role, agent in STYLES[style].agents.items():
        if style == "mixture":
            assert saved["agents"][role]["source"] == f"agents/{role}"
            assert (tmp_path / "system" / "agents" / role / "model.safetensors").is_file()
        else:
            assert saved["agents"][role]["source"] == f"{ORGANIZATION}/{agent.repository}"
            assert saved["agents"][role]["revision"] == snapshot(released_cache, agent.repository).name


def test_a_converted_system_keeps_the_links_of_every_task(released_cache, tmp_path):
    assert main(["convert", "distillation", str(tmp_path / "system"), "--cache-dir", str(released_cache)]) == 0
    for task, dataset in (("math", "math500"), ("code", "mbppplus")):
        original = load_mas_system("distillation", dataset, cache_dir=released_cache)
        mas = RecursiveMASModel.from_pretrained(tmp_path / "system", task=task, cache_dir=released_cache)
        assert mas.config.link_task == task
        for link, expected in zip(
            (mas.agents["expert"].inner_link, *mas.outer_links.values()),
            (original.agents["expert"].inner_link, *original.outer_links.values()),
            strict=True,
        ):
            for key, tensor in expected.state_dict().items():
                assert torch.equal(link.state_dict()[key], tensor)


def test_convert_does_not_write_over_anything(released_cache, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    assert main(["convert", "distillation", str(tmp_path)]) == 2
    assert "--replace" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


# import-prompts: a stand-in with the names and signatures of the public code, and wording of our own

STAND_IN = """
import re
from dataclasses import dataclass
from helpers.words import GREETING

SYSTEM_PROMPT = "Be brief."
PLANNER_SLOT, REFINED_SLOT, FEEDBACK_SLOT = "<<P>>", "<<R>>", "<<F>>"
HIE_MATH_EXPERT_SLOT, HIE_CODE_EXPERT_SLOT, HIE_SCIENCE_EXPERT_SLOT = "<<HM>>", "<<HC>>", "<<HS>>"
HIE_FEEDBACK_SLOT, DISTILL_EXPERT_SLOT, DISTILL_FEEDBACK_SLOT = "<<HF>>", "<<DE>>", "<<DF>>"
DELIBERATION_REFLECTOR_SLOT, DELIBERATION_FEEDBACK_SLOT = "<<LR>>", "<<LF>>"


@dataclass(frozen=True)
class Bundle:
    first: str


def get_system_prompt(mas_design="chain", mas_role=None):
    return {"deliberation": "Use tools.", "deliberation_reasoning": "Use prose."}.get(mas_design, SYSTEM_PROMPT)


def _context(question, mas_task, task_type, fn_name):
    if mas_task == "code":
        return f"{task_type}/{fn_name}: {question}\\n"
    if mas_task == "choice":
        return f"{question.rstrip()}\\n(pick one)\\n"
    return f"Q[{mas_task}]: {question}\\n"


def _final(question):
    return "a letter" if re.search(r"(?m)^A\\. ", question) else "a number"
"""


def stand_in():
    """Source of builders whose text names everything that they were called with."""
    source = STAND_IN
    signature = 'question, mas_task="math", task_type="complete", fn_name=None'
    context = "{_context(question, mas_task, task_type, fn_name)}"

    def add(name, parameters, body):
        nonlocal source
        source += f"\n\ndef {name}({parameters}):\n    return f'''{GREETING_FIELD}{name} {body}'''\n"

    for kind, extra in (("math", ""), ("reasoning", ""), ("code", ", task_type, fn_name=None")):
        shown = " {task_type} {fn_name}" if extra else ""
        add(f"build_{kind}_planner_prompt", f"question{extra}", f"{{question}}{shown}")
        name = f"build_{kind}_planner_prompt_with_feedback_slot"
        add(name, f"question{extra}", f"{{question}}{shown} {{FEEDBACK_SLOT}} {{{{x}}}}")
        add(f"build_{kind}_refiner_prompt_with_slot", f"question{extra}", f"{{PLANNER_SLOT}} {{question}}{shown}")
        parameters = f"question{extra.partition('=')[0].removesuffix(', fn_name')}, args=None, mas_shape='chain'"
        parameters += ", fn_name=None" * bool(extra)
        name = f"build_{kind}_solver_prompt_with_slots"
        add(name, parameters, f"{{REFINED_SLOT}}\n{{question}} {{_final(question)}}{shown}")
    hie = f"question, hie_role, {signature.partition(', ')[2]}"
    add("build_hie_expert_prompt", hie, f"{{hie_role}} {context}")
    add("build_hie_expert_prompt_with_feedback_slot", hie, f"{{hie_role}} {{HIE_FEEDBACK_SLOT}} {context}")
    slots = "{HIE_MATH_EXPERT_SLOT}{HIE_CODE_EXPERT_SLOT} {HIE_SCIENCE_EXPERT_SLOT}"
    add("build_hie_summarizer_prompt_with_slots", signature, f"{slots} {context}{{_final(question)}}")
    add("build_distill_expert_prompt", signature, context)
    add("build_distill_expert_prompt_with_feedback_slot", signature, f"{{DISTILL_FEEDBACK_SLOT}} {context}")
    add("build_distill_learner_prompt_with_slot", signature, f"{{DISTILL_EXPERT_SLOT}} {context}{{_final(question)}}")
    add("build_deliberation_reflector_prompt", signature, context)
    name = "build_deliberation_reflector_prompt_with_feedback_slot"
    add(name, signature, f"{{DELIBERATION_FEEDBACK_SLOT}} {context}")
    name = "build_deliberation_toolcaller_prompt_with_slot"
    add(name, signature, f"{{DELIBERATION_REFLECTOR_SLOT}} {context}{{_final(question)}}")
    return source


GREETING_FIELD = "{GREETING} "


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "clone"
    (folder / "helpers").mkdir(parents=True)
    (folder / "helpers" / "__init__.py").write_text("")
    (folder / "helpers" / "words.py").write_text('GREETING = "Hello"\n')
    (folder / "prompts.py").write_text(stand_in())
    return folder


def rendered(prompts, role, task, phase, question):
    return prompts[role][task][phase].replace("<|question|>", question)


@pytest.mark.parametrize("style", IMPORTED_STYLES)
def test_imported_prompts_render_as_the_builders_do(style, clone, tmp_path):
    extra = {"task_type": "function", "fn_name": "add"}
    prompts, skipped = import_prompts(clone, style, list(TASKS), extra)
    assert skipped == (["reasoning"] if style == "deliberation" else [])
    assert not {"helpers", "released_prompts"} & set(sys.modules)  # nothing of the clone stays behind
    names = {}
    exec((clone / "prompts.py").read_text().replace("from helpers.words import GREETING", 'GREETING = "Hello"'), names)
    decoder = list(prompts)[-1]
    questions = {"choice": "Which {one}?\nA. 1\nB. 2"}
    for task in set(TASKS) - set(skipped):
        question = questions.get(task, "What is \\frac{1}{2}?\n\nSay {why}.")
        mas_task = "math" if task == "default" else task
        kind = task if task in ("code", "reasoning") else "math"
        context = {"mas_task": mas_task, **extra}
        if style == "sequential":
            more = extra if kind == "code" else {}
            slot = {"<<F>>": "<|latents:solver|>", "<<P>>": "<|latents:planner|>", "<<R>>": "<|latents:critic|>"}
            expected = {
                ("planner", "first"): names[f"build_{kind}_planner_prompt"](question, **more),
                ("planner", "feedback"): names[f"build_{kind}_planner_prompt_with_feedback_slot"](question, **more),
                ("critic", "first"): names[f"build_{kind}_refiner_prompt_with_slot"](question, **more),
                ("solver", "first"): names[f"build_{kind}_solver_prompt_with_slots"](question, **more),
            }
        elif style == "mixture":
            slot = {"<<HM>>": "<|latents:math|>", "<<HC>>": "<|latents:code|>", "<<HS>>": "<|latents:science|>"}
            slot["<<HF>>"] = "<|latents:summarizer|>"
            expected = {("summarizer", "first"): names["build_hie_summarizer_prompt_with_slots"](question, **context)}
            for role in ("math", "code", "science"):
                arguments = (question, f"hie_{role}_expert")
                expected[role, "first"] = names["build_hie_expert_prompt"](*arguments, **context)
                text = names["build_hie_expert_prompt_with_feedback_slot"](*arguments, **context)
                expected[role, "feedback"] = text
        else:
            short, source = ("distill", "expert") if style == "distillation" else ("deliberation", "reflector")
            slot = {"<<DE>>": "<|latents:expert|>", "<<DF>>": "<|latents:learner|>"}
            slot |= {"<<LR>>": "<|latents:reflector|>", "<<LF>>": "<|latents:toolcaller|>"}
            build = f"build_{short}_{source}_prompt"
            expected = {
                (source, "first"): names[build](question, **context),
                (source, "feedback"): names[f"{build}_with_feedback_slot"](question, **context),
                (decoder, "first"): names[f"build_{short}_{decoder}_prompt_with_slot"](question, **context),
            }
        for (role, phase), text in expected.items():
            for marker, ours in slot.items():
                text = text.replace(marker, ours)
            assert rendered(prompts, role, task, phase, question) == text
    system = "Use tools." if style == "deliberation" else "Be brief."
    assert {entry["system"] for entry in prompts.values()} == {system}


def test_imported_prompts_run_a_released_system(clone, released_cache, tmp_path, capsys):
    output = tmp_path / "prompts.json"
    command = ["import-prompts", str(clone), "--style", "deliberation", "--output", str(output)]
    assert main(command) == 0
    assert "reasoning has a system text of its own" in capsys.readouterr().err
    mas = load_mas_system("deliberation", cache_dir=released_cache, prompts=output)
    assert mas.config.prompts["reflector"]["system"] == "Use tools."
    assert mas.solve(QUESTION, **GREEDY)[0].usage["new_tokens"] > 0
    assert main([*command, "--tasks", "reasoning", "--replace"]) == 0
    assert json.loads(output.read_text())["reflector"]["system"] == "Use prose."


def test_builders_that_no_template_can_follow_are_an_error(clone, tmp_path, capsys):
    source = (clone / "prompts.py").read_text()
    (clone / "prompts.py").write_text(
        source + "\n\ndef build_math_planner_prompt(question):\n    return question + str(len(question))\n"
    )
    with pytest.raises(CheckpointError, match=r"(?s)more than put the question.*build_math_planner_prompt"):
        import_prompts(clone, "sequential", ["math"], {})
    (clone / "prompts.py").write_text(source.replace("build_math_refiner", "build_maths_refiner"))
    with pytest.raises(CheckpointError, match=r"(?s)missing.*expected: build_math_refiner_prompt_with_slot"):
        import_prompts(clone, "sequential", ["math"], {})
    (clone / "prompts.py").write_text("import nothing_of_the_kind\n")
    with pytest.raises(CheckpointError, match=r"(?s)cannot be imported.*nothing_of_the_kind"):
        import_prompts(clone, "sequential", ["math"], {})
    assert main(["import-prompts", str(tmp_path), "--style", "mixture"]) == 2
    assert "prompts.py of the public code" in capsys.readouterr().err
