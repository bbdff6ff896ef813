"""Datasets by name, served as batches on the device: `build_data` is the door of this room."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from st3.data.arrays import ArrayLoader
from st3.data.datasets import DATASETS, DOWNLOADED, FOLDERS, MADE_HERE, Source, Split
from st3.data.folder_loader import DECODERS, FolderLoader
from st3.data.folders import scan_tree, split_folders
from st3.data.loader import Loader
from st3.data.memory import check_memory, decode_once
from st3.errors import UserError

__all__ = ["Data", "Loader", "build_data", "check_options", "dataset_facts", "folders_used"]

AUGMENTATIONS = "none", "crop", "crop_flip", "random_resized_crop"
VAL_SEED = 0  # not the run's: every run holds out the same images


@dataclass(frozen=True)
class Data:
    """The loaders of one process (see `Loader` for their interface); `val` is None where no image is held out."""

    train: Loader
    val: Loader | None
    test: Loader
    classes: tuple[str, ...]


def build_data(
    name: str,
    *,
    root: str | None,
    classes: int | None,
    channels: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: str,
    val_images: int,
    train_images: int | None,
    test_images: int | None,
    workers: int,
    download: bool,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    decode: str = "cpu",
    cache: str | None = None,
    eval_batch_size: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Data:
    """Read a dataset and make the loaders of process `rank` of `world_size`.

    Every process reads the same data: it draws the whole epoch and serves its slice of each training batch, so it
    holds all training images where they are in memory. Of `val` and `test` it serves a part of its own, which may be
    empty; over all processes each image once.

    Args:
        name: a key of `DATASETS`.
        root: folder that holds the data, where the dataset reads one.
        classes, train_images, test_images: what the dataset must turn out to hold (training images before any
            are held out); None: whatever it holds.
        channels: 1 (grey) or 3 (RGB); image files are converted.
        image_size: height and width of a batch, pixels.
        mean, std: one number per channel, for pixels in 0..1.
        augment: of training images. "none"; "crop": shifted by up to 4 pixels, edge repeated; "crop_flip": the same
            and mirrored with probability 0.5; "random_resized_crop": image folders only, decoded anew each epoch by
            `workers` processes. Otherwise an image folder is decoded once, whole, into memory.
        val_images: training images to hold out, always the same ones.
        download: fetch the files where they are absent.
        batch_size: training images in a forward pass of all processes together.
        seed: together with the epoch decides order and augmentation.
        decode: JPEG files with augment="random_resized_crop": "cpu", by `workers`; "gpu", by a CUDA `device`.
        cache: folder where an image folder that is decoded once leaves its pixels for later runs; None: nowhere.
        eval_batch_size: images in a forward pass of one process over `val` or `test`; None: chosen here.

    Raises:
        UserError: an argument that does not fit the data, or data that are absent or damaged.
    """
    device = torch.device(device)
    check_options(
        name, root=root, channels=channels, mean=mean, std=std, augment=augment, download=download, decode=decode,
        cache=cache,
    )  # fmt: skip
    if decode == "gpu" and device.type != "cuda":
        raise UserError(f"dataset.decode=gpu needs a CUDA device, not {device}: set dataset.decode=cpu")
    streamed = augment == "random_resized_crop"

    source = DATASETS[name](
        root=root,
        download=download,
        classes=classes,
        channels=channels,
        image_size=image_size,
        train_images=train_images,
        test_images=test_images,
        seed=seed,
    )
    wanted = {"classes": classes, "train_images": train_images, "test_images": test_images}
    wanted |= {"channels": channels, "image_size": image_size}
    _check_facts(source, wanted, where=root if name in FOLDERS else name)
    if source.val is not None and val_images:
        raise UserError(f"dataset.val_images={val_images} but {root} has a val/ folder for that: set it to 0")
    if name in FOLDERS and not streamed:
        source = _in_memory(
            source, val_images, root=root, image_size=image_size, channels=channels, workers=workers, cache=cache,
            device=device, announce=rank == 0,
        )  # fmt: skip
    train, val = (source.train, source.val) if source.val is not None else _hold_out(source.train, val_images)
    if eval_batch_size is None:  # so many small images, because there launching kernels takes longer than they do
        eval_batch_size = 2500 if device.type == "cuda" and image_size <= 64 else 500

    def loader(split: Split, **order) -> Loader:
        common = {"mean": mean, "std": std, "device": device, **order}
        if streamed:
            size = {"image_size": image_size, "channels": channels, "decode": decode, "workers": workers}
            return FolderLoader(split.inputs, split.labels, **size, **common)
        return ArrayLoader(split.inputs, split.labels, augment=augment, **common)

    def evaluation(split: Split) -> Loader:
        return loader(split.part(rank, world_size), batch_size=eval_batch_size)

    return Data(
        train=loader(train, batch_size=batch_size, training=True, seed=seed, rank=rank, world_size=world_size),
        val=evaluation(val) if len(val.labels) else None,
        test=evaluation(source.test),
        classes=source.classes,
    )


def check_options(
    name: str,
    *,
    root: str | None,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: str,
    download: bool,
    decode: str,
    cache: str | None,
) -> None:
    """What `build_data` would refuse of these whatever the data and the device are.

    Raises:
        UserError: an argument that does not fit the others, or has no effect with them.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}: set dataset.name to one of {', '.join(sorted(DATASETS))}")
    if augment not in AUGMENTATIONS:
        raise UserError(f"unknown dataset.augment={augment}: set one of {', '.join(AUGMENTATIONS)}")
    streamed = augment == "random_resized_crop"
    if streamed and name not in FOLDERS:
        raise UserError(f"dataset.augment={augment} reads image folders, not {name}: set dataset.augment=crop_flip")
    if channels not in (1, 3):
        raise UserError(f"dataset.channels={channels} is not supported: set dataset.channels=1 or 3")
    for key, value in (("mean", mean), ("std", std)):
        if len(value) != channels:
            raise UserError(
                f"dataset.{key} has {len(value)} numbers but dataset.channels={channels}: set dataset.mean and "
                "dataset.std to one number per channel"
            )
    if decode not in DECODERS:
        raise UserError(f"unknown dataset.decode={decode}: set one of {', '.join(DECODERS)}")
    if decode == "gpu" and not streamed:
        raise UserError(f"dataset.decode=gpu has no effect with dataset.augment={augment}: set dataset.decode=cpu")
    if decode == "gpu" and channels != 3:
        raise UserError(f"dataset.decode=gpu gives RGB, not dataset.channels={channels}: set dataset.decode=cpu")
    if cache is not None and (streamed or name not in FOLDERS):
        what = f"dataset.augment={augment}" if streamed else name
        raise UserError(f"dataset.cache={cache} has no effect with {what}: set dataset.cache=null")
    if download and name not in DOWNLOADED:
        raise UserError(f"dataset.download=true has no effect on {name}: set dataset.download=false")
    if root is not None and name in MADE_HERE:
        raise UserError(f"dataset.root={root} has no effect on {name}: set dataset.root=null")


