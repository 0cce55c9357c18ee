"""Where weights come from: folders of a system's repository, other repositories, native and released file formats.

Everything is read through transformers' `cached_file`, so that the Hub cache, offline mode, tokens and revisions
work as everywhere else. `.pt` files are read with `weights_only=True`; nothing is ever unpickled.
"""

import json
import os
import pickle
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .errors_recursivemas import CheckpointError

HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "proxies")
# What Auto classes and pipelines pass along, and nothing here has a use for.
IGNORED_KEYS = (
    "trust_remote_code",
    "_from_auto",
    "adapter_kwargs",
    "use_safetensors",
    "weights_only",
    "code_revision",
    "tqdm_class",
)


@dataclass(frozen=True)
class Source:
    """A folder that holds files: a local folder, or a (sub)folder of a Hub repository.

    Attributes:
        repository: local folder or `org/name`.
        subfolder: folder inside the repository, "" for its root.
        revision: branch, tag or commit; `None` is the default branch.
        hub: keyword arguments for the Hub client, out of `HUB_KEYS`.
        clones: folder with local clones, preferred to the Hub (`clones/org/name` or `clones/name`).
    """

    repository: str
    subfolder: str = ""
    revision: str | None = None
    hub: dict = field(default_factory=dict)
    clones: str | None = None

    @property
    def is_local(self) -> bool:
        return os.path.isdir(self.repository)

    def __str__(self) -> str:
        place = os.path.join(self.repository, self.subfolder) if self.subfolder else self.repository
        return place if self.revision is None or self.is_local else f"{place}@{self.revision}"

    def other(self, source: str, revision: str | None = None) -> "Source":
        """What a `source` entry in this repository's configuration points to.

        `agents/…` and `./…` are folders of this repository, an absolute path is a local folder, anything else is
        another repository on the Hub (or its clone).
        """
        if source.startswith(("agents/", "./")):
            return replace(self, subfolder=os.path.normpath(os.path.join(self.subfolder, source)))
        if not os.path.isabs(source) and self.clones:
            for candidate in (Path(self.clones, source), Path(self.clones, source.rpartition("/")[2])):
                if candidate.is_dir():
                    source = str(candidate)
                    break
        return Source(source, revision=revision, hub=self.hub, clones=self.clones)

    def file(self, name: str, required: bool = True) -> str | None:
        """Local path of a file, fetched if need be; `None` where it does not exist and is not required.

        Raises:
            CheckpointError: the repository, or a required file, is not there or cannot be reached.
        """
        try:
            path = cached_file(
                self.repository,
                name,
                subfolder=self.subfolder,
                revision=self.revision,
                _raise_exceptions_for_missing_entries=False,
                **self.hub,
            )
        except OSError as error:
            raise CheckpointError(
                "A repository cannot be read.",
                where=str(self),
                found=str(error).partition("\n")[0],
                expected=f"a folder or repository with {name}",
                hint="check the name, the revision and the token, or fetch it with `hf download`",
            ) from error
        if path is None and required:
            raise CheckpointError(
                "A file is missing.",
                where=str(self),
                found=", ".join(sorted(os.listdir(self.folder)))[:500] if self.is_local else None,
                expected=name,
                hint="fetch the repository again, or check that it is the right one",
            )
        return path

    @property
    def folder(self) -> str:
        """Path of a local source."""
        return os.path.join(self.repository, self.subfolder)

    def json(self, name: str, required: bool = True) -> dict | None:
        """A JSON object read from a file; `None` where an optional one does not exist."""
        path = self.file(name, required)
        if path is None:
            return None
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                "A file is not valid JSON.", where=f"{self}, {name}", found=error, hint="fetch the file again"
            ) from error
        if not isinstance(content, dict):
            raise CheckpointError(
                "A file holds the wrong kind of JSON.",
                where=f"{self}, {name}",
                found=type(content).__name__,
                expected="an object",
            )
        return content


def read_tensors(path: str, where: str) -> dict[str, torch.Tensor]:
    """Reads a plain state dict from a `.safetensors` or `.pt` file.

    Raises:
        CheckpointError: the file is truncated, or is a `.pt` that holds anything but name -> tensor.
    """
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            "A file of weights cannot be read.",
            where=where,
            found=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}",
            expected="safetensors, or a .pt with a plain dict of tensors (other pickles are refused)",
            hint="fetch the file again",
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(
            "A file of weights holds something else than a plain dict of tensors.",
            where=where,
            found=type(tensors).__name__ if not isinstance(tensors, dict) else ", ".join(map(str, tensors))[:200],
            expected="parameter name -> tensor",
        )
    return tensors


