"""MobileNetV1: Howard et al. 2017, arXiv:1704.04861, table 1."""

from torch import Tensor, nn

from st3.errors import UserError
from st3.models.common import SMALL_IMAGE, kaiming_normal

WIDEST = 100
"""More is a slip of the finger."""
# (output channels, stride) of the 13 depthwise separable blocks
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions. `[B, channels, H, W]` float → logits `[B, classes]`.

    `width` is the paper's α: every layer has ⌊α·channels⌋ channels, but at least 8. The stem has stride 2,
    for images of at most 64 pixels stride 1, as is common on CIFAR: 32×32 ends at 2×2. Kaiming normal,
    fan-in.

    Raises:
        UserError: `width` is not positive.
    """

    def __init__(self, width: float = 1.0, *, classes: int, channels: int, image_size: int):
        super().__init__()
        if not 0 < width <= WIDEST:
            raise UserError(f"model.width={width:g} is not positive and at most {WIDEST}: try model.width=1.0")
        inputs = _scaled(32, width)
        stem = nn.Conv2d(channels, inputs, 3, 1 if image_size <= SMALL_IMAGE else 2, padding=1, bias=False)
        layers = [*_norm_relu(stem)]
        for outputs, stride in BLOCKS:
            outputs = _scaled(outputs, width)
            layers += _norm_relu(nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False))
            layers += _norm_relu(nn.Conv2d(inputs, outputs, 1, bias=False))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def _scaled(channels: int, width: float) -> int:
    return max(8, int(channels * width))


def _norm_relu(conv: nn.Conv2d) -> tuple[nn.Module, ...]:
    return conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)
