"""The front door in a clone: `from system_loader import load_mas_system`.

The classes come through transformers' dynamic-module mechanism on this very folder, so that a class has one identity
however a user came in (`AutoModel…` with `trust_remote_code=True`, or this file). Everything else in the repository
that is no remote code uses the remote code through the names below.
"""

import importlib
import os
from pathlib import Path

import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

ROOT = Path(__file__).resolve().parent
RecursiveMASModel = get_class_from_dynamic_module("modeling_recursivemas.RecursiveMASModel", str(ROOT))
_PACKAGE = RecursiveMASModel.__module__.rpartition(".")[0]


def remote_module(name: str):
    """A module of the remote code, as the model classes see it: `remote_module("links_recursivemas")`."""
    return importlib.import_module(f"{_PACKAGE}.{name}")


_agent, _answers, _configuration = map(
    remote_module, ("agent_recursivemas", "answers_recursivemas", "configuration_recursivemas")
)
_errors, _links, _prompts, _topology = map(
    remote_module, ("errors_recursivemas", "links_recursivemas", "prompts_recursivemas", "topology_recursivemas")
)
_modeling, _sources, _tools = map(
    remote_module, ("modeling_recursivemas", "sources_recursivemas", "tools_recursivemas")
)

RecursiveMASAgent = _agent.RecursiveMASAgent
RecursiveMASConfig = _configuration.RecursiveMASConfig
RecursiveMASError, ConfigError, InputError = _errors.RecursiveMASError, _errors.ConfigError, _errors.InputError
ArgumentError, CheckpointError = _errors.ArgumentError, _errors.CheckpointError
InnerLink, OuterLink = _links.InnerLink, _links.OuterLink
INNER_KINDS, OUTER_KINDS, ABLATION_KINDS = _links.INNER_KINDS, _links.OUTER_KINDS, _links.ABLATION_KINDS
PromptRenderer, Slot, slot_marker = _prompts.PromptRenderer, _prompts.Slot, _prompts.slot_marker
TASKS, check_prompts = _prompts.TASKS, _prompts.check_prompts
Topology, Link = _topology.Topology, _topology.Link
calculator = _tools.calculator
Solution, read_prompts, extract_answer = _modeling.Solution, _modeling.read_prompts, _answers.extract_answer


def load_mas_system(
    style: str | os.PathLike = ROOT,
    *,
    device: str | torch.device | dict[str, str | torch.device] | None = None,
    dtype: str | torch.dtype = "auto",
    outer_dtype: str | torch.dtype = "auto",
    trust_remote_code: bool | None = None,
    **kwargs,
) -> RecursiveMASModel:
    """Loads a system.

    Args:
        style: a folder or Hub repository with a system's config.json; by default this repository's own system.
        device: one device for all agents, or role -> device; default the CPU.
        dtype: of the agents; "auto" keeps the checkpoints'.
        outer_dtype: of the links; "auto" keeps the checkpoints'.
        trust_remote_code: accepted for symmetry with `from_pretrained`; the code that runs is this clone's.
        kwargs: see `RecursiveMASModel.from_pretrained`.

    Raises:
        ConfigError, CheckpointError, ArgumentError: see `RecursiveMASModel.from_pretrained`.
    """
    return RecursiveMASModel.from_pretrained(style, device=device, dtype=dtype, outer_dtype=outer_dtype, **kwargs)
