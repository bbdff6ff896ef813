"""VGG with batch normalization: Simonyan & Zisserman 2014, arXiv:1409.1556, table 1, columns A, B, D, E."""

from torch import Tensor, nn

from st3.models.common import SMALL_IMAGE, kaiming_normal

WIDTHS = (64, 128, 256, 512, 512)
CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth → number of 3×3 convolutions in each of the five stages."""


class VGG(nn.Module):
    """VGG of `depth` 11, 13, 16 or 19. `[B, channels, H, W]` float → logits `[B, classes]`.

    Images of more than 64 pixels get the paper's head of three Linear layers with dropout 0.5; smaller ones
    a global average and one Linear(512, classes). Kaiming normal, fan-in.
    """

    def __init__(self, depth: int, *, classes: int, channels: int, image_size: int):
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for width, convs in zip(WIDTHS, CONVS[depth], strict=True):
            for _ in range(convs):
                # No bias: the batch normalization that follows would cancel it.
                layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
                layers += [nn.ReLU(inplace=True)]
                inputs = width
            # ceil_mode changes nothing on multiples of 32 and lets 28×28 pass: 28, 14, 7, 4, 2, 1.
            layers += [nn.MaxPool2d(2, ceil_mode=True)]
        self.features = nn.Sequential(*layers)
        if image_size > SMALL_IMAGE:
            self.pool = nn.AdaptiveAvgPool2d(7)
            self.classifier: nn.Module = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Linear(4096, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Linear(4096, classes),
            )
        else:
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(512, classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))
