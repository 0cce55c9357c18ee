"""Writing text: transformers' `generate` from a prompt of embeddings, its settings, tool calls and forced answers."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .agent_recursivemas import RecursiveMASAgent
from .answers_recursivemas import OPENINGS
from .batching_recursivemas import PromptBatch, embed_rows
from .caches_recursivemas import cache_argument
from .prompts_recursivemas import PromptRenderer
from .tools_recursivemas import FORGED, ToolBox, find_call


@dataclass(frozen=True)
class AnswerSettings:
    """How the decoding agent writes its answer, and what is kept of the run.

    Attributes:
        generation_config: transformers' settings, see `answer_config`.
        model_kwargs: arguments of transformers' `generate` that are no settings (stopping criteria, tokenizer, …).
        tools: tag -> function, with limits.
        complete_answer: continue an answer that lacks what its task asks for, see `complete_answers`.
        return_latents: keep what travelled.
    """

    generation_config: GenerationConfig
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    tools: ToolBox | None = None
    complete_answer: bool = False
    return_latents: bool = False

    @property
    def reuse(self) -> bool:
        """Whether the answer can go on from the prompt's cache; what follows a first answer reads the prompt again."""
        return not self.tools and not self.complete_answer and single_sequence(self.generation_config)


def answer_config(
    agent: RecursiveMASAgent,
    saved: GenerationConfig,
    kwargs: dict[str, Any],
    *,
    prompt_length: int,
    default_new_tokens: int,
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Merges settings; lengths that count the caller's prompt become lengths of the answer.

    Args:
        agent: the decoding agent, whose end-of-sequence and padding ids count where nobody says others.
        saved: the settings that `kwargs` are laid over.
        kwargs: transformers' generation arguments, as the caller gave them.
        prompt_length: of the caller's prompt, which `max_length` and `min_length` count.
        default_new_tokens: most new tokens where neither settings nor caller say.

    Returns:
        The settings, and the arguments that are none (stopping criteria, tokenizer, …).
    """
    config = copy.deepcopy(saved)
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    if "max_length" in kwargs and "max_new_tokens" not in kwargs:
        config.max_new_tokens = None  # what the caller says beats what a file says
    model_kwargs = config.update(**kwargs)
    if config.max_new_tokens is None:
        longest = default_new_tokens if config.max_length is None else config.max_length - prompt_length
        config.max_new_tokens = max(1, longest)
    if config.min_new_tokens is None and config.min_length:
        config.min_new_tokens = max(0, config.min_length - prompt_length)
    config.max_length = config.min_length = None
    if not config.do_sample:
        config.temperature = config.top_p = config.top_k = config.min_p = None  # unused, and warned about
    if config.eos_token_id is None:
        config.eos_token_id = agent.eos_token_ids
    if config.pad_token_id is None:
        config.pad_token_id = agent.pad_token_id
    return config, model_kwargs


def message_config(answer: GenerationConfig, agent: RecursiveMASAgent, message_tokens: int) -> GenerationConfig:
    """The settings of an agent's messages in `mode="text"`: sampling as for the answer; ends and length of its own."""
    config = copy.deepcopy(answer)
    config.max_new_tokens = message_tokens
    for name in ("max_length", "min_length", "min_new_tokens", "stop_strings", "num_return_sequences", "bos_token_id"):
        setattr(config, name, None)
    config.eos_token_id, config.pad_token_id = agent.eos_token_ids, agent.pad_token_id
    return config


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


def single_sequence(config: GenerationConfig) -> bool:
    """Whether generation can continue a prompt's cache: one sequence per row, in transformers' default cache."""
    alone = config.num_beams in (None, 1) and config.num_return_sequences in (None, 1)
    return alone and config.cache_implementation is None and config.use_cache is not False


def generate_from(agent: RecursiveMASAgent, prompt: PromptBatch, **kwargs: Any) -> torch.Tensor | ModelOutput:
    """The base model's own `generate` from a prompt of embeddings; kwargs are transformers' generation arguments.

    Where the prompt's head is cached, transformers skips that part of the embeddings (they must have full length).
    """
    if prompt.past_key_values is not None:
        kwargs |= cache_argument(agent.model.forward, prompt.past_key_values)
    return agent.model.generate(inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask, **kwargs)


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
        ids = generate_from(agent, prompt, generation_config=config, **model_kwargs)
        answers = trim(ids, agent.eos_token_ids)
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
) -> tuple[list[list[int]], list[int]]:
    """Generates from a batch of prompts, with calls answered.

    Args:
        agent: the decoding agent.
        renderer: its renderer, which tokenizes results as plain text.
        prompt: without a cache, because answers to calls are read together with it.
        tools: answers the calls; those of several rows side by side.
        config: generation settings, one sequence a row; `max_new_tokens` counts what the agent writes in all.
        model_kwargs: further arguments of transformers' `generate`.

    Returns:
        For each row, the ids of what the agent wrote with the results in it, and how many of them are results.
    """
    config = copy.deepcopy(config)
    own_stops = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings or []
    config.stop_strings = [*own_stops, *(f"</{tag}>" for tag in tools), f"<{FORGED}>"]
    model_kwargs = {**model_kwargs, "tokenizer": agent.tokenizer}
    limit = config.max_new_tokens
    count = prompt.inputs_embeds.shape[0]
    heads = [embeds[seen.bool()] for embeds, seen in zip(prompt.inputs_embeds, prompt.attention_mask, strict=True)]
    written: list[list[int]] = [[] for _ in range(count)]
    results = [0] * count  # tokens of results among `written`
    rows = list(range(count))
    for calls in range(tools.max_calls + 1):
        if calls:
            prompt = PromptBatch(*embed_rows(agent, [[heads[row], written[row]] for row in rows]))
        left = [limit - len(written[row]) + results[row] for row in rows]
        config.max_new_tokens = max(left)
        output = generate_from(agent, prompt, generation_config=config, **model_kwargs)
        calling: dict[int, tuple[str, str]] = {}
        for row, room, ids in zip(rows, left, trim(output, agent.eos_token_ids), strict=True):
            text = agent.decode(ids)
            call = find_call(text, tools) or ((FORGED, "") if f"<{FORGED}>" in text else None)
            # A row that stopped at a closing tag is padded up to the longest one.
            fill = {agent.pad_token_id} if call is None else {agent.pad_token_id, *agent.eos_token_ids}
            while ids and ids[-1] in fill and (call or ids[-1] not in agent.eos_token_ids):
                ids.pop()
            ids = ids[:room]
            written[row] += ids
            if call is not None and len(ids) < room and calls < tools.max_calls:
                calling[row] = call
        rows = list(calling)
        if not rows:
            break
        for (row, (tag, _)), answer in zip(calling.items(), tools.answer(list(calling.values())), strict=True):
            opening = "" if tag == FORGED else f"<{FORGED}>"  # which stands there already
            result = renderer.message_ids(f"{opening}{answer}</{FORGED}>")
            written[row] += result
            results[row] += len(result)
    return written, results


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
    pieces: list[list[torch.Tensor | list[int]]] = []
    for row in rows:
        answers[row] = [*(token for token in answers[row] if token not in agent.eos_token_ids), *opening]
        pieces.append([prompt.inputs_embeds[row][prompt.attention_mask[row].bool()], answers[row]])
    config = copy.deepcopy(config)
    config.max_new_tokens, config.min_new_tokens = new_tokens, None
    ids = generate_from(agent, PromptBatch(*embed_rows(agent, pieces)), generation_config=config, **model_kwargs)
    for row, new_ids in zip(rows, trim(ids, agent.eos_token_ids), strict=True):
        answers[row] += new_ids
    return [len(opening) * (row in rows) for row in range(len(answers))]
