"""Files that survive a crash while they are written, and that hold no code."""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import save
from torch import Tensor

from st3.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it to disk, then rename: `path` is whole at any moment."""
    temporary = path.with_name(f".{path.name}.partial")
    write(temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":  # the rename itself lives in the directory
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def save_checkpoint(path: Path, state: dict) -> None:
    """Write tensors and plain data."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path) -> dict:
    """Read what `save_checkpoint` wrote, onto the CPU; nothing but tensors and plain data is accepted.

    Raises `UserError` when the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not look at the checksums
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"cannot read {path} ({reason}): remove it, or choose another run_dir") from error


def save_network(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state dict as safetensors. Shared weights are written once per name, all tensors contiguous."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    content = save(tensors, dict(metadata))
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def save_json(path: Path, value: object) -> None:
    """Write readable JSON."""
    content = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
