"""The plan of a publication: what each repository is called and holds."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..bases_recursivemas import BASE_FIELDS
from ..configuration_recursivemas import RecursiveMASConfig
from ..errors_recursivemas import InputError
from ..fields_recursivemas import NOTHING, OBJECT, TEXT, TRUTH, list_of, one_of, table_of, validate_fields, whole
from ..folders_recursivemas import settle
from ..prompts_recursivemas import Question
from ..release_recursivemas import release_title
from .files import PLAN, read_json, write_json

FORMAT_VERSION = 2
REPOSITORY_FIELDS = {
    "id": TEXT,
    "kind": one_of(("agent", "adapter", "outer_links", "composite")),
    "note": TEXT,
    "role": TEXT,
    "base_model": TEXT | NOTHING,
    "shared_by": list_of(TEXT),
    "base": OBJECT | NOTHING,
}
OPTIONAL_FIELDS = ("shared_by", "base")
PLAN_FIELDS = {
    **dict.fromkeys(("system", "namespace", "style", "collection"), TEXT),
    "licence": TEXT | NOTHING,
    "question": TEXT | table_of(TEXT),
    "release_layout": TRUTH,
    "self_contained": TRUTH,
    "repositories": list_of(OBJECT),
    "format_version": whole(1, FORMAT_VERSION),
}


@dataclass(frozen=True)
class Repository:
    """One repository of a publication."""

    id: str  # `namespace/name`; its files are in the staged folder's `name/`
    kind: str  # "agent", "adapter" (of an agent), "outer_links" or "composite"; "space" beside the plan, see space.py
    note: str  # what stands beside it in the collection
    role: str = ""  # of an agent or adapter
    base_model: str | None = None  # Hub name of the model that it was made of, if it has one
    shared_by: tuple[str, ...] = ()  # of an agent: further roles of the same base
    base: dict[str, str] | None = (
        None  # of an agent or adapter: source and revision of a base model that stays on the Hub
    )

    @property
    def name(self) -> str:
        return self.id.partition("/")[2]

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.id}"


@dataclass(frozen=True)
class Plan:
    """A publication."""

    system: str  # what was staged: a folder, a Hub repository or a style, as `load_mas_system` takes it
    namespace: str  # user or organisation that gets the repositories
    style: str  # the system's collaboration style
    collection: str  # title of the style's collection
    question: Question  # the sample question of the cards, which the check runs too
    release_layout: bool  # the release's files and manifests are there too
    self_contained: bool  # the composite holds its agents and links
    licence: str | None  # identifier for the cards' metadata; `None`: those of the base models
    repositories: tuple[Repository, ...]  # agents in role order, outer links, composite: they are pushed in this order
    format_version: int = FORMAT_VERSION

    @property
    def composite(self) -> Repository:
        return self.repositories[-1]

    @property
    def outer_links(self) -> Repository:
        return self.repositories[-2]

    @property
    def agents(self) -> dict[str, Repository]:
        """Role -> repository of its base model, where it is published."""
        agents = [repository for repository in self.repositories if repository.kind == "agent"]
        return {role: repository for repository in agents for role in (repository.role, *repository.shared_by)}

    @property
    def adapters(self) -> dict[str, Repository]:
        """Role -> repository of its adapter."""
        return {repository.role: repository for repository in self.repositories if repository.kind == "adapter"}

    def save(self, folder: Path) -> None:
        write_json(folder / PLAN, dataclasses.asdict(self))


@dataclass
class Options:
    """What a person decides about a publication; see `recursivemas publish stage --help`."""

    namespace: str
    name: str
    question: Question = "What is 17 + 25?"
    collection: str | None = None
    licence: str | None = None
    release_layout: bool = False
    self_contained: bool = False
    with_weights: bool = False
    base_models: dict[str, str] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    authors: list[str] = field(default_factory=list)
    code: str | None = None
    results: list[str] = field(default_factory=list)
    space: bool = False


def make_plan(
    config: RecursiveMASConfig,
    system: str,
    options: Options,
    shared: Mapping[str, str] | None = None,
    adapted: Mapping[str, str | None] | None = None,
    places: Mapping[str, dict[str, str]] | None = None,
) -> Plan:
    """Names the repositories of a publication.

    Args:
        config: the system's.
        system: what is staged.
        options: see there.
        shared: role -> the role whose base it shares: such a role has no repository of its own, but for the release's
            layout, which knows none that do.
        adapted: role with an adapter -> the role that runs its base as it is; without one, that stays where it is.
        places: role -> source and revision of a base model that stays where it is on the Hub.

    Raises:
        InputError: a name that the Hub does not take, one name for two repositories, a base model for an unknown role,
            or a sample question that the system cannot be asked.
    """
    topology = config.topology
    config.run_settings().validate_questions([options.question], topology)
    unknown = set(options.base_models) - set(topology.roles)
    if unknown:
        raise InputError(
            "Unknown role.", where="--base-model", found=", ".join(sorted(unknown)), expected=", ".join(topology.roles)
        )
    style = config.style or options.name
    shared, adapted = {} if options.release_layout or shared is None else shared, adapted or {}
    hub = places or {}
    places = {} if options.release_layout or options.with_weights else hub
    repositories = []
    for role in topology.roles:
        if role in shared:
            continue
        base = options.base_models.get(role) or _hub_name(config.agents[role]["source"])
        if role in adapted:
            owner = adapted[role]
            _validate_adapted(role, base if owner is None else owner, options.release_layout)
            note = f"{release_title(role)}: LoRA adapter"
            name = f"{options.namespace}/{options.name}-{release_title(role)}-Adapter"
            there = hub.get(role) if owner is None else places.get(owner)
            repositories.append(Repository(name, "adapter", note, role, base, base=there))
            continue
        name = f"{options.name}-{release_title(role)}" + (f"-{base.rpartition('/')[2]}" if base else "")
        there = places.get(role)
        what = "agent with inner link" if there is None else "inner link of an agent"
        note = f"{release_title(role)}: {what}" + (f", {base}" if base else "")
        sharing = tuple(other for other in topology.roles if role in (shared.get(other), adapted.get(other)))
        repositories.append(Repository(f"{options.namespace}/{name}", "agent", note, role, base, sharing, there))
    homes = {each.role: each.base["source"] if each.base else each.id for each in repositories if each.kind == "agent"}
    owners = [adapted.get(each.role) for each in repositories]
    repositories = [
        each if owner is None else dataclasses.replace(each, base_model=homes[owner])
        for each, owner in zip(repositories, owners, strict=True)
    ]
    repositories += [
        Repository(f"{options.namespace}/{options.name}-Outerlinks", "outer_links", "Outer links between the agents"),
        Repository(f"{options.namespace}/{options.name}", "composite", "The whole system: load this one"),
    ]
    names = [repository.id.lower() for repository in repositories]
    for repository in repositories:
        if names.count(repository.id.lower()) > 1:
            raise InputError(
                "Two repositories would have one name.",
                where="the system's roles",
                found=repository.id,
                hint="rename a role in the system's config.json",
            )
        _validate_name(repository.id, "--namespace, --name")
    return Plan(
        system=system,
        namespace=options.namespace,
        style=style,
        collection=options.collection or f"{release_title(style.partition('_')[0])}-Style RecursiveMAS",
        repositories=tuple(repositories),
        **{name: getattr(options, name) for name in ("question", "release_layout", "self_contained", "licence")},
    )


def _validate_adapted(role: str, base: str | None, release_layout: bool) -> None:
    """Raises InputError where an adapter would be published without a place for its base."""
    if base is None or release_layout:
        raise InputError(
            "An adapter needs a published base, and the public release's layout knows no adapters.",
            where=f"agent {role}",
            found="--release-layout" if release_layout else "no role that runs the base as it is",
            hint="publish the base first and name its repository as `source`, or stage without --release-layout",
        )


def _validate_name(name: str, where: str) -> None:
    """Raises InputError unless the Hub takes the name of a repository, `namespace/name`."""
    try:
        validate_repo_id(name)
        right = name.count("/") == 1
    except HFValidationError:
        right = False
    if not right:
        raise InputError(
            "The Hub does not take this name.",
            where=where,
            found=name,
            expected="namespace/name of letters, digits, '-', '_' and '.', at most 96 characters",
        )


def _hub_name(source: str) -> str | None:
    """The Hub repository that an agent's `source` is, or `None` for a folder."""
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith(("agents/", "./", "../"))
    return source if is_name and not Path(source).exists() else None


