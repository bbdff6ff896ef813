"""Single image files: what may be opened, and how what cannot be read is named."""

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from st3.data.workers import reading
from st3.errors import DataError, one_line
from st3.settings import printable

FORMATS = "JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP"
"""Those that the extensions of an image folder name. Some of Pillow's others start programs (EPS: ghostscript)."""

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip

_filters = threading.Lock()
"""Python's warning filters are those of all threads."""


class UnreadableImageError(DataError):
    """An image file that cannot be read."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"cannot read image {printable(path)}: {reason}; remove or replace the file")
        self.path = path
        self.reason = reason


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Whatever goes wrong in reading an image becomes an `UnreadableImageError`, which names its file."""
    try:
        yield
    except Exception as error:  # Pillow's decoders raise a dozen types
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UnreadableImageError(path, reason) from None


@contextmanager
def opened(path: str) -> Iterator[BufferedReader]:
    """The file at `path`; what is none (a FIFO, a device) is not opened, because that may never end.

    Raises:
        UnreadableImageError: for whatever goes wrong, within the context, too.
    """
    with naming(path), reading(path):
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind != stat.S_IFREG:
            raise ValueError(f"it is {_KINDS.get(kind, 'something else')}, not a file")
        with open(path, "rb") as file:
            yield file


def parsed(file: BinaryIO) -> Image.Image:
    """The image in an open file; its header is read, no pixel is decoded.

    Raises:
        Exception: of a dozen types, for what is no image of `FORMATS` or has more pixels than Pillow takes for safe.
    """
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            what = f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image" if file.seek(0, os.SEEK_END) else "empty file"
            raise ValueError(what) from None


def mode_of(channels: int) -> str:
    """Pillow's name for images of so many channels."""
    return "L" if channels == 1 else "RGB"


def read_image(path: str, mode: str) -> Image.Image:
    """The image in a file, decoded and converted to `mode`.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    with opened(path) as file, parsed(file) as image:
        return image.convert(mode)
