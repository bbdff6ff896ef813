"""Image folders that are decoded once, and their cache."""

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import FOLDER, build, refused
from PIL import Image

from st3.data import memory

CACHED = FOLDER | {"augment": "none", "val_images": 2}


def pixels_of(data):
    return [loader.images.clone() for loader in (data.train, data.val, data.test)]


def no_image_is_opened(*_, **__):
    raise AssertionError("an image was opened")


def test_images_of_the_right_size_reach_memory_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(4, 16, 16, 3), dtype=np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / split / "a" / f"{i}.png")
    data = build(**FOLDER | {"root": str(tmp_path), "augment": "none"})
    assert np.array_equal(data.test.images.numpy(), pixels)


def test_the_second_use_of_a_cache_opens_no_image(tree, tmp_path, capsys, monkeypatch):
    cache = tmp_path / "made" / "cache"
    arguments = CACHED | {"root": str(tree), "cache": str(cache)}
    expected = pixels_of(build(**arguments | {"cache": None}))
    assert capsys.readouterr().out == ""
    first = pixels_of(build(**arguments))
    written = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in written] == ["12 images, 0.0 MB", "6 images, 0.0 MB"]
    assert sorted(line.split()[1] for line in written) == sorted(map(str, cache.iterdir()))  # and no other file
    monkeypatch.setattr(Image, "open", no_image_is_opened)
    second = pixels_of(build(**arguments))
    assert [line.split(" read in ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "place of 12 image files",
        "place of 6 image files",
    ]
    for each in (first, second):
        assert all(map(torch.equal, expected, each))
    build(**arguments, rank=1, world_size=2)
    assert capsys.readouterr().out == ""
    moved = tree.with_name("moved")
    tree.rename(moved)
    build(**arguments | {"root": str(moved), "cache": str(moved / "made" / "cache")})
    assert capsys.readouterr().out.count(" read in place of ") == 2


@pytest.mark.parametrize("change", ["touched", "longer", "added", "removed", "renamed", "image_size", "channels"])
def test_whatever_decides_the_pixels_makes_another_entry(tree, tmp_path, change, capsys):
    arguments = CACHED | {"root": str(tree), "cache": str(tmp_path / "cache")}
    build(**arguments)
    image = tree / "train" / "a" / "0.jpg"
    modified = image.stat().st_mtime_ns
    if change == "touched":
        os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    elif change == "longer":
        with image.open("ab") as file:
            file.write(b"0")
        os.utime(image, ns=(0, modified))
    elif change == "added":
        shutil.copy(image, image.with_name("9.jpg"))
    elif change == "removed":
        image.unlink()
    elif change == "renamed":
        image.rename(image.with_name("9.jpg"))
    else:
        sizes = {"image_size": 15} if change == "image_size" else {"channels": 1, "mean": [0.5], "std": [0.2]}
        arguments |= sizes
    capsys.readouterr()
    new = pixels_of(build(**arguments))
    assert " written: " in capsys.readouterr().out
    assert all(map(torch.equal, new, pixels_of(build(**arguments | {"cache": None}))))


@pytest.mark.parametrize("damage", ["cut short", "longer", "empty", "header", "pixel"])
def test_a_damaged_cache_is_made_again(tree, tmp_path, damage, capsys):
    arguments = CACHED | {"root": str(tree), "cache": str(tmp_path / "cache")}
    expected = pixels_of(build(**arguments))
    bad = max((tmp_path / "cache").iterdir(), key=os.path.getsize)
    whole = bad.read_bytes()
    flipped = bytearray(whole)
    flipped[0 if damage == "header" else -1] ^= 1
    bad.write_bytes({"cut short": whole[:-1], "longer": whole + b"0", "empty": b""}.get(damage, bytes(flipped)))
    capsys.readouterr()
    assert all(map(torch.equal, expected, pixels_of(build(**arguments))))
    lines = capsys.readouterr().out.splitlines()
    assert [f"{bad} is damaged: decoding the 12 image files again" in line for line in lines] == [True, False, False]
    assert bad.read_bytes() == whole


def test_processes_that_fill_a_cache_at_a_time_do_not_disturb_each_other(tree, tmp_path):
    arguments = CACHED | {"root": str(tree), "cache": str(tmp_path / "cache")}
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build, kwargs=arguments) for _ in range(4)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    assert [each.exitcode for each in processes] == [0] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 2
    expected = pixels_of(build(**arguments | {"cache": None}))
    assert all(map(torch.equal, expected, pixels_of(build(**arguments))))


def test_pixels_from_a_cache_can_be_written_to_without_changing_it(tree, tmp_path):
    arguments = CACHED | {"root": str(tree), "cache": str(tmp_path / "cache"), "val_images": 0}
    build(**arguments)
    before = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    build(**arguments).train.images.zero_()
    assert before == {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}


def test_a_cache_that_cannot_be_used_is_refused(tree, tmp_path):
    (tmp_path / "file").touch()
    message = refused(**CACHED | {"root": str(tree), "cache": str(tmp_path / "file")})
    assert message.startswith(f"cannot use dataset.cache={tmp_path / 'file'} (")
    assert "or to null" in message


def test_a_disk_that_a_cache_does_not_fit_on_is_named_and_left_as_it_was(tree, tmp_path, small_disk):
    with small_disk(1000):
        message = refused(**CACHED | {"root": str(tree), "cache": str(tmp_path / "cache")})
    assert message.startswith(f"cannot use dataset.cache={tmp_path / 'cache'} ([Errno 27] File too large): ")
    assert list((tmp_path / "cache").iterdir()) == []


def test_images_that_do_not_fit_into_memory_are_refused_before_any_is_opened(tree, monkeypatch):
    assert memory.available_memory() > 2**20
    each = 3 * 16 * 16
    monkeypatch.setattr(memory, "available_memory", lambda: (18 + 12) * each)
    build(**CACHED | {"root": str(tree)})
    monkeypatch.setattr(Image, "open", no_image_is_opened)
    monkeypatch.setattr(memory, "available_memory", lambda: (18 + 12) * each - 1)
    message = refused(**CACHED | {"root": str(tree)})
    assert f"{tree} decoded into memory is 18 images of 3×16×16" in message
    assert "set dataset.augment=random_resized_crop" in message
    assert "dataset.image_size" in message
    monkeypatch.setattr(memory, "available_memory", lambda: 18 * each - 1)
    assert "free" in refused(**CACHED | {"root": str(tree), "val_images": 0})
    build(**FOLDER | {"root": str(tree)})


@pytest.mark.parametrize(
    ("meminfo", "expected"),
    [("MemTotal: 9 kB\nMemAvailable:   7 kB\n", 7 * 1024), ("MemTotal: 9 kB\n", 5000), (None, 5000)],
)
def test_available_memory_is_the_kernels_word_or_all_there_is(meminfo, expected, monkeypatch):
    def read_text(path):
        if meminfo is None:
            raise FileNotFoundError(path)
        return meminfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 50, "SC_PAGE_SIZE": 100}.get)
    assert memory.available_memory() == expected
