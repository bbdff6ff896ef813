"""Everything that changes while training, in one place: what a checkpoint holds."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from st3.sparsify import Sparsifier
from st3.training.distributed import Processes
from st3.training.ema import RawAverage

_EXECUTION = "fused", "foreach", "capturable"
_PLAIN = "epoch", "step", "seconds", "data_seconds", "warmup_seconds", "guessing_steps", "scores", "best"


@dataclass
class TrainingState:
    """The moving parts of a run; `state_dict()` holds tensors and plain data only."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    sparsifier: Sparsifier
    scaler: torch.amp.GradScaler
    average: RawAverage | None = None
    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Wall time spent in training and evaluation, over all sittings."""
    data_seconds: float = 0.0
    """Of these, how long the device waited for training data."""
    warmup_seconds: float = 0.0
    """Of these, the first steps of each sitting, in which kernels are chosen, compiled and captured."""
    guessing_steps: int = 0
    """For how many steps the loss has been that of guessing, or more."""
    scores: dict = field(default_factory=dict)
    """The latest evaluation."""
    best: dict = field(default_factory=dict)
    """The best evaluation at full sparsity; empty before there is one."""

    def network(self) -> nn.Module:
        """What is evaluated and saved: the model, or the projected average where one is kept."""
        return self.average.network() if self.average else self.model

    @torch.no_grad()
    def average_buffers(self, processes: Processes) -> None:
        """Give all processes the mean of their BatchNorm statistics."""
        processes.mean_(self.model.buffers())
        if self.average:
            processes.mean_(self.average.values[name] for name, _ in self.model.named_buffers())

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        # How the optimizer computes is the device's affair, and the run may have been on another one.
        kept = [{name: group.get(name) for name in _EXECUTION} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, execution in zip(self.optimizer.param_groups, kept, strict=True):
            group.update((name, value) for name, value in execution.items() if name in group)
        self.sparsifier.load_state_dict(state["sparsifier"])
        if state["scaler"]:  # empty from a run without fp16
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        for name in _PLAIN:
            setattr(self, name, state.get(name, getattr(self, name)))  # earlier versions have counted less


def copied(state: Any) -> Any:
    """Nested dictionaries and lists with a copy of each tensor, where it is: what changes later does not change it.

    Never waits for the device.
    """
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list) else state
