"""Images that live on the device as one uint8 tensor, augmented a whole batch at a time."""

import itertools
from collections.abc import Iterator, Sequence

import torch

from st3.data.augmentation import Augmenter
from st3.data.loader import Loader, Normalise, mixed_seed

PADDING = 4  # pixels on each side, repeating the edge
AT_ONCE = 8192
"""Images that a GPU augments together: for small ones it takes longer to launch an operation than to do it."""
AT_ONCE_ON_CPU = 2048
"""Images that a policy's operations are done to together on a CPU: the more, the more of them have drawn the same."""


def crop_flip(images: torch.Tensor, offsets: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """Pad each image by repeating its edge, crop it back to its size, mirror it left to right.

    Args:
        images: any dtype, [B, C, H, W]; fastest in channels_last.
        offsets: int64 [B, 2] in 0..2*PADDING, the (row, column) in the padded image where the crop starts;
            PADDING is the middle.
        flips: bool [B], the images to mirror.

    Returns:
        A new tensor like `images`, channels_last.
    """
    batch, channels, height, width = images.shape
    device = images.device
    # Padding by the edge is the same as clamping the index, so nothing needs to be padded.
    rows = (torch.arange(height, device=device) + offsets[:, :1] - PADDING).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + offsets[:, 1:] - PADDING).clamp(0, width - 1)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    first_row = height * torch.arange(batch, device=device)[:, None, None]
    pixels = (first_row + rows[:, :, None]) * width + columns[:, None, :]
    flat = images.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, pixels.flatten())
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


class ArrayLoader(Loader):
    """Serves uint8 images [N, C, H, H] and int64 labels [N] from `device`; see `Loader`.

    `augment` is "none", "crop" or "crop_flip" and acts in a training loader only.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: str = "none",
        training: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        augmenter: Augmenter | None = None,
    ):
        order = {"seed": seed, "rank": rank, "world_size": world_size}
        super().__init__(labels, batch_size=batch_size, training=training, augmenter=augmenter, **order)
        self.images = images.to(device).permute(0, 2, 3, 1).contiguous()  # [N, H, W, C]
        self.labels = labels.to(device)
        self.crops = training and augment in ("crop", "crop_flip")
        self.flips = training and augment == "crop_flip"
        self.normalise = Normalise(mean, std, images.shape[-1], device)
        each = self.batch_size // world_size
        together = self.augmenter.policy is not None or (self.crops and self.images.is_cuda)
        at_once = AT_ONCE if self.images.is_cuda else AT_ONCE_ON_CPU
        self._batches_at_once = max(1, at_once // each) if together else 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of one epoch; see `Loader`."""
        random = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        order = self.order(random)
        offsets = torch.randint(2 * PADDING + 1, (len(order), 2), generator=random)
        flips = (torch.rand(len(order), generator=random) < 0.5) & self.flips
        # One copy to the device per epoch, none per batch.
        drawn = [self.split(each.to(self.labels.device)) for each in (order, offsets, flips)]
        augmentations = self.augmentations(random)
        at_once = self._batches_at_once
        # The same ones together as without `start`: how a GPU rounds a sum may depend on how many images there are.
        for first in range(start - start % at_once, len(drawn[0]), at_once):
            chosen, offset, flip = (batches[first : first + at_once] for batches in drawn)
            images = self.images.index_select(0, torch.cat(chosen)).permute(0, 3, 1, 2)
            if self.crops:
                images = crop_flip(images, torch.cat(offset), torch.cat(flip))
            draws = augmentations[first : first + at_once]
            images = self.augmenter.distort(images, draws)
            batches = zip(images.split([len(each) for each in chosen]), chosen, draws, strict=True)
            for batch, indices, each in itertools.islice(batches, max(0, start - first), None):
                yield self.augmenter.finish(self.normalise(batch), self.labels[indices], each)
