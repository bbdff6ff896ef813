"""Any runs as rows: what is found, what belongs together, what rows are called, and what is left out."""

import json

import pytest
from config_cases import load
from fake_runs import fake_run, fake_summary
from fake_runs import found_run as make

from st3.errors import UserError
from st3.report.formats import headings, to_text
from st3.report.found import read_runs, run_paths
from st3.report.notes import footnotes, remarks, warnings
from st3.report.run_charts import run_charts


def rows(results):
    """(label, sparsity, seeds) of each."""
    return [(r.row.label, r.row.sparsity, [run.seed for run in r.runs]) for r in results.rows]


def test_runs_that_differ_by_seed_and_by_where_they_ran_are_one_row(tmp_path):
    make(tmp_path / "a", "seed=3", "device=cpu", top1=70)
    make(tmp_path / "deep" / "er" / "b", "seed=1", "compile=off", "run_dir=elsewhere", "dataset.workers=4", top1=74)
    results = read_runs([tmp_path])
    assert rows(results) == [("st3", 0.9, [1, 3])]
    [row] = results.rows
    assert (row.top1.mean, row.top1.n) == (72, 2)
    assert row.top1.half_width == pytest.approx(12.7062 * 2, rel=1e-5)  # t · 2√2/√2
    assert headings(results)[:2] == ["method", "sparsity (%)"]


def test_settings_that_differ_name_the_rows_and_have_columns(tmp_path):
    for number, lr in enumerate(("0.1", "0.2")):
        for sparsity in ("0.8", "0.9"):
            make(tmp_path / f"{number}-{sparsity}", f"optimizer.lr={lr}", f"sparsity={sparsity}", "label_smoothing=0.1")
    results = read_runs([tmp_path])
    assert rows(results) == [
        (f"st3 optimizer.lr={lr}", sparsity, [0]) for lr in ("0.1", "0.2") for sparsity in (0.8, 0.9)
    ]
    assert headings(results)[:3] == ["method", "optimizer.lr", "sparsity (%)"]
    assert [series.label for series in results.table.series] == ["st3 optimizer.lr=0.1", "st3 optimizer.lr=0.2"]


def test_what_a_method_brings_along_does_not_name_it(tmp_path):
    for method in ("st3", "gmp", "rigl"):  # with settings, schedules and intervals of their own
        make(tmp_path / method, f"method={method}")
    make(tmp_path / "other", "method=gmp", "method.every=5%")
    assert [label for label, *_ in rows(read_runs([tmp_path]))] == [
        "gmp", "gmp every=5%", "rigl", "st3"
    ]  # fmt: skip
    [gmp, *_] = read_runs([tmp_path]).rows
    assert {"schedule.name=ramp", "method.every=1%"} <= set(gmp.row.overrides)  # all that differs is with each run


