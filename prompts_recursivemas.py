"""Prompts are data: templates with markers, rendered through an agent's chat template and cut into pieces.

A prompt set is `{role: {"system": text or null, task: {"first": template, "feedback": template, "alone": template}}}`.
A template is plain text with the markers `<|question|>`, `<|input:FIELD|>` and `<|latents:ROLE|>`; there is no other
syntax. `feedback` is used from the second round on (`first` where it is missing); `alone` is what the decoding agent
is asked when it works without the others (the bare question where it is missing).

A question is a text, or a mapping of fields to texts: `<|input:facts|>` is the text of the field `facts`, and
`<|question|>` that of the field `question`, which a plain text stands for. So one agent reads what another does not.
"""

import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from transformers import PreTrainedTokenizerBase

from .chats_recursivemas import split_question
from .errors_recursivemas import CheckpointError, ConfigError, InputError
from .fields_recursivemas import did_you_mean, refuse_unknown
from .files_recursivemas import find_surrogate, half_a_character, read_object
from .plain_recursivemas import PlainTextReader
from .topology_recursivemas import Topology

Question: TypeAlias = str | Mapping[str, str]  # a text, or field -> text

QUESTION = "<|question|>"
MARKER = re.compile(r"<\|(?:(?P<question>question)|input:(?P<field>[^|<>]*)|latents:(?P<role>[^|<>]*))\|>")
FIELD = re.compile(r"[\w-]+")
TASKS = ("default", "math", "choice", "code", "reasoning")
PHASES = ("first", "feedback", "alone")
# What a chat template may not change: letters of both cases, signs that HTML escapes, spaces and lines.
PROBE = "Ab c  <d> & \"e\" 'f' \\g {{ h }} {% i %}\n\n1,000.50 ß."


def slot_marker(role: str) -> str:
    """The marker that stands in a template where the latents of `role` go."""
    return f"<|latents:{role}|>"


@dataclass(frozen=True)
class Slot:
    """The place in a prompt where what `role` sent goes."""

    role: str


def text_tokens(pieces: list[list[int] | Slot]) -> int:
    """Tokens of a cut prompt, without what fills its slots."""
    return sum(len(piece) for piece in pieces if not isinstance(piece, Slot))


def read_prompts(path: str | os.PathLike) -> dict:
    """A prompt set from a JSON file."""
    if not isinstance(path, str | os.PathLike):  # a number would be a file that this process has open
        expected = "a prompt set, or the path of a JSON file with one"
        raise InputError("`prompts` cannot be used.", where="prompts", found=repr(path)[:80], expected=expected)
    return read_object(path, InputError, f"prompts, {path}")


def validate_task(task: object) -> None:
    """Raises InputError if there is no such task."""
    if task not in TASKS:
        raise InputError("Unknown task.", where="task", found=repr(task), expected=", ".join(TASKS))


def as_inputs(question: Question) -> dict[str, str]:
    """A question as field -> text: a plain text is the field `question`."""
    return {"question": question} if isinstance(question, str) else dict(question)


def as_text(question: Question) -> str:
    """A question as one text: its fields in their order, one a line."""
    return "\n".join(as_inputs(question).values())


