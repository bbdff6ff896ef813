"""What the architectures share: which images are small, one initialization, BatchNorm's ε."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from st3.errors import UserError

SMALL_IMAGE = 64
"""Images of at most this many pixels a side get a variant of the network that keeps their resolution for longer."""


def set_bn_eps(model: nn.Module, eps: float) -> None:
    """ε of every BatchNorm, in place. Raises `UserError` where there is none, or for an ε that is not positive."""
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not found:
        raise UserError("model.bn_eps has no effect on a network without BatchNorm: drop it")
    if not 0 < eps <= 1:
        raise UserError(f"model.bn_eps={eps:g} must be positive and at most 1, or 0 for the architecture's own")
    for module in found:
        module.eps = eps


def kaiming_normal(model: nn.Module) -> None:
    """Draw every Conv2d and Linear weight from N(0, 2/fan_in), in place (He et al. 2015, arXiv:1502.01852).

    Their biases become 0; batch normalization becomes weight 1, bias 0. Other modules stay as they are.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
