"""Chats as questions: a chat template that makes one text of a conversation, and what it says of a prefilled answer.

A system answers one question. Of a chat, that is the last message of the user; what a configuration's `conversation`
says decides about the rest:

- "whole": earlier turns stand above it, each a paragraph of its own that begins with its role (`User: …`), and system
  messages above all; a chat of one message is that message, unaltered.
- "last": the last message of the user alone, for systems that know nothing but their own kind of question.

A message of the assistant at the end is the start of the answer, and the system goes on from there. It travels behind
a mark that no other text can hold, because ids are all that `generate` gets of a chat; in a question of `solve`, too.
"""

from collections.abc import Mapping

CONVERSATIONS = ("whole", "last")
OPENING_MARK = "\x1e"  # the record separator of ASCII

# Content is a text, a list of parts, or nothing. `continue_final_message` looks for the last message's at the end.
_TEMPLATE = r"""
{%- macro text(message) -%}
{%- set content = message['content'] -%}
{%- set content = content if content is string else (content or []) | map(attribute='text') | join('') -%}
{{- content | replace('\x1e', ' ') -}}
{%- endmacro -%}
{%- set opens = messages[-1]['role'] == 'assistant' -%}
{%- set asked = messages[:-1] if opens else messages -%}
{%- set users = asked | selectattr('role', 'equalto', 'user') | list -%}
{%- if not users -%}{{ raise_exception('A chat needs a message of the user.') }}{%- endif -%}
BODY
{%- if opens -%}{{ '\x1e' ~ text(messages[-1]) }}{%- endif -%}
"""
_WHOLE = r"""
{%- set turns = asked | rejectattr('role', 'in', ['system', 'developer']) | list -%}
{%- for message in asked if message['role'] in ['system', 'developer'] -%}{{ text(message) ~ '\n' }}{%- endfor -%}
{%- for message in turns -%}
{%- if turns | length > 1 -%}{{ message['role'] | capitalize ~ ': ' }}{%- endif -%}
{{- text(message) -}}
{%- if not loop.last -%}{{ '\n\n' }}{%- endif -%}
{%- endfor -%}
"""
CHAT_TEMPLATES = {
    "whole": _TEMPLATE.replace("BODY", _WHOLE.strip()).replace("\n", ""),
    "last": _TEMPLATE.replace("BODY", "{{- text(users[-1]) -}}").replace("\n", ""),
}


def split_opening(text: str) -> tuple[str, str]:
    """(question, start of the answer) of a text that one of the chat templates made."""
    question, _, opening = text.partition(OPENING_MARK)
    return question, opening


def split_question(question: str | Mapping[str, str]) -> tuple[str | Mapping[str, str], str]:
    """The same of a question, a text or its fields: such a text may be the field `question`."""
    if isinstance(question, str):
        return split_opening(question)
    text, opening = split_opening(str(question.get("question", "")))
    return ({**question, "question": text} if opening else question), opening
