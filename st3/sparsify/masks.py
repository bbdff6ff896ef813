"""What the methods share that keep a mask between steps."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.method import Pruner
from st3.sparsify.schedules import Schedule
from st3.sparsify.thresholds import layer_thresholds


class MaskPruner(Pruner):
    """The sparse weights are `w·m`, and the gradient is masked, too. Methods decide when and how m changes.

    With `for_good` a masked weight is 0 also among the raw ones, and starts from there if it comes back.
    """

    def __init__(self, weights: Sequence[Tensor], *, for_good: bool):
        self.masks = [torch.ones_like(w, dtype=torch.bool) for w in weights]
        """bool, laid out as the weights."""
        self.level = 0.0
        """The scheduled sparsity when the masks were last changed; 0 where nothing is pruned."""
        self._for_good = for_good

    def set_masks(self, masks: Sequence[Tensor]) -> None:
        """In place: a captured step knows where they are."""
        for mine, new in zip(self.masks, masks, strict=True):
            mine.copy_(new)

    def due(self, step: int, sparsity: float, level: float) -> bool:
        """Whether masks of `level` change in this step."""
        raise NotImplementedError

    def changes(self, step: int, sparsity: float) -> bool:
        return self.due(step, sparsity, self.level)

    def updates(self, schedule: Schedule, steps: int) -> list[int]:
        level, found = 0.0, []
        for step in range(steps):
            sparsity = schedule.value(step)
            if self.due(step, sparsity, level):
                found.append(step)
                level = sparsity
            if not sparsity:
                level = 0.0
        return found

    def needs_dense_gradient(self, step: int) -> bool:
        """Whether the masks change by the gradient of this step, which therefore must not be masked before."""
        return False

    def route(self, layer: int, weight: Tensor, raw: Tensor, gradient: Tensor, step: int) -> Tensor:
        return gradient if self.needs_dense_gradient(step) else gradient * self.masks[layer]

    def update(self, step: int, sparsity: float, raw: FlatWeights | None, optimizer: Optimizer) -> None:
        if raw is None:
            self.level = 0.0
        elif self._for_good:
            torch._foreach_mul_(raw.layers, self.masks)

    def project(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
        torch._foreach_copy_(list(out), torch._foreach_mul(raw.layers, self.masks))
        return raw.flat.new_zeros(len(raw.layers))

    def state_dict(self) -> dict:
        return {"masks": [mask.clone() for mask in self.masks], "level": self.level}

    def load_state_dict(self, state: dict) -> None:
        self.set_masks(state["masks"])
        self.level = state.get("level", 0.0)  # some methods did not keep it once


class FixedMasks(MaskPruner):
    """What is zero now stays zero, and the other weights are trained as they are."""

    def __init__(self, weights: Sequence[Tensor], sparsity_is_outcome: bool):
        super().__init__(weights, for_good=True)
        self.sparsity_is_outcome = sparsity_is_outcome

    def due(self, step: int, sparsity: float, level: float) -> bool:
        return False


def largest(scores: Tensor, count: int) -> Tensor:
    """Mask (bool, shape of `scores`) of the `count` largest, exactly so many also where scores tie."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(count, sorted=False).indices] = True
    return mask.view(scores.shape)


def above_quantile(raw: FlatWeights, sparsity: float, min_density: float = 0.0) -> list[Tensor]:
    """Masks (bool, laid out as `raw.layers`) of the weights above the thresholds of `layer_thresholds`."""
    thresholds = layer_thresholds(raw.flat.abs(), raw.sizes, sparsity, min_density=min_density)
    return [w.abs() > threshold for w, threshold in zip(raw.layers, thresholds, strict=True)]


def drop_and_grow(mask: Tensor, magnitude: Tensor, growth: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Drop the `count` kept weights of smallest `magnitude`, and grow as many where `growth` is largest.

    All of one shape. What has just been dropped competes for growth: a weight that wins stays as it is. Returns the new
    mask and, of it, what was masked before.
    """
    survivors = largest(magnitude.masked_fill(~mask, -1), int(mask.sum()) - count)
    grown = largest(growth.masked_fill(survivors, -1), count)
    return survivors | grown, grown & ~mask


def clear_state(optimizer: Optimizer, weight: Tensor, where: Tensor | None = None) -> None:
    """Set the optimizer's memory of `weight` (momentum, second moments) to 0, everywhere or at the mask `where`."""
    for value in optimizer.state.get(weight, {}).values():
        if torch.is_tensor(value) and value.shape == weight.shape:
            if where is None:
                value.zero_()
            else:
                value.masked_fill_(where, 0)
