"""MNN, a runtime for phones and CPUs whose kernels for unstructured zeros are faster than dense ones."""

import struct
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.export import ExportedProgram

from st3.deploy.card import Card
from st3.deploy.formats.format import Format, Network, StoredWeight
from st3.deploy.formats.mnn_clock import cpu_options, output_aside, slower_when_sparse
from st3.deploy.formats.mnn_file import stored_weights, tune
from st3.deploy.formats.onnx import ONNX
from st3.errors import UserError, one_line


class MNN(Format):
    """Made from an ONNX file. Layers of more than 60 % zeros are stored without them, and computed by sparse kernels.

    The converter is called as a function. Its command, mnnconvert, is not: that installs a package by pip and reports
    the conversion to its makers.

    Args:
        tune: give a layer back to the dense kernels where these are faster, for one image on one thread of this
            machine. Many zeros are not always enough: for 3×3 convolutions MNN has fast dense kernels (Winograd).
    """

    name: ClassVar = "mnn"
    file: ClassVar = "model.mnn"
    packages: ClassVar = (*ONNX.packages, ("MNN", "MNN"), ("flatbuffers", "flatbuffers"))
    extra: ClassVar = "mnn"

    def __init__(self, tune: bool = False):
        super().__init__()
        self._tune = tune

    def write(self, program: ExportedProgram, card: Card, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source, dense = Path(folder, ONNX.file), Path(folder, "dense.mnn")
            ONNX().write(program, card, source)
            convert(source, path)
            if self._tune:
                convert(source, dense, sparse=False)
                pixels = np.random.default_rng(0).random(
                    (1, card.channels, card.image_size, card.image_size), np.float32
                )
                tune(dense, path, path, slower_when_sparse(dense, path, pixels))
        path.with_name("classes.txt").write_text("".join(f"{label}\n" for label in card.classes), encoding="utf-8")

    def open(self, path: Path, threads: int = 1) -> Network:
        with output_aside():
            import MNN.expr as expr
            import MNN.nn as runtime

            manager = runtime.create_runtime_manager((cpu_options(threads),))
            network = runtime.load_module_from_file(str(path), ["pixels"], ["logits"], runtime_manager=manager)

        def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            logits = network.forward([expr.const(pixels, pixels.shape, expr.NCHW)])
            return np.array(logits[0].read())

        return run

    def weights(self, path: Path) -> list[StoredWeight]:
        try:
            return list(stored_weights(path))
        except (struct.error, IndexError, ValueError, TypeError) as error:
            raise UserError(f"{path.name} is damaged, or of a version of MNN that st3 cannot read") from error


def convert(source: Path, path: Path, sparse: bool = True) -> None:
    """An ONNX file to an MNN file; without `sparse` all zeros are stored, and all layers computed by dense kernels.

    Raises `UserError`, with what the converter says, where it fails.
    """
    with output_aside() as said:
        import _tools  # of the package MNN

        detect = ["--detectSparseSpeedUp"] if sparse else []
        files = ["--modelFile", str(source), "--MNNModel", str(path)]
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *files, "--bizCode", "st3", *detect])
    if not path.exists():
        wrong = [line for line in said() if "rror" in line or "not support" in line.lower()]
        raise UserError(f"MNN's converter made no file: {one_line(' '.join(wrong or said()[-2:]))}")
