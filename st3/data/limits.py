"""What the numbers of a data set can be, whatever the data are."""

from pathlib import Path
from typing import NamedTuple

from st3.data.config import DatasetConfig
from st3.data.datasets import DOWNLOADED
from st3.errors import DataError, UserError

LIMITS = {
    "classes": (1, 10**6),
    "image_size": (1, 10_000),
    "train_images": (1, 10**9),
    "test_images": (1, 10**9),
    "workers": (0, 1000),
}
"""Setting → the least and the most."""


class _Known(NamedTuple):
    classes: int
    image_size: int
    train_images: int
    test_images: int


KNOWN = {
    "cifar10": _Known(10, 32, 50_000, 10_000),
    "cifar100": _Known(100, 32, 50_000, 10_000),
    "mnist": _Known(10, 28, 60_000, 10_000),
    "fashion_mnist": _Known(10, 28, 60_000, 10_000),
    "fashion_mnist_embedded": _Known(10, 28, 8_000, 2_000),
}
"""Data sets that are the same everywhere."""


def check_numbers(config: DatasetConfig) -> None:
    """Raises `UserError`, naming the setting, for a number that cannot be."""
    for key, (least, most) in LIMITS.items():
        value = getattr(config, key)
        if value is not None and not least <= value <= most:
            raise UserError(f"dataset.{key}={value} must be at least {least} and at most {most}")


def check_unread(config: DatasetConfig) -> None:
    """What reading the data would find, as far as it is known without: for a dry run.

    Raises:
        UserError: sizes that are not those of a well-known data set.
        DataError: the data set is not at `root`, and is not to be fetched, or cannot be fetched into it.
    """
    known = KNOWN[config.name]._asdict() if config.name in KNOWN else {}
    if odd := [key for key, value in known.items() if getattr(config, key) not in (None, value)]:
        raise UserError(
            f"{' '.join(f'dataset.{key}={getattr(config, key)}' for key in odd)} is not what {config.name} has: set "
            f"{' '.join(f'dataset.{key}={known[key]}' for key in odd)}"
        )
    if config.name not in DOWNLOADED or config.root is None:
        return
    root = Path(config.root)
    if root.exists() and not root.is_dir():
        raise DataError(f"dataset.root={config.root} is a file: name a folder")
    if not config.download and not (root.is_dir() and any(root.iterdir())):
        raise DataError(
            f"no {config.name} in dataset.root={config.root}: put its files there, or set dataset.download=true"
        )
