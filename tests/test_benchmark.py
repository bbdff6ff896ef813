"""The benchmark's own command at tiny sizes, and that what it compares with is the same training. Never a timing."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from st3 import Sparsifier, UserError

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmark.py"
RESNET20 = 270_896


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark"] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmark"]


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, str(SCRIPT), *arguments, "--device", "cpu", "--threads", "1"]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120, **options)


def network() -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(8, 16, 3, groups=4, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), inner, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 5)
    )
    return model.double()


def train(model, update, steps: int = 10) -> list[float]:
    losses, generator = [], torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    after = update(optimizer)
    for _ in range(steps):
        images = torch.randn(16, 3, 10, 10, generator=generator, dtype=torch.float64)
        loss = F.cross_entropy(model(images), torch.randint(5, (16,), generator=generator))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        after()
        losses.append(loss.item())
    return losses


def test_the_naive_contender_computes_the_same_training(benchmark):
    model = network()
    other = copy.deepcopy(model)
    naive = benchmark.Naive(other, sparsity=0.9)
    sparsifier = Sparsifier(model, "st3", 0.9)
    losses = train(model, lambda optimizer: sparsifier.attach(optimizer).zeros)
    assert train(other, lambda _: naive.update) == pytest.approx(losses, abs=1e-12, rel=0)
    raw = sparsifier.raw_weights()
    for name, ours, theirs, sparse in zip(raw, raw.values(), naive.weights, naive.sparse(), strict=True):
        torch.testing.assert_close(theirs.detach(), ours, atol=1e-12, rtol=0)
        torch.testing.assert_close(sparse, model.get_submodule(name).weight.detach(), atol=1e-12, rtol=0)


def test_wrong_zeros_and_thresholds_are_not_reported(benchmark):
    raw = [torch.randn(50, 20), torch.randn(30, 10)]
    right = [torch.where(w.abs() > torch.cat([w.flatten() for w in raw]).abs().quantile(0.9), w, 0) for w in raw]
    assert benchmark.check_zeros("it", right, raw, [1.0, 1.0]) == {
        "zeros": 1170, "zeros_expected": 1170, "weights": 1300,
    }  # fmt: skip
    right[0][right[0] == 0] = 1e-9
    with pytest.raises(UserError, match=r"it leaves .* exact zeros"):
        benchmark.check_zeros("it", right, raw, [1.0, 1.0])
    ways = benchmark.Quantile(raw[0].flatten())
    for way in (ways.sort, ways.topk, ways.kthvalue, ways.partition):
        ways.check("it", way())
    with pytest.raises(UserError, match="it finds the threshold"):
        ways.check("it", ways.sort() * 0.999)


def test_everything_runs_and_writes_what_it_has_measured(tmp_path):
    done = command("all", "--quick", "--out", str(tmp_path / "new" / "folder"))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "new" / "folder" / "benchmark.json").read_text())
    text = (tmp_path / "new" / "folder" / "benchmark.md").read_text()
    assert done.stdout.split() == text.split()

    facts = written["environment"]
    assert {"device", "torch", "triton", "python", "cuda", "cpu_threads", "date", "git", "command"} <= facts.keys()
    assert facts["cpu_threads"] == 1
    assert "all --quick" in facts["command"]

    step, projection, epoch = written["sections"]
    eager = {result["method"]: result for result in step["results"] if result["mode"] == "eager"}
    assert list(eager) == ["dense", "st3", "st3_sigma", "naive"]
    assert [result["zeros"] for result in eager.values()] == [0, *[pytest.approx(0.9 * RESNET20, abs=1)] * 3]
    captured = {result["method"]: result["reason"] for result in step["results"] if result["mode"] == "captured"}
    assert captured.keys() == eager.keys()
    assert "CUDA graphs need a CUDA device" in captured["st3"]
    assert "captured: not available for dense, st3, st3_sigma: capture=on is not possible" in text

    contenders = {f"{result['task']} {result['contender']}" for result in projection["results"]}
    assert {"threshold sort", "threshold st3", "projection st3_sigma", "projection copy"} < contenders
    assert len({result["weights"] for result in projection["results"]}) == 2

    dense, sparse = epoch["results"]
    assert (dense["contender"], dense["zeros"], sparse["contender"]) == ("dense", 0, "st3")
    assert sparse["zeros"] == pytest.approx(0.9 * RESNET20, abs=1)
    assert epoch["settings"]["train_images"] == 48

    for result in [*eager.values(), *projection["results"], dense, sparse]:
        seconds = result["seconds"]
        assert len(seconds["rounds"]) == seconds["n"] == 2
        assert 0 < seconds["min"] <= seconds["q1"] <= seconds["median"] <= seconds["q3"] <= seconds["max"]
        assert result["contender"].partition(",")[0] in text


def test_a_mistake_is_one_line():
    done = command("step", "--quick", "--precision", "fp16")
    assert done.returncode == 1
    assert done.stderr == (
        "benchmark: error: precision=fp16 needs a CUDA device: use precision=bf16 or precision=fp32 on the CPU\n"
    )
