"""Base models: configuration, weights and tokenizer of an agent, read strictly from one place."""

import copy
import itertools
import os
from collections.abc import Collection, Iterator
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .errors_recursivemas import CheckpointError
from .fields_recursivemas import NOTHING, TEXT, TRUTH, Kind, did_you_mean, list_of, number, validate_fields, whole
from .kernels_recursivemas import computes_half
from .sources_recursivemas import Source

# What of an agent's repository is needed
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHT_FILES = ("*.safetensors",)
HALF = (torch.bfloat16, torch.float16)
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")

COUNT, TOKEN, SHARE, AMOUNT = whole(0, 2**31 - 1), whole(-1, 2**31 - 1), number(0, 1), number(-1e9, 1e9)
# Generation settings and what they may hold; further ones are transformers' to judge.
GENERATION_FIELDS: dict[str, Kind] = {
    name: kind | NOTHING
    for names, kind in (
        ("max_length max_new_tokens min_length min_new_tokens top_k num_beams num_beam_groups num_return_sequences"
         " no_repeat_ngram_size encoder_no_repeat_ngram_size prompt_lookup_num_tokens max_matching_ngram_size"
         " num_assistant_tokens assistant_early_exit prefill_chunk_size assistant_lookbehind target_lookbehind",
         COUNT),
        ("pad_token_id bos_token_id decoder_start_token_id forced_bos_token_id", TOKEN),
        ("eos_token_id forced_eos_token_id", TOKEN | list_of(TOKEN)),
        ("suppress_tokens begin_suppress_tokens", list_of(TOKEN)),
        ("bad_words_ids", list_of(list_of(TOKEN))),
        ("top_p min_p typical_p epsilon_cutoff eta_cutoff top_h assistant_confidence_threshold", SHARE),
        ("temperature repetition_penalty encoder_repetition_penalty max_time diversity_penalty penalty_alpha",
         number(0, 1e9)),
        ("length_penalty guidance_scale", AMOUNT),
        ("do_sample use_cache output_attentions output_hidden_states output_scores output_logits"
         " return_dict_in_generate remove_invalid_values renormalize_logits token_healing low_memory is_assistant"
         " disable_compile", TRUTH),
        ("early_stopping", TRUTH | TEXT),
        ("stop_strings", TEXT | list_of(TEXT)),
        ("cache_implementation num_assistant_tokens_schedule transformers_version", TEXT),
    )
    for name in names.split()
}  # fmt: skip


def read_generation_config(source: Source, names: Collection[str] | None = None) -> GenerationConfig | None:
    """The generation settings of a folder, or `None` where it has none.

    Args:
        source: the folder.
        names: further settings that there are; `None` takes whatever name there is (as in an agent's own folder).

    Raises:
        CheckpointError: a setting that nobody knows, or a value that it cannot have.
    """
    settings = source.find_json("generation_config.json", lenient=names is None)
    if settings is None:
        return None
    where = f"{source}, generation_config.json"
    known = {*vars(GenerationConfig()), *GENERATION_FIELDS}
    others = known | set(settings) if names is None else known | set(names)
    for name in settings:
        if name not in others and not name.startswith("_"):
            what, hint = "Unknown generation setting.", did_you_mean(name, others)
            raise CheckpointError(what, where=where, found=name, expected="a setting of transformers", hint=hint)
    validate_fields(settings, GENERATION_FIELDS, where, CheckpointError, also=settings)
    try:
        return GenerationConfig.from_dict(settings)
    except Exception as error:  # transformers trips over values in many ways
        what, found = "Generation settings cannot be used.", f"{type(error).__name__}: {error}"
        raise CheckpointError(what, where=where, found=found, hint="correct the file") from error


def load_model_config(source: Source, role: str) -> PreTrainedConfig:
    """Loads the configuration of an agent's base model from a local source."""
    source.json("config.json", lenient=True)
    try:
        return AutoConfig.from_pretrained(source.path)
    except Exception as error:
        raise CheckpointError(
            "An agent's config.json cannot be used.",
            where=f"agent {role}, {source}, config.json",
            found=f"{type(error).__name__}: {error}"[:500],
            expected="the configuration of a causal language model",
            hint="fetch the file again, or check that this version of transformers knows the architecture",
        ) from error


def load_base_model(source: Source, role: str, **kwargs: Any) -> PreTrainedModel:
    """Loads an agent's causal language model; every weight must be there, and nothing is re-initialised.

    A multimodal checkpoint loads as what `AutoModelForCausalLM` makes of it: Gemma 3 as the whole model, of which
    only the language part runs; Qwen 3.5 as its language model alone, the weights of its vision part left on disk.

    Args:
        source: the agent's local folder.
        role: for error messages.
        kwargs: passed to `AutoModelForCausalLM.from_pretrained` (dtype, device_map, attn_implementation, …).
    """
    read_generation_config(source)  # transformers passes over a broken one
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.path,
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


def build_empty_model(source: Source, config: PreTrainedConfig) -> PreTrainedModel:
    """An agent's model without weights, which takes no memory and cannot run."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if (settings := read_generation_config(source)) is not None:
        model.generation_config = settings
    return model


def copy_tokenizer(tokenizer: PreTrainedTokenizerBase, role: str) -> PreTrainedTokenizerBase:
    """A tokenizer of one's own; copying writes and reads it, which a broken one does not survive."""
    try:
        return copy.deepcopy(tokenizer)
    except Exception as error:  # the tokenizers library raises plain exceptions
        what, where = "An agent's tokenizer cannot be copied.", f"agent {role}, {tokenizer.name_or_path}"
        found, expected = f"{type(error).__name__}: {error}", "a whole tokenizer.json"
        raise CheckpointError(what, where=where, found=found, expected=expected) from error


def load_tokenizer(source: Source, role: str) -> PreTrainedTokenizerBase:
    """Loads an agent's tokenizer from a local source, padding on the left."""
    if not any(os.path.isfile(os.path.join(source.path, name)) for name in VOCABULARY_FILES):
        raise CheckpointError(  # transformers would build an empty one
            "An agent has no tokenizer.",
            where=f"agent {role}, {source}",
            found=source.listing(),
            expected=" or ".join(VOCABULARY_FILES),
            hint="fetch the repository again",
        )
    source.find_json("tokenizer_config.json", lenient=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, padding_side="left")
        tokenizer.decode(tokenizer("Is it so?")["input_ids"])  # values that it believed come out here
        return tokenizer
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise CheckpointError(
            "An agent's tokenizer cannot be loaded.",
            where=f"agent {role}, {source}",
            found=f"{type(error).__name__}: {error}"[:500],
            expected="tokenizer.json and tokenizer_config.json",
        ) from error
