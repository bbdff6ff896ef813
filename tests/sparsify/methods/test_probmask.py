"""ProbMask: a learned probability of being kept for each weight."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import PHASES, RAMP, STEPS, Naive, batch, check_twin, start, train
from torch import Tensor, nn
from torch.func import functional_call

from st3 import Sparsifier, UserError
from st3.sparsify import PolynomialRamp
from st3.sparsify.methods import ProbMask
from st3.sparsify.methods.probmask import keep_expected, most_probable

CASES = {
    "published": (ProbMask(until=24), RAMP),
    "hard at once": (ProbMask(until=16, probability_lr=0.1), PolynomialRamp(final=0.97, start=0, end=15)),
}
all_cases = pytest.mark.parametrize(("method", "schedule"), CASES.values(), ids=CASES)


class NaiveProbMask(Naive):
    """By autograd: w and p are leaves of the mask, relaxed from the start on; p in one tensor a layer."""

    temperature = None

    def begin(self, state):
        self.seed, self.until = state["seed"], self.method.until.amount
        self.probability = {name: torch.ones_like(self.raw[name]) for name in self.pruned}
        self.adam = torch.optim.Adam(self.probability.values(), lr=1)
        self.choose(-1, self.schedule.value(0))

    def relaxed(self, name, p):
        return torch.sigmoid((torch.log(p) - torch.log(1 - p) + self.noise[name]) * self.temperature)

    def train(self, step, clip):
        images, labels = batch(step, torch.float64)
        leaves = {name: w.clone().requires_grad_() for name, w in self.raw.items()}
        chances = {name: p.clone().requires_grad_() for name, p in self.probability.items()}
        used = dict(leaves)
        for name, p in chances.items():
            mask = self.relaxed(name, p) if self.temperature else self.mask[name]
            used[name] = leaves[name] * mask
        loss = F.cross_entropy(functional_call(self.model, used, images), labels)
        found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        scale = self.clip(found, clip)  # of the training, before the method sees the gradients
        if self.temperature:
            pulls = [scale * g.nan_to_num(0, 0, 0) for g in torch.autograd.grad(loss, list(chances.values()))]
            norm = math.sqrt(sum(g.square().sum().item() for g in [*pulls, *(scale * g for g in found)]))
            together = min(1.0, 3 / (norm + 1e-6))
            scale *= together
            for p, g in zip(self.probability.values(), pulls, strict=True):
                p.grad = g * together
            rate = self.method.probability_lr * (1 + math.cos(math.pi * step / self.until)) / 2
            self.adam.param_groups[0]["lr"] = rate
            self.adam.step()
        self.move({name: scale * g for name, g in zip(leaves, found, strict=True)})
        self.choose(step, self.schedule.value(step))
        return loss.item()

    def choose(self, step, sparsity):
        if step >= self.until:
            return
        shapes = [self.raw[name].shape for name in self.pruned]
        sizes = [shape.numel() for shape in shapes]
        flat = torch.cat([p.flatten() for p in self.probability.values()])
        flat = lowered(flat, (1 - sparsity) * self.total)
        if step == self.until - 1:
            probable, large = flat.tolist(), self.magnitudes().tolist()
            order = sorted(range(self.total), key=lambda i: (-probable[i], -large[i]))
            hard = torch.zeros_like(flat)
            hard[order[: round((1 - sparsity) * self.total)]] = 1
            self.mask = dict(zip(self.pruned, map(Tensor.view, hard.split(sizes), shapes), strict=True))
            self.temperature = None
            return
        chance = torch.Generator().manual_seed(self.seed + 1_000_003 * (step + 1))
        uniform = torch.rand(self.total, generator=chance, dtype=torch.float64)
        noise = torch.log(uniform) - torch.log1p(-uniform)  # distributed as the difference of two Gumbel samples
        self.noise = dict(zip(self.pruned, map(Tensor.view, noise.split(sizes), shapes), strict=True))
        self.temperature = 1 / (0.97 * (1 - max(step, 0) / self.until) + 0.03)
        for (name, p), part in zip(self.probability.items(), flat.split(sizes), strict=True):
            p.copy_(part.view(p.shape))
            self.mask[name] = self.relaxed(name, p)


def lowered(p: Tensor, total: float) -> Tensor:
    """`clip(p − v, 0, 1)`, v the middle of what 20 halvings of [0, max p] leave."""
    low, high = 0.0, p.max().item()
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if (p - middle).clamp(0, 1).sum().item() > total else (low, middle)
    return (p - (low + high) / 2).clamp(0, 1)


def simplex(p: Tensor, total: float) -> Tensor:
    """`clip(p − v, 0, 1)` of sum `total`, v ≥ 0: it lies between two breakpoints, between which the sum is linear."""
    numbers = p.tolist()

    def clipped(v):
        return sum(min(max(x - v, 0.0), 1.0) for x in numbers)

    if clipped(0) <= total:
        return p.clamp(0, 1)
    breaks = sorted({0.0, *(x for x in numbers if x > 0), *(x - 1 for x in numbers if x > 1)})
    low, high = 0, len(breaks) - 1  # clipped(breaks[low]) > total >= clipped(breaks[high])
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if clipped(breaks[middle]) > total else (low, middle)
    above, below = clipped(breaks[low]), clipped(breaks[high])
    v = breaks[low] + (breaks[high] - breaks[low]) * (above - total) / (above - below)
    return (p - v).clamp(0, 1)


@all_cases
def test_training_equals_the_naive_formulation(method, schedule):
    check_twin(NaiveProbMask, method, schedule)


@all_cases
def test_it_keeps_as_many_as_expected_and_then_exactly_the_target(method, schedule):
    model, optimizer, sparsifier = start(method, schedule)
    final, total = schedule.final, sparsifier.prunable
    before = None
    for step in range(STEPS):
        train(model, optimizer, [step])
        state, sparsity = sparsifier.state_dict()["method"], schedule.value(step)
        flat = torch.cat([p.flatten() for p in state["probabilities"]]).double()
        assert 0 <= flat.min() <= flat.max() <= 1
        assert flat.sum() <= (1 - sparsity) * total * (1 + 1e-5)
        if step >= method.until.amount - 1:
            kept = torch.cat([m.flatten() for m in state["masks"]])
            assert set(kept.unique().tolist()) == {0, 1}
            assert sparsifier.zeros().sum() == total - round((1 - final) * total)
            assert flat[kept == 1].min() >= flat[kept == 0].max()
            assert before is None or torch.equal(kept, before)
            assert sparsifier.reaches(final)
            before = kept


def test_relaxed_masks_do_not_count_as_sparse():
    """The ramp is at its end at step 18, but the zeros are there only from step 23 on."""
    model, optimizer, sparsifier = start(ProbMask(until=24), RAMP)
    reached = []
    for step in range(STEPS):
        train(model, optimizer, [step])
        reached.append(sparsifier.reaches(0.8))
    assert reached == [False] * 23 + [True] * 7


def test_what_it_learns_to_keep_is_what_matters():
    """The target depends on two of eight inputs; every weight begins with the same magnitude."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    nn.init.constant_(model[0].weight, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    method = ProbMask(until=250, probability_lr=0.05)
    sparsifier = Sparsifier(model, method, PolynomialRamp(final=0.75, start=20, end=200)).attach(optimizer)
    for _ in range(300):
        inputs = torch.randn(64, 8)
        loss = (model(inputs)[:, 0] - inputs[:, 2] - inputs[:, 5]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model[0].weight.detach().nonzero()[:, 1].tolist() == [2, 5]
    assert sparsifier.zeros().sum() == 6
    assert loss < 0.1


def test_the_gradient_of_all_probabilities_together_is_clipped():
    """Beyond a norm of 3 its size makes no difference. To Adam alone it would, where it varies from step to step."""
    learned = []
    for scales in ([1000.0] * 6, [1000.0, 5000.0, 2000.0] * 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 1, bias=False))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        method, ramp = ProbMask(until=40), PolynomialRamp(final=0.5, start=0, end=10)
        sparsifier = Sparsifier(model, method, ramp).attach(optimizer)
        inputs = torch.randn(64, 8)
        for scale in scales:
            optimizer.zero_grad()
            (scale * (model(inputs)[:, 0] - inputs[:, 2]).square().mean()).backward()
            optimizer.step()
        [probability] = sparsifier.state_dict()["method"]["probabilities"]
        assert (probability < 1).any()
        learned.append(probability)
    torch.testing.assert_close(*learned, atol=1e-5, rtol=0)


