"""Augmentation beyond crops and flips: a policy of random operations, erased rectangles, mixed images.

All of it acts on batches of training images where they are. What is random is drawn for a whole epoch at once, one row
per image, so that it does not depend on how many images are then augmented together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from st3.settings import Settings

BINS = 31
"""Magnitudes of an operation, from none to its largest."""


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Settings):
    """What is done to training images after `dataset.augment`; nothing by default.

    Raises `UserError`, naming the setting, for a value that cannot be or has no effect with the others.
    """

    group: ClassVar[str] = "augmentation"

    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Random operations on the pixels of each image. randaugment (arXiv:1909.13719): some, of one magnitude;
    trivialaugment (arXiv:2103.10158, the wide space): one, of any magnitude."""
    operations: int = 2
    """RandAugment: operations on each image, one after the other."""
    magnitude: int = 9
    """RandAugment: of all operations, 0 to 30."""
    erasing: float = 0.0
    """Probability that a rectangle of an image is erased (arXiv:1708.04896): 2 to 33 % of it become the mean colour."""
    mixup: float = 0.0
    """α of mixup (arXiv:1710.09412): images and labels are averaged with those of another, weighted by a number that is
    drawn from Beta(α, α) for each batch. 0: off."""
    cutmix: float = 0.0
    """α of CutMix (arXiv:1905.04899): a box of each image, the same in the whole batch, comes from another, and so does
    that share of its label. 0: off. With mixup each batch draws one of the two, with equal chance."""

    def validate(self) -> None:
        """See the class."""
        self.check(1 <= self.operations <= 100, "operations", "must be at least 1 and at most 100")
        self.check(0 <= self.magnitude < BINS, "magnitude", f"lies outside 0..{BINS - 1}")
        self.check_fraction("erasing")
        self.check_not_negative("mixup")
        self.check_not_negative("cutmix")
        for each in fields(self):
            if each.name in ("operations", "magnitude") and self.policy != "randaugment":
                self.check(
                    getattr(self, each.name) == each.default,
                    each.name,
                    f"has no effect with augmentation.policy={self.policy}: set augmentation.policy=randaugment, or "
                    f"augmentation.{each.name}={each.default}",
                )

    @property
    def mixes(self) -> bool:
        """Whether labels of training batches are soft."""
        return self.mixup > 0 or self.cutmix > 0


# The policy -----------------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """One operation of a policy, on uint8 images [B, C, H, W] with C 1 or 3, that are all treated alike."""

    name: str
    apply: Callable[[Tensor, float], Tensor]
    """(images, magnitude) to images. Operations on colour leave grey images as they are."""
    magnitudes: Sequence[float] = ()
    """`BINS` of them, or none."""
    signed: bool = False
    """Whether the magnitude is negated with probability 0.5."""


def operation_space(policy: str, image_size: int) -> list[Operation]:
    """The published operations and magnitudes of "randaugment" or "trivialaugment", as torchvision has them.

    RandAugment: Cubuk et al. 2019, arXiv:1909.13719; TrivialAugment Wide: Müller & Hutter 2021, arXiv:2103.10158, and
    like there pixels that come from outside the image are black and nothing is interpolated.
    """
    wide = policy == "trivialaugment"

    def up_to(most: float) -> list[float]:
        return torch.linspace(0.0, most, BINS).tolist()

    shear, enhance, degrees = (0.99, 0.99, 135.0) if wide else (0.3, 0.9, 30.0)
    pixels = 32.0 if wide else 150.0 / 331.0 * image_size
    bits = (8 - torch.arange(BINS) / ((BINS - 1) / (6 if wide else 4))).round().tolist()
    thresholds = torch.linspace(1.0, 0.0, BINS).tolist()
    return [
        Operation("identity", lambda images, _: images),
        Operation("shear x", lambda images, by: _sheared(images, [_angle(by), 0.0]), up_to(shear), signed=True),
        Operation("shear y", lambda images, by: _sheared(images, [0.0, _angle(by)]), up_to(shear), signed=True),
        Operation("translate x", lambda images, by: _moved(images, [int(by), 0]), up_to(pixels), signed=True),
        Operation("translate y", lambda images, by: _moved(images, [0, int(by)]), up_to(pixels), signed=True),
        Operation("rotate", functional.rotate, up_to(degrees), signed=True),
        *(
            Operation(name, _enhancing(adjust), up_to(enhance), signed=True)
            for name, adjust in (
                ("brightness", functional.adjust_brightness),
                ("color", functional.adjust_saturation),
                ("contrast", functional.adjust_contrast),
                ("sharpness", functional.adjust_sharpness),
            )
        ),
        Operation("posterize", lambda images, left: functional.posterize(images, int(left)), bits),
        Operation("solarize", lambda images, above: functional.solarize(images, 255 * above), thresholds),
        Operation("autocontrast", lambda images, _: functional.autocontrast(images)),
        Operation("equalize", lambda images, _: functional.equalize(images)),
    ]


