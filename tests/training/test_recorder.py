"""What a recorder leaves in the run directory: rows, events, checkpoints; and how a later sitting goes on with them."""

import csv
import threading
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from training_cases import FP32, SUMMARY, make_plan

from st3 import Sparsifier
from st3.errors import DiskError
from st3.measure import LayerRow
from st3.training.loggers import TAGS, TensorBoard
from st3.training.recorder import RunRecorder
from st3.training.run_directory import METRICS, RunDirectory
from st3.training.state import TrainingState

LAYERS = [
    LayerRow("fc", "3×4", 12, True, 6, 0.5, 0.25, 12, 6, False),
    LayerRow("conv", "1×1", 1, False, 0, 0.0, 0.0, 9, 9, False),
]


def make_state(step=0) -> TrainingState:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, "st3", 0.5).attach(optimizer)
    state = TrainingState(model, optimizer, sparsifier, FP32.scaler())
    state.step = step
    return state


def started(path) -> RunDirectory:
    directory = RunDirectory(path)
    directory.claim()
    directory.start({"sparsity": 0.9}, ["sparsity=0.9"], {"st3": "0"})
    return directory


def recorder_of(directory, state) -> RunRecorder:
    plan = make_plan(epochs=2, steps_per_epoch=4)
    generation, _ = directory.checkpoint()
    return RunRecorder(
        directory,
        state,
        plan,
        [TensorBoard(directory, state.step)],
        settings={"sparsity": 0.9},
        metrics=generation.metrics if generation else "",
        layer_rows=lambda: LAYERS,
        summary=lambda: SUMMARY(steps=state.step),
        failures=lambda dead: [],
    )


def row(step, loss=None) -> dict:
    sparse = {"sparsity_scheduled": 0.5, "sparsity": 0.5, "threshold": 0.25, "macs": 6, "dead_layers": 0}
    return {"train_loss": step / 8 if loss is None else loss, "lr": 0.1, **sparse, "images_per_second": 1000.0}


def save(recorder, state) -> None:
    recorder.checkpoint(state, state.state_dict())


def play(recorder, state, steps, evaluate_at=(), val=False, loss=None) -> None:
    """What the loop tells a recorder: a row at each of `steps`, an evaluation and checkpoint at some."""
    for step in steps:
        state.step, state.epoch = step, (step - 1) // 4
        recorder.progress()
        recorder.row(state, row(step, loss))
        if step in evaluate_at:
            state.epoch += 1
            state.scores = {"epoch": state.epoch, "test_top1": 10.0 + step, "test_top5": 50.0}
            state.scores |= {"val_top1": 20.0 + step, "val_top5": 60.0} if val else {}
            recorder.evaluation(state, is_best=step == 4)
            save(recorder, state)


def saved(directory) -> dict:
    generation, damaged = directory.checkpoint()
    assert not damaged
    assert generation.state["settings"] == {"sparsity": 0.9}
    return generation.state


