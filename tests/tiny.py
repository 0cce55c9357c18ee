"""Tiny systems of real architectures with real tokenizers, random weights: what the tests run on."""

import itertools

import torch
import transformers
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.configuration_recursivemas import RecursiveMASConfig
from recursivemas.links_recursivemas import InnerLink, OuterLink
from recursivemas.modeling_recursivemas import RecursiveMASModel
from recursivemas.small_systems.tokenizers import build_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

TRANSFORMERS = tuple(map(int, transformers.__version__.split(".")[:2]))  # what some laws are of
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
# model type -> (tokenizer family, width, further configuration); widths differ on purpose
ARCHITECTURES = {
    "qwen3": ("qwen3", 32, {"head_dim": 16}),
    "llama": ("llama3", 48, {}),
    "qwen2": ("qwen2", 64, {}),
    "gemma3_text": ("gemma3", 40, {"head_dim": 16, "num_hidden_layers": 3, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "mistral": ("mistral", 56, {"sliding_window": None}),
    "qwen3_5_text": ("qwen3_5", 24, {"head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"]}),
}  # fmt: skip
# Architectures that the release does not use: mixtures of experts, state spaces, other names of everything
BEYOND = {
    "gpt2": ("qwen2", 32, {}),
    "gpt_neox": ("llama3", 48, {}),
    "phi3": ("llama3", 32, {}),
    "gemma2": ("gemma3", 32, {"head_dim": 16, "sliding_window": 8, "final_logit_softcapping": 2.0}),
    "cohere": ("llama3", 32, {"logit_scale": 0.25}),
    "granite": ("llama3", 32, {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "llama4_text": ("llama3", 32, {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64,
        "layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 64, "no_rope_layers": [1, 0]}),
    "qwen3_moe": ("qwen3", 32, {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16}),
    "falcon_h1": ("qwen2", 32, {"head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
        "mamba_d_state": 8}),
}  # fmt: skip
# The multimodal checkpoints of the release: model type -> configuration of the vision part
VISION = {
    "gemma3": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8},
    "qwen3_5": {"hidden_size": 16, "intermediate_size": 32, "depth": 1, "num_heads": 2, "num_position_embeddings": 16,
        "patch_size": 8},
}  # fmt: skip
CORPUS = ["Plan the answer.", "Refine the plan of the others.", "What is the answer to the question?"]


def tiny_base(architecture: str, seed: int = 0, width: int | None = None) -> tuple[PreTrainedModel, object]:
    """A random base model and its tokenizer. Weights are larger than usual, so that answers depend on questions.

    `gemma3` and `qwen3_5` are the multimodal classes, as they are published.
    """
    text = f"{architecture}_text" if architecture in VISION else architecture
    family, usual_width, extra = (ARCHITECTURES | BEYOND)[text]
    width = width or usual_width
    tokenizer = build_tokenizer(family, CORPUS, seed=seed)
    fields = {
        **{**SHAPE, "hidden_size": width, "intermediate_size": 2 * width, "vocab_size": len(tokenizer), **extra},
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "tie_word_embeddings": seed == 0,
    }
    if architecture in VISION:
        vision = VISION[architecture] | ({"out_hidden_size": width} if architecture == "qwen3_5" else {})
        config = AutoConfig.for_model(
            architecture,
            text_config=fields,
            vision_config=vision,
            mm_tokens_per_image=4,
            tie_word_embeddings=fields["tie_word_embeddings"],
        )
    else:
        config = AutoConfig.for_model(architecture, **fields)
    torch.manual_seed(seed)
    auto_class = AutoModelForImageTextToText if architecture in VISION else AutoModelForCausalLM
    model = auto_class.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3 if "embed" in name else 0.7 / parameter.shape[-1] ** 0.5)
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def tiny_agent(architecture: str, role: str, kind: str = "ln_res_adapter", seed: int = 0) -> RecursiveMASAgent:
    model, tokenizer = tiny_base(architecture, seed)
    torch.manual_seed(seed + 1)
    return RecursiveMASAgent(model, InnerLink(kind, model.get_input_embeddings().embedding_dim), tokenizer, role)


def chain_prompts(stages: list[list[str]], links: list[dict], system: str | None = "You are one of several.") -> dict:
    """Prompts for any topology: the question, then a slot for each incoming link."""
    prompts = {}
    for role in (role for stage in stages for role in stage):
        slots = {
            phase: "".join(
                f"\nFrom {link['source']}: <|latents:{link['source']}|>"
                for link in links
                if link["target"] == role and (phase == "feedback" or not link.get("feedback"))
            )
            for phase in ("first", "feedback")
        }
        templates = {phase: f"Question: <|question|>{text}\nAnswer as {role}." for phase, text in slots.items()}
        prompts[role] = {"system": system, "default": templates}
    return prompts


def tiny_system(
    architectures: dict[str, str],
    stages: list[list[str]],
    links: list[dict],
    decoding_role: str,
    inner_kind: str = "ln_res_adapter",
    outer_kind: str = "outer_ln_res_adapter",
    **settings,
) -> RecursiveMASModel:
    """A composite of random agents and links. `architectures` is role -> model type."""
    agents = {
        role: tiny_agent(architecture, role, inner_kind, seed=index)
        for index, (role, architecture) in enumerate(architectures.items())
    }
    torch.manual_seed(99)
    outer_links = {
        f"{link['source']}_to_{link['target']}": OuterLink(
            outer_kind, agents[link["source"]].hidden_size, agents[link["target"]].hidden_size
        )
        for link in links
    }
    config = RecursiveMASConfig(
        style="test",
        agents={role: {"source": f"agents/{role}"} for role in architectures},
        stages=stages,
        links=[dict(link) for link in links],
        decoding_role=decoding_role,
        **{"prompts": chain_prompts(stages, links), "num_rounds": 2, "latent_steps": 4, "message_tokens": 8}
        | settings,
    )
    return RecursiveMASModel(config, agents, outer_links)


def chain_links(*roles: str) -> list[dict]:
    """A chain with feedback from its last role to its first."""
    forward = [{"source": a, "target": b} for a, b in itertools.pairwise(roles)]
    return [*forward, {"source": roles[-1], "target": roles[0], "feedback": True}]


def tiny_chain(architectures: dict[str, str] | None = None, **settings) -> RecursiveMASModel:
    """A sequential system, by default of three architectures."""
    architectures = architectures or {"planner": "qwen3", "critic": "llama", "solver": "qwen2"}
    roles = list(architectures)
    return tiny_system(architectures, [[role] for role in roles], chain_links(*roles), roles[-1], **settings)


class Script(LogitsProcessor):
    """Makes a random model write: `segments[i][row]` is what a row writes when it is asked for the i-th time.

    After its text a row writes what it would have written.
    """

    def __init__(self, tokenizer, segments: list[list[str]]) -> None:
        self.segments = [[tokenizer(text, add_special_tokens=False).input_ids for text in rows] for rows in segments]
        self.segment = -1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = input_ids.shape[1]
        self.segment += position == 0
        if self.segment >= len(self.segments):
            return scores
        forced = torch.full_like(scores, -float("inf"))
        for row, ids in enumerate(self.segments[self.segment]):
            if position < len(ids):
                forced[row, ids[position]] = 0.0
            else:
                forced[row] = scores[row]
        return forced


def script(mas: RecursiveMASModel, *segments: list[str]) -> LogitsProcessorList:
    """`logits_processor` for `solve` that makes the decoding agent write the segments, each one text a row."""
    return LogitsProcessorList([Script(mas.tokenizer, list(segments))])
