"""transformers' generation settings: their names and kinds, judged where they come in (a call, a file)."""

import inspect
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

from .errors_recursivemas import ArgumentError, CheckpointError, InputError
from .fields_recursivemas import ANYTHING, TEXT, TRUTH, Kind, did_you_mean, list_of, one_of, validate_field


def _whole(least: int) -> Kind:
    """Whole numbers of any library, but truth values."""
    return Kind(
        lambda value: isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= MOST,
        f"a whole number >= {least}, at most {MOST}",
    )


def _real(least: float, most: float) -> Kind:
    """Finite numbers of any library, but truth values."""
    return Kind(
        lambda value: (
            isinstance(value, Real)
            and not isinstance(value, bool)
            and least <= (value if isinstance(value, int) else float(value)) <= most
        ),
        f"a number from {least:g} to {most:g}",
    )


MOST = 2**31 - 1
COUNT, LENGTH, TOKEN = _whole(1), _whole(0), _whole(-1)
SHARE, AMOUNT, NUMBER = _real(0, 1), _real(0, 1e9), _real(-1e9, 1e9)
TEXTS = Kind(lambda value: isinstance(value, str) and value != "", "a text")
TEXTS |= list_of(TEXTS)
TENSOR = Kind(lambda value: isinstance(value, torch.Tensor) and not value.is_floating_point(), "a tensor of them")
TOKEN_LIST = list_of(TOKEN)
TOKENS = TOKEN | TOKEN_LIST | TENSOR
TOKEN_LISTS = Kind(lambda value: bool(value) and list_of(TOKEN_LIST).holds(value), "a list of lists of token ids")

# Every field of transformers' GenerationConfig; a law of the tests holds the table to it.
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("max_new_tokens", "num_beams", "num_return_sequences", "max_length", "max_cache_len"), COUNT),
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size", "num_assistant_tokens"), COUNT),
    **dict.fromkeys(("assistant_early_exit", "assistant_lookbehind", "target_lookbehind"), COUNT),
    **dict.fromkeys(("prefill_chunk_size", "num_beam_groups"), COUNT),
    **dict.fromkeys(("min_length", "min_new_tokens", "top_k"), LENGTH),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), LENGTH),
    **dict.fromkeys(("top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"), SHARE),
    **dict.fromkeys(("temperature", "repetition_penalty", "encoder_repetition_penalty", "max_time"), AMOUNT),
    **dict.fromkeys(("penalty_alpha", "diversity_penalty", "assistant_ensemble_weight"), AMOUNT),
    **dict.fromkeys(("length_penalty", "guidance_scale"), NUMBER),
    "assistant_confidence_threshold": SHARE,
    **dict.fromkeys(("do_sample", "use_mtp", "use_cache", "renormalize_logits", "remove_invalid_values"), TRUTH),
    **dict.fromkeys(("token_healing", "output_attentions", "output_hidden_states", "output_scores"), TRUTH),
    **dict.fromkeys(("output_logits", "return_dict_in_generate", "is_assistant", "disable_compile"), TRUTH),
    **dict.fromkeys(("low_memory",), TRUTH),
    **dict.fromkeys(("cache_implementation", "num_assistant_tokens_schedule", "speculation_type"), TEXT),
    **dict.fromkeys(("stop_strings",), TEXTS),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), TOKENS),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), TOKENS),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), TOKEN_LIST),
    **dict.fromkeys(("bad_words_ids",), TOKEN_LISTS),
    "early_stopping": TRUTH | one_of(["never"]),
    **dict.fromkeys(("cache_config", "compile_config", "continuous_batching_config", "watermarking_config"), ANYTHING),
    **dict.fromkeys(("sequence_bias", "exponential_decay_length_penalty", "dola_layers"), ANYTHING),
    **dict.fromkeys(("constraints", "force_words_ids"), ANYTHING),
}
_OF_A_MODEL = "_from_model_config"
METADATA = {"transformers_version", _OF_A_MODEL, "_commit_hash", "_original_object_hash"}

