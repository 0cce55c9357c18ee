"""Results say where they come from, stay readable, and can be drawn; plots say which package they need."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from recursivemas import cli
from recursivemas.errors_recursivemas import InputError
from recursivemas.evaluation import plots, results
from recursivemas.system_loader import ROOT

STORED = [
    path
    for path in sorted((ROOT / "evaluation" / "results").glob("*.json"))
    if "figures" in json.loads(path.read_text(encoding="utf-8"))
]
FIGURE = {
    "mode": "latent", "num_rounds": 1, "accuracy": 0.5, "interval": [0.1, 0.9], "seconds": 0.1,
    "prompt_tokens": 9.0, "latent_positions": 4.0, "new_tokens": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_what_was_stored_before_is_shown_and_drawn_as_it_stands(path, tmp_path, capsys):
    copy = shutil.copy(path, tmp_path)
    assert cli.main(["evaluate", "--from", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text(encoding="utf-8"))
    assert (tmp_path / f"{path.stem}.png").is_file() == path.with_suffix(".png").is_file()


@pytest.mark.parametrize("groups", [["2", "10", "1"], ["0.5", "-1"], ["algebra", "geometry"], ["1", "hard"]])
def test_groups_are_numbers_in_order_or_names(groups, tmp_path):
    figures = [{**FIGURE, "num_rounds": r, "by_group": {name: [1, 2] for name in groups}} for r in (1, 2)]
    plots.plot_evaluation(figures, "subject", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_without_matplotlib_results_are_stored_and_the_missing_package_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"recursivemas\[plots\]"):
        plots.new_figure(1, 1)
    stored = {"date": "2026-01-31", "settings": {"group_by": None}, "figures": [{**FIGURE, "by_group": {}}] * 2}
    results.write_results(stored, tmp_path / "folder" / "results.json")
    assert cli.main(["evaluate", "--from", str(tmp_path / "folder" / "results.json")]) == 0
    printed = capsys.readouterr()
    assert "recursivemas[plots]" in printed.err and "latent" in printed.out


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with one commit in place of this one."""
    folder = tmp_path / "clone"
    (folder / "evaluation" / "results").mkdir(parents=True)
    (folder / "code.py").write_text("1")
    (folder / "evaluation" / "results" / "mine.json").write_text("{}")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(results, "ROOT", folder)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "One")
    return folder


def git(folder, *arguments):
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


def test_results_name_the_commit_and_whether_the_code_differs_from_it(clone):
    head = git(clone, "rev-parse", "HEAD").strip()
    assert results.provenance()["commit"] == head and len(head) == 40
    (clone / "new.py").write_text("not tracked")
    (clone / "evaluation" / "results" / "mine.json").write_text("measured again")
    assert results.commit() == head
    (clone / "code.py").write_text("2")
    assert results.commit() == f"{head}-dirty"


def test_outside_a_clone_there_is_no_commit(clone, monkeypatch):
    """Also where the package is installed inside of some other repository."""
    (clone / "site-packages").mkdir()
    monkeypatch.setattr(results, "ROOT", clone / "site-packages")
    assert results.commit() is None
    monkeypatch.setattr(results, "ROOT", clone)
    monkeypatch.setenv("PATH", "")
    assert results.commit() is None
