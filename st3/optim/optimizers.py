"""Optimizers by name, with weight decay where it belongs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from st3.errors import UserError
from st3.settings import Settings
from st3.sparsify import weight_layers


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Settings):
    """What makes an optimizer for a model. Weight decay applies to the weights of `parameter_groups` only."""

    group: ClassVar[str] = "optimizer"

    lr: float
    """Peak learning rate."""
    weight_decay: float
    """Coefficient, on the raw weights of Conv and Linear layers."""

    def validate(self) -> None:
        self.check_positive("lr")
        self.check_not_negative("weight_decay")

    def build(self, model: nn.Module) -> Optimizer:
        """Over all trainable parameters. Raises `UserError` for values that PyTorch refuses."""
        # One launch for all parameters, and a learning rate that may be a tensor, as a captured step needs it.
        fused = True if next(model.parameters()).is_cuda else None
        try:
            return self.over(parameter_groups(model, self.weight_decay), fused)
        except ValueError as error:
            raise UserError(f"optimizer: {error}") from error

    def over(self, groups: list[dict], fused: bool | None) -> Optimizer:
        """PyTorch's optimizer over parameter groups."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SGD(OptimizerSettings):
    """Stochastic gradient descent with momentum."""

    name: ClassVar[str] = "sgd"

    lr: float = 0.1
    weight_decay: float = 1e-4
    momentum: float = 0.9
    nesterov: bool = False
    """Nesterov's variant of the momentum."""

    def validate(self) -> None:
        super().validate()
        self.check_below_one("momentum")
        self.check(self.momentum > 0 or not self.nesterov, "nesterov", "needs a momentum: optimizer.momentum=0.9")

    def over(self, groups: list[dict], fused: bool | None) -> Optimizer:
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)


@dataclass(frozen=True, kw_only=True)
class AdamW(OptimizerSettings):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101)."""

    name: ClassVar[str] = "adamw"

    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: float = 1e-8

    def validate(self) -> None:
        super().validate()
        self.check_not_negative("eps")
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self.check(fits, "betas", "must be two numbers in [0, 1): optimizer.betas=[0.9,0.999]")

    def over(self, groups: list[dict], fused: bool | None) -> Optimizer:
        first, second = self.betas
        return torch.optim.AdamW(
            groups, lr=self.lr, betas=(first, second), eps=self.eps, fused=fused, capturable=bool(fused)
        )


OPTIMIZERS: dict[str, type[OptimizerSettings]] = {each.name: each for each in (SGD, AdamW)}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups of trainable parameters: weights of Conv and Linear layers with decay, the input projections of
    attention among them; biases, normalisation and what else there is without."""
    decayed = {id(weight) for weight in weight_layers(model).values()}
    decayed |= {id(m.weight) for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)}  # of any dimension
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
