"""Writing text: transformers' `generate` from a prompt of embeddings, its settings, tool calls and forced answers."""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.utils import ModelOutput, logging

from .agent_recursivemas import RecursiveMASAgent
from .answers_recursivemas import OPENINGS
from .batching_recursivemas import PromptBatch
from .caches_recursivemas import cache_argument
from .callers_recursivemas import CallerView, reads_once
from .embeddings_recursivemas import prompt_embeddings
from .errors_recursivemas import InputError
from .limits_recursivemas import FiniteLogits
from .prompts_recursivemas import PromptRenderer
from .settings_recursivemas import KINDS, TOKEN_LIST, TOKEN_LISTS, TOKENS
from .tools_recursivemas import FORGED, ToolBox, find_call

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class AnswerSettings:
    """How the decoding agent writes its answer, and what is kept of the run.

    Attributes:
        generation_config: transformers' settings, see `answer_config`.
        model_kwargs: arguments of transformers' `generate` that are no settings (stopping criteria, tokenizer, …).
        tools: tag -> function, with limits.
        message_tools: role -> likewise, of roles that use some in their messages.
        complete_answer: continue an answer that lacks what its task asks for, see `complete_answers`.
        return_latents: keep what travelled.
    """

    generation_config: GenerationConfig
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    tools: ToolBox | None = None
    message_tools: dict[str, ToolBox] = field(default_factory=dict)
    complete_answer: bool = False
    return_latents: bool = False

    @property
    def reuse(self) -> bool:
        """Whether the answer can go on from the prompt's cache; what follows a first answer reads the prompt again."""
        plain = not self.tools and not self.complete_answer
        return plain and continues_cache(self.generation_config, self.model_kwargs)


