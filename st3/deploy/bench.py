"""Time a network in the runtimes that are installed, with its zeros and without: do they pay on this machine?

PyTorch (eager and compiled), ONNX Runtime, OpenVINO and MNN take turns, each with the network as it is and with a dense
one, in which small numbers stand for the zeros. Process time and wall time, medians and middle halves; in MNN also each
layer with both kinds of kernels, and from how many zeros on the sparse one is faster. Written are bench.json and
bench.png in RUN/bench, which the page of `st3 report` shows.

examples:
  pip install 'st3[mnn,openvino]'                 ONNX Runtime, MNN and OpenVINO; those that are missing are left out
  st3 bench RUN                                   one image and 16 at a time, on one thread
  st3 bench RUN… --batch 1 --threads 2            several networks
  st3 bench FILE.safetensors --out DIR            a network by itself
  st3 bench RUN --calibrate times.json            only the layers, for method.target=latency and method.cost=time
"""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from st3.errors import DiskError, UserError
from st3.options import positive_int, positive_ints

if TYPE_CHECKING:
    from st3.deploy.benchmark import Batch, Benchmark

SHOWN = 3
"""Layers that are named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be typed after `st3 bench`."""
    parser.add_argument(
        "networks", metavar="RUN", type=Path, nargs="+", help="folders of finished runs, or files of networks"
    )
    parser.add_argument("--batch", type=positive_ints, metavar="N,…", help="images (default: 1,16; of layers 1)")
    parser.add_argument("--threads", type=positive_int, default=1, metavar="N", help="CPU threads (default: 1)")
    parser.add_argument("--rounds", type=positive_int, default=15, metavar="N", help="at most (default: 15)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN/bench)")
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="write the times of the layers, and no more")


def run(options: argparse.Namespace) -> int:
    """The exit code. Raises `UserError`."""
    import torch

    from st3.deploy.bench_picture import draw_benchmark
    from st3.deploy.benchmark import benchmark, calibrate
    from st3.deploy.network import find_network, load_trained
    from st3.whole_files import save_json

    files = [find_network(each) for each in options.networks]
    sizes = options.batch or ([1] if options.calibrate else [1, 16])
    if options.calibrate and (len(files) > 1 or len(sizes) > 1):
        raise UserError("--calibrate measures one network at one batch size: give one RUN and --batch 1")
    if not options.calibrate and options.out is None and not all(each.is_dir() for each in options.networks):
        raise UserError("a network is a file, not a run: say with --out DIR where to write")
    if options.out and (len(files) > 1 or options.calibrate):
        raise UserError("--out is for the report of one network: give one RUN, and no --calibrate")
    folders = [make_folder(options.out or path.parent / "bench") for path in files if not options.calibrate]
    if options.calibrate and not options.calibrate.parent.is_dir():
        raise UserError(f"{options.calibrate.parent}, where times are to be written, is no folder")
    for number, path in enumerate(files):
        trained = load_trained(path, torch.device("cpu"))
        if options.calibrate:
            times = calibrate(trained, sizes[0], options.threads, options.rounds)
            times.write(options.calibrate)
            print(f"{times.model}: {len(times.layers)} layers in {times.source}\nwritten    {options.calibrate}")
            continue
        found = benchmark(trained, sizes, options.threads, options.rounds)
        print(describe(found), flush=True)
        folder = folders[number]
        save_json(folder / "bench.json", found.plain())
        draw_benchmark(found, folder / "bench.png")
        print(f"written    {folder / 'bench'}.json, .png", flush=True)
    return 0


def make_folder(path: Path) -> Path:
    """Before minutes of measuring. Raises `DiskError` where it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise DiskError(f"{path} cannot be written ({error.strerror}): choose another place with --out") from error


def describe(found: "Benchmark") -> str:
    """A table for each batch size, and what it comes to."""
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    lines = [f"{found.model}, {100 * found.sparsity:.2f} % zeros, {threads} of {found.device}"]
    for batch in found.batches:
        lines += ["", *table(batch), *([verdict(batch)] if found.sparsity else [])]
    if found.layers:
        lines += ["", layers_in_words(found)]
    return "\n".join(lines)


def table(batch: "Batch") -> list[str]:
    """A line for each runtime."""
    n = min(each.cpu_ms["n"] for each in batch.timings)
    images = "1 image" if batch.size == 1 else f"{batch.size} images"
    clock = "process time" if batch.clock == "cpu_ms" else "wall time"
    heading = f"{images}, ms of {clock}, median of {n} (middle half)"
    lines = [heading, f"  {'':<18} {'dense':<26} {'sparse':<26} dense / sparse"]
    for runtime in dict.fromkeys(each.runtime for each in batch.timings):
        kinds = {each.kind: batch.ms(each) for each in batch.timings if each.runtime == runtime}
        dense, sparse = kinds.get("dense"), kinds["sparse"]
        ratio = f"{dense['median'] / sparse['median']:.2f}" if dense else ""
        lines.append(f"  {runtime:<18} {_spread(dense):<26} {_spread(sparse):<26} {ratio}".rstrip())
    return lines + [f"  {runtime:<18} not timed: {reason}" for runtime, reason in batch.absent.items()]


def verdict(batch: "Batch") -> str:
    """Whether the zeros pay."""
    dense, sparse = batch.fastest("dense"), batch.fastest("sparse", uses_zeros=True)
    if not (dense and sparse and batch.gain):
        return "No runtime that uses zeros is installed: pip install 'st3[mnn]'"
    mine, others = batch.ms(sparse), batch.ms(dense)
    times = (
        f"{sparse.runtime} with sparse kernels {mine['median']:.3g} ms, "
        f"{dense.runtime} with dense ones {others['median']:.3g} ms"
    )
    if mine["q3"] < others["q1"]:
        return f"The zeros pay: {times}: {batch.gain:.2f} times as fast as the fastest dense runtime."
    if mine["q1"] > others["q3"]:
        return f"The sparse kernels are slower here: {times}: {batch.gain:.2f} times as fast."
    return f"The zeros make no difference that could be told here: {times}."


def layers_in_words(found: "Benchmark") -> str:
    """Where sparse kernels lose, and from how many zeros on they would win."""
    sparse = [each for each in found.layers if each.has_sparse_kernel]
    slower = [each for each in sparse if each.sparse_ms > each.dense_ms]
    text = f"{len(sparse)} of {len(found.layers)} layers have zeros enough for MNN's sparse kernels"
    text += f", which are faster in {len(sparse) - len(slower)}" if sparse else ""
    worst = sorted(slower, key=lambda each: each.dense_ms - each.sparse_ms)[:SHOWN]
    if not worst:
        return f"{text}."
    named = (
        f"{each.layer} ({100 * each.zeros / each.weights:.0f} % zeros, "
        + (f"faster from {100 * each.break_even:.0f} % on)" if each.break_even < 1 else "never faster)")
        for each in worst
    )
    return f"{text}. Most is lost in {', '.join(named)}."


def _spread(ms: dict | None) -> str:
    return f"{ms['median']:.3g} ({ms['q1']:.3g}–{ms['q3']:.3g})" if ms else "–"
