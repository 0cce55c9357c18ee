"""Foreign code runs only where the caller said so, nothing is read outside a system's places, checks keep promises."""

import builtins
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from recursivemas import cli
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.errors_recursivemas import CheckpointError, ConfigError, InputError, RecursiveMASError
from recursivemas.release import limits
from recursivemas.release.check import check_system
from recursivemas.sources_recursivemas import Source
from recursivemas.system_loader import load_mas_system
from recursivemas.upload import check, code, files, plan, push, stage
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

QUESTION = "What is the answer?"
OWNED = "import os\nopen(os.environ['OWNED'], 'a').write(__name__ + chr(10))\n"
# A module of equal content is not run again: where it is written, the folder's name is put behind it.
MODULE = OWNED + (
    "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
    "class MyConfig(LlamaConfig):\n    model_type = 'mylm'\n"
    "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    "class MyTokenizer(PreTrainedTokenizerFast): pass\n"
)
AUTO_MAP = {
    "AutoConfig": "my_code.MyConfig",
    "AutoModel": "my_code.MyModel",
    "AutoModelForCausalLM": "my_code.MyModel",
    "AutoTokenizer": [None, "my_code.MyTokenizer"],
}
UNKNOWN = {"model_type": "mylm", "architectures": ["MyModel"]}


def edit(path, **fields):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | fields))


def of_unknown_type(agent):
    edit(agent / "config.json", **UNKNOWN, auto_map=AUTO_MAP)


def of_known_type(agent):
    edit(agent / "config.json", auto_map=AUTO_MAP)


def with_a_tokenizer(agent):
    edit(agent / "tokenizer_config.json", tokenizer_class="MyTokenizer", auto_map=AUTO_MAP)


def of_another_repository(agent):
    other = shutil.copytree(agent, agent.parents[2] / "other")
    named = {name: f"{other}--{value}" for name, value in AUTO_MAP.items() if isinstance(value, str)}
    edit(agent / "config.json", **UNKNOWN, auto_map=named)


def with_a_generate(agent):
    (agent / "custom_generate").mkdir()
    (agent / "custom_generate" / "generate.py").write_text(
        f"{OWNED}# {agent}\ndef generate(model, **kwargs): return None\n"
    )
    edit(agent / "generation_config.json", custom_generate=str(agent), trust_remote_code=True)


AGENTS = {f.__name__: f for f in (of_unknown_type, of_known_type, with_a_tokenizer, of_another_repository,
                                  with_a_generate)}  # fmt: skip


@pytest.fixture
def owned(tmp_path, monkeypatch):
    """The file into which code that runs writes its name; asking on the terminal is an error."""
    monkeypatch.setenv("OWNED", str(tmp_path / "owned"))
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked on the terminal"))
    return tmp_path / "owned"


@pytest.fixture
def folder(chain_folder, tmp_path):
    """A copy of a system, to be changed."""
    folder = shutil.copytree(chain_folder, tmp_path / "system")
    edit(folder / "config.json", agents={
        role: {key: value for key, value in entry.items() if key != "model_type"}
        for role, entry in json.loads((folder / "config.json").read_text())["agents"].items()
    })  # fmt: skip
    return folder


@pytest.fixture
def coded(folder):
    """The same with code beside the critic, a Llama, and what makes transformers run it."""

    def build(kind):
        (folder / "agents" / "critic" / "my_code.py").write_text(f"{MODULE}# {folder}")
        AGENTS[kind](folder / "agents" / "critic")
        return folder

    return build