def validate_questions(questions: object, used: Collection[str], known: Collection[str]) -> None:
    """Checks questions against the fields that prompts name.

    Args:
        questions: a list of texts and mappings of fields to texts.
        used: the fields that the prompts of the run name; each question has them all.
        known: the fields that any prompt of the system names; no question has others.

    Raises:
        InputError: there is no question, one says nothing, or it lacks a field or has one that no prompt names.
    """
    if not isinstance(questions, list | tuple) or not questions:
        raise InputError(
            "There is no question.",
            where="questions",
            found=repr(questions)[:80],
            expected="a list of texts, or of mappings of fields to texts",
        )
    for index, question in enumerate(questions):
        where = f"questions, number {index + 1} of {len(questions)}"
        fields = {"question": question}
        if isinstance(question, str | Mapping):
            fields = as_inputs(split_question(question)[0])
        for name, text in fields.items():
            if name not in known:
                raise InputError(
                    "A question has a field that no prompt names.",
                    where=where,
                    found=repr(name),
                    expected=", ".join(known),
                    hint=did_you_mean(name, known) or f"a prompt would name it `<|input:{name}|>`",
                )
            if not isinstance(text, str) or not text.strip():
                raise InputError(
                    "A question is empty or no text.",
                    where=where if isinstance(question, str) else f"{where}, {name}",
                    found=repr(text)[:80],
                    expected="a text that says something",
                )
            if find_surrogate(text):
                place = where if isinstance(question, str) else f"{where}, {name}"
                raise InputError(**half_a_character(place, text))
        if missing := [name for name in used if name not in fields]:
            raise InputError(
                "A question lacks a field that the prompts name.",
                where=where,
                found=f"{', '.join(fields) or 'none'}; without {', '.join(missing)}",
                expected=", ".join(used),
                hint=f"ask with {json.dumps(dict.fromkeys(used, '…'), ensure_ascii=False)}",
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


def fields_of(*texts: str | None) -> list[str]:
    """The fields that the markers of templates name, each once, in their order."""
    matches = (match for text in texts for match in MARKER.finditer(text or "") if match["role"] is None)
    return list(dict.fromkeys(match["question"] or match["field"] for match in matches))


def input_fields(prompts: dict, turns: Iterable[tuple[str, str, str]] | None = None) -> list[str]:
    """The fields of a question that prompts name, `question` first.

    Args:
        prompts: a prompt set.
        turns: (role, task, phase) of the prompts that are meant; default all of them.
    """
    if turns is None:
        turns = [
            (role, *rest) for role in prompts for rest in itertools.product(prompts[role].keys() - {"system"}, PHASES)
        ]
    fields = {name for turn in turns for name in fields_of(*template_for(prompts, *turn))}
    return sorted(fields, key=lambda name: (name != "question", name))


def validate_prompts(prompts: dict, topology: Topology) -> None:
    """Checks a prompt set against a topology.

    Raises:
        ConfigError: an unknown role, task or marker; a missing entry; a template that lacks, repeats or invents a
            slot, or names a field that cannot be; a prompt set that never asks the question.
    """
    what = "A prompt set needs one entry for each role, and no other."
    if isinstance(prompts, dict):
        refuse_unknown(prompts, topology.roles, what, "prompts", ConfigError)
    if not isinstance(prompts, dict) or set(prompts) != set(topology.roles):
        found = ", ".join(prompts) if isinstance(prompts, dict) else type(prompts).__name__
        raise ConfigError(what, where="prompts", found=found, expected=", ".join(topology.roles))
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
        refuse_unknown(tasks, (*TASKS, "system"), "Unknown task in a prompt set.", where, ConfigError)
        for task in tasks:
            asks |= _validate_templates(
                entry[task], f"{where}, task {task}", role, entry.get("system") or "", topology
            )
    if not asks:
        raise ConfigError(f"No prompt holds the question ({QUESTION}).", where="prompts", expected=QUESTION)


def _validate_templates(templates: dict, where: str, role: str, system: str, topology: Topology) -> bool:
    """Checks the templates of one role and task; says whether one of them holds the question."""
    what = "A task's templates have the wrong form."
    if isinstance(templates, dict):
        refuse_unknown(templates, PHASES, what, where, ConfigError)
    if not isinstance(templates, dict) or "first" not in templates:
        found = ", ".join(templates) if isinstance(templates, dict) else repr(templates)[:80]
        raise ConfigError(
            what,
            where=where,
            found=found,
            expected='"first" and, where needed, "feedback" and "alone"',
        )
    asks = False
    for phase in PHASES:
        template = templates.get(phase)
        if not isinstance(template, str | None) or (phase == "first" and not template):
            raise ConfigError("A template is not a text.", where=f"{where}, {phase}", found=repr(template))
        template = template or (templates["first"] if phase == "feedback" else None)
        if template is None:
            continue
        if find_surrogate([system, template]):
            raise ConfigError(**half_a_character(f"{where}, {phase}", system + template))
        fields = fields_of(system, template)
        asks |= "question" in fields
        if wrong := [name for name in fields if not FIELD.fullmatch(name)]:
            raise ConfigError(
                "The name of a field cannot be used.",
                where=f"{where}, {phase}",
                found=f"<|input:{wrong[0]}|>",
                expected="letters, digits, _ and -",
            )
        slots = sorted(match["role"] for match in MARKER.finditer(system + template) if match["role"] is not None)
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

    The chat is rendered once for a batch and cut at the latent markers; each piece of text is tokenized by itself
    without special tokens (this is how the release's links were trained). The inputs enter after the cut, so a marker
    in them is plain text; a control token in them is read as plain text too. No rendered chat is kept: a template may
    say the date.

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
        self._reader = PlainTextReader(tokenizer)
        self._known: dict[str, list[int]] = {}  # pieces without an input are the same for every row

    def _text_ids(self, text: str) -> list[int]:
        """Token ids of a text without an input, remembered for the next row."""
        if (ids := self._known.get(text)) is None:
            if len(self._known) >= 1024:
                self._known.clear()
            ids = self._known[text] = self._reader.read(text, [])
        return ids

    def validate(self, prompts: Mapping[str, Any] | None = None) -> None:
        """Checks that the chat template shows what it is given, unaltered.

        Args:
            prompts: the role's entry of a prompt set: its templates are rendered too.

        Raises:
            CheckpointError: see `render`.
        """
        self.render(None, f"{PROBE}\n{QUESTION} {slot_marker(self.role)}")
        system = (prompts or {}).get("system")
        for task in (prompts or {}).keys() - {"system"}:
            for template in (prompts or {})[task].values():
                if template:
                    self.render(system, template)

    def render(self, system: str | None, template: str) -> str:
        """The whole chat as text, generation prompt included, with the markers still in it.

        The system text is a turn of its own, or stands in front of the user's where the chat template passes over such
        turns or refuses them. Content is a text, or a list of parts where the chat template loses a text (as templates
        of multimodal models do).

        Raises:
            CheckpointError: the chat template cannot be rendered; or it loses, doubles or alters what it is given.
        """
        user = {"role": "user", "content": template}
        ways = [[{"role": "system", "content": system}, user]] if system else []
        ways.append([{"role": "user", "content": f"{system}\n\n{template}" if system else template}])
        problem, shown = None, ""
        for messages, in_parts in itertools.product(ways, (False, True)):
            try:
                chat = self._apply(messages, in_parts)
            except Exception as error:  # a template can raise whatever Python can
                problem = problem or error
                continue
            if _shows(chat, system or "", template):
                return chat
            shown = shown or chat
        raise CheckpointError(
            "A chat template cannot be rendered." if problem else "A chat template does not show what it is given.",
            where=f"agent {self.role}, {self.tokenizer.name_or_path}",
            found=f"{type(problem).__name__}: {problem}"[:300] if problem else repr(shown[:200]),
            expected="a template that takes a user's message, and shows it once and unaltered",
            hint="fetch the tokenizer again, or check `chat_template_kwargs`",
        ) from problem

    def _apply(self, messages: list[dict[str, str]], in_parts: bool) -> str:
        given: list[dict[str, Any]] = [
            {**message, "content": [{"type": "text", "text": message["content"]}] if in_parts else message["content"]}
            for message in messages
        ]
        text = self.tokenizer.apply_chat_template(
            given, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
        )
        return cast(str, text)

    def pieces(self, system: str | None, template: str, question: Question) -> list[list[int] | Slot]:
        """Token ids of the pieces of text, and the slots between them, in order."""
        return self.cut(self.render(system, template), as_inputs(question))

    def cut(self, chat: str, inputs: Mapping[str, str]) -> list[list[int] | Slot]:
        """Cuts a rendered chat at its latent markers and tokenizes each piece of text by itself.

        `inputs` is field -> text, for every field that the chat names.
        """
        pieces: list[list[int] | Slot] = []
        text, spans, position = "", [], 0  # spans: of characters of the inputs in `text`
        for match in [*MARKER.finditer(chat), None]:
            text += chat[position : match.start() if match else len(chat)]
            if match and match["role"] is None:
                given = inputs[match["question"] or match["field"]]
                spans.append((len(text), len(text) + len(given)))
                text += given
            else:
                if text:
                    pieces.append(self._reader.read(text, spans) if spans else self._text_ids(text))
                if match:
                    pieces.append(Slot(match["role"]))
                text, spans = "", []
            position = match.end() if match else len(chat)
        return pieces

    def message_ids(self, text: str) -> list[int]:
        """Token ids of a text that another agent sent (`mode="text"`), tokenized by itself as plain text."""
        return self._reader.read(text, [(0, len(text))]) if text else []


def _shows(chat: str, system: str, template: str) -> bool:
    """Whether a rendered chat holds a system text and a template, and every marker of theirs once and in order."""
    if "{'type': 'text'" in chat:  # a list of parts as Python prints it
        return False
    markers = [match[0] for match in MARKER.finditer(system + template)]
    return (
        [match[0] for match in MARKER.finditer(chat)] == markers
        and system.strip() in chat
        and template.strip() in chat
    )
