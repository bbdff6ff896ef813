"""Why rescaling can cost accuracy in front of BatchNorm, on a network of three layers in float64.

A factor κ of an output channel is taken out again by the BatchNorm behind it. Forward nothing changes, but the gradient
of the channel's weights is divided by κ, and straight-through hands the raw weights that gradient. A channel without a
live weight is constant, and BatchNorm multiplies what comes back to it by 1/√ε: its weights get the larger part of the
gradient, and clipping the norm then leaves the living ones next to nothing.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from st3.sparsify.projections import rescale_factor, soft_threshold

DEAD = 5
"""An output channel of the second layer, all of whose weights are below the threshold."""
TAU = 0.1


def network(eps: float) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=eps), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8, eps=eps), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).double()  # fmt: skip


def step(rescale: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the gradient at the second layer's sparse weights, and κ of its channels [8]."""
    model = network(eps)
    nn.init.constant_(model[4].bias, 0.1)  # as after a few steps: at 0 the ReLU would let nothing through
    raw = model[3].weight.detach().clone()
    raw[DEAD] *= 0.1
    kappa = rescale_factor(raw, raw.abs() > TAU)
    model[3].weight.data = soft_threshold(raw, torch.tensor(TAU)) * (kappa if rescale else 1)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(64, 3, 10, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (64,), generator=generator)
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    return logits.detach(), model[3].weight.grad, kappa.flatten()


def test_before_batchnorm_rescaling_changes_nothing_forward_and_divides_the_gradient_by_kappa():
    (with_it, rescaled, kappa), (without, plain, _) = step(True, eps=1e-14), step(False, eps=1e-14)
    living = torch.arange(8) != DEAD
    torch.testing.assert_close(with_it, without, rtol=1e-8, atol=1e-8)
    ratio = (plain / rescaled).flatten(1)[living]
    expected = kappa[living][:, None].expand_as(ratio)
    torch.testing.assert_close(ratio, expected, rtol=1e-6, atol=0)
    assert expected.min() > 2  # and that is much
    torch.testing.assert_close(plain[DEAD], rescaled[DEAD])  # which is not divided


def test_a_channel_without_a_live_weight_gets_a_gradient_in_proportion_to_one_over_the_root_of_eps():
    small, large = (step(rescale=True, eps=eps)[1] for eps in (1e-5, 1e-3))
    assert (small[DEAD].norm() / large[DEAD].norm()).item() == pytest.approx(10, rel=0.05)
    others = torch.arange(8) != DEAD
    assert (small[others].norm() / large[others].norm()).item() == pytest.approx(1, abs=0.1)


def test_with_rescaling_clipping_leaves_the_living_channels_the_least():
    """The share of the squared gradient norm on the dead channel, one of eight."""
    share = {}
    for rescale in (True, False):
        for eps in (1e-5, 1e-3):
            gradient = step(rescale, eps)[1]
            share[rescale, eps] = (gradient[DEAD].norm() ** 2 / gradient.norm() ** 2).item()
    assert share[True, 1e-5] > share[False, 1e-5] > share[False, 1e-3]
    assert share[True, 1e-5] > share[True, 1e-3] > share[False, 1e-3]
    assert share[True, 1e-5] > 0.95
