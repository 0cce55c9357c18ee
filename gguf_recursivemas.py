"""Agents out of GGUF files: converted once into an ordinary model folder, which everything else reads."""

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GgufConfig, PreTrainedTokenizerBase
from transformers.integrations.gguf import read_gguf_metadata

from .bases_recursivemas import load_base_model
from .errors_recursivemas import CheckpointError, InputError
from .folders_recursivemas import scratch_folder
from .sources_recursivemas import Source, cache_folder

# What transformers reads GGUF files with; the extra `[gguf]`.
PACKAGES = ("gguf", "accelerate")


def agent_place(source: Source, entry: Mapping[str, Any]) -> Source:
    """Where an agent is: the folder or repository of its entry, or the folder that its GGUF file became.

    Args:
        source: the system's repository.
        entry: of `agents` in its configuration. Of a repository with a `gguf_file`, this file alone is fetched.

    Raises:
        InputError: packages that read GGUF files are missing.
        CheckpointError: the GGUF file is missing, broken or of an unknown architecture.
    """
    place = source.other(entry["source"], entry.get("revision"))
    if (name := entry.get("gguf_file")) is None:
        return place
    file, label = place.file(name), f"{place}, {name}"
    about = os.stat(file)
    state = f"{os.path.realpath(file)} {about.st_size} {about.st_mtime_ns}"  # in the Hub cache, named by its content
    folder = cache_folder(f"{Path(name).stem}-{hashlib.sha256(state.encode()).hexdigest()[:16]}")
    convert_gguf(file, folder, label)
    return Source(str(folder), label=label)


def convert_gguf(file: str | os.PathLike, folder: Path, label: str) -> None:
    """Writes what a GGUF file holds as a model folder (bfloat16), unless that is there.

    The folder is written beside and renamed: it is whole, or not there.

    Args:
        file: the GGUF file.
        folder: where to.
        label: the file's name for messages.

    Raises: see `agent_place`.
    """
    if folder.is_dir():
        return
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            "Reading a GGUF file needs more packages.",
            where=label,
            found=f"no {' and no '.join(missing)}",
            hint=f"pip install {' '.join(missing)}, or recursivemas[gguf]",
        )
    place, path = Source(os.path.dirname(file), label=label), os.path.abspath(file)
    tokenizer, eos_token_ids = _read_tokenizer(place, path)
    settings = GgufConfig(gguf_file=path, dequantize=True)
    model = load_base_model(place, "of a GGUF file", gguf_file=path, quantization_config=settings, dtype="bfloat16")
    model.generation_config.eos_token_id = eos_token_ids
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder.parent) as scratch:
            model.save_pretrained(scratch / "model")
            tokenizer.save_pretrained(scratch / "model")
            os.rename(scratch / "model", folder)
    except OSError as error:
        if folder.is_dir():  # another process has been as fast
            return
        raise CheckpointError(
            "A converted model cannot be written.", where=folder, found=error, hint="free some space, or set HF_HOME"
        ) from error


def _read_tokenizer(place: Source, path: str) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The tokenizer of a GGUF file, and the ids that end a text or a turn in it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.path, gguf_file=path, trust_remote_code=False)
        metadata, _ = read_gguf_metadata(path)
    except Exception as error:  # a broken file fails in as many ways as there are parsers
        raise CheckpointError(
            "A GGUF file cannot be read.",
            where=place,
            found=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:500],
            expected="a whole GGUF file of a causal language model that this version of transformers knows",
            hint="fetch the file again",
        ) from error
    ids = (metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot"))
    return tokenizer, [*dict.fromkeys(token for token in ids if token is not None)]
