"""Weights to start from: published ones, those in a file, and how they are put into a network."""

import gzip
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO
from urllib.error import URLError

import torch
import torchvision.models as zoo
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn

from st3.errors import DamagedError, UserError, one_line
from st3.models.config import ModelConfig
from st3.models.external import torchvision_names
from st3.models.registry import is_own
from st3.plain_files import check_stored, opened
from st3.settings import shown
from st3.sparsify import weight_layers

State = dict[str, Tensor]
FEW = 4
"""Names that a message lists before it only counts."""


def check_published(config: ModelConfig) -> None:
    """Raises `UserError` for a network of which neither torchvision nor timm publishes weights. Downloads nothing."""
    name = config.name
    if name.startswith("timm/") and not is_own(name):
        return  # timm says so itself
    if is_own(name) or name not in torchvision_names() or not list(zoo.get_model_weights(name)):
        raise UserError(
            f"model.weights=pretrained: nobody publishes weights of {name}: give a file, a run, or another model"
        )


def published(config: ModelConfig, *, channels: int, image_size: int) -> State:
    """The state dict that torchvision or timm publishes, from their cache or the internet.

    Raises `UserError` where there is none, or it cannot be had.
    """
    check_published(config)
    try:
        if config.name.startswith("timm/"):
            import timm

            name = config.name.removeprefix("timm/")
            sized = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
            options: dict[str, Any] = {"img_size": image_size} if sized else {}
            return dict(timm.create_model(name, pretrained=True, in_chans=channels, **options).state_dict())
        state = zoo.get_model(config.name, weights="DEFAULT").state_dict()
    except (OSError, URLError, RuntimeError) as error:  # the last is what both raise for what they do not have
        raise UserError(
            f"model.weights=pretrained: the weights of {config.name} cannot be had ({one_line(error)}): connect to "
            "the internet once, or give a file"
        ) from error
    return {key: value for key, value in state.items() if not key.startswith(("AuxLogits.", "aux1.", "aux2."))}


_OF_PICKLES = LookupError, TypeError, AttributeError
"""What reading a damaged one also raises."""
OPTION = "model.weights="
"""What messages put before the name of a file: how it is typed to start a training from it."""


def read_file(path: Path, option: str = OPTION) -> State:
    """The state dict in a `.safetensors` file, packed by gzip or not, or in what `torch.save` wrote; never code.

    A state dict below `model` or `state_dict` is found there, and names that begin with `module.` lose that. Raises
    `UserError` for a file that is something else.
    """
    try:
        with opened(path) as file:
            if path.suffix == ".safetensors":
                _header(file)
                return load_file(path)
            if is_packed(path):
                return load(_unpacked(file))
            check_stored(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except UnpicklingError as error:
        raise DamagedError(f"{option}{path} holds more than tensors, or is damaged: give a state dict") from error
    except (*_OF_PICKLES, OSError, EOFError, ValueError, RuntimeError, SafetensorError, zlib.error) as error:
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise DamagedError(f"{option}{path} cannot be read ({reason}): give a .safetensors or .pt file") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(map(torch.is_tensor, content.values())):
        raise DamagedError(f"{option}{path} holds no state dict: save model.state_dict()")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def is_packed(path: Path) -> bool:
    """Whether the file is called as one that `st3 export --pack` writes."""
    return path.name.endswith(".safetensors.gz")


_LONGEST_HEADER = 10**7
"""Bytes; that of a network of a thousand layers has some hundred thousand."""
_MOST_PACKED = 1100
"""Bytes that gzip can pack into one, and some more."""


def read_header(path: Path) -> tuple[dict[str, str], State]:
    """What a `.safetensors` file, packed or not, says of itself, and its tensors on "meta": none of them is read.

    Other files have nothing. Raises `UserError` for one that cannot be read, `DamagedError` for a damaged one.
    """
    if path.suffix != ".safetensors" and not is_packed(path):
        return {}, {}
    try:
        with opened(path) as file:
            header, _ = _header(gzip.GzipFile(fileobj=file) if is_packed(path) else file)
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        return metadata, {name: torch.empty(each["shape"], device="meta") for name, each in header.items()}
    except UserError:
        raise
    except (*_OF_PICKLES, OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        raise DamagedError(f"{path} is no safetensors file, or damaged ({one_line(error)}): give another") from error


def _header(file: BinaryIO | gzip.GzipFile) -> tuple[dict[str, Any], int]:
    """That of a safetensors file, and how many bytes the file has in all. Raises ValueError and the like."""
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its header has {length:,} bytes")
    header = json.loads(file.read(length))
    last = 0
    for name, each in header.items():
        if name == "__metadata__":
            continue
        begin, end = each["data_offsets"]
        bits = int("".join(filter(str.isdecimal, each["dtype"].partition("_")[0])) or 8)  # BOOL has a byte
        if not 0 <= begin <= end or 8 * (end - begin) != bits * math.prod(each["shape"]):
            raise ValueError(f"{name} cannot lie from {begin} to {end}")
        last = max(last, end)
    return header, 8 + length + last


def _unpacked(file: BinaryIO) -> bytes:
    """All of a packed file, but not more than its header says, and no more than fits into it. Raises as `_header`."""
    packed = gzip.GzipFile(fileobj=file)
    _, size = _header(packed)
    if size > _MOST_PACKED * os.fstat(file.fileno()).st_size:
        raise ValueError(f"it cannot hold the {size:,} bytes that its header says")
    packed.seek(0)
    content = packed.read(size + 1)
    if len(content) != size:
        raise ValueError(f"it does not hold the {size:,} bytes that its header says")
    return content


def put(model: nn.Module, values: Mapping[str, Tensor], source: str, option: str = OPTION) -> str:
    """Load `values` into `model`. A head for other classes stays as it is; its name is returned, else an empty one.

    The head is the last Conv2d or Linear layer. Numbers of batches, which some files leave out, stay 0. On meta only
    names and shapes are compared. Raises `UserError` that lists what else does not fit.
    """
    own = model.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in values and name not in counters]
    unknown = [name for name in values if name not in own]
    other = [name for name in own if name in values and values[name].shape != own[name].shape]
    head = list(weight_layers(model))[-1]
    of_head = {f"{head}.weight", f"{head}.bias"}
    # Classes differ, and nothing but the classes.
    replaced = bool(other) and of_head.issuperset(other) and all(own[n].shape[1:] == values[n].shape[1:] for n in other)
    if missing or unknown or (other and not replaced):
        shapes = [f"{name} is {_shape(values[name])} there and {_shape(own[name])} here" for name in other]
        parts = [f"lacks {_some(missing)}" if missing else "", f"also has {_some(unknown)}" if unknown else ""]
        parts.append(_some(shapes))
        raise UserError(f"{option}{source} does not fit the network: {'; '.join(filter(None, parts))}")
    fitting = {name: value for name, value in values.items() if not (replaced and name in of_head)}
    if not next(model.parameters()).is_meta:
        model.load_state_dict(fitting, strict=False)
    return head if replaced else ""


def _shape(tensor: Tensor) -> str:
    return shown("×".join(map(str, tensor.shape))) or "a number"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(map(shown, names[:FEW])) + more
