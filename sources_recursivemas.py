"""Where weights come from: folders of a system's repository, other repositories, native and released file formats.

Everything is read through transformers' `cached_file`, so that the Hub cache, offline mode, tokens and revisions
work as everywhere else. `.pt` files are read with `weights_only=True`; nothing is ever unpickled.
"""

import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from .errors_recursivemas import CheckpointError
from .links_recursivemas import INNER_KINDS, OUTER_KINDS, fitting_kinds

# What of an agent's repository is needed
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHT_FILES = ("*.safetensors",)
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
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
        label: name for messages, where the folder's own says little.
    """

    repository: str
    subfolder: str = ""
    revision: str | None = None
    hub: dict = field(default_factory=dict)
    clones: str | None = None
    label: str | None = None

    @property
    def is_local(self) -> bool:
        return os.path.isdir(self.repository)

    def __str__(self) -> str:
        if self.label is not None:
            return self.label
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
        problem = None
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
            path, problem = None, error
        # Offline, a file that the cached commit does not hold looks like an unreachable repository.
        if path is None and self.folder is None:
            raise self._unreadable(problem) from problem
        if path is None and required:
            raise CheckpointError(
                "A file is missing.",
                where=str(self),
                found=self.listing(),
                expected=name,
                hint="fetch the repository again, or check that it is the right one",
            )
        return path

    @property
    def folder(self) -> str | None:
        """Local path: the folder itself, or the commit in the Hub cache (`None` where nothing of it is there)."""
        cached = {"cache_dir": self.hub.get("cache_dir"), "local_files_only": True}
        try:
            root = (
                self.repository
                if self.is_local
                else snapshot_download(self.repository, revision=self.revision, **cached)
            )
        except (OSError, ValueError):
            return None
        return os.path.join(root, self.subfolder)

    @property
    def commit(self) -> str | None:
        """The commit that `folder` holds, where it is one of the Hub cache."""
        match = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})(?:[/\\]|$)", self.folder or "")
        return match and match[1]

    def _unreadable(self, error: Exception | None) -> CheckpointError:
        places = "a local folder, or a repository on the Hub or in its cache"
        return CheckpointError(
            "A repository cannot be read.",
            where=str(self),
            found=str(error).partition("\n")[0] if error else "nothing",
            expected=places if self.clones is None else f"a folder in {self.clones}, {places}",
            hint="check the name, the revision and the token, or fetch it with `hf download`",
        )

    def listing(self) -> str:
        """The files that are there, for error messages."""
        folder = self.folder
        return ", ".join(sorted(os.listdir(folder)))[:500] if folder and os.path.isdir(folder) else "nothing"

    def fetch(self, patterns: tuple[str, ...]) -> "Source":
        """The same place as a local folder, with its files that fit the patterns brought into the Hub cache.

        Raises:
            CheckpointError: the repository cannot be reached, and the cache does not hold it.
        """
        if self.is_local:
            return self
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        hub = {key: value for key, value in self.hub.items() if key != "proxies"}
        try:
            folder = snapshot_download(
                self.repository, revision=self.revision, allow_patterns=[prefix + p for p in patterns], **hub
            )
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        return replace(self, repository=folder, label=str(self))

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
    except Exception as error:  # a broken file fails in as many ways as there are parsers
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
    ignored = (*IGNORED_KEYS, *HUB_KEYS)
    return hub, {key: value for key, value in kwargs.items() if key not in ignored and value is not None}


def load_model_config(source: Source, role: str) -> PreTrainedConfig:
    """Loads the configuration of an agent's base model from a local source."""
    source.json("config.json")
    try:
        return AutoConfig.from_pretrained(source.folder)
    except Exception as error:
        raise CheckpointError(
            "An agent's config.json cannot be used.",
            where=f"agent {role}, {source}, config.json",
            found=f"{type(error).__name__}: {error}"[:500],
            expected="the configuration of a causal language model",
            hint="fetch the file again, or check that this version of transformers knows the architecture",
        ) from error


def load_base_model(source: Source, role: str, **kwargs) -> PreTrainedModel:
    """Loads an agent's causal language model; every weight must be there, and nothing is re-initialised.

    A multimodal checkpoint loads as what `AutoModelForCausalLM` makes of it: Gemma 3 as the whole model, of which
    only the language part runs; Qwen 3.5 as its language model alone, the weights of its vision part left on disk.

    Args:
        source: the agent's local folder.
        role: for error messages.
        kwargs: passed to `AutoModelForCausalLM.from_pretrained` (dtype, device_map, attn_implementation, …).
    """
    source.json("generation_config.json", required=False)  # transformers passes over a broken one
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source.folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they come back in the loading info, and are an error below
            # A release repository holds an `adapter_config.json` that is no PEFT adapter: look for none.
            adapter_kwargs={"subfolder": "__none__"},
            **kwargs,
        )
    except Exception as error:
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
    for name, parameter in model.named_parameters():
        # A sum in float32 is finite where the parameter is, and needs no second copy of it.
        if parameter.is_floating_point() and not bool(parameter.sum(dtype=torch.float32).isfinite()):
            raise CheckpointError(
                f"A weight of an agent holds NaN or infinity: {name}.",
                where=f"agent {role}, {source}",
                expected="finite numbers",
                hint="fetch the repository again",
            )
    for name in ("auto_map", "inner_link"):  # of an agent's own repository; the base model knows nothing of them
        vars(model.config).pop(name, None)
    return model


