"""Each method against its equations, written a second time with explicit masks and SGD by hand; its invariants; how it
continues; what it claims."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from test_sparsifier import batch, network, sgd, train
from torch import Tensor, nn
from torch.func import functional_call

from st3 import Sparsifier, UserError
from st3.measure import layer_macs
from st3.sparsify import METHODS, ST3, AlternatingPhases, Constant, PolynomialRamp
from st3.sparsify.allocation import erdos_renyi_kernel, uniform
from st3.sparsify.methods.acdc import ACDC
from st3.sparsify.methods.feather import Feather
from st3.sparsify.methods.gmp import GMP
from st3.sparsify.methods.granet import GraNet
from st3.sparsify.methods.probmask import ProbMask, keep_expected, most_probable
from st3.sparsify.methods.rigl import RigL
from st3.sparsify.methods.str_ import STR
from st3.sparsify.methods.topkast import TopKAST
from st3.training.ema import RawAverage

STEPS = 30
RAMP = PolynomialRamp(final=0.8, start=3, end=18)
STEEP = PolynomialRamp(final=0.97, start=0, end=15)
PHASES = AlternatingPhases(final=0.8, start=4, period=5, last_dense=19, end=24)
SPARSE = Constant(0.8)

CASES = {
    "hard_ste": (METHODS["hard_ste"], RAMP),
    "gmp": (GMP(every=4), RAMP),
    "gmp uniform": (GMP(every=4, allocation="uniform"), RAMP),
    "feather": (Feather(), RAMP),
    "feather, steep": (Feather(), STEEP),  # θ = 1/2
    "str": (STR(threshold_init=-3.0), SPARSE),
    "str, other decay": (STR(threshold_init=-4.0, threshold_decay=0.02), SPARSE),
    "probmask": (ProbMask(until=24), RAMP),
    "probmask, hard at once": (ProbMask(until=16, probability_lr=0.1), STEEP),
    "rigl": (RigL(every=4, until=22), SPARSE),
    "rigl uniform": (RigL(every=4, allocation="uniform", drop=0.5), SPARSE),
    "set": (RigL(every=4, until=22, growth="random"), SPARSE),
    "granet": (GraNet(every=4, until=STEPS), RAMP),
    "granet, p stays": (GraNet(every=3, regrow=0.3), RAMP),
    "acdc": (ACDC(), PHASES),
    "topkast": (TopKAST(), SPARSE),
    "topkast, B is all": (TopKAST(backward=1.0, decay=0.01), SPARSE),
}
"""Every method that is not tested with the Sparsifier itself, so short that all its kinds of steps come up."""

all_cases = pytest.mark.parametrize(("method", "schedule"), CASES.values(), ids=CASES)


def cases(*names: str):
    chosen = [name for name in CASES if name.partition(",")[0].split()[0] in names]
    return pytest.mark.parametrize(("method", "schedule"), [CASES[name] for name in chosen], ids=chosen)


def smooth(dtype=torch.float32) -> nn.Module:
    """Without units that are off for a whole batch: their weights would get no gradient, stay 0 when grown, and tie."""
    model = network(dtype)
    model[2], model[8] = nn.ELU(), nn.ELU()
    return model


def start(method, schedule, dtype=torch.float32, make=sgd, **options):
    model = smooth(dtype)
    optimizer = make(model)
    return model, optimizer, Sparsifier(model, method, schedule, **options).attach(optimizer)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)


def weights_of(model, sparsifier) -> dict[str, Tensor]:
    return {name: model.get_submodule(name).weight.detach() for name in sparsifier.pruned_layers}


def masks_of(sparsifier) -> dict[str, Tensor]:
    return dict(zip(sparsifier.pruned_layers, sparsifier.state_dict()["method"]["masks"], strict=True))


def zeros_of(model, sparsifier) -> dict[str, Tensor]:
    return {name: w == 0 for name, w in weights_of(model, sparsifier).items()}


def exact_zeros(sparsity: float, total: int) -> int:
    """Weights at or below the quantile of `sparsity`."""
    return math.floor((total - 1) * sparsity) + 1


# Equality with a second formulation -----------------------------------------------------------------------------------


class Naive:
    """Raw weights in a dict, projected for each forward pass; SGD with momentum and decay from its definition."""

    LR, MOMENTUM, DECAY = 0.1, 0.9, 1e-3

    def __init__(self, model: nn.Module, method, schedule, state: dict):
        self.model, self.method, self.schedule = copy.deepcopy(model), method, schedule
        self.raw = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.buffer = {name: torch.zeros_like(p) for name, p in self.raw.items()}
        layers = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        self.pruned = [f"{name}.weight" for name in layers]
        self.mask = {name: torch.ones_like(self.raw[name], dtype=torch.bool) for name in self.pruned}
        self.total = sum(self.raw[name].numel() for name in self.pruned)
        self.begin(state)

    def train(self, step: int, clip: float) -> float:
        images, labels = batch(step, torch.float64)
        used = {name: self.project(name) if name in self.pruned else w for name, w in self.raw.items()}
        leaves = {name: w.clone().requires_grad_() for name, w in used.items()}
        loss = F.cross_entropy(functional_call(self.model, leaves, images), labels)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for name in self.pruned:
            gradients[name] = self.route(step, name, gradients[name], used[name])
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
        gradients = {name: g * min(1.0, clip / (norm + 1e-6)) for name, g in gradients.items()}
        self.before(step, gradients)
        for name, w in self.raw.items():
            self.buffer[name] = self.MOMENTUM * self.buffer[name] + gradients[name] + self.DECAY * w
            self.raw[name] = w - self.LR * self.buffer[name]
        self.after(step, self.schedule.value(step))
        return loss.item()

    def magnitudes(self) -> Tensor:
        return torch.cat([self.raw[name].abs().flatten() for name in self.pruned])

    def mask_above(self, threshold) -> None:
        self.mask = {name: self.raw[name].abs() > threshold for name in self.pruned}

    # What a method does differently.

    def begin(self, state: dict) -> None: ...

    def project(self, name: str) -> Tensor:
        return self.raw[name] * self.mask[name]

    def route(self, step: int, name: str, gradient: Tensor, used: Tensor) -> Tensor:
        return gradient * self.mask[name]

    def before(self, step: int, gradients: dict[str, Tensor]) -> None: ...

    def after(self, step: int, sparsity: float) -> None: ...


class NaiveHard(Naive):
    def route(self, step, name, gradient, used):
        return gradient

    def after(self, step, sparsity):
        if sparsity:
            self.mask_above(torch.quantile(self.magnitudes(), sparsity))


class NaiveGMP(Naive):
    def after(self, step, sparsity):
        first, last = self.schedule.start + 1, self.schedule.end
        if not first <= step <= last or not (step % self.method.every == 0 or step in (first, last)):
            return
        if self.method.allocation == "global":
            self.mask_above(torch.quantile(self.magnitudes(), sparsity))
            return
        counts = uniform([self.raw[name].shape for name in self.pruned], 1 - sparsity)
        for name, count in zip(self.pruned, counts, strict=True):
            ordered = self.raw[name].abs().flatten().sort(descending=True).values
            self.mask[name] = self.raw[name].abs() >= ordered[count - 1]


class NaiveFeather(Naive):
    threshold = None

    def project(self, name):
        w = self.raw[name]
        if self.threshold is None:
            return w
        above = (w.abs() ** 3 - self.threshold**3).clamp(min=0)
        return torch.sign(w) * above ** (1 / 3)

    def route(self, step, name, gradient, used):
        theta = 1.0 if self.schedule.final <= 0.95 else 0.5
        return torch.where(used == 0, theta * gradient, gradient)

    def after(self, step, sparsity):
        if sparsity:
            self.threshold = torch.quantile(self.magnitudes(), sparsity)


class NaiveSTR(Naive):
    """By autograd: w and s are leaves, and the threshold is part of the graph."""

    def begin(self, state):
        self.scores = torch.full((len(self.pruned),), self.method.threshold_init, dtype=torch.float64)
        self.scores_buffer = torch.zeros_like(self.scores)
        self.decay = self.DECAY if self.method.threshold_decay is None else self.method.threshold_decay

    def project(self, name):
        threshold = torch.sigmoid(self.scores[self.pruned.index(name)])
        return torch.sign(self.raw[name]) * torch.relu(self.raw[name].abs() - threshold)

    def train(self, step, clip):
        images, labels = batch(step, torch.float64)
        leaves = {name: w.clone().requires_grad_() for name, w in self.raw.items()}
        scores = self.scores.clone().requires_grad_()
        used = dict(leaves)
        for name, s in zip(self.pruned, scores, strict=True):
            used[name] = torch.sign(leaves[name]) * torch.relu(leaves[name].abs() - torch.sigmoid(s))
        loss = F.cross_entropy(functional_call(self.model, used, images), labels)
        *found, pull = torch.autograd.grad(loss, [*leaves.values(), scores])
        norm = math.sqrt(sum(g.square().sum().item() for g in found))  # that of s is not counted
        scale = min(1.0, clip / (norm + 1e-6))
        for (name, w), g in zip(self.raw.items(), found, strict=True):
            self.buffer[name] = self.MOMENTUM * self.buffer[name] + scale * g + self.DECAY * w
            self.raw[name] = w - self.LR * self.buffer[name]
        self.scores_buffer = self.MOMENTUM * self.scores_buffer + scale * pull + self.decay * self.scores
        self.scores = self.scores - self.LR * self.scores_buffer
        return loss.item()


class NaiveProbMask(Naive):
    """By autograd: w and p are leaves of the relaxed mask, p in one tensor a layer; v from the sorted breakpoints."""

    temperature = None

    def begin(self, state):
        self.seed = state["seed"]
        self.probability = {name: torch.ones_like(self.raw[name]) for name in self.pruned}
        self.adam = torch.optim.Adam(self.probability.values(), lr=1)

    def project(self, name):
        return self.raw[name] * self.mask[name]

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
        norm = math.sqrt(sum(g.square().sum().item() for g in found))  # that of p is not counted
        scale = min(1.0, clip / (norm + 1e-6))
        for (name, w), g in zip(self.raw.items(), found, strict=True):
            self.buffer[name] = self.MOMENTUM * self.buffer[name] + scale * g + self.DECAY * w
            self.raw[name] = w - self.LR * self.buffer[name]
        if self.temperature:
            pulls = [scale * g.nan_to_num(0, 0, 0) for g in torch.autograd.grad(loss, list(chances.values()))]
            norm = math.sqrt(sum(g.square().sum().item() for g in pulls))
            for p, g in zip(self.probability.values(), pulls, strict=True):
                p.grad = g * min(1.0, 3 / (norm + 1e-6))
            self.adam.param_groups[0]["lr"] = (
                self.method.probability_lr * (1 + math.cos(math.pi * step / self.method.until)) / 2
            )
            self.adam.step()
        self.choose(step, self.schedule.value(step))
        return loss.item()

    def choose(self, step, sparsity):
        if not sparsity or step >= self.method.until:
            return
        flat = torch.cat([p.flatten() for p in self.probability.values()])
        flat = simplex(flat, (1 - sparsity) * self.total)
        if step == self.method.until - 1:
            order = sorted(range(self.total), key=lambda i: (-flat[i].item(), -self.magnitudes()[i].item()))
            hard = torch.zeros_like(flat)
            hard[order[: round((1 - sparsity) * self.total)]] = 1
            parts = hard.split([self.raw[name].numel() for name in self.pruned])
            self.mask = {n: m.view(self.raw[n].shape) for n, m in zip(self.pruned, parts, strict=True)}
            self.temperature = None
            return
        chance = torch.Generator().manual_seed(self.seed + 1_000_003 * step)
        uniform = torch.rand(self.total, generator=chance, dtype=torch.float64)
        noise = torch.log(uniform) - torch.log1p(-uniform)  # distributed as the difference of two Gumbel samples
        sizes = [self.raw[name].numel() for name in self.pruned]
        shapes = [self.raw[name].shape for name in self.pruned]
        self.noise = dict(zip(self.pruned, map(Tensor.view, noise.split(sizes), shapes), strict=True))
        self.temperature = 1 / (0.97 * (1 - step / self.method.until) + 0.03)
        for (name, p), part in zip(self.probability.items(), flat.split(sizes), strict=True):
            p.copy_(part.view(p.shape))
            self.mask[name] = self.relaxed(name, p)


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


def smallest(values: Tensor, among: Tensor, count: int) -> list[int]:
    """Places of the `count` smallest of `values` at the mask `among`, by sorting numbers."""
    places = among.flatten().nonzero().flatten().tolist()
    numbers = values.flatten().tolist()
    return sorted(places, key=lambda i: numbers[i])[:count]


class NaiveRigL(Naive):
    def begin(self, state):
        self.mask = {name: mask.clone() for name, mask in zip(self.pruned, state["masks"], strict=True)}
        self.seed = state["seed"]
        for name in self.pruned:
            self.raw[name] = self.raw[name] * self.mask[name]

    def moves(self, step):
        return step in range(4, self.method.until or STEPS, 4)

    def route(self, step, name, gradient, used):
        dense = self.moves(step) and self.method.growth == "gradient"
        return gradient if dense else gradient * self.mask[name]

    def before(self, step, gradients):
        if not self.moves(step):
            return
        x = step / self.method.until if self.method.until else 0
        fraction = self.method.drop / 2 * (1 + math.cos(math.pi * x))
        for layer, name in enumerate(self.pruned):
            mask, growth = self.mask[name], gradients[name].abs()
            if self.method.growth == "random":
                chance = torch.Generator().manual_seed(self.seed + 1_000_003 * step + layer)
                growth = torch.rand(mask.shape, generator=chance)
            kept = mask.sum().item()
            count = min(round(fraction * kept), mask.numel() - kept)
            drop, grow = smallest(self.raw[name].abs(), mask, count), smallest(-growth, ~mask, count)
            flat = mask.flatten().clone()
            flat[drop], flat[grow] = False, True
            self.mask[name] = flat.view(mask.shape)
            for tensor, places in ((self.raw[name], drop + grow), (self.buffer[name], grow)):
                tensor.view(-1)[places] = 0
            gradients[name] = gradients[name] * self.mask[name]

    def after(self, step, sparsity):
        for name in self.pruned:
            self.raw[name] = self.raw[name] * self.mask[name]


class NaiveGraNet(Naive):
    level = 0.0

    def route(self, step, name, gradient, used):
        return gradient if step and step % self.method.every == 0 else gradient * self.mask[name]

    def before(self, step, gradients):
        sparsity, update = self.schedule.value(step), step > 0 and step % self.method.every == 0
        if not sparsity or not (update or step == self.schedule.end):
            return
        if sparsity > self.level:
            self.mask_above(torch.quantile(self.magnitudes(), sparsity))  # what was pruned before is 0
            self.level = sparsity
        high, low = self.method.regrow, self.method.regrow_final
        x = min(step / self.method.until, 1) if self.method.until else 0
        fraction = low + (high - low) * (1 + math.cos(math.pi * x)) / 2
        for name in self.pruned:
            mask, grown = self.mask[name].flatten().clone(), []
            if update:
                kept = mask.sum().item()
                count = min(round(fraction * kept), mask.numel() - kept)
                drop = smallest(self.raw[name].abs(), mask, count)
                grown = smallest(-gradients[name].abs(), ~mask, count)
                mask[drop], mask[grown] = False, True
            self.mask[name] = mask.view(self.mask[name].shape)
            for tensor in (self.raw[name], self.buffer[name]):
                tensor.mul_(self.mask[name]).view(-1)[grown] = 0
            gradients[name] = gradients[name] * self.mask[name]

    def after(self, step, sparsity):
        for name in self.pruned:
            self.raw[name] = self.raw[name] * self.mask[name]


class NaiveACDC(Naive):
    compressed = False

    def after(self, step, sparsity):
        if sparsity and not self.compressed:
            self.mask_above(torch.quantile(self.magnitudes(), sparsity))
        for name in self.pruned:
            self.raw[name] = self.raw[name] * self.mask[name]
        if self.compressed and not sparsity:
            self.mask = {name: torch.ones_like(mask) for name, mask in self.mask.items()}
            self.buffer = {name: torch.zeros_like(w) for name, w in self.buffer.items()}
        self.compressed = sparsity > 0


class NaiveTopKAST(Naive):
    def begin(self, state):
        self.density = 1 - self.schedule.sparsity
        self.choose()

    def choose(self):
        outside = max(self.schedule.sparsity - self.method.backward, 0)
        ordered = self.magnitudes().sort().values
        self.mask_above(ordered[exact_zeros(self.schedule.sparsity, self.total) - 1])
        least = ordered[exact_zeros(outside, self.total) - 1] if outside else -1
        self.reached = {name: self.raw[name].abs() > least for name in self.pruned}

    def route(self, step, name, gradient, used):
        return gradient * self.reached[name]

    def before(self, step, gradients):
        for name in self.pruned:
            active, reached, w = self.mask[name], self.reached[name], self.raw[name]
            rate = self.LR * self.method.decay
            self.raw[name] = torch.where(active, w - rate * w, torch.where(reached, w - rate / self.density * w, w))

    def after(self, step, sparsity):
        self.choose()


NAIVE = {
    GMP: NaiveGMP, Feather: NaiveFeather, STR: NaiveSTR, RigL: NaiveRigL, GraNet: NaiveGraNet, ACDC: NaiveACDC,
    TopKAST: NaiveTopKAST, ST3: NaiveHard, ProbMask: NaiveProbMask,
}  # fmt: skip


@all_cases
@pytest.mark.parametrize("clip", [0.5, 1e9], ids=["clipped", "not clipped"])
def test_training_equals_the_naive_formulation(method, schedule, clip):
    model = smooth(torch.float64)
    begin = copy.deepcopy(model)
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, method, schedule).attach(optimizer)
    naive = NAIVE[type(method)](begin, method, schedule, sparsifier.state_dict()["method"])
    for step in range(STEPS):
        [loss] = train(model, optimizer, [step], torch.float64, clip=clip)
        assert loss == pytest.approx(naive.train(step, clip), abs=1e-10, rel=0), step
        for name, weight in weights_of(model, sparsifier).items():
            torch.testing.assert_close(weight, naive.project(f"{name}.weight"), atol=1e-10, rtol=0)
    for name, raw in sparsifier.raw_weights().items():
        torch.testing.assert_close(raw, naive.raw[f"{name}.weight"], atol=1e-10, rtol=0)


def after_hooks(optimizer, look) -> None:
    """`look()` when the sparsifier is done with the gradients and the optimizer has not yet begun."""
    optimizer.register_step_pre_hook(lambda *_: look())


def test_the_gradient_of_strs_thresholds_is_the_closed_form_and_autograds():
    model, optimizer, sparsifier = start(STR(threshold_init=-3.0), SPARSE, torch.float64)
    train(model, optimizer, range(3), torch.float64)  # so that the layers' thresholds differ
    raw = {f"{name}.weight": w.clone().requires_grad_() for name, w in sparsifier.raw_weights().items()}
    scores = sparsifier.state_dict()["method"]["scores"].requires_grad_()
    others = {name: p.detach().clone() for name, p in model.named_parameters() if name not in raw}
    images, labels = batch(3, torch.float64)

    used = {
        name: torch.sign(w) * torch.relu(w.abs() - torch.sigmoid(s))
        for (name, w), s in zip(raw.items(), scores, strict=True)
    }
    for w in used.values():
        w.retain_grad()
    F.cross_entropy(functional_call(copy.deepcopy(model), used | others, images), labels).backward()
    closed = []
    for (name, w), s in zip(raw.items(), scores.detach(), strict=True):
        sigma = 1 / (1 + math.exp(-s))
        closed.append((-used[name].grad * w.sign() * sigma * (1 - sigma) * (w.abs() > sigma)).sum().item())

    found = []
    [own] = optimizer.param_groups[-1]["params"]
    after_hooks(optimizer, lambda: found.extend(own.grad.tolist()))
    train(model, optimizer, [3], torch.float64)
    assert found == pytest.approx(closed, rel=1e-10)
    assert found == pytest.approx(scores.grad.tolist(), rel=1e-10)


def test_strs_thresholds_decay_like_the_weights_unless_told_otherwise():
    for decay, expected in ((None, 5e-4), (0.0, 0.0), (0.02, 0.02)):
        model = network()
        groups = [{"params": model.parameters(), "weight_decay": 5e-4}]  # the optimizer's own default is 0
        optimizer = torch.optim.SGD(groups, lr=0.1)
        sparsifier = Sparsifier(model, STR(threshold_init=-100.0, threshold_decay=decay), 0.9).attach(optimizer)
        train(model, optimizer, [0])
        scores = sparsifier.state_dict()["method"]["scores"]
        # At −100 the sigmoid passes no gradient: only the decay moves them.
        torch.testing.assert_close(scores, torch.full_like(scores, -100 * (1 - 0.1 * expected)))


# Twice, and continued -------------------------------------------------------------------------------------------------


def states(model, optimizer, sparsifier) -> list[dict]:
    return [part.state_dict() for part in (model, optimizer, sparsifier)]


def assert_same(one, other) -> None:
    """Of nested states, bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


