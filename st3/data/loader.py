"""What every loader shares: size, order of the images, normalisation."""

import numpy as np
import torch

from st3.errors import UserError


def mixed_seed(*words: int) -> int:
    """One well-mixed 64-bit seed from `words`, each >= 0."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


class Normalise:
    """uint8 images [B, C, H, W] in 0..255 to float32 `(x / 255 - mean) / std`, channels_last, same device."""

    def __init__(self, mean, std, image_size: int, device: torch.device | str):
        mean, std = torch.tensor(mean), torch.tensor(std)

        def whole_image(value: torch.Tensor) -> torch.Tensor:
            # Same layout as the batch: broadcasting [C, 1, 1] over channels_last is ten times slower on a CPU.
            size = image_size, image_size, len(value)
            return value.expand(size).contiguous().permute(2, 0, 1).to(device)

        self.scale = whole_image(1 / (255 * std))
        self.shift = whole_image(-mean / std)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        images = images.float().contiguous(memory_format=torch.channels_last)
        return torch.addcmul(self.shift, images, self.scale)


class Loader:
    """Batches of one split, or of one process's part of it.

    `epoch(epoch)` iterates over `(images, labels)`: float32 [B, C, H, W], normalised, channels_last, and int64 [B],
    both on the device. `len(loader)` is the number of batches in an epoch.

    A training loader shuffles and augments as a function of (seed, epoch) alone, and drops the last incomplete
    batch, other images each epoch. With `world_size` processes, each is given the whole split; `num_images` and
    `batch_size` count the images of all of them, `len(loader)` is the same on all, and process `rank` serves
    slice `rank` of each batch, B = batch_size // world_size: put together they are the batch of a single process.

    Any other loader knows no processes. It serves each image it is given once, in order, the last batch smaller, and
    no batch where it is given none; `num_images` and `batch_size` are about itself alone.
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
        each = batch_size // world_size
        self.share = slice(rank * each, (rank + 1) * each) if training else slice(None)

    def __len__(self) -> int:
        if self.training:
            return self.num_images // self.batch_size
        return -(-self.num_images // self.batch_size)

    def order(self, random: torch.Generator) -> torch.Tensor:
        """Indices of the images to serve in one epoch, by all processes: int64 [at most num_images]."""
        if self.training:
            return torch.randperm(self.num_images, generator=random)[: len(self) * self.batch_size]
        return torch.arange(self.num_images)

    def split(self, drawn: torch.Tensor) -> list[torch.Tensor]:
        """What is `drawn` [images of an epoch, ...] for all processes, cut into the batches of this one."""
        return [batch[self.share] for batch in drawn.split(self.batch_size)] if len(drawn) else []
