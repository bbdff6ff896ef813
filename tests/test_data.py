"""Order, augmentation and normalisation of batches; image folders; what is refused, and in which words."""

import gc
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from torchvision.transforms import v2

from st3.config import load_config
from st3.data import build_data, dataset_facts, folder_loader, memory
from st3.data.arrays import PADDING, ArrayLoader, crop_flip
from st3.data.datasets import EMBEDDED_FILE, fashion_mnist_embedded, official
from st3.data.files import EncodedFiles, ImageFiles
from st3.data.folder_loader import FolderLoader
from st3.data.views import CentralView, RandomView
from st3.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "dataset").glob("*.yaml"))
KEYS = [
    "name", "root", "classes", "channels", "image_size", "mean", "std", "augment", "val_images", "train_images",
    "test_images", "workers", "download", "decode", "cache",
]  # fmt: skip

FAKE = {
    "name": "fake", "root": None, "classes": 10, "channels": 3, "image_size": 8, "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3], "augment": "crop_flip", "val_images": 0, "train_images": 50, "test_images": 23,
    "workers": 0, "download": False, "batch_size": 16, "seed": 0, "device": "cpu", "eval_batch_size": 10,
}  # fmt: skip
FOLDER = FAKE | {
    "name": "folder", "classes": None, "train_images": None, "test_images": None, "image_size": 16,
    "augment": "random_resized_crop", "batch_size": 4,
}  # fmt: skip


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def epoch(loader, number=0):
    """All (images, labels) of one epoch, concatenated."""
    images, labels = zip(*loader.epoch(number), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.fixture
def tree(tmp_path):
    """train/ with 6 and test/ with 3 JPEG files of 24x20 pixels in each of the classes a, b."""
    pixels = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return tmp_path


def refused(**arguments) -> str:
    with pytest.raises(UserError) as caught:
        build_data(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Batches from memory


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
    first = build_data(**FAKE).train
    expected = epoch(first, 3)
    second = build_data(**FAKE).train
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


def test_validation_images_are_held_out_the_same_for_every_seed():
    size = {"name": "fashion_mnist_embedded", "image_size": 28, "channels": 1, "mean": [0.0], "std": [1.0]}
    counts = {"train_images": 8000, "test_images": 2000, "augment": "none", "val_images": 1000}
    one, two = (build_data(**FAKE | size | counts | {"seed": seed}) for seed in (1, 2))
    assert torch.equal(one.val.images, two.val.images)
    assert one.val.num_images == 1000
    held, kept, whole = (
        {image.numpy().tobytes() for image in images}
        for images in (one.val.images, one.train.images, fashion_mnist_embedded().train.inputs)
    )
    assert not held & kept
    assert held | kept == whole
    assert len(set(one.val.labels.tolist())) == 10


# Several processes


def loaders(use, world_size, **arguments):
    """That loader of every process."""
    return [getattr(build_data(**arguments, rank=rank, world_size=world_size), use) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("augment", ["crop_flip", "random_resized_crop"])
def test_training_batches_of_all_processes_are_those_of_one(tree, augment, world_size):
    arguments = FOLDER | {"root": str(tree), "augment": augment}
    alone = build_data(**arguments).train
    shared = loaders("train", world_size, **arguments)
    assert {(len(each), each.num_images, each.batch_size) for each in shared} == {(3, 12, 4)}
    for number in (0, 1):
        batches = zip(alone.epoch(number), *(each.epoch(number) for each in shared), strict=True)
        for (images, labels), *parts in batches:
            assert [len(part) for part, _ in parts] == [4 // world_size] * world_size
            assert torch.equal(images, torch.cat([part for part, _ in parts]))
            assert torch.equal(labels, torch.cat([part for _, part in parts]))


@pytest.mark.parametrize("augment", ["none", "random_resized_crop"])
@pytest.mark.parametrize("world_size", [4, 7])
def test_processes_evaluate_each_image_once_and_some_may_have_none(tree, augment, world_size):
    arguments = FOLDER | {"root": str(tree), "augment": augment, "val_images": 3, "batch_size": 7, "workers": 1}
    arguments |= {"eval_batch_size": 1, "batch_size": world_size}
    for use, count in (("val", 3), ("test", 6)):
        expected = epoch(loaders(use, 1, **arguments)[0])
        shared = loaders(use, world_size, **arguments)
        assert sum(each.num_images for each in shared) == count
        assert min(each.num_images for each in shared) == count // world_size
        batches = [list(each.epoch(0)) for each in shared]
        assert [len(each) for each in shared] == [len(each) for each in batches]
        images, labels = zip(*(batch for each in batches for batch in each), strict=True)
        assert torch.equal(expected[0], torch.cat(images))
        assert torch.equal(expected[1], torch.cat(labels))


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    message = refused(**FAKE | {"batch_size": 16}, rank=1, world_size=3)
    assert message.startswith("batch_size: 16 images")
    assert "set batch_size to a multiple of 3" in message


# Embedded data


def test_embedded_data():
    source = fashion_mnist_embedded()
    for split, count in ((source.train, 8000), (source.test, 2000)):
        assert split.inputs.shape == (count, 1, 28, 28)
        assert split.inputs.dtype == torch.uint8
        # Every class holds about a tenth: labels and images were cut apart at the right place.
        assert torch.bincount(split.labels, minlength=10).div(count).sub(0.1).abs().max() < 0.02
    assert source.train.labels[:3].tolist() == [9, 0, 0]  # the official file begins with a boot and two shirts
    assert source.test.labels[:3].tolist() == [9, 2, 1]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "absent"])
def test_damaged_embedded_data_are_refused(tmp_path, damage):
    content = bytearray(EMBEDDED_FILE.read_bytes())
    content[len(content) // 2] ^= 1
    copy = tmp_path / "copy.xz"
    if damage != "absent":
        copy.write_bytes(content if damage == "flipped" else content[:1000])
    with pytest.raises(UserError, match=r"copy\.xz is missing or damaged"):
        fashion_mnist_embedded(copy)


# Image folders


@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folder_counts_shapes_and_labels(tree, augment, channels):
    stats = {"mean": [0.5] * channels, "std": [0.5] * channels, "channels": channels}
    data = build_data(**FOLDER | stats | {"root": str(tree), "augment": augment, "val_images": 2})
    assert data.classes == ("a", "b")
    assert [loader.num_images for loader in (data.train, data.val, data.test)] == [10, 2, 6]
    images, labels = epoch(data.train)
    assert images.shape == (8, channels, 16, 16)
    images, labels = epoch(data.test)
    assert images.shape == (6, channels, 16, 16)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part, _ in data.test.epoch(0))


def test_grey_conversion_is_the_luminance(tree):
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tree / "test" / "a" / "0.png")
    (tree / "test" / "a" / "0.jpg").unlink()
    for augment in ("random_resized_crop", "none"):
        grey = {"channels": 1, "mean": [0.0], "std": [1 / 255], "augment": augment}
        images, _ = epoch(build_data(**FOLDER | grey | {"root": str(tree)}).test)
        luminance = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
        assert (images[0] - luminance).abs().max() <= 1


def test_folder_batches_do_not_depend_on_the_number_of_workers(tree):
    alone, helped = (build_data(**FOLDER | {"root": str(tree), "workers": n}).train for n in (0, 2))
    before = torch.get_rng_state()
    expected = epoch(alone, 5)
    next(iter(helped.epoch(0)))
    assert all(map(torch.equal, expected, epoch(helped, 5)))
    assert torch.equal(before, torch.get_rng_state())
    other = epoch(alone, 6)
    assert not torch.equal(expected[0], other[0])


def test_a_loader_that_is_dropped_ends_its_workers_at_once(tree):
    loader = build_data(**FOLDER | {"root": str(tree), "workers": 2}).train
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
    loader = build_data(**FOLDER | {"root": str(tree)}).train
    views = {image.numpy().tobytes() for number in (0, 1) for image in epoch(loader, number)[0]}
    assert len(views) == 24


def test_images_of_the_right_size_reach_memory_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(4, 16, 16, 3), dtype=np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / split / "a" / f"{i}.png")
    data = build_data(**FOLDER | {"root": str(tmp_path), "augment": "none"})
    assert np.array_equal(data.test.images.numpy(), pixels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
def test_a_corrupt_file_is_named(tree, workers, augment):
    bad = tree / "test" / "b" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(UserError) as caught:
        epoch(build_data(**FOLDER | {"root": str(tree), "workers": workers, "augment": augment}).test)
    assert str(caught.value).startswith(f"cannot read image {bad}: ")
    assert str(caught.value).endswith("; remove or replace the file")
    assert "Traceback" not in str(caught.value)


def test_views_are_those_of_torchvision():
    image = Image.effect_noise((61, 47), 100).convert("RGB")
    random, transform = RandomView(16), v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()])
    mirrored = set()
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = random.draw(image)
        torch.manual_seed(seed)
        assert np.array_equal(random.cut(image, drawn), transform(image))
        mirrored.add(drawn[-1])
    assert mirrored == {0, 1}
    transform = v2.Compose([v2.Resize(18), v2.CenterCrop(16)])
    assert np.array_equal(CentralView(16).cut(image, ()), transform(image))