def test_names_leave_out_what_most_rows_have_and_that_is_said(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", "method.rescale=false")
    make(tmp_path / "c", "optimizer.lr=0.2")
    results = read_runs([tmp_path])
    assert [label for label, *_ in rows(results)] == ["st3", "st3 optimizer.lr=0.2", "st3 rescale=false"]
    assert "The names of rows leave out what more than half of the rows have: optimizer.lr=0.1." in remarks(results)
    assert "The names of rows leave out the settings that a method was published with." in remarks(results)


def test_a_method_as_published_has_its_name_alone_however_few_rows_are_so(tmp_path):
    make(tmp_path / "a")
    for number, more in enumerate(([], ["method.exponent=3"], ["method.theta=0.5"])):
        make(tmp_path / f"b{number}", "method.rescale=false", *more)
    labels = [label for label, *_ in rows(read_runs([tmp_path]))]
    assert labels == ["st3", "st3 exponent=3 rescale=false", "st3 rescale=false", "st3 rescale=false theta=0.5"]


def test_the_dense_network_is_one_row_whatever_its_sparsity_was_to_be(tmp_path):
    make(tmp_path / "a", "method=dense", "sparsity=0.8")
    make(tmp_path / "b", "method=dense", "sparsity=0.9", "seed=1")
    make(tmp_path / "c")
    assert rows(read_runs([tmp_path])) == [("dense", 0, [0, 1]), ("st3", 0.9, [0])]


def test_only_rows_of_one_network_and_one_data_set_are_ranked(tmp_path):
    for model, top1 in (("resnet20", 70), ("vgg16_bn", 80)):
        for lr in ("0.1", "0.2"):
            for seed in (0, 1):
                words = f"model={model}", f"optimizer.lr={lr}", f"seed={seed}"
                make(tmp_path / "-".join(words), *words, top1=top1 + seed + 10 * float(lr))
    results = read_runs([tmp_path])
    assert sorted(contest.best.top1.mean for contest in results.contests) == [72.5, 82.5]
    leads = [line for line in footnotes(results) if "minus the next row" in line]
    assert all(" of vgg16_bn on " in line or " of resnet20 on " in line for line in leads)
    assert len(leads) == 2


def test_unfinished_and_damaged_runs_are_said_and_not_averaged(tmp_path):
    make(tmp_path / "good", top1=70)
    make(tmp_path / "part", "seed=1", top1=10, finished=False)
    for number, (file, text) in enumerate(
        [
            ("summary.json", "{"),
            ("config.yaml", "a: ["),
            ("layers.csv", "name\nconv"),
            ("metrics.csv", "step,test_top1\nx,1"),
        ]
    ):
        (make(tmp_path / f"bad{number}", f"seed={number + 2}") / file).write_text(text)
    (make(tmp_path / "gone", "seed=8") / "layers.csv").unlink()
    results = read_runs([tmp_path])
    assert rows(results) == [("st3", 0.9, [0])]
    unfinished, *damaged = warnings(results)
    assert unfinished == f"Not finished, and not counted: {tmp_path / 'part'}."
    assert [line.partition(f"{tmp_path}/")[2].partition(":")[0] for line in damaged] == [
        "bad0", "bad1", "bad2", "bad3", "gone"
    ]  # fmt: skip
    assert all(line.startswith("Damaged, and not counted: ") and "\n" not in line for line in damaged)


def test_settings_that_this_version_does_not_know_are_said(tmp_path):
    config = load().plain() | {"unheard_of": 1}
    fake_run(tmp_path / "a", fake_summary(), config=config)
    [line] = warnings(read_runs([tmp_path]))
    assert "its config.yaml is not one of this version (unheard_of is not a setting" in line


def test_a_seed_counts_once(tmp_path):
    make(tmp_path / "a", top1=70)
    make(tmp_path / "b", "device=cpu", top1=72)
    results = read_runs([tmp_path])
    assert [run.top1 for run in results.runs] == [70]
    assert warnings(results) == [f"Seed 0 a second time, and not counted: {tmp_path / 'b'}, as {tmp_path / 'a'}."]


def test_what_is_no_run_is_passed_over_and_a_run_is_found_once(tmp_path):
    make(tmp_path / "run")
    make(tmp_path / "run" / "inside")  # of a run, whatever it is
    make(tmp_path / ".hidden")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text("a: [")
    assert run_paths([tmp_path, tmp_path / "run"]) == [tmp_path / "run"]


@pytest.mark.parametrize(("name", "says"), [("empty", "holds no run of st3-train"), ("nowhere", "is no folder")])
def test_where_nothing_is_found_that_is_an_error(name, says, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name} {says}: name run directories"):
        read_runs([tmp_path / name])


# On the terminal ------------------------------------------------------------------------------------------------------


def test_the_terminal_shows_an_aligned_table_with_marks(tmp_path):
    for seed, top1 in enumerate((70.0, 71.0)):
        make(tmp_path / f"a{seed}", f"seed={seed}", top1=top1)
    make(tmp_path / "b", "method=st3_sigma", top1=10.0, constant_logits=True, dead_layers=["conv"], warnings=["dead"])
    text = to_text(read_runs([tmp_path]))
    head, first, second, *notes = text.splitlines()
    assert head.split("  ") != [head]
    ends = [head.index(name) + len(name) for name in ("sparsity (%)", "top-1 measured", "M MACs measured")]
    assert [first[:end].split()[-1] for end in ends] == ["90", "6.35", "5.50"]
    assert first.split()[:5] == ["st3", "90", "70.50", "±", "6.35"]
    assert second.startswith("st3_sigma ‡")
    assert "10.00 (no interval)" in second
    assert "‡ st3_sigma, 90 %: dead." in notes
    assert "Not ranked, with one seed: st3_sigma at 90 %." in notes


def test_many_settings_are_one_column(tmp_path):
    make(tmp_path / "a")
    for name in ("optimizer.lr=0.2", "clip_norm=1", "label_smoothing=0.1", "ema=0.9"):
        make(tmp_path / name, name)
    head, *lines = to_text(read_runs([tmp_path])).splitlines()
    assert "One seed each has no interval." in lines
    assert head.split()[:2] == ["method", "sparsity"]
    assert [line.split("  ")[0] for line in lines[:5]] == [
        "st3", "st3 clip_norm=1", "st3 ema=0.9", "st3 label_smoothing=0.1", "st3 optimizer.lr=0.2"
    ]  # fmt: skip


# Confusion ------------------------------------------------------------------------------------------------------------


def test_a_damaged_evaluation_is_said(tmp_path):
    folder = make(tmp_path / "a") / "evaluation"
    folder.mkdir()
    (folder / "test.json").write_text(json.dumps({"split": "test", "classes": ["a"], "confusion": [[1, 2]]}))
    [line] = warnings(read_runs([tmp_path]))
    assert line.startswith(f"Damaged, and not counted: {tmp_path / 'a'}: ")


# What runtimes took ---------------------------------------------------------------------------------------------------


def test_a_benchmark_is_drawn_on_the_page_of_its_run(tmp_path):
    def ms(median: float) -> dict:
        return {"median": median, "q1": median - 0.1, "q3": median + 0.2}

    timings = [
        {"runtime": name, "kind": kind, "cpu_ms": ms(median), "wall_ms": ms(median), "difference": None}
        for name, kind, median in (("ONNX Runtime", "dense", 4.0), ("MNN", "dense", 5.0), ("MNN", "sparse", 2.0))
    ]
    layer = {"layer": "conv", "weights": 10, "zeros": 9, "dense_ms": 2.0, "sparse_ms": 1.0, "break_even": 0.7}
    layer["has_sparse_kernel"] = True
    found = {
        "threads": 2, "device": "a processor", "date": "2026-11-28T10:00:00+00:00", "layers": [layer],
        "batches": [{"size": 1, "clock": "cpu_ms", "timings": timings, "absent": {}, "gain": 2.0}],
    }  # fmt: skip
    folder = make(tmp_path / "a") / "bench"
    folder.mkdir()
    (folder / "bench.json").write_text(json.dumps(found))
    [result] = read_runs([tmp_path]).measured
    drawn = run_charts(result.runs[0])
    bars = drawn["bench-1"]
    assert "2 threads of a processor" in bars.title
    assert "2.00 times" in bars.title
    dense, sparse = bars.data
    assert (dense["y"], dense["x"]) == (["ONNX Runtime", "MNN"], [4.0, 5.0])
    assert (sparse["y"], sparse["x"], sparse["error_x"]["array"]) == (["MNN"], [2.0], [0.2])
    assert [points["y"] for points in drawn["bench-layers"].data] == [[2.0], [1.0]]
    assert "faster from 70 % on" in drawn["bench-layers"].data[0]["text"][0]
    del found["batches"][0]["timings"]
    (folder / "bench.json").write_text(json.dumps(found))
    [line] = warnings(read_runs([tmp_path]))
    assert line.startswith("Damaged, and not counted")