def _enhancing(adjust: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    return lambda images, by: adjust(images, 1.0 + by)


def _angle(slope: float) -> float:
    return math.degrees(math.atan(slope))


def _sheared(images: Tensor, shear: list[float]) -> Tensor:
    return functional.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])


def _moved(images: Tensor, translate: list[int]) -> Tensor:
    return functional.affine(images, angle=0.0, translate=translate, scale=1.0, shear=[0.0, 0.0])


class Policy:
    """The `rounds` operations that each image gets, drawn from `space`; all of magnitude `magnitude`, or of any."""

    def __init__(self, space: Sequence[Operation], rounds: int, magnitude: int | None):
        self.space, self.rounds, self.magnitude = space, rounds, magnitude
        self._has_magnitude = torch.tensor([len(each.magnitudes) > 0 for each in space])
        self._signed = torch.tensor([each.signed for each in space])

    def draw(self, images: int, random: torch.Generator) -> Tensor:
        """What is done to each image: int64 [images, rounds], a number for (operation, magnitude, sign)."""
        size = images, self.rounds
        chosen = torch.randint(len(self.space), size, generator=random)
        if self.magnitude is None:
            magnitude = torch.randint(BINS, size, generator=random)
        else:
            magnitude = torch.tensor(self.magnitude)
        negative = torch.randint(2, size, generator=random)
        # What an operation does not depend on is 0, so that what is the same has the same number.
        return (chosen * BINS + magnitude * self._has_magnitude[chosen]) * 2 + negative * self._signed[chosen]

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Do it.

        Args:
            images: uint8 [B, C, H, W].
            drawn: int64 [B, rounds] in the machine's memory, so that nothing waits for the device.
        """
        for numbers in drawn.unbind(1):
            kinds, counts = numbers.unique(return_counts=True)
            places = numbers.argsort()
            groups = images.index_select(0, _sent(places, images.device)).split(counts.tolist())
            done = [self.apply(kind, group) for kind, group in zip(kinds.tolist(), groups, strict=True)]
            images = torch.cat(done).index_select(0, _sent(places.argsort(), images.device))
        return images

    def apply(self, kind: int, images: Tensor) -> Tensor:
        """One round of images that have all drawn the number `kind`."""
        (chosen, magnitude), negative = divmod(kind // 2, BINS), kind % 2
        operation = self.space[chosen]
        by = operation.magnitudes[magnitude] if operation.magnitudes else 0.0
        return operation.apply(images, -by if negative else by)


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """On `device`, without waiting for what it is doing."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


# Erasing --------------------------------------------------------------------------------------------------------------

AREA, RATIO = (0.02, 0.33), (0.3, 3.3)
"""Of an erased rectangle: its part of the image, and height / width, whose logarithm is uniform."""


