"""Two processes against one: the same training with every method, the same scores, one voice."""

import os
import socket
import time
from pathlib import Path

import pytest
import torch
from command_cases import dot
from helpers import assert_same
from torch import nn
from training_cases import FP32, Recorder, data_of, fit, make_plan, plain, train_epoch

import st3.run
from st3 import Sparsifier
from st3.compose import compose_config
from st3.data import DatasetConfig, build_data
from st3.durations import Length
from st3.errors import UserError
from st3.optim.lr_schedules import CosineSettings
from st3.optim.optimizers import SGD
from st3.sparsify import METHODS, AlternatingPhases, Constant, PolynomialRamp
from st3.sparsify.methods import STR
from st3.training import loop
from st3.training.distributed import SINGLE, Processes, join, launched, leave
from st3.training.ema import RawAverage
from st3.training.loop import evaluate
from st3.training.machine import Machine
from st3.training.state import TrainingState
from st3.training.step import EagerStep

STEPS, BATCH = 20, 8


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(port: int, rank: int) -> dict[str, str]:
    """Environment variables of process `rank` of two, as torchrun sets them."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()} | {"OMP_NUM_THREADS": "1"}


# Training -------------------------------------------------------------------------------------------------------------


class Shard:
    """Slice `rank` of each of `count` random batches of images [8, 3, 6, 6] in 4 classes, in `accumulate` passes."""

    def __init__(self, count: int, processes: Processes, accumulate: int = 1):
        self.count, self.passes, self.processes = count, accumulate, processes

    def epoch(self, epoch, start=0):
        generator = torch.Generator().manual_seed(epoch)
        each = BATCH // self.passes // self.processes.world_size
        share = slice(self.processes.rank * each, (self.processes.rank + 1) * each)
        for _ in range(self.count):
            images = torch.randn(BATCH, 3, 6, 6, generator=generator, dtype=torch.float64)
            labels = torch.randint(4, (BATCH,), generator=generator)
            for some in zip(images.chunk(self.passes), labels.chunk(self.passes), strict=True):
                yield tuple(tensor[share] for tensor in some)


def convolutions() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    return nn.Sequential(*layers).double()


class Traces(Recorder):
    """Keeps thresholds, raw and sparse weights after every step."""

    def __init__(self):
        super().__init__()
        self.thresholds, self.zeros = [], []

    def row(self, state, row):
        super().row(state, row)
        self.thresholds.append(state.sparsifier.thresholds().clone())
        self.zeros.append(state.sparsifier.zeros())


RAMP = PolynomialRamp(final=0.8, start=4, end=14)
SPARSE = Constant(0.8)
SCHEDULES = {
    "rigl": SPARSE, "set": SPARSE, "topkast": SPARSE, "str": SPARSE,
    "acdc": AlternatingPhases(final=0.8, start=3, period=4, last_dense=11, end=14),
}  # fmt: skip
"""Of a method that does not follow the ramp."""


def trained(processes: Processes, accumulate: int = 1, method: str = "st3") -> dict:
    """What 20 steps with everything on leave behind."""
    schedule, machine = SCHEDULES.get(method, RAMP), Machine(FP32.device, "fp32", processes)
    plan = make_plan(
        epochs=1, steps_per_epoch=STEPS, batch_size=BATCH, accumulate=accumulate, log_every=1, clip_norm=0.5,
        sparsity=schedule, target_sparsity=0.8, lr_schedule=CosineSettings(warmup=3).over(Length(STEPS)),
        label_smoothing=0.1,
    )  # fmt: skip
    model = convolutions()
    forward = processes.wrap(model)
    optimizer = SGD(lr=0.2, weight_decay=1e-2, nesterov=True).build(model)
    settings = STR(threshold_init=-3.0) if method == "str" else method
    sparsifier = Sparsifier(model, settings, schedule, length=STEPS).attach(optimizer)
    state = TrainingState(model, optimizer, sparsifier, FP32.scaler())
    step = EagerStep(state, plan, machine, forward)
    traces = Traces()
    train_epoch(state, Shard(STEPS, processes, accumulate).epoch(0), plan, machine, step, traces, dict)
    return {
        "losses": [row["train_loss"] for row in traces.rows],
        "thresholds": traces.thresholds,
        "zeros": traces.zeros,
        "state": plain(state.state_dict()),
    }


def normalised(processes: Processes) -> dict:
    """Buffers of a BatchNorm that sees the images themselves, and of its average, after one epoch of `fit`."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 4)).double()
    plan = make_plan(epochs=1, steps_per_epoch=5, batch_size=BATCH)
    machine = Machine(FP32.device, "fp32", processes)
    forward = processes.wrap(model)
    optimizer = SGD(lr=0.1, weight_decay=0.0, momentum=0.0).build(model)
    sparsifier = Sparsifier(model, "st3", plan.sparsity).attach(optimizer)
    state = TrainingState(model, optimizer, sparsifier, FP32.scaler(), RawAverage(model, sparsifier, 0.9))
    step = EagerStep(state, plan, machine, forward)
    data = data_of(Shard(5, processes), None, Shard(1, processes))
    fit(state, data, plan, machine, step, Recorder(), dict)
    average = {name: value for name, value in state.average.values.items() if name.startswith("0.running")}
    return {"model": dict(model[0].named_buffers()), "average": average}


