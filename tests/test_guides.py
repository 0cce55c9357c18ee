"""The guides keep up with the code: reference, messages, links, and the notebook."""

import ast
import json
import re
import tempfile

import pytest
from recursivemas import errors_recursivemas
from recursivemas.docs.reference import API, PAGE, page
from recursivemas.system_loader import ROOT
from test_remote_code import ROOMS


def test_the_reference_is_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "the code says something else by now: make reference"


def test_the_reference_says_something_of_every_name():
    """Each heading has a text below its signature, so that no docstring is lost on the way."""
    text = page()
    parts = text.partition("## Styles")[0].split("\n#### ")[1:]
    names = {part.partition("\n")[0].strip("`") for part in parts}
    assert {name.removesuffix("*") for _, group in API.values() for name in group} <= names
    assert {".from_pretrained", ".solve", ".generate", ".save_pretrained", ".push_to_hub", ".set_link"} <= names
    for part in parts:
        assert part.partition("\n")[2].rpartition("```\n")[2].strip(), part


def spelled(node):
    """The texts that an expression can be, with … for what is only known when it runs."""
    if isinstance(node, ast.IfExp):
        return spelled(node.body) | spelled(node.orelse)
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
    return {re.sub("…[ …]*…", "…", text)}


def raised():
    """(what it says, class) of every error that the code makes; no class where the caller chooses it."""
    for path in [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name):
                name = node.func.id
                yield from ((text, name) for text in spelled(node.args[0]) if re.fullmatch(r"\w+Error|error", name))


def test_every_message_of_the_troubleshooting_guide_stands_in_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    entries = re.findall(r"^### `(.+)`\n\n(?:`(\w+)`\. )?", text, re.M)
    said = set(raised())
    assert not [each for each in entries if each not in said and (each[0], "error") not in said]
    assert len(entries) == len(dict(entries)) == text.count("\n### ")
    kinds = {name for name, value in vars(errors_recursivemas).items() if isinstance(value, type)}
    assert kinds - {"RecursiveMASError"} <= {kind for _, kind in entries}


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_of_the_guides_lead_somewhere(document):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", document.read_text(encoding="utf-8")):
        path = (document.parent / target) if target else document
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            known = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, (target, anchor)


@pytest.mark.slow  # in `make documents`
def test_the_notebook_runs_and_shows_what_it_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # it may be anywhere
    notebook = json.loads((ROOT / "docs" / "first-steps.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells), "store it without outputs"
    names = {"__name__": "__main__"}
    for cell in cells:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    shown = capsys.readouterr().out
    assert "1 rounds: 2+1*3" in shown and "2 rounds: 9" in shown and "round 2, critic to solver: 9" in shown
    assert names["right"] == {None: 8, "noise": 0, "other_question": 0}
    assert names["losses"][-1] < 0.8 * names["losses"][0]
    assert names["result"].text in names["result"]._repr_html_()
