"""Base models: configuration, weights and tokenizer of an agent, read strictly from one place."""

import copy
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .errors_recursivemas import CheckpointError, ConfigError, InputError
from .fields_recursivemas import NOTHING, TEXT, validate_fields
from .kernels_recursivemas import computes_half
from .settings_recursivemas import read_settings
from .sources_recursivemas import Source
from .threads_recursivemas import one_at_a_time

# What of an agent's repository is needed
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHT_FILES = ("*.safetensors",)
HALF = (torch.bfloat16, torch.float16)
ADAPTER_KEYS = ("peft_type", "base_model_name_or_path", "target_modules")  # of PEFT
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# What a tokenizer, and a model with one, may have written into a folder before, and what would be read there.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "special_tokens_map.json",
    "additional_chat_templates/*.jinja", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
MODEL_FILES = (
    *("model*.safetensors", "model.safetensors.index*.json", "pytorch_model*", "adapter_*", "generation_config.json"),
    *TOKENIZER_FILES,
)
BASE_FIELDS = {"source": TEXT, "revision": TEXT | NOTHING}  # of `base_model` in an agent's config.json
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def base_place(source: Source, entry: Any) -> Source:
    """Where the base model of an agent's repository is: what its config.json names as `base_model`, or there itself.

    Args:
        source: the agent's repository.
        entry: `{"source", "revision"}`, a repository on the Hub and its commit; `None` where the repository holds it.

    Raises:
        ConfigError: the entry names no repository on the Hub.
    """
    if entry is None:
        return source
    where = f"{source}, config.json, base_model"
    validate_fields(entry, BASE_FIELDS, where, ConfigError, required=["source"])
    if os.path.isabs(entry["source"]) or entry["source"].startswith((".", "agents/")):
        found, expected = entry["source"][:200], "org/name on the Hub"
        raise ConfigError("A base model is named that is not on the Hub.", where=where, found=found, expected=expected)
    return source.other(entry["source"], entry.get("revision"))


