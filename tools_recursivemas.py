"""Tools of the decoding agent: what it writes between `<TAG>` and `</TAG>` is handed to the tool of that tag.

As in the public release, decoding stops at a closing tag, `<result>…</result>` is appended, and decoding goes on; at
most `MAX_CALLS` calls an answer, results cut at `MAX_RESULT` characters.
"""

import ast
import copy
import operator
import re
from collections.abc import Callable, Iterable

from transformers import GenerationConfig

from .agent_recursivemas import RecursiveMASAgent
from .engine_recursivemas import Prompt, embed_rows, generate_from, trim
from .errors_recursivemas import InputError
from .prompts_recursivemas import PromptRenderer

MAX_CALLS = 5
MAX_RESULT = 6000  # characters
Tools = dict[str, Callable[[str], str]]

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
MAX_DIGITS = 1000  # of a number that the calculator takes or makes


def calculator(expression: str) -> str:
    """The value of whole-number arithmetic (`+ - * // %` and brackets), or `error`. Runs nothing else."""
    try:
        return str(_value(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return "error"


def _value(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        value = node.value
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        value = _OPERATORS[type(node.op)](_value(node.operand))
    else:
        raise ValueError("no whole-number arithmetic")
    if abs(value) >= 10**MAX_DIGITS:
        raise OverflowError("too large")
    return value


def check_tools(tools: Tools) -> None:
    """Raises InputError unless `tools` maps tags to callables."""
    if not isinstance(tools, dict) or not all(
        isinstance(tag, str) and re.fullmatch(r"\w+", tag) and tag != "result" and callable(tool)
        for tag, tool in tools.items()
    ):
        raise InputError(
            "`tools` cannot be used.",
            where="tools",
            found=repr(tools)[:80],
            expected='tag -> function from text to text, for example {"python": calculator}',
        )


def find_call(text: str, tags: Iterable[str]) -> tuple[str, str] | None:
    """(tag, what stands inside) of the last complete call in a text; `None` where there is none."""
    pattern = rf"<({'|'.join(map(re.escape, tags))})>((?:(?!<\1>).)*?)</\1>"
    calls = re.findall(pattern, text, re.DOTALL)
    return calls[-1] if calls else None


def generate_with_tools(
    agent: RecursiveMASAgent,
    renderer: PromptRenderer,
    prompt: Prompt,
    tools: Tools,
    config: GenerationConfig,
    **kwargs,
) -> tuple[list[list[int]], list[int]]:
    """Generates from a batch of prompts, with calls answered.

    Args:
        agent: the decoding agent.
        renderer: its renderer, which tokenizes results as plain text.
        prompt: without a cache, because answers to calls are read together with it.
        tools: tag -> function from the call's text to its result; what it raises ends the run.
        config: generation settings, one sequence a row; `max_new_tokens` counts what the agent writes in all.
        kwargs: further arguments of transformers' `generate`.

    Returns:
        For each row, the ids of what the agent wrote with the results in it, and how many of them are results.
    """
    config = copy.deepcopy(config)
    own_stops = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings or []
    config.stop_strings = [*own_stops, *(f"</{tag}>" for tag in tools)]
    kwargs["tokenizer"] = agent.tokenizer
    limit = config.max_new_tokens
    count = prompt.inputs_embeds.shape[0]
    heads = [embeds[seen.bool()] for embeds, seen in zip(prompt.inputs_embeds, prompt.attention_mask, strict=True)]
    written: list[list[int]] = [[] for _ in range(count)]
    results = [0] * count  # tokens of results among `written`
    rows = list(range(count))
    for calls in range(MAX_CALLS + 1):
        if calls:
            prompt = Prompt(*embed_rows(agent, [[heads[row], written[row]] for row in rows]))
        left = [limit - len(written[row]) + results[row] for row in rows]
        config.max_new_tokens = max(left)
        output = generate_from(agent, prompt, generation_config=config, **kwargs)
        calling = []
        for row, room, ids in zip(rows, left, trim(output, agent.eos_token_ids), strict=True):
            call = find_call(agent.decode(ids), tools)
            # A row that stopped at a closing tag is padded up to the longest one.
            fill = {agent.pad_token_id} if call is None else {agent.pad_token_id, *agent.eos_token_ids}
            while ids and ids[-1] in fill and (call or ids[-1] not in agent.eos_token_ids):
                ids.pop()
            ids = ids[:room]
            written[row] += ids
            if call is None or len(ids) == room or calls == MAX_CALLS:
                continue
            tag, inside = call
            result = renderer.message_ids(f"<result>{str(tools[tag](inside))[:MAX_RESULT]}</result>")
            written[row] += result
            results[row] += len(result)
            calling.append(row)
        rows = calling
        if not rows:
            break
    return written, results
