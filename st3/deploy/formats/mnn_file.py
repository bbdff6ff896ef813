"""Inside an MNN file, by the field numbers of its schema (schema/default/MNN.fbs and CaffeOp.fbs of MNN)."""

import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st3.deploy.formats.format import StoredWeight

# Fields: of the network, of an operation,
_OPS = 3
_KIND, _CONTENT, _NAME, _TYPE = 1, 2, 3, 5
# of a convolution, of its weight where zeros are left out, of a constant.
_WEIGHT, _COMPRESSED, _SPARSE = 1, 3, 5
_VALUES, _SIZE, _PLACES = 1, 12, 13
_FLOATS = 7

_CONVOLUTION, _CONSTANT = 9, 7
"""Kinds of operations' contents."""
_DEPTHWISE = 13
"""A type of operation with a convolution's content: a depth-wise one, for which MNN has dense kernels only."""


def stored_weights(path: Path) -> Iterator[StoredWeight]:
    """Every weight of a convolution, and every constant, in the file."""
    from flatbuffers.number_types import Int32Flags

    content = bytearray(path.read_bytes())
    for kind, _, main in _operations(content):
        values = _floats(content, main, _FLOATS if kind == _CONSTANT else _WEIGHT)
        if values is not None and values.size:
            yield StoredWeight.of(values)
        elif kind != _CONSTANT and (compressed := _inner(content, main, _COMPRESSED)):
            kept = _floats(content, compressed, _VALUES)
            if kept is not None and compressed.Offset(_slot(_PLACES)):
                size = compressed.GetSlot(_slot(_SIZE), 0, Int32Flags)
                yield StoredWeight(size, np.sort(kept[kept != 0]), sparse=kind == _CONVOLUTION)


def sparse_layers(path: Path) -> set[str]:
    """Names of the convolutions whose zeros are skipped."""
    content = bytearray(path.read_bytes())
    return {
        name for kind, name, main in _operations(content) if kind == _CONVOLUTION and main.Offset(_slot(_COMPRESSED))
    }


def tune(dense: Path, sparse: Path, target: Path, layers: Collection[str]) -> None:
    """Write the file `sparse` as `target`, in which `layers` (names of operations) have their weights as in `dense`.

    Both are of the same network. MNN's converter chooses by the number of zeros alone. A table of such a file says by
    a small table of offsets which fields it has; each layer is given one of its own, at the end of the file, that has
    a dense weight and no sparse one.
    """
    source = bytearray(dense.read_bytes())
    weights = {name: _floats(source, main, _WEIGHT) for kind, name, main in _operations(source) if kind == _CONVOLUTION}
    content = bytearray(sparse.read_bytes())
    changed = bytearray(content)

    def append(more: bytes) -> int:
        changed.extend(bytes(-len(changed) % 4))
        changed.extend(more)
        return len(changed) - len(more)

    for kind, name, main in _operations(content):
        if kind != _CONVOLUTION or name not in layers or not main.Offset(_slot(_COMPRESSED)):
            continue
        values = weights[name]
        assert values is not None
        offsets = main.Pos - struct.unpack_from("<i", content, main.Pos)[0]
        table = bytearray(content[offsets : offsets + struct.unpack_from("<H", content, offsets)[0]])
        place = main.Offset(_slot(_COMPRESSED))  # in which the table keeps where its weight is
        for field, offset in ((_WEIGHT, place), (_COMPRESSED, 0), (_SPARSE, 0)):
            struct.pack_into("<H", table, _slot(field), offset)
        struct.pack_into("<i", changed, main.Pos, main.Pos - append(bytes(table)))
        vector = append(struct.pack("<I", values.size) + values.tobytes())
        struct.pack_into("<I", changed, main.Pos + place, vector - (main.Pos + place))
    target.write_bytes(changed)


def _operations(content: bytearray) -> Iterator[tuple[int, str, Any]]:
    """Kind (of depth-wise convolutions `_DEPTHWISE`), name and content of those that may have weights."""
    from flatbuffers.number_types import Int32Flags, Uint8Flags
    from flatbuffers.table import Table

    net = Table(content, int.from_bytes(content[:4], "little"))
    ops = net.Offset(_slot(_OPS))
    for number in range(net.VectorLen(ops)):
        op = Table(content, net.Indirect(net.Vector(ops) + 4 * number))
        kind, main = op.GetSlot(_slot(_KIND), 0, Uint8Flags), _inner(content, op, _CONTENT)
        if main is not None and kind in (_CONVOLUTION, _CONSTANT):
            if kind == _CONVOLUTION and op.GetSlot(_slot(_TYPE), 0, Int32Flags) == _DEPTHWISE:
                kind = _DEPTHWISE
            yield kind, op.String(op.Offset(_slot(_NAME)) + op.Pos).decode(), main


def _inner(content: bytearray, table: Any, field: int) -> Any:
    from flatbuffers.table import Table

    at = table.Offset(_slot(field))
    return Table(content, table.Indirect(at + table.Pos)) if at else None


def _floats(content: bytearray, table: Any, field: int) -> NDArray[np.float32] | None:
    at = table.Offset(_slot(field))
    return np.frombuffer(content, "<f4", table.VectorLen(at), table.Vector(at)).copy() if at else None


def _slot(field: int) -> int:
    """Where a table of offsets has a field: after two numbers of its own."""
    return 4 + 2 * field
