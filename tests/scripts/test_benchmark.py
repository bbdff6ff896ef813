"""The benchmark's command at tiny sizes. Never a timing."""

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import benchmark
import pytest
import torch
from benchmarks.step import StepContender

from st3.sparsify.methods.st3 import ST3Pruner

RESNET20 = 270_896


def command(capsys, *arguments: str) -> tuple[str, str]:
    """What the command prints in this process, and what it ends with."""
    end = ""
    try:
        tiny = "--quick", "--device", "cpu", "--threads", "1"
        benchmark.main([arguments[0], "--precision", "fp32", *arguments[1:], *tiny])
    except SystemExit as error:
        end = str(error)
    return capsys.readouterr().out, end


def test_a_table_is_printed_and_written(tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    printed, end = command(capsys, "step", "--methods", "st3,rigl", "--out", str(folder))
    written, text = json.loads((folder / "benchmark.json").read_text()), (folder / "benchmark.md").read_text()
    assert not end
    assert printed.split() == text.split()
    assert sorted(path.name for path in folder.iterdir()) == ["benchmark.json", "benchmark.md"]

    facts = written["environment"]
    assert {"device", "torch", "triton", "python", "cuda", "cpu_threads", "date", "git", "command"} <= facts.keys()
    assert facts["cpu_threads"] == 1
    assert facts["command"].startswith("python scripts/benchmark.py step --precision fp32 --methods st3,rigl")

    (section,) = written["sections"]
    settings = {"batch": 8, "rounds": 2, "precision": "fp32", "sparsity": 0.9, "time_limit": None}
    assert settings.items() <= section["settings"].items()
    eager = {result["method"]: result for result in section["results"] if result["mode"] == "eager"}
    assert list(eager) == ["dense", "st3", "rigl"]
    assert [result["zeros"] for result in eager.values()] == [0, *[pytest.approx(0.9 * RESNET20, abs=1)] * 2]
    for result in eager.values():
        seconds = result["seconds"]
        assert len(seconds["rounds"]) == seconds["n"] == result["to_dense"]["n"] == 2
        assert 0 < seconds["min"] <= seconds["q1"] <= seconds["median"] <= seconds["q3"] <= seconds["max"]
    assert [name for name, result in eager.items() if "update_seconds" in result] == ["rigl"]
    times = {key: eager["rigl"][f"{key}seconds"]["rounds"] for key in ("", "ordinary_", "update_")}
    for whole, ordinary, update in zip(*times.values(), strict=True):
        assert whole == pytest.approx(0.99 * ordinary + 0.01 * update)
    assert ", 1 step in 100 |" in text
    assert "captured: not available for dense, st3, rigl: capture=on is not possible" in text
    assert "CUDA graphs need a CUDA device" in text


@pytest.mark.slow
def test_a_fallback_to_slower_code_is_the_reason_of_one_contender(capsys, monkeypatch):
    project = ST3Pruner.project

    def falls_back(self, *arguments):
        if self.method.layer_sigma:
            warnings.warn("st3's fused projection cannot be used on this device (it is old)", stacklevel=2)
        return project(self, *arguments)

    monkeypatch.setattr(ST3Pruner, "project", falls_back)
    sign = "not available for st3_sigma: st3's fused projection cannot be used on this device (it is old)"
    for table, group, others in (
        (("step", "--methods", "st3,st3_sigma", "--modes", "eager"), "eager", ["dense", "st3"]),
        (("projection", "--sizes", "1e4"), "projection of 8,820 weights", ["st3", "naive", "copy"]),
    ):
        printed, end = command(capsys, *table)
        assert not end
        assert f"\n- {group}: {sign}\n" in printed
        rows = [line for line in printed.splitlines() if line.startswith("| ") and "threshold" not in line]
        names = [row.split(" | ")[2 if table[0] == "projection" else 1] for row in rows[2:]]
        assert names == others


def test_wrong_results_are_named_and_end_in_an_error(capsys, monkeypatch):
    right = StepContender.check

    def wrong(self):
        if self.name == "st3":
            weight = max((w.data for w in self.state.model.parameters()), key=torch.numel)
            weight[weight == 0] = 1e-9
            self.final_step = lambda batch: torch.zeros(())
        return right(self)

    monkeypatch.setattr(StepContender, "check", wrong)
    printed, end = command(capsys, "step", "--methods", "st3", "--modes", "eager")
    assert "- eager: not available for st3: st3 has" in printed
    assert "| eager | dense |" in printed
    assert "| eager | st3 |" not in printed
    assert end == "benchmark: error: something wrong has been computed, as said below its table"


@pytest.mark.slow
def test_a_time_limit_ends_after_the_round_under_way(tmp_path, capsys):
    limited = "--time-limit", "0", "--rounds", "99", "--out", str(tmp_path)
    printed, _ = command(capsys, "step", "--methods", "st3", "--modes", "eager", *limited)
    assert "- n = 1 of 99 rounds of 1 steps" in printed
    assert "| eager | st3 |" in printed
    printed, _ = command(capsys, "projection", "--sizes", "1e4,2e4", *limited)
    assert "- n = 1 of 99 rounds; " in printed
    assert "- Not timed, or not yet: 2e4.\n" in printed
    (section,) = json.loads((tmp_path / "benchmark.json").read_text())["sections"]
    assert {result["weights"] for result in section["results"]} == {8_820}


def test_a_table_is_written_as_it_grows(tmp_path, capsys, monkeypatch):
    written = []
    monkeypatch.setattr(
        benchmark, "write", lambda folder, facts, sections: written.append(len(sections[-1].contenders))
    )
    command(capsys, "projection", "--sizes", "1e4,2e4", "--rounds", "1", "--out", str(tmp_path))
    assert written == [10, 20]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["step", "--precision", "fp16"],
            "precision=fp16 needs a CUDA device: use precision=bf16",
        ),
        (["step", "--model", "resnet"], "model.name=resnet does not exist"),
        (["step", "--modes", "capture"], "--modes=capture does not exist: did you mean captured"),
        (["epoch", "--methods", "naive"], "--methods=naive does not exist: choose among st3, "),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    _, end = command(capsys, *arguments)
    assert end.startswith(f"benchmark: error: {message}")
    assert "\n" not in end