def draw_rectangles(images: int, probability: float, image_size: int, random: torch.Generator) -> Tensor:
    """One for each image: int64 [images, 4], (top, left, height, width); of height 0 where nothing is erased.

    Random erasing, Zhong et al. 2017, arXiv:1708.04896, with torchvision's ranges. It draws again where a side is as
    long as the image's (of 1 in 300 rectangles, or more of tiny images); here such a side is as long as the image's.
    """
    erased, area, ratio, down, right = torch.rand(5, images, generator=random)
    area = image_size**2 * (AREA[0] + (AREA[1] - AREA[0]) * area)
    ratio = torch.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * ratio)
    height, width = ((area * part).sqrt().round().clamp(max=image_size) for part in (ratio, 1 / ratio))
    top, left = (down * (image_size - height + 1)).floor(), (right * (image_size - width + 1)).floor()
    return torch.stack([top, left, height * (erased < probability), width], 1).long()


def erase(images: Tensor, rectangles: Tensor) -> Tensor:
    """Images [B, C, H, W] of any dtype, 0 within their `rectangles`, int64 [B, 4] as `draw_rectangles` has them."""
    top, left, height, width = rectangles[:, :, None].unbind(1)  # [B, 1] each
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])
    inside_rows = (rows >= top) & (rows < top + height)
    inside_columns = (columns >= left) & (columns < left + width)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    return images.clone().masked_fill_(inside[:, None], 0)  # not masked_fill, whose result is not channels_last


# Everything together --------------------------------------------------------------------------------------------------


class Draws(NamedTuple):
    """What is drawn for B images, or for all images of an epoch."""

    operations: Tensor
    """int64 [B, rounds of the policy], in the machine's memory."""
    rectangles: Tensor
    """int64 [B, 4] to be erased; [B, 0] where none is."""
    seeds: Tensor
    """int64 [B], in the machine's memory; the first one is that of mixing the batch. [B, 0] where none is mixed."""


class Augmenter:
    """Does what the settings say to the batches of one training loader.

    Args:
        config: the settings. Where all is off, nothing is drawn and nothing changes.
        classes: their number, for soft labels.
        image_size: side of the images.
    """

    def __init__(self, config: AugmentationConfig, classes: int = 0, image_size: int = 0):
        self.config, self.image_size = config, image_size
        self.policy: Policy | None = None
        if config.policy != "none":
            space, random_one = operation_space(config.policy, image_size), config.policy == "trivialaugment"
            rounds, magnitude = (1, None) if random_one else (config.operations, config.magnitude)
            self.policy = Policy(space, rounds, magnitude)
        self.mixers: list[v2.Transform] = []
        for mixer, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix)):
            self.mixers += [mixer(alpha=alpha, num_classes=classes)] if alpha else []

    def draw(self, images: int, random: torch.Generator) -> Draws:
        """For the images of an epoch."""
        nothing = torch.empty(images, 0, dtype=torch.int64)
        operations, rectangles, seeds = nothing, nothing, nothing
        if self.policy:
            operations = self.policy.draw(images, random)
        if self.config.erasing:
            rectangles = draw_rectangles(images, self.config.erasing, self.image_size, random)
        if self.mixers:
            seeds = torch.randint(2**63 - 1, (images,), generator=random)
        return Draws(operations, rectangles, seeds)

    def distort(self, images: Tensor, draws: Sequence[Draws]) -> Tensor:
        """The policy, on uint8 images [B, C, H, W] of one or several batches."""
        return self.policy(images, torch.cat([each.operations for each in draws])) if self.policy else images

    def finish(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Erasing, then mixing, of one batch.

        Args:
            images: float32 [B, C, H, W], normalised, channels_last.
            labels: int64 [B].

        Returns:
            Images as they came; labels, too, or where images are mixed float32 [B, classes], each row of sum 1.
        """
        if self.config.erasing:
            images = erase(images, _sent(draws.rectangles, images.device))
        if self.mixers:
            with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator, on the CPU
                torch.default_generator.manual_seed(int(draws.seeds[0]))
                mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
                images, labels = mixer(images, labels)
            images = images.contiguous(memory_format=torch.channels_last)  # which rolling on CUDA undoes
        return images, labels
