"""Prompts are data: templates with markers, rendered through an agent's chat template and cut into pieces.

A prompt set is `{role: {"system": text or null, task: {"first": template, "feedback": template, "alone": template}}}`.
A template is plain text with the markers `<|question|>` and `<|latents:ROLE|>`; there is no other syntax. `feedback`
is used from the second round on (`first` where it is missing); `alone` is what the decoding agent is asked when it
works without the others (the bare question where it is missing).
"""

import itertools
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from .errors_recursivemas import CheckpointError, ConfigError, InputError
from .topology_recursivemas import Topology

QUESTION = "<|question|>"
MARKER = re.compile(r"<\|question\|>|<\|latents:([^|<>]*)\|>")
TASKS = ("default", "math", "choice", "code", "reasoning")
PHASES = ("first", "feedback", "alone")


def slot_marker(role: str) -> str:
    """The marker that stands in a template where the latents of `role` go."""
    return f"<|latents:{role}|>"


@dataclass(frozen=True)
class Slot:
    """The place in a prompt where what `role` sent goes."""

    role: str


def read_prompts(path: str | os.PathLike) -> dict:
    """A prompt set from a JSON file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "A prompt set cannot be read.", where=f"prompts, {path}", found=error, expected="a JSON file"
        ) from error


def validate_task(task: object) -> None:
    """Raises InputError if there is no such task."""
    if task not in TASKS:
        raise InputError("Unknown task.", where="task", found=repr(task), expected=", ".join(TASKS))


def validate_questions(questions: object) -> None:
    """Raises InputError unless `questions` are texts that say something."""
    if isinstance(questions, str) or not isinstance(questions, list | tuple) or not questions:
        raise InputError(
            "There is no question.", where="questions", found=repr(questions)[:80], expected="a list of texts"
        )
    for index, question in enumerate(questions):
        if not isinstance(question, str) or not question.strip():
            raise InputError(
                "A question is empty or no text.",
                where=f"questions, number {index + 1} of {len(questions)}",
                found=repr(question)[:80],
                expected="a text that says something",
            )


def questions_of_ids(
    tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> list[str]:
    """Token ids (batch, length) -> texts, without what the tokenizer adds by itself; special tokens in a text stay."""
    added = tokenizer("")["input_ids"]
    questions = []
    for row, ids in enumerate(input_ids.tolist()):
        if attention_mask is not None:
            ids = [token for token, seen in zip(ids, attention_mask[row].tolist(), strict=True) if seen]
        if added and ids[: len(added)] == added:
            ids = ids[len(added) :]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        questions.append(cast(str, text))
    return questions


def phase_of(round_index: int) -> str:
    """Which template a round uses: "first", or "feedback" from the second one on."""
    return "first" if round_index == 1 else "feedback"


def template_for(prompts: dict, role: str, task: str, phase: str) -> tuple[str | None, str]:
    """The (system text, template) of a role for a task, with the fall-backs that the module's docstring states."""
    entry = prompts[role]
    templates = entry.get(task) or entry.get("default")
    if templates is None:
        raise InputError(
            "A role has no prompt for this task, and no default one.",
            where=f"prompts, role {role}",
            found=task,
            expected=", ".join(sorted(entry.keys() - {"system"})),
        )
    if phase == "alone":
        return entry.get("system"), templates.get("alone", QUESTION)
    return entry.get("system"), templates.get(phase) or templates["first"]


def validate_prompts(prompts: dict, topology: Topology) -> None:
    """Checks a prompt set against a topology.

    Raises:
        ConfigError: an unknown role, task or marker; a missing entry; a template that lacks, repeats or invents a
            slot; a prompt set that never asks the question.
    """
    if not isinstance(prompts, dict) or set(prompts) != set(topology.roles):
        found = sorted(prompts) if isinstance(prompts, dict) else type(prompts).__name__
        raise ConfigError(
            "A prompt set needs one entry for each role, and no other.",
            where="prompts",
            found=found,
            expected=", ".join(topology.roles),
        )
    asks = False
    for role, entry in prompts.items():
        where = f"prompts, role {role}"
        if not isinstance(entry, dict) or not isinstance(entry.get("system"), str | None):
            raise ConfigError(
                "A role's prompts have the wrong form.",
                where=where,
                found=repr(entry)[:80],
                expected='{"system": text or null, task: {"first": template, ...}}',
            )
        tasks = entry.keys() - {"system"}
        if not tasks:
            raise ConfigError("A role has no prompt for any task.", where=where, expected=", ".join(TASKS))
        for task in tasks:
            if task not in TASKS:
                raise ConfigError("Unknown task in a prompt set.", where=where, found=task, expected=", ".join(TASKS))
            asks |= _validate_templates(
                entry[task], f"{where}, task {task}", role, entry.get("system") or "", topology
            )
    if not asks:
        raise ConfigError(f"No prompt holds the question ({QUESTION}).", where="prompts", expected=QUESTION)