def load_model_config(source: Source, role: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Loads the configuration of an agent's base model from a local source, with code of its own only where told."""
    refuse_adapter(source, role)
    settings = source.json("config.json", lenient=True)
    try:
        return AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise CheckpointError(
            "An agent's config.json cannot be used.",
            where=f"agent {role}, {source}, config.json",
            found=f"{type(error).__name__}: {error}"[:500],
            expected="the configuration of a causal language model",
            hint=_untrusted(settings, role, trust_remote_code)
            or "fetch the file again, or check that this version of transformers knows the architecture",
        ) from error


def refuse_adapter(source: Source, role: str) -> None:
    """Raises CheckpointError where an adapter of the weights (LoRA and its like) lies in an agent's folder.

    The `adapter_config.json` of a release repository says what its links are, and is none.
    """
    settings = source.find_json("adapter_config.json") or {}
    found = [f"adapter_config.json, {key} {settings[key]!r}"[:200] for key in ADAPTER_KEYS if key in settings]
    found += [name for name in ADAPTER_FILES if source.find(name) is not None]
    if found:
        raise CheckpointError(
            "An adapter lies in an agent's folder: it changes the weights, and is not applied here.",
            where=f"agent {role}, {source}",
            found="; ".join(found),
            expected="the whole weights of one model",
            hint="merge it (peft: `model.merge_and_unload().save_pretrained(folder)`), or remove its files",
        )


def refuse_unmerged(model: nn.Module) -> None:
    """Raises InputError where a module of a model is an adapter's (PEFT): its weights could not be loaded again."""
    names = [name or "the model" for name, part in model.named_modules() if type(part).__module__.startswith("peft.")]
    if names:
        raise InputError(
            "What is to be saved holds an adapter that is not merged into the weights.",
            where="save_pretrained",
            found=", ".join(names[:3]) + (" …" if len(names) > 3 else ""),
            expected="the whole weights of each model",
            hint="merge it first: `agent.model = agent.model.merge_and_unload()`",
        )


@one_at_a_time()
def load_base_model(source: Source, role: str, **kwargs: Any) -> PreTrainedModel:
    """Loads an agent's causal language model; every weight must be there, and nothing is re-initialised.

    A multimodal checkpoint loads as what `AutoModelForCausalLM` makes of it: Gemma 3 as the whole model, of which
    only the language part runs; Qwen 3.5 as its language model alone, the weights of its vision part left on disk.

    Args:
        source: the agent's local folder.
        role: for error messages.
        kwargs: passed to `AutoModelForCausalLM.from_pretrained` (dtype, device_map, attn_implementation, …);
            `trust_remote_code=True` runs code of the agent's own.
    """
    kwargs = {"trust_remote_code": False, **kwargs}
    refuse_adapter(source, role)
    _read_settings(source, role)  # transformers passes over a broken one
    _validate_index(source, kwargs.get("variant"))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they come back in the loading info, and are an error below
            # A release repository holds an `adapter_config.json` of links; adapters of weights are refused above.
            adapter_kwargs={"subfolder": "__none__"},
            **kwargs,
        )
    except Exception as error:
        raise CheckpointError(
            "An agent's model cannot be loaded.",
            where=f"agent {role}, {source}",
            found=f"{type(error).__name__}: {error}"[:1000],
            expected="a complete causal language model (config.json and safetensors)",
            hint=_untrusted(source.find_json("config.json"), role, kwargs["trust_remote_code"])
            or _unusable(error, kwargs)
            or "fetch the repository again, or check that this version of transformers knows the architecture",
        ) from error
    model, info = loaded
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
        if not _is_finite(parameter):
            raise CheckpointError(
                f"A weight of an agent holds NaN or infinity: {name}.",
                where=f"agent {role}, {source}",
                expected="finite numbers",
                hint="fetch the repository again",
            )
    needed = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(part is not None and any(weight.is_meta for weight in part.parameters()) for part in needed):
        raise CheckpointError(
            "The token embeddings of an agent, or its head, are offloaded.",
            where=f"agent {role}, {source}, device_map",
            found=getattr(model, "hf_device_map", None),
            expected="a device that holds them; other layers may be offloaded",
            hint='give them a device in `device_map`, or use offload="cpu", which moves whole agents',
        )
    for name in ("auto_map", "inner_link", "base_model"):  # of an agent's own repository, which is none of the model's
        vars(model.config).pop(name, None)
    return model


def _is_finite(parameter: torch.Tensor) -> bool:
    """Whether a weight is finite, as far as it is here and its library can say so."""
    if parameter.is_meta or not parameter.is_floating_point():
        return True
    try:
        # A sum in float32 is finite where the parameter is, and needs no second copy of it.
        return bool(parameter.sum(dtype=torch.float32).isfinite())
    except (NotImplementedError, RuntimeError, TypeError):  # of 8 bits, or packed by a library
        try:
            return bool(parameter.float().sum().isfinite())
        except (NotImplementedError, RuntimeError, TypeError):
            return True


def _validate_index(source: Source, variant: str | None = None) -> None:
    """Raises ConfigError where the index of an agent's weights names a file outside of its repository."""
    index = source.find_json(f"model.safetensors.index{f'.{variant}' if variant else ''}.json") or {}
    weights = index.get("weight_map")
    for name in {str(name) for name in weights.values()} if isinstance(weights, dict) else ():
        source.find(name)


def _untrusted(settings: dict | None, role: str, trust_remote_code: bool) -> str | None:
    """What to do about code of an agent's own that was not run; `None` where it has none, or it was."""
    if trust_remote_code or not (settings or {}).get("auto_map"):
        return None
    return (
        "the agent brings code of its own; if you have read it and trust it, load with "
        f"agent_kwargs={{{role!r}: {{'trust_remote_code': True}}}} (--trust-remote-code {role})"
    )


