"""What a request asks for: the fields of OpenAI's three ways of asking and this project's own, judged and resolved.

A field is judged by `validate_fields`, like all settings; what OpenAI's clients send and a system has no use for is
taken where it asks for nothing (`n: 1`, `user`, …) and refused where it asks for something.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..chats_recursivemas import OPENING_MARK
from ..configuration_recursivemas import MODE, RUN_FIELDS
from ..errors_recursivemas import InputError
from ..fields_recursivemas import (
    OBJECT,
    TEXT,
    TRUTH,
    Kind,
    list_of,
    number,
    refuse_unknown,
    table_of,
    validate_field,
    validate_fields,
    whole,
)
from ..files_recursivemas import parse_json
from ..modeling_recursivemas import RecursiveMASModel
from ..prompts_recursivemas import Question
from ..settings_recursivemas import KINDS
from .functions import Functions, forced, read_functions, result_of, rewritten, told

# Settings of a run that a request may choose: not `prompts`, which may name a file, and no control, of which one shows
# a question what was thought for another.
RUN = {**RUN_FIELDS, "mode": MODE}
OWN = {
    **RUN,
    "complete_answer": TRUTH,
    "inputs": table_of(TEXT),
    "tools": list_of(TEXT | OBJECT),
    "generation_config": TEXT | OBJECT,
}
# transformers' settings of an answer that can be plain fields; the others go into `generation_config`.
PLAIN = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "min_new_tokens",
         "max_new_tokens")  # fmt: skip
# What changes what `generate` returns, which nobody would see, or what it loads.
CLOSED = {name for name in KINDS if name.startswith("output_")} | {
    *("return_dict_in_generate", "num_return_sequences", "max_length", "min_length", "max_time", "compile_config"),
    *("cache_implementation", "cache_config", "continuous_batching_config", "use_mtp", "assistant_early_exit"),
}
STOP = TEXT | list_of(TEXT)
NEW_TOKENS, SEED = whole(1, 1_000_000), whole(-(2**63), 2**63 - 1)
SHARED = {
    **OWN,
    **{name: KINDS[name] for name in PLAIN},
    "model": TEXT,
    "stream": TRUTH,
    "stream_options": OBJECT,
    "temperature": number(0, 100),
    "seed": SEED,
}
COMPLETION = {
    "max_tokens": NEW_TOKENS,
    "stop": STOP,
    "n": whole(1, 64),
    "frequency_penalty": number(-0.99, 2),
    "logit_bias": table_of(number(-100, 100)),
}
FIELDS: dict[str, dict[str, Kind]] = {
    "chat": {
        **SHARED,
        **COMPLETION,
        "messages": list_of(OBJECT),
        "max_completion_tokens": NEW_TOKENS,
        "tool_choice": TEXT | OBJECT,
    },
    "completions": {**SHARED, **COMPLETION, "prompt": TEXT | list_of(TEXT), "echo": TRUTH},
    "responses": {
        **SHARED,
        "input": TEXT | list_of(OBJECT),
        "instructions": TEXT,
        "max_output_tokens": NEW_TOKENS,
    },
}
# What says something about a request and nothing about its answer, and what asks for nothing where it holds one of
# these values.
IDLE = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "include", "truncation", "reasoning",
        "reasoning_effort", "safety_identifier", "prompt_cache_key", "verbosity", "max_tool_calls", "best_of",
        "chat_template_kwargs")  # fmt: skip
EMPTY: dict[str, tuple] = {
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}},),
    "modalities": (["text"],),
    "suffix": ("",),
    "background": (False,),
}
_numbers = itertools.count()


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        questions: one for each choice of the answer.
        arguments: of `solve`, without tools.
        tools: names of the server's tools; `None` for all that it has.
        functions: the client's own; an answer ends with a call of one.
        begun: what an answer was made to begin with, where it must call.
        seed: of sampling; such a request is answered alone.
        stops: texts that end an answer, and are no part of it.
        stream: whether the answer is sent as it is written.
        usage: whether a stream ends with what it cost.
        echo: what stands before each choice's text.
        key: requests of the same key are answered together.
    """

    questions: list[Question]
    arguments: dict[str, Any]
    tools: tuple[str, ...] | None = None
    functions: Functions = field(default_factory=dict)
    begun: str = ""
    seed: int | None = None
    stops: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    echo: list[str] = field(default_factory=list)
    key: str = ""


