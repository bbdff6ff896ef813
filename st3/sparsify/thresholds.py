"""Global magnitude thresholds: exact quantiles, plain and weighted by what a weight costs.

One rule for ties everywhere in st3: a weight is kept when its magnitude is strictly above the threshold. So all
weights that tie with the threshold are zeroed together (soft shrinking maps them to zero in any case).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from st3.sparsify.costs import Costs


def quantile(values: Tensor, q: float | Tensor) -> Tensor:
    """The `q` quantile (a number or 0-d float64) of `values` [N], 0-d, dtype and device of `values`.

    Interpolates linearly between the neighbouring order statistics at rank `(N − 1)·q`, as `torch.quantile` does
    (which refuses more than 16 M elements). The result stays strictly below the upper neighbour unless the two tie,
    so exactly `floor((N − 1)·q) + 1` values are `<=` it when none tie: within 1 of `q·N`. Never waits for a CUDA
    device.
    """
    last = values.numel() - 1
    if values.is_cuda:
        if not isinstance(q, Tensor):
            q = torch.full((), q, dtype=torch.float64, device=values.device)  # a copy from the host would wait
        rank = q * last
        below = rank.floor()
        ordered = values.sort().values
        index = torch.stack([below, below + 1]).long().clamp(max=last)
        low, high = ordered.take(index)  # indexing by a tensor would wait for its value
    else:
        place = last * float(q)
        first = math.floor(place)
        low, high = torch.from_numpy(_order_statistics(values.numpy(), first, min(first + 1, last)))
        return _between(low, high, place - first)
    return _between(low, high, rank - below)


def weighted_quantile(values: Tensor, costs: Tensor, q: float | Tensor) -> Tensor:
    """The threshold at which the values `<=` it carry the fraction `q` of all `costs`, within one value's cost.

    `values` [N] float, `costs` [N] int64, 0 and more. Equal costs give `quantile(values, q)`. With the values in
    ascending order, value i sits at the cost of all values below it; the threshold interpolates linearly between the
    neighbours of position `q·(total − cost of the largest value)`. Where several values sit at one place, all but the
    largest cost nothing, and they lie below the threshold together with it. 0-d, dtype and device of `values`; never
    waits for the device.
    """
    ordered, order = values.sort()
    costs = costs[order]
    position = costs.cumsum(0) - costs
    wanted = position[-1].double() * q
    below = (torch.searchsorted(position, wanted, right=True) - 1).clamp(max=len(values) - 1)
    above = (below + 1).clamp(max=len(values) - 1)
    start, stop = position.take(below), position.take(above)
    return _between(ordered.take(below), ordered.take(above), (wanted - start) / (stop - start).clamp(min=1))


def layer_thresholds(
    magnitudes: Tensor,
    sizes: Sequence[int],
    q: float | Tensor,
    *,
    min_density: float = 0.0,
    costs: Costs | None = None,
) -> Tensor:
    """The quantile of all `magnitudes` [N] for each layer, `sizes` weights long, [layers].

    With `min_density` it is lower where a layer would keep less than that fraction of its weights, or none, and higher
    for the others: as many weights as before lie above. With `costs` it is the `weighted_quantile` of what the weights
    save in the order of their magnitudes within their layers. Never waits for a CUDA device.
    """
    if min_density:
        magnitudes, ceilings = hold_open(magnitudes.split(list(sizes)), min_density)
    if costs is None:
        threshold = quantile(magnitudes, q)
    else:
        saved = costs.of_ranks(magnitudes.split(list(sizes)))
        threshold = weighted_quantile(magnitudes, saved, costs.share(q))
    return torch.minimum(threshold, ceilings) if min_density else threshold.expand(len(sizes))


def hold_open(magnitudes: Sequence[Tensor], min_density: float) -> tuple[Tensor, Tensor]:
    """What keeps the fraction `min_density` of every layer (at least one weight) above a threshold common to all.

    `magnitudes`: of each layer, [n]. Returns a copy of them all, [N], in which those that a layer keeps in any case are
    out of reach of a quantile, and the highest threshold of each layer that leaves it these, [layers]. A layer's
    threshold is the lower one of that and a quantile of the copy; so the total is exact. Never waits for the device.
    """
    copy = torch.cat(list(magnitudes))
    ceilings = []
    for layer in copy.split([each.numel() for each in magnitudes]):
        held = held_open(layer.numel(), min_density)
        ceiling = layer.kthvalue(layer.numel() - held).values if held < layer.numel() else torch.zeros_like(layer[0])
        layer.masked_fill_(layer > ceiling, torch.finfo(layer.dtype).max)
        ceilings.append(ceiling)
    return copy, torch.stack(ceilings)


def held_open(weights: int, min_density: float) -> int:
    """How many of a layer's `weights` are kept in any case."""
    return max(1, math.ceil(min_density * weights))


def _between(low: Tensor, high: Tensor, fraction: Tensor | float) -> Tensor:
    threshold = (low.double() + (high.double() - low.double()) * fraction).to(low.dtype)
    # Rounding may lift the threshold onto its upper neighbour, which would then be zeroed too.
    return torch.where(threshold < high, threshold, low)


_SAMPLE_EVERY = 61
"""Prime, so that no regular pattern in the weights is sampled always at the same place."""
_WORTH_SAMPLING = 1 << 17
_CHUNK = 1 << 16
"""Values at a time: they stay in the processor's cache."""


def _order_statistics(values: np.ndarray, below: int, above: int) -> np.ndarray:
    """The values of ranks `below` and `above` <= below + 1 (0-based, ascending), [2].

    Floyd & Rivest's SELECT (1975, CACM algorithm 489): a sample brackets the wanted values, one pass counts what lies
    below the bracket and collects what lies inside, and only that is partitioned. Where the bracket misses, everything
    is: O(N) in both cases, and always exact.
    """
    if values.size >= _WORTH_SAMPLING:
        sample = np.sort(values[::_SAMPLE_EVERY])
        margin = 2 * math.sqrt(sample.size)  # at least four standard deviations of a random sample's rank
        first, last = int(below / _SAMPLE_EVERY - margin), int(below / _SAMPLE_EVERY + margin) + 1
        low = sample[first] if first >= 0 else -np.inf
        high = sample[last] if last < sample.size else np.inf
        skipped, bracket = 0, []
        for start in range(0, values.size, _CHUNK):
            chunk = values[start : start + _CHUNK]
            at_least = chunk >= low
            skipped += chunk.size - int(np.count_nonzero(at_least))
            bracket.append(chunk[at_least & (chunk <= high)])
        inside = np.concatenate(bracket)
        if skipped <= below and above < skipped + inside.size:
            values, below, above = inside, below - skipped, above - skipped
    return np.partition(values, (below, above))[[below, above]]
