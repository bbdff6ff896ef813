"""Batches of images that live on the device: order, augmentation, normalisation."""

import numpy as np
import pytest
import torch
from data_cases import FAKE, build, epoch

from st3.data.arrays import PADDING, ArrayLoader, crop_flip


def test_crop_flip_equals_padding_cropping_and_mirroring_one_image_at_a_time():
    images = torch.randint(256, (40, 3, 9, 7), dtype=torch.uint8)
    offsets = torch.randint(2 * PADDING + 1, (40, 2))
    offsets[:3] = torch.tensor([[0, 0], [2 * PADDING, 2 * PADDING], [PADDING, PADDING]])
    flips = torch.arange(40) % 2 == 1
    expected = []
    for image, (row, column), flip in zip(images, offsets.tolist(), flips, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode="edge")
        crop = padded[:, row : row + 9, column : column + 7]
        expected.append(torch.from_numpy(crop[..., ::-1].copy() if flip else crop))
    cropped = crop_flip(images, offsets, flips)
    assert torch.equal(cropped, torch.stack(expected))
    assert cropped.is_contiguous(memory_format=torch.channels_last)


def test_batches_are_a_function_of_seed_and_epoch():
    first = build(**FAKE).train
    expected = epoch(first, 3)
    second = build(**FAKE).train
    next(second.epoch(0))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = epoch(second, 3)
    assert all(map(torch.equal, expected, again))
    assert torch.equal(before, torch.get_rng_state())
    images, labels = first.images, first.labels
    other_seed = ArrayLoader(
        images.permute(0, 3, 1, 2), labels, batch_size=16, mean=FAKE["mean"], std=FAKE["std"],
        augment="crop_flip", training=True, seed=1,
    )  # fmt: skip
    assert not torch.equal(expected[0], epoch(first, 4)[0])
    assert not torch.equal(expected[0], epoch(other_seed, 3)[0])


def indexed(count, **arguments):
    """A loader of `count` images whose label is their index."""
    images = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8)
    return ArrayLoader(images, torch.arange(count), mean=[0.0], std=[1.0], **arguments), images


@pytest.mark.parametrize("rank", [0, 1])
def test_augmenting_many_batches_at_once_gives_the_same(rank):
    loader, _ = indexed(70, batch_size=16, training=True, augment="crop_flip", rank=rank, world_size=2)
    expected = list(loader.epoch(1))
    for count in (3, 100):
        loader._batches_at_once = count  # as on a GPU
        for (images, labels), (other_images, other_labels) in zip(expected, loader.epoch(1), strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)
            assert other_images.is_contiguous(memory_format=torch.channels_last)


def test_training_drops_other_images_each_epoch():
    loader, _ = indexed(50, batch_size=16, training=True)
    assert (len(loader), loader.num_images) == (3, 50)
    dropped = set()
    for number in range(10):
        served = epoch(loader, number)[1].tolist()
        assert len(set(served)) == len(served) == 48
        dropped |= set(range(50)) - set(served)
    assert len(dropped) > 2


def test_evaluation_serves_every_image_once_in_order_and_untouched():
    loader, images = indexed(23, batch_size=10, augment="crop_flip")
    sizes = [len(labels) for _, labels in loader.epoch(0)]
    served, labels = epoch(loader)
    assert sizes == [10, 10, 3]
    assert len(loader) == 3
    assert labels.tolist() == list(range(23))
    assert torch.allclose(served, images / 255)


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_augmentation_uses_all_offsets_and_flips_only_when_asked(augment):
    # A column ramp shows shift and direction: pixel (4, 4) of a crop holds 10 * column.
    ramp = (10 * torch.arange(9, dtype=torch.uint8)).expand(2000, 1, 9, 9)
    labels = torch.zeros(2000, dtype=torch.int64)
    loader = ArrayLoader(ramp, labels, batch_size=100, mean=[0.0], std=[1.0], augment=augment, training=True)
    images = epoch(loader)[0][:, 0] * 255
    rising = (images[:, 4, -1] > images[:, 4, 0]).float().mean().item()
    assert rising == 1 if augment == "crop" else 0.45 < rising < 0.55
    assert sorted(set(images[:, 4, 4].round().int().tolist())) == list(range(0, 90, 10))


def test_normalisation():
    pixels = torch.tensor([0, 255, 51]).to(torch.uint8).view(3, 1, 1, 1).expand(3, 2, 2, 2)
    loader = ArrayLoader(pixels, torch.zeros(3, dtype=torch.int64), batch_size=3, mean=[0.5, 0.2], std=[0.25, 0.1])
    ((images, labels),) = loader.epoch(0)
    assert torch.allclose(images[:, 0, 0, 0], torch.tensor([-2.0, 2.0, -1.2]))
    assert torch.allclose(images[:, 1, 0, 0], torch.tensor([-2.0, 8.0, 0.0]), atol=1e-6)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.is_contiguous(memory_format=torch.channels_last)
