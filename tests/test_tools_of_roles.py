"""Roles that declare tools have these, in messages and in the answer; what cannot run is an error before compute."""

import json

import pytest
import torch
from recursivemas import cli
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.depth_recursivemas import AdaptiveRun
from recursivemas.errors_recursivemas import ConfigError, InputError
from recursivemas.evaluation import commands
from recursivemas.evaluation.measure import without
from recursivemas.solutions_recursivemas import Usage
from recursivemas.system_loader import read_style
from recursivemas.tools_recursivemas import ToolBox, calculator, tools_of_roles
from tiny import Script, tiny_chain, tiny_system
from transformers import LogitsProcessorList

QUESTIONS = ["What is 2*3?", "Say nothing."]
CALLED = "<python>2*3</python><result>6</result>six"


@pytest.fixture
def mas():
    return tiny_chain()


def scripted(mas, monkeypatch, role, segments):
    """A role's agent writes what is scripted, whatever it reads; the last segment again and again."""
    agent = mas.agents[role]
    script = Script(agent.tokenizer, [[f"{text}{agent.tokenizer.eos_token}" if "</" not in text else text
                                       for text in rows] for rows in segments])  # fmt: skip
    original = type(agent.model).generate

    def generate(ids, **kwargs):
        def behind(input_ids, scores):
            return script(input_ids[:, ids.shape[1] :], scores)

        processors = [*(kwargs.pop("logits_processor", None) or []), behind]
        return original(agent.model, ids, logits_processor=LogitsProcessorList(processors), **kwargs)

    monkeypatch.setattr(agent.model, "generate", generate, raising=False)


def test_which_role_has_which_tools():
    box = ToolBox({"python": calculator, "search": str}, max_calls=2)
    assert tools_of_roles(None, None, "b") == {} == tools_of_roles({}, {"a": ["python"]}, "b")
    assert tools_of_roles(box, None, "b") == {"b": box}
    found = tools_of_roles(box, {"a": ["search"], "b": ["python", "calculator"]}, "b")
    assert {role: list(each) for role, each in found.items()} == {"a": ["search"], "b": ["python"]}
    assert found["a"].max_calls == 2
    assert tools_of_roles(None, {"a": ["calculator"]}, "b") == {"a": {"calculator": calculator}}
    with pytest.raises(InputError, match="a: python, search") as error:
        tools_of_roles(None, {"a": ["python", "search"]}, "b")
    assert "functions for python, search" in str(error.value)


def test_a_role_that_declares_a_tool_uses_it_in_its_messages(mas, monkeypatch):
    mas.config.tools = {"planner": ["python"]}
    segments = [["<python>2*3</python>", "nothing to calculate here, ever"], ["six"]]
    scripted(mas, monkeypatch, "planner", segments)
    counted = []
    monkeypatch.setattr(Usage, "count", lambda usage, *what: counted.append(what))
    settings = {"mode": "text", "num_rounds": 1, "max_new_tokens": 4, "message_tokens": 40, "keep_order": True}
    called, plain = mas.solve(QUESTIONS, tools={"python": calculator}, **settings)
    assert called.messages[1, "planner"] == CALLED
    assert plain.messages[1, "planner"] == segments[0][1]
    tokenizer = mas.agents["planner"].tokenizer

    def length(*texts):
        return sum(len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts)

    own = [length("<python>2*3</python>", "six") + 1, length(segments[0][1]) + 1]
    assert ("new_tokens", own) in counted and ("prompt_tokens", [length("<result>6</result>"), 0]) in counted
    scripted(mas, monkeypatch, "planner", [rows[:1] for rows in segments])
    (silent,) = mas.solve(QUESTIONS[:1], tools={}, **settings)
    message = silent.messages[1, "planner"]
    assert message.startswith("<python>2*3</python>") and "<result>" not in message