def _unusable(error: Exception, kwargs: Mapping[str, Any]) -> str | None:
    """What to do where it may be an option that cannot be used, and not the files; `None` where none was said."""
    said = [name for name in kwargs if name not in ("trust_remote_code", "dtype", "config")]
    if isinstance(error, ImportError):
        return "install what it names" + f", or leave out {', '.join(said)}" * bool(said)
    return f"look at {', '.join(said)}, which was asked for; else fetch the repository again" if said else None


def widen_where_slow(model: PreTrainedModel) -> PreTrainedModel:
    """What `dtype="auto"` means on the processor: 16 bits become float32 where the processor emulates them.

    Weights keep their values, and `save_base_model` writes them as they were stored; quantized models stay.
    """
    if computes_half() or getattr(model, "hf_quantizer", None) is not None:
        return model
    halves = {name: tensor for name, tensor in _tensors(model) if tensor.dtype in HALF}
    vars(model)["stored_dtypes"] = {name: tensor.dtype for name, tensor in halves.items()}
    for tensor in halves.values():
        tensor.data = tensor.data.float()
    return model


def save_base_model(model: PreTrainedModel, folder: str | os.PathLike, **kwargs: Any) -> None:
    """Writes a base model's folder; what `widen_where_slow` made wider has its stored dtype there."""
    stored = vars(model).get("stored_dtypes", {})
    wide = {name: t for name, t in _tensors(model) if name in stored and t.dtype == torch.float32}
    try:
        for name, tensor in wide.items():
            tensor.data = tensor.data.to(stored[name])
        model.save_pretrained(folder, **kwargs)
    finally:
        for tensor in wide.values():
            tensor.data = tensor.data.float()


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())


@one_at_a_time()
def build_empty_model(source: Source, config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """An agent's model without weights, which takes no memory and cannot run."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    if (settings := _read_settings(source)) is not None:
        model.generation_config = settings
    return model


def _read_settings(source: Source, role: str = "") -> GenerationConfig | None:
    settings = source.find_json("generation_config.json", lenient=True)
    where = f"{f'agent {role}, ' if role else ''}{source}, generation_config.json"
    return None if settings is None else read_settings(settings, where)


def _raise_unless_of_a_library(error: BaseException) -> None:
    # The tokenizers library raises plain exceptions, and panics, which are no `Exception`.
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


def copy_tokenizer(tokenizer: PreTrainedTokenizerBase, role: str) -> PreTrainedTokenizerBase:
    """A tokenizer of one's own; copying writes and reads it, which a broken one does not survive."""
    try:
        return copy.deepcopy(tokenizer)
    except BaseException as error:
        _raise_unless_of_a_library(error)
        what, where = "An agent's tokenizer cannot be copied.", f"agent {role}, {tokenizer.name_or_path}"
        found, expected = f"{type(error).__name__}: {error}", "a whole tokenizer.json"
        raise CheckpointError(what, where=where, found=found, expected=expected) from error


def load_tokenizer(source: Source, role: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads an agent's tokenizer from a local source, padding on the left; its own code runs only where told."""
    if not any(os.path.isfile(os.path.join(source.path, name)) for name in VOCABULARY_FILES):
        raise CheckpointError(  # transformers would build an empty one
            "An agent has no tokenizer.",
            where=f"agent {role}, {source}",
            found=source.listing(),
            expected=" or ".join(VOCABULARY_FILES),
            hint="fetch the repository again",
        )
    settings = source.find_json("tokenizer_config.json", lenient=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, padding_side="left", trust_remote_code=trust_remote_code
        )
        tokenizer.decode(tokenizer("Is it so?")["input_ids"])  # values that it believed come out here
        return tokenizer
    except BaseException as error:
        _raise_unless_of_a_library(error)
        raise CheckpointError(
            "An agent's tokenizer cannot be loaded.",
            where=f"agent {role}, {source}",
            found=f"{type(error).__name__}: {error}"[:500],
            expected="tokenizer.json and tokenizer_config.json",
            hint=_untrusted(settings, role, trust_remote_code),
        ) from error
