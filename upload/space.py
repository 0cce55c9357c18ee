"""The page of a system as a Hub Space: its card, an app.py, what it needs, and a copy of this package's code."""

import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

from huggingface_hub import SpaceCardData

from ..errors_recursivemas import InputError
from ..prompts_recursivemas import as_inputs
from ..system_loader import ROOT
from .files import files_of
from .plan import Plan, Repository
from .scan import scan

PACKAGE = "recursivemas"
# Of this package; the systems that ship stay away.
PACKAGED = ("*.py", "*/*.py", "app.css", "inspection/*.html", "styles/*.json", "tasks/*.json")
APP = '''"""The page of {name}, see https://huggingface.co/{name}."""

import torch
from recursivemas.app import Offer, build_page, launch
from recursivemas.system_loader import load_mas_system

mas = load_mas_system("{name}", device="cuda" if torch.cuda.is_available() else "cpu")
about = "[{name}](https://huggingface.co/{name})"
examples = [{example}]
page = build_page([Offer("{name}", mas, lambda: mas, about, examples)])

if __name__ == "__main__":
    launch(page)
'''
CARD = """---
{metadata}
---

# {title}

Ask [{name}](https://huggingface.co/{name}) and see it think: its answer over latents, over text and of one agent
alone, with what each cost, and what was handed over.

While the repositories of the system are private, this Space needs a token that may read them as its secret `HF_TOKEN`.
"""


def space_of(plan: Plan) -> Repository:
    """The Space of a publication, whether it was staged or not."""
    return Repository(f"{plan.composite.id}-Space", "space", "Ask the system and see it think")


def staged_in(folder: Path, plan: Plan) -> list[Repository]:
    """The repositories in a staged folder: those of its plan, and the Space if there is one."""
    space = space_of(plan)
    return [*plan.repositories, *([space] if (folder / space.name / "app.py").is_file() else [])]


def write_space(plan: Plan, folder: Path) -> None:
    """Writes the Space of a publication into a staged folder.

    Raises:
        InputError: gradio is not installed, whose version a Space names; or a role's repository has the Space's name.
    """
    space = space_of(plan)
    if space.id.lower() in {repository.id.lower() for repository in plan.repositories}:
        raise InputError("The Space has the name of a role's repository.", where="--space", found=space.id)
    try:
        gradio = metadata.version("gradio")
        needed = [text for text in metadata.requires(PACKAGE) or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError as error:
        hint = "pip install recursivemas[app]"
        raise InputError("A Space needs more packages.", where="--space", found=error, hint=hint) from error
    place = folder / space.name
    for path in package_files():
        (place / PACKAGE / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, place / PACKAGE / path)
    (place / "app.py").write_text(app_of(plan), encoding="utf-8")
    (place / "requirements.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")
    title = plan.composite.name
    data = SpaceCardData(
        title=title,
        emoji="💭",
        colorFrom="blue",
        colorTo="indigo",
        sdk="gradio",
        sdk_version=gradio,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        short_description="Agents that think together in latents",
        license=plan.licence,
        models=[repository.id for repository in plan.repositories],
    )
    card = CARD.format(metadata=data.to_yaml(), title=title, name=plan.composite.id)
    (place / "README.md").write_text(card, encoding="utf-8")


def package_files() -> list[Path]:
    """The files of this package that go along, as paths relative to it."""
    found = (path for pattern in PACKAGED for path in ROOT.glob(pattern))
    rooms = (path for path in found if path.suffix != ".py" or (path.parent / "__init__.py").is_file())
    return sorted(path.relative_to(ROOT) for path in rooms)


def app_of(plan: Plan) -> str:
    """The app.py of a Space."""
    example = json.dumps(as_inputs(plan.question), ensure_ascii=False)
    return APP.format(name=plan.composite.id, example=example)


def space_problems(plan: Plan, folder: Path) -> list[str]:
    """What of a Space must not go out, or would run and is not this clone's code, one sentence each."""
    own = {Path(PACKAGE, path): ROOT / path for path in package_files()}
    problems = []
    for path in files_of(folder):
        there = None if (folder / path).is_symlink() else (folder / path).read_bytes()
        if path.parts[0] == PACKAGE:
            if path not in own or there != own[path].read_bytes():
                problems.append(f"{path}: is not this clone's code")
        elif path.suffix == ".py" and (path != Path("app.py") or there != app_of(plan).encode()):
            problems.append(f"{path}: is not the page that `stage` wrote")
    ours = tuple(map(str, own))  # public as it is, and names places in its messages
    return problems + [problem for problem in scan(folder) if not problem.startswith(ours)]