@all_cases
@pytest.mark.parametrize("make", [sgd, adamw])
def test_the_same_twice_and_continued_after_any_step(method, schedule, make, tmp_path):
    whole = start(method, schedule, make=make)
    losses, saved = [], []
    for step in range(STEPS):
        torch.save(states(*whole), tmp_path / f"{step}.pt")
        losses += train(*whole[:2], [step])
        saved.append(copy.deepcopy(states(*whole)))

    again = start(method, schedule, make=make)
    assert train(*again[:2], range(STEPS)) == losses
    assert_same(states(*again), saved[-1])

    torch.manual_seed(5)  # other random masks, which are overwritten
    other = start(method, schedule, make=make)
    train(*other[:2], range(3))
    for after in reversed(range(STEPS)):  # from a later state back to an earlier one
        loaded = torch.load(tmp_path / f"{after}.pt", weights_only=True)
        for part, state in zip(other, loaded, strict=True):
            part.load_state_dict(state)
        until = min(after + 5, STEPS)  # at least one update of the masks
        assert train(*other[:2], range(after, until)) == losses[after:until], after
        assert_same(states(*other), saved[until - 1])


def test_random_connections_differ_from_run_to_run():
    runs = []
    for seed in (1, 2):
        model = smooth()
        torch.manual_seed(seed)
        sparsifier = Sparsifier(model, RigL(growth="random"), 0.8)
        runs.append(sparsifier.state_dict()["method"])
    assert runs[0]["seed"] != runs[1]["seed"]
    assert not torch.equal(runs[0]["masks"][0], runs[1]["masks"][0])