def fake_test_images(count: int, processes: Processes):
    config = DatasetConfig(
        name="fake", classes=6, channels=3, image_size=6, mean=[0.5] * 3, std=[0.25] * 3, train_images=8,
        test_images=count,
    )  # fmt: skip
    each = {"rank": processes.rank, "world_size": processes.world_size}
    return build_data(config, batch_size=8, seed=0, device="cpu", eval_batch_size=8, **each).test


def scored(processes: Processes) -> dict:
    """Scores and this process's number of images, by the number of images in all."""
    torch.manual_seed(5)
    model, machine = nn.Sequential(nn.Flatten(), nn.Linear(108, 6)), Machine(FP32.device, "fp32", processes)
    loaders = {count: fake_test_images(count, processes) for count in (101, 1)}
    return {count: (evaluate(model, test.epoch(0), machine), test.num_images) for count, test in loaders.items()}


def heard(processes: Processes) -> dict:
    """What `from_main` gives back, and who did the work."""
    did = []

    def answer():
        did.append(processes.rank)
        return {"rank": processes.rank, "path": Path("x")}

    def refuse():
        did.append(processes.rank)
        raise UserError("no such folder: make one")

    result = processes.from_main(answer)
    try:
        processes.from_main(refuse)
    except UserError as error:
        return {"result": result, "refusal": str(error), "did": did}
    return {"result": result, "refusal": None, "did": did}


def gathered(processes: Processes) -> dict:
    """What comes of work that each process does for itself, on the same machine."""

    def refusal(action) -> str | None:
        try:
            processes.together(action)
        except UserError as error:
            return str(error)
        return None

    def refuse(ranks):
        if processes.rank in ranks:
            raise UserError(f"no data at {processes.rank}")

    order = torch.zeros(2, dtype=torch.int64)

    def turn() -> int:
        time.sleep(0.3 * (processes.rank == 0))  # the first is not the faster one
        order[processes.rank] = time.monotonic_ns()
        return processes.rank

    result = processes.in_turn(turn)
    processes.sum_(order)
    found = {"alone": refusal(lambda: refuse([1])), "all": refusal(lambda: refuse([0, 1])), "none": refusal(dict)}
    return found | {"result": result, "order": order.tolist()}


TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=192", "dataset.test_images=21", "dataset.classes=7",
    "batch_size=16", "epochs=1", "sparsity=0.8", "precision=fp32", "device=cpu",
]  # fmt: skip


def ran(method: str, folder: Path) -> tuple[dict, dict]:
    """A whole run of the command with a method of the registry: this process's state after it, and its summary."""
    states = []

    def watched(state, *others):
        loop.fit(state, *others)
        saved = plain(state.state_dict())
        del saved["processes"]  # generators, which are each process's own
        states.append(saved)

    st3.run.fit, st3.run.draw_run = watched, dot
    config = compose_config([*TINY, f"method={method}", f"run_dir={folder / method}"])
    summary = st3.run.run(config, [], folder)
    return states[0], summary.plain()


