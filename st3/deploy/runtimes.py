"""The runtimes in which `st3 bench` times a network, each with the network dense and sparse."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from st3.deploy.formats.format import Network, missing, quiet
from st3.deploy.formats.mnn import MNN, convert
from st3.deploy.formats.mnn_clock import slower_when_sparse
from st3.deploy.formats.mnn_file import tune
from st3.deploy.formats.onnx import ONNX
from st3.deploy.network import Trained
from st3.deploy.pixel_program import PixelNetwork, pixel_program
from st3.errors import UserError, one_line

DENSE, SPARSE = "dense", "sparse"


@dataclass
class Contender:
    """A network in a runtime, dense or sparse."""

    runtime: str
    kind: str
    """dense: every zero is replaced by a small number, so that there is none to skip; or sparse: as it is."""
    network: Network
    cpu: list[float] = field(default_factory=list)
    """Milliseconds of process time of a call, in each round: of all threads together, without other programs'."""
    wall: list[float] = field(default_factory=list)
    """Milliseconds that passed."""


@dataclass(frozen=True)
class Files:
    """One network in the files that runtimes read."""

    dense_onnx: Path
    sparse_onnx: Path
    dense_mnn: Path | None
    """None without MNN."""
    sparse_mnn: Path | None
    mnn_error: str = ""
    """Why the network did not convert to MNN."""

    @classmethod
    def make(cls, trained: Trained, folder: Path) -> "Files":
        """Into `folder`. Raises `UserError` where ONNX is not installed, or the network does not convert to it."""
        sparse, dense = folder / "sparse.onnx", folder / "dense.onnx"
        ONNX().write(pixel_program(trained), trained.card, sparse)
        edit_weights(sparse, dense, without_zeros)
        if missing(MNN.packages):
            return cls(dense, sparse, None, None)
        made = folder / "dense.mnn", folder / "sparse.mnn"
        try:
            convert(dense, made[0], sparse=False)
            convert(sparse, made[1])
        except UserError as error:
            return cls(dense, sparse, None, None, str(error))
        return cls(dense, sparse, *made)


class Runtime:
    """A runtime as `st3 bench` knows it."""

    name: ClassVar[str]
    packages: ClassVar[Sequence[tuple[str, str]]] = ()
    extra: ClassVar[str] = ""

    def open(self, trained: Trained, files: Files, kind: str, threads: int) -> Network:
        """The network, dense or sparse, on as many CPU threads. Raises `UserError` where it cannot be had."""
        raise NotImplementedError

    def absent(self) -> str:
        """What is not installed, and how it is; empty where all is there."""
        gone = missing(self.packages)
        return f"{', '.join(gone)} is not installed: pip install 'st3[{self.extra}]'" if gone else ""

    def versions(self) -> dict[str, str]:
        return {package: version(package) for package, _ in self.packages}


class Eager(Runtime):
    name = "PyTorch"
    packages = (("torch", "torch"),)

    def open(self, trained: Trained, files: Files, kind: str, threads: int) -> Network:
        module = self.prepare(_pixel_network(trained, kind))

        def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.no_grad():
                return module(torch.from_numpy(pixels)).numpy()

        return run

    def prepare(self, module: nn.Module) -> nn.Module:
        return module


class Compiled(Eager):
    name = "PyTorch, compiled"

    def prepare(self, module: nn.Module) -> nn.Module:
        module.compile(dynamic=False)
        return module


class OnnxRuntime(Runtime):
    name = "ONNX Runtime"
    packages = (("onnxruntime", "onnxruntime"),)
    extra = "export"

    def open(self, trained: Trained, files: Files, kind: str, threads: int) -> Network:
        return ONNX().open(files.dense_onnx if kind == DENSE else files.sparse_onnx, threads)


class OpenVINO(Runtime):
    name = "OpenVINO"
    packages = (("openvino", "openvino"),)
    extra = "openvino"

    def open(self, trained: Trained, files: Files, kind: str, threads: int) -> Network:
        import openvino

        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        model = core.compile_model(files.dense_onnx if kind == DENSE else files.sparse_onnx, "CPU", options)
        request = model.create_infer_request()

        def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            return request.infer([pixels])[0]

        return run


class MnnRuntime(Runtime):
    name = "MNN"
    packages = (("MNN", "MNN"), ("flatbuffers", "flatbuffers"))
    extra = "mnn"

    def open(self, trained: Trained, files: Files, kind: str, threads: int) -> Network:
        path = files.dense_mnn if kind == DENSE else files.sparse_mnn
        if path is None:
            raise UserError(files.mnn_error)
        return MNN().open(path, threads)


RUNTIMES: tuple[Runtime, ...] = (Eager(), Compiled(), OnnxRuntime(), OpenVINO(), MnnRuntime())
TUNED = "MNN, tuned"
"""MNN with kernels chosen as by `st3 export --format mnn --tune`, but for this batch and these threads."""


def contenders(
    trained: Trained, files: Files, threads: int, pixels: NDArray[np.float32], runtimes: Sequence[Runtime]
) -> Iterator[Contender | tuple[str, str]]:
    """Each runtime with the network dense, then sparse, after a first call with `pixels`; or its name and why not."""
    for runtime in runtimes:
        if reason := runtime.absent():
            yield runtime.name, reason
            continue
        try:
            with quiet():
                kinds = {kind: runtime.open(trained, files, kind, threads) for kind in (DENSE, SPARSE)}
                for network in kinds.values():
                    network(pixels)
        except Exception as error:  # whatever a compiler or a runtime raises; the others are still worth timing
            yield runtime.name, one_line(error)
        else:
            yield from (Contender(runtime.name, kind, network) for kind, network in kinds.items())
    if files.sparse_mnn and any(isinstance(each, MnnRuntime) for each in runtimes):
        tuned = files.sparse_mnn.with_name("tuned.mnn")
        try:
            convert(files.sparse_onnx, tuned, sparse=False)  # the zeros in dense kernels
            tune(tuned, files.sparse_mnn, tuned, slower_when_sparse(tuned, files.sparse_mnn, pixels, threads))
            network = MNN().open(tuned, threads)
        except Exception as error:  # as above
            yield TUNED, one_line(error)
        else:
            yield Contender(TUNED, SPARSE, network)


def edit_weights(source: Path, target: Path, change: Callable[[NDArray], NDArray]) -> None:
    """Write the ONNX file `source` with the weights of its convolutions and matrix products as `change` gives them."""
    import onnx

    model = onnx.load(source)
    weights = {name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul") for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in weights and len(tensor.dims) > 1:  # one dimension: a bias
            changed = change(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))
    onnx.save(model, target)


def without_zeros(values: NDArray) -> NDArray:
    """A copy in which numbers a hundred times smaller than the others stand where there were zeros."""
    noise = np.random.default_rng(0).uniform(0.5, 1.0, values.shape).astype(values.dtype)
    scale = np.abs(values[values != 0]).mean() / 100 if values.any() else 1e-3
    return np.where(values == 0, noise * values.dtype.type(scale), values)


def runtime_versions() -> dict[str, str]:
    """Of the packages of all runtimes that are installed."""
    found: dict[str, Any] = {}
    for runtime in RUNTIMES:
        for package, _ in runtime.packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
    return found


def _pixel_network(trained: Trained, kind: str) -> nn.Module:
    model = copy.deepcopy(trained.model)
    if kind == DENSE:
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.copy_(torch.from_numpy(without_zeros(parameter.detach().numpy())))
    return PixelNetwork(model, trained.card).eval()
