"""The file of measured times: read as it was written, and refused in one line for whatever is wrong with it."""

import json
from dataclasses import replace

import pytest

from st3.errors import UserError
from st3.measure import LayerRow, Times
from st3.sparsify import LayerTimes

LAYERS = {
    "conv": LayerTimes(weights=100, dense_ms=2.0, base_ms=0.5, ms_per_weight=0.02),
    "fc": LayerTimes(weights=40, dense_ms=1, base_ms=1.5, ms_per_weight=0.0),
}
TIMES = Times(
    runtime="MNN 3.6.1", device="AMD EPYC “Genoa”", threads=1, batch=1, model="resnet20", input=(3, 32, 32),
    date="2026-11-28", layers=LAYERS,
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    TIMES.write(tmp_path / "times.json")
    return tmp_path / "times.json"


def refused(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_is_read_as_it_was_written(path):
    assert Times.read(path) == TIMES
    replace(TIMES, threads=4).write(path)
    assert Times.read(path) == replace(TIMES, threads=4) != TIMES
    assert [each.name for each in path.parent.iterdir()] == ["times.json"]


def test_the_file_is_as_its_documentation_says(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == [
        "format", "runtime", "device", "threads", "batch", "model", "input", "date", "layers",
    ]  # fmt: skip
    assert (content["format"], content["input"]) == (1, [3, 32, 32])
    assert content["layers"]["conv"] == {"weights": 100, "dense_ms": 2.0, "base_ms": 0.5, "ms_per_weight": 0.02}


def test_what_a_later_version_adds_is_no_trouble(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    content["note"] = content["layers"]["conv"]["error_ms"] = 0.1
    path.write_text(json.dumps(content))
    assert Times.read(path) == TIMES


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda it: it.update(format=2), "its format is 2, not 1: measure again with this version"),
        (lambda it: it.pop("format"), "it has no format"),
        (lambda it: it.pop("runtime"), "it has no runtime"),
        (lambda it: it.update(device=7), "it has device=7, which is of another type"),
        (lambda it: it.update(threads=0), "threads=0 must be at least 1"),
        (lambda it: it.update(batch=True), "it has batch=true, which is of another type"),
        (lambda it: it.update(input=[3, 32]), "input=[3, 32] is not channels, height and width"),
        (lambda it: it.update(input=[3, 32, 0]), "input=[3, 32, 0] is not channels, height and width"),
        (lambda it: it.update(layers=[]), "it has layers=[], which is of another type"),
        (lambda it: it["layers"].update(fc=3), "fc is not an object"),
        (lambda it: it["layers"]["fc"].pop("base_ms"), "fc has no base_ms"),
        (lambda it: it["layers"]["fc"].update(base_ms="1"), 'fc has base_ms="1", which is of another type'),
        (lambda it: it["layers"]["fc"].update(weights=4.0), "fc has weights=4.0, which is of another type"),
        (lambda it: it["layers"]["fc"].update(weights=0), "fc: weights=0 must be at least 1"),
        (lambda it: it["layers"]["fc"].update(dense_ms=-1), "fc: dense_ms=-1 cannot be: times of a layer are 0 to"),
        (lambda it: it["layers"]["fc"].update(base_ms=float("nan")), "fc: base_ms=nan cannot be"),
        (lambda it: it["layers"]["fc"].update(ms_per_weight=float("inf")), "fc: ms_per_weight=inf cannot be"),
    ],
)
def test_what_is_wrong_in_it_is_named(path, change, says):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content))
    assert refused(lambda: Times.read(path)).startswith(f"{path} cannot be used: {says}")


def test_a_file_that_is_none_is_named(path):
    assert refused(lambda: Times.read(path.parent)) == f"cannot read {path.parent}: it is no file"
    nowhere = path.with_name("nowhere.json")
    assert refused(lambda: Times.read(nowhere)) == f"cannot read {nowhere} (No such file or directory)"
    for content in (b"", b"{", b"\xff\xfe"):
        path.write_bytes(content)
        assert refused(lambda: Times.read(path)).startswith(f"cannot read {path}: ")
    path.write_text("[1]")
    assert refused(lambda: Times.read(path)) == f"{path} cannot be used: it is not an object"


def test_of_another_network_or_other_images_they_are_refused():
    TIMES.check("resnet20", (3, 32, 32))
    assert refused(lambda: TIMES.check("resnet32", (3, 32, 32))).startswith("has times of model.name=resnet20, not ")
    assert "of images of 3×32×32, not 1×28×28" in refused(lambda: TIMES.check("resnet20", (1, 28, 28)))


def row(name: str, params: int, zeros: int, pruned: bool = True) -> LayerRow:
    return LayerRow(name, "", params, pruned, zeros, zeros / params, 0.0, 0, 0, False)


def test_modelled_times_are_of_the_pruned_layers_with_the_faster_kernel_for_each():
    rows = [row("conv", 100, 20), row("fc", 40, 40), row("stem", 7, 0, pruned=False)]
    assert TIMES.modelled_ms(rows) == (3.0, 3.0)  # 0.5 + 0.02·80 is more than 2, and fc's sparse kernel never pays
    rows[0] = row("conv", 100, 60)
    assert TIMES.modelled_ms(rows) == (3.0, pytest.approx(0.5 + 0.02 * 40 + 1))
    assert TIMES.modelled_ms(rows[1:]) == (1.0, 1.0)


def test_where_they_were_measured_is_said():
    assert TIMES.source == "MNN 3.6.1, AMD EPYC “Genoa”, 1 thread, batch 1, 2026-11-28"
    assert "4 threads, batch 8," in replace(TIMES, threads=4, batch=8).source