def work(rank: int, port: int, folder: str) -> None:
    """All of the above, as process `rank` of two."""
    os.environ |= together(port, rank)
    torch.set_num_threads(1)
    processes = launched()
    join(processes, 120)
    join(processes, 120)  # the second job of a sweep
    found = {f"trained {passes}": trained(processes, passes) for passes in (1, 2)}
    found |= {f"trained {method}": trained(processes, 1, method) for method in METHODS}
    found |= {"normalised": normalised(processes), "scored": scored(processes), "heard": heard(processes)}
    found["gathered"] = gathered(processes)
    found |= {f"ran {method}": ran(method, Path(folder)) for method in METHODS}
    torch.save(found, Path(folder, f"{processes.rank}.pt"))
    leave()


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[dict, dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("both")
    context = torch.multiprocessing.spawn(work, (free_port(), str(folder)), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline
    finally:
        for process in context.processes:
            process.kill()
    return tuple(torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one_with_the_whole_batch(accumulate, both):
    expected, found = trained(SINGLE, accumulate), both[0][f"trained {accumulate}"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    torch.testing.assert_close(found["thresholds"], expected["thresholds"], rtol=1e-10, atol=1e-14)
    assert (found["thresholds"][4] == 0).all()
    assert (found["thresholds"][5] > 0).all()
    for kind in ("model", "optimizer", "sparsifier"):  # the sparse weights, the momentum, the raw weights
        torch.testing.assert_close(found["state"][kind], expected["state"][kind], rtol=1e-9, atol=1e-13)
    assert all(torch.equal(*pair) for pair in zip(found["zeros"], expected["zeros"], strict=True))
    assert abs(found["zeros"][-1].sum().item() - 0.8 * (324 + 864 + 128)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_both_processes_hold_the_same_bits(accumulate, both):
    mine, theirs = (found[f"trained {accumulate}"] for found in both)
    assert mine["state"]["sparsifier"]["raw"]
    assert_same(mine, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_with_every_method_two_processes_train_as_one(method, both):
    expected, (found, other) = trained(SINGLE, 1, method), (each[f"trained {method}"] for each in both)
    assert_same(found, other)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    for kind in ("model", "optimizer", "sparsifier"):
        torch.testing.assert_close(found["state"][kind], expected["state"][kind], rtol=1e-9, atol=1e-13)
    assert all(torch.equal(*pair) for pair in zip(found["zeros"], expected["zeros"], strict=True))
    assert (found["zeros"][-1].sum() > 0) == (method != "dense")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_any_method_ends_well_in_two_processes(method, both):
    (mine, summary), (theirs, told) = (found[f"ran {method}"] for found in both)
    assert_same(mine, theirs)
    assert summary == told
    assert (summary["finished"], summary["processes"], summary["steps"]) == (True, 2, 12)
    if method in ("dense", "str"):  # in so few steps the thresholds of STR do not get anywhere
        assert summary["zeros"] == 0
    else:
        assert summary["zeros"] == pytest.approx(0.8 * summary["prunable"], rel=1e-4)  # RigL rounds in each layer


@pytest.mark.slow
def test_batch_norm_statistics_are_the_mean_over_the_processes(both):
    assert_same(both[0]["normalised"], both[1]["normalised"])
    means, variances = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    for rank in (0, 1):
        for images, _ in Shard(5, Processes(rank, rank, 2)).epoch(0):
            means[rank] = 0.9 * means[rank] + 0.1 * images.mean((0, 2, 3))
            variances[rank] = 0.9 * variances[rank] + 0.1 * images.var((0, 2, 3))
    assert (means[0] - means[1]).abs().min() > 1e-4
    buffers, average = both[0]["normalised"]["model"], both[0]["normalised"]["average"]
    torch.testing.assert_close(buffers["running_mean"], means.mean(0))
    torch.testing.assert_close(buffers["running_var"], variances.mean(0))
    assert buffers["num_batches_tracked"] == 5
    # Averaging is linear, and the mean over processes is that of whole batches: the average is that of one process.
    alone = normalised(SINGLE)
    torch.testing.assert_close(average["0.running_mean"], alone["average"]["0.running_mean"])
    assert not torch.equal(average["0.running_mean"], buffers["running_mean"])


@pytest.mark.slow
@pytest.mark.parametrize("count", [101, 1])
def test_scores_are_exact_over_uneven_shares(count, both):
    (expected, total), found = scored(SINGLE)[count], [result["scored"][count] for result in both]
    assert total == count
    assert sorted(images for _, images in found) == [count // 2, count - count // 2]
    assert [scores for scores, _ in found] == [expected, expected]
    assert count == 1 or 0 < expected["top1"] < 100


@pytest.mark.slow
def test_what_one_process_refuses_reaches_all_and_names_it(both):
    for rank, found in enumerate(result["gathered"] for result in both):
        assert found["alone"] == "process 1: no data at 1"
        assert found["all"] == "no data at 0"
        assert found["none"] is None
        assert found["result"] == rank
        assert 0 < found["order"][0] < found["order"][1]


@pytest.mark.slow
def test_what_the_main_process_finds_or_refuses_reaches_all(both):
    for rank, found in enumerate(both):
        assert found["heard"]["result"] == {"rank": 0, "path": Path("x")}
        assert found["heard"]["refusal"] == "no such folder: make one"
        assert found["heard"]["did"] == ([0, 0] if rank == 0 else [])


# Who is who -----------------------------------------------------------------------------------------------------------


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in together(0, 0).keys() - {"OMP_NUM_THREADS"}:
        monkeypatch.delenv(name, raising=False)
    assert launched() == SINGLE
    assert SINGLE.is_main
    model = nn.Linear(2, 2)
    assert SINGLE.wrap(model) is model


def test_the_environment_names_the_process(monkeypatch):
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == Processes(rank=5, local_rank=1, world_size=8)
    assert not launched().is_main
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(UserError, match=r"RANK=5 LOCAL_RANK= WORLD_SIZE=8 cannot be understood: .*torchrun"):
        launched()
    monkeypatch.setenv("LOCAL_RANK", "one")
    with pytest.raises(UserError, match=r"LOCAL_RANK=one WORLD_SIZE=8 cannot be understood"):
        launched()
