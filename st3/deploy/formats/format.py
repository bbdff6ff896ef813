"""What every format of exported files can do."""

import contextlib
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.export import ExportedProgram

from st3.deploy.card import Card
from st3.errors import UserError

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A network in a runtime: pixels [B, C, H, W] in [0, 1], contiguous → logits [B, classes]."""


@dataclass(frozen=True)
class StoredWeight:
    """A tensor of numbers in a file, whatever its shape there."""

    size: int
    nonzero: NDArray
    """Those that are not zero, in ascending order."""
    sparse: bool = False
    """Whether zeros are left out, so that the runtime computes with the others only."""

    @classmethod
    def of(cls, values: NDArray) -> "StoredWeight":
        """A tensor that is stored with its zeros."""
        return cls(values.size, np.sort(values[values != 0], axis=None))

    @property
    def zeros(self) -> int:
        return self.size - self.nonzero.size

    def is_of(self, values: NDArray) -> bool:
        """Whether it holds the numbers of a layer's weight, in any order, as exactly as its own type can."""
        rounded = values.astype(self.nonzero.dtype)
        return self.size == rounded.size and np.array_equal(self.nonzero, np.sort(rounded[rounded != 0], axis=None))


class Format(ABC):
    """A kind of file for a kind of runtime. Making one says, by `UserError`, what is not installed."""

    name: ClassVar[str]
    file: ClassVar[str]
    """What the file is called in the folder of an export; a path that some runtimes take for a folder."""
    packages: ClassVar[Sequence[tuple[str, str]]] = ()
    """What it needs beyond PyTorch: (distribution, module)."""
    extra: ClassVar[str] = ""
    """Installs them: pip install 'st3[EXTRA]'."""
    runs_here: ClassVar[bool] = True
    """Whether this machine can run such a file."""

    def __init__(self) -> None:
        if gone := missing(self.packages):
            raise UserError(f"{self.name} files need {', '.join(gone)}: pip install 'st3[{self.extra}]'")

    def versions(self) -> dict[str, str]:
        """Of PyTorch and all that wrote and ran the file."""
        return {package: version(package) for package in ("torch", *(package for package, _ in self.packages))}

    @abstractmethod
    def write(self, program: ExportedProgram, card: Card, path: Path) -> None:
        """Write what `pixel_program` made. Raises `UserError` where the network has what the format has not."""

    @abstractmethod
    def open(self, path: Path, threads: int = 1) -> Network:
        """The network in a file, ready to run on as many CPU threads."""

    @abstractmethod
    def weights(self, path: Path) -> list[StoredWeight]:
        """Every tensor in a file that may be a layer's weight."""


def missing(packages: Sequence[tuple[str, str]]) -> list[str]:
    """The distributions whose module is not there."""
    return [package for package, module in packages if find_spec(module) is None]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Converters that print and warn about what is none of the user's business do not."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
