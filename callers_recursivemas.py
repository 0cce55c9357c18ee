"""Between a caller and a base model's `generate`: what the caller's functions see, arguments judged before compute."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GENERATION_MODES_MAPPING
from transformers.utils import ModelOutput

from .agent_recursivemas import RecursiveMASAgent
from .errors_recursivemas import InputError, RecursiveMASError

# Attributes of transformers' own processors and criteria that count positions of the caller's prompt.
_COUNTS = (
    "min_length",
    "max_length",
    "begin_index",
    "prompt_length_to_skip",
    "regulation_start",
    "prompt_ignore_length",
)


@dataclass(frozen=True)
class CallerView:
    """What a caller sees of a run of `generate`: behind its own prompt the new ids, instead of behind the agent's.

    transformers' own processors read the agent's prompt, those that the caller wrote (or that count positions) the
    caller's.

    Attributes:
        question_ids: the caller's prompt, (batch, question length); of length 0 in `solve`.
        length: of the agent's prompt.
    """

    question_ids: torch.Tensor
    length: int

    def of(self, ids: torch.Tensor) -> torch.Tensor:
        """(rows, length + new) ids with the agent's prompt -> (rows, question length + new)."""
        copies = ids.shape[0] // self.question_ids.shape[0]
        question = self.question_ids.to(ids).repeat_interleave(copies, dim=0)
        return torch.cat([question, ids[:, self.length :]], dim=1)

    def arguments(self, kwargs: dict[str, Any], config: GenerationConfig) -> dict[str, Any]:
        """`generate`'s arguments, with the caller's functions made to see what the caller does."""
        kwargs = dict(kwargs)
        if (processors := kwargs.get("logits_processor")) is not None:
            kwargs["logits_processor"] = LogitsProcessorList(self._seen(one, _SeenProcessor) for one in processors)
        if (criteria := kwargs.get("stopping_criteria")) is not None:
            kwargs["stopping_criteria"] = StoppingCriteriaList(self._seen(one, _SeenCriterion) for one in criteria)
        if (streamer := kwargs.get("streamer")) is not None:
            kwargs["streamer"] = _NewTokens(streamer, self.question_ids)
        if (allowed := kwargs.get("prefix_allowed_tokens_fn")) is not None:
            # Beams of a row share its number; several sequences without beams are rows of their own.
            copies = (config.num_return_sequences or 1) if config.num_beams in (None, 1) else 1

            def allowed_tokens(row: int, ids: torch.Tensor) -> list[int]:
                question = self.question_ids[row // copies].to(ids)
                return allowed(row, torch.cat([question, ids[self.length :]]))

            kwargs["prefix_allowed_tokens_fn"] = allowed_tokens
        return kwargs

    def output(self, output: Any) -> Any:
        """What `generate` returned, with the caller's prompt in the place of the agent's."""
        if isinstance(output, torch.Tensor) and output.ndim == 2:
            return self.of(output)
        if isinstance(output, ModelOutput) and isinstance(output.get("sequences"), torch.Tensor):
            output["sequences"] = self.of(output["sequences"])
        return output

    def _seen(self, function: Callable, wrapper: type) -> Any:
        own = type(function).__module__.startswith("transformers.")
        counts = any(getattr(function, name, None) is not None for name in _COUNTS)
        return function if own and not counts else wrapper(function, self)


class _SeenProcessor(LogitsProcessor):
    def __init__(self, function: Callable, view: CallerView) -> None:
        self.function, self.view = function, view

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.function(self.view.of(input_ids), scores)


class _SeenCriterion(StoppingCriteria):
    def __init__(self, function: Callable, view: CallerView) -> None:
        self.function, self.view = function, view

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        return self.function(self.view.of(input_ids), scores, **kwargs)


class _NewTokens(BaseStreamer):
    """Hands on all but the agent's prompt; the caller's, if it has one, was put before any compute."""

    def __init__(self, streamer: Any, question_ids: torch.Tensor) -> None:
        self.streamer, self.question_ids, self.opened = streamer, question_ids, False

    def put(self, value: torch.Tensor) -> None:
        if self.opened:
            self.streamer.put(value)
        elif self.question_ids.shape[1] == 0:
            self.streamer.put(self.question_ids.cpu())
        self.opened = True

    def end(self) -> None:
        self.streamer.end()


def is_assisted(config: GenerationConfig, arguments: dict[str, Any]) -> bool:
    """Whether candidates are drafted, which works for one row at a time and needs a prompt without a cache."""
    drafts = ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
    return arguments.get("assistant_model") is not None or any(getattr(config, name, None) for name in drafts)


def reads_once(config: GenerationConfig, arguments: dict[str, Any]) -> bool:
    """Whether the prompt is read only once: into a cache, by one model, in transformers' own loop."""
    return (
        config.use_cache is not False
        and not is_assisted(config, arguments)
        and arguments.get("custom_generate") is None
    )


def judge_arguments(agent: RecursiveMASAgent, config: GenerationConfig, arguments: dict[str, Any], rows: int) -> None:
    """Lets transformers judge generation arguments before any compute: `generate` as far as its first forward pass.

    Args:
        agent: the decoding agent.
        config: the settings.
        arguments: the other arguments of `generate`.
        rows: of a batch.

    Raises:
        InputError: transformers refuses them.
    """
    arguments = dict(arguments)
    # The caller's own functions are not called: they may count.
    processors, criteria = arguments.pop("logits_processor", None), arguments.pop("stopping_criteria", None)
    streamer, custom = arguments.pop("streamer", None), arguments.pop("custom_generate", None)
    allowed = arguments.get("prefix_allowed_tokens_fn")
    _expect(_are_functions(processors), "logits_processor", processors, "a list of functions")
    _expect(_are_functions(criteria), "stopping_criteria", criteria, "a list of functions")
    _expect(allowed is None or callable(allowed), "prefix_allowed_tokens_fn", allowed, "a function")
    _expect(custom is None or isinstance(custom, str) or callable(custom), "custom_generate", custom, "a function")
    if streamer is not None:
        speaks = all(callable(getattr(streamer, name, None)) for name in ("put", "end"))
        _expect(speaks, "streamer", streamer, "an object with `put` and `end`")
        arguments["streamer"] = _Deaf()
    try:
        if is_assisted(config, arguments):
            _judge_drafts(agent)
        if "offloaded" in (kind := str(config.cache_implementation)) and agent.device.type == "cpu":
            hint = "leave it out: the cache is in CPU memory already"
            raise InputError("There is no accelerator.", where="cache_implementation", found=kind, hint=hint)
        if isinstance(custom, str):
            # Never a question on the terminal: what the caller did not say is no.
            trusted = bool(arguments.pop("trust_remote_code", None))
            custom = cast(Any, agent.model).load_custom_generate(custom, trust_remote_code=trusted)
        if custom is not None:
            arguments["custom_generate"] = functools.wraps(custom)(lambda *_, **__: None)
        ids = torch.full((rows, 1), agent.pad_token_id)
        judge = _judge_of(agent.model)
        judge.generate(ids, attention_mask=torch.ones_like(ids), generation_config=copy.deepcopy(config), **arguments)
    except RecursiveMASError:
        raise
    except Exception as error:  # whatever transformers raises for arguments that it cannot use
        raise InputError(
            "transformers refuses the generation arguments.",
            where="generation arguments",
            found=f"{type(error).__name__}: {str(error)[:600]}",
        ) from error


def _are_functions(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and all(map(callable, value)))


def _expect(fits: bool, name: str, found: Any, expected: str) -> None:
    if not fits:
        raise InputError("An argument cannot be used.", where=name, found=repr(found)[:80], expected=expected)


def _judge_drafts(agent: RecursiveMASAgent) -> None:
    layers = [type(layer).__name__ for layer in agent.new_cache().layers]
    if recurrent := [name for name in layers if "Linear" in name]:
        raise InputError(
            "This agent's state cannot go back behind a candidate that was refused.",
            where=f"agent {agent.role}, assisted generation",
            found=recurrent[0],
            hint="leave assisted generation off",
        )


class _Deaf(BaseStreamer):
    def put(self, value: Any) -> None:
        pass

    def end(self) -> None:
        pass


def _judge_of(model: PreTrainedModel) -> Any:
    """A copy that shares all weights, whose `generate` judges its arguments and generates nothing."""
    judge = copy.copy(model)
    judge.__class__ = _judge_class(cast(Any, type(model)))
    vars(judge).pop("generate", None)  # of the instance, which would generate
    return judge


@functools.cache
def _judge_class(model_class: Any) -> Any:
    def try_processors(self: Any, input_ids: torch.Tensor, processors: LogitsProcessorList) -> None:
        scores = torch.zeros(input_ids.shape[0], self.config.get_text_config().vocab_size)
        for processor in processors:
            if not isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):  # runs the model
                processor(input_ids, scores.clone())

    @functools.wraps(model_class._sample)
    def one_by_one(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> None:
        try_processors(self, input_ids, kwargs["logits_processor"])

    @functools.wraps(model_class._assisted_decoding)
    def assisted(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> None:
        if input_ids.shape[0] > 1:
            raise ValueError("assisted generate is only supported for batch_size = 1")
        try_processors(self, input_ids, kwargs["logits_processor"])
        names = ("generation_config", "inputs_tensor", "assistant_model", "logits_processor", "assistant_tokenizer")
        if kwargs.get("assistant_tokenizer") is None:  # else a translator of vocabularies would be built
            own = {name: kwargs.get(name) for name in names}
            others = {name: value for name, value in kwargs.items() if name not in (*names, "tokenizer")}
            self._get_candidate_generator(
                input_ids=input_ids, target_tokenizer=kwargs.get("tokenizer"), model_kwargs=others, **own
            )

    def given_up(self: Any, generation_mode: Any, trust_remote_code: Any, custom_generate: Any = None) -> None:
        if custom_generate is None and "/" in (repository := GENERATION_MODES_MAPPING[generation_mode]):
            raise InputError(
                "transformers has given up this way of generating.",
                where="generation arguments",
                found=generation_mode.value,
                hint=f"`custom_generate='{repository}'` with `trust_remote_code=True`",
            )

    ways = {
        "_sample": one_by_one,
        "_beam_search": one_by_one,
        "_assisted_decoding": assisted,
        "_get_deprecated_gen_repo": given_up,
    }
    return type(model_class.__name__, (model_class,), {**ways, "__module__": model_class.__module__})


def validate_ids(input_ids: torch.Tensor, attention_mask: Any, vocabulary: int) -> None:
    """Raises InputError unless the ids are questions of `generate`, and the mask (or `None`) is theirs."""
    where, expected = "generate, input_ids", "whole numbers, ids of a text, (batch, length >= 1)"
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise InputError("There is no question.", where=where, found=tuple(input_ids.shape), expected=expected)
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise InputError("The ids are no token ids.", where=where, found=input_ids.dtype, expected=expected)
    least, most = input_ids.min().item(), input_ids.max().item()
    if least < 0 or most >= vocabulary:
        found = most if most >= vocabulary else least
        raise InputError("No token has this id.", where=where, found=found, expected=f"0 to {vocabulary - 1}")
    if attention_mask is not None and getattr(attention_mask, "shape", None) != input_ids.shape:
        raise InputError(
            "The mask is not that of the ids.",
            where="generate, attention_mask",
            found=tuple(getattr(attention_mask, "shape", ())) or repr(attention_mask)[:80],
            expected=f"a tensor {tuple(input_ids.shape)}",
        )


def infer_mask(input_ids: torch.Tensor, config: GenerationConfig, ends: list[int]) -> torch.Tensor:
    """transformers' mask for ids without one: zeros on the padding token, unless that also ends a text."""
    padding = torch.as_tensor(config.pad_token_id).flatten().tolist()[:1]
    return torch.ones_like(input_ids) if padding[0] in ends else input_ids.ne(padding[0]).long()