DOORS = {
    "load": lambda folder: load_mas_system(folder),
    "load, the system trusted": lambda folder: load_mas_system(folder, trust_remote_code=True),
    "load, another role trusted": lambda folder: load_mas_system(folder, trust_remote_code={"solver": True}),
    "load, the role distrusted": lambda folder: load_mas_system(folder, trust_remote_code={"critic": False}),
    "Auto class": lambda folder: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
    "agents without weights": lambda folder: load_mas_system(folder, only=[]),
    "init-links": lambda folder: cli.main(["init-links", "--style", "distillation", "--no-probe",
        "--agent", f"expert={folder}/agents/critic", "--agent", f"learner={folder}/agents/planner",
        "--output", f"{folder}-2"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("door", DOORS)
def test_an_agents_own_code_runs_nowhere_unasked_and_nobody_is_asked(door, kind, coded, owned):
    system = coded(kind)
    try:
        DOORS[door](system)
    except Exception as error:  # an Auto class raises the errors of a copy of the code
        assert "RecursiveMASError" in {base.__name__ for base in type(error).__mro__} and "critic" in str(error)
    assert not owned.exists()


@pytest.mark.parametrize("kind", ["of_unknown_type", "with_a_tokenizer"])
@pytest.mark.parametrize(
    "trust",
    [
        {"trust_remote_code": {"critic": True}},
        {"agent_kwargs": {"critic": {"trust_remote_code": True}}},
        {"agent_kwargs": {"trust_remote_code": True}},
    ],
    ids=str,
)
def test_it_runs_where_the_caller_said_so_and_answers_as_ever(trust, kind, coded, owned, chain):
    mas = load_mas_system(coded(kind), **trust)
    assert "my_code" in owned.read_text()
    assert mas.solve(QUESTION, max_new_tokens=6)[0].text == chain.solve(QUESTION, max_new_tokens=6)[0].text


def test_the_error_says_how_to_trust(coded, owned):
    with pytest.raises(CheckpointError, match=r"'critic': {'trust_remote_code': True}.*--trust-remote-code critic"):
        load_mas_system(coded("of_unknown_type"))


def test_the_command_runs_it_where_it_was_told(coded, owned, capsys):
    command = ["solve", "--system", str(coded("of_unknown_type")), QUESTION, "--max-new-tokens", "2"]
    assert cli.main(command) == 2 and not owned.exists()
    assert cli.main([*command, "--trust-remote-code", "critic"]) == 0 and owned.exists()


@pytest.mark.parametrize(
    "trust",
    [
        {"trust_remote_code": {"nobody": True}},
        {"trust_remote_code": {"critic": "yes"}},
        {"agent_kwargs": {"critic": {"trust_remote_code": "no"}}},
    ],
    ids=str,
)
def test_trust_in_nobody_and_trust_that_is_no_yes_or_no_are_refused(trust, folder):
    with pytest.raises(InputError, match="trust_remote_code"):
        load_mas_system(folder, **trust)


def test_the_server_runs_the_clones_code_and_not_the_folders(folder, owned, monkeypatch):
    pytest.importorskip("uvicorn", reason="needs the extra [serve]")
    for path in folder.glob("*.py"):
        path.write_text(f"{OWNED}# {folder}\n{path.read_text()}")
    answers = []

    def listen(solver, name, host, port):
        answers.append(solver.mas.solve(QUESTION, max_new_tokens=3))
        solver.close()

    monkeypatch.setattr("recursivemas.serve.listen", listen)
    assert cli.main(["serve", "--system", str(folder)]) == 0
    assert answers and not owned.exists()


def test_an_agents_repository_runs_its_base_models_code_only_where_trusted(chain, tmp_path, owned):
    chain.agents["critic"].save_pretrained(tmp_path / "agent")
    (tmp_path / "agent" / "my_code.py").write_text(f"{MODULE}# {tmp_path}")
    edit(tmp_path / "agent" / "tokenizer_config.json", tokenizer_class="MyTokenizer", auto_map=AUTO_MAP)
    with pytest.raises(CheckpointError, match="code of its own"):
        RecursiveMASAgent.from_pretrained(tmp_path / "agent")
    assert not owned.exists()
    RecursiveMASAgent.from_pretrained(tmp_path / "agent", trust_remote_code=True)
    assert owned.exists()


def test_pickled_weights_are_never_opened(folder):
    (folder / "agents" / "critic" / "model.safetensors").rename(folder / "agents" / "critic" / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        load_mas_system(folder)


# Places


def with_source(source):
    def change(folder, outside):
        agents = json.loads((folder / "config.json").read_text())["agents"]
        agents["critic"]["source"] = source.format(outside=outside)
        edit(folder / "config.json", agents=agents)

    return change


def with_weights(weights):
    def change(folder, outside):
        content = json.loads((folder / "config.json").read_text()) | {"link_task": "math"}
        text = json.dumps(weights).replace("{outside}", str(outside))
        content["agents"]["critic"]["inner_link"]["weights"] = json.loads(text)
        edit(folder / "config.json", **content)

    return change


def with_link(name, target):
    def change(folder, outside):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(outside / target)

    return change


def with_a_shard_outside(folder, outside):
    agent = folder / "agents" / "critic"
    keys = load_file(agent / "model.safetensors")
    (agent / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "../../../outside/agent/model.safetensors")}
    (agent / "model.safetensors.index.json").write_text(json.dumps(index))


OUTSIDE = {
    "source over agents/": with_source("agents/../../outside/agent"),
    "source over ./": with_source("./../outside/agent"),
    "source of dots": with_source("../outside/agent"),
    "source in a home": with_source("~/agent"),
    "weights of dots": with_weights("../outside/link.safetensors"),
    "weights, absolute": with_weights("{outside}/link.safetensors"),
    "weights by file name": with_weights({"source": "./", "filename": "../outside/link.safetensors"}),
    "weights of a task": with_weights({"tasks": {"math": "links/../../outside/link.safetensors"}}),
    "weights by a place of dots": with_weights({"source": "./../outside", "filename": "link.safetensors"}),
    "shard": with_a_shard_outside,
    **{
        f"link {name}": with_link(name, target)
        for name, target in {
            "config.json": "config.json",
            "generation_config.json": "agent/generation_config.json",
            "links/critic.safetensors": "link.safetensors",
            "links": "links",
            "agents/critic": "agent",
            "agents/critic/config.json": "agent/config.json",
            "agents/critic/chat_template.jinja": "secret.txt",
            "agents/critic/model.safetensors": "agent/model.safetensors",
            "agents/critic/tokenizer.json": "agent/tokenizer.json",
            "agents/critic/additional_chat_templates": "templates",
        }.items()
    },
}


@pytest.fixture
def outside(chain_folder, tmp_path):
    """A folder beside the system, with everything that the system could want of it."""
    place = tmp_path / "outside"
    shutil.copytree(chain_folder / "agents" / "critic", place / "agent")
    shutil.copytree(chain_folder / "links", place / "links")
    (place / "templates").mkdir()
    for path, target in (("secret.txt", "x.txt"), ("templates/x.jinja", "x.txt")):
        (place / path).write_text("{% for m in messages %}{{ m.content }}{% endfor %}" + target)
    shutil.copy(chain_folder / "links" / "critic.safetensors", place / "link.safetensors")
    shutil.copy(chain_folder / "config.json", place / "config.json")
    return place


@pytest.mark.parametrize("kind", OUTSIDE)
def test_nothing_is_read_outside_the_systems_folder(kind, folder, outside):
    OUTSIDE[kind](folder, outside)
    with pytest.raises((ConfigError, CheckpointError), match=r"leads out of its repository|is no place"):
        load_mas_system(folder)


@pytest.mark.parametrize("kind", ["source over agents/", "weights, absolute", "link links/critic.safetensors"])
def test_the_check_reads_nothing_outside_either(kind, folder, outside):
    OUTSIDE[kind](folder, outside)
    try:
        report = check_system(str(folder))
    except ConfigError as error:
        assert "leads out" in str(error)
    else:
        assert not report["ready"] and "leads out" in str(report["repositories"])


def test_a_folder_of_the_users_own_may_name_a_folder_elsewhere(folder, outside, chain):
    with_source("{outside}/agent")(folder, outside)
    with_weights({"source": "{outside}", "filename": "link.safetensors"})(folder, outside)
    expected = chain.solve(QUESTION, max_new_tokens=6)[0].text
    assert load_mas_system(folder).solve(QUESTION, max_new_tokens=6)[0].text == expected
    link = folder.with_name("another name")
    link.symlink_to(folder, target_is_directory=True)  # a link to the system itself leads nowhere else
    assert load_mas_system(link).solve(QUESTION, max_new_tokens=6)[0].text == expected


def as_download(folder, cache):
    """A system as the Hub client keeps it: links to blobs."""
    commit = "0" * 40
    snapshot = cache / "models--org--system" / "snapshots" / commit
    for number, path in enumerate(path for path in sorted(folder.rglob("*")) if path.is_file()):
        blob, target = snapshot.parents[1] / "blobs" / str(number), snapshot / path.relative_to(folder)
        for place in (blob, target):
            place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        target.symlink_to(os.path.relpath(blob, target.parent))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    return snapshot


@pytest.mark.parametrize(
    "change", [with_source("{outside}/agent"), with_weights({"source": "{outside}", "filename": "link.safetensors"})]
)
def test_a_system_from_the_hub_names_no_folder_of_this_machine(change, folder, outside, tmp_path):
    whole = as_download(folder, tmp_path / "whole")
    load_mas_system("org/system", cache_dir=str(tmp_path / "whole"), local_files_only=True, only=[])
    load_mas_system(whole, only=[])
    change(folder, outside)
    snapshot = as_download(folder, tmp_path / "cache")
    hub = {"cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    for load in (
        lambda: load_mas_system("org/system", **hub),
        lambda: load_mas_system(snapshot),
        lambda: AutoModelForCausalLM.from_pretrained("org/system", trust_remote_code=True, **hub),
        lambda: check_system("org/system", cache_dir=str(tmp_path / "cache")),
    ):
        with pytest.raises(ValueError, match="names a folder of this machine") as problem:
            load()
        assert type(problem.value).__name__ == "ConfigError"  # of a copy of the code, where an Auto class loads


@pytest.mark.parametrize("name", ["org/name", "name", "agents/planner", "./planner", "/an/absolute/place"])
def test_what_a_source_may_be(name, tmp_path):
    assert Source(str(tmp_path)).other(name)


# Limits


def script(folder, text):
    path = folder / "script.py"
    path.write_text(text)
    return str(path)


def test_a_script_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    late = "import sys, time; time.sleep(3); open(sys.argv[1], 'w')"
    text = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {late!r}, sys.argv[1]])\n"
    path = script(tmp_path, text + "time.sleep(60)")
    _, problem = limits.run_limited(path, [str(tmp_path / "late")], 0, seconds=1)
    assert problem == "took more than 1 seconds"
    assert limits.run_limited(script(tmp_path, "import time\ntime.sleep(3)"), [], 0) == ("", None)
    assert not (tmp_path / "late").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_script_that_takes_too_much_memory_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "BASE_MEMORY", 200 << 20)
    monkeypatch.setattr(limits, "free_ram", lambda: 400 << 20)
    _, problem = limits.run_limited(script(tmp_path, "x = bytearray(500 << 20)"), [], 0)
    assert "MemoryError" in problem
    assert limits.run_limited(script(tmp_path, "x = bytearray(100 << 20)"), [], 0) == ("", None)


