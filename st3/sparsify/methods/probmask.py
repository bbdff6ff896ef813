"""ProbMask (Zhou et al. 2021, CVPR, arXiv:2105.01571): each weight has a learned probability of being kept."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from st3.durations import Duration, Length
from st3.errors import UserError
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.masks import MaskPruner
from st3.sparsify.method import Method
from st3.sparsify.schedules import AlternatingPhases, Schedule

_CLIP = 3.0  # norm of the gradients of weights and probabilities together
_HALVINGS = 20  # of the bracket around v, as the authors stop: v is 5e-7 where none is needed
_COLDEST = 0.03  # 1/T at the end
_FOREVER = 2**62  # a step after any training


@dataclass(frozen=True, kw_only=True)
class ProbMask(Method):
    """ProbMask (Zhou et al. 2021, arXiv:2105.01571): `ŵ = w·m`, `m = sigmoid((log p − log(1 − p) + n)·T)` with noise n
    drawn in every step, one probability p for each weight, and T rising from 1 to 33; the gradient goes through the
    relaxed mask to w and to p.

    p starts at 1 and is trained by Adam from the first step on; after each step `p ← clip(p − v, 0, 1)`, v ≥ 0 by
    bisection so that Σp is the number of weights that the ramp leaves. The gradients of w and p are clipped together,
    to norm 3. From the step `until` on, m is the hard mask of the most probable weights, and only w is trained.
    """

    name: ClassVar[str] = "probmask"
    follows: ClassVar[str] = "probmask"

    until: Duration = Duration(87.5, "%")
    """From when on the mask is hard, within the training and after the ramp: the last 20 of 160 epochs."""
    probability_lr: float = 6e-3
    """Learning rate of the probabilities at the start; it falls to 0 at `until` along half a cosine."""

    def validate(self) -> None:
        self.check_positive("probability_lr")

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "ProbMaskPruner":
        """With all weights certain. Raises `UserError` for a schedule that is not at its target by `until`."""
        if isinstance(schedule, AlternatingPhases):
            raise UserError("this method never becomes dense again: schedule=probmask")
        if schedule.value(_FOREVER) == 0:  # dense: there is nothing to harden
            return ProbMaskPruner(self.probability_lr, _FOREVER, weights)
        until = max(1, self.moment("until", length))
        if schedule.value(until - 1) != schedule.value(_FOREVER):
            raise UserError("method.until makes the mask hard before schedule.end: raise the one or lower the other")
        return ProbMaskPruner(self.probability_lr, until, weights)


class ProbMaskPruner(MaskPruner):
    def __init__(self, lr: float, until: int, weights: Sequence[Tensor]):
        super().__init__(weights, for_good=False)
        self._lr, self.until = lr, until
        self._probabilities, self._relaxed = FlatWeights(weights), FlatWeights(weights)
        self.masks = self._relaxed.layers  # in [0, 1], laid out as the weights
        for each in (self._probabilities, self._relaxed):
            each.flat.fill_(1)
        self._adam = torch.optim.Adam(map(nn.Parameter, self._probabilities.layers), lr=lr)
        self._temperature = 0.0  # that of the relaxed mask; 0 before the first one is drawn
        self._seed = int(torch.randint(2**31, ()))
        self._settled = False  # the masks are hard
        self.starts_sparse = self.works_before_ramp = until < _FOREVER
        self.hard_from = until - 1 if self.works_before_ramp else 0

    def due(self, step: int, sparsity: float, level: float) -> bool:
        return self.works_before_ramp and not self._settled

    def updates(self, schedule: Schedule, steps: int) -> list[int]:
        return [*range(min(self.until, steps))] if self.works_before_ramp else []

    def before_step(self, step: int, sparsity: float, weights: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
        if self._settled or not self._temperature:
            return
        probability, mask = self._probabilities.flat, self._relaxed.flat
        pulls = FlatWeights(self.masks)
        # The gradients were multiplied by m on their way back. A layer that took no part has none.
        pulls.copy_([torch.zeros_like(w) if w.grad is None else w.grad * w.detach() for w in weights])
        if (scale := getattr(optimizer, "grad_scale", None)) is not None:  # a fused optimizer undoes it later
            pulls.flat.div_(scale)
        slopes = self._temperature * (1 - mask) / (probability * (1 - probability))
        # Where p is 0 or 1, T > 1 makes the slope of m vanish.
        certain = (probability == 0) | (probability == 1)
        pulls.flat.mul_(slopes).masked_fill_(certain, 0)
        own = self._adam.param_groups[0]["params"]
        for parameter, pull in zip(own, pulls.layers, strict=True):
            parameter.grad = pull
        self._clip_together(optimizer, pulls, scale)
        self._adam.param_groups[0]["lr"] = self._lr / 2 * (1 + math.cos(math.pi * step / self.until))
        self._adam.step()
        self._adam.zero_grad()

    def _clip_together(self, optimizer: Optimizer, pulls: FlatWeights, scale: Tensor | None) -> None:
        """Scale the gradients of all parameters and of the probabilities so that their common norm is at most 3."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)).div_(1 if scale is None else scale)
        factor = _CLIP / (torch.hypot(norms.norm(), pulls.flat.norm()) + 1e-6)
        torch._foreach_mul_([*gradients, pulls.flat], factor.clamp(max=1))

    def update(self, step: int, sparsity: float, raw: FlatWeights | None, optimizer: Optimizer) -> None:
        if raw is None or self._settled:
            return
        probability = self._probabilities.flat
        kept = (1 - sparsity) * probability.numel()
        keep_expected(probability, kept)
        if step + 1 >= self.until:
            magnitudes = FlatWeights(self.masks)  # in the order of the probabilities
            magnitudes.copy_(raw.layers)
            self._relaxed.flat.copy_(most_probable(probability, magnitudes.flat.abs(), round(kept)))
            self._settled = True
            return
        self._temperature = 1 / ((1 - _COLDEST) * (1 - max(step, 0) / self.until) + _COLDEST)
        chance = torch.Generator(probability.device).manual_seed(self._seed + 1_000_003 * (step + 1))
        for mask in self._relaxed.layers:  # in logical order: a layer's layout in memory changes nothing
            mask.copy_(torch.rand(mask.shape, generator=chance, dtype=mask.dtype, device=mask.device))
        noise = self._relaxed.flat.clamp(min=2**-25).logit()  # as the difference of two Gumbel samples
        torch.sigmoid((probability.logit() + noise) * self._temperature, out=self._relaxed.flat)

    def state_dict(self) -> dict:
        return super().state_dict() | {
            "probabilities": [p.clone() for p in self._probabilities.layers],
            "adam": copy.deepcopy(self._adam.state_dict()),
            "temperature": self._temperature,
            "seed": self._seed,
            "settled": self._settled,
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._probabilities.copy_(state["probabilities"])
        self._adam.load_state_dict(copy.deepcopy(state["adam"]))
        self._temperature, self._seed, self._settled = state["temperature"], state["seed"], state["settled"]


def keep_expected(probability: Tensor, kept: float) -> None:
    """In place: `clip(p − v, 0, 1)`, v by bisection so that what is left adds up to `kept`, or next to nothing where it
    does so already. Never waits for the device."""
    low = torch.zeros((), dtype=probability.dtype, device=probability.device)
    high = probability.max()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = (probability - middle).clamp_(0, 1).sum(dtype=torch.float64) > kept
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    probability.sub_((low + high) / 2).clamp_(0, 1)


def most_probable(probability: Tensor, magnitude: Tensor, count: int) -> Tensor:
    """Mask (bool, [N]) of the `count` largest of `probability` [N]; among equals those of larger `magnitude` [N]."""
    order = magnitude.argsort(descending=True, stable=True)
    chosen = order[probability[order].argsort(descending=True, stable=True)[:count]]
    mask = torch.zeros_like(probability, dtype=torch.bool)
    mask[chosen] = True
    return mask