def write_tensors(tensors: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Writes a state dict as safetensors; its folder is created if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().contiguous().cpu() for key, value in tensors.items()}, path, {"format": "pt"})
    os.chmod(path, 0o644)  # safetensors writes for the owner only


def link_filename(name: str, task: str | None = None) -> str:
    """Native file name of a link's weights: `planner.safetensors`, and per task `planner(math).safetensors`."""
    return f"{name}.safetensors" if task is None else f"{name}({task}).safetensors"


def split_arguments(kwargs: dict) -> tuple[dict, dict]:
    """Keyword arguments of a `from_pretrained` -> those for the Hub client, and the others that mean something."""
    hub = {key: kwargs[key] for key in HUB_KEYS if kwargs.get(key) is not None}
    return hub, {key: value for key, value in kwargs.items() if key not in (*IGNORED_KEYS, *HUB_KEYS)}


def load_base_model(source: Source, role: str, **kwargs) -> PreTrainedModel:
    """Loads an agent's causal language model; every weight must be there, and nothing is re-initialised.

    Args:
        source: the agent's folder.
        role: for error messages.
        kwargs: passed to `AutoModelForCausalLM.from_pretrained` (dtype, device_map, attn_implementation, …).
    """
    source.json("config.json")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            # Of a local repository, transformers would read the root's generation_config.json for a subfolder.
            source.folder if source.is_local else source.repository,
            subfolder="" if source.is_local else source.subfolder,
            revision=source.revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they come back in the loading info, and are an error below
            # A release repository holds an `adapter_config.json` that is no PEFT adapter: look for none.
            adapter_kwargs={"subfolder": "__none__"},
            **source.hub,
            **kwargs,
        )
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            "An agent's model cannot be loaded.",
            where=f"agent {role}, {source}",
            found=f"{type(error).__name__}: {error}"[:1000],
            expected="a complete causal language model (config.json and safetensors)",
            hint="fetch the repository again, or check that this version of transformers knows the architecture",
        ) from error
    problems = {
        "missing": info["missing_keys"],
        "unexpected": info["unexpected_keys"],
        "of the wrong shape": info["mismatched_keys"],
    }
    for problem, keys in problems.items():
        if keys:
            names = sorted(str(key) for key in keys)
            raise CheckpointError(
                f"Weights of an agent are {problem}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}.",
                where=f"agent {role}, {source}",
                found=f"{len(names)} keys {problem}",
                expected=f"exactly the weights of {type(model).__name__}",
                hint="fetch the repository again, or check that config.json belongs to the weights",
            )
    for name in ("auto_map", "inner_link"):  # of an agent's own repository; the base model knows nothing of them
        vars(model.config).pop(name, None)
    return model


def load_tokenizer(source: Source, role: str) -> PreTrainedTokenizerBase:
    """Loads an agent's tokenizer, padding on the left."""
    try:
        return AutoTokenizer.from_pretrained(
            source.repository,
            subfolder=source.subfolder,
            revision=source.revision,
            padding_side="left",
            **source.hub,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "An agent's tokenizer cannot be loaded.",
            where=f"agent {role}, {source}",
            found=f"{type(error).__name__}: {error}"[:500],
            expected="tokenizer.json and tokenizer_config.json",
        ) from error


def read_link(source: Source, weights: str | dict | None, name: str, task: str | None) -> tuple[dict, str, str | None]:
    """Reads a link's weights, from wherever the `weights` entry of a configuration says.

    Args:
        source: the system's own repository.
        weights: see `RecursiveMASConfig`; `None` is `links/<name>.safetensors` of this repository.
        name: the link's name: the role for an inner link, `<source>_to_<target>` for an outer one.
        task: which entry of weights per task to take.

    Returns:
        The state dict, the file it came from, and the kind that a release manifest states (or `None`).
    """
    if isinstance(weights, dict) and "tasks" in weights:
        if task not in weights["tasks"]:
            raise CheckpointError(
                "A link has no weights for this task.",
                where=f"{source}, link {name}",
                found=task,
                expected=", ".join(sorted(weights["tasks"])),
                hint="load the system with `task=` one of these",
            )
        weights = weights["tasks"][task]
    if weights is None or isinstance(weights, str):
        filename, kind = weights or f"links/{link_filename(name)}", None
    else:
        source = source.other(weights["source"], weights.get("revision"))
        filename, kind = weights["filename"], None
    where = f"{source}, {filename}"
    return read_tensors(source.file(filename), where), where, kind
