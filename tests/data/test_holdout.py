"""Which training images are held out."""

import pytest
import torch

from st3.data.holdout import draw_held_out, held_out_count
from st3.errors import UserError


def test_a_number_holds_out_the_images_that_it_always_has():
    # Runs of earlier versions are to be compared with later ones: this may never change.
    labels = torch.arange(100) % 10
    expected = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:7].sort().values
    assert torch.equal(draw_held_out(labels, 7, stratified=False).nonzero()[:, 0], expected)
    assert expected.tolist() == [19, 37, 44, 69, 71, 90, 93]


def test_a_stratified_part_has_the_shares_of_the_whole():
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 95 + [3] * 5)[torch.randperm(1000)]
    for count in (1, 10, 100, 333, 996):
        chosen = draw_held_out(labels, count, stratified=True)
        assert chosen.sum() == count
        for label, size in enumerate((700, 200, 95, 5)):
            held = int(chosen[labels == label].sum())
            assert abs(held - size * count / 1000) <= 1 + 2 * (count > 990)
            assert held < size
    assert torch.equal(chosen, draw_held_out(labels, 996, stratified=True))
    with pytest.raises(UserError, match="997 held out of 1000 training images leave not one for each of 4 classes"):
        draw_held_out(labels, 997, stratified=True)


def test_a_stratified_part_is_drawn_not_the_first_of_each_class():
    chosen = draw_held_out(torch.zeros(1000, dtype=torch.int64), 100, stratified=True)
    assert 5 < chosen[:100].sum() < 20


def test_what_is_held_out_is_a_number_or_a_fraction():
    assert held_out_count(0, 7) == 0
    assert held_out_count(6, 7) == 6
    assert held_out_count(0.1, 50_000) == 5_000
    assert held_out_count(0.5, 7) == 4
