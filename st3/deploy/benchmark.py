"""What a network's zeros are worth in each runtime on this machine, measured side by side."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from st3.deploy.exporting import real_images, reference_logits
from st3.deploy.formats import MNN, Network
from st3.deploy.layer_times import LayerTime, layer_times
from st3.deploy.network import Trained
from st3.deploy.runtimes import DENSE, RUNTIMES, SPARSE, TUNED, Contender, Files, Runtime, contenders, runtime_versions
from st3.errors import UserError
from st3.measure.times import Times
from st3.measure.timing import rotation, spread
from st3.sparsify import LayerTimes, weight_layers
from st3.training.environment import processor

TURN = 0.05
"""Seconds that a turn takes at least: a fast network is called several times in it."""
WRONG = 1e-3
"""How far a logit may be from PyTorch's, in units of the largest one, for a time to mean anything."""
SECONDS = 90.0
"""For the rounds of one batch size; a slow network has fewer rounds."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One runtime with one kind of the network. Spreads are those of `spread`, over the rounds."""

    runtime: str
    kind: str
    """dense (its zeros replaced by small numbers) or sparse (as it is)."""
    cpu_ms: dict[str, Any]
    """Process time of a batch: of all threads together, without what other programs take."""
    wall_ms: dict[str, Any]
    difference: float | None
    """Of the sparse network: the largest of a logit from PyTorch's, in units of the largest logit."""

    @property
    def uses_zeros(self) -> bool:
        """Whether it skips them."""
        return self.kind == SPARSE and self.runtime in ("MNN", TUNED)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """All runtimes at one batch size."""

    size: int
    clock: str
    """By which runtimes are compared: cpu_ms; wall_ms with several threads, whose process times add up."""
    timings: tuple[Timing, ...]
    absent: dict[str, str]
    """Runtime → why it was not timed."""

    def fastest(self, kind: str, uses_zeros: bool = False) -> Timing | None:
        """By the median."""
        among = [each for each in self.timings if each.kind == kind and each.uses_zeros == uses_zeros]
        return min(among, key=lambda each: self.ms(each)["median"], default=None)

    def ms(self, timing: Timing) -> dict[str, Any]:
        """The spread of the times that count."""
        return timing.cpu_ms if self.clock == "cpu_ms" else timing.wall_ms

    @property
    def gain(self) -> float | None:
        """Time of the fastest dense runtime / that of the fastest one that uses the zeros; None without such a one."""
        dense, sparse = self.fastest(DENSE), self.fastest(SPARSE, uses_zeros=True)
        return self.ms(dense)["median"] / self.ms(sparse)["median"] if dense and sparse else None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Of one network. `asdict` of it is bench.json."""

    model: str
    sparsity: float
    input: tuple[int, int, int]
    """Channels, height, width."""
    threads: int
    device: str
    date: str
    """UTC."""
    versions: dict[str, str]
    batches: tuple[Batch, ...]
    layers: tuple[LayerTime, ...]
    """In MNN, at the first batch size; none without MNN."""

    def plain(self) -> dict[str, Any]:
        """For JSON, with what follows from it."""
        content = asdict(self)
        for batch, node in zip(self.batches, content["batches"], strict=True):
            node["gain"] = batch.gain
        for layer, node in zip(self.layers, content["layers"], strict=True):
            node["break_even"] = layer.break_even
        return content


def benchmark(trained: Trained, sizes: Sequence[int], threads: int, rounds: int) -> Benchmark:
    """Time the network at each batch size, and its layers at the first one. Shows a progress bar.

    Raises `UserError` where ONNX is not installed, or the network does not convert to it.
    """
    card, layers = trained.card, _zeros(trained)
    images = [images_of(trained, size) for size in sizes]
    with tempfile.TemporaryDirectory() as folder, pinned(threads):
        files = Files.make(trained, Path(folder))
        batches = [time_batch(trained, files, pixels, threads, rounds) for pixels in images]
        found = layer_times(files, layers, images[0], threads, rounds) if files.sparse_mnn else []
    return Benchmark(
        model=card.model.name,
        sparsity=sum(zeros for _, zeros in layers.values()) / sum(weights for weights, _ in layers.values()),
        input=(card.channels, card.image_size, card.image_size),
        threads=threads,
        device=processor(),
        date=_now(),
        versions=runtime_versions(),
        batches=tuple(batches),
        layers=tuple(found),
    )


def calibrate(trained: Trained, size: int, threads: int, rounds: int) -> Times:
    """The times of the layers in MNN for a batch of so many, as `method.times` takes them.

    A layer that MNN merges into another takes no time by itself. Raises `UserError` where MNN is not installed, or the
    network does not convert.
    """
    MNN()
    card, layers = trained.card, _zeros(trained)
    with tempfile.TemporaryDirectory() as folder, pinned(threads):
        files = Files.make(trained, Path(folder))
        if files.mnn_error:
            raise UserError(files.mnn_error)
        found = layer_times(files, layers, images_of(trained, size), threads, rounds)
    none = {name: LayerTimes(weights=w, dense_ms=0, base_ms=0, ms_per_weight=0) for name, (w, _) in layers.items()}
    return Times(
        runtime=f"MNN {runtime_versions()['MNN']}",
        device=processor(),
        threads=threads,
        batch=size,
        model=card.model.name,
        input=(card.channels, card.image_size, card.image_size),
        date=_now()[:10],
        layers=none | {each.layer: each.times() for each in found},
    )


def time_batch(
    trained: Trained,
    files: Files,
    pixels: NDArray[np.float32],
    threads: int,
    rounds: int,
    runtimes: Sequence[Runtime] | None = None,
) -> Batch:
    """The runtimes (all, if none are given) with `pixels` [B, C, H, W]; they take turns."""
    reference = reference_logits(trained, pixels)
    ready, absent, differences = list[Contender](), dict[str, str](), dict[int, float]()
    for each in contenders(trained, files, threads, pixels, runtimes or RUNTIMES):
        if not isinstance(each, Contender):
            absent[each[0]] = each[1]
            continue
        if each.kind == SPARSE:
            difference = float(np.abs(each.network(pixels) - reference).max() / np.abs(reference).max())
            if not difference <= WRONG:
                absent[each.runtime] = f"its logits are {difference:.1e} of the largest one away from PyTorch's"
                ready = [other for other in ready if other.runtime != each.runtime]
                continue
            differences[id(each)] = difference
        ready.append(each)
    calls = {id(each): 1 + int(TURN / max(_seconds(each.network, pixels), 1e-5)) for each in ready}
    turns = rotation(ready, rounds, until=time.perf_counter() + SECONDS)
    for each in tqdm(
        turns, f"batch {len(pixels)}", rounds * len(ready), unit=" turns", leave=False, disable=None, file=sys.stderr
    ):
        cpu, wall, count = time.process_time(), time.perf_counter(), calls[id(each)]
        for _ in range(count):
            each.network(pixels)
        each.cpu.append(1e3 * (time.process_time() - cpu) / count)
        each.wall.append(1e3 * (time.perf_counter() - wall) / count)
    return Batch(
        size=len(pixels),
        clock="cpu_ms" if threads == 1 else "wall_ms",
        timings=tuple(_timing(each, differences.get(id(each))) for each in ready),
        absent=absent,
    )


def _zeros(trained: Trained) -> dict[str, tuple[int, int]]:
    """Layer → weights, and how many of them are zero."""
    return {name: (w.numel(), int((w == 0).sum())) for name, w in weight_layers(trained.model).items()}


def images_of(trained: Trained, size: int) -> NDArray[np.float32]:
    """So many real images as pixels [B, C, H, W]; see `real_images`."""
    image = real_images(trained)[0]
    return np.resize(image, (size, *image.shape[1:]))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _timing(of: Contender, difference: float | None) -> Timing:
    return Timing(
        runtime=of.runtime, kind=of.kind, cpu_ms=spread(of.cpu), wall_ms=spread(of.wall), difference=difference
    )


def _seconds(network: Network, pixels: NDArray[np.float32]) -> float:
    begin = time.perf_counter()
    network(pixels)
    return time.perf_counter() - begin


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """PyTorch has so many threads, and the process so many cores, where the system allows that.

    Raises `UserError` where there are not so many.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    before, available = torch.get_num_threads(), len(cores) if cores else os.cpu_count() or 1
    if threads > available:
        raise UserError(f"--threads {threads} is more than the {available} cores of this machine")
    torch.set_num_threads(threads)
    if cores:
        os.sched_setaffinity(0, sorted(cores)[:threads])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if cores:
            os.sched_setaffinity(0, cores)
