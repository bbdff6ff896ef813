"""Measured times of a network's layers on one device, as `method.times` names them: a JSON file.

{"format": 1, "runtime": "MNN 3.6.1", "device": "AMD EPYC 9V74", "threads": 1, "batch": 1,
 "model": "resnet20", "input": [3, 32, 32], "date": "2026-11-28",
 "layers": {"conv1": {"weights": 432, "dense_ms": 0.021, "base_ms": 0.004, "ms_per_weight": 6.1e-05}, …}}
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from st3.errors import UserError
from st3.measure.layers import LayerRow
from st3.plain_files import read_json
from st3.sparsify import LayerTimes
from st3.whole_files import save_json

FORMAT = 1
"""Of the file; others are refused."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """What was measured, where, and of which network."""

    runtime: str
    """What executed the layers, with its version."""
    device: str
    threads: int
    batch: int
    """Images at a time; the times are of them together."""
    model: str
    """The network's name, as model.name has it."""
    input: tuple[int, int, int]
    """Channels, height and width of an image."""
    date: str
    layers: Mapping[str, LayerTimes]
    """By the names of `weight_layers`."""

    @classmethod
    def read(cls, path: Path) -> "Times":
        """Raises `UserError`, in one line that names the file, for one that is missing or not as `write` leaves it;
        `DamagedError` for one that is no JSON."""
        content = read_json(path)
        try:
            return cls._of(content)
        except UserError as error:
            raise UserError(f"{path} cannot be used: {error}") from None

    @classmethod
    def _of(cls, content: Any) -> "Times":
        node = _node(content, "it", {"format": int})
        if node["format"] != FORMAT:
            raise UserError(f"its format is {node['format']}, not {FORMAT}: measure again with this version")
        kinds = {each.name: str if each.type is str else int for each in fields(cls)}
        node = _node(content, "it", kinds | {"input": list, "layers": dict})
        size = node["input"]
        if len(size) != 3 or not all(_is(int, each) and each > 0 for each in size):
            raise UserError(f"input={size} is not channels, height and width")
        for name in ("threads", "batch"):
            if node[name] < 1:
                raise UserError(f"{name}={node[name]} must be at least 1")
        layers = {}
        for name, layer in node["layers"].items():
            numbers = _node(layer, name, {each.name: each.type for each in fields(LayerTimes)})
            try:
                layers[name] = LayerTimes(**numbers)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        return cls(**node | {"input": tuple(size), "layers": layers})

    def write(self, path: Path) -> None:
        """Raises `DiskError`."""
        save_json(path, {"format": FORMAT, **asdict(self)})

    def check(self, model: str, image: tuple[int, int, int]) -> None:
        """Raises `UserError` where they are of another network, or of images of another size: channels, height, width.

        Whether they have its layers is for `Sparsifier` to see, which knows those that are pruned.
        """
        if self.model != model:
            raise UserError(f"has times of model.name={self.model}, not {model}: measure this network")
        if self.input != image:
            theirs, ours = ("×".join(map(str, each)) for each in (self.input, image))
            raise UserError(
                f"has times of images of {theirs}, not {ours}: measure with these, or set dataset.image_size"
            )

    def modelled_ms(self, rows: Sequence[LayerRow]) -> tuple[float, float]:
        """Milliseconds of the pruned layers among `rows`: with dense kernels, and with the zeros that they have."""
        pruned = [(self.layers[row.name], row.params - row.zeros) for row in rows if row.pruned]
        return math.fsum(layer.dense_ms for layer, _ in pruned), math.fsum(layer.ms(left) for layer, left in pruned)

    @property
    def source(self) -> str:
        """Where they were measured, in words."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.runtime}, {self.device}, {threads}, batch {self.batch}, {self.date}"


def _is(kind: type, value: Any) -> bool:
    """Of that kind; a whole number is a float, too, and a truth value is no number."""
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _node(content: Any, name: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What `content` has of these kinds. Raises `UserError`, which calls it `name`, where that is not all there."""
    if not isinstance(content, dict):
        raise UserError(f"{name} is not an object")
    for key, kind in kinds.items():
        if key not in content:
            raise UserError(f"{name} has no {key}")
        if not _is(kind, content[key]):
            raise UserError(f"{name} has {key}={json.dumps(content[key])}, which is of another type")
    return {key: content[key] for key in kinds}