def answer_config(
    agent: RecursiveMASAgent,
    saved: GenerationConfig,
    kwargs: dict[str, Any],
    given: GenerationConfig | None = None,
    *,
    prompt_length: int,
    default_new_tokens: int,
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Merges settings; lengths that count the caller's prompt become lengths of the answer.

    Args:
        agent: the decoding agent, whose end-of-sequence and padding ids count where nobody says others.
        saved: the system's settings, which count where the caller says nothing.
        kwargs: transformers' generation arguments, as the caller gave them.
        given: a caller's own `generation_config`, which `kwargs` are laid over.
        prompt_length: of the caller's prompt, which `max_length` and `min_length` count.
        default_new_tokens: most new tokens where neither settings nor caller say.

    Returns:
        The settings, and the arguments that are none (stopping criteria, tokenizer, …).

    Raises:
        InputError: transformers refuses a setting, or there is no room for an answer.
    """
    config, defaults = copy.deepcopy(given or GenerationConfig()), saved.to_dict()
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    if config.max_length or "max_length" in kwargs:
        defaults.pop("max_new_tokens", None)  # what the caller says beats what a file says
    try:
        config.update(**defaults, defaults_only=True, allow_custom_entries=True)
        if "max_length" in kwargs and "max_new_tokens" not in kwargs:
            config.max_new_tokens = None
        model_kwargs = config.update(**kwargs)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            "transformers refuses a generation setting.", where="generation arguments", found=str(error)[:600]
        ) from error
    if config.max_new_tokens is None:
        longest = default_new_tokens if config.max_length is None else config.max_length - prompt_length
        if longest < 1:
            raise InputError(
                "The prompt leaves no room for an answer.",
                where="max_length",
                found=f"{config.max_length} for a prompt of {prompt_length} tokens",
                expected=f"at least {prompt_length + 1}",
                hint="set `max_new_tokens`",
            )
        config.max_new_tokens = longest
    if config.min_new_tokens is None and config.min_length:
        config.min_new_tokens = max(0, config.min_length - prompt_length)
    config.max_length = config.min_length = None
    if not config.do_sample:
        config.temperature = config.top_p = config.top_k = config.min_p = None  # unused, and warned about
    if config.eos_token_id is None:
        config.eos_token_id = agent.eos_token_ids
    if config.pad_token_id is None:
        config.pad_token_id = agent.pad_token_id
    if config.stop_strings is not None:
        model_kwargs.setdefault("tokenizer", agent.tokenizer)
    return config, model_kwargs


def ends_of(config: GenerationConfig) -> list[int]:
    """The ids that end a text."""
    ids = config.eos_token_id
    return torch.as_tensor([] if ids is None else ids).reshape(-1).tolist()


# What counts for the answer, and not for the messages of `mode="text"`.
_ANSWER_ONLY = (
    "max_length", "min_length", "min_new_tokens", "max_time", "stop_strings", "num_return_sequences", "sequence_bias",
    "force_words_ids", "constraints", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "output_scores",
    "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate",
)  # fmt: skip


def message_config(answer: GenerationConfig, agent: RecursiveMASAgent, message_tokens: int) -> GenerationConfig:
    """The settings of an agent's messages in `mode="text"`: sampling as for the answer; ends and length of its own."""
    config = copy.deepcopy(answer)
    config.max_new_tokens = message_tokens
    # Ids of the decoding agent's vocabulary say something else in another's.
    ids = [name for name, kind in KINDS.items() if kind in (TOKENS, TOKEN_LIST, TOKEN_LISTS)]
    for name in (*ids, *_ANSWER_ONLY):
        setattr(config, name, None)
    config.eos_token_id, config.pad_token_id = agent.eos_token_ids, agent.pad_token_id
    return config


def watched(model_kwargs: dict[str, Any], on_step: Callable[[], object] | None) -> dict[str, Any]:
    """Arguments of `generate` with which `on_step` is called after each token; what it raises ends the writing."""
    if on_step is None:
        return model_kwargs

    def watch(input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        on_step()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return {**model_kwargs, "stopping_criteria": [*(model_kwargs.get("stopping_criteria") or []), watch]}


def trim(output: torch.Tensor | ModelOutput, eos_token_ids: list[int]) -> list[list[int]]:
    """What `generate` returned, (batch, new) ids or an output that holds them as `sequences`.

    Returns:
        Each row's ids up to and including its first end-of-sequence token.
    """
    rows = []
    for row in (output if isinstance(output, torch.Tensor) else output["sequences"]).tolist():
        stop = next((i + 1 for i, token in enumerate(row) if token in eos_token_ids), len(row))
        rows.append(row[:stop])
    return rows


def continues_cache(config: GenerationConfig, model_kwargs: dict[str, Any]) -> bool:
    """Whether generation can continue a prompt's cache: one sequence per row, in transformers' default cache."""
    alone = config.num_beams in (None, 1) and config.num_return_sequences in (None, 1)
    usual = config.cache_implementation is None and config.prefill_chunk_size is None
    return alone and usual and reads_once(config, model_kwargs)


def generate_from(
    agent: RecursiveMASAgent,
    prompt: PromptBatch,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any] | None = None,
    question_ids: torch.Tensor | None = None,
) -> torch.Tensor | ModelOutput:
    """The base model's own `generate` from a prompt, as from token ids.

    Args:
        agent: the agent that writes.
        prompt: its prompts.
        generation_config: the settings.
        model_kwargs: further arguments of transformers' `generate`.
        question_ids: (batch, length), what stands in the prompt's place for the caller and its functions; `None` for
            nothing.

    Returns:
        What transformers returns, with the question in the prompt's place.

    Raises:
        NonFiniteError: the first or the last logits are not finite.
    """
    ids = prompt.input_ids(agent.pad_token_id)
    view = CallerView(ids[:, :0] if question_ids is None else question_ids, ids.shape[1])
    arguments = view.arguments(model_kwargs or {}, generation_config)
    once = reads_once(generation_config, arguments)
    if prompt.past_key_values is not None:
        arguments |= cache_argument(agent.model.forward, prompt.past_key_values)
    finite = FiniteLogits(agent.dtype, prompt.where)
    arguments["logits_processor"] = LogitsProcessorList([finite, *(arguments.get("logits_processor") or [])])
    place, where = agent.get_input_embeddings(), f"agent {agent.role}, {type(agent.model).__name__}"
    given = prompt_embeddings(place, prompt.inputs_embeds, ids, past=prompt.past, once=once, where=where)
    with given if prompt.latent else nullcontext():
        output = agent.model.generate(
            ids, attention_mask=prompt.attention_mask, generation_config=generation_config, **arguments
        )
    finite.look()
    return view.output(output)


def write_answers(
    agent: RecursiveMASAgent, renderer: PromptRenderer, prompt: PromptBatch, task: str, settings: AnswerSettings
) -> tuple[list[list[int]], list[int]]:
    """The decoding agent's answers to a batch, with tools and completion where the settings ask for them.

    Returns:
        For each row, its ids, and how many of them were put there for the agent to read (results of tools, the line
        that opens a forced answer).
    """
    config, model_kwargs = settings.generation_config, settings.model_kwargs
    if settings.tools:
        answers, read = write_with_tools(agent, renderer, prompt, settings.tools, config, model_kwargs)
    else:
        answers = trim(generate_from(agent, prompt, config, model_kwargs), ends_of(config))
        read = [0] * len(answers)
    if settings.complete_answer and task in OPENINGS:
        opened = complete_answers(agent, renderer, prompt, answers, task, config, model_kwargs)
        read = [count + more for count, more in zip(read, opened, strict=True)]
    return answers, read


def write_with_tools(
    agent: RecursiveMASAgent,
    renderer: PromptRenderer,
    prompt: PromptBatch,
    tools: ToolBox,
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
    question_ids: torch.Tensor | None = None,
) -> tuple[list[list[int]], list[int]]:
    """Generates from a batch of prompts, with calls answered.

    Args:
        agent: the decoding agent.
        renderer: its renderer, which tokenizes results as plain text.
        prompt: without a cache, because answers to calls are read together with it.
        tools: answers the calls; those of several rows side by side.
        config: generation settings, one sequence a row; `max_new_tokens` counts what the agent writes in all. An
            answer ends, with a warning, where a result leaves no room for this among the agent's positions.
        model_kwargs: further arguments of transformers' `generate`; functions see what follows the last result.
        question_ids: see `generate_from`.

    Returns:
        For each row, the ids of what the agent wrote with the results in it, and how many of them are results.
    """
    config = copy.deepcopy(config)
    own_stops = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings or []
    config.stop_strings = [*own_stops, *(f"</{tag}>" for tag in tools), f"<{FORGED}>"]
    model_kwargs = {**model_kwargs, "tokenizer": agent.tokenizer}
    limit, ends = config.max_new_tokens, ends_of(config)
    positions = agent.position_limit or math.inf
    count = prompt.inputs_embeds.shape[0]
    question = prompt
    written: list[list[int]] = [[] for _ in range(count)]
    results = [0] * count  # tokens of results among `written`
    rows = list(range(count))
    for calls in range(tools.max_calls + 1):
        if calls:
            prompt = question.continued(agent, {row: written[row] for row in rows})
        left = [limit - len(written[row]) + results[row] for row in rows]
        config.max_new_tokens = max(left)
        seen = None if question_ids is None else question_ids[rows]
        output = generate_from(agent, prompt, config, model_kwargs, seen)
        if seen is not None:
            output = cast(torch.Tensor, output)[:, seen.shape[1] :]
        calling: dict[int, tuple[str, str]] = {}
        for row, room, ids in zip(rows, left, trim(output, ends), strict=True):
            text = agent.decode(ids)
            call = find_call(text, tools) or ((FORGED, "") if f"<{FORGED}>" in text else None)
            # A row that stopped at a closing tag is padded up to the longest one.
            fill = {config.pad_token_id} if call is None else {config.pad_token_id, *ends}
            while ids and ids[-1] in fill and (call or ids[-1] not in ends):
                ids.pop()
            ids = ids[:room]
            written[row] += ids
            if call is not None and call[0] not in tools.ending and len(ids) < room and calls < tools.max_calls:
                calling[row] = call
        rows = list(calling)
        for (row, (tag, _)), answer in zip(calling.items(), tools.answer(list(calling.values())), strict=True):
            opening = "" if tag == FORGED else f"<{FORGED}>"  # which stands there already
            result = renderer.message_ids(f"{opening}{answer}</{FORGED}>")
            # Only now it is known how long results are; all rows write as long as the one that has written least.
            need = sum(map(len, question.rows[row])) + len(written[row]) + len(result) + limit
            if need > positions:
                found = f"of {len(result)} tokens, going on may need {need} positions of {positions}"
                logger.warning(f"{question.where}: an answer ends with a call, for with its result {found}.")
                rows.remove(row)
                continue
            written[row] += result
            results[row] += len(result)
        if not rows:
            break
    return written, results


def validate_one_text(config: GenerationConfig) -> None:
    """Raises InputError where more than one text a row, or more than texts, is asked for."""
    asked = {"num_return_sequences": config.num_return_sequences not in (None, 1)}
    asked["return_dict_in_generate"] = bool(config.return_dict_in_generate)
    for name in (name for name, more in asked.items() if more):
        raise InputError("With tools, one text a row is returned.", where=name, found=getattr(config, name))


def generate_with_tools(
    agent: RecursiveMASAgent,
    renderer: PromptRenderer,
    prompt: PromptBatch,
    tools: ToolBox,
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
    question_ids: torch.Tensor,
) -> torch.Tensor:
    """As `generate_from`, with calls answered; a streamer gets the answers when they are whole."""
    model_kwargs = dict(model_kwargs)
    streamer = model_kwargs.pop("streamer", None)
    rows, _ = write_with_tools(agent, renderer, prompt, tools, config, model_kwargs, question_ids)
    longest, padding = max(map(len, rows)), config.pad_token_id
    new_ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows], device=question_ids.device)
    if streamer is not None:
        for tokens in new_ids.cpu().T:
            streamer.put(tokens)
        streamer.end()
    return torch.cat([question_ids, new_ids], dim=1)