# Image folders whose JPEG files the device decodes


@pytest.fixture
def photographs(tmp_path):
    """As `tree`, of smooth images of several sizes, which JPEG keeps well: paths [N], labels [N]."""
    pixels, paths = np.random.default_rng(0), []
    for i, (width, height) in enumerate([(90, 60), (64, 64), (50, 110), (201, 133), (33, 71), (128, 96)]):
        coarse = Image.fromarray(pixels.integers(256, size=(4, 5, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{i}.jpg")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return np.array([str(path) for path in paths], dtype=object), torch.arange(len(paths))


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


def test_views_are_drawn_from_the_header_as_from_the_pixels(photographs):
    paths, labels = photographs
    encoded = EncodedFiles(paths, labels, RandomView(32), 3, seed=5)[2, torch.arange(6)]
    plain = ImageFiles(paths, labels, RandomView(32), 3, seed=5)
    with torch.random.fork_rng():
        expected = [list(plain.draw(Image.open(path).convert("RGB"), 2, i)) for i, path in enumerate(paths)]
    assert encoded.views.tolist() == expected
    assert encoded.lengths.tolist() == [os.path.getsize(path) for path in paths]


def test_files_that_decoders_treat_differently_are_left_to_pillow(photographs):
    paths, labels = photographs
    with Image.open(paths[0]) as image:
        image.load()
    image.save(paths[0], "PNG")
    image.convert("L").save(paths[1])
    image.convert("CMYK").save(paths[2])
    image.save(paths[3], keep_rgb=True)
    image.save(paths[4], "MPO", save_all=True, append_images=[image])
    encoded = EncodedFiles(paths, labels, CentralView(32), 3, seed=0)[0, torch.arange(6)]
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
    in_worker = isinstance(EncodedFiles(*photographs, CentralView(32), 3, seed=0)[0, torch.arange(6)], str)
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


@pytest.mark.gpu
@needs_gpu
def test_small_images_are_evaluated_in_larger_batches_on_a_gpu():
    small = FAKE | {"device": "cuda", "eval_batch_size": None}
    assert build_data(**small).test.batch_size == 2500
    assert build_data(**small | {"device": "cpu"}).test.batch_size == 500
    assert build_data(**small | {"image_size": 65}).test.batch_size == 500


# Image folders that are decoded once


CACHED = FOLDER | {"augment": "none", "val_images": 2}


def pixels_of(data):
    return [loader.images.clone() for loader in (data.train, data.val, data.test)]


def no_image_is_opened(*_, **__):
    raise AssertionError("an image was opened")


def test_the_second_use_of_a_cache_opens_no_image(tree, tmp_path, capsys, monkeypatch):
    cache = tmp_path / "made" / "cache"
    arguments = CACHED | {"root": str(tree), "cache": str(cache)}
    expected = pixels_of(build_data(**arguments | {"cache": None}))
    assert capsys.readouterr().out == ""
    first = pixels_of(build_data(**arguments))
    written = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in written] == ["12 images, 0.0 MB", "6 images, 0.0 MB"]
    assert sorted(line.split()[1] for line in written) == sorted(map(str, cache.iterdir()))  # and no other file
    monkeypatch.setattr(Image, "open", no_image_is_opened)
    second = pixels_of(build_data(**arguments))
    assert [line.split(" read in ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "place of 12 image files",
        "place of 6 image files",
    ]
    for each in (first, second):
        assert all(map(torch.equal, expected, each))
    build_data(**arguments, rank=1, world_size=2)
    assert capsys.readouterr().out == ""
    moved = tree.with_name("moved")
    tree.rename(moved)
    build_data(**arguments | {"root": str(moved), "cache": str(moved / "made" / "cache")})
    assert capsys.readouterr().out.count(" read in place of ") == 2


@pytest.mark.parametrize("change", ["touched", "longer", "added", "removed", "renamed", "image_size", "channels"])
def test_whatever_decides_the_pixels_makes_another_entry(tree, tmp_path, change, capsys):
    arguments = CACHED | {"root": str(tree), "cache": str(tmp_path / "cache")}
    build_data(**arguments)
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
    new = pixels_of(build_data(**arguments))
    assert " written: " in capsys.readouterr().out
    assert all(map(torch.equal, new, pixels_of(build_data(**arguments | {"cache": None}))))


@pytest.mark.parametrize("damage", ["cut short", "longer", "empty", "header", "pixel"])
def test_a_damaged_cache_is_made_again(tree, tmp_path, damage, capsys):
    arguments = CACHED | {"root": str(tree), "cache": str(tmp_path / "cache")}
    expected = pixels_of(build_data(**arguments))
    bad = max((tmp_path / "cache").iterdir(), key=os.path.getsize)
    whole = bad.read_bytes()
    flipped = bytearray(whole)
    flipped[0 if damage == "header" else -1] ^= 1
    bad.write_bytes({"cut short": whole[:-1], "longer": whole + b"0", "empty": b""}.get(damage, bytes(flipped)))
    capsys.readouterr()
    assert all(map(torch.equal, expected, pixels_of(build_data(**arguments))))
    lines = capsys.readouterr().out.splitlines()
    assert [f"{bad} is damaged: decoding the 12 image files again" in line for line in lines] == [True, False, False]
    assert bad.read_bytes() == whole


def test_processes_that_fill_a_cache_at_a_time_do_not_disturb_each_other(tree, tmp_path):
    arguments = CACHED | {"root": str(tree), "cache": str(tmp_path / "cache")}
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build_data, kwargs=arguments) for _ in range(4)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    assert [each.exitcode for each in processes] == [0] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 2
    expected = pixels_of(build_data(**arguments | {"cache": None}))
    assert all(map(torch.equal, expected, pixels_of(build_data(**arguments))))


def test_pixels_from_a_cache_can_be_written_to_without_changing_it(tree, tmp_path):
    arguments = CACHED | {"root": str(tree), "cache": str(tmp_path / "cache"), "val_images": 0}
    build_data(**arguments)
    before = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    build_data(**arguments).train.images.zero_()
    assert before == {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}


def test_a_cache_that_cannot_be_used_is_refused(tree, tmp_path):
    (tmp_path / "file").touch()
    message = refused(**CACHED | {"root": str(tree), "cache": str(tmp_path / "file")})
    assert message.startswith(f"cannot use dataset.cache={tmp_path / 'file'} (")
    assert "or to null" in message


def test_images_that_do_not_fit_into_memory_are_refused_before_any_is_opened(tree, monkeypatch):
    assert memory.available_memory() > 2**20
    each = 3 * 16 * 16
    monkeypatch.setattr(memory, "available_memory", lambda: (18 + 12) * each)
    build_data(**CACHED | {"root": str(tree)})
    monkeypatch.setattr(Image, "open", no_image_is_opened)
    monkeypatch.setattr(memory, "available_memory", lambda: (18 + 12) * each - 1)
    message = refused(**CACHED | {"root": str(tree)})
    assert f"{tree} decoded into memory is 18 images of 3×16×16" in message
    assert "set dataset.augment=random_resized_crop" in message
    assert "dataset.image_size" in message
    monkeypatch.setattr(memory, "available_memory", lambda: 18 * each - 1)
    assert "free" in refused(**CACHED | {"root": str(tree), "val_images": 0})
    build_data(**FOLDER | {"root": str(tree)})


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


def test_facts_of_a_folder_come_from_its_listing(tree):
    for path in tree.rglob("*.jpg"):
        path.write_bytes(b"never opened")
    assert dataset_facts("folder", str(tree), None, None, None) == (2, 12, 6)
    assert dataset_facts("folder", str(tree), 5, None, None) == (5, 12, 6)
    assert dataset_facts("imagenet", None, 1000, 1_281_167, 50_000) == (1000, 1_281_167, 50_000)
    with pytest.raises(UserError, match=r"dataset\.train_images=N is needed by dataset=fake"):
        dataset_facts("fake", None, 10, None, 5)


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fakes"}, "unknown dataset 'fakes': set dataset.name to one of"),
        ({"augment": "cutout"}, "unknown dataset.augment=cutout"),
        ({"augment": "random_resized_crop"}, "set dataset.augment=crop_flip"),
        ({"channels": 2}, "set dataset.channels=1 or 3"),
        ({"mean": [0.5]}, "dataset.mean has 1 numbers but dataset.channels=3"),
        ({"std": [0.5]}, "dataset.std has 1 numbers but dataset.channels=3"),
        ({"batch_size": 51}, "batch_size=51 is larger than the 50 training images: lower batch_size"),
        ({"batch_size": 50, "val_images": 1}, "batch_size=50 is larger than the 49 training images"),
        ({"val_images": 50}, "set dataset.val_images below 50"),
        ({"train_images": None}, "dataset.train_images=N is needed"),
        ({"download": True}, "set dataset.download=false"),
        ({"root": "somewhere"}, "set dataset.root=null"),
        ({"cache": "somewhere"}, "dataset.cache=somewhere has no effect with fake: set dataset.cache=null"),
        ({"decode": "fast"}, "unknown dataset.decode=fast: set one of cpu, gpu"),
        ({"decode": "gpu"}, "no effect with dataset.augment=crop_flip: set dataset.decode=cpu"),
        (
            {"name": "fashion_mnist_embedded", "train_images": None, "test_images": None},
            "dataset.channels=3 dataset.image_size=8 but fashion_mnist_embedded has 1 channels, 28 pixels a side: "
            "set dataset.channels=1 dataset.image_size=28",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    assert message in refused(**FAKE | change)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("dataset.decode=fast", "dataset.decode=fast does not exist"),
        ("dataset.decode=gpu", "dataset.decode=gpu has no effect with dataset.augment=none: set dataset.decode=cpu"),
        (
            "dataset=folder dataset.decode=gpu dataset.channels=1 dataset.mean=[0] dataset.std=[1]",
            "dataset.decode=gpu gives RGB, not dataset.channels=1",
        ),
        ("dataset=fake dataset.cache=DIR", "dataset.cache=DIR has no effect with fake: set dataset.cache=null"),
        (
            "dataset=mnist dataset.augment=random_resized_crop",
            "dataset.augment=random_resized_crop reads image folders",
        ),
        ("dataset=fake dataset.root=DIR", "dataset.root=DIR has no effect on fake"),
        ("dataset.name=fakes", "unknown dataset 'fakes'"),
        ("dataset=folder dataset.cache=DIR", "dataset.cache=DIR has no effect with dataset.augment=random_resized"),
        ("dataset=imagenet dataset.decode=gpu", None),
        ("dataset=cifar10_folder dataset.cache=DIR", None),
    ],
)
def test_the_configuration_is_checked_before_any_data(overrides, message):
    with initialize_config_dir(str(CONFIGS[0].parents[1].resolve()), version_base="1.3"):
        composed = compose("config", overrides.split())
    if message is None:
        load_config(composed)
    else:
        with pytest.raises(UserError) as caught:
            load_config(composed)
        assert message in str(caught.value)


def test_a_tree_with_val_and_test_is_validated_on_one_and_tested_on_the_other(tree):
    for label, count in (("a", 2), ("b", 5)):
        shutil.copytree(tree / "test" / label, tree / "val" / label)
        for i in range(3, count):
            shutil.copy(tree / "test" / label / "0.jpg", tree / "val" / label / f"{i}.jpg")
    arguments = {**FOLDER, "root": str(tree)}
    data = build_data(**arguments)
    assert (data.train.num_images, data.val.num_images, data.test.num_images) == (12, 8, 6)
    assert "has a val/ folder for that" in refused(**arguments | {"val_images": 2})
    assert dataset_facts("folder", str(tree), None, None, None) == (2, 12, 6)

    shutil.rmtree(tree / "test")
    (tree / "test").mkdir()
    (tree / "test" / "unlabelled.jpg").touch()  # as ImageNet's
    data = build_data(**arguments)
    assert data.val is None
    assert data.test.num_images == 8


def test_folders_that_do_not_fit_are_refused(tree):
    arguments = FOLDER | {"root": str(tree)}
    assert "dataset.root=DIR is needed" in refused(**arguments | {"root": None})
    assert f"dataset.root={tree}/train has no train/ folder" in refused(**arguments | {"root": f"{tree}/train"})
    many = refused(**arguments | {"classes": 10})
    assert many == f"dataset.classes=10 but {tree} has 2 class folders: set dataset.classes=2"
    few = refused(**arguments | {"train_images": 13})
    assert few == f"dataset.train_images=13 but {tree} has 12 training images: set dataset.train_images=12"
    assert "batch_size=13 is larger than the 12 training images" in refused(**arguments | {"batch_size": 13})
    cache = refused(**arguments | {"cache": "somewhere"})
    assert cache == (
        "dataset.cache=somewhere has no effect with dataset.augment=random_resized_crop: set dataset.cache=null"
    )
    assert "dataset.decode=gpu needs a CUDA device, not cpu" in refused(**arguments | {"decode": "gpu"})
    grey = {"decode": "gpu", "channels": 1, "mean": [0.5], "std": [0.5]}
    assert "dataset.decode=gpu gives RGB, not dataset.channels=1" in refused(**arguments | grey)
    (tree / "test" / "c").mkdir()
    assert "remove empty class folders" in refused(**arguments)
    Image.new("RGB", (8, 8)).save(tree / "test" / "c" / "0.jpg")
    assert "hold other classes (c)" in refused(**arguments)
    (tree / "test").rename(tree / "held")
    assert "has no val/ or test/ folder" in refused(**arguments)


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [("cifar10", "cifar-10-python.tar.gz", "."), ("mnist", "train-images-idx3-ubyte.gz", "MNIST/raw")],
)
def test_absent_files_are_named_with_their_place(tmp_path, name, file, folder):
    message = refused(**FAKE | {"name": name, "root": str(tmp_path)})
    assert file in message
    assert f"into {tmp_path / folder} and set dataset.download=true" in message