def read_metrics(path) -> list[dict]:
    with open(path / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_events(path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(path))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("val", [False, True])
def test_rows_columns_and_tags(tmp_path, val):
    directory, state = started(tmp_path), make_state()
    recorder = recorder_of(directory, state)
    play(recorder, state, [2, 4, 6, 8], evaluate_at=[4, 8], val=val)
    recorder.close()

    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header.split(",") == list(METRICS)
    rows = read_metrics(tmp_path)
    assert [(r["epoch"], r["step"]) for r in rows] == [("1", "2"), ("1", "4"), ("2", "6"), ("2", "8")]
    assert [r["test_top1"] for r in rows] == ["", "14.0", "", "18.0"]
    assert [r["val_top1"] for r in rows] == (["", "24.0", "", "28.0"] if val else [""] * 4)

    events = read_events(tmp_path)
    absent = set() if val else {"val/top1", "val/top5"}
    assert TAGS.keys() == set(METRICS) - {"epoch", "step"}
    assert events.keys() == set(TAGS.values()) - absent
    assert events["train/loss"] == [(2, 0.25), (4, 0.5), (6, 0.75), (8, 1.0)]
    assert events["test/top1"] == [(4, 14.0), (8, 18.0)]


def test_an_evaluation_and_a_checkpoint_leave_their_files(tmp_path, capsys):
    directory, state = started(tmp_path), make_state()
    recorder = recorder_of(directory, state)
    play(recorder, state, [2, 4], evaluate_at=[4], val=True)
    recorder.close()

    with open(tmp_path / "layers.csv", newline="", encoding="utf-8") as file:
        layers = list(csv.DictReader(file))
    assert [(r["name"], r["shape"], r["pruned"], r["zeros"]) for r in layers] == [
        ("fc", "3×4", "True", "6"),
        ("conv", "1×1", "False", "0"),
    ]
    assert directory.summary() == SUMMARY(steps=4)
    line = capsys.readouterr().out
    assert "epoch 1/2" in line
    assert "val top-1 24.00 %" in line
    assert "test top-1 14.00 %" in line


def test_the_summary_stays_that_of_the_last_evaluation(tmp_path):
    directory, state = started(tmp_path), make_state()
    recorder = recorder_of(directory, state)
    play(recorder, state, [2, 4], evaluate_at=[4])
    state.step, state.epoch = 8, 2
    recorder.row(state, row(8))
    save(recorder, state)  # of an epoch that was not evaluated
    recorder.close()
    assert saved(directory)["epoch"] == 2
    assert directory.summary() == SUMMARY(steps=4)


def test_a_checkpoint_is_resumed_whole(tmp_path):
    directory, state = started(tmp_path), make_state()
    recorder = recorder_of(directory, state)
    state.model(torch.ones(1, 4)).sum().backward()
    state.optimizer.step()
    play(recorder, state, [2, 4], evaluate_at=[4])
    recorder.close()
    other = make_state()
    other.load_state_dict(saved(RunDirectory(tmp_path)))
    assert (other.epoch, other.step, other.scores) == (1, 4, state.scores)
    assert torch.equal(other.model.weight, state.model.weight)
    assert torch.equal(other.sparsifier.raw_weights()[""], state.sparsifier.raw_weights()[""])


def test_a_checkpoint_without_a_gradient_scaler_is_resumed_with_one(tmp_path):
    directory, state = started(tmp_path), make_state()  # as on a CPU, where precision=auto is fp32
    recorder = recorder_of(directory, state)
    play(recorder, state, [4], evaluate_at=[4])
    recorder.close()
    other = make_state()
    other.scaler = torch.amp.GradScaler("cpu", enabled=True)  # as on a GPU without bf16, where it is fp16
    other.load_state_dict(saved(directory))
    assert other.step == 4


def test_the_best_network_is_kept_with_its_scores(tmp_path):
    directory, state = started(tmp_path), make_state()
    recorder = recorder_of(directory, state)
    state.best = {"chosen_on": "test", "epoch": 1, "test_top1": 14.0, "test_top5": 50.0}
    weight = state.model.weight.detach().clone()
    play(recorder, state, [4], evaluate_at=[4])
    with torch.no_grad():
        state.model.weight.add_(1)
    play(recorder, state, [8], evaluate_at=[8])  # not the best
    recorder.close()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert torch.equal(best["model"]["weight"], weight)
    assert best["test_top1"] == 14.0


def test_a_continued_run_drops_the_rows_after_its_checkpoint(tmp_path):
    directory, state = started(tmp_path), make_state()
    recorder = recorder_of(directory, state)
    play(recorder, state, [2, 4, 6], evaluate_at=[4], loss=1.0)  # interrupted in the second epoch
    recorder.close()
    assert [r["step"] for r in read_metrics(tmp_path)] == ["2", "4"]  # the last one may still take scores in

    time.sleep(1.1)  # files of events are ordered by the second in their names
    state = make_state(step=4)
    recorder = recorder_of(directory, state)
    play(recorder, state, [5, 6, 8], evaluate_at=[8], loss=2.0)
    recorder.close()
    rows = read_metrics(tmp_path)
    assert [(r["step"], r["train_loss"]) for r in rows] == [
        ("2", "1.0"), ("4", "1.0"), ("5", "2.0"), ("6", "2.0"), ("8", "2.0"),
    ]  # fmt: skip
    assert [r["test_top1"] for r in rows] == ["", "14.0", "", "", "18.0"]
    assert read_events(tmp_path)["train/loss"] == [(2, 1.0), (4, 1.0), (5, 2.0), (6, 2.0), (8, 2.0)]


def test_a_run_interrupted_before_its_first_checkpoint_starts_its_curves_anew(tmp_path):
    directory, state = started(tmp_path), make_state()
    recorder = recorder_of(directory, state)
    play(recorder, state, [1, 2, 3], loss=1.0)
    recorder.close()
    time.sleep(1.1)  # files of events are ordered by the second in their names
    state = make_state()
    recorder = recorder_of(directory, state)
    play(recorder, state, [2, 4], evaluate_at=[4], loss=2.0)
    recorder.close()
    assert [(r["step"], r["train_loss"]) for r in read_metrics(tmp_path)] == [("2", "2.0"), ("4", "2.0")]
    assert read_events(tmp_path)["train/loss"] == [(2, 2.0), (4, 2.0)]


def test_a_row_that_waits_for_scores_is_kept_in_the_checkpoint(tmp_path):
    directory, state = started(tmp_path), make_state()
    recorder = recorder_of(directory, state)
    play(recorder, state, [2, 4])
    save(recorder, state)  # asked to end before the evaluation
    recorder.close()
    assert [r["step"] for r in read_metrics(tmp_path)] == ["2"]
    other = make_state()
    other.load_state_dict(saved(directory))
    recorder = recorder_of(directory, other)
    other.epoch, other.scores = 1, {"epoch": 1, "test_top1": 14.0, "test_top5": 50.0}
    recorder.evaluation(other, is_best=False)
    recorder.close()
    rows = read_metrics(tmp_path)
    assert [(r["step"], r["train_loss"], r["test_top1"]) for r in rows] == [("2", "0.25", ""), ("4", "0.5", "14.0")]


def test_a_checkpoint_is_of_the_moment_although_training_goes_on(tmp_path, monkeypatch):
    directory, state = started(tmp_path), make_state()
    recorder, may_write = recorder_of(directory, state), threading.Event()
    write = RunDirectory.write_checkpoint
    monkeypatch.setattr(RunDirectory, "write_checkpoint", lambda *a: may_write.wait(10) and write(*a))
    before = state.model.weight.detach().clone()
    save(recorder, state)
    with torch.no_grad():
        state.model.weight.add_(1)
    assert not directory.has_checkpoint()
    may_write.set()
    recorder.close()
    assert torch.equal(saved(directory)["model"]["weight"], before)


def test_what_a_checkpoint_meets_in_writing_is_raised_in_the_next_step_or_at_the_end(tmp_path, monkeypatch):
    def full(directory, *content):
        raise DiskError("No space left on device")

    monkeypatch.setattr(RunDirectory, "write_checkpoint", full)
    state = make_state()
    for end in (lambda recorder: save(recorder, state), RunRecorder.close, RunRecorder.progress):
        recorder = recorder_of(started(tmp_path), state)
        save(recorder, state)
        if end == RunRecorder.progress:
            time.sleep(0.5)  # it is not waited for
        with pytest.raises(DiskError, match="No space left"):
            end(recorder)
