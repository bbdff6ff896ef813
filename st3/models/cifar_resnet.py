"""CIFAR ResNets: He et al. 2015, section 4.2, arXiv:1512.03385."""

import torch.nn.functional as F
from torch import Tensor, nn

from st3.models.common import kaiming_normal


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: `[B, inputs, H, W]` → `[B, outputs, ⌈H/stride⌉, ⌈W/stride⌉]`.

    Where the shape changes the shortcut is a 1×1 convolution with batch normalization (the paper's option B).
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class CifarResNet(nn.Module):
    """ResNet of `depth` = 6n + 2 layers in three stages of 16, 32 and 64 channels.

    `[B, channels, H, W]` float → logits `[B, classes]`. Kaiming normal, fan-in.
    """

    def __init__(self, depth: int, *, classes: int, channels: int):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        assert rest == 0, depth
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, stride=1)
        self.layer2 = _stage(blocks, 16, 32, stride=2)
        self.layer3 = _stage(blocks, 32, 64, stride=2)
        self.fc = nn.Linear(64, classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)