# What `generate` of one model takes and that of a system cannot: name -> why.
_OF_ONE_MODEL = "it is made for one model's reading of one prompt, and every agent reads prompts of its own"
REFUSED: dict[str, str] = {
    "inputs_embeds": "a question is text, which every agent reads in its own vocabulary",
    "past_key_values": f"a cache cannot be continued: {_OF_ONE_MODEL}",
    "cache": f"a cache cannot be continued: {_OF_ONE_MODEL}",
    "position_ids": _OF_ONE_MODEL,
    "decoder_input_ids": "agents are no encoder-decoder models",
    "token_healing": "it rewrites the end of the prompt, which is the agent's chat template and not the question",
    "is_assistant": "a system cannot draft for another model",
    "continuous_batching_config": "a recursive system cannot be batched continuously",
}
_DOOR = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs", "inputs", "generation_config"}
ARGUMENTS = frozenset(_DOOR | {"tokenizer", "assistant_tokenizer", "trust_remote_code"})  # that are no settings


def fields() -> set[str]:
    """The settings that the installed transformers knows."""
    return {name for name in vars(GenerationConfig()) if not name.startswith("_")} - METADATA


def unknown_name(name: str, known: Collection[str]) -> dict[str, str]:
    """What an error says about a name that nobody knows: `found` and the nearest that is known."""
    return {"found": name, "hint": did_you_mean(name, known) or "see transformers' GenerationConfig"}


def validate_kinds(
    settings: Mapping[str, Any], where: str = "", error: type[InputError] | type[CheckpointError] = InputError
) -> None:
    """Raises an error for the first setting whose value is of the wrong kind; `None` is always right."""
    for name, value in settings.items():
        if value is not None and name in KINDS:
            validate_field(value, KINDS[name], f"{where}, {name}" if where else name, error)


def validate_arguments(given: Mapping[str, Any], known: Collection[str]) -> None:
    """Judges a call's generation arguments by name and kind, and those of its `generation_config`.

    Args:
        given: name -> value; `None` means not given.
        known: names beside transformers' own.

    Raises:
        ArgumentError: nobody knows a name.
        InputError: a system cannot take an argument, or its value is of the wrong kind.
    """
    given, names = dict(given), fields() | ARGUMENTS | set(known)
    config, custom = given.pop("generation_config", None), given.get("custom_generate")
    if config is not None and not isinstance(config, GenerationConfig):
        found = type(config).__name__
        raise InputError(
            "No generation settings.", where="generation_config", found=found, expected="GenerationConfig"
        )
    if config is not None:
        _validate_named({name: value for name, value in vars(config).items() if name not in METADATA}, names)
    if isinstance(custom, str):
        names |= given.keys()  # the repository's function knows
    elif callable(custom):
        names |= inspect.signature(custom).parameters.keys()
    _validate_named(given, names)


def _validate_named(given: Mapping[str, Any], names: Collection[str]) -> None:
    for name, value in given.items():
        if value is None or (name == "token_type_ids" and not torch.as_tensor(value).any()):
            continue
        if name in REFUSED and value is not False:
            raise InputError("A system cannot take this argument.", where=name, found=_show(value), hint=REFUSED[name])
        if name == "cache_implementation" and value == "paged":
            hint = REFUSED["continuous_batching_config"]
            raise InputError("A system cannot take this argument.", where=name, found=value, hint=hint)
        if name not in names and not name.startswith("_"):
            raise ArgumentError(
                "Nobody knows a generation argument.", where="generation arguments", **unknown_name(name, names)
            )
    validate_kinds(given)


def read_settings(content: Mapping[str, Any], where: str, known: Collection[str] | None = None) -> GenerationConfig:
    """The settings of a generation_config.json.

    Args:
        content: of the file.
        where: the file.
        known: names beside transformers' own; `None` lets every name pass, as in files of other people's models.

    Raises:
        CheckpointError: a value is of the wrong kind or transformers refuses it, or nobody knows a name.
    """
    names = fields() | METADATA | set(known or ())
    for name in content:
        if known is not None and name not in names:
            raise CheckpointError("A file has an unknown key.", where=where, **unknown_name(name, names))
    validate_kinds(content, where, CheckpointError)
    try:
        # Settings that say that they came from a model's configuration would lose names of ours.
        config = GenerationConfig.from_dict({name: value for name, value in content.items() if name != _OF_A_MODEL})
        config._from_model_config = content.get(_OF_A_MODEL)
        return config
    except Exception as error:  # transformers trips over values in many ways
        raise CheckpointError(
            "transformers refuses a generation setting.", where=where, found=str(error)[:200]
        ) from error


def _show(value: object) -> str:
    return f"{type(value).__name__} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:80]
