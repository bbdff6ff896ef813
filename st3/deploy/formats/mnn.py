"""MNN, a runtime for phones and CPUs whose kernels for unstructured zeros are faster than dense ones."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.export import ExportedProgram

from st3.deploy.card import Card
from st3.deploy.formats.format import Format, Network, StoredWeight, one_line
from st3.deploy.formats.onnx import ONNX
from st3.errors import UserError


class MNN(Format):
    """Made from an ONNX file. Layers with many zeros are stored without them, and computed by sparse kernels.

    The converter is called as a function. Its command, mnnconvert, is not: that installs a package by pip and reports
    the conversion to its makers.
    """

    name: ClassVar = "mnn"
    file: ClassVar = "model.mnn"
    packages: ClassVar = (*ONNX.packages, ("MNN", "MNN"), ("flatbuffers", "flatbuffers"))
    extra: ClassVar = "mnn"

    def write(self, program: ExportedProgram, card: Card, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, ONNX.file)
            ONNX().write(program, card, source)
            convert(source, path)
        path.with_name("classes.txt").write_text("".join(f"{label}\n" for label in card.classes), encoding="utf-8")

    def open(self, path: Path, threads: int = 1) -> Network:
        with output_aside():
            import MNN.expr as expr
            import MNN.nn as runtime

            # "high" is float32, as everywhere else.
            manager = runtime.create_runtime_manager(
                ({"backend": "CPU", "precision": "high", "numThread": threads},)
            )  # fmt: skip
            network = runtime.load_module_from_file(str(path), ["pixels"], ["logits"], runtime_manager=manager)

        def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            logits = network.forward([expr.const(pixels, pixels.shape, expr.NCHW)])
            return np.array(logits[0].read())

        return run

    def weights(self, path: Path) -> list[StoredWeight]:
        return list(_stored(path))


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


@contextlib.contextmanager
def output_aside() -> Iterator:
    """What C++ code writes to the process's own stdout and stderr goes to a file; yields what gives its lines."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(file.fileno(), number)

        def lines() -> list[str]:
            file.seek(0)
            return file.read().decode(errors="replace").splitlines()

        try:
            yield lines
        finally:
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


# The file, by the field numbers of MNN's schema (schema/default/MNN.fbs, CaffeOp.fbs and Tensor.fbs of its repository).
_NET_OPS = 3
_OP_KIND, _OP_CONTENT = 1, 2
_CONVOLUTION, _BLOB = 9, 7  # kinds
_WEIGHT, _COMPRESSED = 1, 3  # of a convolution
_VALUES, _SIZE, _PLACES = 1, 12, 13  # of a compressed weight
_FLOATS = 7  # of a blob


def _stored(path: Path) -> Iterator[StoredWeight]:
    from flatbuffers.number_types import Int32Flags, Uint8Flags
    from flatbuffers.table import Table

    content = bytearray(path.read_bytes())

    def slot(field: int) -> int:
        return 4 + 2 * field

    def inner(table: Table, field: int) -> Table | None:
        at = table.Offset(slot(field))
        return Table(content, table.Indirect(at + table.Pos)) if at else None

    def numbers(table: Table, field: int) -> NDArray | None:
        at = table.Offset(slot(field))
        return np.frombuffer(content, "<f4", table.VectorLen(at), table.Vector(at)) if at else None

    net = Table(content, int.from_bytes(content[:4], "little"))
    ops = net.Offset(slot(_NET_OPS))
    for number in range(net.VectorLen(ops)):
        op = Table(content, net.Indirect(net.Vector(ops) + 4 * number))
        kind, main = op.GetSlot(slot(_OP_KIND), 0, Uint8Flags), inner(op, _OP_CONTENT)
        if main is None or kind not in (_CONVOLUTION, _BLOB):
            continue
        values = numbers(main, _WEIGHT if kind == _CONVOLUTION else _FLOATS)
        if values is not None and values.size:
            yield StoredWeight.of(values)
        elif kind == _CONVOLUTION and (compressed := inner(main, _COMPRESSED)):
            kept = numbers(compressed, _VALUES)
            if kept is not None and compressed.Offset(slot(_PLACES)):
                size = compressed.GetSlot(slot(_SIZE), 0, Int32Flags)
                yield StoredWeight(size, np.sort(kept[kept != 0]), sparse=True)
