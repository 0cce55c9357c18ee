"""Tiny models of every architecture that transformers can build from a small configuration, with random weights."""

import torch
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.links_recursivemas import InnerLink, OuterLink
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.small_systems.tokenizers import build_tokenizer
from tiny import CORPUS, chain_links, chain_prompts
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

# What makes a model small, by the names that configurations have for it; each takes those that it has.
SMALL = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "sliding_window": 8, "attention_window_size": 8,
    "embedding_size": 32, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4,
    "num_experts_per_tok": 2, "num_local_experts": 4, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "qk_head_dim": 12, "v_head_dim": 8, "rotary_dim": 4, "mamba_d_state": 8,
    "mamba_d_head": 8, "mamba_n_heads": 8, "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_expand": 2,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "mamba_dt_rank": 4, "ssm_state_size": 8, "n_groups": 1, "state_size": 8,
    "num_heads": 8, "conv_kernel": 4, "expand": 2, "chunk_size": 8, "lru_width": 32, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "d_model": 32,
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "encoder_layers": 1,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "attn_layer_offset": 1, "attn_layer_period": 2,
    "expert_layer_period": 2, "expert_layer_offset": 1,
}  # fmt: skip
# Where a model is built of what these names do not say
OWN = {
    "bamba": {"attn_layer_indices": [1]},
    "moshi": {"sliding_window": 512},  # beyond its window it answers itself otherwise with a cache than without
    "nemotron_h": {"hybrid_override_pattern": "M*"},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["full_attention"] * 4,
        "intermediate_size": [64] * 4, "activation_sparsity_pattern": [0.0] * 4, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 4096, "laurel_rank": 4, "altup_num_inputs": 2},
}  # fmt: skip
LARGEST = 3e7  # parameters


def any_base(model_type: str, tokenizer) -> PreTrainedModel | None:
    """A random model, or `None` where transformers builds none of a small configuration."""
    try:
        default = CONFIG_MAPPING[model_type]()
        fields = {name: value for name, value in SMALL.items() if getattr(default, name, None) is not None}
        if getattr(default, "kv_lora_rank", None):
            fields.pop("head_dim", None)
            fields["num_key_value_heads"] = 4
        if vars(default).get("layer_types"):
            kinds = list(dict.fromkeys(default.layer_types))
            fields["num_hidden_layers"] = max(2, len(kinds))
            fields["layer_types"] = (kinds * 2)[: fields["num_hidden_layers"]]
        if hasattr(default, "unpadded_vocab_size"):
            fields["unpadded_vocab_size"] = len(tokenizer)
        fields |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        fields |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.eos_token_id}
        config = CONFIG_MAPPING[model_type](**fields | OWN.get(model_type, {}))
        torch.manual_seed(0)
        with torch.device("meta"):
            if sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters()) > LARGEST:
                return None
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim >= 2 and "A_log" not in name and weight.is_floating_point():
                    is_embedding = "embed" in name or "wte" in name
                    weight.normal_(0, 0.3 if is_embedding else 0.7 / weight.shape[-1] ** 0.5)
                elif "output_scale" in name:  # Gemma 3n starts with its embeddings per layer switched off
                    weight.fill_(1.0)
            model(input_ids=torch.arange(3, 9)[None])
    except Exception:  # configurations refuse, and models break, in as many ways as there are
        return None
    settings = model.generation_config
    settings.do_sample, settings.eos_token_id = False, tokenizer.eos_token_id
    settings.pad_token_id = tokenizer.pad_token_id
    return model


def pair_of(model_type: str) -> RecursiveMASModel | None:
    """Two agents of an architecture that hand over to each other; `None` where there is no small one.

    Raises:
        CheckpointError: it cannot be an agent.
    """
    roles, tokenizer = ("first", "second"), build_tokenizer("qwen2", CORPUS)
    agents = {}
    for role in roles:
        model = any_base(model_type, tokenizer)
        if model is None:
            return None
        torch.manual_seed(len(agents))
        link = InnerLink("ln_res_adapter", model.get_input_embeddings().embedding_dim)
        agents[role] = RecursiveMASAgent(model, link, tokenizer, role)
    links = chain_links(*roles)
    width = agents["first"].hidden_size
    outer_links = {f"{a}_to_{b}": OuterLink("outer_ln_res_adapter", width, width) for a, b in (roles, roles[::-1])}
    config = RecursiveMASConfig(
        style="test",
        agents={role: {"source": f"agents/{role}"} for role in roles},
        stages=[[role] for role in roles],
        links=links,
        decoding_role="second",
        prompts=chain_prompts([[role] for role in roles], links),
        num_rounds=2,
        latent_steps=3,
    )
    return RecursiveMASModel(config, agents, outer_links)
