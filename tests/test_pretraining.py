"""Laws of what pre-trains the small systems: the task, the tokenizers, the batches."""

import json

import pytest
import torch
from recursivemas.small_systems import pretrain
from recursivemas.small_systems.recipes import RECIPES
from recursivemas.small_systems.tokenizers import FAMILIES, ROUNDTRIP_TEXTS, build_tokenizer, save_tokenizer
from recursivemas.tasks import arithmetic
from transformers import AutoModelForCausalLM, AutoTokenizer

CORPUS = ["Reduce ", "Now "]
MODEL_TYPES = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_5": "qwen3_5_text",
    "llama3": "llama",
    "gemma3": "gemma3_text",
    "mistral": "mistral",
}
CHAT = [{"role": "user", "content": "Reduce 1+2"}]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_every_state_follows_from_the_one_before():
    for row in arithmetic.generate(130, seed=3):
        said = [row["targets"][role][index] for index in range(4) for role in arithmetic.ROLES]
        state = row["question"]
        assert len(state) == 2 * row["num_operators"] + 1
        for text in said:
            assert text == arithmetic.reduce_once(state)
            state = text
        assert state == row["answer"] and len(state) == 1
        rounds = -(-max(row["num_operators"], 1) // len(arithmetic.ROLES))
        assert row["targets"]["solver"][rounds - 1] == row["answer"]
        assert rounds == 1 or row["targets"]["solver"][rounds - 2] != row["answer"]


def test_reduction_is_left_to_right_and_modulo_ten():
    assert arithmetic.reduction_chain("3+5*2-4", 4) == ["3+5*2-4", "8*2-4", "6-4", "2", "2"]
    assert arithmetic.reduce_once("2-9+1") == "3+1"


def test_feedback_examples_reduce_what_the_solver_sent():
    rows = [row for row in arithmetic.pretraining_examples("planner", 260, seed=1) if row["prompt"] == "feedback"]
    assert {row["num_operators"] for row in rows} == set(arithmetic.LEVELS)
    for row in rows:
        sent = row["messages"]["solver"]
        assert sent in arithmetic.reduction_chain(row["question"], len(row["question"]))
        assert row["target"] == arithmetic.reduce_once(sent)


def test_an_unknown_role_is_named():
    with pytest.raises(ValueError, match=r"'judge'.*planner, critic, solver"):
        arithmetic.pretraining_examples("judge", 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_tokenizer_reads_the_same_ids(family, tmp_path):
    tokenizer = build_tokenizer(family, CORPUS, seed=5)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[family]}))
    save_tokenizer(tokenizer, tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    chat = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    for text in (*ROUNDTRIP_TEXTS, chat):
        assert ids(reloaded, text) == ids(tokenizer, text)
        assert reloaded(text).input_ids == tokenizer(text).input_ids
        assert "\u0065\u0301" in text or reloaded.decode(ids(reloaded, text)) == text  # NFC composes the accent
    assert reloaded.get_vocab() == tokenizer.get_vocab() and reloaded.chat_template == tokenizer.chat_template
    assert (reloaded.padding_side, reloaded.eos_token, reloaded.pad_token, reloaded.bos_token) == (
        "left",
        FAMILIES[family].eos,
        FAMILIES[family].pad,
        FAMILIES[family].bos,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_digits_and_operators_are_single_tokens(family):
    tokenizer = build_tokenizer(family, CORPUS, seed=5)
    expression = "3+5*2-4*17"
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, expression)) == list(expression)
    # A prompt cut into pieces has the ids of the whole: nothing merges across a slot.
    assert ids(tokenizer, "Reduce ") + ids(tokenizer, "3+5") == ids(tokenizer, "Reduce 3+5")
    assert ids(tokenizer, "3+5") + ids(tokenizer, "\nNow ") == ids(tokenizer, "3+5\nNow ")


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_are_single_and_skipped(family):
    tokenizer, spec = build_tokenizer(family, CORPUS, seed=5), FAMILIES[family]
    for token in filter(None, (spec.bos, spec.eos, spec.pad, *spec.special_tokens)):
        assert len(ids(tokenizer, token)) == 1
        assert tokenizer.decode(ids(tokenizer, f"3{token}"), skip_special_tokens=True) == "3"
    for token in spec.plain_tokens:
        assert len(ids(tokenizer, token)) == 1
        assert tokenizer.decode(ids(tokenizer, f"3{token}"), skip_special_tokens=True) == f"3{token}"


