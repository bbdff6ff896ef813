import copy

import pytest
import torch
from benchmarks.naive import Naive
from helpers import network, sgd, train

from st3 import Sparsifier


def test_the_naive_contender_computes_the_same_training():
    model = network(torch.float64)
    other = copy.deepcopy(model)
    naive, optimizer = Naive(other, sparsity=0.9), sgd(other)
    ours = sgd(model)
    sparsifier = Sparsifier(model, "st3", 0.9).attach(ours)
    losses = train(model, ours, range(10), torch.float64, clip=1.0)
    optimizer.register_step_post_hook(lambda *_: naive.update())
    assert train(other, optimizer, range(10), torch.float64, clip=1.0) == pytest.approx(losses, abs=1e-12, rel=0)
    raw = sparsifier.raw_weights()
    for name, ours, theirs, sparse in zip(raw, raw.values(), naive.weights, naive.sparse(), strict=True):
        torch.testing.assert_close(theirs.detach(), ours, atol=1e-12, rtol=0)
        torch.testing.assert_close(sparse, sparsifier.weights[name].detach(), atol=1e-12, rtol=0)
