"""What the fused kernels compile to, counted without a GPU: a Markdown table, a row for each launch of a projection.

    python scripts/kernel_counts.py [--models resnet20,resnet50] [--kernels FILE]

The kernels are compiled for compute capability 9.0 with the Triton at hand, for the weights of each model; the tools
that come with Triton say what is in the binary. `--kernels` counts another version of `st3/sparsify/kernels.py`.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # to compile, before Triton is imported

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

from st3.models import build_model
from st3.sparsify import kernels, weight_layers
from st3.sparsify.flat_weights import FlatWeights

TARGET = GPUTarget("cuda", 90, 32)
PROCESSORS = 132
"""Of an H100."""
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.int32: "i32", torch.int64: "i64"}
CLASSES = {"resnet50": (1000, 224)}
"""Classes and image size, where they are not those of CIFAR-10."""
COLUMNS = ["launch", "programs", "SASS lines", "registers", "shared bytes", "spilled bytes", "instructions per weight"]


class Recorder:
    """Stands in for a kernel: notes what it is launched with."""

    def __init__(self, kernel: Any, launches: list):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int]):
        return lambda *args, **options: self.launches.append((self.kernel, grid[0], args, options))


def launches(module: ModuleType, model: str) -> list[tuple[Any, int, tuple, dict[str, Any]]]:
    """(kernel, programs, arguments, constants and options) of each launch of ST-3's projection on an H100."""
    classes, size = CLASSES.get(model, (10, 32))
    with torch.device("meta"):
        weights = list(weight_layers(build_model(model, classes=classes, image_size=size)).values())
    recorded: list = []
    tables = module.Kernels(FlatWeights(weights), weights, [1.0] * len(weights))
    tables._programs *= PROCESSORS  # made for one
    originals = {name: each for name, each in vars(module).items() if isinstance(each, triton.JITFunction)}
    vars(module).update({name: Recorder(each, recorded) for name, each in originals.items()})
    try:
        tables._launch(torch.empty((), dtype=torch.float64), True, True)
    finally:
        vars(module).update(originals)
    return recorded


def compiled(kernel: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
    """The kernel as Triton compiles it for these arguments."""
    constants = {name: value for name, value in options.items() if name in kernel.arg_names}
    signature, attributes = dict.fromkeys(constants, "constexpr"), {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        signature[name] = f"*{TYPES[value.dtype]}" if isinstance(value, Tensor) else "i32"
        if isinstance(value, Tensor) or value % 16 == 0:  # memory as PyTorch allocates it
            attributes[(place,)] = CUDABackend.parse_attr("D")
    source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constants, attributes)
    return triton.compile(source, TARGET, {name: each for name, each in options.items() if name not in constants})


def counts(binary: Any, at_once: int) -> list[int | str]:
    """Lines, registers, shared and spilled bytes; instructions in the longest loop for each of `at_once` weights."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        said = [
            subprocess.run([TOOLS / "cuobjdump", way, file.name], check=True, capture_output=True, text=True).stdout
            for way in ("-res-usage", "-sass")
        ]
    usage = {name: int(value) for name, value in re.findall(r"(REG|SHARED|STACK|LOCAL):(\d+)", said[0])}
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", said[1])]
    back = [(int(to, 16), at) for at, text in lines for to in re.findall(r"BRA\S* .*?(0x[0-9a-f]+)", text)]
    longest = max((sum(to <= at <= end for at, _ in lines) for to, end in back if to < end), default=0)
    per_weight = f"{longest / at_once:.1f}" if longest else "–"
    spilled = sum(text.count("STL") + text.count("LDL") for _, text in lines) and usage["STACK"]
    return [len(lines), usage["REG"], binary.metadata.shared, spilled, per_weight]


def rows(module: ModuleType, model: str) -> Iterator[list[int | str]]:
    """What stands in the table below COLUMNS."""
    for kernel, programs, args, options in launches(module, model):
        binary = compiled(kernel, args, options)
        at_once = options.get("CHUNK", options.get("BLOCK", 0)) // (32 * binary.metadata.num_warps)
        name = kernel.__name__.strip("_") + (f" {options['PASS']}" if "PASS" in options else "")
        yield [name, programs, *counts(binary, at_once)]


def other(file: str) -> ModuleType:
    """Another version of the kernels."""
    spec = importlib.util.spec_from_file_location("other_kernels", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet20,resnet50")
    parser.add_argument("--kernels", metavar="FILE")
    typed = parser.parse_args(args)
    module = other(typed.kernels) if typed.kernels else kernels
    print(f"Triton {triton.__version__}, compute capability 9.0\n")
    for line in (["model", *COLUMNS], ["---"] * (1 + len(COLUMNS))):
        print(f"| {' | '.join(line)} |")
    for model in typed.models.split(","):
        for row in rows(module, model):
            print(f"| {model} | {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
