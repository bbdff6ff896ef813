"""What happens to the raw weights between the optimizer's step and the projection."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.optim import Optimizer

from st3.settings import Settings


@dataclass(frozen=True, kw_only=True)
class RawStep(Settings):
    """Nothing more: the optimizer's step is the raw step."""

    group: ClassVar[str] = "raw_step"
    name: ClassVar[str] = "plain"

    def apply(self, optimizer: Optimizer) -> None:
        """To the parameters that `optimizer` has just moved, which hold raw values. Must not wait for the device."""


@dataclass(frozen=True, kw_only=True)
class HAM(RawStep):
    """HAM (Jacobs et al. 2026, arXiv:2506.02630): after the optimizer's step weights move in proportion to their size,
    `w ← w·exp(clamp(lr·(−α·sign(w)·g − β), −5, 5))`, g the gradient that the optimizer used.

    On all weights of two and more dimensions. It goes with any method; α = 0 leaves the decay by β.
    """

    name: ClassVar[str] = "ham"

    alpha: float = 200.0
    """α, how strongly the gradient acts."""
    beta: float = 1e-3
    """β, decay in proportion to the weight."""

    def validate(self) -> None:
        self.check_not_negative("alpha")
        self.check_not_negative("beta")

    def apply(self, optimizer: Optimizer) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer takes the scaler's factor off itself
        for group in optimizer.param_groups:
            moved = [p for p in group["params"] if p.ndim > 1 and p.grad is not None]
            if not moved:
                continue
            weights, lr = [p.detach() for p in moved], group["lr"]
            exponents = list(torch._foreach_mul(torch._foreach_sign(weights), [p.grad for p in moved]))
            torch._foreach_mul_(exponents, -self.alpha * lr if scale is None else -self.alpha * lr / scale)
            torch._foreach_add_(exponents, -self.beta * lr)
            torch._foreach_clamp_min_(exponents, -5.0)
            torch._foreach_clamp_max_(exponents, 5.0)
            torch._foreach_exp_(exponents)
            torch._foreach_mul_(weights, exponents)


RAW_STEPS: dict[str, type[RawStep]] = {each.name: each for each in (RawStep, HAM)}
