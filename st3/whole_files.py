"""Files that are whole at any moment: written beside their place, synced to disk, then renamed."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from st3.errors import DiskError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTIAL = ".partial"
"""How the names of files end that are being written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to be filled, which takes its place when all went well, and is gone otherwise.

    `path` is replaced where it is a link. Two processes may write the same file: the last to end wins. Raises
    `OSError`, as the system has it.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}{PARTIAL}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:  # what has been written of it must not keep the disk full
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, write: Callable[[Path], object], size: int | None = None) -> None:
    """Let `write` fill the file that takes the place of `path`. `size` is about how many bytes that will be.

    Raises `DiskError` where it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            write(temporary)
    except OSError as error:
        raise cannot_write(path, error, size) from error


def write_text(path: Path, text: str) -> None:
    """A whole file of UTF-8, its line ends as they are. Raises `DiskError`."""
    content = text.encode()
    write_atomically(path, lambda temporary: temporary.write_bytes(content), len(content))


def write_named(path: Path, text: str) -> None:
    """The same for a file that somebody has named: a link is followed, and what is no file is written to as it is,
    such as /dev/stdout. Raises `DiskError`.
    """
    if path.exists() and not path.is_file():
        try:
            path.write_bytes(text.encode())
        except OSError as error:
            raise cannot_write(path, error) from error
    else:
        write_text(path.resolve() if path.is_symlink() else path, text)


def save_json(path: Path, value: object, ascii_only: bool = False) -> None:
    """Write readable JSON. Raises `DiskError`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=ascii_only) + "\n")


def save_picture(path: Path, figure: "Figure") -> None:
    """A PNG. Raises `DiskError`."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def sync_folder(folder: Path) -> None:
    """To disk; a rename lives in the folder."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def cannot_write(path: Path, error: OSError, size: int | None = None) -> DiskError:
    """What to say of a file of about `size` bytes that could not be written."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            reason += f": {shutil.disk_usage(path.parent).free / 1e6:,.1f} MB are free there"
        reason += f", about {size / 1e6:,.1f} MB are needed" if size else ""
        reason += ". Make room"
    else:
        reason += ". See to it that it can be written"
    return DiskError(f"cannot write {path}: {reason}, then give the same command again")