def complete_answers(
    agent: RecursiveMASAgent,
    renderer: PromptRenderer,
    prompt: PromptBatch,
    answers: list[list[int]],
    task: str,
    config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> list[int]:
    """Continues, in place, the answers that lack what the task asks for, once, as the public release does.

    Args:
        agent: the decoding agent.
        renderer: its renderer.
        prompt: what the answers were generated from, without a cache.
        answers: each row's ids.
        task: one of `OPENINGS`.
        config: generation settings.
        model_kwargs: further arguments of transformers' `generate`.

    Returns:
        For each row, how many ids were put there by this function, as the line that opens the answer.
    """
    sign, line, new_tokens = OPENINGS[task]
    opening = renderer.message_ids(line)
    rows = [row for row, ids in enumerate(answers) if sign not in agent.decode(ids)]
    if not rows:
        return [0] * len(answers)
    ends = ends_of(config)
    for row in rows:
        answers[row] = [*(token for token in answers[row] if token not in ends), *opening]
    config = copy.deepcopy(config)
    config.max_new_tokens, config.min_new_tokens = new_tokens, None
    prompt = prompt.continued(agent, {row: answers[row] for row in rows})
    for row, new_ids in zip(rows, trim(generate_from(agent, prompt, config, model_kwargs), ends), strict=True):
        answers[row] += new_ids
    return [len(opening) * (row in rows) for row in range(len(answers))]
