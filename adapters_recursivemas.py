"""LoRA adapters of roles: a model of its base's own weights, with low-rank layers beside some of them.

A role that names an adapter gets modules of its own around the parameters of the base, which stay the same objects.
So nothing is switched between roles, no row of a batch meets another role's adapter, and roles without one run the
base as it is. Files are PEFT's (`adapter_config.json`, `adapter_model.safetensors`); PEFT itself is not needed.
"""

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from .bases_recursivemas import ADAPTER_FILES
from .errors_recursivemas import CheckpointError
from .sources_recursivemas import Source, read_tensors, write_tensors

SETTINGS, WEIGHTS = "adapter_config.json", ADAPTER_FILES[0]
PREFIX = "base_model.model."
# What an adapter's settings may say without changing what it computes beyond what is read here.
KNOWN = {
    *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_bias", "lora_dropout", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("auto_mapping", "megatron_core", "qalora_group_size", "eva_config", "runtime_config"),
}  # fmt: skip
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # of training, that leave the base as it is


class AdaptedLayer(nn.Module):
    """A linear layer with a low-rank one beside it: base(x) + scaling (up (down x) + bias), in the adapter's dtype.

    Args:
        base: the layer of the base model.
        down: (rank, in_features).
        up: (out_features, rank).
        scaling: a factor.
        bias: (out_features,), or none.
    """

    def __init__(
        self, base: nn.Module, down: torch.Tensor, up: torch.Tensor, scaling: float, bias: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.down, self.up = (nn.Parameter(tensor, requires_grad=False) for tensor in (down, up))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output = self.base(inputs)
        update = functional.linear(functional.linear(inputs.to(self.down.dtype), self.down), self.up, self.bias)
        return (output + update * self.scaling).to(output.dtype)


def adapter_place(source: Source, entry: Mapping[str, Any]) -> Source | None:
    """Where a role's adapter is, by its entry of `agents` in the configuration of a repository; `None` without one."""
    adapter = entry.get("adapter")
    return None if adapter is None else source.other(adapter["source"], adapter.get("revision"))


def adapt(model: PreTrainedModel, place: Source, role: str) -> PreTrainedModel:
    """A model of the same parameters with an adapter beside them; the given one stays as it is.

    Args:
        model: a base model, on its device.
        place: where the adapter is; its two files are fetched.
        role: for error messages.

    Raises:
        CheckpointError: a file is missing or broken, the adapter does not fit the model, or it is of a kind that would
            compute something else here.
    """
    place = place.fetch((SETTINGS, WEIGHTS))
    where = f"agent {role}, adapter {place}"
    settings = place.json(SETTINGS)
    _validate_settings(settings, where)
    layers = _read_layers(read_tensors(place.file(WEIGHTS), f"{where}, {WEIGHTS}"), where)
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        shared[id(quantizer)] = quantizer
    adapted = copy.deepcopy(model, shared)
    modules = dict(model.named_modules())
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, parts in layers.items():
        base = modules.get(name)
        shape = _shape_of(base)
        if base is None or shape is None or base in ends:
            raise _error(
                "An adapter changes what is no linear layer inside of its base model.",
                where, name, "layers of attention and of MLPs",
                "check that the adapter belongs to this base; where it changes embeddings or the head, merge it",
            )  # fmt: skip
        down, up, bias = (parts.get(part) for part in ("lora_A.weight", "lora_B.weight", "lora_B.bias"))
        if down is None or up is None or (up.shape[0], down.shape[1]) != shape or up.shape[1] != down.shape[0]:
            found = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in sorted(parts.items()))
            expected = f"lora_A (rank, {shape[1]}) and lora_B ({shape[0]}, rank)"
            raise _error(
                "A layer of an adapter is not whole, or does not fit its base.", where, f"{name}: {found}", expected
            )
        rank = down.shape[0]
        scaling = _of(settings, "alpha", name) / (rank**0.5 if settings.get("use_rslora") else rank)
        device = next(base.parameters()).device
        tensors = [None if each is None else each.to(device, _wide(each.dtype)) for each in (down, up, bias)]
        parent, _, child = name.rpartition(".")
        layer = AdaptedLayer(adapted.get_submodule(name), tensors[0], tensors[1], scaling, tensors[2])  # type: ignore[arg-type]
        setattr(adapted.get_submodule(parent), child, layer.train(base.training))
    _validate_complete(settings, modules, layers, ends, where)
    vars(adapted)["adapter"] = (settings, model)  # in a tuple: the base is no submodule
    return adapted


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """The base model of what `adapt` made; another model itself."""
    return vars(model)["adapter"][1] if is_adapted(model) else model


