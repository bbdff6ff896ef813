"""What every loader shares: size, order of the images, normalisation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from st3.data.augmentation import AugmentationConfig, Augmenter, Draws
from st3.errors import UserError


def mixed_seed(*words: int) -> int:
    """One well-mixed 64-bit seed from `words`, each >= 0."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


class Normalise:
    """uint8 images [B, C, H, W] in 0..255 to float32 `(x / 255 - mean) / std`, channels_last, same device."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], image_size: int, device: torch.device | str):
        means, stds = torch.tensor(mean), torch.tensor(std)

        def whole_image(value: torch.Tensor) -> torch.Tensor:
            # Same layout as the batch: broadcasting [C, 1, 1] over channels_last is ten times slower on a CPU.
            size = image_size, image_size, len(value)
            return value.expand(size).contiguous().permute(2, 0, 1).to(device)

        self.scale = whole_image(1 / (255 * stds))
        self.shift = whole_image(-means / stds)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        images = images.float().contiguous(memory_format=torch.channels_last)
        return torch.addcmul(self.shift, images, self.scale)


class Loader(ABC):
    """Batches of one split, or of one process's part of it. `len(loader)` is the number of batches in an epoch.

    A training loader shuffles and augments as a function of (seed, epoch) alone; `augmenter` acts after its crops and
    flips. The loader drops the images that are left over for an incomplete batch, different ones in each epoch. With
    `world_size` processes, each is given the whole split; `num_images` and `batch_size` count the images of all
    processes, `len(loader)` is the same on all, and process `rank` serves slice `rank` of each batch, B = batch_size
    // world_size: put together they are the batch of a single process, unless images are mixed, which each process
    does by itself.

    Any other loader serves the images that it is given, each once and in order; its last batch may be smaller, and
    without images it has no batch. It ignores the other processes: `num_images` and `batch_size` are its own. What
    `dataset.on_error=skip` leaves out is missing there; in training another image takes its place.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        *,
        batch_size: int,
        training: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        augmenter: Augmenter | None = None,
    ):
        self.num_images = len(labels)
        if training and batch_size > self.num_images:
            raise UserError(
                f"batch_size={batch_size} is larger than the {self.num_images} training images: lower batch_size"
            )
        if training and batch_size % world_size:
            raise UserError(
                f"batch_size: {batch_size} images in a forward pass cannot be shared evenly by {world_size} processes: "
                f"set batch_size to a multiple of {world_size}, times accumulate"
            )
        self.batch_size = batch_size
        self.training = training
        self.seed = seed
        self.augmenter = augmenter or Augmenter(AugmentationConfig())
        each = batch_size // world_size
        self.share = slice(rank * each, (rank + 1) * each) if training else slice(None)

    def __len__(self) -> int:
        if self.training:
            return self.num_images // self.batch_size
        return -(-self.num_images // self.batch_size)

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(images, labels) of each batch, on the device: float32 [B, C, H, W], normalised, channels_last; int64 [B].

        Labels of images that are mixed in training are float32 [B, classes].

        With `start`, in 0..len(self), the batches from that number on, bit for bit as they come without it; no file is
        read for those before. (A batch of an evaluation that is missing, because all its images are left out, counts.)
        """

    def order(self, random: torch.Generator) -> torch.Tensor:
        """Indices of the images to serve in one epoch, by all processes: int64 [at most num_images]."""
        if self.training:
            return torch.randperm(self.num_images, generator=random)[: len(self) * self.batch_size]
        return torch.arange(self.num_images)

    def split(self, drawn: torch.Tensor) -> list[torch.Tensor]:
        """Cut `drawn` [images of an epoch, ...], which is for all processes, into the batches of this one."""
        return [batch[self.share] for batch in drawn.split(self.batch_size)] if len(drawn) else []

    def augmentations(self, random: torch.Generator) -> list[Draws]:
        """What is drawn for the augmentation of each batch; to be called after all else of the epoch is drawn."""
        drawn = self.augmenter.draw(len(self) * self.batch_size if self.training else self.num_images, random)
        return [Draws(*parts) for parts in zip(*map(self.split, drawn), strict=True)]