def _validate_templates(templates: dict, where: str, role: str, system: str, topology: Topology) -> bool:
    """Checks the templates of one role and task; says whether one of them holds the question."""
    if not isinstance(templates, dict) or "first" not in templates or set(templates) - set(PHASES):
        found = sorted(templates) if isinstance(templates, dict) else repr(templates)[:80]
        raise ConfigError(
            "A task's templates have the wrong form.",
            where=where,
            found=found,
            expected='"first" and, where needed, "feedback" and "alone"',
        )
    asks = False
    for phase in PHASES:
        template = templates.get(phase) or (templates["first"] if phase == "feedback" else None)
        if template is None:
            continue
        if not isinstance(template, str):
            raise ConfigError("A template is not a text.", where=f"{where}, {phase}", found=type(template).__name__)
        found = [match[1] for match in MARKER.finditer(system + template)]
        asks |= None in found
        slots = sorted(name for name in found if name is not None)
        round_index = {"first": 1, "feedback": 2}.get(phase)
        links = topology.incoming(role, round_index) if round_index else ()
        expected = sorted(link.source for link in links)
        if slots != expected:
            raise ConfigError(
                "The slots of a template do not match the links that fill them, each exactly once.",
                where=f"{where}, {phase}",
                found=", ".join(map(slot_marker, slots)) or "no slot",
                expected=", ".join(map(slot_marker, expected)) or "no slot",
                hint="give the template one marker for each incoming link of this phase, and no other",
            )
    return asks


class PromptRenderer:
    """Turns templates into token ids and slots, for one tokenizer.

    The chat is rendered once and cut at the latent markers; each piece of text is tokenized by itself without
    special tokens (this is how the release's links were trained). The question enters after the cut, so a marker in
    it is plain text; a chat special token in it is tokenized as plain text too.

    Args:
        tokenizer: the agent's tokenizer, with a chat template.
        role: the agent's role, for error messages.
        chat_template_kwargs: passed to the chat template; templates ignore what they do not know.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, role: str, chat_template_kwargs: dict | None = None
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise CheckpointError(
                "A tokenizer has no chat template.",
                where=f"agent {role}, {tokenizer.name_or_path}",
                expected="`chat_template` in tokenizer_config.json or a chat_template.jinja file",
                hint="add the chat template that the model was trained with",
            )
        self.tokenizer, self.role = tokenizer, role
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        template = str(tokenizer.chat_template)
        special = [
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            # `<think>` and its like are not marked special, yet they steer the chat.
            if token.special or ("<" in token.content and token.content in template)
        ]
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        # Bound caches: templates are few, and pieces without the question are the same for every row.
        self.render = lru_cache(maxsize=256)(self._render)
        self._text_ids = lru_cache(maxsize=1024)(self._encode)

    def _render(self, system: str | None, template: str) -> str:
        """The whole chat as text, generation prompt included, with the markers still in it."""
        user = {"role": "user", "content": template}
        try:
            if system:
                try:
                    text = self._apply([{"role": "system", "content": system}, user])
                except Exception as error:
                    if not _is_template_error(error):
                        raise
                    text = ""  # a template that rejects a system role; the check below merges
                if system.strip() in text:
                    return text
                user = {"role": "user", "content": f"{system}\n\n{template}"}
            return self._apply([user])
        except Exception as error:
            if not _is_template_error(error):
                raise
            raise CheckpointError(
                "A chat template cannot be rendered.",
                where=f"agent {self.role}, {self.tokenizer.name_or_path}",
                found=f"{type(error).__name__}: {error}"[:300],
                expected="a template that takes a user's message",
                hint="fetch the tokenizer again, or check `chat_template_kwargs`",
            ) from error

    def _apply(self, messages: list[dict[str, str]]) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
        )
        return cast(str, text)

    def pieces(self, system: str | None, template: str, question: str) -> list[list[int] | Slot]:
        """Token ids of the pieces of text, and the slots between them, in order."""
        return self.cut(self.render(system, template), question)

    def cut(self, chat: str, question: str) -> list[list[int] | Slot]:
        """Cuts a rendered chat at its latent markers and tokenizes each piece of text by itself."""
        pieces: list[list[int] | Slot] = []
        text, questions, position = "", [], 0  # questions: character spans of the question in `text`
        for match in [*MARKER.finditer(chat), None]:
            text += chat[position : match.start() if match else len(chat)]
            if match and match[1] is None:
                questions.append((len(text), len(text) + len(question)))
                text += question
            else:
                if text:
                    pieces.append(self._piece_ids(text, questions))
                if match:
                    pieces.append(Slot(match[1]))
                text, questions = "", []
            position = match.end() if match else len(chat)
        return pieces

    def _piece_ids(self, text: str, questions: list[tuple[int, int]]) -> list[int]:
        """Tokenizes one piece; special tokens that the question brings in are split, so that they stay plain text."""
        if not questions:
            return self._text_ids(text)
        cuts = []
        for match in self._special.finditer(text):
            if any(match.start() < end and start < match.end() for start, end in questions):
                cuts += [match.start(), match.start() + 1, match.end()]
        bounds = [0, *cuts, len(text)]
        return [i for a, b in itertools.pairwise(bounds) if a < b for i in self._encode(text[a:b])]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def message_ids(self, text: str) -> list[int]:
        """Token ids of a text that another agent sent (`mode="text"`), tokenized by itself as plain text."""
        return self._piece_ids(text, [(0, len(text))]) if text else []


def _is_template_error(error: Exception) -> bool:
    """Whether jinja raised it (remote code may not import jinja2)."""
    return type(error).__module__.startswith("jinja2")
