"""`st3 bench`: dense beside sparse in every runtime, said as it is; MNN's kernels chosen layer by layer."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_cases import TINY, st3_train
from deploy_cases import refused, st3_
from synthetic_network import synthetic

from st3.deploy.bench import layers_in_words, verdict
from st3.deploy.benchmark import Batch, Benchmark, Timing, pinned, time_batch
from st3.deploy.formats import MNN
from st3.deploy.formats.mnn import convert
from st3.deploy.formats.mnn_clock import operation_times
from st3.deploy.formats.mnn_file import stored_weights, tune
from st3.deploy.layer_times import LayerTime
from st3.deploy.network import load_trained
from st3.deploy.runtimes import RUNTIMES, Compiled, Contender, Files, without_zeros
from st3.measure.times import Times
from st3.measure.timing import spread
from st3.sparsify import weight_layers


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("network") / "resnet20.safetensors"
    synthetic(path, "resnet20", 0.9, image_size=16)
    return path


@pytest.fixture(scope="module")
def files(network, tmp_path_factory) -> Files:
    return Files.make(load_trained(network, torch.device("cpu")), tmp_path_factory.mktemp("files"))


@pytest.fixture
def without_compiler(monkeypatch):
    """Which takes half a minute."""
    monkeypatch.setattr("st3.deploy.benchmark.RUNTIMES", tuple(r for r in RUNTIMES if not isinstance(r, Compiled)))


def timing(runtime: str, kind: str, *ms: float) -> Timing:
    return Timing(runtime=runtime, kind=kind, cpu_ms=spread(ms), wall_ms=spread(ms), difference=None)


def batch(dense: float, sparse: float) -> Batch:
    timings = [timing("ONNX Runtime", "dense", dense - 0.1, dense, dense + 0.1), timing("MNN", "dense", 99.0)]
    timings += [timing("ONNX Runtime", "sparse", 0.5), timing("MNN", "sparse", sparse - 0.1, sparse, sparse + 0.1)]
    return Batch(size=1, clock="cpu_ms", timings=tuple(timings), absent={})


@pytest.mark.slow
def test_every_runtime_is_timed_with_both_networks_or_says_why_not(network, tmp_path, without_compiler):
    answer = st3_("bench", network, "--out", tmp_path, "--batch", "2", "--rounds", "3")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads((tmp_path / "bench.json").read_text())
    [only] = found["batches"]
    kinds: dict[str, list[str]] = {}
    for each in only["timings"]:
        kinds.setdefault(each["runtime"], []).append(each["kind"])
        assert each["cpu_ms"]["n"] == each["wall_ms"]["n"] == 3
        assert each["cpu_ms"]["min"] > 0
        assert (each["difference"] is None) == (each["kind"] == "dense")
    assert {name: sorted(kind) for name, kind in kinds.items() if name != "MNN, tuned"} == {
        name: ["dense", "sparse"]
        for name in ("PyTorch", "ONNX Runtime", "OpenVINO", "MNN")
        if name not in only["absent"]
    }
    assert kinds["MNN, tuned"] == ["sparse"]
    for name, reason in only["absent"].items():
        assert "pip install 'st3[" in reason
        assert f"{name:<18} not timed" in answer.out
    ours = load_trained(network, torch.device("cpu"))
    zeros = {name: int((w == 0).sum()) for name, w in weight_layers(ours.model).items()}
    assert {each["layer"]: each["zeros"] for each in found["layers"]} == zeros
    weights = sum(each.numel() for each in weight_layers(ours.model).values())
    assert found["sparsity"] == pytest.approx(sum(zeros.values()) / weights)
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_a_runtime_that_computes_something_else_is_not_timed(network, files, monkeypatch):
    ours, pixels = (
        load_trained(network, torch.device("cpu")),
        np.random.default_rng(0).random((1, 3, 16, 16), np.float32),
    )
    right = MNN().open(files.sparse_mnn)

    def given(*_):
        yield Contender("right", "sparse", right)
        yield Contender("wrong", "dense", right)  # whose time would mean nothing beside a missing one
        yield Contender("wrong", "sparse", lambda images: right(images) * np.float32(1.01))
        yield Contender("broken", "sparse", lambda images: right(images) * np.float32("nan"))

    monkeypatch.setattr("st3.deploy.benchmark.contenders", given)
    found = time_batch(ours, files, pixels, threads=1, rounds=1)
    assert [each.runtime for each in found.timings] == ["right"]
    assert found.timings[0].difference < 1e-4
    assert set(found.absent) == {"wrong", "broken"}
    assert "away from PyTorch" in found.absent["wrong"]


def test_the_dense_network_has_no_zero_and_the_sparse_one_all(files, network):
    def zeros(path: Path) -> int:
        weights = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer if len(each.dims) > 1]
        return sum(int((weight == 0).sum()) for weight in weights)

    ours = weight_layers(load_trained(network, torch.device("cpu")).model).values()
    assert zeros(files.dense_onnx) == 0
    assert zeros(files.sparse_onnx) == sum(int((weight == 0).sum()) for weight in ours)
    filled = without_zeros(np.array([0.0, 2.0, 0.0, -4.0], np.float32))
    assert filled[[1, 3]].tolist() == [2, -4]
    assert (filled[[0, 2]] > 0).all()
    assert (filled[[0, 2]] <= 0.03).all()


def test_chosen_layers_get_dense_kernels_and_the_same_logits(files, tmp_path):
    chosen = {"layer1.0.conv1", "layer3.2.conv2"}
    assert files.sparse_mnn
    dense = tmp_path / "dense.mnn"
    convert(files.sparse_onnx, dense, sparse=False)
    tune(dense, files.sparse_mnn, tmp_path / "tuned.mnn", chosen)
    pixels = np.random.default_rng(0).random((3, 3, 16, 16), np.float32)
    logits = [MNN().open(path)(pixels) for path in (files.sparse_mnn, tmp_path / "tuned.mnn")]
    assert np.abs(logits[0] - logits[1]).max() < 1e-5 * np.abs(logits[0]).max()

    before, after = (list(stored_weights(path)) for path in (files.sparse_mnn, tmp_path / "tuned.mnn"))
    assert sum(each.sparse for each in before) - sum(each.sparse for each in after) == len(chosen)
    assert [each.zeros for each in before] == [each.zeros for each in after]
    # Nothing chosen: nothing changes.
    tune(dense, files.sparse_mnn, tmp_path / "same.mnn", set())
    assert (tmp_path / "same.mnn").read_bytes() == files.sparse_mnn.read_bytes()


def test_tuned_files_hold_all_zeros(network, tmp_path, monkeypatch):
    slower = {"layer1.0.conv1", "layer2.0.conv2"}
    monkeypatch.setattr("st3.deploy.formats.mnn.slower_when_sparse", lambda *_: slower)
    answer = st3_("export", network, "--format", "mnn", "--tune", "--out", tmp_path / "out")
    assert answer.code == 0, answer
    layers = {each["layer"]: each for each in json.loads((tmp_path / "out" / "export.json").read_text())["layers"]}
    assert {layers[name]["kernel"] for name in slower} == {"dense"}
    assert layers["layer3.0.conv1"]["kernel"] == "sparse"
    assert "--format mnn" in refused("export", network, "--tune", "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_each_operation_has_a_time_in_each_file(files):
    assert files.dense_mnn
    assert files.sparse_mnn
    pixels = np.zeros((1, 3, 16, 16), np.float32)
    found = operation_times({"dense": files.dense_mnn, "sparse": files.sparse_mnn}, pixels, rounds=2)
    assert set(found) == {"dense", "sparse"}
    for ms in found.values():
        assert {"conv1", "layer1.0.conv1", "layer3.2.conv2"} <= set(ms)
        assert all(each >= 0 for each in ms.values())


def test_where_a_sparse_kernel_breaks_even():
    layer = LayerTime("conv", 1000, 900, 5.0, 3.0, base_ms=2.0, ms_per_weight=0.01, has_sparse_kernel=True)
    assert layer.break_even == pytest.approx(0.7)  # 2 + 0.01·300 = 5
    assert layer.times().ms(300) == pytest.approx(5.0)
    assert layer.times().ms(100) == pytest.approx(3.0)
    assert replace(layer, base_ms=5.0).break_even == 1  # never
    assert replace(layer, ms_per_weight=0.0).break_even == 0  # always
    assert replace(layer, dense_ms=50.0).break_even == 0


def test_the_verdict_is_said_in_words():
    assert verdict(batch(4, 2)).startswith("The zeros pay")
    assert "2.00 times as fast" in verdict(batch(4, 2))
    assert verdict(batch(2, 4)).startswith("The sparse kernels are slower here: MNN with sparse kernels 4 ms")
    assert "no difference that could be told" in verdict(batch(3, 3.05))
    timings = timing("PyTorch", "dense", 1.0), timing("PyTorch", "sparse", 0.1)
    alone = Batch(size=1, clock="cpu_ms", timings=timings, absent={})
    assert "pip install 'st3[mnn]'" in verdict(alone)
    assert batch(4, 2).gain == pytest.approx(2)  # ONNX Runtime's half a millisecond is no gain from zeros
    assert alone.gain is None


def test_layers_that_lose_are_named():
    lost = LayerTime("early", 100, 70, 1.0, 2.0, base_ms=0.5, ms_per_weight=0.05, has_sparse_kernel=True)
    won = LayerTime("late", 100, 99, 1.0, 0.5, base_ms=0.4, ms_per_weight=0.05, has_sparse_kernel=True)
    dense = LayerTime("stem", 100, 10, 1.0, 1.1, base_ms=0.4, ms_per_weight=0.05, has_sparse_kernel=False)
    found = Benchmark(
        model="m", sparsity=0.9, input=(3, 8, 8), threads=1, device="d", date="", versions={}, batches=(),
        layers=(lost, won, dense),
    )  # fmt: skip
    said = layers_in_words(found)
    assert said.startswith("2 of 3 layers have zeros enough for MNN's sparse kernels, which are faster in 1.")
    assert "early (70 % zeros, faster from 90 % on)" in said
    assert "late" not in said


@pytest.mark.slow
def test_calibrated_times_are_what_a_training_aims_at(tmp_path):
    run = tmp_path / "run"
    assert st3_train(*TINY, f"run_dir={run}", "method=dense", "epochs=1").code in (0, 1)
    answer = st3_("bench", run, "--calibrate", tmp_path / "times.json", "--rounds", "3")
    assert answer.code == 0, answer
    times = Times.read(tmp_path / "times.json")
    times.check("resnet20", (3, 8, 8))
    assert times.layers["layer1.0.conv1"].weights == 2304
    # On images of 8 pixels sparse kernels may gain next to nothing: let them, so that there is something to aim at.
    gaining = {
        name: replace(each, dense_ms=1.0, base_ms=0.1, ms_per_weight=1e-3) for name, each in times.layers.items()
    }
    replace(times, layers=gaining).write(tmp_path / "times.json")
    aim = "method.target=latency", f"method.times={tmp_path / 'times.json'}", "sparsity=0.3"
    told = st3_train(*TINY, *aim, "dry_run=true")
    assert told.code == 0, told
    assert "MNN" in told.out


def test_what_cannot_be_timed_is_one_line(network, tmp_path, monkeypatch):
    assert "--out" in refused("bench", network)
    assert "--batch 1" in refused("bench", network, "--batch", "1,2", "--calibrate", tmp_path / "times.json")
    assert "give one RUN" in refused("bench", network, network, "--out", tmp_path)
    assert "different numbers" in refused("bench", network, "--batch", "1,1", "--out", tmp_path)
    assert "at least 1" in refused("bench", network, "--batch", "0", "--out", tmp_path)
    assert "numbers, as in 1,16" in refused("bench", network, "--batch", "a", "--out", tmp_path)
    assert "cores of this machine" in refused("bench", network, "--threads", "9999", "--out", tmp_path)
    (tmp_path / "file").touch()
    assert "cannot be written" in refused("bench", network, "--out", tmp_path / "file", code=6)
    assert "is no folder" in refused("bench", network, "--calibrate", tmp_path / "none" / "times.json")
    (tmp_path / "file").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").touch()
    assert "finish it" in refused("bench", tmp_path / "run")
    monkeypatch.setattr("st3.deploy.formats.format.find_spec", lambda name: None)
    assert "pip install 'st3[export]'" in refused("bench", network, "--out", tmp_path)
    assert "pip install 'st3[mnn]'" in refused("bench", network, "--calibrate", tmp_path / "times.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_threads_and_cores_are_given_back():
    before = torch.get_num_threads(), os.sched_getaffinity(0)
    with pinned(1):
        assert torch.get_num_threads() == 1
        assert len(os.sched_getaffinity(0)) == 1
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == before
