"""What the `save_pretrained` of a system or an agent takes, and pushing what it wrote to the Hub, in one commit."""

import fnmatch
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    split_torch_state_dict_into_shards,
)
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from .errors_recursivemas import ArgumentError, CheckpointError, InputError
from .fields_recursivemas import did_you_mean, is_whole

# Of the base models' own `save_pretrained`
WEIGHT_OPTIONS = ("max_shard_size", "variant", "save_original_format", "save_peft_format")
CARD = """# {name}

{what}

```python
from transformers import pipeline

pipe = pipeline("text-generation", model="{repo_id}", trust_remote_code=True)
print(pipe([{{"role": "user", "content": "…"}}])[0]["generated_text"][-1]["content"])
```
"""


@dataclass(frozen=True)
class Push:
    """Where to push, as transformers' `push_to_hub` has it; but a new repository is private unless `private=False`."""

    repo_id: str
    commit_message: str | None = None
    commit_description: str | None = None
    private: bool | None = None
    token: bool | str | None = None
    revision: str | None = None
    create_pr: bool = False
    tags: list[str] | None = None


def save_arguments(
    kwargs: Mapping[str, Any], folder: str | os.PathLike, where: str
) -> tuple[dict[str, Any], Push | None]:
    """Keyword arguments of a `save_pretrained` -> those for the base models' own, and where to push.

    Args:
        kwargs: what the caller gave beside the named ones.
        folder: where it is saved, whose name is the repository's unless `repo_id` says another.
        where: the function's name, for messages.

    Raises:
        ArgumentError: an argument that is unknown, or means something only where it is pushed.
        InputError: the Hub does not take the repository's name.
    """
    given = {name: value for name, value in kwargs.items() if value is not None}
    if given.pop("safe_serialization", True) is not True:
        raise ArgumentError("Weights are saved as safetensors.", where=where, found="safe_serialization=False")
    wanted = given.pop("push_to_hub", False)
    options = {name: given.pop(name) for name in WEIGHT_OPTIONS if name in given}
    if not str(options.get("variant", "x")).replace("-", "_").isidentifier():
        raise ArgumentError(
            "A variant is a name.", where=where, found=options["variant"], expected="fp16, for example"
        )
    if "max_shard_size" in options:
        _validate_size(options["max_shard_size"])
    names = [field.name for field in fields(Push)]
    pushing = {name: given.pop(name) for name in names if name in given}
    if given:
        known = [*names, *WEIGHT_OPTIONS, "push_to_hub", "state_dict", "copy_agents"]
        name = next(iter(given))
        raise ArgumentError("Unknown argument.", where=where, found=name, hint=did_you_mean(name, known))
    if not wanted:
        if said := [name for name in pushing if name != "token"]:
            raise ArgumentError(
                "An argument is about pushing.", where=where, found=said[0], hint="say `push_to_hub=True`, too"
            )
        return options, None
    push = Push(**{"repo_id": Path(folder).name, **pushing})
    try:
        validate_repo_id(push.repo_id)
    except HFValidationError as error:
        raise InputError(
            "The Hub does not take this name.", where="repo_id", found=error, expected="name, or namespace/name"
        ) from error
    return options, push


def _validate_size(size: Any) -> None:
    """Raises ArgumentError unless this is a size of a file of weights, as the Hub's library reads it."""
    try:
        if not isinstance(size, str) and not (is_whole(size) and size > 0):
            raise ValueError(size)
        split_torch_state_dict_into_shards({}, max_shard_size=size)
    except ValueError as error:
        expected = "a text as 5GB or 500MB, or a number of bytes"
        raise ArgumentError("This is no size.", where="max_shard_size", found=repr(size), expected=expected) from error


@contextmanager
def speaking_to_the_hub(where: str) -> Iterator[None]:
    """Turns what the client raises into one error that says what to do."""
    try:
        yield
    except (InputError, CheckpointError):
        raise
    except Exception as error:  # the client, its HTTP library and the system all raise their own
        raise CheckpointError(
            "The Hub did not take it.",
            where=where,
            found=f"{type(error).__name__}: {str(error).strip()}"[:1000],
            expected="a token that may write there (`hf auth login`), and a connection",
            hint="put that right and run the same command again; it goes on where it stopped",
        ) from error


def pushed(model: Any, repo_id: str, kwargs: Mapping[str, Any]) -> CommitInfo:
    """Saves a system or an agent to a folder of its own, and pushes that."""
    with tempfile.TemporaryDirectory() as scratch:
        return model.save_pretrained(Path(scratch, "saved"), push_to_hub=True, repo_id=repo_id or "", **kwargs)


def push_folder(folder: Path, push: Push, patterns: tuple[str, ...], what: str, base_models: list[str]) -> CommitInfo:
    """Makes the files of a save those of a repository, in one commit; what else is there stays.

    Args:
        folder: what was saved.
        push: where to.
        patterns: of the save's files, from the folder; `*` fits subfolders, too. What fits in the repository and is
            not in the folder is deleted in the same commit.
        what: one sentence for the card, which is written where the repository has none.
        base_models: for that card.

    Raises:
        CheckpointError: the Hub refuses, or the connection breaks.
    """
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    hidden = [name for name in names if any(part.startswith(".") for part in name.split("/"))]
    names = [name for name in names if name not in hidden and _fits(name, patterns)]
    api = HfApi(token=push.token)
    with speaking_to_the_hub(push.repo_id):
        private = push.private is not False
        repo_id = str(api.create_repo(push.repo_id, private=private, exist_ok=True).repo_id)
        if push.revision is not None and not push.revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=push.revision, exist_ok=True)
        there = [file.rfilename for file in api.model_info(repo_id, revision=push.revision).siblings or []]
        operations: list[Any] = [CommitOperationAdd(name, str(folder / name)) for name in names]
        operations += [CommitOperationDelete(name) for name in there if _fits(name, patterns) and name not in names]
        if (card := _card(folder, repo_id, push, what, base_models)) is not None:
            operations.append(CommitOperationAdd("README.md", card.encode()))
        return api.create_commit(
            repo_id,
            operations,
            commit_message=push.commit_message or "Upload system",
            commit_description=push.commit_description,
            revision=push.revision,
            create_pr=push.create_pr,
        )


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _card(folder: Path, repo_id: str, push: Push, what: str, base_models: list[str]) -> str | None:
    """The text of README.md to commit; `None` where the repository's own stays as it is."""
    try:
        card = ModelCard.load(repo_id, token=cast(Any, push.token))
    except EntryNotFoundError:
        if (folder / "README.md").is_file():
            card = ModelCard.load(folder / "README.md")
        else:
            data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["recursivemas"])
            data.base_model = base_models or None
            text = CARD.format(name=repo_id.rpartition("/")[2], repo_id=repo_id, what=what)
            card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
    else:
        if set(push.tags or ()) <= set(card.data.tags or ()):
            return None
    if push.tags:
        card.data.tags = [*dict.fromkeys([*(card.data.tags or []), *push.tags])]
    return str(card)
