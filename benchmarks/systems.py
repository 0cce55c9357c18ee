"""Systems of real shapes with random weights: speed does not depend on what the weights say."""

import itertools
import json
import random
import string
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from ..agent_recursivemas import RecursiveMASAgent
from ..configuration_recursivemas import RecursiveMASConfig
from ..errors_recursivemas import InputError
from ..links_recursivemas import InnerLink, OuterLink
from ..modeling_recursivemas import RecursiveMASModel
from ..small_systems.tokenizers import build_tokenizer

# name -> (model type, tokenizer family, configuration), from the config.json of the models of that name
SHAPES = json.loads(Path(__file__).with_name("shapes.json").read_text(encoding="utf-8"))


@cache
def random_base(shape: str, dtype: torch.dtype, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base model of random weights and its tokenizer; agents of one shape share them, to save memory.

    No shape but the tiny one fits a processor's cache, so that sharing does not make anything faster.

    The embeddings of all tokens but the letters are small: greedy text is letters, never ends by itself, and is as
    many tokens for the agent that reads it as for the one that wrote it.

    Raises:
        InputError: unknown shape.
    """
    if shape not in SHAPES:
        raise InputError("Unknown shape.", where="--shape", found=shape, expected=", ".join(SHAPES))
    model_type, family, fields = SHAPES[shape]
    tokenizer = build_tokenizer(family, [], num_merges=0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(model_type, **fields, **ids, pad_token_id=tokenizer.pad_token_id)
    with no_init_weights(), torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    letters = tokenizer.convert_tokens_to_ids(list(string.ascii_letters))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.normal_(0, 0.02, generator=generator)
        embeddings = model.get_input_embeddings().weight
        loud = embeddings[letters].clone()
        embeddings.mul_(0.01)
        embeddings[letters] = loud
    model.generation_config.do_sample = False
    return model, tokenizer


def random_agent(shape: str, role: str, dtype: torch.dtype, device: str) -> RecursiveMASAgent:
    """An agent around `random_base`, with an inner link of random weights in float32."""
    model, tokenizer = random_base(shape, dtype, device)
    embeddings: Any = model.get_input_embeddings()
    width = embeddings.embedding_dim
    return RecursiveMASAgent(model, InnerLink("ln_res_adapter", width).to(device), tokenizer, role)


def random_system(shapes: list[str], dtype: torch.dtype, device: str) -> RecursiveMASModel:
    """A sequential system: one agent for each shape, each hands over to the next, the last one back to the first."""
    roles = [f"agent{letter}" for letter in string.ascii_lowercase[: len(shapes)]]
    agents = {role: random_agent(shape, role, dtype, device) for role, shape in zip(roles, shapes, strict=True)}
    links: list[dict[str, Any]] = [{"source": a, "target": b} for a, b in itertools.pairwise(roles)]
    links += [{"source": roles[-1], "target": roles[0], "feedback": True}] * (len(roles) > 1)
    outer_links = {}
    for link in links:
        widths = [agents[link[end]].hidden_size for end in ("source", "target")]
        outer_links[f"{link['source']}_to_{link['target']}"] = OuterLink(
            "outer_ln_res_adapter", widths[0], widths[1]
        ).to(device)
    prompts: dict[str, dict[str, Any]] = {}
    for index, role in enumerate(roles):
        sender = roles[index - 1]
        received = f"<|question|>\nRead this: <|latents:{sender}|>\nThink."
        phases = {"first": received if index else "<|question|>\nThink."}
        phases |= {"feedback": received} if len(roles) > 1 else {}
        prompts[role] = {"system": "You are one of several.", "default": phases}
    config = RecursiveMASConfig(
        style="benchmark",
        agents={role: {"source": f"agents/{role}"} for role in roles},
        stages=[[role] for role in roles],
        links=links,
        decoding_role=roles[-1],
        prompts=prompts,
    )
    return RecursiveMASModel(config, agents, outer_links)


def random_questions(tokens: int, number: int = 1) -> list[str]:
    """Questions of so many letters, each of which is one token."""
    letters = random.Random(0)
    return ["".join(letters.choices(string.ascii_letters, k=tokens)) for _ in range(number)]
