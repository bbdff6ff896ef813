"""Two processes against one: the same training, the same scores, one voice, and an end when one of them dies."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import Recorder, assert_same, data_of, make_plan, plain
from torch import nn

from st3 import Sparsifier
from st3.data import build_data
from st3.errors import UserError
from st3.sparsify import PolynomialRamp
from st3.training.distributed import SINGLE, Processes, join, launched, leave
from st3.training.ema import RawAverage
from st3.training.loop import evaluate, fit, train_epoch
from st3.training.lr_schedules import CosineLR
from st3.training.optimizers import build_optimizer
from st3.training.precision import Precision, pick_device
from st3.training.state import TrainingState
from st3.training.step import EagerStep

FP32 = Precision("fp32", torch.device("cpu"))
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

    def epoch(self, epoch):
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


def trained(processes: Processes, accumulate: int) -> dict:
    """What 20 steps with everything on leave behind."""
    ramp = PolynomialRamp(final=0.8, start=4, end=14)
    plan = make_plan(
        epochs=1, steps_per_epoch=STEPS, batch_size=BATCH, accumulate=accumulate, log_every=1, clip_norm=0.5,
        sparsity=ramp, target_sparsity=0.8, lr_schedule=CosineLR(total=STEPS, warmup=3), label_smoothing=0.1,
    )  # fmt: skip
    model = convolutions()
    optimizer = build_optimizer(model, "sgd", lr=0.2, weight_decay=1e-2, momentum=0.9, nesterov=True)
    sparsifier = Sparsifier(model, "st3", ramp).attach(optimizer)
    state = TrainingState(model, optimizer, sparsifier, FP32.scaler())
    step = EagerStep(state, plan, FP32, processes.wrap(model), processes)
    traces = Traces()
    train_epoch(state, Shard(STEPS, processes, accumulate).epoch(0), plan, FP32, step, traces, dict, processes)
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
    optimizer = build_optimizer(model, "sgd", lr=0.1, weight_decay=0.0)
    sparsifier = Sparsifier(model, "st3", plan.sparsity).attach(optimizer)
    state = TrainingState(model, optimizer, sparsifier, FP32.scaler(), RawAverage(model, sparsifier, 0.9))
    step = EagerStep(state, plan, FP32, processes.wrap(model), processes)
    data = data_of(Shard(5, processes), None, Shard(1, processes))
    fit(state, data, plan, FP32, step, Recorder(), dict, processes)
    average = {name: value for name, value in state.average.values.items() if name.startswith("0.running")}
    return {"model": dict(model[0].named_buffers()), "average": average}


def fake_test_images(count: int, processes: Processes):
    return build_data(
        "fake", root=None, classes=6, channels=3, image_size=6, mean=[0.5] * 3, std=[0.25] * 3, augment="none",
        val_images=0, train_images=8, test_images=count, workers=0, download=False, batch_size=8, seed=0,
        device="cpu", eval_batch_size=8, rank=processes.rank, world_size=processes.world_size,
    ).test  # fmt: skip


def scored(processes: Processes) -> dict:
    """Scores and this process's number of images, by the number of images in all."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 6))
    loaders = {count: fake_test_images(count, processes) for count in (101, 1)}
    return {
        count: (evaluate(model, test.epoch(0), FP32, processes), test.num_images) for count, test in loaders.items()
    }


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


def work(rank: int, port: int, folder: str) -> None:
    """All of the above, as process `rank` of two."""
    os.environ |= together(port, rank)
    torch.set_num_threads(1)
    processes = launched()
    join(processes)
    join(processes)  # the second job of a sweep
    found = {f"trained {passes}": trained(processes, passes) for passes in (1, 2)}
    found |= {"normalised": normalised(processes), "scored": scored(processes), "heard": heard(processes)}
    found["gathered"] = gathered(processes)
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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_both_processes_hold_the_same_bits(accumulate, both):
    mine, theirs = (found[f"trained {accumulate}"] for found in both)
    assert mine["state"]["sparsifier"]["raw"]
    assert_same(mine, theirs)


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


