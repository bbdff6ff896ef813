"""The fused kernels against the plain functions: interpreted (see conftest.py), compiled where there is CUDA."""

import warnings

import pytest
import torch

from st3 import Sparsifier
from st3.sparsify import METHODS, ST3, PolynomialRamp, kernels
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.methods.st3 import ST3Pruner

pytest.importorskip("triton", reason="this PyTorch comes without Triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def layers(ties: bool) -> list[torch.Tensor]:
    """Plain, channels_last, depth-wise (rows of 9), Linear rows longer than a block, one channel only, all zero."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        weight = torch.randn(shape, generator=generator) * 0.1
        return ((weight * 30).round() / 30 if ties else weight).to(DEVICE)

    conv = random(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    return [random(3, 3, 3, 3), conv, random(3, 1, 3, 3), random(2, 1100), random(1, 9), 0 * random(2, 4)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ties"), [("st3", False), ("st3_sigma", True), ("hard_ste", True)])
def test_they_compute_what_the_plain_functions_do(name, ties):
    raw = FlatWeights.copy_of(layers(ties))
    fused, plain = ([torch.full_like(w, 7.0) for w in raw.layers] for _ in range(2))
    method = METHODS[name]()
    pruner = ST3Pruner(method)
    tables = kernels.Kernels(raw, fused, pruner._scales(raw))
    for sparsity in (1e-9, 0.5, 0.9, 0.99999):  # one after the other: the counts must start at 0 again
        value = torch.tensor(sparsity, dtype=torch.float64, device=DEVICE)
        thresholds = tables._launch(value, method.shrink == "soft", method.rescale)
        expected = pruner.project_plainly(raw, value, plain)
        torch.testing.assert_close(thresholds, expected, rtol=1e-6, atol=0)
        for ours, theirs in zip(fused, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)
            assert torch.equal(ours == 0, theirs == 0)


def test_more_chunks_than_programs_and_the_first_and_last_ranks():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 7001, generator=generator).to(DEVICE)]
    raw, out = FlatWeights.copy_of(weights), [torch.empty_like(weights[0])]
    tables = kernels.Kernels(raw, out, [1.0])
    tables._programs = 2
    ordered = weights[0].abs().flatten().sort().values
    for rank in (0, 1, 10_000, ordered.numel() - 2):
        sparsity = torch.tensor((rank + 0.25) / (ordered.numel() - 1), dtype=torch.float64, device=DEVICE)
        tables._launch(sparsity, True, True)
        low, high = ordered[rank].item(), ordered[rank + 1].item()
        assert tables._threshold.item() == pytest.approx(low + 0.25 * (high - low), rel=1e-5)
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
        project(tables)  # the second time by the kernels alone
    torch.testing.assert_close(out[0], expected[0])


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
