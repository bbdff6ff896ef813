"""Datasets by name, served as batches on the device: `build_data` is the door of this room."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from st3.data.arrays import ArrayLoader
from st3.data.augmentation import AugmentationConfig, Augmenter
from st3.data.config import DatasetConfig, Facts
from st3.data.contents import contents_changes, contents_of
from st3.data.datasets import DATASETS, DOWNLOADED, FOLDERS, MADE_HERE, Source, Split, listed, required
from st3.data.files import LeftOut
from st3.data.folder_loader import DECODERS, FolderLoader
from st3.data.folders import empty_classes, named, scan, scan_tree, split_folders
from st3.data.holdout import draw_held_out, held_out_count
from st3.data.limits import check_numbers
from st3.data.loader import Loader
from st3.data.memory import check_memory, decode_once
from st3.data.probing import probe
from st3.data.views import WholeView
from st3.errors import DataError, UserError
from st3.settings import printable

__all__ = [
    "AugmentationConfig",
    "Data",
    "DatasetConfig",
    "Facts",
    "Images",
    "Loader",
    "build_data",
    "build_folder",
    "build_split",
    "check_options",
    "contents",
    "contents_changes",
    "data_warnings",
    "dataset_facts",
    "evaluation_batch_size",
    "folders_used",
    "named",
    "probe",
]

ON_ERROR = "stop", "skip"
CHANGED = "stop", "accept"
AUGMENTATIONS = "none", "crop", "crop_flip", "random_resized_crop"


@dataclass(frozen=True)
class Data:
    """The loaders of one process (see `Loader` for their interface); `val` is None where no image is held out."""

    train: Loader
    val: Loader | None
    test: Loader
    classes: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    """What this process has left out so far (dataset.on_error=skip); grows while files are read in training."""
    contents: Mapping[str, Any] = field(default_factory=dict)
    """What the data are, as `contents_of` describes them; the same in all processes."""

    def warnings(self) -> list[str]:
        """A sentence where image files were left out."""
        return _warnings(self.left_out)


@dataclass(frozen=True)
class Images:
    """One split to be evaluated: each image once and in order, not augmented."""

    loader: Loader
    classes: tuple[str, ...]
    left_out: Sequence[LeftOut] = ()
    """As in `Data`."""

    def warnings(self) -> list[str]:
        """A sentence where image files were left out."""
        return _warnings(self.left_out)


def _warnings(left_out: Sequence[LeftOut]) -> list[str]:
    files = sorted({printable(path) for each in left_out for path in each.errors})
    return [f"{len(files):,} image files that cannot be read were left out: {named(files)}"] if files else []


def build_data(
    config: DatasetConfig,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
    eval_batch_size: int | None = None,
    augmentation: AugmentationConfig | None = None,
) -> Data:
    """Read a dataset and make the loaders of process `rank` of `world_size`.

    Every process draws the order of the whole epoch and serves its slice of each training batch, so each holds all
    training images where they are in memory. Of `val` and `test` a process serves only its own part, which may be
    empty; all parts together hold each image once.

    Args:
        batch_size: training images in a forward pass of all processes together.
        seed: together with the epoch decides order and augmentation.
        eval_batch_size: images in a forward pass of one process over `val` or `test`; None: chosen here.
        augmentation: of training images, beyond `config.augment`; None: nothing.

    Raises:
        UserError: settings that do not fit each other, the data or the device.
        DataError: data that are absent, damaged, or other than the settings say.
    """
    device = torch.device(device)
    check_options(config)
    loaders = _Loaders(config, device, eval_batch_size)
    source = DATASETS[config.name](config, seed)
    recorded = contents_of(source)
    source = _divided(source, config, loaders, announce=rank == 0)
    assert source.test

    order = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size}
    augmenter = augmentation and Augmenter(augmentation, len(source.classes), config.image_size)
    return Data(
        train=loaders.make(source.train, training=True, augmenter=augmenter, **order),
        val=loaders.evaluation(source.val.part(rank, world_size)) if source.val else None,
        test=loaders.evaluation(source.test.part(rank, world_size)),
        classes=source.classes,
        left_out=tuple(loaders.left_out),
        contents=recorded,
    )


def contents(config: DatasetConfig, seed: int) -> dict[str, Any]:
    """What `build_data` would put into `Data.contents`; no image file is opened.

    Raises:
        UserError, DataError: as `build_data`, for settings and data that are not there or damaged.
    """
    check_options(config)
    return contents_of(DATASETS[config.name](config, seed))


def build_split(config: DatasetConfig, split: str, *, seed: int, device: torch.device) -> Images:
    """One split as the evaluations of a run see it: "train" (after the hold-out), "val" or "test".

    Raises:
        UserError: there is no such split.
        UserError, DataError: as `build_data`.
    """
    loaders = _Loaders(config, device)
    source = _divided(DATASETS[config.name](config, seed), config, loaders, announce=True, only=split)
    chosen: Split | None = getattr(source, split)
    if chosen is None:
        raise UserError(f"no images are held out for validation (dataset.val_images={config.val_images}): choose test")
    return Images(loaders.evaluation(chosen), source.classes, loaders.left_out)


def build_folder(config: DatasetConfig, folder: Path, classes: Sequence[str], device: torch.device) -> Images:
    """The images of FOLDER/CLASS/FILE for a network that was trained with `config` and knows `classes`.

    They are read while they are evaluated, and cut as `config` cuts its own.

    Raises:
        DataError: no images there, or class folders that are none of `classes`.
    """
    loaders, listing = _Loaders(config, device), scan(folder)
    if unknown := [label for label in listing.classes if label not in classes]:
        raise DataError(
            f"{folder} has classes that the network does not know: {named(unknown)}; it knows {named(list(classes))}: "
            "rename these folders, or move them away"
        )
    numbers = torch.tensor([classes.index(label) for label in listing.classes])
    split = listed(listing)
    return Images(loaders.evaluation(Split(split.inputs, numbers[split.labels])), tuple(classes), loaders.left_out)


def evaluation_batch_size(image_size: int, device: torch.device) -> int:
    """Images in a forward pass without gradients."""
    # Many small images at once, because launching their kernels takes longer than they do.
    return 2500 if device.type == "cuda" and image_size <= 64 else 500


class _Loaders:
    """Makes the loaders of one process, and counts what they leave out."""

    def __init__(self, config: DatasetConfig, device: torch.device, eval_batch_size: int | None = None):
        if config.decode == "gpu" and device.type != "cuda":
            raise UserError(f"dataset.decode=gpu needs a CUDA device, not {device}: set dataset.decode=cpu")
        self.config, self.device = config, device
        self.eval_batch_size = eval_batch_size or evaluation_batch_size(config.image_size, device)
        self.left_out: list[LeftOut] = []

    def skipping(self, images: int) -> LeftOut | None:
        """Where to count the files of a split that cannot be read; None: they are an error."""
        if self.config.on_error == "stop":
            return None
        self.left_out.append(LeftOut(images))
        return self.left_out[-1]

    def make(self, split: Split, training: bool = False, **order: Any) -> Loader:
        config = self.config
        order |= {"mean": config.mean, "std": config.std, "device": self.device, "training": training}
        split = split.without_unreadable(training)
        if isinstance(split.inputs, torch.Tensor):
            return ArrayLoader(split.inputs, split.labels, augment=config.augment, **order)
        order |= {"image_size": config.image_size, "channels": config.channels, "workers": config.workers}
        order |= {"left_out": self.skipping(len(split.labels))}
        view = None if config.streamed else WholeView(config.image_size)
        return FolderLoader(split.inputs, split.labels, decode=config.decode, view=view, **order)

    def evaluation(self, split: Split) -> Loader:
        return self.make(split, batch_size=self.eval_batch_size)


def _divided(
    source: Source, config: DatasetConfig, loaders: _Loaders, announce: bool, only: str | None = None
) -> Source:
    """The splits after the hold-out. With `only`, files of the others may stay files."""
    held_out = _held_out(source, config)
    _check_facts(source, held_out, config)
    if config.name in FOLDERS and not config.streamed:
        source = _in_memory(source, config, held_out, loaders, announce, only)
    if held_out is None:  # else without the copy that taking all of them is
        return source
    train, held = (source.train.take(chosen.nonzero()[:, 0]) for chosen in (~held_out, held_out))
    return replace(source, train=train, val=held) if source.test else replace(source, train=train, test=held)


def check_options(config: DatasetConfig) -> None:
    """Refuse what `build_data` would refuse whatever the data and the device are.

    Raises:
        UserError: a value that does not exist, does not fit the others, or has no effect with them.
    """
    name, augment, channels, decode = config.name, config.augment, config.channels, config.decode
    check_numbers(config)
    if not all(std > 0 for std in config.std):
        raise UserError(f"dataset.std={config.std} must be positive")
    if config.val_images < 0:
        raise UserError(f"dataset.val_images={config.val_images} must not be negative")
    if isinstance(config.val_images, float) and not config.val_images < 1:
        raise UserError(
            f"dataset.val_images={config.val_images} is no fraction below 1: set a number of images without a decimal "
            "point, or a fraction such as 0.1"
        )
    if decode not in DECODERS:
        raise UserError(f"dataset.decode={decode} does not exist: choose among {', '.join(DECODERS)}")
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}: set dataset.name to one of {', '.join(sorted(DATASETS))}")
    if augment not in AUGMENTATIONS:
        raise UserError(f"unknown dataset.augment={augment}: set one of {', '.join(AUGMENTATIONS)}")
    if config.streamed and name not in FOLDERS:
        raise UserError(f"dataset.augment={augment} reads image folders, not {name}: set dataset.augment=crop_flip")
    if channels not in (1, 3):
        raise UserError(f"dataset.channels={channels} is not supported: set dataset.channels=1 or 3")
    for key in ("mean", "std"):
        if (count := len(getattr(config, key))) != channels:
            raise UserError(
                f"dataset.{key} has {count} numbers but dataset.channels={channels}: set dataset.mean and "
                "dataset.std to one number per channel"
            )
    if decode == "gpu" and not config.streamed:
        raise UserError(f"dataset.decode=gpu has no effect with dataset.augment={augment}: set dataset.decode=cpu")
    if decode == "gpu" and channels != 3:
        raise UserError(f"dataset.decode=gpu gives RGB, not dataset.channels={channels}: set dataset.decode=cpu")
    if config.on_error not in ON_ERROR:
        raise UserError(f"dataset.on_error={config.on_error} does not exist: choose among {', '.join(ON_ERROR)}")
    if config.changed not in CHANGED:
        raise UserError(f"dataset.changed={config.changed} does not exist: choose among {', '.join(CHANGED)}")
    if config.on_error == "skip" and name not in FOLDERS:
        raise UserError(f"dataset.on_error=skip has no effect with {name}: set dataset.on_error=stop")
    if config.on_error == "skip" and decode == "gpu":
        raise UserError(
            "dataset.on_error=skip needs files that are decoded where they are read: set dataset.decode=cpu, or "
            "dataset.on_error=stop"
        )
    if config.cache is not None and (config.streamed or name not in FOLDERS):
        what = f"dataset.augment={augment}" if config.streamed else name
        raise UserError(f"dataset.cache={config.cache} has no effect with {what}: set dataset.cache=null")
    if config.download and name not in DOWNLOADED:
        raise UserError(f"dataset.download=true has no effect on {name}: set dataset.download=false")
    if config.root is not None and name in MADE_HERE:
        raise UserError(f"dataset.root={config.root} has no effect on {name}: set dataset.root=null")


def dataset_facts(config: DatasetConfig) -> Facts:
    """The sizes that the configuration gives; those that it leaves out are counted in the folder. No image is opened.

    Raises:
        UserError: a size left out for a dataset that is no image folder, a validation set that takes all training
            images, or nothing to test on.
        UserError, DataError: as `scan_tree`.
    """
    counted: dict[str, int] = {}
    tested_on_held_out = False
    if config.name in FOLDERS and None in (config.classes, config.train_images, config.test_images):
        listings = scan_tree(config.root)
        counted = {f"{use}_images": len(listing) for use, listing in listings.items()}
        counted["classes"] = len(listings["train"].classes)
        tested_on_held_out = "test" not in listings
    classes, train_images = (required(config, key, counted.get(key)) for key in ("classes", "train_images"))
    if tested_on_held_out:
        _check_held_out_for_testing(config)
    held_out = held_out_count(config.val_images, train_images)
    if tested_on_held_out:
        return Facts(classes, train_images - held_out, 0, held_out)
    test_images = required(config, "test_images", counted.get("test_images"))
    return Facts(classes, train_images - held_out, held_out, test_images)


def folders_used(config: DatasetConfig) -> dict[str, Path]:
    """The folders of an image tree by use: "train", perhaps "test" and "val"; none for other datasets.

    Without "test", the images that are held out of "train" are tested on.
    """
    return split_folders(config.root) if config.name in FOLDERS and config.root is not None else {}


def data_warnings(config: DatasetConfig) -> list[str]:
    """What is odd in an image tree but does not keep it from being trained on: class folders without images."""
    empty = {str(folder): empty_classes(folder) for folder in folders_used(config).values()}
    return [f"no images in {folder} of {named(classes)}" for folder, classes in empty.items() if classes]


def _check_held_out_for_testing(config: DatasetConfig) -> None:
    """Refuse an image tree without a test folder where nothing is held out of it, or another test set is promised."""
    where = f"dataset.root={config.root} has no val/ or test/ folder"
    if not config.val_images:
        raise UserError(
            f"{where}: set dataset.val_images=0.1 to hold out a tenth of each class and test on it, or give it such a "
            "folder"
        )
    if config.test_images is not None:
        raise DataError(f"{where} for dataset.test_images={config.test_images}: set dataset.test_images=null")


def _held_out(source: Source, config: DatasetConfig) -> torch.Tensor | None:
    """Which training images are held out: bool [N]; None: none of them."""
    if source.val is not None and config.val_images:
        raise UserError(
            f"dataset.val_images={config.val_images} but {config.root} has a val/ folder for that: set it to 0"
        )
    if source.test is None:
        _check_held_out_for_testing(config)
    labels = source.train.labels
    count = held_out_count(config.val_images, len(labels))
    if not count:
        return None
    return draw_held_out(labels, count, stratified=isinstance(config.val_images, float) or source.test is None)


def _check_facts(source: Source, held_out: torch.Tensor | None, config: DatasetConfig) -> None:
    """Refuse data that are not what the configuration says, all differences in one message."""
    tested = source.train.labels[held_out] if source.test is None else source.test.labels
    found = {
        "classes": (len(source.classes), "classes"),
        "train_images": (len(source.train.labels), "training images"),
        "test_images": (len(tested), "test images"),
    }
    if isinstance(source.train.inputs, np.ndarray):  # files: converted to the wanted channels and size
        found["classes"] = len(source.classes), "class folders"
    else:
        _, channels, _, width = source.train.inputs.shape
        found |= {"channels": (channels, "channels"), "image_size": (width, "pixels a side")}
    odd = [key for key, (value, _) in found.items() if getattr(config, key) not in (None, value)]
    if odd:
        raise DataError(
            f"{' '.join(f'dataset.{key}={getattr(config, key)}' for key in odd)} but "
            f"{config.root if config.name in FOLDERS else config.name} has "
            f"{', '.join(f'{found[key][0]} {found[key][1]}' for key in odd)}: "
            f"set {' '.join(f'dataset.{key}={found[key][0]}' for key in odd)}"
        )


def _in_memory(
    source: Source,
    config: DatasetConfig,
    held_out: torch.Tensor | None,
    loaders: _Loaders,
    announce: bool,
    only: str | None,
) -> Source:
    """An image folder with pixels in place of its file names; with `only`, of what is needed for that split."""
    splits = {use: split for use in ("train", "val", "test") if (split := getattr(source, use))}
    if only:
        splits = {use: split for use, split in splits.items() if use == (only if only in splits else "train")}
    copied = 0 if held_out is None or "train" not in splits else len(held_out)
    check_memory(sum(len(split.labels) for split in splits.values()), copied, config, loaders.device)

    def decoded(split: Split) -> Split:
        assert isinstance(split.inputs, np.ndarray)
        left_out = loaders.skipping(len(split.labels))
        pixels = decode_once(split.inputs, config, announce, left_out)
        if not left_out:
            return Split(pixels, split.labels)
        readable = torch.tensor([path not in left_out.errors for path in split.inputs])
        return Split(pixels, split.labels, readable)

    pixels: dict[str, Any] = {use: decoded(split) for use, split in splits.items()}
    return replace(source, **pixels)
