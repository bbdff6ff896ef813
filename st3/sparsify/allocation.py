"""How many weights each layer keeps, when the layers' shares are fixed before training."""

import math
from collections.abc import Sequence


def uniform(shapes: Sequence[tuple[int, ...]], density: float) -> list[int]:
    """Every layer keeps the fraction `density`. Weights kept by each layer; their sum is `round(density·N)`."""
    sizes = [math.prod(shape) for shape in shapes]
    return _whole([density * size for size in sizes], sizes, round(density * sum(sizes)))


def erdos_renyi_kernel(shapes: Sequence[tuple[int, ...]], density: float) -> list[int]:
    """ERK (Evci et al. 2020, arXiv:1911.11134): layer densities `min(1, ε·Σ dims / Π dims)`, ε such that they add up.

    `shapes`: of the weights, `[out, in/groups, kh, kw]` or `[out, in]`. Layers that ε would fill beyond 1 stay dense
    and the others take what is left. Weights kept by each layer; their sum is `round(density·N)`, not about it.
    """
    sizes = [math.prod(shape) for shape in shapes]
    shares = [sum(shape) for shape in shapes]  # density ∝ Σ/Π, so weights kept ∝ Σ
    dense: set[int] = set()
    epsilon = 0.0
    while open_ := [i for i in range(len(shapes)) if i not in dense]:
        left = density * sum(sizes) - sum(sizes[i] for i in dense)
        epsilon = left / sum(shares[i] for i in open_)
        full = {i for i in open_ if epsilon * shares[i] > sizes[i]}
        if not full:
            break
        dense |= full
    wanted = [sizes[i] if i in dense else epsilon * shares[i] for i in range(len(shapes))]
    return _whole(wanted, sizes, round(density * sum(sizes)))


def _whole(wanted: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers next to `wanted` that add up to `total`, those with the largest remainders rounded up."""
    kept = [min(math.floor(each), size) for each, size in zip(wanted, sizes, strict=True)]
    by_remainder = sorted(range(len(kept)), key=lambda i: kept[i] - wanted[i])
    for i in by_remainder[: total - sum(kept)]:
        kept[i] += 1
    return kept
