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
from st3.sparsify import METHODS

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


@pytest.fixture
def contender(benchmark):
    """A contender of the step table that is ready to be timed, by method."""
    config = benchmark.load(
        "model=resnet20", "dataset=fake", "dataset.image_size=8", "dataset.train_images=4", "batch_size=4",
        f"sparsity={benchmark.SPARSITY}", "schedule=constant", "lr_schedule=constant", "optimizer.lr=0.01",
    )  # fmt: skip
    precision = benchmark.pick_precision("fp32", torch.device("cpu"))
    batch = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.arange(4)

    def make(method: str):
        made = benchmark.StepContender(config, method, "eager", batch, precision)
        made.warm_up()
        return made

    return make


def masks_of(contender) -> list[torch.Tensor]:
    return contender.training.state.sparsifier.state_dict()["method"]["masks"]


def changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return not all(map(torch.equal, before, after))


@pytest.mark.parametrize("name", [*METHODS, "naive"])
def test_every_method_is_timed_and_checked(name, contender):
    one = contender(name)
    assert one.interval == {"rigl": 100, "set": 100, "granet": 1000}.get(name)
    if one.interval:
        at_first = masks_of(one)
        for _ in range(3):
            one()
            assert not changed(at_first, masks_of(one))
        one.update()
        updated = masks_of(one)
        assert changed(at_first, updated)
        one()
        assert not changed(updated, masks_of(one))
        one.update()
    found = one.check()
    assert found["weights"] == RESNET20
    if name == "dense":
        assert found["zeros"] == 0
    elif name == "str":
        assert "zeros_expected" not in found
        assert found["zeros"] == pytest.approx(0.9 * RESNET20, rel=0.03)
    else:
        assert found["zeros_expected"] == pytest.approx(0.9 * RESNET20, abs=1)
        dead = 1000 if name == "set" else 1  # so small, some of what it grows at random never gets a gradient
        assert -1 <= found["zeros"] - 0.9 * RESNET20 <= dead


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"dense"}))
def test_other_zeros_than_the_method_leaves_are_not_reported(name, contender, benchmark):
    one = contender(name)
    one.check()
    weight = max((w.data for w in one.training.state.model.parameters()), key=torch.numel)
    for chosen, value in ((weight == 0, 1e-9), (weight != 0, 0.0)):
        right, some = weight.clone(), tuple(chosen.nonzero()[:3].T)
        weight[some] = value
        with pytest.raises(UserError, match="nothing reported"):
            benchmark.check_weights(name, one.training)
        weight.copy_(right)
        benchmark.check_weights(name, one.training)


def test_masks_with_other_zeros_than_asked_for_are_not_reported(benchmark):
    raw, mask = torch.randn(1000), torch.zeros(1000)
    mask[:100] = 1
    found = benchmark.check_masks("it", [raw * mask], [raw], [mask])
    assert found == {"zeros": 900, "zeros_expected": 900, "weights": 1000}
    mask[:103] = 1
    with pytest.raises(UserError, match="it masks 897 weights of 1,000, not 900"):
        benchmark.check_masks("it", [raw * mask], [raw], [mask])


def test_methods_by_name(benchmark):
    assert benchmark.method_names("rigl,dense,naive", peers=["naive"]) == ["dense", "rigl", "naive"]
    everything = benchmark.method_names("all", peers=["naive"])
    assert everything[0] == "dense"
    assert sorted(everything) == sorted([*METHODS, "naive"])
    with pytest.raises(UserError, match="--methods=rigle does not exist: did you mean rigl"):
        benchmark.method_names("st3,rigle")


def test_epochs_of_any_method(benchmark):
    arguments = benchmark._parser().parse_args(["epoch", "--quick", "--rounds", "1", "--methods", "rigl,probmask"])
    [(_, settings)] = benchmark._tasks(arguments, torch.device("cpu"))
    section = benchmark.epoch_section(settings, benchmark.pick_precision("fp32", torch.device("cpu")))
    assert [result["contender"] for result in section.results] == ["dense", "rigl", "probmask"]
    zeros = [result["zeros"] for result in section.results]
    assert zeros == [0, *[pytest.approx(0.9 * RESNET20, abs=1)] * 2]
    assert "rigl: updates its masks every 100 steps; an epoch has 6." in section.notes


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
    assert list(eager) == ["dense", "st3", "st3_sigma", "rigl", "naive"]
    assert [result["zeros"] for result in eager.values()] == [0, *[pytest.approx(0.9 * RESNET20, abs=1)] * 4]
    assert [name for name, result in eager.items() if "update_seconds" in result] == ["rigl"]
    times = {key: eager["rigl"][f"{key}seconds"]["rounds"] for key in ("", "ordinary_", "update_")}
    for whole, ordinary, update in zip(*times.values(), strict=True):
        assert whole == pytest.approx(0.99 * ordinary + 0.01 * update)
    assert ", 1 step in 100 |" in text
    captured = {result["method"]: result["reason"] for result in step["results"] if result["mode"] == "captured"}
    assert captured.keys() == eager.keys()
    assert "CUDA graphs need a CUDA device" in captured["st3"]
    assert "captured: not available for dense, st3, st3_sigma, rigl: capture=on is not possible" in text

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
