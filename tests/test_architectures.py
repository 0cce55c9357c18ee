"""Models as they are: whatever transformers builds thinks and answers as itself, or is refused by name."""

import pytest
import torch
from architectures import any_base, pair_of
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.errors_recursivemas import CheckpointError
from recursivemas.links_recursivemas import InnerLink
from recursivemas.mixtures_recursivemas import ExpectedEmbeddingLink
from recursivemas.small_systems.tokenizers import build_tokenizer
from recursivemas.system_loader import load_mas_system
from reference import reference_solve
from tiny import CORPUS, TRANSFORMERS, tiny_base
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

QUESTIONS = ["Why?", "How many apples are 12 + 3 apples?", "A longer question, about nothing at all, or nearly so."]
NEW_TOKENS = 4
IDS = "needs token ids beside embeddings"
CAUSAL = "is not causal"
STATE = "keeps a state that cannot be continued"
PADDING = "counts padding"
# What cannot hold, and the feature that stands in the way
REFUSED = {
    **dict.fromkeys(("camembert", "cpmant", "data2vec-text", "deepseek_v4", "gemma3n_text", "roberta"), IDS),
    **dict.fromkeys(("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"), IDS),
    **dict.fromkeys(("bert", "bert-generation", "big_bird", "electra", "ernie", "megatron-bert", "rembert"), CAUSAL),
    **dict.fromkeys(("roc_bert", "roformer", "xlm"), CAUSAL),
    **dict.fromkeys(("ctrl", "dory", "minimax", "openai-gpt", "rwkv"), STATE),
    **dict.fromkeys(("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp"), PADDING),
    **dict.fromkeys(("pegasus", "plbart", "recurrent_gemma", "trocr", "whisper"), PADDING),
}
# Of every kind: heads and positions of their own, experts, windows, recurrent states of which some read on and some
# do not, holes that count, ids beside embeddings, positions that count padding, no causality
REPRESENTATIVE = (
    *("gpt2", "bloom", "mpt", "gpt_oss", "deepseek_v3", "modernbert-decoder", "mamba", "bamba", "jamba", "nemotron_h"),
    *("gemma3n_text", "bart", "bert", "rwkv"),
)


if TRANSFORMERS < (5, 24):  # its state there cannot be continued
    REFUSED["mamba"] = STATE


@torch.no_grad()
def judge(model_type):
    """Whether there was anything to judge."""
    if model_type in REFUSED:
        with pytest.raises(CheckpointError, match=rf"it {REFUSED[model_type]}(?s:.*)agent first") as refused:
            assert pair_of(model_type) is not None, f"there is no small {model_type}"
        assert "found" in str(refused.value)
        return True
    mas = pair_of(model_type)
    if mas is None:
        return False
    agent = mas.agents["second"]
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    solutions = mas.solve(QUESTIONS, return_latents=True, **settings)
    alone = mas.solve(QUESTIONS, mode="alone", **settings)
    for question, solution, single in zip(QUESTIONS, solutions, alone, strict=True):
        ids, latents = reference_solve(mas, question, 2, 3, NEW_TOKENS)
        for key, sent in solution.latents.items():
            torch.testing.assert_close(sent, latents[key], atol=1e-3, rtol=1e-3)
        assert solution.text == agent.decode(ids)
        (prompt,) = mas.renderers["second"].pieces("You are one of several.", "<|question|>", question)
        own = agent.model.generate(input_ids=torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
        assert single.text == agent.decode(own)
    return True


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=[pytest.mark.slow] * (row % 2)) for row, name in enumerate(REPRESENTATIVE)]
)
def test_an_architecture_thinks_and_answers_as_the_model_itself_or_is_refused_by_name(model_type):
    assert judge(model_type)


class Neighbourly(nn.Module):
    """Lets the rows of a batch know each other."""

    def forward(self, hidden_states):
        return hidden_states + hidden_states.mean(0, keepdim=True)


def test_rows_that_depend_on_their_neighbours_are_refused():
    model, tokenizer = tiny_base("llama")
    model.model.layers[0].mlp = Neighbourly()
    with pytest.raises(CheckpointError, match="depends on the other rows of a batch"):
        RecursiveMASAgent(model, InnerLink("ln_res_adapter", 48), tokenizer, "solo")


def test_a_model_that_is_asked_stays_as_it_was():
    model, tokenizer = tiny_base("llama", seed=3)
    link, before = InnerLink("ln_res_adapter", 48), torch.get_rng_state()
    agent = RecursiveMASAgent(model.train(), link, tokenizer, "solo")
    assert agent.inner_link is link and agent.model.training and torch.equal(torch.get_rng_state(), before)


def test_a_head_that_is_more_than_a_projection_cannot_mix_tokens():
    tokenizer = build_tokenizer("qwen2", CORPUS)
    model = any_base("modernbert-decoder", tokenizer)
    with pytest.raises(CheckpointError, match="agent solo"):
        RecursiveMASAgent(model, ExpectedEmbeddingLink(32), tokenizer, "solo")


@pytest.mark.parametrize("module, works", [("model.layers.1", True), ("model.embed_tokens", False)])
def test_offloaded_weights_work_or_are_refused_by_name(module, works, chain, chain_folder, tmp_path):
    pytest.importorskip("accelerate")
    names = ["embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb"]
    places = {f"model.{name}": "disk" if module.endswith(name) else "cpu" for name in names} | {"lm_head": "cpu"}
    settings = {"device_map": {"critic": places}, "agent_kwargs": {"critic": {"offload_folder": str(tmp_path)}}}
    if not works:
        with pytest.raises(CheckpointError, match=r"offloaded(?s:.*)agent critic(?s:.*)device_map"):
            load_mas_system(chain_folder, **settings)
        return
    mas = load_mas_system(chain_folder, **settings)
    assert any(weight.is_meta for weight in mas.agents["critic"].model.parameters())
    assert mas.solve("Why?", max_new_tokens=4)[0].text == chain.solve("Why?", max_new_tokens=4)[0].text


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_architecture_thinks_and_answers_as_the_model_itself_or_is_refused_by_name(model_type):
    if not judge(model_type):
        pytest.skip("transformers builds none of a small configuration")
