"""Feather (Glentis Georgoulakis et al. 2023, BMVC): thresholding between soft and hard, straight-through gradients."""

from dataclasses import dataclass
from typing import ClassVar

from st3.sparsify.methods.st3 import ST3


@dataclass(frozen=True, kw_only=True)
class Feather(ST3):
    """Feather (BMVC 2023, arXiv:2310.02448): `ŵ = sign(w)·(|w|^p − τ^p)^(1/p)` where |w| > τ, else 0; τ is the global
    quantile, anew in each step.

    No rescaling: large weights are nearly unshrunk. The gradient of zeroed weights is multiplied by θ.
    """

    name: ClassVar[str] = "feather"
    follows: ClassVar[str] = "cubic_0_50"

    exponent: float = 3.0
    rescale: bool = False
    theta: float | None = None
