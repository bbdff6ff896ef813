"""Everything that can be wrong with an image tree, found by reading each of its files once."""

import hashlib
import itertools
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from st3.data.folders import SPLITS, Listing, class_differences, class_folders, empty_classes
from st3.data.images import UnreadableImageError, opened, parsed
from st3.data.workers import Batches
from st3.errors import DataError
from st3.settings import printable

AT_ONCE = 16
"""Files that a worker reads before it hands over what it has found."""
USUAL = 0.9
"""Where as many images have one size, the others are odd."""
FACTOR, ASPECT = 4, 5
"""Else those are whose shorter side is so many times below or above the median, or below their own longer side."""


@dataclass(frozen=True)
class Examined:
    """One image file, read whole."""

    name: str
    """Its path below the root."""
    split: str
    """Empty where the tree has none."""
    label: str
    """The class."""
    digest: bytes = b""
    """Hash of the file's content."""
    error: str = ""
    """Why it cannot be read."""
    size: tuple[int, int] = (0, 0)
    """Width, height."""
    mode: str = ""
    """Pillow's: RGB, L (grey), …"""


@dataclass(frozen=True)
class Check:
    """What was found in an image tree: each a list of lines, empty where all is well."""

    images: int
    splits: dict[str, int]
    """Images of each split; the name is empty where there are none."""
    classes: int
    """Class folders of all splits together."""
    findings: dict[str, list[str]] = field(default_factory=dict)
    """By kind: damaged, odd size, odd mode, duplicate, classes, empty."""

    @property
    def found(self) -> bool:
        """Whether there is anything that harms a training; colour modes are converted."""
        return any(lines for kind, lines in self.findings.items() if kind != "odd mode")


def check_folder(
    root: Path, workers: int = 0, progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None
) -> Check:
    """Read every image below `root`: ROOT/train, val and test where any is there, else ROOT/CLASS/FILE.

    Args:
        workers: processes that read; 0: this one does.
        progress: gets the images as they come and how many there will be, and hands them on.

    Raises:
        DataError: no such folder, or no image in it; a worker that died or stopped, see `Batches`.
    """
    if not root.is_dir():
        raise DataError(
            f"{root} is no folder: give the one that holds train/ and val/ or test/, or one folder per class"
        )
    # a folder without class folders is ImageNet's unlabelled test/: nothing is trained or tested on it
    folders = {name: root / name for name in SPLITS if class_folders(root / name)} or {"": root}
    listings = {name: Listing(folder) for name, folder in folders.items() if class_folders(folder)}
    files = [
        (path, split, listing.classes[target])
        for split, listing in listings.items()
        for path, target in listing.samples
    ]
    if not files:
        raise DataError(f"{root} has no images in SPLIT/CLASS/FILE or CLASS/FILE: give the folder that has")
    chunks = [range(start, min(start + AT_ONCE, len(files))) for start in range(0, len(files), AT_ONCE)]
    results = itertools.chain.from_iterable(Batches(_Files(root, files), chunks, workers=workers))
    examined: list[Examined] = list(progress(results, len(files)) if progress else results)
    readable = [image for image in examined if not image.error]
    classes = {name: listing.classes for name, listing in listings.items()}
    return Check(
        images=len(files),
        splits={name: len(listing) for name, listing in listings.items()},
        classes=len({label for labels in classes.values() for label in labels}),
        findings={
            "damaged": [f"{image.name}: {image.error}" for image in examined if image.error],
            "odd size": odd_sizes(readable),
            "odd mode": odd_modes(readable),
            "duplicate": duplicates(examined),
            "classes": class_differences({f"{name}/": labels for name, labels in classes.items()}),
            "empty": [f"{Path(name, label)}/" for name in listings for label in empty_classes(folders[name])],
        },
    )


class _Files(Dataset):
    """Maps a range of numbers to the files, examined."""

    def __init__(self, root: Path, files: Sequence[tuple[str, str, str]]):
        self.root, self.files = root, files

    def __getitem__(self, numbers: range) -> list[Examined]:
        return [examine(self.root, self.files[number]) for number in numbers]


def examine(root: Path, file: tuple[str, str, str]) -> Examined:
    """Read and decode one (path, split, class)."""
    path, split, label = file
    found = partial(Examined, printable(Path(path).relative_to(root).as_posix()), split, label)
    try:
        with opened(path) as content, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd but reads, training reads, too
            found = partial(found, hashlib.file_digest(content, partial(hashlib.blake2b, digest_size=16)).digest())
            with parsed(content) as image:
                image.load()
                return found(size=image.size, mode=image.mode)
    except UnreadableImageError as error:
        return found(error=error.reason)


def odd_sizes(images: Sequence[Examined]) -> list[str]:
    """A line for each image of a size that does not fit the others'; see `USUAL` and `FACTOR`."""
    if not images:
        return []
    (usual, count), *_ = Counter(image.size for image in images).most_common(1)
    if count >= USUAL * len(images):
        what = f"most are {usual[0]}×{usual[1]}"
        odd = [image for image in images if image.size != usual]
    else:
        middle = statistics.median(min(image.size) for image in images)
        what = f"the median of the shorter side is {middle:g}"
        odd = [
            image
            for image in images
            if not middle / FACTOR <= min(image.size) <= middle * FACTOR or max(image.size) > ASPECT * min(image.size)
        ]
    return [f"{image.name}: {image.size[0]}×{image.size[1]}, {what}" for image in odd]


def odd_modes(images: Sequence[Examined]) -> list[str]:
    """A line for each image of another mode than most have."""
    counts = Counter(image.mode for image in images)
    return [
        f"{image.name}: {image.mode}, most are {usual}"
        for usual, _ in counts.most_common(1)
        for image in images
        if image.mode != usual
    ]


def duplicates(images: Sequence[Examined]) -> list[str]:
    """A line for each content that lies in several splits (tested on what was trained on) or in several classes.

    In a tree without splits any two places count, because one may be held out and the other trained on.
    """
    places = defaultdict(list)
    for image in images:
        if image.digest:
            places[image.digest].append(image)
    return [
        " = ".join(image.name for image in same)
        for same in places.values()
        if len(same) > 1 and (not same[0].split or len({(image.split, image.label) for image in same}) > 1)
    ]
