"""One optimizer step: as a sequence of calls, or captured once in a CUDA graph and replayed."""

import math
import warnings
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from st3.errors import NotFiniteError, UserError
from st3.training.machine import Machine
from st3.training.plan import Plan
from st3.training.state import TrainingState

Batches = Iterable[tuple[Tensor, Tensor]]


class Step(Protocol):
    """`EagerStep` or `CapturedStep`."""

    def __call__(self, batches: Batches, lr: float, kind: Hashable) -> Tensor:
        """One optimizer step with the images and labels of `plan.accumulate` passes; returns the mean loss, 0-d.

        `kind` is what `Sparsifier.next_step` says of it.
        """

    def is_warm(self, kind: Hashable) -> bool:
        """Whether a step of this kind takes its usual time from now on."""


@dataclass
class EagerStep:
    """The step as a sequence of calls."""

    state: TrainingState
    plan: Plan
    machine: Machine
    forward: nn.Module
    """The model, or what compiles or distributes it."""
    _called: bool = False

    def __call__(self, batches: Batches, lr: float, kind: Hashable = None) -> Tensor:
        for group in self.state.optimizer.param_groups:
            group["lr"] = lr
        # Reading the loss costs nothing where it was computed; and one of several processes cannot stop alone.
        here = self.machine.device.type == "cpu" and self.machine.processes.world_size == 1
        loss = self.compute(batches, stop=here)
        self._called = True
        return loss

    def is_warm(self, kind: Hashable) -> bool:
        return self._called

    def compute(self, batches: Batches, stop: bool = False) -> Tensor:
        """The step at the learning rate that the optimizer has.

        Raises `NotFiniteError` instead of the update, where it shall `stop` then.
        """
        model, optimizer, scaler, plan = self.state.model, self.state.optimizer, self.state.scaler, self.plan
        total: Tensor | float = 0.0
        for number, (images, labels) in enumerate(batches, 1):
            with self.machine.processes.gradients_wait(self.forward, number < plan.accumulate):
                with self.machine.autocast():  # which computes the loss in float32
                    logits = self.forward(images)
                    loss = F.cross_entropy(logits, labels, label_smoothing=plan.label_smoothing) / plan.accumulate
                scaler.scale(loss).backward()
            total = total + loss.detach()
        assert isinstance(total, Tensor)
        if stop and not math.isfinite(total):
            raise not_finite(self.state, optimizer.param_groups[0]["lr"])
        if plan.clip_norm:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return total


def not_finite(state: TrainingState, lr: float) -> NotFiniteError:
    """What to say of a loss that is infinite or not a number, after `state.step` steps, in one at the rate `lr`."""
    largest = {
        name: max(float(each.detach().abs().max()) for each in (parameter, parameter.grad) if each is not None)
        for name, parameter in state.model.named_parameters()
        if parameter.numel()
    }
    name = max(largest, key=lambda each: math.inf if math.isnan(largest[each]) else largest[each])
    return NotFiniteError(
        f"the loss is not finite after step {state.step} (learning rate {lr:.3g}; largest weights and gradients: "
        f"{name}, up to {largest[name]:.3g}): lower optimizer.lr or set clip_norm"
    )


class CapturedStep:
    """An `EagerStep` whose work for the device is recorded once and issued as a whole from then on.

    The first steps of each kind run as they are, on the stream that captures, and so do those that are like no other
    (kind None). Learning rate and sparsity are tensors on the device that are filled before each replay. The
    returned loss is overwritten by the next call. Where capturing fails, a warning says so and the steps go on
    uncaptured; with `required` it is an error.
    """

    WARM_UP = 3
    """Steps before the capture: libraries choose algorithms and take workspace, the optimizer makes its state."""

    def __init__(self, eager: EagerStep, required: bool):
        self._eager, self._required = eager, required
        self._stream = torch.cuda.Stream()
        self._lr = torch.zeros((), device="cuda")
        self._graph: torch.cuda.CUDAGraph | None = None
        self._kind: Hashable = None
        self._until_capture = self.WARM_UP
        self._failed = False

    def is_warm(self, kind: Hashable) -> bool:
        return self._failed or kind is None or (self._graph is not None and kind == self._kind)

    def __call__(self, batches: Batches, lr: float, kind: Hashable) -> Tensor:
        if self._failed:
            return self._eager(batches, lr)
        batches = list(batches)
        if kind is None:
            return self._step_beside(batches, lr)
        if kind != self._kind:
            torch.cuda.synchronize()  # the graph that is dropped may be at work
            self._kind, self._graph, self._until_capture = kind, None, self.WARM_UP
        if self._graph is None:
            if self._until_capture:
                self._until_capture -= 1
                return self._step_beside(batches, lr)
            if trouble := self._capture(batches):
                self._give_up(trouble)
                return self._eager(batches, lr)
        assert self._graph
        torch._foreach_copy_(self._inputs, [tensor for batch in batches for tensor in batch])
        self._lr.fill_(lr)
        self._eager.state.sparsifier.count_step()
        self._graph.replay()
        return self._loss

    def _step_beside(self, batches: list, lr: float) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._eager(batches, lr)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _capture(self, batches: list) -> str | None:
        """Record the step without executing it; what stood in the way, if something did."""
        static = [(images.clone(), labels.clone()) for images, labels in batches]
        self._inputs = [tensor for batch in static for tensor in batch]
        for group in self._eager.state.optimizer.param_groups:
            group["lr"] = self._lr
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # Other threads, such as one that pins the next batches, may go on calling CUDA.
        capture = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
        try:
            with torch.cuda.stream(self._stream), capture:  # a capture that fails does not put the stream back
                self._loss = self._eager.compute(static)
        except RuntimeError as error:
            _discard(graph, pool)
            self._inputs.clear()
            return str(error.__context__ or error).partition("\n")[0]  # leaving the capture raises an error of its own
        self._graph = graph
        return None

    def _give_up(self, trouble: str) -> None:
        if self._required:
            raise UserError(f"capture=on, but the step cannot be captured ({trouble}): use capture=auto or off")
        warnings.warn(f"the step cannot be captured ({trouble}): training goes on, more slowly", stacklevel=2)
        self._failed = True
        state = self._eager.state
        state.optimizer.zero_grad(set_to_none=True)
        state.sparsifier.load_state_dict(state.sparsifier.state_dict())  # the hooks may have been left half-way


def _discard(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Make generators and allocator forget a capture into `pool` that failed."""
    try:
        graph.pool()
    except RuntimeError:  # not ended: `reset` does not give its memory back
        # While PyTorch's allocator thinks that it captures, it never frees what two streams have used.
        for leave in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with suppress(RuntimeError):  # newer versions have left it already
                leave(torch.cuda.current_device(), pool)
    graph.reset()
