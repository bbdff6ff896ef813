"""How long MNN takes for each operation of a network."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st3.measure.timing import rotation

SHORT = 0.02
"""Seconds: rounds of a faster network run it several times."""


def operation_times(
    files: Mapping[str, Path], pixels: NDArray[np.float32], threads: int = 1, rounds: int = 7
) -> dict[str, dict[str, float]]:
    """Name of a file → name of an operation → median process time in ms for a batch of `pixels` [B, C, H, W].

    The files take turns.
    """
    clocks = {name: _Clock(path, pixels, threads) for name, path in files.items()}
    for clock in rotation(list(clocks.values()), rounds):
        clock.measure()
    return {name: clock.medians() for name, clock in clocks.items()}


def slower_when_sparse(dense: Path, sparse: Path, pixels: NDArray[np.float32], threads: int = 1) -> set[str]:
    """Operations that take longer in the file `sparse` than in `dense`."""
    found = operation_times({"dense": dense, "sparse": sparse}, pixels, threads)
    return {name for name, ms in found["sparse"].items() if ms > found["dense"].get(name, ms)}


def cpu_options(threads: int) -> dict[str, Any]:
    """For MNN; its precision "high" is float32, as everywhere else."""
    return {"backend": "CPU", "precision": "high", "numThread": threads}


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


class _Clock:
    """Times every operation of an MNN file."""

    def __init__(self, path: Path, pixels: NDArray[np.float32], threads: int):
        with output_aside():
            import MNN

            self._net = MNN.Interpreter(str(path))
            self._session = self._net.createSession(cpu_options(threads))
            given = self._net.getSessionInput(self._session)
            self._net.resizeTensor(given, pixels.shape)
            self._net.resizeSession(self._session)
            values = MNN.Tensor(pixels.shape, MNN.Halide_Type_Float, pixels, MNN.Tensor_DimensionType_Caffe)
            given.copyFrom(values)
            self._net.runSession(self._session)
        begin = time.perf_counter()
        self._net.runSession(self._session)
        self._calls = 1 + int(SHORT / max(time.perf_counter() - begin, 1e-3))
        self._seconds: dict[str, list[float]] = {}
        self._began = 0.0

    def measure(self) -> None:
        """One round."""

        def begin(_: Sequence[Any], __: Any) -> bool:
            self._began = time.process_time()
            return True

        def end(_: Sequence[Any], op: Any) -> bool:
            self._seconds.setdefault(op.getName(), []).append(time.process_time() - self._began)
            return True

        for _ in range(self._calls):
            self._net.runSessionWithCallBackInfo(self._session, begin, end)

    def medians(self) -> dict[str, float]:
        return {name: 1e3 * float(np.median(seconds)) for name, seconds in self._seconds.items()}
