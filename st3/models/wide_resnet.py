"""Wide residual networks: Zagoruyko & Komodakis 2016, arXiv:1605.07146."""

import torch.nn.functional as F
from torch import Tensor, nn

from st3.errors import UserError
from st3.models.common import kaiming_normal

DEEPEST, WIDEST = 9_994, 1000
"""More is a slip of the finger: nobody has trained a tenth of it."""


class PreActBlock(nn.Module):
    """BN-ReLU-conv, dropout between the two: `[B, inputs, H, W]` → `[B, outputs, ⌈H/stride⌉, ⌈W/stride⌉]`.

    Where the shape changes, a 1×1 convolution of the activated input is the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = F.relu(self.bn2(self.conv1(y)), inplace=True)
        return shortcut + self.conv2(self.dropout(y))


class WideResNet(nn.Module):
    """WRN-depth-width: `depth` = 6n + 4 layers in three stages of 16k, 32k and 64k channels, k = `width`.

    `[B, channels, H, W]` float → logits `[B, classes]`. Kaiming normal, fan-in.

    Raises:
        UserError: `depth` is not 6n + 4 with n ≥ 1, `width` is no positive integer, or `dropout` is
            outside [0, 1).
    """

    def __init__(self, depth: int = 28, width: float = 10, dropout: float = 0.0, *, classes: int, channels: int):
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest or depth > DEEPEST:
            near = 6 * round((min(max(depth, 10), DEEPEST) - 4) / 6) + 4
            raise UserError(
                f"a WideResNet has 6n + 4 layers, at most {DEEPEST}, not model.depth={depth}: try "
                f"model.name=wide_resnet model.depth={near}"
            )
        if not 1 <= width <= WIDEST or width != int(width):
            raise UserError(
                f"a WideResNet's width is an integer from 1 to {WIDEST}, not model.width={width:g}: try "
                "model.name=wide_resnet model.width=2"
            )
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout} is outside [0, 1): try model.dropout=0.2")
        k = int(width)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(blocks, 16, 16 * k, 1, dropout)
        self.layer2 = _stage(blocks, 16 * k, 32 * k, 2, dropout)
        self.layer3 = _stage(blocks, 32 * k, 64 * k, 2, dropout)
        self.bn = nn.BatchNorm2d(64 * k)
        self.fc = nn.Linear(64 * k, classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.bn(x), inplace=True)
        return self.fc(x.mean(dim=(2, 3)))


def _stage(blocks: int, inputs: int, outputs: int, stride: int, dropout: float) -> nn.Sequential:
    rest = [PreActBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1)]
    return nn.Sequential(PreActBlock(inputs, outputs, stride, dropout), *rest)