# Invariants -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_at_sparsity_zero_every_method_is_dense_training_bit_for_bit(name):
    plain = network()
    expected = train(plain, sgd(plain), range(8))
    model = network()
    optimizer = sgd(model)
    Sparsifier(model, name, 0.0).attach(optimizer)
    assert train(model, optimizer, range(8)) == expected
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("end", [18, 20, STEPS - 1])
@cases("gmp", "granet", "feather", "hard_ste")
def test_exactly_the_target_from_the_end_of_the_ramp_on(method, schedule, end, make):
    """Also where the ramp ends between two updates, and with the last step of training."""
    ramp = PolynomialRamp(final=0.83, start=3, end=end, power=1)
    model, optimizer, sparsifier = start(method, ramp, make=make)
    assert sparsifier.zeros().sum() == 0
    counts = []
    for step in range(STEPS):
        train(model, optimizer, [step])
        counts.append(sparsifier.zeros().sum().item())
    assert counts[:4] == [0] * 4
    assert all(one <= other for one, other in pairwise(counts))
    assert counts[end - 1] < counts[end]
    if getattr(method, "allocation", "") == "uniform":
        sizes = [w.shape for w in weights_of(model, sparsifier).values()]
        kept = uniform(sizes, 1 - 0.83)
        zeros = [math.prod(size) - count for size, count in zip(sizes, kept, strict=True)]
        assert sparsifier.zeros().tolist() == zeros
        assert set(counts[end:]) == {sum(zeros)}
    else:
        assert set(counts[end:]) == {exact_zeros(0.83, sparsifier.prunable)}


