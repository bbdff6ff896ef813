"""Which training images are held out: it depends on their labels alone, so that every run holds out the same."""

import torch

from st3.errors import UserError

SEED = 0  # not the run's: every run holds out the same images


def held_out_count(val_images: int | float, train_images: int) -> int:
    """Images to hold out of `train_images`: `val_images` itself, or that fraction of them where it is a float.

    Raises:
        UserError: none of them would be left, or none held out.
    """
    count = round(val_images * train_images) if isinstance(val_images, float) else val_images
    if count >= train_images:
        raise UserError(f"dataset.val_images={val_images} leaves nothing of {train_images} training images: lower it")
    if val_images and not count:
        raise UserError(f"dataset.val_images={val_images} of {train_images} training images is none: raise it")
    return count


def draw_held_out(labels: torch.Tensor, count: int, stratified: bool) -> torch.Tensor:
    """Which `count` of the images with these labels, int64 [N], are held out: bool [N], drawn with a fixed seed.

    Where `stratified`, each class gives its share, rounded so that the total is exactly `count`; every class keeps at
    least one image to train on.

    Raises:
        UserError: fewer images would be left than there are classes.
    """
    random = torch.Generator().manual_seed(SEED)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    if not stratified:
        chosen[torch.randperm(len(labels), generator=random)[:count]] = True
        return chosen
    classes, sizes = labels.unique(return_counts=True)
    for label, share in zip(classes, _shares(sizes.tolist(), count), strict=True):
        members = (labels == label).nonzero()[:, 0]
        chosen[members[torch.randperm(len(members), generator=random)[:share]]] = True
    return chosen


def _shares(sizes: list[int], count: int) -> list[int]:
    """`count` in proportion to `sizes`, by largest remainders; less than each size."""
    total = sum(sizes)
    if count > total - len(sizes):
        raise UserError(
            f"dataset.val_images: {count} held out of {total} training images leave not one for each of "
            f"{len(sizes)} classes: lower dataset.val_images"
        )
    shares = [min(size * count // total, size - 1) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(sizes[i] * count % total))  # stable: first class first
    while missing := count - sum(shares):
        for i in [i for i in by_remainder if shares[i] < sizes[i] - 1][:missing]:
            shares[i] += 1
    return shares
