"""Models as they are: whatever transformers builds thinks and answers as itself, or is refused by name."""

import pytest
import torch
from architectures import pair_of
from recursivemas.errors_recursivemas import CheckpointError
from reference import reference_solve
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


@pytest.mark.parametrize("model_type", REPRESENTATIVE)
def test_an_architecture_thinks_and_answers_as_the_model_itself_or_is_refused_by_name(model_type):
    assert judge(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_architecture_thinks_and_answers_as_the_model_itself_or_is_refused_by_name(model_type):
    if not judge(model_type):
        pytest.skip("transformers builds none of a small configuration")
