"""Where files are: folders and Hub repositories as places, and files of tensors.

Everything is read through transformers' `cached_file`, so that the Hub cache, offline mode, tokens and revisions
work as everywhere else. `.pt` files are read with `weights_only=True`; nothing is ever unpickled.

Nothing is read outside a repository, be it by `..`, by an absolute name or by a symbolic link. What else a system may
read are the repositories that its `source` entries name: those on the Hub, and folders elsewhere by their absolute
paths, which only a folder of the user's own may name and no repository from the Hub.
"""

import filecmp
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from huggingface_hub import constants, snapshot_download
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import cached_file

from .errors_recursivemas import CheckpointError, ConfigError
from .files_recursivemas import read_object
from .folders_recursivemas import settle

DIGEST = "digest"  # in the metadata of a file of tensors: of what it holds
# In the Hub cache, the files of a commit are links to what lies beside it.
SNAPSHOT = re.compile(r"(?P<repository>.*)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{40})(?:[/\\]|$)")
HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
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
    "low_cpu_mem_usage",  # which transformers ignores, too
)


def cache_folder(name: str) -> Path:
    """Where a model that was converted here is kept: a folder beside the Hub client's own."""
    return Path(constants.HF_HOME, "recursivemas", name)


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
        place = self.path if self.subfolder else self.repository
        return place if self.revision is None or self.is_local else f"{place}@{self.revision}"

    def other(self, source: str, revision: str | None = None) -> "Source":
        """What a `source` entry in this repository's configuration points to.

        `agents/…` and `./…` are folders of this repository, an absolute path is a local folder, anything else is
        another repository on the Hub (or its clone, or what `recursivemas fetch` put in its place).

        Raises:
            ConfigError: it is none of these, or leads out of this repository.
        """
        if source.startswith(("agents/", "./")):
            return replace(self, subfolder=self._inside(source))
        if not os.path.isabs(source):
            if not HUB_NAME.fullmatch(source) or ".." in source.split("/"):
                raise ConfigError(
                    "A `source` is no place.",
                    where=str(self),
                    found=source[:200],
                    expected="agents/… of this repository, org/name on the Hub, or the absolute path of a folder",
                )
            clones = [Path(self.clones, name) for name in (source, source.rpartition("/")[2])] if self.clones else []
            for candidate in (*clones, cache_folder(source)):
                if os.path.isdir(candidate):  # False for names that are too long, too
                    source = str(candidate)
                    break
        return Source(source, revision=revision, hub=self.hub, clones=self.clones)

    def find(self, name: str) -> str | None:
        """Local path of a file, fetched if need be; `None` where it does not exist.

        Raises:
            ConfigError: the name leads out of the repository.
            CheckpointError: the repository is not there or cannot be reached, or the file is a link that leads out.
        """
        self._inside(name)
        if self.is_local:
            settle(self.path)
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
        except Exception as error:  # of the HTTP library: a connection that broke says nothing about the file
            raise self._unreadable(error) from error
        # Offline, a file that the cached commit does not hold looks like an unreachable repository.
        if path is None and self.folder is None:
            raise self._unreadable(problem) from problem
        if path is not None:
            self._hold(path)
        return path

    def _inside(self, name: str) -> str:
        """A file or folder of this place, as a path in its repository."""
        path = os.path.normpath(os.path.join(self.subfolder, name))
        if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
            raise ConfigError(
                "A path leads out of its repository.",
                where=str(self),
                found=name[:200],
                expected="a file or folder in the repository itself",
                hint="name another repository, or the absolute path of a folder, as `source`",
            )
        return path

    def _hold(self, path: str) -> None:
        """Raises CheckpointError where a file of this place is a link that leads out of its repository."""
        cached = SNAPSHOT.match(path) or SNAPSHOT.match(os.path.realpath(self.repository) + os.sep)
        root = os.path.realpath(cached["repository"] if cached else self.repository)
        real = os.path.realpath(path)
        if real != root and not real.startswith(os.path.join(root, "")):
            raise CheckpointError(
                "A symbolic link leads out of its repository.",
                where=path,
                found=real,
                expected=f"files in {root}",
                hint="put the file in its place, or name the absolute path of its folder as `source`",
            )

    def file(self, name: str) -> str:
        """Local path of a file that must be there.

        Raises:
            CheckpointError: the repository or the file is not there, or cannot be reached.
        """
        path = self.find(name)
        if path is None:
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
        if self.is_local:
            return self.path
        cache = self.hub.get("cache_dir")
        try:
            root = snapshot_download(self.repository, revision=self.revision, cache_dir=cache, local_files_only=True)
        except (OSError, ValueError):
            return None
        return os.path.join(root, self.subfolder)

    @property
    def path(self) -> str:
        """Local path of a place that is a folder here, such as `fetch` gives."""
        return os.path.join(self.repository, self.subfolder)

    @property
    def commit(self) -> str | None:
        """The commit that `folder` holds, where it is one of the Hub cache."""
        match = SNAPSHOT.match(self.folder or "")
        return match and match["commit"]

    @property
    def is_download(self) -> bool:
        """Whether it came from the Hub, and is no folder of the user's own."""
        return not self.is_local or SNAPSHOT.match(os.path.realpath(self.repository) + os.sep) is not None

    def _unreadable(self, error: Exception | None) -> CheckpointError:
        places = "a local folder, or a repository on the Hub or in its cache"
        return CheckpointError(
            "A repository cannot be read.",
            where=str(self),
            found=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}" if error else "nothing",
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
            CheckpointError: the repository cannot be reached, and the cache does not hold it; or it holds links that
                lead out.
        """
        if self.is_local:
            self._hold(self.path)
            for folder, names, files in os.walk(self.path):
                names[:] = [name for name in names if not name.startswith(".")]
                for name in (*names, *files):
                    if os.path.islink(path := os.path.join(folder, name)):
                        self._hold(path)
            return self
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        hub = {key: value for key, value in self.hub.items() if key != "proxies"}
        try:
            folder = snapshot_download(
                self.repository, revision=self.revision, allow_patterns=[prefix + p for p in patterns], **hub
            )
        except Exception as error:  # of the Hub client, and of its HTTP library
            raise self._unreadable(error) from error
        return replace(self, repository=folder, label=str(self))

    def find_json(self, name: str, lenient: bool = False) -> dict | None:
        """A JSON object read from a file; `None` where the file does not exist; `lenient` as in `parse_json`."""
        path = self.find(name)
        return None if path is None else read_object(path, CheckpointError, f"{self}, {name}", lenient)

    def json(self, name: str, lenient: bool = False) -> dict:
        """A JSON object read from a file that must be there; `lenient` as in `parse_json`."""
        return read_object(self.file(name), CheckpointError, f"{self}, {name}", lenient)


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


def write_tensors(tensors: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Writes a state dict as safetensors, its digest in the metadata; its folder is created if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    save_file(tensors, path, {DIGEST: content_digest(tensors)})  # one entry: of more, the order would be chance
    os.chmod(path, 0o644)  # safetensors writes for the owner only


def content_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values of tensors on the processor."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_code(folder: Path, entry: str) -> None:
    """Copies a module of the remote code and what it imports, so that the folder loads with `trust_remote_code`."""
    path = Path(__file__).with_name(entry)
    for module in map(Path, {str(path), *get_relative_import_files(path)}):
        target = folder / module.name
        # What is the same stays: it may be what runs, or a link to that; through a link nothing is ever written.
        if not target.is_file() or not filecmp.cmp(module, target, shallow=False):
            target.unlink(missing_ok=True)
            shutil.copy(module, target)


def split_arguments(kwargs: dict) -> tuple[dict, dict]:
    """Keyword arguments of a `from_pretrained` -> those for the Hub client, and the others that mean something."""
    hub = {key: kwargs[key] for key in HUB_KEYS if kwargs.get(key) is not None}
    ignored = (*IGNORED_KEYS, *HUB_KEYS)
    return hub, {key: value for key, value in kwargs.items() if key not in ignored and value is not None}
