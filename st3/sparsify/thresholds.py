"""Global magnitude thresholds: exact quantiles, plain and weighted by what a weight costs.

One rule for ties everywhere in st3: a weight is kept when its magnitude is strictly above the threshold. So all
weights that tie with the threshold are zeroed together (soft shrinking maps them to zero in any case).
"""

import math

import numpy as np
import torch
from torch import Tensor


def quantile(values: Tensor, q: float) -> Tensor:
    """The `q` quantile of `values` [N], as a 0-d tensor of the same dtype on the same device.

    Interpolates linearly between the neighbouring order statistics at rank `(N − 1)·q`, as `torch.quantile` does
    (which refuses more than 16 M elements). The result stays strictly below the upper neighbour unless the two tie,
    so exactly `floor((N − 1)·q) + 1` values are `<=` it when none tie: within 1 of `q·N`. Never waits for the device.
    """
    rank = (values.numel() - 1) * q
    below = math.floor(rank)
    above = min(below + 1, values.numel() - 1)
    if values.is_cuda:
        ordered = values.sort().values
        low, high = ordered[below], ordered[above]
    else:  # O(N) selection instead of a sort
        ordered = np.partition(values.numpy(), (below, above))
        low, high = torch.as_tensor(ordered[below]), torch.as_tensor(ordered[above])
    return _between(low, high, rank - below)


def weighted_quantile(values: Tensor, costs: Tensor, q: float) -> Tensor:
    """The threshold at which the values `<=` it carry the fraction `q` of all `costs`, within one value's cost.

    `values` [N] float, `costs` [N] int64. Equal costs give `quantile(values, q)`. With the values in ascending order,
    value i sits at the cost of all values below it; the threshold interpolates linearly between the neighbours of
    position `q·(total − cost of the largest value)`. 0-d, dtype and device of `values`; never waits for the device.
    """
    ordered, order = values.sort()
    costs = costs[order]
    position = costs.cumsum(0) - costs
    wanted = position[-1].double() * q
    below = (torch.searchsorted(position, wanted, right=True) - 1).clamp(max=len(values) - 1)
    above = (below + 1).clamp(max=len(values) - 1)
    start, stop = position.take(below), position.take(above)  # indexing by a tensor would wait for its value
    return _between(ordered.take(below), ordered.take(above), (wanted - start) / (stop - start).clamp(min=1))


def _between(low: Tensor, high: Tensor, fraction: Tensor | float) -> Tensor:
    threshold = (low + (high - low) * fraction).to(low.dtype)
    # Rounding may lift the threshold onto its upper neighbour, which would then be zeroed too.
    return torch.where(threshold < high, threshold, low)
