"""A look at a few files of each class, so that damaged data are found before training."""

from concurrent.futures import ThreadPoolExecutor

from st3.data.config import DatasetConfig
from st3.data.datasets import FOLDERS
from st3.data.folders import Listing, scan_tree
from st3.data.images import UnreadableImageError, opened, parsed
from st3.data.limits import check_unread
from st3.errors import DataError

EACH, AT_MOST = 3, 3000
"""Files of a class, and of a split; where there are very many classes, fewer of each, at least one."""


def probe(config: DatasetConfig) -> None:
    """Decode a few files of each class and split of an image tree, spread over its listing.

    Of data sets that are fetched only the folder is looked for. Does nothing without a root, and with
    `on_error="skip"`, where a few damaged files are expected.

    Raises:
        UserError, DataError: as `check_unread` and `scan_tree`.
        DataError: files that cannot be read, the first one by its path.
    """
    check_unread(config)
    if config.name not in FOLDERS or config.root is None or config.on_error == "skip":
        return
    paths = [path for listing in scan_tree(config.root).values() for path in _spread(listing)]
    with ThreadPoolExecutor() as pool:  # threads are enough: Pillow decodes without Python's lock
        errors = [error for error in pool.map(_error, paths) if error]
    if errors:
        raise DataError(
            f"{errors[0]} ({len(errors):,} of {len(paths):,} files that were tried cannot be read; st3 check "
            f"{config.root} tries all, dataset.on_error=skip leaves out a few)"
        )


def _spread(listing: Listing) -> list[str]:
    """The paths to try: the first, the last and one between, of each class that has as many."""
    members: dict[int, list[str]] = {}
    for path, label in listing.samples:
        members.setdefault(label, []).append(path)
    each = max(1, min(EACH, AT_MOST // len(members)))
    places = [place / max(1, each - 1) for place in range(each)]
    return [
        paths[index]
        for paths in members.values()
        for index in sorted({round(place * (len(paths) - 1)) for place in places})
    ]


def _error(path: str) -> str | None:
    try:
        with opened(path) as file, parsed(file) as image:
            image.load()
    except UnreadableImageError as error:
        return str(error)
    return None