def load_plan(folder: Path) -> Plan:
    """The plan of a staged folder.

    Raises:
        InputError: the folder was not staged, or not completely; or its plan names a folder outside of it.
    """
    settle(folder)
    content = read_json(folder / PLAN)
    if content is None or content.get("format_version") != FORMAT_VERSION:
        raise InputError(
            "This is no staged system.",
            where=folder,
            found="no plan.json" if content is None else f"format version {content.get('format_version')}",
            expected=f"a folder that `recursivemas publish stage` wrote, format version {FORMAT_VERSION}",
        )
    where = str(folder / PLAN)
    validate_fields(content, PLAN_FIELDS, where, InputError, required=PLAN_FIELDS)
    for index, entry in enumerate(content["repositories"], start=1):
        place = f"{where}, repositories, number {index}"
        required = [name for name in REPOSITORY_FIELDS if name not in OPTIONAL_FIELDS]
        validate_fields(entry, REPOSITORY_FIELDS, place, InputError, required=required)
        if (base := entry.get("base")) is not None:
            validate_fields(base, BASE_FIELDS, f"{place}, base", InputError, required=BASE_FIELDS)
    kinds = [entry["kind"] for entry in content["repositories"]]
    if kinds[-2:] != ["outer_links", "composite"] or not {"agent", "adapter"}.issuperset(kinds[:-2]):
        expected = "the agents and adapters, the outer links, the composite"
        raise InputError("A plan has the wrong repositories.", where=where, found=", ".join(kinds), expected=expected)
    for entry in content["repositories"]:
        _validate_name(entry["id"], where)
    plan = Plan(**{**content, "repositories": tuple(Repository(**entry) for entry in content["repositories"])})
    for repository in plan.repositories:
        if (folder / repository.name).is_symlink():
            what = "A staged repository is a symbolic link."
            raise InputError(what, where=folder / repository.name, hint="stage the system again")
    return plan
