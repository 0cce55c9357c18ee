"""How answers are written: chat completions, completions and responses, whole or as server-sent events."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from ..solutions_recursivemas import Solution
from .functions import Call, made_call
from .requests import Asked


def event(content: dict | str, name: str | None = None) -> str:
    """A server-sent event."""
    data = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return (f"event: {name}\n" if name else "") + f"data: {data}\n\n"


def comment(text: str) -> str:
    """A line of a stream that clients skip."""
    return f": {text}\n\n"


def turn_text(round_index: int, role: str, seconds: float) -> str:
    """What is said of a turn."""
    return f"round {round_index}, {role}, {seconds:.3f} s"


def until(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """A text up to the first of the texts that end it, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def settled(text: str, stops: tuple[str, ...]) -> str:
    """What of a text that still grows can be sent: not what may become one of the texts that end it."""
    text, stopped = until(text, stops)
    longest = 0 if stopped else max((len(stop) - 1 for stop in stops), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return text[:-length]
    return text


def usage_of(solutions: list[Solution], read: str, written: str) -> dict[str, Any]:
    """What an answer cost: all agents' tokens by OpenAI's names, and what is latent."""
    totals = {name: sum(solution.usage[name] for solution in solutions) for name in ("prompt_tokens", "new_tokens",
              "latent_positions", "slot_positions")}  # fmt: skip
    prompt, new = totals.pop("prompt_tokens"), totals.pop("new_tokens")
    return {read: prompt, written: new, "total_tokens": prompt + new, **totals}


class Format(ABC):
    """One way to write an answer.

    Args:
        asked: the request.
        model: the name of the system.
    """

    prefix = "chatcmpl"

    def __init__(self, asked: Asked, model: str) -> None:
        self.asked, self.model = asked, model
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())
        self.sent = list(asked.echo)
        self.calls: dict[int, Call | None] = {}

    def call_of(self, choice: int, solution: Solution) -> Call | None:
        """The call of a client's function that a choice ends with, always the same one."""
        if choice not in self.calls:
            functions = self.asked.functions
            self.calls[choice] = made_call(self.asked.begun + solution.text, functions) if functions else None
        return self.calls[choice]

    def text_of(self, choice: int, solution: Solution) -> tuple[str, str]:
        """A choice's text and why it ends."""
        if (call := self.call_of(choice, solution)) is not None:
            return call.before, "tool_calls"
        text, stopped = until(self.asked.begun + solution.text, self.asked.stops)
        return self.asked.echo[choice] + text, "stop" if stopped else str(solution.finish_reason)

    def more(self, choice: int, text: str, whole: bool = False) -> str:
        """What of a choice's text has not been sent yet; of a text that is not `whole`, what can be sent."""
        text = text if whole else self.asked.echo[choice] + settled(text, self.asked.stops)
        if not text.startswith(self.sent[choice]):
            return ""
        new, self.sent[choice] = text[len(self.sent[choice]) :], text
        return new

    # What a format says

    @abstractmethod
    def whole(self, solutions: list[Solution]) -> dict[str, Any]:
        """The JSON of an answer."""

    def opening(self) -> Iterator[str]:
        """The events before the first text."""
        yield from (self.delta(choice, text) for choice, text in enumerate(self.sent) if text)

    def turn(self, round_index: int, role: str, seconds: float) -> str:
        """The event of a turn that was taken."""
        return comment(turn_text(round_index, role, seconds))

    @abstractmethod
    def delta(self, choice: int, text: str) -> str:
        """The event of new text."""

    @abstractmethod
    def closing(self, solutions: list[Solution]) -> Iterator[str]:
        """The events after the last text."""


