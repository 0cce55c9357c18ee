"""What of a text is a control token, and reading texts in which it is not: questions, messages, results of tools."""

import itertools
import json
import re
import secrets
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from .errors_recursivemas import InputError

# Tags of HTML that vocabularies hold as whole tokens (Gemma's): text, unless a tokenizer calls them special.
HTML = re.compile(r"</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code)>")
BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)

Span = tuple[int, int]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that steer a model and are no text, text -> id: the special ones, and others that look like it.

    `<think>`, `<|fim_prefix|>` and `<unused7>` are not marked special, yet no text that somebody writes means them.
    """
    return {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special or (BRACKETED.fullmatch(token.content.strip()) and not HTML.fullmatch(token.content.strip()))
    }


class PlainTextReader:
    """Tokenizes texts in which some spans, those that others wrote, never become control tokens.

    A text without such is read as the tokenizer reads it. Else a second tokenizer reads it, which knows the control
    tokens by secret names only; what stands outside the spans gets these. So every text keeps its tokens around it,
    and decoding gives it back.

    Args:
        tokenizer: any tokenizer; where it is none of the `tokenizers` library, control tokens in a span are cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.control = tokenizer, control_tokens(tokenizer)
        names = sorted(self.control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        # Where a vocabulary lacks a character, an unknown token stands for it.
        self._counted = set(self.control.values()) - {tokenizer.unk_token_id}

    def read(self, text: str, spans: list[Span]) -> list[int]:
        """Token ids of a text, without special tokens of the tokenizer's own.

        Args:
            text: the text.
            spans: (start, end) of the characters that are plain text whatever they spell, in order.

        Raises:
            InputError: a span spells a control token that this tokenizer cannot read as text.
        """
        ids = self._encode(text)
        if not spans:
            return ids
        own = [match.span() for start, end in _between(spans, len(text)) for match in self._find(text, start, end)]
        spelled = any(
            start < b and a < end for a, b in (m.span() for m in self._pattern.finditer(text)) for start, end in spans
        )
        if not spelled and self._count(ids) <= len(own):
            return ids
        if self._renamed is not None:
            names, renamed, ids_of = self._renamed
            parts, position = [], 0
            for start, end in own:
                parts += [text[position:start], names[text[start:end]]]
                position = end
            hidden = "".join([*parts, text[position:]])
            ids = [ids_of.get(i, i) for i in renamed.encode(hidden, add_special_tokens=False).ids]
            if self._count(ids) <= len(own):
                return ids
        ids = [token for a, b in itertools.pairwise(self._cuts(text, spans)) for token in self._encode(text[a:b])]
        if self._count(ids) > len(own):
            raise InputError(
                "A text spells a control token that its tokenizer cannot read as text.",
                where=f"{self.tokenizer.name_or_path}",
                found=", ".join(sorted({match[0] for match in self._pattern.finditer(text)}))[:200],
                hint="ask without it",
            )
        return ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _find(self, text: str, start: int, end: int) -> Iterable[re.Match]:
        return self._pattern.finditer(text, start, end)

    def _count(self, ids: list[int]) -> int:
        return sum(token in self._counted for token in ids)

    def _cuts(self, text: str, spans: list[Span]) -> list[int]:
        """Where to cut a text so that no control token in a span is whole: behind its first character."""
        cuts = []
        for match in self._pattern.finditer(text):
            if any(match.start() < end and start < match.end() for start, end in spans):
                cuts += [match.start(), match.start() + 1, match.end()]
        return [0, *cuts, len(text)]

    @cached_property
    def _renamed(self) -> tuple[dict[str, str], Tokenizer, dict[int, int]] | None:
        """Control token -> its secret name, the tokenizer that knows only these, and its ids -> the true ids."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        table: dict[str, Any] = json.loads(backend.to_str())
        model, secret = table["model"], secrets.token_hex(8)
        names = {name: f"\U000f0000{secret}.{index}\U000f0001" for name, index in self.control.items()}
        merged = {"".join(m.split(" ") if isinstance(m, str) else m) for m in model.get("merges") or ()}
        vocabulary = {name: new for name, new in names.items() if name not in merged}
        if isinstance(model["vocab"], dict):
            model["vocab"] = {vocabulary.get(name, name): index for name, index in model["vocab"].items()}
        else:
            model["vocab"] = [[vocabulary.get(name, name), score] for name, score in model["vocab"]]
        if model.get("unk_token") in vocabulary:
            model["unk_token"] = vocabulary[model["unk_token"]]
        true: dict[str, int] = {}
        for token in table["added_tokens"]:
            if token["content"] in names:
                token["content"], token["normalized"] = names[token["content"]], False
            true[token["content"]] = token["id"]
        table |= {"post_processor": None, "truncation": None, "padding": None}
        renamed = Tokenizer.from_str(json.dumps(table))
        ids: dict[Any, int] = {renamed.token_to_id(name): index for name, index in true.items()}
        return names, renamed, ids


def _between(spans: list[Span], length: int) -> list[Span]:
    """What lies outside of spans."""
    bounds = [0, *itertools.chain(*spans), length]
    return list(zip(bounds[::2], bounds[1::2], strict=True))
