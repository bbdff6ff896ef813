"""What a method is: settings that start a pruner, and a pruner, which is the method at work on one model.

A pruner turns raw weights into the sparse ones that the model holds, and says how the gradient travels back. It sees
neither model nor data; `Sparsifier` does the rest.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from st3.durations import Length
from st3.errors import UserError
from st3.settings import Settings
from st3.sparsify.costs import Costs
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.schedules import Constant, Schedule
from st3.sparsify.thresholds import held_open


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """Base of the methods' settings."""

    group: ClassVar[str] = "method"
    follows: ClassVar[str] = "cubic"
    """The schedule where none is chosen: an option of configs/schedule."""

    @property
    def scales_by(self) -> Literal["", "macs", "time"]:
        """What of a weight the pruner must know (`Pruner.scale_by`) besides the weight: its MACs, its time, nothing."""
        return ""

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "Pruner":
        """A pruner for these weights. `length` is that of the training, None where it is not known.

        Raises `UserError` for a schedule that the method cannot follow, and for durations without a length.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GlobalThreshold(Method):
    """Base of the methods that compare the weights of all layers with one threshold."""

    min_density: float = 0.0
    """Fraction of every layer that is kept in any case, at least one weight; 0: layers may become wholly zero."""

    def validate(self) -> None:
        self.check_below_one("min_density")

    def check_room(self, weights: Sequence[Tensor], schedule: Schedule) -> None:
        """Raises `UserError` where `min_density` keeps more weights than the schedule."""
        sizes, final = [w.numel() for w in weights], schedule.value(sys.maxsize)
        held = sum(held_open(size, self.min_density) for size in sizes)
        if self.min_density and held > round((1 - final) * sum(sizes)):
            raise UserError(
                f"method.min_density={self.min_density:g} keeps more weights than a sparsity of {final:g}: lower one"
            )


class Pruner:
    """A method at work. What is written here is the simplest one; a method overrides what it does differently."""

    starts_sparse = False
    """Whether the model is sparse before its first step."""
    works_before_ramp = False
    """Whether the sparse weights are not the raw ones also where the scheduled sparsity is 0."""
    hard_from = 0
    """The first step after which what is pruned is exactly zero."""
    sparsity_is_outcome = False
    """Whether the method goes its own way, and the scheduled sparsity is only what it is compared with."""

    def weigh(self, costs: Costs) -> None:
        """From now on sparsity is the fraction of the costs that is removed, not of the weights.

        Raises `UserError` where the method cannot.
        """
        raise UserError(
            f"target={costs.target} is for st3, st3_sigma, hard_ste and feather: this method counts weights"
        )

    def scale_by(self, costs: Sequence[float]) -> None:
        """What one weight of each layer costs, positive, in the unit that `Method.scales_by` asks for."""
        raise NotImplementedError

    def project(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
        """Write the sparse weights to `out` (shaped like `raw.layers`); returns the thresholds, [layers].

        `sparsity` (0-d float64 on the weights' device, 0 < sparsity < 1) is the fraction of all weights together that
        becomes zero, or of what they cost (see `weigh`). Changes nothing of the pruner. Must not wait for the device.
        """
        raise NotImplementedError

    def route(self, layer: int, weight: Tensor, raw: Tensor, gradient: Tensor, step: int) -> Tensor:
        """The gradient for the `raw` weight from that for the sparse `weight` of layer number `layer`, in step `step`.

        All four of one shape.
        """
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

    def updates(self, schedule: Schedule, steps: int) -> list[int] | None:
        """In which of the `steps` of a training the masks change; None: in each one that is sparse."""
        return None

    def parameter_groups(self) -> list[dict]:
        """Parameters of the method itself, for the optimizer to train."""
        return []

    def state_dict(self) -> dict:
        """Tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict()`."""


def constant_sparsity(schedule: Schedule) -> float:
    """The schedule's one value. Raises `UserError` for a schedule that may have others."""
    if not isinstance(schedule, Constant):
        raise UserError("this method is sparse from the first step on and follows no ramp: schedule=constant")
    return schedule.sparsity