def test_a_script_is_offline_and_asks_nobody(tmp_path):
    text = "import os\nassert os.environ['HF_HUB_OFFLINE'] == '1' and not os.environ['CUDA_VISIBLE_DEVICES']\ninput()"
    for isolated in (False, True):
        _, problem = limits.run_limited(script(tmp_path, text), [], 0, isolated)
        assert problem.endswith("EOFError: EOF when reading a line")


def test_a_script_that_dies_says_by_what(tmp_path):
    _, problem = limits.run_limited(script(tmp_path, "import os\nos.kill(os.getpid(), 9)"), [], 0)
    assert problem == "ended by SIGKILL"


def with_nan(folder):
    path = folder / "agents" / "solver" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 1)
    tensors[name][0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    (folder / "weights.json").unlink()  # which would tell


def with_a_broken_tokenizer(folder):
    (folder / "agents" / "solver" / "tokenizer.json").write_text("{}")


def with_a_link_of_another_width(folder):
    shutil.copy(folder / "links" / "planner.safetensors", folder / "links" / "critic.safetensors")


def with_a_template_of_every_message_twice(folder):
    text = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    (folder / "agents" / "planner" / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize(
    "breaking",
    [
        *(pytest.param(breaking, marks=pytest.mark.slow) for breaking in (
            with_nan, with_a_broken_tokenizer, with_a_link_of_another_width, with_a_template_of_every_message_twice)),
    ],
)  # fmt: skip
def test_a_system_that_cannot_answer_is_not_ready(breaking, folder, capsys):
    breaking(folder)
    with pytest.raises(RecursiveMASError):
        load_mas_system(folder)
    assert cli.main(["check", str(folder)]) == 1
    assert "does not load and answer: " in capsys.readouterr().out


def test_the_check_says_that_a_system_answers_and_runs_no_code_of_it(folder, owned):
    for path in folder.glob("*.py"):
        path.write_text(f"{OWNED}# {folder}\n{path.read_text()}")
    report = check_system(str(folder))
    assert report["ready"] and report["answers"] and report["problem"] is None and not owned.exists()


# What is staged


@pytest.fixture(scope="module")
def staged_once(chain_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust") / "staged"
    stage.stage(str(chain_folder), folder, plan.Options("my-org", "Tiny", QUESTION))
    return folder


@pytest.fixture
def staged(staged_once, tmp_path):
    return shutil.copytree(staged_once, tmp_path / "staged")


def kinds(staged):
    return {repository.name: repository.kind for repository in plan.load_plan(staged).repositories}


def append(name, text=OWNED):
    return lambda staged: (staged / name).open("a").write(text)


def name_code(name, **fields):
    return lambda staged: edit(staged / name, **fields)


def add(name, text=OWNED):
    def change(staged):
        (staged / name).parent.mkdir(exist_ok=True)
        (staged / name).write_text(text)

    return change


FOREIGN = {
    "an agent's code": append("Tiny-Planner/agent_recursivemas.py"),
    "code that is imported": append("Tiny-Critic/links_recursivemas.py", "# a comment"),
    "code of links": append("Tiny-Outerlinks/links_recursivemas.py"),
    "the composite's code": append("Tiny/modeling_recursivemas.py"),
    "the front door": append("Tiny/system_loader.py"),
    "the package": append("Tiny/__init__.py"),
    "a module more": add("Tiny/evil.py"),
    "a module in a folder": add("Tiny/custom_generate/generate.py"),
    "another entry": name_code("Tiny/config.json", auto_map={"AutoModel": "evil--modeling.Model"}),
    "an entry of an agent": name_code("Tiny-Critic/config.json", auto_map={"AutoModelForCausalLM": "x--y.Z"}),
    "a tokenizer's entry": name_code("Tiny/tokenizer_config.json", auto_map={"AutoTokenizer": ["x--y.Z", None]}),
    "a generate": name_code("Tiny/generation_config.json", custom_generate="somebody/else"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_staged_code_that_is_not_the_clones_is_found_and_does_not_run(kind, staged, owned, monkeypatch):
    assert all(code.foreign_code(staged / name, each) == [] for name, each in kinds(staged).items())
    FOREIGN[kind](staged)
    found = {name for name, each in kinds(staged).items() if code.foreign_code(staged / name, each)}
    assert len(found) == 1
    loaded = []
    monkeypatch.setattr(check, "load_alone", lambda _, repository, __: (loaded.append(repository.name), ({}, None))[1])
    monkeypatch.setattr(check, "expected_of", lambda *_: {})
    problems = {finding.repository.name for finding in check.check(staged) if finding.problems}
    assert problems == found and found.isdisjoint(loaded) and len(loaded) == len(kinds(staged)) - 1
    assert not owned.exists() and not (staged / files.CHECKED).exists()


SPOILT = {
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "does not load by itself"),
    "template": (lambda f: (f / "chat_template.jinja").write_text("{{ 1/0 }}"), "division by zero"),
    "other words": (lambda f: (f / "chat_template.jinja").write_text("Hello"), "other ids of a prompt"),
    "settings": (lambda f: edit(f / "generation_config.json", do_sample=True, temperature=5.0), "other generation"),
}


@pytest.mark.parametrize("kind", ["settings", *(pytest.param(k, marks=pytest.mark.slow) for k in list(SPOILT)[:3])])
@pytest.mark.slow
def test_the_composites_own_tokenizer_template_and_settings_are_tried(kind, staged, chain):
    change, message = SPOILT[kind]
    change(staged / "Tiny")
    whole = plan.load_plan(staged)
    found, error = check.load_alone(whole, whole.composite, staged)
    problems = [error] if error else check.differences(check.expected_of(chain, whole, whole.composite), found)
    assert len(problems) == 1 and message in problems[0]


def checked_without_loading(staged, monkeypatch):
    monkeypatch.setattr(check, "load_alone", lambda *_: ({}, None))
    monkeypatch.setattr(check, "expected_of", lambda *_: {})
    assert not any(finding.problems for finding in check.check(staged))


def other_namespace(staged):
    text = (staged / files.PLAN).read_text()
    (staged / files.PLAN).write_text(text.replace("my-org", "somebody"))


@pytest.mark.parametrize("change", [append("Tiny/README.md", "x"), append("Tiny-Planner/config.json", " "),
                                    add("Tiny/more.md"), other_namespace])  # fmt: skip
def test_what_changed_after_the_check_is_not_pushed(change, staged, monkeypatch):
    checked_without_loading(staged, monkeypatch)
    push._require_check(plan.load_plan(staged), staged)
    change(staged)
    with pytest.raises(InputError, match="has not passed the check"):
        push._require_check(plan.load_plan(staged), staged)


def test_what_changes_while_it_is_checked_does_not_pass(staged, monkeypatch):
    monkeypatch.setattr(check, "expected_of", lambda *_: {})
    monkeypatch.setattr(check, "load_alone", lambda *_: (append("Tiny/README.md", "x")(staged), ({}, None))[1])
    problems = [problem for finding in check.check(staged) for problem in finding.problems]
    assert "changed while it was checked" in problems and not (staged / files.CHECKED).exists()


@pytest.mark.parametrize("name", ["org/../private", "../private", "org/..", "/etc", "org/a/b", "org\\x", "", 5])
def test_a_plan_names_no_folder_but_its_own(name, staged):
    content = json.loads((staged / files.PLAN).read_text())
    content["repositories"][0]["id"] = name
    (staged / files.PLAN).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"(?s)plan\.json"):
        plan.load_plan(staged)


@pytest.mark.parametrize("field", ["repositories", "question", "system"])
def test_a_plan_that_lacks_something_is_refused(field, staged):
    content = json.loads((staged / files.PLAN).read_text())
    del content[field]
    (staged / files.PLAN).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"(?s)lacks `{field}`.*plan\\.json"):
        plan.load_plan(staged)


def test_a_repository_of_a_plan_is_no_link_to_another_folder(staged, tmp_path):
    shutil.move(staged / "Tiny", tmp_path / "elsewhere")
    (staged / "Tiny").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        plan.load_plan(staged)


def test_the_promises_name_tests_that_exist():
    root = Path(__file__).parents[1]
    text = (root / "SECURITY.md").read_text(encoding="utf-8")
    named = {word.strip("`") for word in text.split() if word.strip("`,.").startswith("test_")}
    sources = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").glob("test_*.py"))
    assert named and [name for name in named if f"def {name.strip('`,.')}(" not in sources] == []
