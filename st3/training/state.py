"""Everything that changes while training, in one place: what a checkpoint holds."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from st3.errors import DamagedError, UserError, one_line
from st3.sparsify import Sparsifier
from st3.training.distributed import SINGLE, Processes
from st3.training.ema import RawAverage

_PLAIN = {
    "epoch": int,
    "step": int,
    "seconds": int | float,
    "data_seconds": int | float,
    "warmup_seconds": int | float,
    "saving_seconds": int | float,
    "row_seconds": int | float,
    "row_step": int,
    "guessing_steps": int,
    "row": dict,
    "scores": dict,
    "best": dict,
    "changes": list,
}
_MEASURED = {
    "row": {"train_loss", "sparsity", "images_per_second", "dead_layers"},
    "scores": {"epoch", "test_top1"},
    "best": {"epoch", "test_top1"},
}
"""The numbers that are in these at least, where anything is."""


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
    saving_seconds: float = 0.0
    """And how long the training has waited for checkpoints."""
    row_step: int = 0
    """The optimizer step of the last row of metrics."""
    row_seconds: float = 0.0
    """How long the training has taken since then, in earlier sittings."""
    row: dict = field(default_factory=dict)
    """The last row of metrics, as long as it may take in the scores of an evaluation."""
    changes: list[str] = field(default_factory=list)
    """What was changed on the way, each a sentence."""
    guessing_steps: int = 0
    """For how many steps the loss has been that of guessing, or more."""
    scores: dict = field(default_factory=dict)
    """The latest evaluation."""
    best: dict = field(default_factory=dict)
    """The best evaluation at full sparsity; empty before there is one."""

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        self.loss_sum = torch.zeros((), device=device)
        """Of the steps since the last row, of this process."""
        self._counting_from = time.perf_counter()
        self._random: Mapping[str, Any] | None = None

    def network(self) -> nn.Module:
        """What is evaluated and saved: the model, or the projected average where one is kept."""
        return self.average.network() if self.average else self.model

    @torch.no_grad()
    def average_buffers(self, processes: Processes) -> None:
        """Give all processes the mean of their BatchNorm statistics."""
        processes.mean_(self.model.buffers())
        if self.average:
            processes.mean_(self.average.values[name] for name, _ in self.model.named_buffers())

    def start_counting(self) -> None:
        """Seconds count from now on."""
        self._counting_from = time.perf_counter()

    def count_seconds(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._counting_from
        self._counting_from = now

    def set_random_states(self) -> None:
        """Let PyTorch's generators go on from where they were when this state was saved."""
        assert self._random is not None
        torch.set_rng_state(self._random["cpu"])
        if self._random["device"] is not None and self.loss_sum.is_cuda:
            torch.cuda.set_rng_state(self._random["device"], self.loss_sum.device)

    def state_dict(self, processes: Processes = SINGLE) -> dict:
        """What a training goes on from, also in the middle of an epoch. All processes take part."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "processes": self._gathered(processes),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def load_state_dict(self, state: Mapping[str, Any], processes: Processes = SINGLE) -> None:
        """Raises `DamagedError` for what is no state of this training, and `UserError` where there were more or fewer
        processes."""
        for name, kind in _PLAIN.items():
            value = state.get(name, getattr(self, name))  # earlier versions have counted less
            if not isinstance(value, kind) or (isinstance(value, int | float) and not 0 <= value < math.inf):
                raise DamagedError(f"it says {name}={value!r}"[:200])
            setattr(self, name, value)
        for name, needed in _MEASURED.items():
            values = getattr(self, name)
            numbers = {key for key, value in values.items() if isinstance(value, int | float)}
            others = {key for key, value in values.items() if value is not None} - numbers - {"chosen_on"}
            if values and (others or not needed <= numbers):
                raise DamagedError(f"it says {name}={values!r}"[:200])
        self.row_step = state.get("row_step", self.step)  # earlier versions have saved after a row only
        own = state.get("processes", [{}] * processes.world_size)
        if not isinstance(own, list):
            raise DamagedError(f"it says processes={own!r}"[:200])
        if len(own) != processes.world_size:
            raise UserError(
                f"it is of {len(own)} processes, and these are {processes.world_size}: their BatchNorm statistics and "
                "the order of their images would be others. Start as many"
            )
        try:
            self._load(state, own[processes.rank])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise DamagedError(f"it is no state of this training ({one_line(error)})") from error

    def _load(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        # Rates, decays and how the optimizer computes are what the settings and the device say.
        settings = [{key: value for key, value in g.items() if key != "params"} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, ours in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(ours)
        for parameter, kept in self.optimizer.state.items():
            for value in kept.values():
                if isinstance(value, Tensor) and value.numel() != 1 and value.shape != parameter.shape:
                    raise ValueError(f"the optimizer keeps {tuple(value.shape)} for {tuple(parameter.shape)}")
        self.sparsifier.load_state_dict(state["sparsifier"])
        if state["scaler"]:  # empty from a run without fp16
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if own:
            self._random = own["random"]
            self.loss_sum.copy_(own["loss_sum"])
            self._put_buffers(own["buffers"])

    def _gathered(self, processes: Processes) -> list[dict[str, Any]]:
        own = self._own(processes)
        return [own] if processes.world_size == 1 else processes.gather(on_cpu(own))

    def _own(self, processes: Processes) -> dict[str, Any]:
        """What each process has for itself."""
        device = self.loss_sum.device
        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        own = {"random": {"cpu": torch.get_rng_state(), "device": on_device}, "loss_sum": self.loss_sum}
        return own | {"buffers": self._buffers() if processes.world_size > 1 else []}

    def _buffers(self) -> list[dict[str, Tensor]]:
        """BatchNorm statistics, which the processes have each for themselves until an epoch ends: of the model and, if
        there is one, of the average."""
        names = [name for name, _ in self.model.named_buffers()]
        averaged = [{name: self.average.values[name] for name in names}] if self.average else []
        return [dict(self.model.named_buffers()), *averaged]

    @torch.no_grad()
    def _put_buffers(self, saved: list[dict[str, Tensor]]) -> None:
        for ours, theirs in zip(self._buffers(), saved, strict=bool(saved)):
            for name, buffer in ours.items():
                buffer.copy_(theirs[name])


def copied(state: Any) -> Any:
    """Nested dictionaries and lists with a copy of each tensor, where it is: what changes later does not change it.

    Never waits for the device.
    """
    return _mapped(state, lambda tensor: tensor.detach().clone())


def on_cpu(state: Any) -> Any:
    """Nested dictionaries and lists with each tensor in the machine's memory."""
    return _mapped(state, lambda tensor: tensor.detach().cpu())


def _mapped(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        return {key: _mapped(value, change) for key, value in state.items()}
    return [_mapped(value, change) for value in state] if isinstance(state, list) else state