@pytest.mark.parametrize("count", [101, 1])
def test_scores_are_exact_over_uneven_shares(count, both):
    (expected, total), found = scored(SINGLE)[count], [result["scored"][count] for result in both]
    assert total == count
    assert sorted(images for _, images in found) == [count // 2, count - count // 2]
    assert [scores for scores, _ in found] == [expected, expected]
    assert count == 1 or 0 < expected["top1"] < 100


def test_what_one_process_refuses_reaches_all_and_names_it(both):
    for rank, found in enumerate(result["gathered"] for result in both):
        assert found["alone"] == "process 1: no data at 1"
        assert found["all"] == "no data at 0"
        assert found["none"] is None
        assert found["result"] == rank
        assert 0 < found["order"][0] < found["order"][1]


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


FIRST, SECOND, THIRD = (Processes(rank, rank, 3) for rank in range(3))


@pytest.mark.parametrize(
    ("name", "processes", "expected"),
    [
        ("auto", SINGLE, "cuda"),
        ("cuda", SINGLE, "cuda"),
        ("cuda:1", SINGLE, "cuda:1"),
        ("auto", FIRST, "cuda:0"),
        ("cuda", SECOND, "cuda:1"),
        ("cuda", Processes(rank=5, local_rank=1, world_size=6), "cuda:1"),  # on the third machine
        ("cpu", SECOND, "cpu"),
        ("cpu", THIRD, "cpu"),
    ],
)
def test_each_process_has_a_device_of_its_own(name, processes, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device(name, processes) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "processes", "says"),
    [
        ("cuda:1", FIRST, "device=cuda:1 is one device for 3 processes: use device=cuda"),
        ("auto", THIRD, "this machine has 2 CUDA devices: torchrun --nproc-per-node="),
        ("cuda:2", SINGLE, "device=cuda:2, but there are only 2 CUDA devices"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused(name, processes, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=re.escape(says)):
        pick_device(name, processes)


# The real command -----------------------------------------------------------------------------------------------------

TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=320", "dataset.test_images=41", "dataset.classes=7",
    "batch_size=32", "epochs=10", "log_every=5", "precision=fp32", "device=cpu", "ema=0.9",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "st3.train"]


def environment(**changes: str) -> dict[str, str]:
    """Processes are told nothing but by torchrun or `together`."""
    return {name: value for name, value in os.environ.items() if name not in together(0, 0)} | changes


def wait_for(event, *processes: subprocess.Popen) -> None:
    """Until `event()` is true, while `processes` run."""
    deadline = time.monotonic() + 120
    while not event():
        assert all(process.poll() is None for process in processes), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def torchrun(arguments: list[str], folder: Path, **changes: str) -> subprocess.CompletedProcess:
    """Two processes of the real command."""
    command = [*TORCHRUN, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment(**changes), **pipes) as agent:
        try:
            out, error = agent.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            agent.terminate()  # it ends the processes that it started; killed, it would leave them
            raise
    return subprocess.CompletedProcess(command, agent.returncode, out, error)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A folder and what was said: six jobs under torchrun, of which only [4] can finish."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "taken").mkdir()
    (folder / "taken" / "letter.txt").write_text("dear")
    jobs = ["-m", "run_dir=taken,taken/letter.txt/below,null", "optimizer.lr=0.1,1e30"]
    return folder, torchrun([*jobs, *TINY], folder)


def test_what_all_processes_find_is_said_once(sweep):
    _, answer = sweep
    assert answer.returncode != 0
    errors = lines_of(answer.stderr, "st3-train: error: ")
    assert sum("run_dir=taken holds other files but no run" in line for line in errors) == 2  # jobs 0 and 1
    assert sum("run_dir=taken/letter.txt/below cannot be created" in line for line in errors) == 2  # jobs 2 and 3
    assert sum("the loss is " in line for line in errors) == 1  # job 5
    assert len(errors) == 5
    for job in range(6):
        assert len(lines_of(answer.stdout, f"[{job}] ")) == 1
    assert len(lines_of(answer.stdout, "precision  fp32 on cpu, 2 processes")) == 6
    assert len(lines_of(answer.stdout, "epoch 10/10: ")) == 1
    assert len(lines_of(answer.stdout, "top-1 ")) == 1


def test_the_main_process_makes_the_only_run_directory(sweep):
    folder, _ = sweep
    assert {path.name for path in folder.iterdir()} == {"taken", "outputs"}
    assert [path.name for path in (folder / "taken").iterdir()] == ["letter.txt"]
    runs = sorted(path.parent.name for path in folder.rglob("config.yaml"))
    assert [name[:2] for name in runs] == ["4-", "5-"]  # one for each job that got so far
    summaries = list(folder.rglob("summary.json"))
    assert len(summaries) == 1
    summary = json.loads(summaries[0].read_text())
    assert (summary["finished"], summary["processes"], summary["steps"]) == (True, 2, 100)
    assert abs(summary["zeros"] - 0.9 * summary["prunable"]) <= 1
    assert len(list(summaries[0].parent.glob("events.out.tfevents*"))) == 1
    assert summary["top1"] * 41 / 100 == pytest.approx(round(summary["top1"] * 41 / 100))  # all 41 images count
    with open(summaries[0].parent / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(5, 101, 5)]


def test_a_mistake_is_told_although_the_main_process_finds_it_last(tmp_path):
    # torchrun ends the others as soon as the first process has failed.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('RANK') == '0':\n    time.sleep(3)\n"
    )
    here = tmp_path / "here"
    here.mkdir()
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    answer = torchrun([*TINY, "sparsity=1.5"], here, PYTHONPATH=paths)
    assert answer.returncode != 0
    errors = lines_of(answer.stderr, "st3-train: error: ")
    assert len(errors) == 1
    assert "sparsity=1.5 lies outside" in errors[0]
    assert list(here.iterdir()) == []


def child_of_rank(agent: int, rank: int) -> int:
    """Process id, by what torchrun told its children."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    [found] = [pid for pid in children if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    return int(found)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")
def test_processes_end_with_the_first_that_dies_and_continue_to_the_same_bits(sweep, tmp_path):
    arguments, last = [*TINY, "run_dir=killed"], tmp_path / "killed" / "last.pt"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    started = []
    try:
        # Under torchrun the main process dies.
        agent = subprocess.Popen([*TORCHRUN, *arguments], env=environment(), **quiet)
        started.append(agent)
        wait_for(last.exists, agent)
        pids = [child_of_rank(agent.pid, rank) for rank in (0, 1)]
        os.kill(pids[0], signal.SIGKILL)
        assert agent.wait(timeout=60) != 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

        # Without torchrun nobody ends the process that is left but itself.
        before = last.stat().st_mtime_ns
        port = free_port()
        main, other = started[1:] = [
            subprocess.Popen(
                [sys.executable, "-m", "st3.train", *arguments], env=environment(**together(port, rank)), **quiet
            )
            for rank in (0, 1)
        ]
        wait_for(lambda: last.stat().st_mtime_ns != before, main, other)
        other.send_signal(signal.SIGKILL)
        assert main.wait(timeout=60) not in (0, None)
    finally:
        for process in started:
            process.kill()
    epochs = torch.load(last, weights_only=True)["epoch"]
    assert 1 < epochs < 10

    done = torchrun(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines_of(done.stdout, "continuing ") == [f"continuing killed after epoch {epochs}"]
    [finished] = sweep[0].rglob("summary.json")
    for read, name in ((load_file, "model.safetensors"), (torch.load, "last.pt")):
        assert_same(plain(read(finished.parent / name)), plain(read(last.parent / name)), name)