def test_a_ramp_that_ends_between_updates_follows_the_schedule_at_updates_only():
    model, optimizer, sparsifier = start(GMP(every=5), PolynomialRamp(final=0.8, start=3, end=18))
    counts = []
    for step in range(22):
        train(model, optimizer, [step])
        counts.append(sparsifier.zeros().sum().item())
    changed = [step for step in range(1, 22) if counts[step] != counts[step - 1]]
    assert changed == [4, 5, 10, 15, 18]
    assert counts[10] == exact_zeros(sparsifier.schedule.value(10), sparsifier.prunable)


@cases("probmask")
@pytest.mark.parametrize("make", [sgd, adamw])
def test_probmask_keeps_as_many_as_expected_and_then_exactly_the_target(method, schedule, make):
    model, optimizer, sparsifier = start(method, schedule, make=make)
    final, total = schedule.final, sparsifier.prunable
    before = None
    for step in range(STEPS):
        train(model, optimizer, [step])
        state, sparsity = sparsifier.state_dict()["method"], schedule.value(step)
        flat = torch.cat([p.flatten() for p in state["probabilities"]]).double()
        assert 0 <= flat.min() <= flat.max() <= 1
        assert flat.sum() <= (1 - sparsity) * total * (1 + 1e-6)
        if step < method.until - 1:
            assert not sparsifier.reaches(final)
        else:
            kept = torch.cat([m.flatten() for m in state["masks"]])
            assert set(kept.unique().tolist()) == {0, 1}
            assert sparsifier.zeros().sum() == total - round((1 - final) * total)
            assert flat[kept == 1].min() >= flat[kept == 0].max()
            assert before is None or torch.equal(kept, before)
            assert sparsifier.reaches(final)
            before = kept


