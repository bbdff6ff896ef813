"""The threshold alone, and threshold and projection of all layers, beside copying the same bytes."""

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.checks import check_projection, check_threshold
from benchmarks.harness import SPARSITY, Columns, Contender, Result, Section
from benchmarks.naive import shrink_and_rescale
from st3.models import build_model
from st3.sparsify import Constant, kernels, weight_layers
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.methods.st3 import ST3, ST3Pruner, ST3Sigma
from st3.sparsify.thresholds import quantile
from st3.training.machine import Machine


class Job(Contender):
    """Calls `function`, or with `replay` a CUDA graph of it; `verify` gets what it returned last."""

    def __init__(
        self, task: str, name: str, weights: int, machine: Machine, function: Callable[[], Any],
        verify: Callable[[Any], object] = id, replay: bool = False,
    ):  # fmt: skip
        super().__init__(name, f"{task} of {weights:,} weights", machine, task=task, weights=weights)
        self.function, self.verify, self.replay = function, verify, replay

    def work(self) -> None:
        self.value = self.function()

    def warm_up(self) -> None:
        self.work()  # the first time, the fused kernels leave the result of the plain functions
        if self.replay:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.work()
            self.function = graph.replay
        once = harness.timed(self.work, 1, self.machine.wait)
        self.result["calls"] = self.calls = min(1000, max(1, round(0.02 / once)))

    def check(self) -> Result:
        self.verify(self.value)
        return {}


def ways_to_threshold(flat: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The quantile of |flat| [N], 0-d, in the ways that PyTorch and NumPy offer."""
    rank = (len(flat) - 1) * SPARSITY
    below, above = math.floor(rank), math.ceil(rank)

    def between(low: Tensor, high: Tensor) -> Tensor:
        tau = (low.double() + (high.double() - low.double()) * (rank - below)).to(low.dtype)
        return torch.where(tau < high, tau, low)  # rounding may lift it onto its neighbour

    def of_largest(values: Tensor) -> Tensor:
        return between(values[-1], values[below - above - 1])

    def of_ordered(values: Tensor) -> Tensor:
        return between(values[below], values[above])

    ways = {
        "sort": lambda: of_ordered(flat.abs().sort().values),
        "topk": lambda: of_largest(flat.abs().topk(len(flat) - below).values),
        "np.partition": lambda: of_ordered(torch.from_numpy(np.partition(flat.abs().numpy(), (below, above)))),
        "torch.kthvalue": lambda: between(*(flat.abs().kthvalue(each + 1).values for each in (below, above))),
    }
    if flat.is_cuda:
        del ways["np.partition"]
        if len(flat) > 3.1e6:  # takes longer than all others together
            del ways["torch.kthvalue"]
    return ways


def project_naively(raw: FlatWeights, _: Tensor, out: Sequence[Tensor]) -> None:
    tau = ways_to_threshold(torch.cat([w.flatten() for w in raw.layers]))["sort"]()
    for weight, target in zip(raw.layers, out, strict=True):
        target.copy_(shrink_and_rescale(weight, tau))


def project_anew(pruner: ST3Pruner, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
    """As where the threshold is far from the last one, which the kernels otherwise start from."""
    if raw in kernels._KERNELS:
        kernels._KERNELS[raw]._last.zero_()
    return pruner.project(raw, sparsity, out)


def jobs(weights: Sequence[Tensor], machine: Machine) -> list[Job]:
    """The contenders."""
    flat, on_cuda = FlatWeights.copy_of(weights).flat, machine.device.type == "cuda"
    sparsity = torch.tensor(SPARSITY, dtype=torch.float64, device=machine.device)
    threshold = partial(Job, "threshold", weights=len(flat), machine=machine)
    ways = {"st3's plain quantile" if on_cuda else "st3": lambda: quantile(flat.abs(), sparsity)}
    ways |= ways_to_threshold(flat)
    made = [threshold(name, function=way, verify=partial(check_threshold, name, flat)) for name, way in ways.items()]
    made.append(threshold("copy", function=partial(torch.empty_like(flat).copy_, flat)))

    def enter(name: str, project: Callable[..., object], by_sigma: bool = False, replay: bool = False) -> None:
        # Each has its own raw weights: the kernels' tables are for these and for where they are projected to.
        raw, out = FlatWeights.copy_of(weights), [torch.empty_like(w) for w in weights]
        verify = partial(check_projection, name, weights, out, by_sigma=by_sigma)
        function = partial(project, raw, sparsity, out)
        made.append(Job("projection", name, len(flat), machine, function, lambda _: verify(), replay))

    for method in (ST3(), ST3Sigma()):
        pruner, by_sigma = method.start(weights, Constant(SPARSITY), None), method.layer_sigma
        enter(method.name, pruner.project, by_sigma)
        if on_cuda:
            enter(f"{method.name}, plain functions", pruner.project_plainly, by_sigma)
            enter(f"{method.name}, replayed", pruner.project, by_sigma, replay=True)
            enter(f"{method.name}, threshold far away", partial(project_anew, pruner), by_sigma)
    enter("naive", project_naively)
    raw, out = FlatWeights.copy_of(weights), [torch.empty_like(w) for w in weights]
    made.append(Job("projection", "copy", len(flat), machine, lambda: torch._foreach_copy_(out, raw.layers)))
    return made


def random_weights(size: float, device: torch.device) -> list[Tensor]:
    """As after initialization: ResNet-50's for 25.5 million, else 20 equal 3×3 convolutions of about `size` weights."""
    channels = round(math.sqrt(size / (20 * 9)))
    shapes: list[tuple[int, ...]] = [(channels, channels, 3, 3)] * 20
    if round(size, -5) == 25.5e6:
        with torch.device("meta"):
            shapes = [tuple(w.shape) for w in weight_layers(build_model("resnet50", classes=1000)).values()]
    generator, weights = torch.Generator().manual_seed(0), []
    for shape in shapes:
        weight = torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format  # as while training
        weights.append(weight.to(device).contiguous(memory_format=layout))
    return weights


@torch.no_grad()
def projection_table(args: Namespace, machine: Machine) -> Iterator[Section]:
    """The table after each size."""
    columns: Columns = {
        "weights": lambda result: f"{result['weights']:,}",
        "task": lambda result: result["task"],
        "contender": lambda result: result["contender"],
        **harness.time_columns("ms", 1e3, "copy"),
    }
    contenders, sizes = list[Job](), args.sizes.split(",")
    while sizes and not (contenders and time.perf_counter() > args.until):
        made = jobs(random_weights(float(sizes.pop(0)), machine.device), machine)
        harness.contest(made, "copy", args, machine.wait)
        for each in made:
            vars(each).update(function=None, verify=None, value=None)  # and the weights that they hold
        contenders += made
        notes = [
            f"n = {harness.rounds_done(contenders, args)} rounds; sparsity {SPARSITY}, float32, convolutions in "
            "channels_last; 25.5 M weights are those of ResNet-50, others 20 equal 3×3 convolutions.",
            "copy: the same bytes read and written once, which no method can avoid.",
            "Thresholds lie between the order statistics that sorting gives; zeros are exact, values agree to 1e-4.",
        ]
        if machine.device.type == "cuda":
            notes += [
                "replayed: the same work as one CUDA graph, without the time to launch it.",
                "st3 finds threshold and projection together; its threshold alone is not timed.",
                "st3 starts from the last threshold, as in training; far away: as in the first step that prunes.",
            ]
        notes += [f"Not timed, or not yet: {', '.join(sizes)}."] if sizes else []
        yield Section("Threshold and projection", args, notes, contenders, columns)
