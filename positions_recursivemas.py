"""Whether every prompt of a run has room in its agent's positions, before anything is computed."""

from collections.abc import Sequence

from transformers import GenerationConfig

from .chats_recursivemas import split_question
from .engine_recursivemas import System
from .limits_recursivemas import name_of, validate_positions
from .memories_recursivemas import (
    read_positions,
    slot_positions,
    turns_before,
)
from .prompts_recursivemas import MARKER, Question, as_inputs, as_text, template_for, text_tokens
from .runs_recursivemas import RunSettings

PIECE_TOKENS = 16  # by which a text may change how its template is tokenized


def fit_positions(
    system: System, questions: Sequence[Question], settings: RunSettings, config: GenerationConfig, said: bool
) -> None:
    """Holds every prompt of a run, with latents and new tokens, against its agent's positions; computes nothing.

    Messages of `mode="text"` are counted when they are there (see `Run`). A text has at most as many tokens as bytes;
    only what may be too long by that is tokenized here.

    Args:
        system: agents, links and topology.
        questions: all that are asked.
        settings: of the run.
        config: of the answer; where nobody said how long that is, it becomes as short as the positions want it.
        said: whether somebody said.

    Raises:
        InputError: a prompt has no room.
    """
    schedule, seen = settings.turns(system.topology), set()
    for round_index, role in schedule:
        answers, slots = settings.may_answer(system.topology, (round_index, role)), 0
        earlier = turns_before(system, settings, (round_index, role))
        turn = (role, settings.phase(round_index), answers, len(earlier))  # the same in every later round
        if turn in seen:
            continue
        seen.add(turn)
        agent, renderer = system.agents[role], system.renderers[role]
        if (limit := agent.position_limit) is None:
            continue
        more = config.max_new_tokens if answers else settings.positions_behind
        if settings.thinks and not settings.silent:
            slots = slot_positions(system, settings, (round_index, role))
        chat = renderer.render(*template_for(settings.prompts, role, settings.task, settings.phase(round_index)))
        fields = [match["question"] or match["field"] for match in MARKER.finditer(chat) if match["role"] is None]
        template = text_tokens(renderer.cut(chat, dict.fromkeys(fields, ""))) + PIECE_TOKENS
        for index, question in enumerate(questions):
            asked, opening = split_question(question)
            inputs = as_inputs(asked)
            read = sum(read_positions(system, settings, before, inputs) for before in earlier)
            read += len(renderer.message_ids(opening)) if answers else 0
            most = read + template + sum(len(inputs[name].encode("utf-8", "surrogatepass")) for name in fields)
            if most + slots + more <= limit:
                continue
            tokens = read + text_tokens(renderer.cut(chat, inputs))
            if answers and not said and tokens + slots < limit:
                config.max_new_tokens = more = min(more, limit - tokens - slots)
            read_as = "prompt and the start of the answer" if answers and opening else "prompt"
            validate_positions(
                limit,
                {index: tokens + slots + more},
                where=f"agent {role}, round {round_index}",
                name=lambda row: name_of(row, as_text(questions[row])),
                what=f"{read_as} {tokens}, slots {slots}, {'new tokens' if answers else 'latents or message'} {more}",
            )