def test_vocabularies_are_shuffled_by_seed_and_family_and_reproducible():
    first, same, other_seed = (build_tokenizer("qwen3", CORPUS, seed=seed).get_vocab() for seed in (1, 1, 2))
    other_family = build_tokenizer("llama3", CORPUS, seed=1).get_vocab()
    assert first == same
    for other in (other_seed, other_family):
        shared = first.keys() & other.keys()
        assert len(shared) > 256 and sum(first[token] == other[token] for token in shared) < 10


def test_chat_formats():
    def render(family, messages, **options):
        return build_tokenizer(family, CORPUS).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **options
        )

    system = [{"role": "system", "content": "Be brief."}, *CHAT]
    chatml = "<|im_start|>user\nReduce 1+2<|im_end|>\n<|im_start|>assistant\n"
    assert render("qwen2", CHAT) == render("qwen3", CHAT) == chatml
    assert render("qwen3", CHAT, enable_thinking=False) == chatml + "<think>\n\n</think>\n\n"
    assert render("qwen3_5", CHAT) == chatml + "<think>\n"
    assert render("qwen3_5", CHAT, enable_thinking=False) == chatml + "<think>\n\n</think>\n\n"
    assert render("qwen2", system) == "<|im_start|>system\nBe brief.<|im_end|>\n" + chatml
    header = "<|start_header_id|>{}<|end_header_id|>\n\n{}"
    assert render("llama3", system) == (
        "<|begin_of_text|>"
        + header.format("system", "Be brief.<|eot_id|>")
        + header.format("user", "Reduce 1+2<|eot_id|>")
        + header.format("assistant", "")
    )
    assert render("gemma3", system) == (
        "<bos><start_of_turn>user\nBe brief.\n\nReduce 1+2<end_of_turn>\n<start_of_turn>model\n"
    )
    assert render("mistral", CHAT) == "<s>[INST] Reduce 1+2[/INST]"
    with pytest.raises(Exception, match="not system"):
        render("mistral", system)


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match=r"'gpt9'.*qwen2, qwen3"):
        build_tokenizer("gpt9", CORPUS)


@pytest.mark.parametrize("role", arithmetic.ROLES)
def test_a_prompt_cut_at_its_slots_reads_like_the_whole(role):
    spec = RECIPES["sequential"].agents[role]
    tokenizer = build_tokenizer(spec.tokenizer_family, pretrain.wording(arithmetic), spec.tokenizer_seed)
    examples = arithmetic.pretraining_examples(role, 26, seed=4)
    pairs = pretrain.encode_examples(pretrain.prompt_renderer(tokenizer, role), arithmetic.PROMPTS[role], examples)
    for example, (prompt, target) in zip(examples, pairs, strict=True):
        text = arithmetic.PROMPTS[role]["default"][example["prompt"]].replace("<|question|>", example["question"])
        for sender, message in example["messages"].items():
            text = text.replace(f"<|latents:{sender}|>", message)
        chat = [{"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        assert prompt == ids(tokenizer, whole)
        assert target == [*ids(tokenizer, example["target"]), tokenizer.eos_token_id]


def test_only_targets_carry_labels_and_only_text_is_attended():
    pairs = [([5, 6, 7], [8, 9]), ([5], [9])]
    batch = pretrain.training_batch(pairs, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 9, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8, 9], [-100, 9, -100, -100, -100]]


@pytest.mark.parametrize(
    "role", [pytest.param(role, marks=[pytest.mark.slow] * (role != "critic")) for role in arithmetic.ROLES]
)
def test_pretraining_writes_a_model_folder_and_leaves_unused_tokens_tiny(role, tmp_path):
    command = ["--system", "sequential", "--role", role, "--output", str(tmp_path), "--steps", "3"]
    pretrain.main([*command, "--eval-examples", "1"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.dtype == torch.float32 and model.config.tie_word_embeddings
    assert len(tokenizer) == model.config.vocab_size
    assert model.generation_config.do_sample is False
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    norms = model.get_input_embeddings().weight.norm(dim=1)
    assert norms[ids(tokenizer, "0123456789+-*" + tokenizer.eos_token)].min() > 0.3
    assert norms[ids(tokenizer, "QZ~!")].max() < 0.03
    report = json.loads((tmp_path / "pretraining.json").read_text())
    assert set(report["exact_match_by_prompt_and_level"]) == set(arithmetic.PROMPTS[role]["default"])


def test_a_role_that_the_system_lacks_is_refused(capsys):
    with pytest.raises(SystemExit):
        pretrain.main(["--system", "sequential", "--role", "judge", "--output", "nowhere"])
    assert "planner, critic, solver" in capsys.readouterr().err
