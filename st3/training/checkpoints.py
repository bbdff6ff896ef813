"""The files of tensors: checkpoints, and networks as safetensors. They hold no code."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import save
from torch import Tensor

from st3.errors import DamagedError, UserError
from st3.plain_files import check_stored, opened
from st3.whole_files import write_atomically


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
