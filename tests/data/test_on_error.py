"""dataset.on_error=skip: what cannot be read is left out, in the same way in every epoch and sitting."""

import numpy as np
import pytest
import torch
from data_cases import FOLDER, build, epoch
from PIL import Image

from st3.data.files import LeftOut
from st3.errors import UserError

STREAMED = {"augment": "random_resized_crop"}
IN_MEMORY = {"augment": "none"}
SKIP = FOLDER | {"on_error": "skip", "mean": [0.0] * 3, "std": [1 / 255] * 3, "batch_size": 10}


@pytest.fixture
def large(tmp_path):
    """train/ with 200 and test/ with 100 images in the classes a, b, each of one grey of its own: 10, 11, …, 209."""
    for split, count in (("train", 200), ("test", 100)):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
        for i in range(count):
            path = tmp_path / split / "ab"[i >= count // 2] / f"{i:03}.png"
            Image.fromarray(np.full((16, 16, 3), 10 + i, np.uint8)).save(path)
    return tmp_path


def damage(root, *names):
    for name in names:
        (root / name).write_bytes(b"no image")
    return [str(root / name) for name in names]


def greys(images):
    return images[:, 0, 0, 0].round().int().tolist()


@pytest.mark.parametrize("augment", [STREAMED, IN_MEMORY])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_their_size_and_the_next_image_takes_the_place(large, augment, workers):
    options = SKIP | augment | {"root": str(large), "workers": workers}
    whole = epoch(build(**options).train, 3)
    damage(large, "train/a/004.png", "train/b/199.png")  # the last one is followed by the first
    data = build(**options)
    images, labels = epoch(data.train, 3)
    expected = {14: 15, 209: 10}
    assert greys(images) == [expected.get(grey, grey) for grey in greys(whole[0])]
    assert labels.tolist() == [int(grey >= 110) for grey in greys(images)]
    assert images.shape == whole[0].shape
    again = build(**options).train  # another sitting, which starts at another epoch
    epoch(again, 2)
    assert all(map(torch.equal, epoch(again, 3), (images, labels)))


@pytest.mark.parametrize("augment", [STREAMED, IN_MEMORY])
def test_the_batches_of_several_processes_are_those_of_one(large, augment):
    damage(large, "train/a/004.png", "train/a/005.png")
    options = SKIP | augment | {"root": str(large)}
    one = list(build(**options).train.epoch(1))
    several = [list(build(**options, rank=rank, world_size=2).train.epoch(1)) for rank in (0, 1)]
    for whole, *parts in zip(one, *several, strict=True):
        assert torch.equal(whole[0], torch.cat([images for images, _ in parts]))
        assert torch.equal(whole[1], torch.cat([labels for _, labels in parts]))
    assert set(greys(torch.cat([images for images, _ in one]))) == set(range(10, 210)) - {14, 15}


@pytest.mark.parametrize("augment", [STREAMED, IN_MEMORY])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_leaves_out_and_counts_none_twice(large, augment, workers):
    damage(large, "test/a/010.png")
    data = build(**SKIP | augment | {"root": str(large), "workers": workers, "eval_batch_size": 1})
    batches = list(data.test.epoch(0))
    assert all(len(labels) == 1 for _, labels in batches)
    assert greys(torch.cat([images for images, _ in batches])) == [10 + i for i in range(100) if i != 10]


@pytest.mark.parametrize("augment", [STREAMED, IN_MEMORY])
def test_what_is_left_out_is_reported_once(large, augment):
    files = damage(large, "test/a/010.png", "train/a/004.png")
    data = build(**SKIP | augment | {"root": str(large)})
    for number in (0, 1):
        epoch(data.train, number)
        epoch(data.test)
    assert data.warnings() == [f"2 image files that cannot be read were left out: {', '.join(files)}"]
    for file in files:
        Image.new("RGB", (16, 16)).save(file)
    assert build(**SKIP | augment | {"root": str(large)}).warnings() == []


@pytest.mark.parametrize("augment", [STREAMED, IN_MEMORY])
def test_the_same_images_are_held_out_whatever_is_damaged(large, augment):
    options = SKIP | augment | {"root": str(large), "val_images": 0.2}
    before = greys(epoch(build(**options).val)[0])
    damage(large, "train/a/004.png", f"train/a/{before[0] - 10:03}.png")
    data = build(**options)
    assert greys(epoch(data.val)[0]) == before[1:]
    trained = set(greys(epoch(data.train)[0]))
    assert not trained & set(before)
    assert len(trained) == 159


@pytest.mark.parametrize("augment", [STREAMED, IN_MEMORY])
@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_end_the_run(large, augment, workers):
    damage(large, "train/a/004.png", "train/a/014.png", "train/a/024.png")
    with pytest.raises(UserError) as caught:
        epoch(build(**SKIP | augment | {"root": str(large), "workers": workers}).train)
    message = str(caught.value)
    assert message.startswith(
        "more than 2 of 200 image files cannot be read, the most that dataset.on_error=skip leaves"
    )
    assert "004.png" in message or "014.png" in message or "024.png" in message
    assert "\n" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_has_gone_ends_the_run_at_once(large, workers):
    data = build(**SKIP | STREAMED | {"root": str(large), "workers": workers})
    (large / "train").rename(large / "gone")
    with pytest.raises(UserError, match="more than 2 of 200 image files cannot be read"):
        epoch(data.train)


def test_an_incomplete_cache_is_not_written(large, tmp_path, capsys):
    options = SKIP | IN_MEMORY | {"root": str(large), "cache": str(tmp_path / "cache")}
    damage(large, "train/a/004.png")
    for _ in range(2):
        images, _ = epoch(build(**options).train)
    assert 14 not in greys(images)
    said = capsys.readouterr().out.splitlines()
    assert [line.split("pixels ")[1] for line in said] == [
        "not written: 1 of 200 image files cannot be read",
        "written: 100 images, 0.1 MB",
        "not written: 1 of 200 image files cannot be read",
        "read in place of 100 image files",
    ]


def test_the_limit_is_one_percent_or_a_hundred_and_never_all():
    assert [LeftOut(images).limit for images in (1, 2, 50, 500, 9_999, 10_000, 1_281_167)] == [0, 1, 1, 5, 99, 100, 100]
