"""Tokenizers of the small systems: byte-level BPE built from nothing, in the format of a model family.

Every family has the special tokens and the chat format of its real models, about 300 tokens (256 bytes, special
tokens, a few merges learnt from a corpus) and ids shuffled by a seed, so that two agents share tokens but no ids.

    python -c "from recursivemas.small_systems.tokenizers import build_tokenizer; print(build_tokenizer('qwen3', []))"
"""

import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class TokenizerFamily:
    """What distinguishes the tokenizer of one model family; families.json has a row for each.

    Attributes:
        eos: the token that ends the assistant's turn.
        pad, bos: further tokens.
        special_tokens: beyond these three.
        plain_tokens: never split, but kept when special tokens are skipped.
        chat_template: in pieces; Gemma's has no system turn, its text goes in front of the first user turn.
        tokenizer_class: name of the class that AutoTokenizer loads for the family's model type, in `CLASSES`.
    """

    eos: str
    pad: str
    chat_template: list[str]
    special_tokens: list[str]
    bos: str | None = None
    plain_tokens: list[str] = field(default_factory=list)
    tokenizer_class: str | None = None


# These replace the normalizer and the pre-tokenizer of tokenizer.json by their own, so they must build it.
CLASSES: dict[str, type[PreTrainedTokenizerBase]] = {
    each.__name__: each for each in (Qwen2Tokenizer, Qwen3_5Tokenizer)
}
FAMILIES = {
    name: TokenizerFamily(**entry)
    for name, entry in json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8")).items()
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

    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]  # first learnt first
    tokens = [*sorted(trained.get_vocab()), *whole_tokens]
    random.Random(f"{family}-{seed}").shuffle(tokens)
    vocab = {token: index for index, token in enumerate(tokens)}

    tokenizer: PreTrainedTokenizerBase
    names = {"bos_token": spec.bos, "eos_token": spec.eos, "pad_token": spec.pad}
    extra = {"extra_special_tokens": spec.special_tokens, "padding_side": "left", "model_max_length": 1024}
    if spec.tokenizer_class is None:
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
        tokenizer = CLASSES[spec.tokenizer_class](vocab=vocab, merges=merges, unk_token=spec.pad, **names, **extra)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in spec.plain_tokens])
    tokenizer.chat_template = "".join(spec.chat_template)

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
