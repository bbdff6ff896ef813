"""One optimizer step: as a sequence of calls, or captured once in a CUDA graph and replayed."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from st3.errors import UserError
from st3.training.distributed import SINGLE, Processes
from st3.training.plan import Plan
from st3.training.precision import Precision
from st3.training.state import TrainingState

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass
class EagerStep:
    """`step(batches, lr)` with the images and labels of `plan.accumulate` passes; returns the mean loss, 0-d."""

    state: TrainingState
    plan: Plan
    precision: Precision
    forward: nn.Module
    """The model, or what compiles or distributes it."""
    processes: Processes = SINGLE
    warm: bool = False
    """Whether calls take their usual time from now on."""

    def __call__(self, batches: Batches, lr: float) -> Tensor:
        for group in self.state.optimizer.param_groups:
            group["lr"] = lr
        loss = self.compute(batches)
        self.warm = True
        return loss

    def compute(self, batches: Batches) -> Tensor:
        """The step at the learning rate that the optimizer has."""
        model, optimizer, scaler, plan = self.state.model, self.state.optimizer, self.state.scaler, self.plan
        total = 0.0
        for number, (images, labels) in enumerate(batches, 1):
            with self.processes.gradients_wait(self.forward, number < plan.accumulate):
                with self.precision.autocast():  # which computes the loss in float32
                    logits = self.forward(images)
                    loss = F.cross_entropy(logits, labels, label_smoothing=plan.label_smoothing) / plan.accumulate
                scaler.scale(loss).backward()
            total = total + loss.detach()
        if plan.clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return total


class CapturedStep:
    """An `EagerStep` whose work for the device is recorded once and issued as a whole from then on.

    The first steps of each `Sparsifier.phase` run as they are, on the stream that captures, and so do those of
    `Sparsifier.changes`. Learning rate and sparsity are tensors on the device that are filled before each replay. The
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
        self._phase: tuple | None = None
        self._until_capture = self.WARM_UP
        self._failed = False

    @property
    def warm(self) -> bool:
        """Whether calls take their usual time from now on."""
        return self._failed or self._is_captured()

    def _is_captured(self) -> bool:
        return self._graph is not None and self._phase == self._eager.state.sparsifier.phase

    def __call__(self, batches: Batches, lr: float) -> Tensor:
        if self._failed:
            return self._eager(batches, lr)
        batches = list(batches)
        phase = self._eager.state.sparsifier.phase
        if phase != self._phase:
            torch.cuda.synchronize()  # the graph that is dropped may be at work
            self._phase, self._graph, self._until_capture = phase, None, self.WARM_UP
        if self._eager.state.sparsifier.changes:
            return self._step_beside(batches, lr)
        if self._graph is None:
            if self._until_capture:
                self._until_capture -= 1
                return self._step_beside(batches, lr)
            if trouble := self._capture(batches):
                self._give_up(trouble)
                return self._eager(batches, lr)
        torch._foreach_copy_(self._inputs, [tensor for batch in batches for tensor in batch])
        self._lr.fill_(lr)
        self._eager.state.sparsifier.advance()
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
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as one that pins the next batches, may go on calling CUDA.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._loss = self._eager.compute(static)
        except RuntimeError as error:
            graph.reset()  # the generators and the allocator must not think that a capture is under way
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
