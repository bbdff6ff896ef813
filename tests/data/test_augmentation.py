"""Policies, erasing and mixing: against torchvision and closed forms, and as functions of seed and epoch alone."""

import math

import pytest
import torch
from data_cases import FAKE, FOLDER, build, epoch
from torchvision.transforms import v2

from st3 import data
from st3.data import AugmentationConfig
from st3.data.arrays import ArrayLoader
from st3.data.augmentation import AREA, BINS, Augmenter, Policy, draw_rectangles, erase, operation_space
from st3.data.folder_loader import FolderLoader

POLICIES = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
EVERYTHING = AugmentationConfig(policy="randaugment", erasing=0.5, mixup=0.4, cutmix=1.0)
UNMIXED = AugmentationConfig(policy="trivialaugment", erasing=0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(images: int, channels: int = 3, size: int = 12) -> torch.Tensor:
    """uint8, channels_last as the loaders have them; the first image is of one colour, the second of low contrast."""
    drawn = torch.randint(256, (images, size, size, channels), generator=generator(), dtype=torch.uint8)
    drawn[0], drawn[1] = 7, drawn[1] // 4 + 60
    return drawn.permute(0, 3, 1, 2)


# Policies -------------------------------------------------------------------------------------------------------------


def forced(policy: str, name: str, magnitude: int, sign: int) -> v2.Transform:
    """torchvision's class with nothing left to draw."""
    magnitudes, signed = POLICIES[policy]._AUGMENTATION_SPACE[name]
    assert signed or sign == 1

    def only(bins, height, width):
        published = magnitudes(bins, height, width)
        return None if published is None else sign * published[magnitude].repeat(bins)

    cls = type("Forced", (POLICIES[policy],), {"_AUGMENTATION_SPACE": {name: (only, False)}})
    return cls(num_ops=1) if policy == "randaugment" else cls()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_operation_gives_the_pixels_of_torchvisions_on_each_image_alone(policy, channels):
    images, space = pixels(3, channels), operation_space(policy, 12)
    names = list(POLICIES[policy]._AUGMENTATION_SPACE)
    assert [each.name.replace(" ", "") for each in space] == [name.lower() for name in names]
    apply = Policy(space, 1, None).apply
    for number, (operation, name) in enumerate(zip(space, names, strict=True)):
        assert operation.signed == POLICIES[policy]._AUGMENTATION_SPACE[name][1]
        for magnitude in (0, 9, 16, 30) if operation.magnitudes else (0,):
            for negative in (0, 1) if operation.signed else (0,):
                theirs = forced(policy, name, magnitude, -1 if negative else 1)
                ours = apply((number * BINS + magnitude) * 2 + negative, images)
                assert torch.equal(ours, torch.stack([theirs(image) for image in images])), (name, magnitude, negative)


def test_magnitudes_are_torchvisions():
    for policy, cls in POLICIES.items():
        for size in (28, 224):
            for operation, (magnitudes, _) in zip(
                operation_space(policy, size), cls._AUGMENTATION_SPACE.values(), strict=True
            ):
                theirs = magnitudes(BINS, size, size)
                assert list(operation.magnitudes) == ([] if theirs is None else theirs.tolist())


@pytest.mark.parametrize("policy", POLICIES)
def test_all_operations_signs_and_magnitudes_are_drawn_alike(policy):
    augmenter = Augmenter(AugmentationConfig(policy=policy, magnitude=9), image_size=12)
    drawn = augmenter.draw(14_000, generator()).operations
    assert drawn.shape == (14_000, 2 if policy == "randaugment" else 1)
    space = augmenter.policy.space
    operation, magnitude, negative = drawn // 2 // BINS, drawn // 2 % BINS, drawn % 2
    counts = operation[:, 0].bincount()
    assert len(counts) == len(space) == 14
    assert counts.min() > 850
    assert counts.max() < 1150
    rotations = operation == [each.name for each in space].index("rotate")
    assert set(magnitude[rotations].tolist()) == ({9} if policy == "randaugment" else set(range(BINS)))
    assert 0.4 < negative[rotations].float().mean() < 0.6
    for number, each in enumerate(space):
        if not each.signed:
            assert not negative[operation == number].any()
        if not each.magnitudes:
            assert not magnitude[operation == number].any()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_policy_does_to_images_together_what_it_does_to_each_alone(policy):
    augmenter, images = Augmenter(AugmentationConfig(policy=policy), image_size=12), pixels(40)
    drawn = augmenter.draw(40, generator()).operations
    before = images.clone()
    together = augmenter.policy(images, drawn)
    assert torch.equal(images, before)
    for image, numbers, found in zip(images, drawn, together, strict=True):
        expected = image[None]
        for kind in numbers.tolist():
            expected = augmenter.policy.apply(kind, expected)
        assert torch.equal(expected[0], found)


# Erasing --------------------------------------------------------------------------------------------------------------


def test_rectangles_are_erased_and_nothing_else():
    images = torch.rand(50, 3, 9, 9, generator=generator()).to(memory_format=torch.channels_last) + 1
    rectangles = draw_rectangles(50, 0.7, 9, generator())
    erased = erase(images, rectangles)
    expected = images.clone()
    for image, (top, left, height, width) in zip(expected, rectangles.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = 0
    assert torch.equal(erased, expected)
    assert erased.is_contiguous(memory_format=torch.channels_last)


def test_rectangles_are_where_and_as_large_as_published():
    drawn = draw_rectangles(20_000, 0.25, 64, generator())
    top, left, height, width = drawn[drawn[:, 2] > 0].double().unbind(1)
    assert len(top) / 20_000 == pytest.approx(0.25, abs=0.015)
    assert min(top.min(), left.min()) == 0
    assert max((top + height).max(), (left + width).max()) == 64
    area = height * width / 64**2
    assert area.mean() == pytest.approx(sum(AREA) / 2, abs=0.01)
    assert area.min() > 0.015
    assert area.max() < 0.35
    assert (height / width).log().mean() == pytest.approx(0, abs=0.03)  # as often high as wide
    assert (height / width).max() == pytest.approx(3.3, rel=0.2)
    assert not draw_rectangles(100, 0.0, 64, generator())[:, 2].any()


# Mixing ---------------------------------------------------------------------------------------------------------------


def mixed(config: AugmentationConfig, images: torch.Tensor, labels: torch.Tensor, batches: int):
    """(images, labels) of so many mixings of one batch."""
    augmenter = Augmenter(config, classes=5, image_size=images.shape[-1])
    random = generator()
    return [augmenter.finish(images, labels, augmenter.draw(len(labels), random)) for _ in range(batches)]


IMAGES = torch.rand(4, 3, 8, 8, generator=generator()).to(memory_format=torch.channels_last)
LABELS = torch.tensor([0, 1, 2, 3])


def test_mixup_averages_an_image_and_its_label_with_the_one_before_it():
    before = torch.get_rng_state()
    for images, labels in mixed(AugmentationConfig(mixup=1.0), IMAGES, LABELS, 20):
        share = labels[1, 1]
        for number in range(4):
            other = (number - 1) % 4
            expected = torch.zeros(5)
            expected[number] += share
            expected[other] += 1 - share
            assert torch.allclose(labels[number], expected)
            assert torch.allclose(images[number], share * IMAGES[number] + (1 - share) * IMAGES[other], atol=1e-6)
        assert labels.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_weights_of_mixup_have_a_beta_distribution(alpha):
    shares = torch.stack([labels[0, 0] for _, labels in mixed(AugmentationConfig(mixup=alpha), IMAGES, LABELS, 1500)])
    assert shares.mean() == pytest.approx(0.5, abs=0.04)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_cutmix_takes_a_box_from_the_image_before_and_its_share_of_the_label():
    plain = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)  # every pixel says which image it is of
    shares = []
    for images, labels in mixed(AugmentationConfig(cutmix=1.0), plain, LABELS, 40):
        for number in range(4):
            other = images[number, 0] == (number - 1) % 4
            assert torch.equal(other | (images[number, 0] == number), torch.ones(8, 8, dtype=torch.bool))
            share = other.double().mean().item()
            assert labels[number, (number - 1) % 4].item() == pytest.approx(share)
            assert labels[number].sum().item() == pytest.approx(1)
            assert other.sum() == other.any(0).sum() * other.any(1).sum()  # a rectangle
        shares.append(share)
    assert min(shares) < 0.1
    assert max(shares) > 0.5


def test_with_both_each_batch_draws_one_with_equal_chance():
    averaged = 0
    plain = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    for images, _ in mixed(AugmentationConfig(mixup=1.0, cutmix=1.0), plain, LABELS, 400):
        averaged += bool((images != images.round()).any())
    assert averaged / 400 == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 400))


