"""ST-3 as research code writes it, equation by equation: the peer that stands beside the package's own."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shrink_and_rescale(weight: Tensor, tau: Tensor | float) -> Tensor:
    """The forward weight for the raw `weight` [out, …] and threshold `tau`."""
    mask = (weight.abs() > tau).to(weight.dtype)
    shrunk = (weight - torch.sign(weight) * tau) * mask
    dims = tuple(range(1, weight.ndim))
    kept = (weight.abs() * mask).mean(dims, keepdim=True)
    rho = (kept + 1e-6) / (weight.abs().mean(dims, keepdim=True) + 1e-6)
    return shrunk * (1.01 / (rho + 0.01))


class StraightThrough(torch.autograd.Function):
    """`shrink_and_rescale` forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tau: Tensor) -> Tensor:
        return shrink_and_rescale(weight, tau)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class NaiveLayer(nn.Module):
    """Stands in for a Conv2d or Linear `layer`, whose parameters are the raw ones."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, tau: Tensor):
        super().__init__()
        self.layer, self.tau = layer, tau

    def forward(self, x: Tensor) -> Tensor:
        weight = StraightThrough.apply(self.layer.weight, self.tau)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        return self.layer._conv_forward(x, weight, self.layer.bias)


class Naive:
    """ST-3 with wrapped layers and a threshold from sorting all magnitudes, which the host waits for.

    Computes the same training as `method=st3`. A threshold of 0 changes no weight, so the first step is dense.
    """

    def __init__(self, model: nn.Module, sparsity: float):
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        self.sparsity, self.weights = sparsity, [layer.weight for layer in layers.values()]
        self.tau = torch.zeros((), dtype=self.weights[0].dtype, device=self.weights[0].device)
        for name, layer in layers.items():
            model.set_submodule(name, NaiveLayer(layer, self.tau))

    @torch.no_grad()
    def update(self) -> None:
        """The threshold for the next forward pass; after every optimizer step."""
        ordered = torch.cat([w.abs().flatten() for w in self.weights]).sort().values
        rank = (ordered.numel() - 1) * self.sparsity
        low, high = ordered[math.floor(rank)].item(), ordered[math.ceil(rank)].item()
        self.tau.fill_(low + (high - low) * (rank % 1))

    @torch.no_grad()
    def sparse(self) -> list[Tensor]:
        """The forward weights."""
        return [shrink_and_rescale(w, self.tau) for w in self.weights]