def test_probmasks_state_is_a_snapshot_in_no_particular_layout():
    method = ProbMask(until=40)
    model, optimizer, sparsifier = start(method, RAMP)
    train(model, optimizer, range(12))
    saved = states(model, optimizer, sparsifier)
    *model_and_optimizer, before = copy.deepcopy(saved)
    train(model, optimizer, range(12, 18))
    assert_same(saved[2], before)
    expected = copy.deepcopy(sparsifier.state_dict()["method"]["probabilities"])
    for layout in (torch.contiguous_format, torch.channels_last):
        for _ in range(2):  # loading leaves the state as it was
            other = smooth().to(memory_format=layout)
            again = sgd(other)
            restored = Sparsifier(other, method, RAMP).attach(again)
            for part, state in zip((other, again), model_and_optimizer, strict=True):
                part.load_state_dict(copy.deepcopy(state))
            restored.load_state_dict(saved[2])
            train(other, again, range(12, 18))
            assert_same(saved[2], before)
            for mine, theirs in zip(restored.state_dict()["method"]["probabilities"], expected, strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_probmask_learns_the_same_under_a_gradient_scaler(fused):
    """Of which a fused optimizer takes the scale off only after the method has seen the gradients."""
    learned = []
    for scale in (1.0, 2.0**16):
        model = smooth()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=fused)
        sparsifier = Sparsifier(model, ProbMask(until=24), RAMP).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for step in range(15):
            images, labels = batch(step)
            scaler.scale(F.cross_entropy(model(images), labels)).backward()
            scaler.step(optimizer)
            scaler.update(scale)
            optimizer.zero_grad()
        learned.append(torch.cat([p.flatten() for p in sparsifier.state_dict()["method"]["probabilities"]]))
    torch.testing.assert_close(*learned, atol=1e-5, rtol=0)


def test_probmask_must_know_when_its_masks_become_hard():
    with pytest.raises(UserError, match=r"ProbMask\(until=…\)"):
        Sparsifier(smooth(), "probmask", 0.9)


def test_what_probmask_learns_to_keep_is_what_matters():
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


