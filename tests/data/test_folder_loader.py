"""Image files that are decoded anew in each epoch, by the workers or by the device."""

import gc
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import FOLDER, build, epoch, needs_gpu
from PIL import Image

from st3.data import folder_loader
from st3.data.files import EncodedFiles
from st3.data.folder_loader import FolderLoader
from st3.data.views import CentralView
from st3.errors import UserError


def test_folder_batches_do_not_depend_on_the_number_of_workers(tree):
    alone, helped = (build(**FOLDER | {"root": str(tree), "workers": n}).train for n in (0, 2))
    before = torch.get_rng_state()
    expected = epoch(alone, 5)
    next(iter(helped.epoch(0)))
    assert all(map(torch.equal, expected, epoch(helped, 5)))
    assert torch.equal(before, torch.get_rng_state())
    other = epoch(alone, 6)
    assert not torch.equal(expected[0], other[0])


def test_a_loader_that_is_dropped_ends_its_workers_at_once(tree):
    loader = build(**FOLDER | {"root": str(tree), "workers": 2}).train
    next(iter(loader.epoch(0)))
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    # Freed by counting, so that no reference leads back to the loader: found by the collector, it would end in an order
    # in which DataLoader waits 5 s for each worker.
    gc.disable()
    del loader
    gc.enable()
    assert not multiprocessing.active_children()


def test_folder_augmentation_draws_anew_for_each_image_and_epoch(tree):
    for path in (tree / "train").rglob("*.jpg"):
        Image.fromarray(np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)).save(path)
    loader = build(**FOLDER | {"root": str(tree)}).train
    views = {image.numpy().tobytes() for number in (0, 1) for image in epoch(loader, number)[0]}
    assert len(views) == 24


def raw(files, decode, training=True, **options):
    """A loader whose images are pixels, 0..255."""
    size = {"image_size": 32, "channels": 3, "batch_size": 3, "mean": [0.0] * 3, "std": [1 / 255] * 3}
    return FolderLoader(*files, decode=decode, training=training, **size, **options)


@pytest.mark.parametrize("training", [True, False])
def test_both_decoders_show_the_same_crops(photographs, training):
    ours = epoch(raw(photographs, "gpu", training, workers=2), 3)
    pillow = epoch(raw(photographs, "cpu", training), 3)
    assert torch.equal(ours[1], pillow[1])
    # libjpeg on both sides; resizing rounds to 8 bits after each direction or once.
    assert (ours[0] - pillow[0]).abs().max() <= 2
    other = epoch(raw(photographs, "cpu", training, seed=1), 3)[0]
    assert not training or (ours[0] - other).abs().mean() > 10  # another crop would be seen


def test_files_that_decoders_treat_differently_are_left_to_pillow(photographs):
    paths, labels = photographs
    with Image.open(paths[0]) as image:
        image.load()
    image.save(paths[0], "PNG")
    image.convert("L").save(paths[1])
    image.convert("CMYK").save(paths[2])
    image.save(paths[3], keep_rgb=True)
    image.save(paths[4], "MPO", save_all=True, append_images=[image])
    encoded = EncodedFiles(paths, labels, CentralView(32), 3, seed=0)[0, torch.arange(6)][0]
    assert (encoded.lengths > 0).tolist() == [False] * 5 + [True]
    ours, pillow = (epoch(raw(photographs, decode))[0] for decode in ("gpu", "cpu"))
    order = epoch(raw(photographs, "cpu"))[1]
    assert torch.equal(ours[order < 5], pillow[order < 5])
    assert (ours - pillow).abs().max() <= 2


def test_what_the_device_refuses_is_decoded_by_pillow(photographs, monkeypatch):
    expected = epoch(raw(photographs, "gpu"))
    refused_size = os.path.getsize(photographs[0][2])
    decode_jpeg = folder_loader.decode_jpeg

    def picky(files, **options):
        if any(len(file) == refused_size for file in files):
            raise RuntimeError("unsupported")
        return decode_jpeg(files, **options)

    monkeypatch.setattr(folder_loader, "decode_jpeg", picky)
    images, labels = epoch(raw(photographs, "gpu"))
    assert torch.equal(labels, expected[1])
    assert (images - expected[0]).abs().max() <= 2

    def broken(files, **options):
        raise RuntimeError("not compiled with nvJPEG support\nmore")

    monkeypatch.setattr(folder_loader, "decode_jpeg", broken)
    with pytest.raises(UserError, match=r"no JPEG on cpu \(not compiled .* support\): set dataset.decode=cpu"):
        raw(photographs, "gpu")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["cut short", "tables"])
def test_a_damaged_jpeg_is_named_whoever_decodes_it(photographs, workers, damage):
    bad = Path(photographs[0][4])
    content = bytearray(bad.read_bytes())
    if damage == "tables":  # complete, but the first Huffman table counts more codes than there can be
        start = content.index(b"\xff\xc4") + 5
        content[start : start + 16] = b"\xff" * 16
    else:
        del content[-200:]
    bad.write_bytes(content)
    # Not every decoder minds a file that is cut short: Pillow, in the worker, does.
    _, errors = EncodedFiles(*photographs, CentralView(32), 3, seed=0)[0, torch.arange(6)]
    in_worker = str(bad) in errors
    assert in_worker == (damage == "cut short")
    with pytest.raises(UserError) as caught:
        epoch(raw(photographs, "gpu", training=False, workers=workers))
    assert str(caught.value).startswith(f"cannot read image {bad}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_batches_prepared_ahead_on_a_gpu_are_those_of_the_cpu(photographs, decode):
    paths, labels = photographs
    many = np.concatenate([paths] * 20), labels.repeat(20)
    expected = epoch(raw(many, "cpu"), 1)
    loader, images, found = raw(many, decode, device="cuda", workers=2), [], []
    busy = torch.ones(2000, 2000, device="cuda")
    for batch, label in loader.epoch(1):
        for _ in range(20):
            busy = (busy @ busy).clamp(0, 1)  # so that the next batch is prepared beside a computation
        images.append(batch * 1)
        found.append(label * 1)
    images, found = torch.cat(images).cpu(), torch.cat(found).cpu()
    assert torch.equal(found, expected[1])
    difference = (images - expected[0]).abs()
    # Another JPEG decoder may spread the colour of 2x2 pixels otherwise.
    assert difference.max() < 0.01 if decode == "cpu" else difference.mean() < 2
