"""What the processor computes fast: float32 matrix products, and whether bfloat16.

torch multiplies float32 matrices with MKL, which leaves half of the speed of some processors unused; oneDNN, which
comes with torch too, does not. Measured on a Zen 5 core (see docs/performance.md): 1.9 times as fast on prompts, 1.5
times on a step of eight rows, and no slower on a single row.
"""

from collections.abc import Mapping

import torch
from torch import nn

# Smaller layers are as fast without, and oneDNN's threads wait for each other longer where cores are busy.
LEAST_WEIGHTS = 2**20


class FastLinear(nn.Linear):
    """A linear layer that computes by oneDNN on the processor, in float32, without gradients; else as ever.

    Quantised weights, whatever made them, compute in their own way: they may say that they are float32.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        fits = inputs.is_cpu and inputs.dtype == torch.float32 == self.weight.dtype and not torch.is_grad_enabled()
        fits = fits and type(self.weight) is nn.Parameter
        if fits and not torch.compiler.is_compiling():
            return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return super().forward(inputs)


def use_fast_linear(model: nn.Module, least_weights: int = LEAST_WEIGHTS) -> None:
    """Turns the large plain linear layers of a model into `FastLinear`s, unless torch was built without oneDNN."""
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        for module in model.modules():
            if type(module) is nn.Linear and module.weight.numel() >= least_weights:
                module.__class__ = FastLinear


def computes_half() -> bool:
    """Whether this processor has instructions for bfloat16; without them torch emulates 16 bits, which is slow."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not say
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