def dataset_facts(
    name: str, root: str | None, classes: int | None, train_images: int | None, test_images: int | None
) -> tuple[int, int, int]:
    """(classes, training images before any are held out, test images), each as given unless it is None.

    Only then is the folder listed; no image is opened.

    Raises:
        UserError: a None for a dataset that is no image folder, or a folder that cannot be listed.
    """
    facts = {"classes": classes, "train_images": train_images, "test_images": test_images}
    missing = [key for key, value in facts.items() if value is None]
    if missing and name not in FOLDERS:
        raise UserError(f"dataset.{missing[0]}=N is needed by dataset={name}")
    if missing:
        listings = scan_tree(root)
        train, test = listings["train"], listings["test"]
        found = {"classes": len(train.classes), "train_images": len(train), "test_images": len(test)}
        facts |= {key: found[key] for key in missing}
    return facts["classes"], facts["train_images"], facts["test_images"]


def folders_used(name: str, root: str | None) -> dict[str, Path]:
    """Folder by use ("train", "test", perhaps "val") of a dataset that is an image folder at `root`; else empty."""
    return split_folders(root) if name in FOLDERS and root is not None else {}


def _check_facts(source: Source, wanted: dict[str, int | None], where: str) -> None:
    """Refuse data that are not what the configuration says, all differences in one message."""
    found = {
        "classes": (len(source.classes), "classes"),
        "train_images": (len(source.train.labels), "training images"),
        "test_images": (len(source.test.labels), "test images"),
    }
    if isinstance(source.train.inputs, np.ndarray):  # files: converted to the wanted channels and size
        found["classes"] = len(source.classes), "class folders"
    else:
        _, channels, _, width = source.train.inputs.shape
        found |= {"channels": (channels, "channels"), "image_size": (width, "pixels a side")}
    odd = [key for key, (value, _) in found.items() if wanted[key] not in (None, value)]
    if odd:
        raise UserError(
            f"{' '.join(f'dataset.{key}={wanted[key]}' for key in odd)} but {where} has "
            f"{', '.join(f'{found[key][0]} {found[key][1]}' for key in odd)}: "
            f"set {' '.join(f'dataset.{key}={found[key][0]}' for key in odd)}"
        )


def _in_memory(
    source: Source, val_images: int, *, root: str, image_size: int, channels: int, device: torch.device, **how
) -> Source:
    """An image folder's splits as pixels; `how` as for `decode_once`."""
    splits = {"train": source.train, "val": source.val, "test": source.test}
    splits = {use: split for use, split in splits.items() if split is not None}
    check_memory(
        sum(len(split.labels) for split in splits.values()),
        len(source.train.labels) if val_images else 0,
        channels=channels,
        image_size=image_size,
        root=root,
        device=device,
    )
    size = {"image_size": image_size, "channels": channels}
    pixels = {use: decode_once(split.inputs, root=root, **size, **how) for use, split in splits.items()}
    return replace(source, **{use: replace(split, inputs=pixels[use]) for use, split in splits.items()})


def _hold_out(split: Split, val_images: int) -> tuple[Split, Split]:
    """(training, validation): a random `val_images` of the training images, drawn with a fixed seed."""
    count = len(split.labels)
    if not 0 <= val_images < count:
        raise UserError(
            f"dataset.val_images={val_images} of {count} training images: set dataset.val_images below {count}"
        )
    if not val_images:  # without the copy that taking all of them is
        return split, Split(split.inputs[:0], split.labels[:0])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(VAL_SEED))
    return split.take(order[val_images:].sort().values), split.take(order[:val_images].sort().values)
