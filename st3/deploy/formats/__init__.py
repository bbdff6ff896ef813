"""The kinds of files that a network is exported to. Each is a `Format` of its own file."""

from collections.abc import Callable

from st3.deploy.formats.coreml import CoreML
from st3.deploy.formats.format import Format, Network, StoredWeight
from st3.deploy.formats.mnn import MNN
from st3.deploy.formats.onnx import ONNX
from st3.deploy.formats.torch import Torch

FORMATS: dict[str, Callable[[], Format]] = {"onnx": ONNX, "mnn": MNN, "torch": Torch, "coreml": CoreML}

__all__ = ["FORMATS", "MNN", "Format", "Network", "StoredWeight"]
