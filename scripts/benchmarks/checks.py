"""No time is reported of what computes something else: each check raises a `UserError` that says what is wrong."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from benchmarks.harness import SPARSITY, Result
from benchmarks.naive import shrink_and_rescale
from st3.errors import UserError
from st3.sparsify import Sparsifier
from st3.sparsify.projections import sigma


def check_weights(name: str, sparsifier: Sparsifier) -> Result:
    """Counts of the exact zeros in the network, which must be those of its method's masks or thresholds."""
    raw, sparse = list(sparsifier.raw_weights().values()), list(sparsifier.weights.values())
    kept = sparsifier.state_dict()["method"].get("masks")
    if not kept:
        kept = [w.abs() > threshold for w, threshold in zip(raw, sparsifier.thresholds(), strict=True)]
    return check_zeros(name, sparse, raw, kept, any_count=sparsifier.sparsity_is_outcome or not sparsifier.sparsity)


def check_zeros(
    name: str, sparse: Sequence[Tensor], raw: Sequence[Tensor], kept: Sequence[Tensor], *, any_count: bool = False
) -> Result:
    """Counts of the exact zeros in `sparse` and, unless the method may make `any_count`, of those asked for.

    The masks `kept` must have as many, but for magnitudes that tied. `sparse` must have the zeros of `raw` times
    `kept`, which are more where a weight was grown and has had no gradient yet; rounding may move one.
    """
    total, masked, found = sum(w.numel() for w in raw), _zeros(kept), _zeros(sparse)
    wanted = math.floor((total - 1) * SPARSITY) + 1
    if not any_count and abs(masked - wanted) > max(1, 1e-6 * total):
        raise UserError(f"{name} masks {masked:,} weights of {total:,}, not {wanted:,}: nothing reported")
    moved = sum(int(((s == 0) != (w * k == 0)).sum()) for s, w, k in zip(sparse, raw, kept, strict=True))
    if moved > 1:
        raise UserError(f"{name} has {moved:,} weights that are 0 and should not be, or the reverse: nothing reported")
    return {"zeros": found, "weights": total} | ({} if any_count else {"zeros_expected": wanted})


def check_threshold(name: str, values: Tensor, tau: Tensor) -> None:
    """`tau` must be interpolated between the right two of all |values| [N], and not be the upper one."""
    low, high, wanted = quantile_by_sorting(values)
    found = tau.item()
    separates = low <= found < high or low == found == high
    if not (separates and math.isclose(wanted, found, rel_tol=2**-22)):
        raise UserError(f"{name} finds the threshold {found!r} between {low!r} and {high!r}, not {wanted!r}")


def check_projection(name: str, raw: Sequence[Tensor], sparse: Sequence[Tensor], *, by_sigma: bool = False) -> None:
    """`sparse` must be the projection of `raw` by the equations: the zeros exactly, all other weights to 1e-4."""
    units = [sigma(w.shape) if by_sigma else 1.0 for w in raw]
    _, _, tau = quantile_by_sorting(torch.cat([w.flatten() / unit for w, unit in zip(raw, units, strict=True)]))
    differing = 0
    for weight, projected, unit in zip(raw, sparse, units, strict=True):
        expected = shrink_and_rescale(weight.double(), tau * unit)
        wrong = ~torch.isclose(projected.double(), expected, rtol=1e-4, atol=1e-6)
        wrong |= (projected == 0) != (expected == 0)
        differing += int(wrong.flatten(1).any(1).sum())
    if differing > 1:  # rounding may move one weight across the threshold, which rescales its output channel
        raise UserError(f"{name} projects {differing} channels to other weights than the equations say")


def quantile_by_sorting(values: Tensor) -> tuple[float, float, float]:
    """The neighbours of the quantile of |values| [N], and what is interpolated between them."""
    ordered, rank = values.abs().sort().values, (len(values) - 1) * SPARSITY
    low, high = ordered[math.floor(rank)].item(), ordered[math.ceil(rank)].item()
    return low, high, low + (high - low) * (rank % 1)


def _zeros(tensors: Iterable[Tensor]) -> int:
    return sum(int((each == 0).sum()) for each in tensors)
