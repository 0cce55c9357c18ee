"""Pushing: the network part. Says what it would do unless told to do it; a second run goes on where one stopped."""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, RepoCard, SpaceInfo
from huggingface_hub.errors import RepositoryNotFoundError
from transformers.utils import logging

from ..errors_recursivemas import InputError
from ..pushing_recursivemas import speaking_to_the_hub
from ..stamps_recursivemas import file_digest
from .files import CHECKED, PLAN, PUSHED, files_of, fingerprint, read_json, write_json
from .plan import Plan, Repository, load_plan
from .space import staged_in

GIT_ATTRIBUTES, CARD = ".gitattributes", "README.md"  # the first is the Hub's own
NOTE_LIMIT, DESCRIPTION_LIMIT = 500, 150


@dataclass
class Step:
    """One step of a push."""

    target: str  # repository or collection
    action: str  # "create" or "update"
    detail: str  # commit, address, or what would be sent


def push(folder: str | Path, yes: bool = False, public: bool = False, overwrite: bool = False) -> list[Step]:
    """Pushes a staged and checked system: agents, outer links, composite, then the collection.

    Every repository changes in one commit, and the composite, which names the commits of the others, comes last: what
    is visible is complete. Weights that an interrupted run has already sent are not sent again.

    Args:
        yes: do it; otherwise only read, and say what would be done.
        public: new repositories and a new collection are public; otherwise private.
        overwrite: also write into repositories that exist and were not created from this folder.

    Raises:
        InputError: not staged, not checked, or a repository belongs to something else.
        CheckpointError: the Hub refused, or the connection broke.
    """
    folder = Path(folder)
    plan = load_plan(folder)
    _require_check(plan, folder)
    api = HfApi()
    record = read_json(folder / PUSHED) or {}
    heads = {}
    repositories = staged_in(folder, plan)
    for repository in repositories:
        with speaking_to_the_hub(repository.id):
            heads[repository.id] = _head(api, repository, record, overwrite)
    if not yes:
        return _intentions(plan, folder, heads, public)
    for repository in repositories:
        with speaking_to_the_hub(f"{repository.id}, README.md"):
            RepoCard.load(folder / repository.name / "README.md").validate(_repo_type(repository))
    steps: list[Step] = []
    commits: dict[str, str] = {}
    for repository in logging.tqdm(repositories, desc="Pushing", unit="repository", leave=False):
        with speaking_to_the_hub(repository.id):
            _require_check(plan, folder)  # the push may take long
            action = "update" if heads[repository.id] else "create"
            if action == "create":
                sdk = "gradio" if repository.kind == "space" else None
                kind = _repo_type(repository)
                api.create_repo(repository.id, repo_type=kind, private=not public, space_sdk=sdk)
                record[repository.id] = {"created": True}
                write_json(folder / PUSHED, record)
            known = {} if overwrite else record.get(repository.id, {})
            edited = heads[repository.id] is not None and _edited(api, repository, known)
            commits[repository.id] = commit = _upload(api, plan, repository, folder, commits, known, edited)
            card = known.get("card") if edited else file_digest(folder / repository.name / CARD)
            names = [path.as_posix() for path in files_of(folder / repository.name)]
            record.setdefault(repository.id, {}).update({"commit": commit, "card": card, "files": names})
            write_json(folder / PUSHED, record)
            kept = "; README.md stays as it was edited on the website" if edited else ""
            steps.append(Step(repository.id, action, commit + kept))
    with speaking_to_the_hub(f"collection {plan.collection}"):
        steps.append(update_collection(api, plan, public))
    return steps


def _require_check(plan: Plan, folder: Path) -> None:
    checked = read_json(folder / CHECKED) or {}
    for name in (PLAN, *(repository.name for repository in staged_in(folder, plan))):
        if checked.get(name) != fingerprint(folder / name):
            raise InputError(
                "This has not passed the check.",
                where=folder / name,
                found="changed since the check" if name in checked else "not checked",
                hint=f"run `recursivemas publish check {folder}`",
            )


def _head(api: HfApi, repository: Repository, record: dict, overwrite: bool) -> str | None:
    """The commit that a repository stands at; `None` where there is no repository.

    Raises:
        InputError: it exists, holds something, and was not created from this folder.
    """
    try:
        info = _info(api, repository)
    except RepositoryNotFoundError:
        return None
    files = {file.rfilename for file in info.siblings or []} - {GIT_ATTRIBUTES}
    if not files:  # nobody's yet, or created by a run that broke off at once
        record[repository.id] = {"created": True}
    elif not record.get(repository.id, {}).get("created") and not overwrite:
        raise InputError(
            "The repository exists, and was not created from this staged folder.",
            where=repository.id,
            found=f"{len(files)} files, for example {sorted(files)[0]}",
            hint="stage under another name, or push with --overwrite to replace its files",
        )
    return info.sha


