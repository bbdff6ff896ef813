"""No pruning at all."""

import torch
from helpers import RAMP, SPARSE, sgd, smooth, start, train


def test_it_is_dense_training_at_any_schedule_bit_for_bit():
    plain = smooth()
    expected = train(plain, sgd(plain), range(10))
    for schedule in (SPARSE, RAMP):
        model, optimizer, sparsifier = start("dense", schedule)
        assert train(model, optimizer, range(10)) == expected
        for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)
        assert sparsifier.zeros().sum() == 0
        assert not sparsifier.reaches(0.1)
        assert sparsifier.reaches(0.0)
        assert sparsifier.mask_updates() == []
