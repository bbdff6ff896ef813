"""Write a finished run's network to a file for another runtime, and check the file before it is called written.

The file takes pixels in [0, 1] and gives logits, for a batch of any size; BatchNorm is folded into the layers, the
normalization is inside. It has been run on real images, one at a time and four together, and agrees with PyTorch
within 1e-4 of the largest logit; the zeros of every layer have been counted in it. Otherwise there is one line that
says what is wrong, and no file. export.json beside it says what was measured.

  onnx     model.onnx, for ONNX Runtime, OpenVINO and many others      pip install 'st3[export]'
  mnn      model.mnn, for MNN, whose sparse kernels use the zeros      pip install 'st3[mnn]'
  torch    model.pt2, a program that PyTorch runs without st3
  coreml   model.mlpackage, for Apple's devices; not run here          pip install 'st3[coreml]'

examples:
  st3 export RUN                          RUN/export/onnx/model.onnx
  st3 export RUN --format mnn             RUN/export/mnn/model.mnn
  st3 export RUN --format mnn --tune      the same; sparse kernels only where they are faster on this machine
  st3 export FILE.safetensors --out DIR   DIR/model.onnx
  st3 export RUN --pack                   RUN/export/pack/model.safetensors.gz, which st3 loads as it is
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from st3.errors import UserError

if TYPE_CHECKING:
    from st3.deploy.exporting import Exported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be typed after `st3 export`."""
    parser.add_argument("network", metavar="RUN", type=Path, help="the folder of a finished run, or model.safetensors")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--format", choices=("onnx", "mnn", "torch", "coreml"), default="onnx", help="default: onnx")
    kind.add_argument("--pack", action="store_true", help="model.safetensors packed by gzip, bit for bit the same")
    parser.add_argument(
        "--tune", action="store_true", help="mnn: keep the dense kernels where they are faster on this machine"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the new folder (default: RUN/export/FORMAT)")


def run(options: argparse.Namespace) -> int:
    """The exit code. Raises `UserError`."""
    import torch

    from st3.deploy.exporting import export, pack
    from st3.deploy.formats import FORMATS, MNN
    from st3.deploy.network import find_network, load_trained

    if options.tune and (options.pack or options.format != "mnn"):
        raise UserError("--tune chooses MNN's kernels: write it with --format mnn")
    source = find_network(options.network)
    if options.out is None and not options.network.is_dir():
        raise UserError(f"{options.network} is a file: say with --out DIR where to write")
    folder = options.out or source.parent / "export" / ("pack" if options.pack else options.format)
    if options.pack:
        before, after, path = pack(source, folder)
        print(f"written    {path}: {before / 1e6:.2f} MB → {after / 1e6:.2f} MB")
        return 0
    kind = MNN(tune=True) if options.tune else FORMATS[options.format]()
    exported = export(load_trained(source, torch.device("cpu")), kind, folder)
    print(describe(exported, folder))
    return 0


def describe(exported: "Exported", folder: Path) -> str:
    """What was written, in words."""
    layers = exported.layers
    sparse = [each for each in layers if each.kernel == "sparse"]
    lines = [
        f"input      {exported.input}",
        f"checked    {exported.checked}"
        + ("" if exported.largest_difference is None else f": {exported.largest_difference:.0e} of the largest logit"),
        f"sparsity   {100 * exported.sparsity:.4f}%: {sum(each.zeros for each in layers):,} of "
        f"{sum(each.weights for each in layers):,} weights are zero in the file",
        f"kernels    {len(sparse)} of {len(layers)} layers are stored without their zeros"
        if sparse
        else "kernels    dense: this format stores zeros, and its runtimes compute with them",
        f"size       {exported.bytes / 1e6:.2f} MB, packed by gzip {exported.bytes_gzip / 1e6:.2f} MB",
        f"written    {folder / exported.file}, export.json",
    ]
    return "\n".join(lines)