# Loaders --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["arrays", "files", "files that the device decodes"])
def settings(request, tree, monkeypatch) -> dict:
    """Of each loader; 12 training images of files, or 50."""
    if request.param == "arrays":
        return FAKE
    if request.param != "files":  # the CPU in place of a GPU, which the settings would ask for
        monkeypatch.setattr(
            data, "FolderLoader", lambda *files, **rest: FolderLoader(*files, **rest | {"decode": "gpu"})
        )
    return FOLDER | {"root": str(tree)}


def test_augmented_batches_are_a_function_of_seed_and_epoch(settings):
    first, second = (build(**settings, augmentation=EVERYTHING).train for _ in range(2))
    expected = epoch(first, 3)
    next(second.epoch(0))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = epoch(second, 3)
    assert all(map(torch.equal, expected, again))
    assert torch.equal(before, torch.get_rng_state())
    images, labels = expected
    assert (images.dtype, labels.dtype) == (torch.float32, torch.float32)
    assert torch.allclose(labels.sum(1), torch.ones(len(images)))
    assert not torch.equal(images, epoch(second, 4)[0])
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch, _ in first.epoch(0))


def test_training_images_are_augmented_and_no_others(settings):
    plain = build(**settings | {"val_images": 2})
    augmented = build(**settings | {"val_images": 2}, augmentation=EVERYTHING)
    for use in ("val", "test"):
        assert all(map(torch.equal, epoch(getattr(plain, use)), epoch(getattr(augmented, use))))
    images, labels = epoch(plain.train)
    unmixed = epoch(build(**settings | {"val_images": 2}, augmentation=UNMIXED).train)
    assert torch.equal(labels, unmixed[1])  # the order and the crops are those that they would be
    same = (images == unmixed[0]).flatten(1)
    assert not same.all(1).all()
    mixed_images, mixed_labels = epoch(augmented.train)
    assert mixed_labels.shape == (len(labels), len(augmented.classes))
    assert not torch.equal(images, mixed_images)