def test_the_noise_differs_from_run_to_run():
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        pruner = ProbMask(until=24).start([torch.ones(2, 2)], RAMP, None)
        drawn.append(pruner.state_dict()["seed"])
    assert drawn[0] != drawn[1]


# Its two functions ----------------------------------------------------------------------------------------------------


def test_the_most_probable_are_exactly_as_many_and_ties_go_to_the_larger_weights():
    probability = torch.tensor([1.0, 0, 0.5, 1, 0, 0.5])
    magnitude = torch.tensor([0.0, 3, 1, 0, 4, 2])
    kept = [most_probable(probability, magnitude, count).nonzero().flatten().tolist() for count in (0, 2, 3, 4, 5, 6)]
    assert kept == [[], [0, 3], [0, 3, 5], [0, 2, 3, 5], [0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_cut_by_the_least_amount_as_far_as_the_bisection_goes(dtype):
    torch.manual_seed(0)
    for total in (1.0, 30.7, 60.0):
        values = 0.7 * torch.randn(100, dtype=dtype) + 0.5
        cut = values.clone()
        keep_expected(cut, total)
        torch.testing.assert_close(cut, simplex(values, total), atol=2e-6, rtol=0)
    cut = values.clone()
    keep_expected(cut, 99.0)  # leaves room: next to nothing but the clipping
    torch.testing.assert_close(cut, values.clamp(0, 1), atol=2e-6, rtol=0)


def test_certainty_leaves_probabilities_their_gradient():
    """As the authors' bisection stops, p is 1 − 5e-7 and not 1, so that Adam counts its steps from the first one on."""
    certain = torch.ones(50, dtype=torch.float64)
    keep_expected(certain, 50)
    torch.testing.assert_close(1 - certain, torch.full_like(certain, 2**-21))


# When masks become hard -----------------------------------------------------------------------------------------------


def test_masks_change_in_each_step_until_they_are_hard():
    assert start(ProbMask(until=24), RAMP)[2].mask_updates() == list(range(24))
    assert start(ProbMask(), RAMP, length=40)[2].mask_updates() == list(range(35))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: start(ProbMask(), RAMP, length=None), "method.until=87.5% depends on the length of the training"),
        (lambda: start(ProbMask(until=18), RAMP), "makes the mask hard before schedule.end: raise the one or lower"),
        (lambda: start(ProbMask(), PHASES), "this method never becomes dense again: schedule=probmask"),
        (lambda: ProbMask(probability_lr=0.0), "method.probability_lr=0 must be positive"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_masks_may_become_hard_as_soon_as_the_ramp_ends():
    model, optimizer, sparsifier = start(ProbMask(until=19), RAMP)
    train(model, optimizer, range(18))
    assert not sparsifier.reaches(0.8)
    train(model, optimizer, [18])
    assert sparsifier.reaches(0.8)
