"""The fused kernels against the plain functions: interpreted (see conftest.py), compiled where there is CUDA."""

import math
import warnings

import pytest
import torch

from st3 import Sparsifier
from st3.sparsify import ST3, PolynomialRamp, kernels
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.methods.st3 import HardSTE, ST3Pruner, ST3Sigma
from st3.sparsify.thresholds import quantile

pytest.importorskip("triton", reason="this PyTorch comes without Triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape, seed=3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def layers(ties: bool) -> list[torch.Tensor]:
    """Plain, channels_last, depth-wise (rows of 9), Linear rows longer than a block, one channel only, all zero."""
    shapes = (3, 3, 3, 3), (4, 8, 3, 3), (3, 1, 3, 3), (2, 1100), (1, 9), (2, 4)
    weights = [random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    weights[1] = weights[1].contiguous(memory_format=torch.channels_last)
    weights[-1].zero_()
    return [((w * 30).round() / 30 if ties else w).to(DEVICE) for w in weights]


def with_some(value: float) -> torch.Tensor:
    """Rows with none, some, half and all of `value`."""
    weight = random(4, 50)
    weight[1, ::10], weight[2, ::2], weight[3] = value, -value, value
    return weight


WEIGHTS = {
    "random": layers(ties=False),
    "ties": layers(ties=True),
    "all equal": [torch.full((3, 400), -0.25), torch.full((2, 5), 0.25)],
    "all zero": [torch.zeros(2, 40)],
    "zeros": [with_some(0.0)],
    "denormal": [random(3, 500) * 1e-38, random(2, 9) * 1e-40],
    "infinite": [with_some(math.inf), random(3, 3)],
    "huge": [random(4, 100) * 1e38, random(2, 9)],
    "not a number": [with_some(math.nan), random(3, 3)],
    "nothing but NaN": [torch.full((2, 9), math.nan)],
    "window's end": [torch.tensor([[0x3F000000], [0x3F000000 + 2048]], dtype=torch.int32).view(torch.float32)],
    "one weight": [torch.tensor([[0.5]])],
    "two weights": [torch.tensor([[0.5], [-0.25]])],
    "chunk - 1": [random(1, 1023)],
    "chunk": [random(2, 512)],
    "chunk + 1": [random(1, 1025), random(1, 1), random(1, 2047)],
}
VARIANTS = {"st3": ST3(), "sigma": ST3Sigma(), "hard": HardSTE()}
ABLATIONS = {"soft": ST3(rescale=False), "hard, rescaled": ST3(shrink="hard"), "sigma, hard": ST3Sigma(shrink="hard")}


def same(ours: torch.Tensor, theirs: torch.Tensor, **tolerance) -> None:
    torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


CASES = [
    *((name, "st3") for name in WEIGHTS),
    *(pytest.param(name, other, marks=pytest.mark.slow) for name in WEIGHTS for other in ("sigma", "hard")),
    *(pytest.param(name, other, marks=pytest.mark.slow) for name in ("random", "ties") for other in ABLATIONS),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of numbers that are none
@pytest.mark.parametrize(("case", "variant"), CASES)
def test_they_compute_what_the_plain_functions_do(case, variant):
    raw = FlatWeights.copy_of([weight.to(DEVICE) for weight in WEIGHTS[case]])
    fused, plain = ([torch.full_like(w, 7.0) for w in raw.layers] for _ in range(2))
    method = (VARIANTS | ABLATIONS)[variant]
    pruner = ST3Pruner(method)
    tables = kernels.Kernels(raw, fused, pruner._scales(raw))
    tables._programs = 1
    for sparsity in (1e-9, 0.5, 0.5, 1.0):  # one after the other: what one leaves must not be seen
        value = torch.tensor(sparsity, dtype=torch.float64, device=DEVICE)
        thresholds = tables._launch(value, method.shrink == "soft", method.rescale)
        same(thresholds, pruner.project_plainly(raw, value, plain), rtol=0, atol=0)
        for ours, theirs in zip(fused, plain, strict=True):
            same(ours, theirs, rtol=1e-5, atol=1e-9 * theirs.abs().nan_to_num(0, 0).max().item())
            assert torch.equal(ours == 0, theirs == 0)


def test_the_last_threshold_saves_two_passes_where_it_is_near(monkeypatch):
    raw = FlatWeights.copy_of([random(3, 3000).to(DEVICE)])
    out = [torch.empty_like(w) for w in raw.layers]
    tables = kernels.Kernels(raw, out, [1.0])
    tables._programs = 1

    counted, count = [], kernels._count

    class Watched:
        def __getitem__(self, grid):
            def launch(*args, PASS, **rest):  # noqa: N803
                count[grid](*args, PASS=PASS, **rest)
                counted.append(tables._counts[PASS].sum().item())

            return launch

    monkeypatch.setattr(kernels, "_count", Watched())

    def saved(sparsity: float) -> bool:
        value = torch.tensor(sparsity, dtype=torch.float64, device=DEVICE)
        threshold = tables._launch(value, True, True)
        same(threshold[0], quantile(raw.flat.abs(), value), rtol=0, atol=0)
        in_first, in_all, *_ = counted[-4:]
        assert in_first < 0.1 * raw.flat.numel()
        return in_all == 0

    assert [saved(each) for each in (0.5, 0.5, 0.501, 0.499, 0.55, 0.5)] == [False, True, True, True, False, False]
    raw.flat.mul_(1.02)
    assert saved(0.5)
    raw.flat.mul_(1.2)
    assert not saved(0.5)
    assert saved(0.5)


def test_more_chunks_than_programs_and_the_first_and_last_ranks():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 7001, generator=generator).to(DEVICE)]
    raw, out = FlatWeights.copy_of(weights), [torch.empty_like(weights[0])]
    tables = kernels.Kernels(raw, out, [1.0])
    tables._programs = 2
    ordered = weights[0].abs().flatten().sort().values
    for rank in (0, 1, 10_000, ordered.numel() - 2):
        sparsity = torch.tensor((rank + 0.25) / (ordered.numel() - 1), dtype=torch.float64, device=DEVICE)
        thresholds = tables._launch(sparsity, True, True)
        low, high = ordered[rank].item(), ordered[rank + 1].item()
        assert thresholds.item() == pytest.approx(low + 0.25 * (high - low), rel=1e-5)
        assert (out[0] == 0).sum().item() == rank + 1


def test_a_projection_that_disagrees_is_replaced_loudly(monkeypatch):
    raw = FlatWeights.copy_of(layers(ties=False))
    out = [torch.empty_like(w) for w in raw.layers]
    pruner, half = ST3Pruner(ST3()), torch.tensor(0.5, dtype=torch.float64, device=DEVICE)
    expected = [torch.empty_like(w) for w in raw.layers]
    pruner.project_plainly(raw, half, expected)

    def project(tables):
        return tables.project(half, soft=True, rescale=True, plain=lambda out: pruner.project_plainly(raw, half, out))

    def fails(*_):
        raise RuntimeError("no compiler\nat all")

    for broken, says in ((lambda *_: out[0].new_zeros(len(out)), "does not agree"), (fails, r"no compiler\)")):
        tables = kernels.Kernels(raw, out, pruner._scales(raw))
        monkeypatch.setattr(tables, "_launch", broken)
        with pytest.warns(UserWarning, match=says):
            project(tables)
        project(tables)
        assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))

    tables = kernels.Kernels(raw, out, pruner._scales(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        project(tables)
        out[0].zero_()
        project(tables)  # from the second time on by the kernels alone
    torch.testing.assert_close(out[0], expected[0])


def test_a_fault_that_shows_only_beside_the_last_threshold_is_found(monkeypatch):
    raw = FlatWeights.copy_of(layers(ties=False))
    out = [torch.empty_like(w) for w in raw.layers]
    pruner, half = ST3Pruner(ST3()), torch.tensor(0.5, dtype=torch.float64, device=DEVICE)
    tables = kernels.Kernels(raw, out, pruner._scales(raw))
    launch = tables._launch

    def wrong_when_near(*args):
        near, thresholds = bool(tables._last), launch(*args)
        return thresholds * 1.1 if near else thresholds

    monkeypatch.setattr(tables, "_launch", wrong_when_near)
    with pytest.warns(UserWarning, match="does not agree"):
        tables.project(half, soft=True, rescale=True, plain=lambda out: pruner.project_plainly(raw, half, out))


def test_a_weight_that_is_not_a_number_stays_one_and_keeps_the_kernels_in_use():
    weights = layers(ties=False)
    weights[1][2, 0, 0, 0] = math.nan
    raw = FlatWeights.copy_of(weights)
    out, expected = ([torch.empty_like(w) for w in weights] for _ in range(2))
    pruner, half = ST3Pruner(ST3()), torch.tensor(0.5, dtype=torch.float64, device=DEVICE)
    tables = kernels.Kernels(raw, out, pruner._scales(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables.project(half, soft=True, rescale=True, plain=lambda out: pruner.project_plainly(raw, half, out))
    for weight in out:
        weight.zero_()
    tables.project(half, soft=True, rescale=True, plain=None)
    pruner.project_plainly(raw, half, expected)
    assert out[1][2].isnan().all()
    for ours, theirs in zip(out, expected, strict=True):
        same(ours, theirs)


def test_plain_tensors_where_the_kernels_do_not_serve():
    weights = [torch.randn(4, 4)]
    assert kernels.kernels_for(FlatWeights(weights), weights, [1.0]) is None  # on the CPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_layouts_on_cuda():
    def served(weights):
        raw = FlatWeights(weights)
        return kernels.kernels_for(raw, weights, [1.0] * len(weights)) is not None

    assert served(layers(ties=False))
    assert not served([torch.randn(4, 4, device="cuda").t()])  # output channels are not in one piece
    assert not served([torch.randn(4, 4, device="cuda", dtype=torch.float64)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_of_them_follows_weights_and_sparsity():
    raw = FlatWeights.copy_of(layers(ties=False))
    out, expected = ([torch.empty_like(w) for w in raw.layers] for _ in range(2))
    pruner, sparsity = ST3Pruner(ST3()), torch.full((), 0.5, dtype=torch.float64, device="cuda")
    tables = kernels.Kernels(raw, out, pruner._scales(raw))
    tables._launch(sparsity, True, True)  # compiles them
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        thresholds = tables._launch(sparsity, True, True)
    for number, value in enumerate((0.5, 0.5, 0.505, 0.9, 0.1, 0.1)):  # near to the last one, and far from it
        raw.flat.mul_(1 + number / 100)
        sparsity.fill_(value)
        graph.replay()
        same(thresholds, pruner.project_plainly(raw, sparsity, expected), rtol=0, atol=0)
        for ours, theirs in zip(out, expected, strict=True):
            same(ours, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_on_cuda_uses_them_and_follows_the_cpu():
    def trained(device):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = Sparsifier(model, "st3", PolynomialRamp(final=0.8, start=2, end=10)).attach(optimizer)
        generator = torch.Generator().manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(15):
                inputs = torch.randn(32, 20, generator=generator).to(device)
                labels = torch.randint(5, (32,), generator=generator).to(device)
                loss = torch.nn.functional.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return [p.detach().cpu() for p in model.parameters()], sparsifier

    torch.backends.cuda.matmul.allow_tf32 = False
    (ours, on_cuda), (theirs, _) = trained("cuda"), trained("cpu")
    assert kernels._KERNELS[on_cuda._raw]._checked
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