def test_generate_and_a_run_of_as_many_rounds_as_needed_have_them_too(mas, monkeypatch):
    mas.config.tools, mas.tools = {"planner": ["python"]}, {"python": calculator}
    said = []
    scripted(mas, monkeypatch, "planner", [["<python>2*3</python>"], ["six"]])
    original = AdaptiveRun._listen
    monkeypatch.setattr(
        AdaptiveRun,
        "_listen",
        lambda self, run, turns: said.extend(run.texts.values()) or original(self, run, turns),
    )
    settling = {"signal": "turns", "threshold": 0, "max_rounds": 2}
    mas.solve(QUESTIONS[:1], num_rounds="auto", settling=settling, mode="text", max_new_tokens=4, message_tokens=40)
    assert [CALLED] in said
    scripted(mas, monkeypatch, "planner", [["<python>2*3</python>"], ["six"]])
    output = mas.generate(QUESTIONS[:1], mode="text", num_rounds=1, max_new_tokens=4, message_tokens=40)
    mas.tools = {}
    scripted(mas, monkeypatch, "planner", [["<python>2*3</python>"], ["six"]])
    other = mas.generate(QUESTIONS[:1], mode="text", num_rounds=1, max_new_tokens=4, message_tokens=40)
    assert not torch.equal(output, other)  # what the others read is another message


def test_declared_tools_that_nobody_gave_are_an_error_before_any_compute(mas, monkeypatch):
    mas.config.tools = {"solver": ["search"]}
    monkeypatch.setattr(type(mas.agents["planner"]), "rollout", None)
    for door in (mas.solve, mas.generate):
        with pytest.raises(InputError, match="solver: search"):
            door(QUESTIONS[:1])


@pytest.mark.parametrize("tools", [{"absent": ["python"]}, {"solver": ["a b"]}, {"solver": ["result"]}, ["python"]])
def test_a_declaration_that_cannot_be_is_refused(mas, tools):
    with pytest.raises(ConfigError):
        RecursiveMASConfig(**{**mas.config.to_dict(), "tools": tools}).validate_system()


def test_styles_and_saved_systems_carry_declarations(mas, tmp_path):
    style = {**read_style("distillation"), "tools": {"learner": ["python"]}}
    (tmp_path / "mine.json").write_text(json.dumps(style), encoding="utf-8")
    assert read_style(tmp_path / "mine.json")["tools"] == {"learner": ["python"]}
    mas.config.tools = {"critic": ["python"], "solver": ["search"]}
    mas.config.save_pretrained(tmp_path)
    assert RecursiveMASConfig.from_pretrained(tmp_path).tools == mas.config.tools
    links = [{"source": role, "target": "c"} for role in "ab"]
    wide = tiny_system({"a": "qwen3", "b": "qwen2", "c": "llama"}, [["a", "b"], ["c"]], links, "c")
    wide.config.tools = {"a": ["python"], "c": ["search"]}
    assert without(wide, ["a"]).config.tools == {"c": ["search"]}


def test_commands_bring_what_roles_declare_or_say_why_not(monkeypatch, tmp_path):
    monkeypatch.delenv("TAVILY_API_KEY", raising=False)
    for tags, said in ((["python"], "--allow-code"), (["search"], "--search-index"), (["weather"], "do not know")):
        with pytest.raises(InputError) as error:
            commands.declared_tools({"solver": tags})
        assert said in str(error.value) and "solver" in str(error.value) and "--tools none" in str(error.value)
    found = commands.declared_tools({"a": ["calculator"], "b": ["python", "calculator"]}, allow_code=True)
    assert list(found) == ["calculator", "python"] and found["calculator"] is calculator
    assert commands.named_tools("none") == {}


def test_a_command_answers_the_calls_of_roles_that_declare_tools(mas, monkeypatch, capsys):
    mas.config.tools = {"solver": ["calculator"]}
    monkeypatch.setattr(commands, "load_mas_system", lambda *args, **kwargs: mas)
    options = ["solve", "--rounds", "1", "--max-new-tokens", "30", "--json", QUESTIONS[0]]
    for more, text in (([], CALLED.replace("python", "calculator")), (["--tools", "none"], None)):
        scripted(mas, monkeypatch, "solver", [["<calculator>2*3</calculator>"], ["six"]])
        mas.tools = None
        assert cli.main([*options[:-1], *more, options[-1]]) == 0
        found = json.loads(capsys.readouterr().out)
        found = found[0] if isinstance(found, list) else found
        assert (found["text"] == text) if text else ("<result>" not in found["text"])
    mas.config.tools, mas.tools = {"solver": ["python"]}, None
    assert cli.main(options) == 2
    assert "--allow-code" in capsys.readouterr().err