class ChatFormat(Format):
    """Chat completions; a stream says in `reasoning_content` which turn was taken."""

    def _chunk(self, choices: list[dict], **more: Any) -> str:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return event({**head, "choices": choices, **more})

    def _choice(self, index: int, delta: dict, finish_reason: str | None = None) -> dict:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def whole(self, solutions: list[Solution]) -> dict[str, Any]:
        choices = []
        for index, solution in enumerate(solutions):
            text, reason = self.text_of(index, solution)
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if (call := self.call_of(index, solution)) is not None:
                message |= {"content": text or None, "tool_calls": [call.as_json()]}
            choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": reason})
        head = {"id": self.id, "object": "chat.completion", "created": self.created, "model": self.model}
        return {**head, "choices": choices, "usage": usage_of(solutions, "prompt_tokens", "completion_tokens")}

    def opening(self) -> Iterator[str]:
        for index in range(len(self.sent)):
            yield self._chunk([self._choice(index, {"role": "assistant", "content": ""})])

    def turn(self, round_index: int, role: str, seconds: float) -> str:
        text = turn_text(round_index, role, seconds) + "\n"
        return self._chunk([self._choice(0, {"reasoning_content": text})])

    def delta(self, choice: int, text: str) -> str:
        return self._chunk([self._choice(choice, {"content": text})])

    def closing(self, solutions: list[Solution]) -> Iterator[str]:
        for index, solution in enumerate(solutions):
            if (call := self.call_of(index, solution)) is not None:
                yield self._chunk([self._choice(index, {"tool_calls": [{"index": 0, **call.as_json()}]})])
            yield self._chunk([self._choice(index, {}, self.text_of(index, solution)[1])])
        if self.asked.usage:
            yield self._chunk([], usage=usage_of(solutions, "prompt_tokens", "completion_tokens"))
        yield event("[DONE]")


class CompletionFormat(Format):
    """Completions; turns of a stream are comments."""

    prefix = "cmpl"

    def _body(self, choices: list[dict], **more: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more}

    def _choice(self, index: int, text: str, finish_reason: str | None = None) -> dict:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def whole(self, solutions: list[Solution]) -> dict[str, Any]:
        choices = [self._choice(index, *self.text_of(index, solution)) for index, solution in enumerate(solutions)]
        return self._body(choices, usage=usage_of(solutions, "prompt_tokens", "completion_tokens"))

    def delta(self, choice: int, text: str) -> str:
        return event(self._body([self._choice(choice, text)]))

    def closing(self, solutions: list[Solution]) -> Iterator[str]:
        for index, solution in enumerate(solutions):
            yield event(self._body([self._choice(index, "", self.text_of(index, solution)[1])]))
        if self.asked.usage:
            yield event(self._body([], usage=usage_of(solutions, "prompt_tokens", "completion_tokens")))
        yield event("[DONE]")


class ResponseFormat(Format):
    """Responses; turns of a stream are comments."""

    prefix = "resp"

    def __init__(self, asked: Asked, model: str) -> None:
        super().__init__(asked, model)
        self.item, self.number = f"msg-{self.id.partition('-')[2]}", -1

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        settings = {name: self.asked.arguments.get(name) for name in ("temperature", "top_p")}
        head = {"id": self.id, "object": "response", "created_at": self.created, "model": self.model}
        fixed: dict[str, Any] = {
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "output": [],
        }
        fixed |= {"parallel_tool_calls": False, "tool_choice": "none", "tools": []}
        return {**head, "status": status, **fixed, **settings, **more}

    def _message(self, status: str, parts: list[dict]) -> dict[str, Any]:
        return {"id": self.item, "type": "message", "status": status, "role": "assistant", "content": parts}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _event(self, name: str, **content: Any) -> str:
        self.number += 1
        return event({"type": name, "sequence_number": self.number, **content}, name)

    def _text_event(self, name: str, **content: Any) -> str:
        return self._event(name, item_id=self.item, output_index=0, content_index=0, **content)

    def whole(self, solutions: list[Solution]) -> dict[str, Any]:
        text, reason = self.text_of(0, solutions[0])
        status = "completed" if reason == "stop" else "incomplete"
        usage = usage_of(solutions, "input_tokens", "output_tokens")
        usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        return self._response(
            status,
            output=[self._message(status, [self._part(text)])],
            incomplete_details=None if reason == "stop" else {"reason": "max_output_tokens"},
            usage=usage,
        )

    def opening(self) -> Iterator[str]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=self._response("in_progress"))
        item = self._message("in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._text_event("response.content_part.added", part=self._part(""))

    def delta(self, choice: int, text: str) -> str:
        return self._text_event("response.output_text.delta", delta=text, logprobs=[])

    def closing(self, solutions: list[Solution]) -> Iterator[str]:
        response = self.whole(solutions)
        item, text, status = response["output"][0], self.text_of(0, solutions[0])[0], response["status"]
        yield self._text_event("response.output_text.done", text=text, logprobs=[])
        yield self._text_event("response.content_part.done", part=self._part(text))
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{status}", response=response)


FORMATS: dict[str, type[Format]] = {"chat": ChatFormat, "completions": CompletionFormat, "responses": ResponseFormat}
