"""The trace of a few steps, and the memory at its peak."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_cases import TINY, dot, refused, st3_train

import st3.run
from st3.errors import UserError
from st3.training.profiling import StepProfiler, peak_memory, reset_peak_memory

CPU = torch.device("cpu")


def steps_in(trace: Path) -> dict[int, list[str]]:
    """Names of the operations by the number of the step in which they ran."""
    with gzip.open(trace, "rt") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    # The profiler begins to count at 0, before the first step.
    spans = {
        int(event["name"].partition("#")[2]): (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event["name"].startswith("ProfilerStep#")
    }
    return {
        step: [event["name"] for event in events if begin <= event["ts"] < end] for step, (begin, end) in spans.items()
    }


def work(profiler: StepProfiler, steps: int) -> None:
    for _ in range(steps):
        torch.ones(3).cumsum(0)
        profiler.step()


@pytest.mark.parametrize(
    ("remaining", "traced"),
    [(1000, range(21, 26)), (26, range(14, 19)), (10, range(6, 10)), (4, range(3, 4)), (3, range(2, 3))],
)
def test_a_few_whole_steps_are_traced_after_the_first(remaining, traced, tmp_path):
    trace = tmp_path / "trace.json.gz"
    profiler = StepProfiler(CPU, remaining)
    profiler.start(trace)
    work(profiler, min(remaining, 40))
    profiler.close()
    found = steps_in(trace)
    assert sorted(found) == list(traced)
    assert all(names.count("aten::cumsum") == 1 for names in found.values())


@pytest.mark.parametrize("done", [0, 5, 6, 9, 11])
def test_closing_early_leaves_nothing_or_a_whole_trace(done, tmp_path):
    trace = tmp_path / "trace.json.gz"
    profiler = StepProfiler(CPU, 10)
    profiler.start(trace)
    work(profiler, done)
    profiler.close()
    if done < 6:  # five are skipped, one warms up
        assert list(tmp_path.iterdir()) == []
    else:
        assert sorted(steps_in(trace)) == list(range(6, min(done + 1, 10)))


@pytest.mark.parametrize("remaining", [0, 1, 2])
def test_too_few_steps_are_refused(remaining, tmp_path):
    with pytest.raises(UserError, match=f"profile=true needs 3 steps or more, and {remaining} are left"):
        StepProfiler(CPU, remaining)


WORDS = [*TINY, "batch_size=16", "profile=true", "run_dir=run"]


@pytest.mark.slow
def test_a_real_run_traces_whole_optimizer_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(st3.run, "draw_run", dot)
    assert st3_train(*WORDS, "epochs=2", "accumulate=2").code == 0
    found = steps_in(Path("run", "trace.json.gz"))
    assert len(found) == 5
    for names in found.values():
        assert sum(name.startswith("Optimizer.step") for name in names) == 1
        assert names.count("aten::cross_entropy_loss") == 2
    assert json.loads(Path("run", "summary.json").read_text())["steps"] == 12


def test_a_real_run_too_short_to_trace_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(*WORDS, "epochs=1", "batch_size=48")
    assert message == "profile=true needs 3 steps or more, and 2 are left: set profile=false"


@pytest.mark.slow
def test_the_peak_on_a_cpu_grows_by_what_is_allocated_in_bytes():
    # A process of its own, because the peak of this one may lie behind; a child's begins at the size of its parent,
    # which is therefore a shell.
    script = """
import torch
from st3.training.profiling import peak_memory, reset_peak_memory
cpu = torch.device("cpu")
reset_peak_memory(cpu)
before = peak_memory(cpu)
tensor = torch.ones(40_000_000)
during = peak_memory(cpu)
del tensor
print(before, during, peak_memory(cpu))
"""
    command = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, script]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    before, during, after = map(int, answer.stdout.split())
    assert during - before == pytest.approx(160e6, rel=0.2)
    assert after >= 0.99 * during  # a peak does not go down again; Linux counts in batches of pages


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_on_a_gpu_is_what_tensors_took_since_the_reset():
    device = torch.device("cuda")
    torch.ones(100_000_000, device=device)  # gone at once
    reset_peak_memory(device)
    before = peak_memory(device)
    tensor = torch.ones(40_000_000, device=device)
    assert peak_memory(device) - before == pytest.approx(160e6, rel=0.01)
    del tensor
    assert peak_memory(device) - before == pytest.approx(160e6, rel=0.01)