def _intentions(plan: Plan, folder: Path, heads: dict[str, str | None], public: bool) -> list[Step]:
    steps = []
    for repository in staged_in(folder, plan):
        files = files_of(folder / repository.name)
        size = sum((folder / repository.name / file).stat().st_size for file in files)
        action, sight = ("update", "") if heads[repository.id] else ("create", ", public" if public else ", private")
        steps.append(Step(repository.id, action, f"{len(files)} files, {size / 1e6:.1f} MB{sight}"))
    detail = f"{len(plan.repositories)} items"
    return [*steps, Step(f"collection {plan.collection} of {plan.namespace}", "create or update", detail)]


def _edited(api: HfApi, repository: Repository, known: dict) -> bool:
    """Whether the card of a repository is another than the one that was pushed there last."""
    if known.get("card") is None:
        return False
    info = _info(api, repository)
    if CARD not in {file.rfilename for file in info.siblings or []}:
        return False
    path = api.hf_hub_download(repository.id, CARD, revision=info.sha, repo_type=_repo_type(repository))
    return file_digest(Path(path)) != known["card"]


def _upload(
    api: HfApi,
    plan: Plan,
    repository: Repository,
    folder: Path,
    commits: dict[str, str],
    known: dict,
    edited: bool,
) -> str:
    """Makes a repository's files those of the staged folder, in one commit; returns the commit.

    Of what is there besides, that goes which an earlier push has put there; `known` is the record of it. A card that
    was edited on the website stays.
    """
    local = folder / repository.name
    operations: list = []
    for path in files_of(local):
        if edited and path.as_posix() == CARD:
            continue
        content: str | bytes = str(local / path)
        if repository == plan.composite and path.as_posix() == "config.json":
            content = pinned((local / path).read_text(encoding="utf-8"), commits)
        operations.append(CommitOperationAdd(path.as_posix(), content))
    names = {path.as_posix() for path in files_of(local)} | {GIT_ATTRIBUTES}
    info = _info(api, repository)
    stale = {file.rfilename for file in info.siblings or []} - names
    if "files" in known:
        stale &= set(known["files"])
    operations += [CommitOperationDelete(name) for name in sorted(stale)]
    # The parent makes the Hub refuse the commit if somebody else wrote in between.
    message = f"{plan.style} system: {repository.note}"
    kind = _repo_type(repository)
    commit = api.create_commit(
        repository.id, operations, commit_message=message, parent_commit=info.sha, repo_type=kind
    )
    return commit.oid


def _info(api: HfApi, repository: Repository) -> ModelInfo | SpaceInfo:
    return api.space_info(repository.id) if repository.kind == "space" else api.model_info(repository.id)


def _repo_type(repository: Repository) -> str:
    return "space" if repository.kind == "space" else "model"


def pinned(config: str, commits: dict[str, str]) -> bytes:
    """The composite's config.json, with the commit of every repository that it references."""

    def pin(entry: dict) -> dict:
        if entry.get("source") in commits:
            entry["revision"] = commits[entry["source"]]
        return entry

    return (json.dumps(json.loads(config, object_hook=pin), indent=2, ensure_ascii=False) + "\n").encode()


def update_collection(api: HfApi, plan: Plan, public: bool) -> Step:
    """Creates or completes the style's collection: the repositories in role order, with notes.

    Items of other systems of the style stay where they are. A second call changes nothing.
    """
    description = f"{plan.style} systems: agents that hand over latent thoughts"[:DESCRIPTION_LIMIT]
    collection = api.create_collection(
        plan.collection, namespace=plan.namespace, description=description, private=not public, exists_ok=True
    )
    slug, fresh = collection.slug, not collection.items
    notes = {repository.id: repository.note[:NOTE_LIMIT] for repository in plan.repositories}
    present = {item.item_id: item for item in collection.items if item.item_type == "model"}
    for repository_id, note in notes.items():
        if repository_id not in present:
            api.add_collection_item(slug, repository_id, "model", note=note, exists_ok=True)
        elif present[repository_id].note != note:
            api.update_collection_item(slug, present[repository_id].item_object_id, note=note)
    items = {item.item_id: item for item in api.get_collection(slug).items if item.item_id in notes}
    if list(items) != list(notes):
        first = min(item.position for item in items.values())
        for offset, repository_id in enumerate(notes):
            api.update_collection_item(slug, items[repository_id].item_object_id, position=first + offset)
    return Step(f"collection {plan.collection}", "create" if fresh else "update", collection.url)
