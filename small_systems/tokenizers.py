"""Tokenizers of the small systems: byte-level BPE built from nothing, in the format of a model family.

Every family has the special tokens and the chat format of its real models, about 300 tokens (256 bytes, special
tokens, a few merges learnt from a corpus) and ids shuffled by a seed, so that two agents share tokens but no ids.

    python -c "from recursivemas.small_systems.tokenizers import build_tokenizer; print(build_tokenizer('qwen3', []))"
"""

import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX, Qwen2Tokenizer
from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

CHAT_WORDS = ("system\n", "user\n", "assistant\n", "model\n", "\n\n")
ROUNDTRIP_TEXTS = ("3+5*2-4", "Reduce 1-2*3\nNow 9", "Gr\u00fc\u00dfe, e\u0301 \u6570 {x}  \n\n 12 345")

_CHATML = (
    r"{%- for message in messages -%}"
    r"{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    r"{%- endfor -%}"
    r"{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
)
_NO_THINKING = r"{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\n\n</think>\n\n' }}"
_QWEN2_TEMPLATE = _CHATML + r"{%- endif -%}"
_QWEN3_TEMPLATE = _CHATML + _NO_THINKING + r"{%- endif -%}{%- endif -%}"
_QWEN3_5_TEMPLATE = _CHATML + _NO_THINKING + r"{%- else -%}{{ '<think>\n' }}{%- endif -%}{%- endif -%}"
_LLAMA3_TEMPLATE = (
    r"{{ bos_token }}"
    r"{%- for message in messages -%}"
    r"{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    r"{{ message['content'] | trim + '<|eot_id|>' }}"
    r"{%- endfor -%}"
    r"{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
)
_GEMMA3_TEMPLATE = (  # has no system turn: the text goes in front of the first user turn
    r"{{ bos_token }}"
    r"{%- set prefix = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' -%}"
    r"{%- for message in (messages[1:] if prefix else messages) -%}"
    r"{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    r" + (prefix if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}"
    r"{%- endfor -%}"
    r"{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
_MISTRAL_TEMPLATE = (
    r"{{ bos_token }}"
    r"{%- for message in messages -%}"
    r"{%- if message['role'] == 'user' -%}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    r"{%- elif message['role'] == 'assistant' -%}{{ ' ' + message['content'] + eos_token }}"
    r"{%- else -%}{{ raise_exception('Only user and assistant roles are supported, not ' + message['role']) }}"
    r"{%- endif -%}"
    r"{%- endfor -%}"
)


@dataclass(frozen=True)
class TokenizerFamily:
    """What distinguishes the tokenizer of one model family; `eos` is the token that ends the assistant's turn."""

    eos: str
    pad: str
    chat_template: str
    special_tokens: tuple[str, ...]  # beyond bos, eos and pad
    bos: str | None = None
    plain_tokens: tuple[str, ...] = ()  # never split, but kept when special tokens are skipped
    # The class that AutoTokenizer loads for the family's model type. The Qwen classes replace the normalizer and the
    # pre-tokenizer of tokenizer.json by their own, so their tokenizers must be built by them.
    tokenizer_class: type[PreTrainedTokenizerBase] = PreTrainedTokenizerFast


_THINK = ("<think>", "</think>")
FAMILIES: dict[str, TokenizerFamily] = {
    "qwen2": TokenizerFamily(
        "<|im_end|>", "<|endoftext|>", _QWEN2_TEMPLATE, ("<|im_start|>",), tokenizer_class=Qwen2Tokenizer
    ),
    "qwen3": TokenizerFamily(
        "<|im_end|>",
        "<|endoftext|>",
        _QWEN3_TEMPLATE,
        ("<|im_start|>",),
        plain_tokens=_THINK,
        tokenizer_class=Qwen2Tokenizer,
    ),
    "qwen3_5": TokenizerFamily(
        "<|im_end|>",
        "<|endoftext|>",
        _QWEN3_5_TEMPLATE,
        ("<|im_start|>",),
        plain_tokens=_THINK,
        tokenizer_class=Qwen3_5Tokenizer,
    ),
    "llama3": TokenizerFamily(
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
        _LLAMA3_TEMPLATE,
        ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
        bos="<|begin_of_text|>",
    ),
    "gemma3": TokenizerFamily(
        "<end_of_turn>", "<pad>", _GEMMA3_TEMPLATE, ("<start_of_turn>", "<eos>", "<unk>"), bos="<bos>"
    ),
    "mistral": TokenizerFamily("</s>", "<pad>", _MISTRAL_TEMPLATE, ("[INST]", "[/INST]", "<unk>"), bos="<s>"),
}


def build_tokenizer(
    family: str, corpus: Iterable[str], seed: int = 0, num_merges: int = 32
) -> PreTrainedTokenizerBase:
    """A fast tokenizer of `family` with at most `num_merges` merges learnt from `corpus` and ids shuffled by `seed`.

    Digits are single tokens and never merge with what stands beside them. Padding is on the left.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown tokenizer family {family!r}: choose from {', '.join(FAMILIES)}")
    spec = FAMILIES[family]
    special_tokens = [token for token in (spec.bos, spec.eos, spec.pad, *spec.special_tokens) if token]
    whole_tokens = [*special_tokens, *spec.plain_tokens]

    trained = _bytelevel(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=256 + num_merges, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    any_whole_token = re.compile("|".join(map(re.escape, whole_tokens)))
    texts = [*CHAT_WORDS, *corpus]
    trained.train_from_iterator((piece for text in texts for piece in any_whole_token.split(text)), trainer)

    merges = _merges(trained)
    tokens = [*sorted(trained.get_vocab()), *whole_tokens]
    random.Random(f"{family}-{seed}").shuffle(tokens)
    vocab = {token: index for index, token in enumerate(tokens)}

    tokenizer: PreTrainedTokenizerBase
    names = {"bos_token": spec.bos, "eos_token": spec.eos, "pad_token": spec.pad}
    extra = {"extra_special_tokens": list(spec.special_tokens), "padding_side": "left", "model_max_length": 1024}
    if spec.tokenizer_class is PreTrainedTokenizerFast:
        backend = _bytelevel(Tokenizer(models.BPE(vocab=vocab, merges=merges)))
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
        if spec.bos:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{spec.bos} $A",
                pair=f"{spec.bos} $A {spec.bos} $B",
                special_tokens=[(spec.bos, vocab[spec.bos])],
            )
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names, **extra)
    else:
        tokenizer = spec.tokenizer_class(vocab=vocab, merges=merges, unk_token=spec.pad, **names, **extra)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in spec.plain_tokens])
    tokenizer.chat_template = spec.chat_template

    if len(tokenizer) != len(vocab) or any(tokenizer.convert_tokens_to_ids(t) != i for t, i in vocab.items()):
        raise RuntimeError(f"the {family} tokenizer did not keep the {len(vocab)} ids it was built with")
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save into a model folder and check that AutoTokenizer reads the same ids from it (config.json comes first)."""
    tokenizer.save_pretrained(folder)
    reloaded = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Reduce 1-2"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    for text in (*ROUNDTRIP_TEXTS, chat):
        before = tokenizer(text, add_special_tokens=False).input_ids
        after = reloaded(text, add_special_tokens=False).input_ids
        if before != after:
            raise RuntimeError(
                f"{folder}: AutoTokenizer loads {type(reloaded).__name__}, which reads {text!r} as {after}, "
                f"not {before}: save the tokenizer with the class that AutoTokenizer loads for this model type"
            )


def _bytelevel(tokenizer: Tokenizer) -> Tokenizer:
    """Give a raw tokenizer the Qwen2 normalizer and pre-tokenizer (digits split singly), on bytes."""
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The merges of a trained BPE tokenizer, first learnt first."""
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
