"""What a run gives: the result for each question, and what it cost."""

import html
import threading
from dataclasses import dataclass, field
from typing import Any

from transformers.utils import ModelOutput


@dataclass
class Solution(ModelOutput):
    """The result for one question.

    Attributes:
        text: what the decoding agent wrote.
        answer: the answer in that text, or `None` where there is none (see `extract_answer`).
        usage: `prompt_tokens`, `latent_positions`, `slot_positions`, `new_tokens` of this question (see `Usage`),
            `rounds` and `turns` that it took, and `seconds` by stage for the batch that it was part of.
        messages: (round, role) -> the text that a sender wrote, in `mode="text"` and for controls that cut it.
        latents: (round, source, target) -> what was sent, (latent steps, width of the target), if asked for.
        thoughts: the same read as text, the receiver's nearest tokens; not over Ray, whose agents are elsewhere.
        finish_reason: "length" where `max_new_tokens` cut the text off, "stop" where it ended by itself.
    """

    text: str = None  # type: ignore[assignment]  # always given; `ModelOutput` wants defaults
    answer: str | None = None
    usage: dict[str, Any] = None  # type: ignore[assignment]
    messages: dict | None = None
    latents: dict | None = None
    thoughts: dict | None = None
    finish_reason: str | None = None

    def __repr__(self) -> str:
        return f"Solution(text={self.text!r}, answer={self.answer!r}, has {', '.join(self.keys())})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the text, what was thought on the way, and what it cost."""
        said = {**(self.messages or {}), **(self.thoughts or {})}
        rows = [(f"round {key[0]}, {' to '.join(key[1:])}", text) for key, text in sorted(said.items())]
        usage = [f"{name.replace('_', ' ')} {self.usage[name]}" for name in USAGE if name in (self.usage or {})]
        cells = [*rows, ("text", self.text), ("answer", self.answer or "none"), ("cost", ", ".join(usage))]
        lines = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in cells)
        return f"<table>{''.join(lines)}</table>"


@dataclass
class Usage:
    """What a batch cost, row by row where it differs.

    Attributes:
        prompt_tokens: text tokens in all prompts of all agents and rounds, as if read anew each time.
        latent_positions: latent thoughts, counted once for each sender and round.
        slot_positions: positions that stood in the slots of all prompts: latents, or tokens of messages.
        new_tokens: text tokens generated: messages where agents write them, and the answer.
        seconds: stage (`"round 1, planner"`) -> wall-clock seconds for the whole batch.
    """

    prompt_tokens: list[int]
    latent_positions: list[int]
    slot_positions: list[int]
    new_tokens: list[int]
    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, what: str, amounts: list[int]) -> None:
        """Adds to each row's `what`; the roles of a stage may do so at the same time."""
        with self._lock:
            setattr(self, what, [a + b for a, b in zip(getattr(self, what), amounts, strict=True)])


# The fields of `Usage` that are counted row by row.
USAGE = ("prompt_tokens", "latent_positions", "slot_positions", "new_tokens")
