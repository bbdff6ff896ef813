"""Files that survive a crash while they are written, and that hold no code."""

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from safetensors.torch import save
from torch import Tensor

from st3.errors import DamagedError, DiskError, UserError
from st3.plain_files import check_stored, opened

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_atomically(path: Path, write: Callable[[Path], object], size: int | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, sync it to disk, then rename: `path` is whole at any moment.

    It is replaced where it is a link. Two processes may write the same file: the last to end wins. `size` is about how
    many bytes that will be. Raises `DiskError` where it cannot be written; what was written of it is removed then, so
    that it does not keep the disk full.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}{PARTIAL}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error, size) from error
        raise


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


def save_picture(path: Path, figure: "Figure") -> None:
    """A PNG. Raises `DiskError`."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


PARTIAL = ".partial"
"""How the names of files end that are being written."""


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
    return DiskError(f"cannot write {path}: {reason}; the same command continues then")


def save_checkpoint(path: Path, state: dict) -> None:
    """Write tensors and plain data. Raises `DiskError`."""

    def write(temporary: Path) -> None:
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
        except RuntimeError as error:  # PyTorch's own, about what the file has said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_atomically(path, write, tensor_bytes(state))


def tensor_bytes(state: object) -> int:
    """Of the tensors in nested dictionaries and lists."""
    if isinstance(state, Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(tensor_bytes, parts))


def load_checkpoint(path: Path) -> dict:
    """Read what `save_checkpoint` wrote, onto the CPU; nothing but tensors and plain data is accepted.

    Raises `DamagedError`.
    """
    try:
        with opened(path) as file:
            check_stored(file)
            with zipfile.ZipFile(file) as archive:
                if damaged := archive.testzip():  # torch.load does not look at the checksums
                    raise zipfile.BadZipFile(f"{damaged} is damaged")
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except UserError as error:  # which says which file
        raise DamagedError(str(error)) from error
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DamagedError(f"cannot read {path} ({reason})") from error
    if not isinstance(state, dict):
        raise DamagedError(f"cannot read {path}: it holds no state of a training")
    return state


def save_network(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state dict as safetensors, the same bytes for the same content. Raises `DiskError`.

    Shared weights are written once per name, all tensors contiguous.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    content = _in_order(save(tensors, dict(metadata)))
    write_atomically(path, lambda temporary: temporary.write_bytes(content), len(content))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its header sorted: the library writes the metadata in an order of chance.

    The first 8 bytes are the length of the header, which is JSON and padded with spaces; offsets count from its end.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def save_json(path: Path, value: object, ascii_only: bool = False) -> None:
    """Write readable JSON. Raises `DiskError`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=ascii_only) + "\n")
