"""A system is a model repository wherever it lies: unmodified tools load it, and everything reaches its agents."""

import inspect
import shutil
from pathlib import Path

import pytest
import torch
from recursivemas.sources_recursivemas import write_code
from recursivemas.system_loader import ROOT, load_mas_system
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

SYSTEMS = sorted(path.parent for path in ROOT.glob("systems/*/config.json"))
CODE = sorted(path.name for path in ROOT.glob("*_recursivemas.py"))


# Every folder loads as it lies


@pytest.mark.parametrize("folder", SYSTEMS, ids=lambda folder: folder.name)
def test_every_shipped_system_holds_a_link_to_each_file_of_the_code(folder):
    """Copies of none: after a module was added, removed or renamed, `make code-links`."""
    links = {path.name: str(path.readlink()) if path.is_symlink() else "a file" for path in folder.glob("*.py")}
    assert links == {name: f"../../{name}" for name in CODE}, "run `make code-links`"


@pytest.mark.parametrize("name", ["distillation", "mixture", "deliberation"])
def test_a_shipped_system_loads_by_the_auto_classes_as_it_lies(name):
    folder, question = str(ROOT / "systems" / name), "Why?"
    pipe = pipeline("text-generation", model=folder, trust_remote_code=True)
    expected = load_mas_system(folder).solve([question], num_rounds=1)[0].text
    assert pipe(question, return_full_text=False, num_rounds=1)[0]["generated_text"] == expected
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer([question], return_tensors="pt")
    ids = pipe.model.generate(**inputs, num_rounds=1)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) == expected


def test_code_is_never_written_through_a_link(tmp_path):
    """A folder of links to the modules, one of which has changed since: the module that it points to stays."""
    (tmp_path / "root").mkdir()
    (tmp_path / "system").mkdir()
    for name in CODE:
        shutil.copy(ROOT / name, tmp_path / "root")
        (tmp_path / "system" / name).symlink_to(f"../root/{name}")
    (tmp_path / "root" / "errors_recursivemas.py").write_text("older\n")
    write_code(tmp_path / "system", "modeling_recursivemas.py")
    assert (tmp_path / "root" / "errors_recursivemas.py").read_text() == "older\n"
    assert [path.name for path in sorted(tmp_path.glob("system/*")) if not path.is_symlink()] == [
        "errors_recursivemas.py"
    ]
    assert (tmp_path / "system" / "errors_recursivemas.py").read_bytes() == (
        ROOT / "errors_recursivemas.py"
    ).read_bytes()


def test_the_unmodified_server_of_transformers_loads_a_system(chain_folder):
    serving = pytest.importorskip("transformers.cli.serving.model_manager")
    manager = serving.ModelManager(device="cpu", trust_remote_code=True, attn_implementation="eager")
    mas = manager._load_model(f"{chain_folder}@main")
    assert type(mas).__name__ == "RecursiveMASModel"
