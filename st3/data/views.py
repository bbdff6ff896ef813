"""Which part of an image the network sees: chosen from the image's size alone, then cut out of its pixels.

These are two steps, so that a file's header is enough for the first, and any decoder's pixels will do for the second.
Every view has both functions:

    draw(image)         numbers that say which part of one Pillow image; only its size is read, no pixel decoded
    cut(image, numbers) that part at the size of the network: of a Pillow image, or of a uint8 tensor [C, H, W]
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

Pixels = TypeVar("Pixels", Image.Image, torch.Tensor)


class RandomView:
    """Random area and aspect ratio, mirrored with probability 0.5: (top, left, height, width, mirrored)."""

    def __init__(self, image_size: int):
        self.size = [image_size, image_size]
        self.crop = v2.RandomResizedCrop(image_size)

    def draw(self, image: Image.Image) -> tuple[int, ...]:
        """See the module; draws from PyTorch's global generator."""
        box = self.crop.make_params([image])
        return box["top"], box["left"], box["height"], box["width"], int(torch.rand(1) < 0.5)

    def cut(self, image: Pixels, numbers: Sequence[int]) -> Pixels:
        """See the module."""
        *box, mirrored = numbers
        cropped: Pixels = functional.resized_crop(image, *box, size=self.size)
        return functional.horizontal_flip(cropped) if mirrored else cropped


class CentralView:
    """The usual central crop: 256 to 224 pixels, in proportion for other sizes. Nothing to draw."""

    def __init__(self, image_size: int):
        self.size = [image_size, image_size]
        self.shorter_side = [round(image_size * 256 / 224)]

    def draw(self, image: Image.Image) -> tuple[int, ...]:
        """See the module."""
        return ()

    def cut(self, image: Pixels, numbers: Sequence[int]) -> Pixels:
        """See the module."""
        return functional.center_crop(functional.resize(image, self.shorter_side), self.size)


class WholeView:
    """The whole image, scaled and centrally cropped to a square only where its size differs. Nothing to draw."""

    def __init__(self, image_size: int):
        self.size = image_size, image_size

    def draw(self, image: Image.Image) -> tuple[int, ...]:
        """See the module."""
        return ()

    def cut(self, image: Image.Image, numbers: Sequence[int]) -> Image.Image:
        """See the module; of Pillow images only."""
        return image if image.size == self.size else ImageOps.fit(image, self.size, Image.Resampling.BILINEAR)


View = RandomView | CentralView | WholeView
