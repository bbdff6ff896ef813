"""What the methods with masks share, on bare tensors: exact counts, also where scores tie."""

import pytest
import torch
from torch import nn

from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.masks import MaskPruner, above_quantile, clear_state, drop_and_grow, largest


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The largest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 23, 24])
@pytest.mark.parametrize("ties", ["none", "pairs", "all"])
def test_largest_keeps_exactly_so_many_also_where_scores_tie(count, ties):
    scores = {"none": random(2, 3, 4), "pairs": random(2, 3, 2).repeat(1, 1, 2), "all": torch.ones(2, 3, 4)}[ties]
    mask = largest(scores, count)
    assert (mask.shape, mask.dtype) == (scores.shape, torch.bool)
    assert mask.sum() == count
    if 0 < count < 24:
        assert scores[mask].min() >= scores[~mask].max()


def test_largest_follows_the_scores_in_any_layout():
    scores = random(4, 6, 3, 3)
    expected = scores.flatten().argsort(descending=True)[:50]
    for laid_out in (scores, scores.to(memory_format=torch.channels_last)):
        assert set(largest(laid_out, 50).flatten().nonzero().flatten().tolist()) == set(expected.tolist())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.97])
def test_above_quantile_is_one_threshold_for_all_layers(memory_format, sparsity):
    weights = [random(4, 6, 3, 3).contiguous(memory_format=memory_format), random(5, 7, seed=1)]
    raw = FlatWeights.copy_of(weights)
    masks = above_quantile(raw, sparsity)
    magnitudes = torch.cat([w.abs().flatten() for w in weights])
    threshold = torch.quantile(magnitudes, sparsity)
    for mask, weight, layer in zip(masks, weights, raw.layers, strict=True):
        assert mask.stride() == layer.stride()
        assert torch.equal(mask, weight.abs() > threshold)
    zeros = sum((~mask).sum().item() for mask in masks)
    assert zeros == int((len(magnitudes) - 1) * sparsity) + 1


# Drop and grow --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kept", [0, 1, 12, 23, 24])
@pytest.mark.parametrize("ties", [False, True])
def test_as_many_grow_as_are_dropped(share, kept, ties):
    count = round(share * kept)
    magnitude, growth = random(4, 6).abs(), random(4, 6, seed=1).abs()
    if ties:
        magnitude, growth = torch.ones(4, 6), torch.zeros(4, 6)
    mask = largest(random(4, 6, seed=2), kept)
    before = mask.clone()
    new, grown = drop_and_grow(mask, magnitude, growth, count)
    assert torch.equal(mask, before)
    assert new.sum() == kept
    assert grown.sum() == (before & ~new).sum() <= count
    assert torch.equal(grown, new & ~before)


def test_it_is_the_smallest_that_drop_and_the_largest_that_grow():
    mask = torch.tensor([True, True, True, True, False, False, False, False])
    magnitude = torch.tensor([0.4, 0.1, 0.3, 0.2, 9.0, 9.0, 9.0, 9.0])
    growth = torch.tensor([9.0, 0.0, 9.0, 0.0, 0.1, 0.4, 0.2, 0.3])
    new, grown = drop_and_grow(mask, magnitude, growth, 2)
    assert new.tolist() == [True, False, True, False, False, True, False, True]
    assert grown.tolist() == [False] * 5 + [True, False, True]


def test_what_has_just_been_dropped_competes_and_stays_as_it_is_if_it_wins():
    mask = torch.tensor([True, True, True, False, False])
    magnitude, growth = torch.tensor([0.1, 0.2, 0.9, 0.0, 0.0]), torch.tensor([5.0, 1.0, 9.0, 2.0, 0.0])
    new, grown = drop_and_grow(mask, magnitude, growth, 2)  # drops the first two; grows the first and the fourth
    assert new.tolist() == [True, False, True, True, False]
    assert grown.tolist() == [False, False, False, True, False]


def test_kept_weights_that_are_zero_drop_before_others():
    mask = torch.tensor([True, True, False, False])
    new, _ = drop_and_grow(mask, torch.tensor([0.0, 0.5, 0.0, 0.0]), torch.zeros(4), 1)
    assert new[:2].tolist() == [False, True]


# The optimizer's memory -----------------------------------------------------------------------------------------------


def trained(make) -> tuple[nn.Parameter, nn.Parameter, torch.optim.Optimizer]:
    torch.manual_seed(0)
    one, other = nn.Parameter(random(3, 4)), nn.Parameter(random(3, 4, seed=1))
    optimizer = make([one, other])
    for step in range(3):
        one.grad, other.grad = random(3, 4, seed=2 + step), random(3, 4, seed=9 + step)
        optimizer.step()
    return one, other, optimizer


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), {"momentum_buffer"}),
        (lambda p: torch.optim.AdamW(p, 0.1), {"exp_avg", "exp_avg_sq"}),
        (lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True), {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    ],
    ids=["sgd", "adamw", "amsgrad"],
)
def test_memory_is_cleared_exactly_where_asked(make, kept):
    one, other, optimizer = trained(make)
    before = {name: optimizer.state[one][name].clone() for name in kept}
    untouched = {name: optimizer.state[other][name].clone() for name in kept}
    where = largest(random(3, 4, seed=5), 5)
    clear_state(optimizer, one, where)
    for name in kept:
        value = optimizer.state[one][name]
        assert (value[where] == 0).all()
        assert (value[~where] != 0).all()
        assert torch.equal(value[~where], before[name][~where])
        assert torch.equal(optimizer.state[other][name], untouched[name])
    if "exp_avg" in kept:
        assert optimizer.state[one]["step"] == 3
    clear_state(optimizer, one)
    assert all((optimizer.state[one][name] == 0).all() for name in kept)
    assert all(torch.equal(optimizer.state[other][name], untouched[name]) for name in kept)


def test_an_optimizer_without_memory_has_nothing_to_clear():
    for make in (lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)):
        weight = nn.Parameter(random(3, 4))
        optimizer = make([weight])
        clear_state(optimizer, weight, torch.ones(3, 4, dtype=torch.bool))
        assert not optimizer.state.get(weight)
    one, _, optimizer = trained(lambda p: torch.optim.SGD(p, 0.1))
    clear_state(optimizer, one)


def test_a_state_from_before_levels_were_kept_loads():
    pruner = MaskPruner([torch.ones(2, 3)], for_good=True)
    mask = largest(random(2, 3), 2)
    pruner.load_state_dict({"masks": [mask]})
    assert torch.equal(pruner.masks[0], mask)
    assert pruner.level == 0
