"""Projections of one weight tensor as pure functions (ST-3, arXiv:2212.01076, section 3).

They never wait for the device. `st3.sparsify.kernels` computes the same for all layers together.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def soft_threshold(weight: Tensor, threshold: Tensor) -> Tensor:
    """`(w − sign(w)·τ)·1[|w| > τ]`, any shape; `threshold` τ >= 0 is 0-d."""
    return weight - weight.clamp(-threshold, threshold)


def hard_threshold(weight: Tensor, threshold: Tensor) -> Tensor:
    """`w·1[|w| > τ]`, any shape; `threshold` τ is 0-d."""
    return weight * (weight.abs() > threshold)


def power_threshold(weight: Tensor, threshold: Tensor, exponent: float) -> Tensor:
    """`sign(w)·(|w|^p − τ^p)^(1/p)·1[|w| > τ]`, any shape, p = `exponent` (Feather, arXiv:2310.02448).

    p = 1 is soft thresholding, infinity hard thresholding. `threshold` τ >= 0 is 0-d.
    """
    magnitude = weight.abs()
    # As |w|·(1 − (τ/|w|)^p)^(1/p), which does not lose small weights to their powers.
    left = (1 - (threshold / magnitude) ** exponent).clamp_min(0) ** (1 / exponent)
    return torch.where(magnitude > threshold, weight * left, 0)


def rescale_factor(weight: Tensor, kept: Tensor) -> Tensor:
    """κ, what restores the mean magnitude of each output channel after shrinking: shape [out, 1, …].

    `ρ = (mean(|w|·m) + 1e-6)/(mean(|w|) + 1e-6)`, `κ = 1.01/(ρ + 0.01)`, so 1 ≤ κ ≤ 101. `weight` [out, …] is raw,
    `kept` the mask m of the same shape; the means run over all dimensions but the first. ρ is taken from the masked
    raw magnitudes, not from the shrunk ones, as the paper's code does.
    """
    dims = tuple(range(1, weight.ndim))
    magnitude = weight.abs()
    rho = ((magnitude * kept).mean(dims, keepdim=True) + 1e-6) / (magnitude.mean(dims, keepdim=True) + 1e-6)
    return 1.01 / (rho + 0.01)


def sigma(shape: tuple[int, ...]) -> float:
    """σ_l = 1/√(sum of all dimensions of the weight): 1/√134 for 64×64×3×3. The layer's scale in ST-3σ."""
    return sum(shape) ** -0.5


def cost_scales(costs: Sequence[float], exponent: float) -> list[float]:
    """`c_l^γ` divided by the geometric mean of all of them, for what one weight of each layer costs, γ = `exponent`.

    `costs` are positive, in any unit. The geometric mean is the plain one over the layers, however many weights they
    have, so that a common threshold τ keeps its magnitude: half of the `τ·scale_l`, in logarithms, lies on either side.
    Where γ = 0 every scale is exactly 1.
    """
    logs = [exponent * math.log(cost) for cost in costs]
    mean = math.fsum(logs) / len(logs)
    return [math.exp(each - mean) for each in logs]