def is_adapted(model: PreTrainedModel) -> bool:
    """Whether a model is one that `adapt` made."""
    return "adapter" in vars(model)


def save_adapter(model: PreTrainedModel, folder: Path, base: str | None = None) -> None:
    """Writes the adapter of a model that `adapt` made as PEFT's two files; `base` names its base for other tools."""
    settings, _ = vars(model)["adapter"]
    write_tensors(adapter_tensors(model), folder / WEIGHTS)
    text = json.dumps({**settings, "base_model_name_or_path": base, "revision": None}, indent=2, sort_keys=True)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")


def adapter_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of the adapter of a model that `adapt` made, by PEFT's names."""
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, AdaptedLayer):
            parts = {"lora_A.weight": layer.down, "lora_B.weight": layer.up, "lora_B.bias": layer.bias}
            tensors |= {f"{PREFIX}{name}.{key}": value for key, value in parts.items() if value is not None}
    return tensors


def _error(what: str, where: str, found: object, expected: str, hint: str | None = None) -> CheckpointError:
    return CheckpointError(what, where=where, found=str(found)[:300], expected=expected, hint=hint)


def _validate_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError unless settings are those of a LoRA whose arithmetic is that of `AdaptedLayer`."""
    found = [
        f"{key}: {value!r}"
        for key, value in settings.items()
        if key not in KNOWN and value not in (None, False, "none", {}, [])
    ]
    if settings.get("peft_type") != "LORA":
        found.insert(0, f"peft_type: {settings.get('peft_type')!r}")
    if settings.get("init_lora_weights") not in STARTS:
        found.append(f"init_lora_weights: {settings['init_lora_weights']!r}")
    numbers = [settings.get("lora_alpha"), *_table(settings, "alpha_pattern").values()]
    found += [
        f"lora_alpha: {value!r}" for value in numbers if isinstance(value, bool) or not isinstance(value, int | float)
    ]
    if found:
        raise _error(
            "An adapter is of a kind that is not applied here.", f"{where}, {SETTINGS}", ", ".join(found),
            "a LoRA of linear layers (peft_type LORA)", "merge it (peft: `model.merge_and_unload()`)",
        )  # fmt: skip


def _table(settings: Mapping[str, Any], name: str) -> dict:
    table = settings.get(name)
    return table if isinstance(table, dict) else {}


def _of(settings: Mapping[str, Any], what: str, name: str) -> float:
    """A layer's alpha: that of the first pattern that fits the end of its name, as PEFT does it."""
    for pattern, value in _table(settings, f"{what}_pattern").items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return settings[f"lora_{what}"]


def _read_layers(tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, dict[str, torch.Tensor]]:
    """Layer -> part ("lora_A.weight", …) -> tensor."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    strange = []
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.(lora_[AB]\.weight|lora_B\.bias)", key)
        if match is None or not tensor.is_floating_point() or not bool(tensor.float().sum().isfinite()):
            strange.append(key)
        else:
            layers.setdefault(match[1], {})[match[2]] = tensor
    if strange or not layers:
        expected = "<layer>.lora_A.weight, <layer>.lora_B.weight, of finite numbers"
        raise _error(
            "Weights of an adapter cannot be applied.", where, ", ".join(sorted(strange)[:5]) or "none", expected
        )
    return layers


def _shape_of(layer: nn.Module | None) -> tuple[int, int] | None:
    """(out_features, in_features) of a linear layer; `None` of another module."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if type(layer).__name__ == "Conv1D":  # of transformers: a linear layer whose weight is transposed
        return layer.nf, layer.nx  # type: ignore[union-attr, return-value]
    return None


def _validate_complete(
    settings: Mapping[str, Any], modules: Mapping[str, nn.Module], layers: Mapping[str, Any], ends: tuple, where: str
) -> None:
    """Raises CheckpointError where settings name a layer of the base that has no weights in the adapter."""
    targets = settings.get("target_modules")
    if (
        not isinstance(targets, list)
        or settings.get("layers_to_transform") is not None
        or settings.get("exclude_modules")
    ):
        return
    named = {name for name in modules if any(name == target or name.endswith(f".{target}") for target in targets)}
    missing = sorted(name for name in named - set(layers) if _shape_of(modules[name]) and modules[name] not in ends)
    if missing:
        expected = f"weights for every layer that target_modules names ({len(named)})"
        raise _error("Weights of an adapter are missing.", where, ", ".join(missing[:5]), expected, "fetch it again")


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Adapters compute in float32, as PEFT has it."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