def test_erasing_alone_changes_no_pixel_but_those_that_become_the_mean(settings):
    images, _ = epoch(build(**settings).train, 1)
    erased, _ = epoch(build(**settings, augmentation=AugmentationConfig(erasing=1.0)).train, 1)
    gone = (erased != images).any(1)
    assert gone.flatten(1).any(1).all()
    assert not erased.permute(0, 2, 3, 1)[gone].any()


@pytest.mark.parametrize("config", [UNMIXED, EVERYTHING])
@pytest.mark.parametrize("rank", [0, 1])
def test_how_many_batches_are_augmented_together_changes_nothing(rank, config):
    loader = ArrayLoader(
        pixels(70, 1), torch.arange(70) % 5, batch_size=16, mean=[0.0], std=[1.0], augment="crop_flip", training=True,
        rank=rank, world_size=2, augmenter=Augmenter(config, 5, 12),
    )  # fmt: skip
    assert loader._batches_at_once > 4  # all of them: a few that have drawn the same take as long as one
    expected = list(loader.epoch(1))
    for count in (1, 3):
        loader._batches_at_once = count
        for batch, other in zip(expected, loader.epoch(1), strict=True):
            assert all(map(torch.equal, batch, other))


def test_batches_of_all_processes_are_those_of_one_until_each_mixes_its_own(settings):
    def batches(config, **process):
        return list(build(**settings, augmentation=config, **process).train.epoch(2))

    parts = [batches(UNMIXED, rank=rank, world_size=2) for rank in (0, 1)]
    for (images, labels), *halves in zip(batches(UNMIXED), *parts, strict=True):
        assert torch.equal(images, torch.cat([half for half, _ in halves]))
        assert torch.equal(labels, torch.cat([half for _, half in halves]))
    one, two = (batches(AugmentationConfig(mixup=1.0), rank=rank, world_size=2) for rank in (0, 1))
    for (_, labels), (_, others) in zip(one, two, strict=True):
        assert not set(labels.flatten().tolist()) & set(others.flatten().tolist()) - {0.0, 1.0}
