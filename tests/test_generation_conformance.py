"""Generation is transformers' generation: every argument and input form, against the decoding agent's own `generate`.

The reference is the decoding agent on the identical prompt: the token ids of its chat where it works alone, the same
embeddings where it reads latents. Each entry of the table gives equal tokens, or is refused before any compute.
"""

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.callers_recursivemas import judge_arguments
from recursivemas.engine_recursivemas import Run
from recursivemas.errors_recursivemas import ArgumentError, CheckpointError, InputError, RecursiveMASError
from recursivemas.generation_recursivemas import answer_config
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.prompts_recursivemas import template_for
from recursivemas.settings_recursivemas import ARGUMENTS, KINDS, REFUSED, fields
from tiny import tiny_chain
from transformers import (
    CompileConfig,
    DynamicCache,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

QUESTIONS = ["How many apples are 12 + 3 apples?", "Why?"]
NEW = 10


@pytest.fixture(scope="module")
def pair() -> RecursiveMASModel:
    """A system of two; the agent that decodes is a Qwen 2."""
    return tiny_chain({"first": "qwen3", "second": "qwen2"})


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        arguments: what `generate` gets; a function of the length of the caller's prompt, and called for each side.
        reads_prompt: whether the outcome depends on the ids of the prompt, so that latents have no reference.
        rows: questions in the batch.
        acts: whether the tokens differ from those of greedy search.
        refused: part of the error's text, where a system says no.
        reference: what the decoding agent gets instead, where the arguments must not change the tokens.
    """

    arguments: Callable[[int], dict[str, Any]]
    reads_prompt: bool = False
    rows: int = 2
    acts: bool = True
    refused: str | None = None
    reference: dict[str, Any] | None = None


def sets(acts: bool = True, reads_prompt: bool = False, rows: int = 2, **arguments: Any) -> Entry:
    return Entry(lambda length: dict(arguments), reads_prompt, rows, acts)


def samples(**arguments: Any) -> Entry:
    """A setting that only sampling reads."""
    return sets(do_sample=True, **arguments)


def drafts(**arguments: Any) -> Entry:
    """Assisted decoding: the tokens of greedy search."""
    return Entry(lambda length: dict(arguments), rows=1, acts=False, reference={})


def refuses(why: str, **arguments: Any) -> Entry:
    return Entry(lambda length: dict(arguments), refused=why)


def bans_odd(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A processor of the caller's: no odd ids."""
    scores[:, 1::2] = -float("inf")
    return scores


def stops_after_three(length: int) -> Callable:
    """A criterion of the caller's that counts from its own prompt."""
    return lambda input_ids, scores, **_: torch.full((len(input_ids),), input_ids.shape[1] >= length + 3)


def even_ids(row: int, input_ids: torch.Tensor) -> list[int]:
    return list(range(row % 2, 90, 2))


def least_likely(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
    """A decoding loop of the caller's: always the least likely token."""
    for _ in range(4):
        mask = torch.ones_like(input_ids) if (m := model_kwargs.get("attention_mask")) is None else m
        new = mask.new_ones(mask.shape[0], input_ids.shape[1] - mask.shape[1])
        logits = model(input_ids=input_ids, attention_mask=torch.cat([mask, new], dim=1)).logits[:, -1]
        input_ids = torch.cat([input_ids, logits.argmin(-1, keepdim=True)], dim=1)
    return input_ids


class Collects(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.ended = True


GIVEN_UP = "given up"
OF_ONE = "every agent reads prompts of its own"
# Name of a field or argument -> its rows. `...` stands for another test of this file, named beside it.
TABLE: dict[str, list[Entry]] = {
    "max_new_tokens": [sets(max_new_tokens=3), refuses("max_new_tokens", max_new_tokens=0)],
    "max_length": [Entry(lambda length: {"max_length": length + 4, "max_new_tokens": None}, reads_prompt=True),
        refuses("max_length", max_length=0, max_new_tokens=None)],
    "min_length": [Entry(lambda length: {"min_length": length + 9, "eos_token_id": list(range(0, 291, 2))},
        reads_prompt=True)],
    "min_new_tokens": [sets(min_new_tokens=9, eos_token_id=list(range(0, 291, 2)))],
    "early_stopping": [sets(num_beams=3, early_stopping=True), refuses("early_stopping", early_stopping="soon")],
    "max_time": [sets(max_time=0.0)],
    "stop_strings": [...],  # test_stop_strings_need_no_tokenizer
    "do_sample": [sets(do_sample=True), refuses("do_sample", do_sample="yes")],
    "num_beams": [sets(num_beams=3), sets(num_beams=2, do_sample=True), refuses("num_beams", num_beams=0)],
    "use_mtp": [refuses("transformers refuses", use_mtp=True)],
    "use_cache": [sets(acts=False, use_cache=False)],
    "cache_implementation": [sets(acts=False, cache_implementation="static"),
        sets(acts=False, cache_implementation="dynamic"),
        refuses("accelerator", cache_implementation="offloaded"),
        refuses("continuously", cache_implementation="paged"),
        refuses("cache_implementation", cache_implementation="none such")],
    "cache_config": [sets(acts=False, cache_implementation="static", cache_config={})],
    "max_cache_len": [sets(acts=False, cache_implementation="static", max_cache_len=200)],
    "temperature": [samples(temperature=3.0), refuses("temperature", temperature=-1.0, do_sample=True),
        refuses("temperature", temperature="hot")],
    "top_k": [samples(top_k=2), refuses("top_k", top_k=2.5)],
    "top_p": [samples(top_p=0.2), refuses("top_p", top_p=-1.0, do_sample=True)],
    "min_p": [samples(min_p=0.3)],
    "top_h": [samples(top_h=0.3)],
    "typical_p": [samples(typical_p=0.3)],
    "epsilon_cutoff": [samples(temperature=3.0, epsilon_cutoff=0.02)],
    "eta_cutoff": [samples(eta_cutoff=0.2)],
    "repetition_penalty": [sets(repetition_penalty=5.0, reads_prompt=True),
        refuses("`repetition_penalty`", repetition_penalty=-1.0),
        refuses("repetition_penalty", repetition_penalty=float("nan"))],
    "encoder_repetition_penalty": [sets(encoder_repetition_penalty=0.2, reads_prompt=True)],
    "length_penalty": [sets(num_beams=3, length_penalty=-3.0)],
    "no_repeat_ngram_size": [sets(no_repeat_ngram_size=1, reads_prompt=True)],
    "encoder_no_repeat_ngram_size": [sets(encoder_no_repeat_ngram_size=1, reads_prompt=True)],
    "bad_words_ids": [sets(bad_words_ids=[[token] for token in range(1, 291, 2)]),
        refuses("bad_words_ids", bad_words_ids=[3]), refuses("vocabulary", bad_words_ids=[[10**6]])],
    "renormalize_logits": [sets(num_beams=3, renormalize_logits=True)],
    "forced_bos_token_id": [sets(acts=False, forced_bos_token_id=5, reads_prompt=True)],
    "forced_eos_token_id": [sets(forced_eos_token_id=6)],
    "remove_invalid_values": [sets(acts=False, remove_invalid_values=True)],
    "exponential_decay_length_penalty": [sets(exponential_decay_length_penalty=(1, 1e9)),
        refuses("refuses", exponential_decay_length_penalty="long")],
    "suppress_tokens": [sets(suppress_tokens=list(range(1, 291, 2))), refuses("suppress_tokens", suppress_tokens=3)],
    "begin_suppress_tokens": [sets(begin_suppress_tokens=list(range(0, 291, 2)))],
    "sequence_bias": [sets(sequence_bias=[[[7], 1e6]]), refuses("refuses", sequence_bias=3)],
    "token_healing": [refuses("chat template", token_healing=True)],
    "guidance_scale": [sets(guidance_scale=3.0, rows=1, reads_prompt=True)],
    "watermarking_config": [sets(watermarking_config={"bias": 50.0, "greenlist_ratio": 0.2}, reads_prompt=True)],
    "num_return_sequences": [sets(num_return_sequences=3, do_sample=True), sets(num_return_sequences=2, num_beams=3),
        refuses("num_return_sequences", num_return_sequences=2)],
    "output_attentions": [...],  # test_outputs_are_those_of_the_decoding_agent, as are the next four
    "output_hidden_states": [...],
    "output_scores": [...],
    "output_logits": [...],
    "return_dict_in_generate": [...],
    "pad_token_id": [sets(acts=False, pad_token_id=7), refuses("pad_token_id", pad_token_id="<pad>")],
    "bos_token_id": [sets(acts=False, bos_token_id=7)],
    "eos_token_id": [sets(eos_token_id=list(range(0, 291, 2))), sets(acts=False, eos_token_id=torch.tensor([3])),
        refuses("eos_token_id", eos_token_id="</s>")],
    "decoder_start_token_id": [sets(acts=False, decoder_start_token_id=5)],
    "is_assistant": [refuses("draft", is_assistant=True)],
    "num_assistant_tokens": [drafts(prompt_lookup_num_tokens=4, num_assistant_tokens=2)],
    "num_assistant_tokens_schedule": [...],  # test_an_assistant_changes_nothing
    "assistant_confidence_threshold": [...],
    "assistant_lookbehind": [...],
    "target_lookbehind": [...],
    "assistant_ensemble_weight": [refuses("refuses", prompt_lookup_num_tokens=2, assistant_ensemble_weight=0.5)],
    "speculation_type": [...],
    "prompt_lookup_num_tokens": [drafts(prompt_lookup_num_tokens=3),
        refuses("prompt_lookup_num_tokens", prompt_lookup_num_tokens=0)],
    "max_matching_ngram_size": [drafts(prompt_lookup_num_tokens=3, max_matching_ngram_size=1)],
    "assistant_early_exit": [drafts(assistant_early_exit=1), refuses("assistant_early_exit", assistant_early_exit=0)],
    "compile_config": [sets(acts=False, compile_config=CompileConfig()),
        refuses("compile_config", compile_config={"mode": "x"})],
    "disable_compile": [sets(acts=False, cache_implementation="static", disable_compile=True)],
    "continuous_batching_config": [refuses("continuously", continuous_batching_config={})],
    "low_memory": [sets(acts=False, low_memory=True)],
    "penalty_alpha": [refuses(GIVEN_UP, penalty_alpha=0.6, top_k=4)],
    "dola_layers": [refuses(GIVEN_UP, dola_layers="high")],
    "diversity_penalty": [refuses(GIVEN_UP, diversity_penalty=1.0, num_beams=4, num_beam_groups=2)],
    "num_beam_groups": [refuses(GIVEN_UP, num_beams=4, num_beam_groups=2, trust_remote_code=True)],
    "constraints": [refuses(GIVEN_UP, constraints=[[3]], num_beams=2)],
    "force_words_ids": [refuses(GIVEN_UP, force_words_ids=[[3]], num_beams=2)],
    "prefill_chunk_size": [sets(acts=False, prefill_chunk_size=4),
        refuses("prefill_chunk_size", prefill_chunk_size=0)],
    # Arguments of `generate` that are no settings
    "logits_processor": [sets(logits_processor=[bans_odd]),
        sets(logits_processor=LogitsProcessorList([RepetitionPenaltyLogitsProcessor(5.0)]), reads_prompt=True),
        sets(logits_processor=[RepetitionPenaltyLogitsProcessor(5.0)], repetition_penalty=1.1, reads_prompt=True),
        refuses("logits_processor", logits_processor=bans_odd), refuses("logits_processor", logits_processor=[3])],
    "stopping_criteria": [Entry(lambda length: {"stopping_criteria": [stops_after_three(length)]}),
        Entry(lambda length: {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(length + 2)])}),
        sets(stopping_criteria=[EosTokenCriteria(list(range(0, 291, 2)))]),
        refuses("stopping_criteria", stopping_criteria="stop")],
    "prefix_allowed_tokens_fn": [sets(prefix_allowed_tokens_fn=even_ids),
        sets(prefix_allowed_tokens_fn=even_ids, num_beams=2),
        sets(prefix_allowed_tokens_fn=even_ids, do_sample=True, num_return_sequences=3),
        refuses("prefix_allowed_tokens_fn", prefix_allowed_tokens_fn=[1])],
    "synced_gpus": [sets(acts=False, synced_gpus=False)],
    "assistant_model": [...],  # test_an_assistant_changes_nothing
    "assistant_tokenizer": [...],
    "tokenizer": [...],  # test_stop_strings_need_no_tokenizer
    "streamer": [...],  # test_a_streamer_gets_the_callers_prompt_and_the_agents_tokens
    "negative_prompt_ids": [sets(guidance_scale=3.0, negative_prompt_ids=torch.tensor([[5, 6, 7]]), rows=1,
        reads_prompt=True)],
    "negative_prompt_attention_mask": [sets(guidance_scale=3.0, negative_prompt_ids=torch.tensor([[5, 6, 7]]), rows=1,
        negative_prompt_attention_mask=torch.tensor([[0, 1, 1]]), reads_prompt=True)],
    "custom_generate": [sets(custom_generate=least_likely, reads_prompt=True),
        refuses("custom_generate", custom_generate=3),
        refuses("refuses", custom_generate="/no/such/folder")],
    "trust_remote_code": [sets(acts=False, trust_remote_code=True)],
    # What only one model can take
    "inputs_embeds": [refuses("own vocabulary", inputs_embeds=torch.zeros(1, 3, 64))],
    "past_key_values": [refuses(OF_ONE, past_key_values=DynamicCache())],
    "cache": [refuses(OF_ONE, cache=DynamicCache())],
    "position_ids": [refuses(OF_ONE, position_ids=torch.arange(3)[None])],
    "decoder_input_ids": [refuses("encoder-decoder", decoder_input_ids=torch.zeros(1, 1, dtype=torch.long))],
}  # fmt: skip
ROWS = [
    pytest.param(entry, id=f"{name}-{index}")
    for name, entries in TABLE.items()
    for index, entry in enumerate(entries)
    if entry is not ...
]
REFUSED_ROWS = [row for row in ROWS if row.values[0].refused]
EQUAL = [row for row in ROWS if row.values[0].refused is None]


def thinned(rows):
    """Every second one is slow: what differs between them is held over ids by the test before."""
    marks = [[*row.marks, *[pytest.mark.slow] * (index % 2)] for index, row in enumerate(rows)]
    return [pytest.param(*row.values, id=row.id, marks=mark) for row, mark in zip(rows, marks, strict=True)]


def test_every_argument_of_the_installed_transformers_has_an_entry():
    assert fields() <= KINDS.keys(), "settings without a kind"
    assert fields() | ARGUMENTS | REFUSED.keys() == TABLE.keys() & (fields() | ARGUMENTS | REFUSED.keys())
    assert TABLE.keys() <= KINDS.keys() | ARGUMENTS | REFUSED.keys()


def decoder_of(mas: RecursiveMASModel) -> RecursiveMASAgent:
    return mas.agents[mas.config.decoding_role]


def chat_ids(mas: RecursiveMASModel, questions: list[str]) -> dict[str, torch.Tensor]:
    """What the decoding agent reads alone, as ids and mask, padded on the left."""
    role, agent = mas.config.decoding_role, decoder_of(mas)
    system, template = template_for(mas.config.prompts, role, "default", "alone")
    rows = [mas.renderers[role].pieces(system, template, question)[0] for question in questions]
    longest = max(map(len, rows))
    ids = [[agent.pad_token_id] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def embeddings(mas: RecursiveMASModel, questions: list[str]) -> dict[str, torch.Tensor]:
    """What the decoding agent reads last in the system, as embeddings and mask."""
    run = Run(mas, questions, mas.config.run_settings(), mas.generation_config)
    prompt = run.decoder_prompt(reuse=False)
    return {"inputs_embeds": prompt.inputs_embeds, "attention_mask": prompt.attention_mask}


def ids_of(mas: RecursiveMASModel, questions: list[str]) -> dict[str, torch.Tensor]:
    return mas.tokenizer(questions, return_tensors="pt", padding=True, padding_side="left")


def written(output: Any, length: int) -> list[list[int]]:
    """The new ids of each row."""
    return (output if isinstance(output, torch.Tensor) else output["sequences"])[:, length:].tolist()


def by_the_agent(mas: RecursiveMASModel, prompt: dict[str, torch.Tensor], **arguments: Any) -> list[list[int]]:
    """The decoding agent's own `generate` from ids or embeddings; the latter come back without a prompt."""
    torch.manual_seed(0)
    length = prompt["input_ids"].shape[1] if "input_ids" in prompt else 0
    return written(decoder_of(mas).model.generate(**prompt, **{"max_new_tokens": NEW} | arguments), length)


def by_the_system(mas: RecursiveMASModel, questions: list[str], mode: str, **arguments: Any) -> list[list[int]]:
    inputs = ids_of(mas, questions)
    length = inputs["input_ids"].shape[1]
    torch.manual_seed(0)
    output = mas.generate(**inputs, mode=mode, **{"max_new_tokens": NEW} | arguments)
    ids = output if isinstance(output, torch.Tensor) else output["sequences"]
    copies = len(ids) // len(questions)
    assert torch.equal(ids[:, :length], inputs["input_ids"].repeat_interleave(copies, dim=0))
    return written(output, length)


@pytest.mark.parametrize("entry", EQUAL)
def test_the_tokens_are_those_of_the_decoding_agent_from_ids(pair, entry):
    questions = QUESTIONS[: entry.rows]
    prompt, asked = chat_ids(pair, questions), ids_of(pair, questions)
    theirs = entry.arguments(prompt["input_ids"].shape[1]) if entry.reference is None else entry.reference
    expected = by_the_agent(pair, prompt, **theirs)
    if entry.acts:
        assert expected != by_the_agent(pair, prompt), "the entry shows nothing"
    assert by_the_system(pair, questions, "alone", **entry.arguments(asked["input_ids"].shape[1])) == expected


@pytest.mark.parametrize("entry", thinned([row for row in EQUAL if not row.values[0].reads_prompt]))
def test_the_tokens_are_those_of_the_decoding_agent_from_latents(pair, entry):
    questions = QUESTIONS[: entry.rows]
    prompt, asked = embeddings(pair, questions), ids_of(pair, questions)
    arguments = entry.arguments(asked["input_ids"].shape[1])
    theirs = entry.arguments(0) if entry.reference is None else entry.reference
    # transformers takes no chunks of embeddings
    theirs = {name: value for name, value in theirs.items() if name != "prefill_chunk_size"}
    expected = by_the_agent(pair, prompt, **theirs)
    assert by_the_system(pair, questions, "latent", **arguments) == expected


@pytest.mark.parametrize("door", ["generate", "solve"])
@pytest.mark.parametrize("entry", REFUSED_ROWS)
def test_what_cannot_be_used_is_refused_before_any_compute(pair, monkeypatch, entry, door):
    for agent in pair.agents.values():
        monkeypatch.setattr(agent, "encode", lambda *_, **__: pytest.fail("computed"))
        monkeypatch.setattr(agent.model, "forward", lambda *_, **__: pytest.fail("computed"))
    arguments = {"max_new_tokens": NEW, **entry.arguments(0)}
    with pytest.raises(RecursiveMASError) as error:
        if door == "solve":
            pair.solve(QUESTIONS, **arguments)
        else:
            pair.generate(**ids_of(pair, QUESTIONS), **arguments)
    assert entry.refused in str(error.value) or "one result per question" in str(error.value)


def plain_greedy(pair: RecursiveMASModel, mode: str) -> list[list[int]]:
    return by_the_system(pair, QUESTIONS[:1], mode)


@pytest.mark.parametrize("mode", ["alone", "latent"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_assistant_tokens": 3, "num_assistant_tokens_schedule": "heuristic"},
        {"num_assistant_tokens": 2, "num_assistant_tokens_schedule": "constant"},
        {"assistant_confidence_threshold": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("drafter", ["itself", pytest.param("a copy", marks=pytest.mark.slow), "another"])
def test_an_assistant_changes_nothing(pair, mode, settings, drafter):
    """The tokens of greedy search, whoever drafts: also the agent itself, which reads the same latents."""
    model = decoder_of(pair).model
    assistant = model if drafter == "itself" else copy.deepcopy(model)
    if drafter == "another":
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in assistant.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    kept = copy.deepcopy(assistant.generation_config)
    try:
        found = by_the_system(pair, QUESTIONS[:1], mode, assistant_model=assistant, **settings)
        text = pair.solve(QUESTIONS[:1], mode=mode, max_new_tokens=NEW, assistant_model=assistant, **settings)[0].text
    finally:
        assistant.generation_config = kept
    assert found == plain_greedy(pair, mode)
    assert text == decoder_of(pair).decode(found[0])


def test_an_assistant_that_reads_the_same_latents_drafts_what_is_written(pair):
    """Fewer passes of the agent than tokens: its drafts are taken, which they are only from the same prompt."""
    agent, passes = decoder_of(pair), []
    hook = agent.model.register_forward_pre_hook(lambda *_: passes.append(1))
    found = by_the_system(pair, QUESTIONS[:1], "latent", assistant_early_exit=2, num_assistant_tokens=5)
    hook.remove()
    # The whole agent drafts: its passes as the drafter, and one for all tokens of a draft.
    assert found == plain_greedy(pair, "latent") and len(passes) < 1.6 * NEW


@pytest.mark.parametrize("arguments", [{"speculation_type": "dflash"}, {"assistant_tokenizer": None}, {}], ids=str)
def test_an_assistant_of_another_vocabulary_is_judged_before_any_compute(pair, monkeypatch, arguments):
    for agent in pair.agents.values():
        monkeypatch.setattr(agent, "encode", lambda *_, **__: pytest.fail("computed"))
    assistant = pair.agents["first"].model
    with pytest.raises(InputError, match="transformers refuses"):
        pair.generate(**ids_of(pair, QUESTIONS[:1]), assistant_model=assistant, **arguments)


@pytest.mark.parametrize("lookbehind", [{}, {"assistant_lookbehind": 3, "target_lookbehind": 4}], ids=str)
def test_an_assistant_of_another_tokenizer_changes_nothing(pair, lookbehind):
    first = pair.agents["first"]
    tokenizers = {"tokenizer": pair.tokenizer, "assistant_tokenizer": first.tokenizer}
    assistant = copy.deepcopy(first.model)
    found = by_the_system(pair, QUESTIONS[:1], "latent", assistant_model=assistant, **tokenizers, **lookbehind)
    assert found == plain_greedy(pair, "latent")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"prompt_lookup_num_tokens": 3}, "batch_size = 1"),
        ({"assistant_early_exit": 1}, "batch_size = 1"),
        ({"max_length": 2, "max_new_tokens": None}, "no room"),
    ],
)
def test_what_only_generate_must_refuse_is_refused_before_any_compute(pair, monkeypatch, arguments, why):
    """`solve` asks a drafting agent one by one, and has no prompt that a length counts."""
    with monkeypatch.context() as patch:
        for agent in pair.agents.values():
            patch.setattr(agent, "encode", lambda *_, **__: pytest.fail("computed"))
        with pytest.raises(InputError, match=why):
            pair.generate(**ids_of(pair, QUESTIONS), **arguments)
    assert len(pair.solve(QUESTIONS, **{"max_new_tokens": 2} | arguments)) == len(QUESTIONS)


# Texts


@pytest.mark.parametrize("mode", ["alone", "latent", "text"])
def test_stop_strings_need_no_tokenizer(pair, mode):
    """Where they are given, and where they stand in the settings of the system."""
    decoder = decoder_of(pair)
    (ids,) = plain_greedy(pair, mode)
    stop = next(text for token in ids[2:] if (text := decoder.decode([token])).isascii() and text.strip())
    cut = next(i for i in range(1, NEW) if stop in decoder.decode(ids[:i]))
    settings = {"mode": mode, "max_new_tokens": NEW}
    for tokenizer in ({}, {"tokenizer": pair.tokenizer}):
        assert by_the_system(pair, QUESTIONS[:1], mode, stop_strings=[stop], **tokenizer) == [ids[:cut]]
        assert pair.solve(QUESTIONS[0], stop_strings=stop, **settings, **tokenizer)[0].text == decoder.decode(
            ids[:cut]
        )
    pair.generation_config.stop_strings = [stop]
    try:
        assert by_the_system(pair, QUESTIONS[:1], mode) == [ids[:cut]]
        assert pair.solve(QUESTIONS[0], **settings)[0].usage["new_tokens"] >= cut
    finally:
        pair.generation_config.stop_strings = None


@pytest.mark.parametrize("stop", ["", [], [3], 3, [""]], ids=repr)
def test_stop_strings_that_are_none_are_refused(pair, stop):
    with pytest.raises(InputError):
        pair.solve(QUESTIONS[0], stop_strings=stop)


@pytest.mark.parametrize("mode", ["alone", "latent"])
@pytest.mark.parametrize("arguments", [{}, {"num_beams": 2}], ids=str)
def test_outputs_are_those_of_the_decoding_agent(pair, mode, arguments):
    """Scores, logits, attentions and hidden states; and the sequences with the caller's prompt."""
    flags = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    arguments |= {"max_new_tokens": 3, "return_dict_in_generate": True, **dict.fromkeys(flags, True)}
    prompt = chat_ids(pair, QUESTIONS) if mode == "alone" else embeddings(pair, QUESTIONS)
    model = decoder_of(pair).model
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        expected = model.generate(**prompt, **arguments)
        found = pair.generate(**ids_of(pair, QUESTIONS), mode=mode, **arguments)
    finally:
        model.set_attn_implementation(implementation)
    assert type(found) is type(expected)
    for name in ("scores", "logits"):
        for one, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    assert len(found["attentions"]) == len(found["hidden_states"]) == 3
    length = prompt["input_ids"].shape[1] if mode == "alone" else 0
    assert written(found, ids_of(pair, QUESTIONS)["input_ids"].shape[1]) == written(expected, length)


@pytest.mark.parametrize("mode", ["alone", "latent"])
def test_a_streamer_gets_the_callers_prompt_and_the_agents_tokens(pair, mode):
    streamer, inputs = Collects(), ids_of(pair, QUESTIONS[:1])
    output = pair.generate(**inputs, mode=mode, max_new_tokens=NEW, streamer=streamer)
    assert torch.equal(streamer.values[0], inputs["input_ids"]) and streamer.ended
    assert torch.cat([value.flatten() for value in streamer.values]).tolist() == output[0].tolist()


@pytest.mark.parametrize("arguments", [{"num_beams": 2}, {"streamer": print}], ids=str)
def test_a_streamer_that_cannot_be_served_is_refused_before_any_compute(pair, monkeypatch, arguments):
    for agent in pair.agents.values():
        monkeypatch.setattr(agent, "encode", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(InputError, match="streamer"):
        pair.generate(**ids_of(pair, QUESTIONS[:1]), **{"streamer": Collects()} | arguments)
    with pytest.raises(InputError, match="streamer"):
        pair.generate(**ids_of(pair, QUESTIONS), streamer=TextStreamer(pair.tokenizer))


@pytest.mark.parametrize("door", ["generate", "solve"])
@pytest.mark.parametrize(
    ("name", "meant"),
    [("max_tokens", "max_new_tokens"), ("temprature", "temperature"), ("num_round", "num_rounds"), ("frob", None)],
)
def test_a_misspelt_argument_is_told_what_it_means(pair, monkeypatch, door, name, meant):
    for agent in pair.agents.values():
        monkeypatch.setattr(agent, "encode", lambda *_, **__: pytest.fail("computed"))
    for arguments in ({name: 3}, {"generation_config": GenerationConfig(**{name: 3})}):
        with pytest.raises(ArgumentError, match=f"did you mean `{meant}`" if meant else name):
            if door == "generate":
                pair.generate(**ids_of(pair, QUESTIONS), **arguments)
            else:
                pair.solve(QUESTIONS, **arguments)


# Forms of the input


def test_positions_of_the_arguments_are_those_of_transformers(pair):
    inputs = ids_of(pair, QUESTIONS[:1])["input_ids"]
    config = GenerationConfig(max_new_tokens=4, mode="alone")
    found = pair.generate(inputs, config, [bans_odd])
    assert not any(token % 2 for token in found[0, inputs.shape[1] :].tolist())
    assert found.shape[1] == inputs.shape[1] + 4


@pytest.mark.parametrize("mode", ["alone", "latent"])
@pytest.mark.parametrize(
    "form", ["input_ids", "inputs", "int32", "no mask", "bool mask", "float mask", "texts", "right"]
)
def test_a_batch_is_the_same_however_it_is_given(pair, form, mode):
    """Padded on the left or the right, with a mask or without one, as ids or as texts: the rows of one by one."""
    expected = [by_the_system(pair, [question], mode)[0] for question in QUESTIONS]
    settings = {"mode": mode, "max_new_tokens": NEW}
    side = "right" if form == "right" else "left"
    inputs = pair.tokenizer(QUESTIONS, return_tensors="pt", padding=True, padding_side=side)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    arguments = {
        "input_ids": {"input_ids": ids, "attention_mask": mask},
        "inputs": {"inputs": ids, "attention_mask": mask},
        "int32": {"input_ids": ids.int(), "attention_mask": mask},
        "no mask": {"input_ids": ids},
        "bool mask": {"input_ids": ids, "attention_mask": mask.bool()},
        "float mask": {"input_ids": ids, "attention_mask": mask.float()},
        "texts": {"inputs": QUESTIONS},
        "right": {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)},
    }[form]
    fill = pair.generation_config.pad_token_id
    for row, alone in zip(written(pair.generate(**arguments, **settings), ids.shape[1]), expected, strict=True):
        assert row[: len(alone)] == alone and set(row[len(alone) :]) <= {fill}


def test_padding_that_ends_texts_too_is_no_padding(pair):
    """As in transformers: without a mask, such a token may be meant."""
    end = pair.tokenizer.eos_token_id
    asked = ids_of(pair, QUESTIONS[:1])["input_ids"]
    ids = torch.cat([torch.tensor([[end]]), asked], dim=1)
    settings = {"mode": "alone", "max_new_tokens": NEW}
    mask, length = (ids != end).long(), asked.shape[1]
    meant = written(pair.generate(ids, pad_token_id=end, **settings), length + 1)
    masked = written(pair.generate(ids, attention_mask=mask, **settings), length + 1)
    assert masked == written(pair.generate(asked, **settings), length) != meant


PADDED = torch.tensor([[5, 6, 7]])


@pytest.mark.parametrize(
    "arguments",
    [
        {"inputs": torch.tensor([5, 6, 7])},
        {"inputs": PADDED[None]},
        {"inputs": PADDED.float()},
        {"inputs": PADDED > 5},
        {"inputs": torch.tensor([[5, 10**6]])},
        {"inputs": torch.tensor([[5, -1]])},
        {"inputs": torch.zeros(0, 3, dtype=torch.long)},
        {"inputs": PADDED.tolist()},
        {"inputs": PADDED[0].tolist()},
        {"inputs": PADDED.numpy()},
        {"inputs": {"input_ids": PADDED}},
        {"inputs": PADDED, "input_ids": PADDED},
        {"inputs": PADDED, "attention_mask": torch.ones(1, 4)},
        {"inputs": PADDED, "attention_mask": torch.ones(1, 1, 3, 3)},
        {"inputs": PADDED, "attention_mask": [[1, 1, 1]]},
        {"inputs": PADDED, "attention_mask": torch.zeros(1, 3)},
        {"inputs": PADDED, "token_type_ids": torch.ones(1, 3, dtype=torch.long)},
        {"inputs": PADDED, "labels": PADDED},
        {"inputs": PADDED, "generation_config": {"max_new_tokens": 3}},
        {"inputs": ["Why?"], "attention_mask": torch.ones(1, 1)},
        {},
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_an_input_of_another_form_is_refused_before_any_compute(pair, monkeypatch, arguments):
    for agent in pair.agents.values():
        monkeypatch.setattr(agent, "encode", lambda *_, **__: pytest.fail("computed"))
        monkeypatch.setattr(agent.model, "forward", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(RecursiveMASError):
        pair.generate(**arguments)


# Settings of the system


def test_the_systems_settings_count_where_the_callers_are_silent(pair):
    """A `generation_config` of the caller's is laid over the system's, field by field."""
    pair.generation_config.suppress_tokens = list(range(1, 291, 2))
    try:
        for arguments in ({"max_new_tokens": NEW}, {"generation_config": GenerationConfig(max_new_tokens=NEW)}):
            output = pair.generate(**ids_of(pair, QUESTIONS[:1]), **arguments)
            length = ids_of(pair, QUESTIONS[:1])["input_ids"].shape[1]
            assert not any(token % 2 for token in written(output, length)[0])
    finally:
        pair.generation_config.suppress_tokens = None


def test_ids_of_the_answers_vocabulary_do_not_touch_messages(pair):
    arguments = {"mode": "text", "message_tokens": 6, "max_new_tokens": 4}
    expected = pair.solve(QUESTIONS[0], **arguments)[0].messages
    everything = list(range(1, 291))
    assert pair.solve(QUESTIONS[0], suppress_tokens=everything, **arguments)[0].messages == expected


@pytest.mark.parametrize("setting", [{"num_rounds": 1}, {"latent_steps": 1}, {"mode": "alone"}], ids=str)
def test_a_setting_of_the_method_in_generation_config_counts_for_every_door(chain_folder, chain, tmp_path, setting):
    folder = written_config(chain_folder, tmp_path, setting)
    mas = RecursiveMASModel.from_pretrained(folder)
    asks = {
        **ids_of(chain, QUESTIONS[:1]),
        "max_new_tokens": 1,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    (expected,), (usual,) = chain.generate(**asks, **setting).logits, chain.generate(**asks).logits
    assert not torch.allclose(expected, usual, atol=1e-3), "the setting changes nothing"
    for arguments in ({}, {"generation_config": mas.generation_config}, {"generation_config": GenerationConfig()}):
        torch.testing.assert_close(mas.generate(**asks, **arguments).logits[0], expected, atol=1e-3, rtol=1e-3)
    usage = [
        system.solve(QUESTIONS[0], max_new_tokens=1, **given)[0].usage
        for system, given in ((mas, {}), (chain, setting))
    ]
    assert usage[0]["prompt_tokens"] == usage[1]["prompt_tokens"]
    assert usage[0]["latent_positions"] == usage[1]["latent_positions"]


def test_judging_asks_no_generate_that_was_put_onto_the_model(pair, monkeypatch):
    agent = pair.agents[pair.config.decoding_role]
    monkeypatch.setitem(vars(agent.model), "generate", lambda *_, **__: pytest.fail("generated"))
    config, arguments = answer_config(agent, pair.generation_config, {}, prompt_length=0, default_new_tokens=4)
    judge_arguments(agent, config, arguments, 1)


def written_config(folder, tmp_path, settings: dict[str, Any]):
    """A system's folder with other generation settings."""
    target = shutil.copytree(folder, tmp_path / "system")
    saved = json.loads((folder / "generation_config.json").read_text())
    (target / "generation_config.json").write_text(json.dumps(saved | settings))
    return target


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": "32"},
        {"max_new_tokens": 0},
        {"max_new_tokens": [8]},
        {"max_new_tokens": True},
        {"temperature": "hot"},
        {"do_sample": "no"},
        {"do_sample": 1},
        {"eos_token_id": "</s>"},
        {"eos_token_id": {"id": 3}},
        {"stop_strings": 3},
        {"early_stopping": "soon"},
        {"cache_implementation": "none such"},
        {"repetition_penalty": -2.0},
        {"watermarking_config": 3},
        {"watermarking_config": {"colour": "red"}},
        {"num_return_sequences": 2},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"max_tokens": 32},
        {"logits_processor": []},
        {"num_rounds": 0},
        {"num_rounds": "2"},
        {"mode": "telepathy"},
        {"prompts": "/etc/passwd"},
        {"prompts": {"planner": {}}},
        {"token_healing": True},
    ],
    ids=str,
)
def test_a_generation_config_that_cannot_be_used_is_no_checkpoint(chain_folder, tmp_path, settings):
    folder = written_config(chain_folder, tmp_path, settings)
    with pytest.raises(CheckpointError, match=r"generation_config\.json") as error:
        RecursiveMASModel.from_pretrained(folder)
    assert "did you mean `max_new_tokens`" in str(error.value) or "max_tokens" not in settings


@pytest.mark.parametrize(
    "settings", [{}, {"transformers_version": "5.0.0"}, {"max_length": 40}, {"top_k": 3}], ids=str
)
def test_a_generation_config_of_ordinary_settings_loads_without_a_warning(chain_folder, tmp_path, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        RecursiveMASModel.from_pretrained(written_config(chain_folder, tmp_path, settings))


@pytest.mark.parametrize(
    "settings", [{"temperature": "hot"}, {"eos_token_id": "</s>"}, {"max_new_tokens": 0}], ids=str
)
def test_the_settings_of_an_agent_are_judged_too(chain_folder, tmp_path, settings):
    shutil.copytree(chain_folder, tmp_path / "system")
    path = tmp_path / "system" / "agents" / "critic" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_format": "of other people's models"}))
    RecursiveMASModel.from_pretrained(tmp_path / "system")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(CheckpointError, match=r"critic.*generation_config\.json"):
        RecursiveMASModel.from_pretrained(tmp_path / "system")