def build_empty_model(source: Source, config: PreTrainedConfig) -> PreTrainedModel:
    """An agent's model without weights, which takes no memory and cannot run."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if (settings := source.json("generation_config.json", required=False)) is not None:
        model.generation_config = GenerationConfig.from_dict(settings)
    return model


def load_tokenizer(source: Source, role: str) -> PreTrainedTokenizerBase:
    """Loads an agent's tokenizer from a local source, padding on the left."""
    if not any(os.path.isfile(os.path.join(source.folder, name)) for name in VOCABULARY_FILES):
        raise CheckpointError(  # transformers would build an empty one
            "An agent has no tokenizer.",
            where=f"agent {role}, {source}",
            found=source.listing(),
            expected=" or ".join(VOCABULARY_FILES),
            hint="fetch the repository again",
        )
    source.json("tokenizer_config.json", required=False)
    try:
        return AutoTokenizer.from_pretrained(source.folder, padding_side="left")
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise CheckpointError(
            "An agent's tokenizer cannot be loaded.",
            where=f"agent {role}, {source}",
            found=f"{type(error).__name__}: {error}"[:500],
            expected="tokenizer.json and tokenizer_config.json",
        ) from error


def find_link(
    source: Source, weights: str | dict | None, name: str, task: str | None, legacy_key: str | None = None
) -> tuple[Source, str, dict]:
    """Finds a link's file, wherever the `weights` entry of a configuration says; the file itself is not touched.

    Where that is another repository without a file name, the rules of the public release find the file. Inner links:
    the entry of innerlink_config.json for the task, then `adapter(<task>).pt`, then `adapter.pt`. Outer links: the
    entry of outerlink_config.json (for the task, where it has tasks) with the link's legacy key, or else with the
    file name `<Source>-<Target>-Outerlink.pt`.

    Args:
        source: the system's own repository.
        weights: see `RecursiveMASConfig`; `None` is `links/<name>.safetensors` of this repository.
        name: the link's name: the role for an inner link, `<source>_to_<target>` for an outer one.
        task: which entry of weights per task to take.
        legacy_key: the link's name in the release.

    Returns:
        The repository, the file's name in it, and what a release manifest states (`adapter_type`, `in_dim`, …).

    Raises:
        CheckpointError: a manifest is missing or broken, or names no file.
    """
    if isinstance(weights, dict) and "tasks" in weights:
        weights = _for_task(weights["tasks"], task, f"{source}, link {name}")
    if weights is None or isinstance(weights, str):
        return source, weights or f"links/{link_filename(name)}", {}
    source = source.other(weights["source"], weights.get("revision"))
    if "filename" in weights:
        return source, weights["filename"], {}
    if "_to_" in name:
        return source, *_released_outer_link(source, name, task, legacy_key)
    return source, *_released_inner_link(source, task)


def read_link(
    source: Source, weights: str | dict | None, name: str, task: str | None, legacy_key: str | None = None
) -> tuple[dict[str, torch.Tensor], str, str | None]:
    """Reads a link's weights; the arguments are those of `find_link`.

    Returns:
        The state dict, the file it came from, and the kind that a release manifest states (or `None`).

    Raises:
        CheckpointError: a file is missing or broken, or a manifest contradicts the weights.
    """
    source, filename, stated = find_link(source, weights, name, task, legacy_key)
    where = f"{source}, {filename}"
    tensors = read_tensors(source.file(filename), where)
    _check_stated(tensors, stated, where, outer="_to_" in name)
    return tensors, where, stated.get("adapter_type")


def _for_task(tasks: object, task: str | None, where: str) -> object:
    if not isinstance(tasks, dict) or task not in tasks:
        raise CheckpointError(
            "There are no weights for this task.",
            where=where,
            found=task,
            expected=", ".join(sorted(tasks)) if isinstance(tasks, dict) else "task -> weights",
            hint="load the system with one of these as `link_task`",
        )
    return tasks[task]