def test_the_tables_of_all():
    def made(*arguments: str, device: str = "cuda") -> list[tuple[str, dict]]:
        args = benchmark.parse(["all", *arguments])
        return [(name, vars(settings)) for name, settings in benchmark.tables_of(args, torch.device(device))]

    tables = made("--time-limit", "60", "--rounds", "4")
    assert [name for name, _ in tables] == ["step", "step", "projection", "epoch"]
    assert [settings.get("model") for _, settings in tables] == ["resnet50", "resnet20", "resnet20", "resnet20"]
    assert {(settings["time_limit"], settings["rounds"], settings["warm_up"]) for _, settings in tables} == {
        (60.0, 4, False)
    }
    assert [settings["rounds"] for _, settings in made(device="cpu")] == [30, 7, 3]
    assert [settings["rounds"] for _, settings in made("--quick", "--warm-up")] == [2, 2, 2]
    assert all(settings["until"] == math.inf for _, settings in tables)


@pytest.mark.slow
def test_everything_runs_as_a_command(tmp_path):
    script = Path(benchmark.__file__)
    words = [sys.executable, str(script), "all", "--quick", "--device", "cpu", "--threads", "1", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "benchmark.md").read_text()
    assert done.stdout.split() == text.split()
    step, projection, epoch = json.loads((tmp_path / "benchmark.json").read_text())["sections"]
    contenders = [result["contender"] for result in step["results"]]
    assert contenders[:5] == [f"{name}, eager" for name in ("dense", "st3", "st3_sigma", "rigl", "naive")]
    assert len({result["weights"] for result in projection["results"]}) == 2
    assert [result["contender"] for result in epoch["results"]] == ["dense", "st3"]
    assert epoch["settings"]["train_images"] == 48
    for result in [*step["results"][:5], *projection["results"], *epoch["results"]]:
        assert result["seconds"]["n"] == 2
        assert result["contender"].partition(",")[0] in text