def test_the_most_probable_are_exactly_as_many_and_ties_go_to_the_larger_weights():
    probability = torch.tensor([1.0, 0, 0.5, 1, 0, 0.5])
    magnitude = torch.tensor([0.0, 3, 1, 0, 4, 2])
    kept = [most_probable(probability, magnitude, count).nonzero().flatten().tolist() for count in (0, 2, 3, 4, 5, 6)]
    assert kept == [[], [0, 3], [0, 3, 5], [0, 2, 3, 5], [0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_cut_by_the_least_amount(dtype):
    torch.manual_seed(0)
    for total in (1.0, 30.7, 60.0):
        values = 0.7 * torch.randn(100, dtype=dtype) + 0.5
        cut = values.clone()
        keep_expected(cut, total)
        assert cut.sum(dtype=torch.float64) <= total
        torch.testing.assert_close(cut, simplex(values, total))
    cut = values.clone()
    keep_expected(cut, 99.0)  # leaves room: nothing but the clipping
    assert torch.equal(cut, values.clamp(0, 1))


@cases("rigl", "set")
@pytest.mark.parametrize("make", [sgd, adamw])
def test_rigl_is_sparse_before_its_first_step_and_each_layer_keeps_its_number(method, schedule, make):
    model, optimizer, sparsifier = start(method, schedule, make=make)
    weights = weights_of(model, sparsifier)
    allocate = uniform if method.allocation == "uniform" else erdos_renyi_kernel
    kept = allocate([w.shape for w in weights.values()], 1 - schedule.sparsity)
    assert [(w != 0).sum().item() for w in weights.values()] == kept
    assert sum(kept) == round((1 - schedule.sparsity) * sparsifier.prunable)
    masks = masks_of(sparsifier)
    changed = []
    for step in range(STEPS):
        train(model, optimizer, [step])
        before, masks = masks, masks_of(sparsifier)
        assert [mask.sum().item() for mask in masks.values()] == kept
        if any(not torch.equal(before[name], masks[name]) for name in masks):
            changed.append(step)
        for name, raw in sparsifier.raw_weights().items():
            assert torch.equal(raw, weights[name])
            assert (weights[name][~masks[name]] == 0).all()
            if method.growth == "gradient":  # at random, weights grow also where no gradient arrives
                assert (weights[name][masks[name]] != 0).all()
    assert changed == list(range(4, method.until or STEPS, 4))


@cases("rigl", "set")
def test_as_many_connections_are_replaced_as_promised(method, schedule):
    model, optimizer, sparsifier = start(method, schedule)
    masks = masks_of(sparsifier)
    for step in range(STEPS):
        train(model, optimizer, [step])
        before, masks = masks, masks_of(sparsifier)
        fraction = 0.0
        if step in range(4, method.until or STEPS, 4):
            x = step / method.until if method.until else 0.0
            fraction = method.drop * (1 + math.cos(math.pi * x)) / 2
        for name, mask in masks.items():
            kept = mask.sum().item()
            promised = min(round(fraction * kept), mask.numel() - kept)
            assert (before[name] & ~mask).sum() == promised
            assert (mask & ~before[name]).sum() == promised


@cases("granet")
def test_granet_regrows_what_it_drops_beyond_the_ramp(method, schedule):
    model, optimizer, sparsifier = start(method, schedule)
    masks = masks_of(sparsifier)
    for step in range(STEPS):
        train(model, optimizer, [step])
        before, masks = masks, masks_of(sparsifier)
        if step <= schedule.end:
            continue
        x = min(step / method.until, 1) if method.until else 0
        low, high = method.regrow_final, method.regrow
        fraction = (low + (high - low) * (1 + math.cos(math.pi * x)) / 2) * (step % method.every == 0)
        for name, mask in masks.items():
            kept = before[name].sum().item()
            replaced = min(round(fraction * kept), mask.numel() - kept)
            assert mask.sum() == kept
            assert (before[name] & ~mask).sum() == replaced


def test_granets_regrowth_has_come_to_its_final_fraction_at_until():
    for until, step, expected in ((0, 4, 0.1), (4, 4, 0.1), (8, 4, 0.3), (4, 8, 0.1), (None, 8, 0.5)):
        method = GraNet(every=4, until=until, regrow=0.5, regrow_final=0.1)
        model, optimizer, sparsifier = start(method, PolynomialRamp(final=0.5, start=0, end=0))
        train(model, optimizer, range(step))
        before = masks_of(sparsifier)
        train(model, optimizer, [step])
        for name, mask in masks_of(sparsifier).items():
            kept = before[name].sum().item()
            replaced = (before[name] & ~mask).sum().item()
            assert replaced == min(round(expected * kept), mask.numel() - kept)


@cases("gmp", "rigl", "set", "granet", "acdc")
def test_masked_weights_get_no_gradient_and_others_all_of_theirs(method, schedule):
    model, optimizer, sparsifier = start(method, schedule, torch.float64)
    dense_steps = 0
    for step in range(STEPS):
        images, labels = batch(step, torch.float64)
        other = copy.deepcopy(model)
        F.cross_entropy(other(images), labels).backward()
        masks = masks_of(sparsifier)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for name, mask in masks.items():
            found, dense = (m.get_submodule(name).weight.grad for m in (model, other))
            if sparsifier.sparsity > 0 and not torch.equal(found, dense):
                assert torch.equal(found, dense * mask)
                assert (dense[~mask] != 0).any()
            else:
                dense_steps += not mask.all()
        optimizer.step()
    layers = len(masks)
    updates = {GMP: [], ACDC: [], RigL: range(4, getattr(method, "until", 0) or STEPS, 4)}.get(type(method))
    if updates is None:  # GraNet, once it has pruned
        updates = [step for step in range(1, STEPS) if step % method.every == 0 and step > 4]
    if getattr(method, "growth", "") == "random":
        updates = []
    assert dense_steps <= layers * len(updates)
    assert (dense_steps > 0) == (len(updates) > 0)


@cases("gmp", "rigl", "set", "granet", "acdc")
def test_frozen_weights_stay_where_they_are(method, schedule):
    """Without momentum and decay nothing but the gradient would move them."""
    for_good = not isinstance(method, GMP)
    model = smooth()
    optimizer = sgd(model, momentum=0, weight_decay=0)
    sparsifier = Sparsifier(model, method, schedule).attach(optimizer)
    for step in range(STEPS):
        before = {name: w.clone() for name, w in sparsifier.raw_weights().items()}
        frozen = {name: ~mask for name, mask in masks_of(sparsifier).items()}
        train(model, optimizer, [step])
        still = {name: ~mask for name, mask in masks_of(sparsifier).items()}
        for name, raw in sparsifier.raw_weights().items():
            place = frozen[name] & still[name]
            assert torch.equal(raw[place], before[name][place])
            if for_good and sparsifier.sparsity > 0:
                assert (raw[still[name]] == 0).all()


@cases("gmp")
def test_gmps_masked_weights_keep_their_raw_values(method, schedule):
    model, optimizer, sparsifier = start(method, schedule)
    train(model, optimizer, range(STEPS))
    assert all((raw != 0).all() for raw in sparsifier.raw_weights().values())


@cases("hard_ste", "feather", "topkast", "str")
def test_kept_raw_magnitudes_are_above_the_threshold_and_no_others(method, schedule):
    model, optimizer, sparsifier = start(method, schedule)
    for step in range(STEPS):
        train(model, optimizer, [step])
        raw = sparsifier.raw_weights()
        for layer in sparsifier.layers():
            weight = model.get_submodule(layer.name).weight
            if layer.threshold:
                assert torch.equal(raw[layer.name].abs() > layer.threshold, weight != 0)
    assert all(layer.threshold > 0 for layer in sparsifier.layers())


@cases("topkast")
@pytest.mark.parametrize("make", [sgd, adamw])
def test_topkast_is_sparse_at_every_moment(method, schedule, make):
    model, optimizer, sparsifier = start(method, schedule, make=make)
    for step in range(STEPS):
        assert sparsifier.zeros().sum() == exact_zeros(0.8, sparsifier.prunable)
        train(model, optimizer, [step])
    assert sparsifier.zeros().sum() == exact_zeros(0.8, sparsifier.prunable)


def test_topkasts_gradient_reaches_a_larger_set_and_stops_there():
    method = TopKAST(backward=0.3, decay=0.0)
    model = smooth()
    optimizer = sgd(model, momentum=0, weight_decay=0)
    sparsifier = Sparsifier(model, method, 0.8).attach(optimizer)
    came_back = 0
    for step in range(15):
        before = {name: w.clone() for name, w in sparsifier.raw_weights().items()}
        zeroed = zeros_of(model, sparsifier)
        state = sparsifier.state_dict()["method"]
        for key, outside in (("active", 0.8), ("reached", 0.5)):
            inside = sum(mask.sum().item() for mask in state[key])
            assert inside == sparsifier.prunable - exact_zeros(outside, sparsifier.prunable)
        train(model, optimizer, [step])
        now = zeros_of(model, sparsifier)
        for (name, raw), active, reached in zip(
            sparsifier.raw_weights().items(), state["active"], state["reached"], strict=True
        ):
            assert torch.equal(active, ~zeroed[name])
            assert not (active & ~reached).any()
            assert torch.equal(raw[~reached], before[name][~reached])
            assert (raw != before[name])[
                reached
            ].float().mean() > 0.5  # not all have a gradient: what follows them is zeroed, too
            came_back += (zeroed[name] & ~now[name]).sum().item()
    assert came_back > 0


def test_topkasts_extra_decay_is_stronger_outside_a():
    method = TopKAST(backward=0.3, decay=0.01)
    model = smooth(torch.float64)
    optimizer = sgd(model, momentum=0, weight_decay=0)
    sparsifier = Sparsifier(model, method, 0.8).attach(optimizer)
    before = {name: w.clone() for name, w in sparsifier.raw_weights().items()}
    state = copy.deepcopy(sparsifier.state_dict()["method"])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, active, reached in zip(before, state["active"], state["reached"], strict=True):
        factor = sparsifier.raw_weights()[name] / before[name]
        expected = 1 - 0.1 * 0.01 * (active.double() + (reached & ~active).double() / 0.2)
        torch.testing.assert_close(factor, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("period", [1, 2, 5])
def test_acdcs_dense_phases_are_dense_and_start_from_zero_without_momentum(period, make):
    phases = AlternatingPhases(final=0.8, start=4, period=period, last_dense=4 + 4 * period, end=STEPS)
    model, optimizer, sparsifier = start(ACDC(), phases, make=make)
    zeroed = None
    for step in range(STEPS):
        train(model, optimizer, [step])
        sparse, was_sparse = phases.value(step) > 0, step > 0 and phases.value(step - 1) > 0
        zeros = zeros_of(model, sparsifier)
        count = sum(z.sum().item() for z in zeros.values())
        if sparse:
            assert count == exact_zeros(0.8, sparsifier.prunable)
            if was_sparse:  # one mask for the whole phase
                assert all(torch.equal(zeroed[name], zeros[name]) for name in zeros)
            assert all((raw[zeros[name]] == 0).all() for name, raw in sparsifier.raw_weights().items())
        elif was_sparse:  # just returned: all live, those from exactly 0 and nothing remembers
            assert all(torch.equal(zeroed[name], zeros[name]) for name in zeros)
            assert all(mask.all() for mask in masks_of(sparsifier).values())
            for state in optimizer.state.values():
                for name, value in state.items():
                    assert name == "step" or (value == 0).all()
        elif phases.value(step - 2) == 0:  # in the first step no gradient comes back through weights that are 0
            assert count == 0
        zeroed = zeros


def test_acdcs_dense_phase_is_dense_training_bit_for_bit():
    phases = AlternatingPhases(final=0.8, start=2, period=6, last_dense=26, end=28)
    model, optimizer, sparsifier = start(ACDC(), phases)
    train(model, optimizer, range(9))  # the last one has returned to dense
    assert sparsifier.sparsity == 0
    plain = copy.deepcopy(model)
    other = sgd(plain)
    assert train(model, optimizer, range(9, 14)) == train(plain, other, range(9, 14))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@cases("rigl", "set", "granet")
@pytest.mark.parametrize("make", [sgd, adamw])
def test_grown_weights_start_from_zero_and_without_momentum(method, schedule, make):
    model, optimizer, sparsifier = start(method, schedule, make=make)
    seen = []

    def look():
        masks = masks_of(sparsifier)
        for name, mask in masks.items():
            grown = mask & ~before[name]
            weight = model.get_submodule(name).weight  # holds the raw values now
            assert (weight[grown] == 0).all()
            if isinstance(method, GraNet) and any((~m).any() for m in masks.values()) and changed(masks):
                grown = grown | ~mask
                assert (weight[~mask] == 0).all()
            for key, value in optimizer.state[weight].items():
                if key != "step":
                    assert (value[grown] == 0).all()
            seen.append(grown.sum().item())

    def changed(masks):
        return any(not torch.equal(before[name], mask) for name, mask in masks.items())

    after_hooks(optimizer, look)
    for step in range(STEPS):
        before = masks_of(sparsifier)
        train(model, optimizer, [step])
    assert sum(seen) > 0


# In company -----------------------------------------------------------------------------------------------------------


@all_cases
def test_adamw_trains_every_method(method, schedule):
    model, optimizer, sparsifier = start(method, schedule, make=adamw)
    losses = train(model, optimizer, [step % 3 for step in range(45)])
    assert sum(losses[-3:]) < sum(losses[:3])
    if not isinstance(method, STR):
        # An exact zero more may be a weight that was grown where no gradient arrives.
        zeros, target = sparsifier.zeros().sum().item(), schedule.value(STEPS) * sparsifier.prunable
        assert target - 1 <= zeros <= target + 5


@all_cases
def test_only_the_chosen_layers_are_pruned_and_share_the_target(method, schedule):
    model, optimizer, sparsifier = start(method, schedule, include=["[347]", "9"], exclude=["9"])
    assert sparsifier.pruned_layers == ["3", "4", "7"]
    train(model, optimizer, range(STEPS))
    for layer in sparsifier.layers():
        assert (layer.zeros > 0) == (layer.name in "347")
    if not isinstance(method, STR):
        assert abs(sparsifier.zeros().sum().item() - schedule.value(STEPS) * sparsifier.prunable) <= 1


@all_cases
def test_two_passes_for_a_step_are_one_of_all_images(method, schedule):
    """At every kind of step: the gradients of both passes decide what grows."""
    results = []
    for parts in (1, 2):
        model = smooth(torch.float64)
        model[1] = nn.Identity()  # BatchNorm would see other batches
        optimizer = sgd(model)
        sparsifier = Sparsifier(model, method, schedule).attach(optimizer)
        for step in range(STEPS):
            images, labels = batch(step, torch.float64)
            optimizer.zero_grad()
            for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                (F.cross_entropy(model(x), y) / parts).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        results.append((zeros_of(model, sparsifier), sparsifier.raw_weights()))
    (one, one_raw), (two, two_raw) = results
    for name in one:
        assert torch.equal(one[name], two[name])
        torch.testing.assert_close(one_raw[name], two_raw[name], atol=1e-9, rtol=0)


@all_cases
def test_the_averaged_network_is_as_sparse(method, schedule):
    model, optimizer, sparsifier = start(method, schedule)
    average = RawAverage(model, sparsifier, 0.9)
    for step in range(STEPS):
        train(model, optimizer, [step])
        average.update()
        network = average.network()
        ours, theirs = zeros_of(model, sparsifier), zeros_of(network, sparsifier)
        if "masks" in sparsifier.state_dict()["method"] and sparsifier.sparsity > 0:
            for name, mask in masks_of(sparsifier).items():
                assert (theirs[name] | (mask != 0)).all()
                if not (isinstance(method, RigL) and method.growth == "random"):
                    assert torch.equal(ours[name], theirs[name])
        elif not isinstance(method, ACDC | STR):
            assert sum(z.sum().item() for z in ours.values()) == sum(z.sum().item() for z in theirs.values())
    average.finish()
    for name, zeros in zeros_of(model, sparsifier).items():
        assert torch.equal(zeros, zeros_of(average.network(), sparsifier)[name])


@all_cases
def test_another_memory_layout_changes_nothing_but_rounding(method, schedule):
    """Also where the model gets it after the Sparsifier has been made."""
    runs = []
    for channels_last in (False, True):
        model = smooth(torch.float64)
        sparsifier = Sparsifier(model, method, schedule)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        optimizer = sgd(model)
        sparsifier.attach(optimizer)
        runs.append((train(model, optimizer, range(STEPS), torch.float64), zeros_of(model, sparsifier)))
    assert runs[0][0] == pytest.approx(runs[1][0], abs=1e-9)
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


class OneIsIdle(nn.Module):
    """With a layer that takes no part, so that its weight never has a gradient."""

    def __init__(self):
        super().__init__()
        self.net, self.idle = smooth(), nn.Linear(20, 20)

    def forward(self, x):
        return self.net(x)


@all_cases
def test_a_layer_without_gradient_is_pruned_and_no_trouble(method, schedule):
    torch.manual_seed(0)
    model = OneIsIdle()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, method, schedule).attach(optimizer)
    train(model, optimizer, range(STEPS))
    if not isinstance(method, STR):
        assert abs(sparsifier.zeros().sum().item() - schedule.value(STEPS) * sparsifier.prunable) <= 1


def test_gmp_chooses_anew_after_a_dense_phase():
    model, optimizer, sparsifier = start(GMP(every=100), PHASES)
    for step in range(STEPS):
        train(model, optimizer, [step])
        if PHASES.value(step) and not PHASES.value(step - 1):
            magnitudes = torch.cat([w.abs().flatten() for w in sparsifier.raw_weights().values()])
            zeros = torch.cat([z.flatten() for z in zeros_of(model, sparsifier).values()])
            assert magnitudes[zeros].max() < magnitudes[~zeros].min()


# What the methods claim -----------------------------------------------------------------------------------------------


def test_gmps_masks_are_nearly_monotone():
    model, optimizer, sparsifier = start(GMP(every=2), PolynomialRamp(final=0.9, start=2, end=26))
    back, zeroed = 0, zeros_of(model, sparsifier)
    for step in range(STEPS):
        train(model, optimizer, [step])
        before, zeroed = zeroed, zeros_of(model, sparsifier)
        back += sum((before[name] & ~zeroed[name]).sum().item() for name in zeroed)
    assert back < 0.05 * sparsifier.zeros().sum()


def test_feather_lies_between_soft_and_hard_thresholding():
    """p = 1 is soft, infinity hard, and in between the larger p, the nearer to hard."""
    weights = {}
    for name, method in {
        "soft": ST3(rescale=False), "hard": METHODS["hard_ste"], "1": Feather(exponent=1.0), "3": Feather(),
        "9": Feather(exponent=9.0), "99": Feather(exponent=99.0), "inf": Feather(exponent=math.inf),
    }.items():  # fmt: skip
        model, optimizer, sparsifier = start(method, 0.8, torch.float64)
        train(model, optimizer, [0], torch.float64)
        weights[name] = torch.cat([w.flatten() for w in weights_of(model, sparsifier).values()])
    torch.testing.assert_close(weights["1"], weights["soft"], atol=1e-14, rtol=0)
    assert torch.equal(weights["inf"], weights["hard"])
    distance = [(weights[p] - weights["hard"]).abs().sum().item() for p in ("1", "3", "9", "99")]
    assert all(one > 2 * other for one, other in pairwise(distance))
    assert all(torch.equal(weights[p] != 0, weights["hard"] != 0) for p in weights)


def test_training_with_feather_at_one_is_soft_thresholding():
    losses = []
    for method in (Feather(exponent=1.0), ST3(rescale=False)):
        model, optimizer, _ = start(method, RAMP, torch.float64)
        losses.append(train(model, optimizer, range(STEPS), torch.float64))
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)


@pytest.mark.parametrize(("final", "theta"), [(0.5, 1.0), (0.95, 1.0), (0.951, 0.5), (0.99, 0.5)])
def test_feathers_theta_depends_on_the_final_sparsity(final, theta):
    schedule = PolynomialRamp(final=final, start=0, end=10)
    weight = torch.tensor([0.0, 0.3])
    gradient = torch.tensor([2.0, 2.0])
    for method, expected in ((Feather(), theta), (Feather(theta=0.25), 0.25)):
        pruner = method.start([], schedule)
        assert pruner.route(0, weight, gradient, 0).tolist() == [2 * expected, 2.0]
        assert pruner.routes_gradient == (expected != 1)


def test_strs_sparsity_rises_with_start_value_and_decay():
    def zeros(init, decay):
        model, optimizer, sparsifier = start(STR(threshold_init=init, threshold_decay=decay), SPARSE)
        train(model, optimizer, range(STEPS))
        return sparsifier.zeros().sum().item()

    by_start = [zeros(init, 1e-3) for init in (-100.0, -6.0, -4.0, -3.0, -2.0)]
    assert by_start == sorted(set(by_start))
    by_decay = [zeros(-6.0, decay) for decay in (0.0, 0.02, 0.1)]
    assert by_decay == sorted(set(by_decay))


def test_strs_layers_learn_thresholds_of_their_own_and_are_sparse_at_once():
    model, optimizer, sparsifier = start(STR(threshold_init=-3.0), SPARSE)
    assert sparsifier.zeros().sum() > 0
    assert len(set(sparsifier.thresholds().tolist())) == 1
    train(model, optimizer, range(5))
    assert len(set(sparsifier.thresholds().tolist())) == 5


def test_rigl_grows_where_the_gradient_is_and_set_does_not():
    """Shown by the gradients of what is grown, against those of all zeroed weights."""
    ratio = {}
    for growth in ("gradient", "random"):
        method = RigL(every=4, growth=growth)
        model, optimizer, sparsifier = start(method, SPARSE)
        train(model, optimizer, range(4))
        other = copy.deepcopy(model)
        images, labels = batch(4)
        F.cross_entropy(other(images), labels).backward()
        before = masks_of(sparsifier)
        train(model, optimizer, [4])
        name = "7"
        grown, gradient = masks_of(sparsifier)[name] & ~before[name], other[7].weight.grad.abs()
        ratio[growth] = (gradient[grown].mean() / gradient[~before[name]].mean()).item()
        if growth == "gradient":
            assert gradient[grown].min() >= gradient[~before[name] & ~grown].max()
    assert ratio["gradient"] > 2
    assert 0.5 < ratio["random"] < 1.5


@pytest.mark.parametrize("name", ["rigl", "set", "granet", "acdc", "gmp", "str", "feather", "topkast", "hard_ste"])
def test_the_projection_changes_no_state_and_is_repeatable(name):
    schedule = 0.8 if name in ("rigl", "set", "topkast", "str") else PHASES if name == "acdc" else RAMP
    model, optimizer, sparsifier = start(METHODS[name], schedule)
    train(model, optimizer, range(9))
    before = copy.deepcopy(sparsifier.state_dict())
    for name, weight in sparsifier.project(sparsifier.raw_weights()).items():
        assert torch.equal(weight, model.get_submodule(name).weight)
    assert_same(before, sparsifier.state_dict())


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_counting_flops_is_for_methods_that_can(name):
    model = network()
    macs = layer_macs(model, (3, 10, 10))
    if name in ("st3", "st3_sigma", "hard_ste", "dense"):
        Sparsifier(model, name, 0.8, target="flops", macs=macs)
    else:
        with pytest.raises(UserError, match=r"target=flops is for st3"):
            Sparsifier(
                model, METHODS[name] if name != "probmask" else ProbMask(until=9), 0.8, target="flops", macs=macs
            )


@pytest.mark.parametrize("name", ["rigl", "set", "topkast", "str"])
@pytest.mark.parametrize("schedule", [RAMP, PHASES])
def test_methods_that_start_sparse_refuse_a_ramp_and_say_what_to_type(name, schedule):
    with pytest.raises(UserError, match="follows no ramp: schedule=constant"):
        Sparsifier(network(), name, schedule)


def test_acdc_refuses_a_ramp_and_says_what_to_type():
    with pytest.raises(UserError, match="follows no ramp: schedule=acdc"):
        Sparsifier(network(), "acdc", RAMP)
    Sparsifier(network(), "acdc", PHASES)
    Sparsifier(network(), "acdc", 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GMP(allocation="erk"), "method.allocation=erk is not known: choose global or uniform"),
        (lambda: GMP(every=0), "method.every must be at least one"),
        (lambda: GraNet(every=-1), "method.every"),
        (lambda: GraNet(regrow=1.5), r"method.regrow=1.5 lies outside \[0, 1\]"),
        (lambda: GraNet(regrow_final=-0.1), r"method.regrow_final=-0.1 lies outside"),
        (lambda: RigL(allocation="global"), "method.allocation=global is not known: choose erk or uniform"),
        (lambda: RigL(growth="magnitude"), "method.growth=magnitude is not known"),
        (lambda: RigL(every=0), "method.every"),
        (lambda: RigL(drop=1.1), "method.drop=1.1"),
        (lambda: RigL(drop=math.nan), "method.drop=nan"),
        (lambda: Feather(exponent=0.5), "method.exponent=0.5"),
        (lambda: Feather(exponent=math.nan), "method.exponent=nan"),
        (lambda: Feather(theta=2.0), "method.theta=2"),
        (lambda: STR(threshold_decay=-1e-4), "method.threshold_decay=-0.0001 must not be negative"),
        (lambda: TopKAST(backward=-0.1), "method.backward=-0.1"),
        (lambda: TopKAST(decay=-1.0), "method.decay=-1 must not be negative"),
    ],
)
def test_wrong_values_are_refused_by_their_name(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
