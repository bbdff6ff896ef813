"""What the tests of several files share: a small network, its training, what a sparsifier has done to it."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from st3 import Sparsifier
from st3.sparsify import AlternatingPhases, Constant, Method, PolynomialRamp, Schedule, weight_layers

STEPS = 30
"""Of a short training, in which all kinds of a method's steps come up."""
RAMP = PolynomialRamp(final=0.8, start=3, end=18)
PHASES = AlternatingPhases(final=0.8, start=4, period=5, last_dense=19, end=24)
SPARSE = Constant(0.8)


# A network and its training -------------------------------------------------------------------------------------------


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Plain, grouped and depth-wise convolutions with and without bias, BatchNorm, two Linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 3, groups=4, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    ).to(dtype)


def smooth(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Without units that are off for a whole batch: their weights would get no gradient, stay 0 when grown, and tie."""
    model = network(dtype)
    model[2], model[8] = nn.ELU(), nn.ELU()
    return model


def batch(number: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Eight images of five classes, others for each number."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(8, 3, 10, 10, generator=generator, dtype=dtype)
    return images, torch.randint(5, (8,), generator=generator)


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3} | options)


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[int],
    dtype: torch.dtype = torch.float32,
    clip: float | None = None,
) -> list[float]:
    """One step with each of the batches; their losses."""
    losses = []
    for number in batches:
        images, labels = batch(number, dtype)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def start(
    method: str | Method,
    schedule: float | Schedule,
    dtype: torch.dtype = torch.float32,
    make: Callable[[nn.Module], Optimizer] = sgd,
    *,
    length: int = STEPS,
    **options,
) -> tuple[nn.Sequential, Optimizer, Sparsifier]:
    """A smooth network, its optimizer and the sparsifier that is attached to it."""
    model = smooth(dtype)
    optimizer = make(model)
    return model, optimizer, Sparsifier(model, method, schedule, length=length, **options).attach(optimizer)


def before_each_step(optimizer: Optimizer, look: Callable[[], None]) -> None:
    """`look()` when the sparsifier is done with the gradients and the optimizer has not yet begun."""
    optimizer.register_step_pre_hook(lambda *_: look())


# What there is to see -------------------------------------------------------------------------------------------------


def weights_of(sparsifier: Sparsifier) -> dict[str, Tensor]:
    """The model's own weights of the pruned layers."""
    return {name: weight.detach() for name, weight in sparsifier.weights.items()}


def zeros_of(sparsifier: Sparsifier) -> dict[str, Tensor]:
    """Where the model's weights are exactly zero."""
    return {name: weight == 0 for name, weight in weights_of(sparsifier).items()}


def masks_of(sparsifier: Sparsifier) -> dict[str, Tensor]:
    """Of a method that keeps masks."""
    return dict(zip(sparsifier.pruned_layers, sparsifier.state_dict()["method"]["masks"], strict=True))


def exact_zeros(sparsity: float, total: int) -> int:
    """Weights at or below the quantile of `sparsity`."""
    return math.floor((total - 1) * sparsity) + 1


def states(*parts) -> list[dict]:
    """What is saved of model, optimizer, sparsifier."""
    return [part.state_dict() for part in parts]


def load(parts: Sequence, saved: Sequence[dict]) -> None:
    """The reverse; `saved` stays as it is."""
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(copy.deepcopy(state))


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


# A second formulation -------------------------------------------------------------------------------------------------


class Naive:
    """Training with a method, written a second time: raw weights in a dict, projected for each forward pass; SGD with
    momentum and decay from its definition. A twin overrides what its method does differently.
    """

    LR, MOMENTUM, DECAY = 0.1, 0.9, 1e-3  # as `sgd`

    def __init__(self, model: nn.Module, method: Method, schedule: Schedule, state: dict):
        self.model, self.method, self.schedule = copy.deepcopy(model), method, schedule
        self.raw = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.buffer = {name: torch.zeros_like(p) for name, p in self.raw.items()}
        self.pruned = [f"{layer}.weight" for layer in weight_layers(model)]
        self.mask = {name: torch.ones_like(self.raw[name], dtype=torch.bool) for name in self.pruned}
        self.total = sum(self.raw[name].numel() for name in self.pruned)
        self.clipped = 0
        self.begin(state)

    def train(self, step: int, clip: float) -> float:
        images, labels = batch(step, torch.float64)
        used = {name: self.project(name) if name in self.pruned else w for name, w in self.raw.items()}
        leaves = {name: w.clone().requires_grad_() for name, w in used.items()}
        loss = F.cross_entropy(functional_call(self.model, leaves, images), labels)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for name in self.pruned:
            gradients[name] = self.route(step, name, gradients[name], used[name])
        scale = self.clip(gradients.values(), clip)
        gradients = {name: g * scale for name, g in gradients.items()}
        self.before(step, gradients)
        self.move(gradients)
        self.after(step, self.schedule.value(step))
        return loss.item()

    def clip(self, gradients: Iterable[Tensor], limit: float) -> float:
        """What the gradients are multiplied by so that their norm is at most `limit`."""
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        self.clipped += norm > limit
        return min(1.0, limit / (norm + 1e-6))

    def move(self, gradients: dict[str, Tensor]) -> None:
        for name, w in self.raw.items():
            self.buffer[name] = self.MOMENTUM * self.buffer[name] + gradients[name] + self.DECAY * w
            self.raw[name] = w - self.LR * self.buffer[name]

    def magnitudes(self) -> Tensor:
        return torch.cat([self.raw[name].abs().flatten() for name in self.pruned])

    def mask_above(self, threshold: Tensor) -> None:
        self.mask = {name: self.raw[name].abs() > threshold for name in self.pruned}

    # What a method does differently.

    def begin(self, state: dict) -> None:
        """`state` is the method's at the start, for what it has drawn at random."""

    def project(self, name: str) -> Tensor:
        return self.raw[name] * self.mask[name]

    def route(self, step: int, name: str, gradient: Tensor, used: Tensor) -> Tensor:
        return gradient * self.mask[name]

    def before(self, step: int, gradients: dict[str, Tensor]) -> None: ...

    def after(self, step: int, sparsity: float) -> None: ...


def smallest(values: Tensor, among: Tensor, count: int) -> list[int]:
    """Places of the `count` smallest of `values` at the mask `among`, by sorting numbers."""
    places = among.flatten().nonzero().flatten().tolist()
    numbers = values.flatten().tolist()
    return sorted(places, key=lambda i: numbers[i])[:count]


def check_twin(twin: type[Naive], method: Method, schedule: Schedule, **options) -> None:
    """Losses, sparse and raw weights of a training in float64 are those of the twin, with clipped gradients and not."""
    model, optimizer, sparsifier = start(method, schedule, torch.float64, **options)
    naive = twin(smooth(torch.float64), method, schedule, sparsifier.state_dict()["method"])
    limits = [0.1 if step % 3 else 1e9 for step in range(STEPS)]
    for step, limit in enumerate(limits):
        [loss] = train(model, optimizer, [step], torch.float64, clip=limit)
        assert abs(loss - naive.train(step, limit)) < 1e-10, step
        raw = sparsifier.raw_weights()
        for name, weight in weights_of(sparsifier).items():
            assert (weight - naive.project(f"{name}.weight")).abs().max() < 1e-10, (step, name)
            assert (raw[name] - naive.raw[f"{name}.weight"]).abs().max() < 1e-10, (step, name)
    assert naive.clipped >= STEPS // 2
