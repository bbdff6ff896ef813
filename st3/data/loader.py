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
    """Batches of one split.

    `len(loader)` is the number of batches in an epoch, `num_images` the number of images in the split,
    `batch_size` the size of every full batch. `epoch(epoch)` iterates over `(images, labels)`: float32
    [B, C, H, W], normalised, channels_last, and int64 [B], both on the device.

    A training loader shuffles and augments as a function of (seed, epoch) alone, and drops the last incomplete
    batch, other images each epoch. Any other loader serves each image once, in order, the last batch smaller.
    """

    def __init__(self, labels: torch.Tensor, *, batch_size: int, training: bool, seed: int):
        self.num_images = len(labels)
        if training and batch_size > self.num_images:
            raise UserError(
                f"batch_size={batch_size} is larger than the {self.num_images} training images: lower batch_size"
            )
        self.batch_size = batch_size
        self.training = training
        self.seed = seed

    def __len__(self) -> int:
        if self.training:
            return self.num_images // self.batch_size
        return -(-self.num_images // self.batch_size)

    def order(self, random: torch.Generator) -> torch.Tensor:
        """Indices of the images to serve in one epoch, int64 [at most num_images]."""
        if self.training:
            return torch.randperm(self.num_images, generator=random)[: len(self) * self.batch_size]
        return torch.arange(self.num_images)
