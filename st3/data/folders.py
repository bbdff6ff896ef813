"""Image folders ROOT/SPLIT/CLASS/FILE or ROOT/CLASS/FILE: their splits, classes and files. No file is opened."""

import os
from collections.abc import Mapping
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import is_image_file

from st3.errors import DataError, UserError

SPLITS = "train", "val", "test"


class Listing(ImageFolder):
    """One split, listed: `.classes`, `.samples`, `.targets`, in sorted order. A class folder may be empty."""

    def __init__(self, folder: Path):
        super().__init__(folder, allow_empty=True)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The class folders, and their numbers."""
        classes = class_folders(Path(directory))
        return classes, {label: number for number, label in enumerate(classes)}


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; without hidden ones, such as .ipynb_checkpoints."""
    if not folder.is_dir():
        return []
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def split_folders(root: str | None) -> dict[str, Path]:
    """The folders of an image tree by use: "train", and "test" and "val" where there is one for it.

    Where only one of root/val and root/test exists, it is the test folder. Where both do, they are what their names
    say, unless test/ has none of the class folders of val/ (ImageNet's test images have no labels): then val/ is the
    test folder and test/ is not used. Where neither exists, there is only "train": root/train, or without that root
    itself, with one folder per class; what is tested on is then held out of it.

    Raises:
        UserError: no root.
        DataError: no such folders in it.
    """
    if root is None:
        raise UserError(
            "dataset.root=DIR is needed: the folder that holds train/ and val/ or test/, or one folder per class"
        )
    train, val, test = (Path(root, name) for name in SPLITS)
    wanted = "train/CLASS/FILE and val/CLASS/FILE or test/CLASS/FILE, or with CLASS/FILE"
    if not train.is_dir():
        mistake = ""
        if not Path(root).is_dir():
            mistake = "is no folder"
        elif val.is_dir() or test.is_dir():
            mistake = "has no train/ folder"
        elif not any(_has_files(Path(root, label)) for label in class_folders(Path(root))):
            mistake = "has neither train/ nor CLASS/FILE"  # training/ with folders in it is no class
        if mistake:
            raise DataError(f"dataset.root={root} {mistake}: set dataset.root=DIR with {wanted}")
        return {"train": Path(root)}
    if not val.is_dir():
        return {"train": train, "test": test} if test.is_dir() else {"train": train}
    if set(class_folders(val)) & set(class_folders(test)):
        return {"train": train, "val": val, "test": test}
    return {"train": train, "test": val}


def evaluation_folder(root: Path, split: str) -> Path:
    """The folder CLASS/FILE that holds the "train", "val" or "test" images of any tree below `root`.

    As `split_folders` where there is a train/. Without one, ROOT/SPLIT, or for "test" ROOT/val; a tree without any
    split is meant as a whole.

    Raises:
        UserError: no folder for this split.
        DataError: `root` is no folder.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder: give the one that holds the images in class folders")
    if (root / "train").is_dir():
        found = split_folders(str(root))
    else:
        found = {name: root / name for name in SPLITS if (root / name).is_dir()}
        if "val" in found and "test" not in found:
            found["test"] = found["val"]
    if found and split not in found:
        raise UserError(f"{root} has no folder for {split}: choose {' or '.join(found)}")
    return found.get(split, root)


def scan(folder: Path) -> Listing:
    """List one split without opening a file.

    Raises:
        DataError: no class folder, or no image file in any of them.
    """
    listing = Listing(folder) if class_folders(folder) else None
    if not listing or not listing.samples:
        raise DataError(f"{folder} has no image files in class folders: set dataset.root=DIR")
    return listing


def scan_tree(root: str | None) -> dict[str, Listing]:
    """Listings of an image tree by use, as `split_folders`.

    Raises:
        UserError, DataError: as `split_folders` and `scan`.
        DataError: the splits hold different classes.
    """
    splits = {use: scan(folder) for use, folder in split_folders(root).items()}
    folders = {str(listing.root): listing.classes for listing in splits.values()}
    if differences := class_differences(folders):
        raise DataError(
            f"the splits hold different classes: {'; '.join(differences)}: give all the same class folders (an empty "
            "one is allowed) or set dataset.root=DIR"
        )
    return splits


def class_differences(splits: Mapping[str, list[str]]) -> list[str]:
    """A clause for each split that lacks classes of another one, with their names: "DIR/val has no c, d"."""
    every = sorted({label for classes in splits.values() for label in classes})
    lacking = {name: [label for label in every if label not in classes] for name, classes in splits.items()}
    return [f"{name} has no {named(labels)}" for name, labels in lacking.items() if labels]


def named(names: list[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def empty_classes(folder: Path) -> list[str]:
    """Class folders of one split without an image file."""
    return [label for label in class_folders(folder) if not _has_images(folder / label)]


def _has_images(folder: Path) -> bool:
    """Whether there is one, in it or in folders below; reads no more of a full folder than it must."""
    walk = os.walk(folder, followlinks=True)
    return any(is_image_file(name) for _, _, files in walk for name in files)


def _has_files(folder: Path) -> bool:
    return any(is_image_file(each.name) for each in folder.iterdir() if each.is_file())
