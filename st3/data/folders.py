"""Image folders ROOT/SPLIT/CLASS/FILE: which splits there are, and their files. No file is opened."""

from pathlib import Path

from torchvision.datasets import ImageFolder

from st3.errors import UserError


def split_folders(root: str | None) -> dict[str, Path]:
    """The folders of an image tree by use, "train" and "test", and "val" where there is one for it.

    Where only one of root/val and root/test exists, it is the test folder. Where both do, they are what their names
    say, unless test/ lacks the class folders of val/ (ImageNet's test images have no labels): then val/ is the test
    folder and test/ is not used.

    Raises:
        UserError: no root, or one of the folders is missing.
    """
    if root is None:
        raise UserError("dataset.root=DIR is needed: the folder that holds train/ and val/ or test/")
    train, val, test = (Path(root, name) for name in ("train", "val", "test"))
    for missing, name in ((not train.is_dir(), "train/"), (not val.is_dir() and not test.is_dir(), "val/ or test/")):
        if missing:
            raise UserError(
                f"dataset.root={root} has no {name} folder; set dataset.root=DIR with train/CLASS/FILE and "
                "val/CLASS/FILE or test/CLASS/FILE"
            )

    def classes(folder: Path) -> list[str]:
        return sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []

    if classes(val) and classes(val) == classes(test):
        return {"train": train, "val": val, "test": test}
    return {"train": train, "test": val if val.is_dir() else test}


def scan(folder: Path) -> ImageFolder:
    """List one split without opening a file: `.classes`, `.samples`, `.targets`, in sorted order.

    Raises:
        UserError: no class folder, or a class folder without image files.
    """
    try:
        return ImageFolder(folder)
    except FileNotFoundError as error:
        raise UserError(f"{error} ({folder}): remove empty class folders or set dataset.root=DIR") from None


def scan_tree(root: str | None) -> dict[str, ImageFolder]:
    """Listings of an image tree by use, as `split_folders`.

    Raises:
        UserError: as `split_folders` and `scan`, or the splits hold other classes.
    """
    splits = {use: scan(folder) for use, folder in split_folders(root).items()}
    train, test = splits["train"], splits["test"]
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise UserError(
            f"{train.root} and {test.root} hold other classes ({', '.join(odd[:5])}): "
            "give both the same class folders or set dataset.root=DIR"
        )
    return splits
