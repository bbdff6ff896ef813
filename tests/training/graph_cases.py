"""A CUDA graph on the CPU, and a training small enough to be captured by it."""

import copy
from contextlib import contextmanager

import torch
from helpers import assert_same
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from training_cases import FP32, Recorder, make_plan, plain

from st3.durations import Length
from st3.optim import parameter_groups
from st3.optim.lr_schedules import CosineSettings
from st3.sparsify import PolynomialRamp, Sparsifier
from st3.training.ema import RawAverage
from st3.training.state import TrainingState

# A CUDA graph on the CPU ----------------------------------------------------------------------------------------------


class Tape(TorchDispatchMode):
    """Notes every operation, to do it again on the same memory.

    Afterwards the memory that was there before is as it was, and what the operations made is rubbish: while CUDA
    captures, nothing is executed.
    """

    def __init__(self, fail_on: str | None):
        super().__init__()
        self.operations, self.fail_on = [], fail_on
        self._before, self._made = {}, {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation).removeprefix("aten.")
        if name.startswith("_local_scalar_dense") or (self.fail_on and name.startswith(self.fail_on)):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore\nlines")
        kwargs = kwargs or {}
        for tensor in tensors_in((args, kwargs)):
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self._before | self._made:
                self._before[memory.data_ptr()] = memory, memory.clone()
        results = operation(*args, **kwargs)
        for tensor in tensors_in(results):
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self._before:
                self._made[memory.data_ptr()] = memory
        # `.data`: the graph knows memory, not the Python object, which may be given other memory, and not its version.
        self.operations.append((operation, *tree_map_only(torch.Tensor, lambda t: t.data, (args, kwargs, results))))
        return results

    def take_back(self) -> None:
        for memory, content in self._before.values():
            memory.copy_(content)
        for memory in self._made.values():
            memory.fill_(255)  # floating-point numbers that are not a number

    def play(self) -> None:
        for operation, args, kwargs, results in self.operations:
            for old, new in zip(tensors_in(results), tensors_in(operation(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors_in(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


class Graphs:
    """Stands in for `torch.cuda`, as far as a captured step uses it; counts what happens."""

    def __init__(self, monkeypatch):
        self.captures, self.replays, self.resets, self.beside, self.capturing = 0, 0, 0, 0, False
        self.fail_on: str | None = None
        self.pools = {"captured into": set(), "kept": set()}
        """As the allocator sees them."""
        graphs = self

        class Graph:
            tape: Tape
            ended = False

            @torch.no_grad()
            def replay(self):
                graphs.replays += 1
                self.tape.play()

            def pool(self):
                if not self.ended:
                    raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
                return self._pool

            def reset(self):
                graphs.resets += 1
                if self.ended:
                    graphs.pools["kept"].remove(self._pool)

        class Stream:
            def wait_stream(self, other): ...

            def is_capturing(self):
                return graphs.capturing

        @contextmanager
        def capture(graph, pool, stream, **options):
            before, graphs.stream = graphs.stream, stream
            graphs.captures += 1
            graph._pool = pool
            for pools in graphs.pools.values():
                pools.add(pool)
            graph.tape, graphs.capturing = Tape(graphs.fail_on), True
            try:
                with graph.tape:
                    yield
            except RuntimeError:
                # As CUDA does when a failed capture is ended. PyTorch then leaves stream and pools as they are.
                raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
            finally:
                graphs.capturing = False
                graph.tape.take_back()
            graph.ended, graphs.stream = True, before
            leave("captured into")(0, pool)

        @contextmanager
        def stream(stream):
            before, captures, graphs.stream = graphs.stream, graphs.captures, stream
            try:
                yield
            finally:
                graphs.stream = before
                graphs.beside += captures == graphs.captures

        def leave(which):
            def leave(device, pool):
                if pool not in graphs.pools[which]:
                    raise RuntimeError("not currently recording to mempool_id")
                graphs.pools[which].remove(pool)

            return leave

        self.stream = Stream()
        stand_ins = {
            "is_available": lambda: True, "is_current_stream_capturing": lambda: self.capturing, "CUDAGraph": Graph,
            "Stream": Stream, "graph": capture, "stream": stream, "synchronize": lambda: None,
            "current_stream": lambda: self.stream, "current_device": lambda: 0,
        }  # fmt: skip
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", leave("captured into"), raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", leave("kept"), raising=False)
        monkeypatch.setattr(torch.accelerator, "current_stream", lambda: self.stream)
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *size, device="cpu", **rest: zeros(*size, **rest))


# Runs -----------------------------------------------------------------------------------------------------------------

RAMP = PolynomialRamp(final=0.8, start=6, end=20)
PLAN = make_plan(
    epochs=1, steps_per_epoch=30, sparsity=RAMP, target_sparsity=0.8, clip_norm=0.5, label_smoothing=0.1, log_every=1,
    lr_schedule=CosineSettings(warmup=5).over(Length(30)),
)  # fmt: skip


def images(count: int, device="cpu") -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of 8 images [3, 8, 8] in 4 classes."""
    generator = torch.Generator().manual_seed(11)
    return [
        (
            torch.randn(8, 3, 8, 8, generator=generator).to(device, memory_format=torch.channels_last),
            torch.randint(4, (8,), generator=generator).to(device),
        )
        for _ in range(count)
    ]


def network() -> nn.Module:
    torch.manual_seed(2)
    convolutions = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, bias=False)
    return nn.Sequential(*convolutions, nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))


def make_state(method="st3", schedule=RAMP, **options) -> TrainingState:
    """On a fused optimizer, as on a GPU: the learning rate may be a tensor."""
    model = network().to(memory_format=torch.channels_last)
    groups = parameter_groups(model, weight_decay=1e-3)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True)
    sparsifier = Sparsifier(model, method, schedule, **options).attach(optimizer)
    return TrainingState(model, optimizer, sparsifier, FP32.scaler(), RawAverage(model, sparsifier, 0.9))


class Watcher(Recorder):
    """Rows, and after each step what it left behind."""

    def row(self, state, row):
        super().row(state, row)
        sparsifier = state.sparsifier
        seen = {"step": sparsifier.step, "sparsity": sparsifier.sparsity, "zeros": sparsifier.zeros().tolist()}
        seen |= {"thresholds": sparsifier.thresholds().tolist(), "loss": row["train_loss"]}
        self.steps_seen = [*getattr(self, "steps_seen", []), seen]


def content(state: TrainingState) -> dict:
    """A copy, without the rates that the optimizer was last given: a captured step gives it a tensor."""
    found = copy.deepcopy(plain(state.state_dict()))
    for group in found["optimizer"]["param_groups"]:
        del group["lr"]
    return found


def assert_same_training(one, other) -> None:
    assert_same(one[1].steps_seen, other[1].steps_seen)
    assert_same(content(one[0]), content(other[0]))