def question_of(mas: RecursiveMASModel, messages: list[dict], functions: Functions | None = None) -> str:
    """The question that a conversation asks, as the system's chat template says it.

    An answer with calls of a client's functions, their results and what follows are one turn, see functions.py.

    Raises:
        InputError: a message is none, or holds something else than text; or calls and results do not go together.
    """
    turns = [{"role": "system", "content": told(functions)}] if functions else []
    calls: dict[str, str] = {}  # without a result yet, by their ids
    answers = False  # whether the last turn is an answer that goes on behind a result
    for index, message in enumerate(messages):
        where, role = f"messages[{index}]", message.get("role")
        if role == "tool":
            call = calls.pop(str(message.get("tool_call_id")), None)
            if call is None:
                found = repr(message.get("tool_call_id"))
                raise InputError("A result follows no call.", where=f"{where}, tool_call_id", found=found)
            turns[-1]["content"] += call + result_of(_content(message, where), functions or ())
            answers = True
            continue
        if calls:
            raise InputError(
                "A call has no result.", where=where, found=", ".join(calls), expected="a message of role tool"
            )
        if role not in ("system", "developer", "user", "assistant"):
            expected = "system, developer, user, assistant or tool"
            raise InputError(
                "A message has no role that counts here.", where=where, found=repr(role), expected=expected
            )
        made = message.get("tool_calls") or [] if role == "assistant" else []
        if not isinstance(made, list):
            raise InputError("Calls are a list.", where=f"{where}, tool_calls", found=repr(made))
        calls = dict(rewritten(call, f"{where}, tool_calls[{number}]") for number, call in enumerate(made))
        text = "" if made and message.get("content") is None else _content(message, where)
        if role == "assistant" and answers:
            turns[-1]["content"] += text
        else:
            turns.append({"role": "system" if role == "developer" else role, "content": text})
        answers = False
    if calls:
        raise InputError("A call has no result.", where="messages", found=", ".join(calls), expected="role tool")
    if not any(turn["role"] == "user" for turn in turns):
        raise InputError("Nobody asks anything.", where="messages", found=f"{len(turns)} without role user")
    return str(mas.tokenizer.apply_chat_template(turns, tokenize=False))


def _content(message: dict, where: str) -> str:
    """The text of a message."""
    content = message.get("content")
    parts = [content] if isinstance(content, str) else content
    texts = list(map(_text_of, parts)) if isinstance(parts, list) else [None]
    if None in texts:
        raise InputError("A message is no text.", where=f"{where}, content", found=repr(content), expected="text")
    return "".join(map(str, texts))


def _text_of(part: object) -> str | None:
    """The text of a part of a message; `None` where it is something else."""
    if isinstance(part, Mapping) and part.get("type") in ("text", "input_text", "output_text"):
        part = part.get("text")
    return part if isinstance(part, str) else None


def read_request(kind: str, body: object, mas: RecursiveMASModel, tools: Iterable[str]) -> Asked:
    """What the body of a request asks for.

    Args:
        kind: one of `FIELDS`.
        body: the JSON that came.
        mas: the system that is asked.
        tools: names of the tools that the server has.

    Raises:
        InputError: a field is unknown, or its value cannot be used.
    """
    fields = FIELDS[kind]
    if not isinstance(body, dict):
        raise InputError("A request is a JSON object.", where="body", found=repr(body))
    given = {name: value for name, value in body.items() if value is not None}
    for name, values in EMPTY.items():
        if name in given and name not in fields and given.pop(name) not in values:
            raise InputError("This server does not do that.", where=name, found=repr(body[name]), hint="leave it out")
    validate_fields(given, fields, "request", InputError, also=IDLE)
    arguments = {name: given[name] for name in (*RUN, *PLAIN, "complete_answer") if name in given}
    arguments |= _generation_config(given.get("generation_config"))
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if name in given:
            arguments["max_new_tokens"] = given[name]
    if "temperature" in given and "do_sample" not in given:
        arguments["do_sample"] = given["temperature"] > 0
    if arguments.get("do_sample") is False or arguments.get("temperature") == 0:
        arguments.pop("temperature", None)
    if given.get("frequency_penalty"):
        arguments["repetition_penalty"] = 1.0 + given["frequency_penalty"]  # as transformers' server has it
    if given.get("logit_bias"):
        arguments["sequence_bias"] = [[[_token(mas, name)], float(bias)] for name, bias in given["logit_bias"].items()]
    stops = given.get("stop", [])
    stops = tuple([stops] if isinstance(stops, str) else stops)
    if "" in stops:
        raise InputError("A text that ends an answer is empty.", where="stop", found=repr(body["stop"]))
    stops += tuple(_as_list(arguments.pop("stop_strings", [])))
    if stops:
        arguments["stop_strings"] = list(stops)
    chosen, functions = _tools(given.get("tools"), tools, kind)
    begun = forced(given.get("tool_choice"), functions)
    if given.get("tool_choice") == "none":
        functions = {}
    seed = given.get("seed") if arguments.get("do_sample", mas.generation_config.do_sample) else None
    texts = _texts(kind, given, mas, functions)
    if begun:
        texts = [text + ("" if OPENING_MARK in text else OPENING_MARK) + begun for text in texts]
    echo = [text if given.get("echo") else "" for text in texts]
    inputs = given.get("inputs", {})
    if "question" in inputs:
        raise InputError("The question was given twice.", where="inputs", found="question")
    questions: list[Question] = [{"question": text, **inputs} if inputs else text for text in texts]
    copies = given.get("n", 1)
    key = json.dumps([arguments, chosen, functions, seed], sort_keys=True) + (
        f" {next(_numbers)}" if seed is not None else ""
    )
    return Asked(
        questions=[question for question in questions for _ in range(copies)],
        arguments=arguments,
        tools=chosen,
        functions=functions,
        begun=begun,
        seed=seed,
        stops=stops,
        stream=given.get("stream", False),
        usage=bool(given.get("stream_options", {}).get("include_usage")),
        echo=[text for text in echo for _ in range(copies)],
        key=key,
    )


