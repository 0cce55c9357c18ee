"""Licences for the cards: those that the base models' own cards state, and none where nobody states one."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import ModelCard

from ..errors_recursivemas import RecursiveMASError
from ..modeling_recursivemas import RecursiveMASModel
from ..sources_recursivemas import Source
from .plan import Options, Plan

KEYS = ("license", "license_name", "license_link")  # of a card's metadata
Licence = dict[str, str]  # entries for a card's metadata; empty where nobody states one


def agents_licences(mas: RecursiveMASModel, plan: Plan, options: Options) -> dict[str, Licence]:
    """Role -> licence of its agent or adapter: what the options say, else its base model's card or folder."""
    repositories = plan.adapters | plan.agents
    if options.licence is not None:
        return {role: {"license": options.licence} for role in repositories}
    return {
        role: stated_licence([repository.base_model, mas.agents[role].model.name_or_path])
        for role, repository in repositories.items()
    }


def common_licence(licences: Iterable[Licence]) -> Licence:
    """Of a whole: the licence of its parts where they share one; none where one of them is not known."""
    known = list(licences)
    if not known or not all(known):
        return {}
    if all(licence == known[0] for licence in known):
        return known[0]
    return {"license": "other", "license_name": "those-of-the-base-models", "license_link": "README.md"}


def stated_licence(places: Iterable[str | None]) -> Licence:
    """What the first card with a licence says, of some folders or Hub repositories; nothing where none can be read."""
    for place in places:
        try:
            path = Source(place).find("README.md") if place else None
            content = ModelCard.load(Path(path)).data.to_dict() if path else {}
        except (RecursiveMASError, ValueError, OSError):  # out of reach, or a card that is none
            continue
        if isinstance(content.get("license"), str):
            return {key: content[key] for key in KEYS if isinstance(content.get(key), str)}
    return {}
