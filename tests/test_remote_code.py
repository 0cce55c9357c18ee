"""The repository as a Hugging Face custom model repository: what is copied, what is imported, from where it loads."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from recursivemas import system_loader
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.dynamic_module_utils import get_relative_import_files

ROOT = Path(system_loader.__file__).resolve().parent
ALLOWED = {"torch", "transformers", "safetensors", "huggingface_hub", "tokenizers", "numpy"} | sys.stdlib_module_names


def closure():
    entry = ROOT / "modeling_recursivemas.py"
    return sorted({entry, *map(Path, get_relative_import_files(entry))})


def test_every_remote_module_is_reached_from_the_entry():
    assert {path.name for path in closure()} == {path.name for path in ROOT.glob("*_recursivemas.py")}


@pytest.mark.parametrize("path", closure(), ids=lambda path: path.stem)
def test_remote_code_imports_only_what_a_fresh_machine_has(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert all(alias.name.partition(".")[0] in ALLOWED for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # a sibling: `from .sibling import Name`, at the start of a line
                assert node.level == 1 and node.module and "." not in node.module and node.col_offset == 0
                assert (ROOT / f"{node.module}.py").exists()
            else:
                assert node.module.partition(".")[0] in ALLOWED


def test_no_text_line_is_taken_for_an_import():
    """transformers finds relative imports with a regular expression that reads docstrings too."""
    for path in closure():
        for needed in get_relative_import_files(path):
            assert Path(needed).exists(), f"{path.name} mentions {needed}"


# The floors of the workshop: a room imports remote code, itself, and rooms that stand before it here.
ROOMS = (
    *("tasks", "sandbox", "toolbox", "distributed", "system_loader", "fetch", "evaluation", "exams", "training"),
    *("small_systems", "inspection", "experiments", "release", "upload", "serving", "serve"),
    *("benchmarks", "mcp_server", "app", "cli", "docs"),
)


def relative_imports(path):
    """(level, dotted name) of every relative import of a module, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield node.level, name


def test_every_folder_of_code_is_a_room():
    folders = {
        path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py") if "site-packages" not in str(path)
    }
    others = {"tests", "runs", "build", ".venv", "systems"}  # the last holds links to the root's modules
    assert folders - others == {room for room in ROOMS if (ROOT / room).is_dir()}


def test_workshop_rooms_import_only_downwards():
    for number, room in enumerate(ROOMS):
        for path in [ROOT / f"{room}.py", *(ROOT / room).rglob("*.py")]:
            for level, name in relative_imports(path) if path.exists() else ():
                of_a_room = not name.endswith("_recursivemas") and name != "__version__"
                if level == len(path.relative_to(ROOT).parts) and of_a_room:
                    reached = name.partition(".")[0]
                    assert reached in ROOMS[:number], f"{path.relative_to(ROOT)} imports {reached}"


def test_no_code_but_the_front_door_names_the_package_or_transformers_copy():
    """An import by another name than the relative one would make a second copy of every class."""
    for path in [path for room in ROOMS for path in [ROOT / f"{room}.py", *(ROOT / room).rglob("*.py")]]:
        for node in ast.walk(ast.parse(path.read_text())) if path.exists() and path.stem != "system_loader" else ():
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                assert name.partition(".")[0] not in ("recursivemas", "transformers_modules", "system_loader"), path


def test_the_tree_that_contributors_read_is_the_floors():
    """Remote code stands from the top floor to the ground, and imports only downwards; rooms stand in their order."""
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Three walks")[0]
    floors = re.findall(r"^(\w+_recursivemas)\.py ", tree, re.M)
    assert sorted(floors) == sorted(path.stem for path in closure())
    for path in closure():
        below = set(floors[floors.index(path.stem) + 1 :])
        assert {name for _, name in relative_imports(path)} <= below, path.name
    rooms = [name for name in re.findall(r"^([a-z_]+)(?:/|\.py)[ ,]", tree, re.M) if name in ROOMS]
    assert rooms == list(ROOMS)


def test_a_class_has_one_identity_however_the_user_came_in():
    """Through AutoModel on the clone, through the loader, and through the loader as a package."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import system_loader\n"
        "from recursivemas import system_loader as packaged\n"
        "from transformers.dynamic_module_utils import get_class_from_dynamic_module as get\n"
        "names = ('RecursiveMASModel', 'RecursiveMASConfig')\n"
        "auto = [get(f'modeling_recursivemas.{name}', sys.argv[1]) for name in names]\n"
        "assert auto == [system_loader.RecursiveMASModel, system_loader.RecursiveMASConfig]\n"
        "assert auto == [packaged.RecursiveMASModel, packaged.RecursiveMASConfig]\n"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT)], check=True)


def test_auto_classes_load_a_system(chain_folder, chain):
    config = AutoConfig.from_pretrained(chain_folder, trust_remote_code=True)
    assert config.model_type == "recursivemas"
    expected = chain.solve(["Why?"], max_new_tokens=6)[0].text
    for auto in (AutoModel, AutoModelForCausalLM):
        mas = auto.from_pretrained(chain_folder, trust_remote_code=True)
        assert mas.solve(["Why?"], max_new_tokens=6)[0].text == expected
        assert mas.can_generate()


FRESH = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder = sys.argv[1]
mas = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
pipe = pipeline("text-generation", model=folder, trust_remote_code=True)
inputs = tokenizer(["Why?"], return_tensors="pt")
ids = mas.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1]:]
print(json.dumps([
    mas.solve(["Why?"], max_new_tokens=6)[0].text,
    tokenizer.decode(ids, skip_special_tokens=True),
    pipe("Why?", max_new_tokens=6, return_full_text=False)[0]["generated_text"],
]))
"""


def test_a_fresh_process_with_an_empty_cache_loads_from_anywhere(chain_folder, chain, tmp_path):
    """A copy of the saved repository, another working directory, an empty cache, no network, no installed package."""
    folder = shutil.copytree(chain_folder, tmp_path / "a-published.system")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", FRESH, str(folder)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = chain.solve(["Why?"], max_new_tokens=6)[0].text
    assert json.loads(result.stdout.splitlines()[-1]) == [expected] * 3


def test_the_oldest_versions_are_the_lower_bounds():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tested = ("train", "plots", "gguf", "benchmark", "test")
    texts = [*project["dependencies"], *(text for extra in tested for text in extras[extra])]
    needed = [Requirement(text) for text in texts]
    bounds = {r.name: Version(s.version) for r in needed for s in r.specifier if s.operator == ">="}
    lines = [line for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {name: Version(version) for name, version in (line.split("==") for line in lines)}
    tools = {"torch", "ruff", "mypy"}  # torch: see the file; the others check the code and do not run it
    assert pins == {name: version for name, version in bounds.items() if name not in tools}


@pytest.mark.slow
def test_type_checkers_know_what_the_doors_give(tmp_path):
    (tmp_path / "user.py").write_text(
        "from recursivemas import load_mas_system\n"
        "from recursivemas.links_recursivemas import build_link\n"
        "mas = load_mas_system()\n"
        "reveal_type(mas)\n"
        "reveal_type(mas.solve('Why?'))\n"
        "reveal_type(mas.agents['planner'].hidden_size)\n"
        "reveal_type(build_link({}, where='', in_features=1, out_features=2))\n"
    )
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "user.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = re.findall(r'Revealed type is "(.*)"', result.stdout)
    assert found == [
        "recursivemas.modeling_recursivemas.RecursiveMASModel",
        "list[recursivemas.solutions_recursivemas.Solution]",
        "int",
        "recursivemas.links_recursivemas.OuterLink",
    ], result.stdout
