"""What a method is: hyper-parameters that start a pruner, and a pruner, which is the method at work on one model.

A pruner turns raw weights into the sparse ones that the model holds, and says how the gradient travels back. It sees
neither model nor data; `Sparsifier` does the rest.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from st3.errors import UserError
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.schedules import Constant, Schedule


class Pruner:
    """A method at work. What is written here is the simplest one; a method overrides what it does differently."""

    starts_sparse = False
    """Whether the model is sparse before its first step."""
    routes_gradient = False
    """Whether `route` does anything."""
    sparsity_is_outcome = False
    """Whether the method goes its own way, and the scheduled sparsity is only what it is compared with."""
    settled = True
    """Whether the masks are 0 and 1, and no longer something between."""
    steps_differ = False
    """Whether almost every step `changes` something on the host, so that recording one for the others does not pay."""
    weighs_costs = False
    """Whether `project` can count what weights cost instead of the weights."""

    def project(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor], costs: Tensor | None = None) -> Tensor:
        """Write the sparse weights to `out` (shaped like `raw.layers`); returns the thresholds, [layers].

        `sparsity` (0-d float64 on the weights' device, 0 < sparsity < 1) is the fraction of all weights together that
        becomes zero; with `costs` (int64 [layers]: what one weight of each layer costs, for example its MACs) the
        fraction of the total cost. Changes nothing of the pruner. Must not wait for the device.
        """
        raise NotImplementedError

    def route(self, layer: int, weight: Tensor, gradient: Tensor, step: int) -> Tensor:
        """The gradient for the raw weight from that for the sparse `weight` of layer number `layer`, in step `step`."""
        return gradient

    def before_step(self, step: int, sparsity: float, weights: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
        """Before the optimizer moves `weights`, which hold the raw values and have their gradients, in step `step`.

        `sparsity` is the scheduled one for the projection that follows.
        """

    def update(self, step: int, sparsity: float, raw: FlatWeights | None, optimizer: Optimizer) -> None:
        """After the step, before the projection: what the method keeps, such as its masks. May change `raw`.

        `raw` is None where nothing is pruned, before the ramp or in a dense phase.
        """

    def changes(self, step: int, sparsity: float) -> bool:
        """Whether the method decides something on the host in this step (new masks, say), so that it is like no other.

        All other steps must issue the same work to the device, and keep nothing that is not in tensors there.
        """
        return False

    def parameter_groups(self) -> list[dict]:
        """Parameters of the method itself, for the optimizer to train."""
        return []

    def state_dict(self) -> dict:
        """Tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict()`."""


class Method(Protocol):
    """Hyper-parameters: a frozen dataclass."""

    def start(self, weights: Sequence[Tensor], schedule: Schedule) -> Pruner:
        """A pruner for these weights. Raises `UserError` for a schedule that the method cannot follow."""


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises `UserError` for a value that is not among those allowed."""
    if value not in allowed:
        raise UserError(f"method.{name}={value} is not known: choose {' or '.join(allowed)}")


def check_steps(name: str, value: int) -> None:
    """Raises `UserError` for a duration that is not at least one step."""
    if value < 1:
        raise UserError(f"method.{name} must be at least one optimizer step")


def check_fraction(name: str, value: float) -> None:
    """Raises `UserError` for a value outside [0, 1]."""
    if not 0 <= value <= 1:
        raise UserError(f"method.{name}={value:g} lies outside [0, 1]")


def constant_sparsity(schedule: Schedule) -> float:
    """The schedule's one value. Raises `UserError` for a schedule that may have others."""
    if not isinstance(schedule, Constant):
        raise UserError("this method is sparse from the first step on and follows no ramp: schedule=constant")
    return schedule.sparsity