@pytest.mark.parametrize("folder", [".", "MNIST/raw"])
@pytest.mark.parametrize("found", ["nothing", "empty", "file"])
def test_a_failed_download_leaves_the_folders_as_they_were(tmp_path, found, folder):
    root = tmp_path / "new" / "data"
    if found != "nothing":
        root.mkdir(parents=True)
    if found == "file":
        (root / "kept").touch()

    class Unreachable:
        def __init__(self, place, *, train, download):
            Path(place, folder).mkdir(parents=True, exist_ok=True)
            raise RuntimeError("no network")

    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="the download failed"):
        official(Unreachable, "file", folder, root=str(root), download=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_mnist_files_are_read_in_place(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(7, 28, 28), dtype=np.uint8)
    for split, count in (("train", 7), ("t10k", 4)):
        head = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + pixels[:count].tobytes())
        head = np.array([0x801, count], ">i4").tobytes()
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(head + bytes(range(count)))
    arguments = {"root": str(tmp_path), "channels": 1, "image_size": 28, "mean": [0.0], "std": [1 / 255]}
    counts = {"train_images": 7, "test_images": 4, "batch_size": 7}
    images, labels = epoch(build_data(**FAKE | {"name": "mnist"} | arguments | counts).test)
    assert np.array_equal(images[:, 0].round().numpy(), pixels[:4])
    assert labels.tolist() == [0, 1, 2, 3]


def test_colour_arrays_become_channels_first():
    class Colours:
        classes = ("a", "b")

        def __init__(self, root, *, train, download):
            self.data = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
            self.targets = [1, 0]

    split = official(Colours, "file", ".", root="data", download=False).train
    assert split.inputs.shape == (2, 3, 4, 4)
    assert split.inputs[0, :, 0, 1].tolist() == [3, 4, 5]
    assert split.labels.tolist() == [1, 0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_dataset_file_has_the_same_keys_and_types(path):
    config = yaml.safe_load(path.read_text())
    assert list(config) == KEYS
    assert len(config["mean"]) == len(config["std"]) == config["channels"]
    assert isinstance(config["augment"], str)


@pytest.mark.parametrize("name", ["fake", "fashion_mnist_embedded"])
def test_datasets_without_files_build_from_their_configuration(name):
    config = yaml.safe_load(next(path for path in CONFIGS if path.stem == name).read_text())
    data = build_data(**config, batch_size=64, seed=0, device="cpu")
    images, _ = epoch(data.test)
    # Mean and standard deviation are the dataset's own.
    assert images.mean().abs() < 0.02
    assert (images.std() - 1).abs() < 0.02