def _as_list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _texts(kind: str, given: dict[str, Any], mas: RecursiveMASModel, functions: Functions) -> list[str]:
    """The texts that a request asks about."""
    if kind == "completions":
        prompts = _as_list(given.get("prompt", []))
        if not prompts:
            raise InputError("Nobody asks anything.", where="prompt", expected="a text, or a list of texts")
        return prompts
    if kind == "chat":
        messages = given.get("messages")
    else:
        asked = given.get("input", [])
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else _items(asked)
        if "instructions" in given:
            messages = [{"role": "system", "content": given["instructions"]}, *messages]
    if not messages:
        raise InputError("Nobody asks anything.", where="messages" if kind == "chat" else "input", expected="messages")
    return [question_of(mas, messages, functions)]


def _items(items: list[dict]) -> list[dict]:
    """The messages among the items of a response's input; others say nothing here."""
    return [item for item in items if item.get("type", "message") == "message"]


def _generation_config(given: str | dict | None) -> dict[str, Any]:
    """The settings of a request's `generation_config`, a JSON object or the text of one."""
    where = "generation_config"
    if isinstance(given, str):
        given = parse_json(given, InputError, where)
        validate_field(given, OBJECT, where, InputError)
    settings = {name: value for name, value in (given or {}).items() if value is not None}  # type: ignore[union-attr]
    known = {*RUN, *KINDS} - CLOSED
    refuse_unknown(settings, known, "A request cannot choose this.", where, InputError)
    validate_fields(settings, RUN, where, InputError, also=known)
    return settings


def _token(mas: RecursiveMASModel, name: str) -> int:
    """The token id that `logit_bias` names."""
    size = mas.agents[mas.config.decoding_role].get_input_embeddings().num_embeddings
    if not (name.isdecimal() and int(name) < size):
        raise InputError("No token has this id.", where="logit_bias", found=name, expected=f"0 to {size - 1}")
    return int(name)


def _tools(chosen: list | None, there: Iterable[str], kind: str) -> tuple[tuple[str, ...] | None, Functions]:
    """Names of the tools of the server that a request chooses, `None` where it says nothing; its own functions."""
    if chosen is None:
        return None, {}
    there = list(there)
    names = [name for name in chosen if isinstance(name, str)]
    for name in names:
        if name not in there:
            expected = ", ".join(there) or "none: the server was started without --tools"
            raise InputError("The server has no such tool.", where="tools", found=name, expected=expected)
    functions = read_functions(entry for entry in chosen if not isinstance(entry, str))
    if functions and kind != "chat":
        hint = "ask /v1/chat/completions"
        raise InputError("A client's own functions are for chats.", where="tools", found=[*functions], hint=hint)
    if both := sorted({*names} & {*functions}):
        raise InputError("A function has the name of a tool of the server.", where="tools", found=both)
    return tuple(sorted(set(names))), functions