def _released_inner_link(source: Source, task: str | None) -> tuple[str, dict]:
    """File name and stated properties of the inner link in an agent's released repository."""
    stated = source.json("adapter_config.json", required=False) or {}
    manifest = source.json("innerlink_config.json", required=False) or {}
    tasks = manifest.get("tasks", {})
    if not isinstance(tasks, dict) or not all(isinstance(entry, dict) for entry in tasks.values()):
        raise CheckpointError(
            "A manifest has the wrong form.",
            where=f"{source}, innerlink_config.json, tasks",
            found=repr(tasks)[:200],
            expected='{task: {"adapter.pt": file name}}',
        )
    if task in tasks:
        return _file_name(
            tasks[task].get("adapter.pt", "adapter.pt"), f"{source}, innerlink_config.json, {task}"
        ), stated
    candidates = [f"adapter({task}).pt"] * (task is not None) + ["adapter.pt"]
    for filename in candidates:
        if source.file(filename, required=False) is not None:
            return filename, stated
    raise CheckpointError(
        "An agent's repository has no inner link.",
        where=str(source),
        found=source.listing(),
        expected=" or ".join(["innerlink_config.json with this task"] * (task is not None) + candidates),
        hint="fetch the repository again, or check that it is the right one",
    )


def _released_outer_link(source: Source, name: str, task: str | None, legacy_key: str | None) -> tuple[str, dict]:
    """File name and stated properties of an outer link in a released repository of links."""
    where = f"{source}, outerlink_config.json"
    manifest = source.json("outerlink_config.json")
    if "tasks" in manifest:
        manifest, where = _for_task(manifest["tasks"], task, where), f"{where}, tasks, {task}"
    adapters = manifest.get("adapters") if isinstance(manifest, dict) else None
    if not isinstance(adapters, list) or not all(isinstance(adapter, dict) for adapter in adapters):
        raise CheckpointError(
            "A manifest has the wrong form.",
            where=f"{where}, adapters",
            found=repr(adapters)[:200],
            expected='a list of {"legacy_key", "filename", ...}',
        )
    ends = (end.replace("_", " ").title().replace(" ", "") for end in name.split("_to_"))
    by_name = f"{'-'.join(ends)}-Outerlink.pt"
    fitting = [a for a in adapters if legacy_key is not None and a.get("legacy_key") == legacy_key]
    fitting = fitting or [a for a in adapters if "legacy_key" not in a and a.get("filename") == by_name]
    if legacy_key is None:
        fitting = [a for a in adapters if a.get("filename") == by_name]
    if len(fitting) != 1:
        raise CheckpointError(
            f"A manifest names {'no file' if not fitting else 'more than one file'} for an outer link.",
            where=f"{where}, adapters",
            found=", ".join(f"{a.get('legacy_key')}: {a.get('filename')}" for a in adapters) or "nothing",
            expected=f"one entry with the legacy key {legacy_key}" if legacy_key else by_name,
        )
    return _file_name(fitting[0].get("filename"), f"{where}, {legacy_key or by_name}"), fitting[0]


def _file_name(filename: object, where: str) -> str:
    if not isinstance(filename, str) or os.path.isabs(filename) or ".." in Path(filename).parts:
        raise CheckpointError(
            "A manifest names no file of its repository.", where=where, found=repr(filename), expected="a file name"
        )
    return filename


def _check_stated(tensors: dict[str, torch.Tensor], stated: dict, where: str, outer: bool) -> None:
    """Holds what a manifest states against the weights."""
    manifest = "outerlink_config.json" if outer else "adapter_config.json"
    kind, kinds = stated.get("adapter_type"), OUTER_KINDS if outer else INNER_KINDS
    if kind is not None and kind not in kinds:
        raise CheckpointError(
            "A manifest states an unknown kind of link.",
            where=f"{where}, adapter_type in {manifest}",
            found=repr(kind),
            expected=", ".join(kinds),
        )
    first = tensors.get("proj1.weight")
    last = next((tensors[key] for key in ("proj2.weight", "proj1.weight") if key in tensors), None)
    found = {"adapter_type": kind}
    fitting = fitting_kinds(tensors, outer)
    if fitting and kind not in fitting:
        found["adapter_type"] = " or ".join(fitting)
    for key, tensor, axis in (("in_dim", first, 1), ("out_dim", last, 0)):
        if tensor is not None and tensor.ndim == 2:
            found[key] = tensor.shape[axis]
    for key, value in found.items():
        if stated.get(key) is not None and stated[key] != value:
            raise CheckpointError(
                f"A manifest contradicts the weights: {key}.",
                where=f"{where}, {key} in {manifest}",
                found=f"{value} in the weights ({', '.join(sorted(tensors))})",
                expected=f"{stated[key]}, as the manifest says",
                hint="fetch the repository again, or check that manifest and weights belong together",
            )
