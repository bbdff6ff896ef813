import json

import pytest
from training_cases import SUMMARY

from st3.errors import DamagedError, UserError
from st3.training.summary import Summary
from st3.whole_files import save_json


def test_it_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "summary.json"
    for summary in (
        SUMMARY(),
        SUMMARY(val_top1=45.5, val_top5=80.0, mask_updates=12, warnings=["the masks change only once"]),
        SUMMARY(target="latency", modelled_ms_dense=2.0, modelled_ms=1.0, modelled_from="t.json"),
        SUMMARY(best={"chosen_on": "val", "epoch": 2}, finished=True),
    ):
        save_json(path, summary.plain())
        assert Summary.read(path) == summary


def test_there_is_no_word_of_a_validation_that_was_not():
    assert not {"val_top1", "val_top5"} & SUMMARY().plain().keys()
    assert SUMMARY(val_top1=1.0, val_top5=5.0).plain()["val_top5"] == 5.0
    assert SUMMARY().plain()["mask_updates"] is None  # which means something


def test_there_is_no_word_of_times_that_were_not_known():
    assert not {"modelled_ms_dense", "modelled_ms", "modelled_from"} & SUMMARY().plain().keys()
    assert SUMMARY().modelled_removed is None
    assert SUMMARY(modelled_ms_dense=2.0, modelled_ms=0.5).modelled_removed == 0.75


def test_a_summary_of_an_earlier_or_later_version_is_read(tmp_path):
    path, content = tmp_path / "summary.json", SUMMARY(finished=True).plain()
    for added_later in ("mask_updates", "warnings"):
        del content[added_later]
    path.write_text(json.dumps(content | {"not_known_here": 1}))
    assert Summary.read(path) == SUMMARY(finished=True)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"top1": 50.0}'])
def test_a_damaged_one_is_named(tmp_path, content):
    path = tmp_path / "summary.json"
    path.write_text(content)
    with pytest.raises(DamagedError) as caught:
        Summary.read(path)
    assert str(caught.value).startswith((f"{path} is damaged (", f"cannot read {path}: "))
    assert "\n" not in str(caught.value)


def test_a_missing_one_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.json \(No such file"):
        Summary.read(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "change",
    [
        {"top1": 101}, {"top1": float("nan")}, {"top1": "50"}, {"top1": True}, {"sparsity": 1.5}, {"sparsity": -0.1},
        {"zeros": -1}, {"zeros": 1.5}, {"seconds": float("inf")}, {"warnings": "none"}, {"warnings": [1]}, {"best": []},
        {"finished": 1}, {"model": None}, {"dead_layers": {}}, {"val_top1": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_damage(tmp_path, change):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(SUMMARY(finished=True).plain() | change))
    [key] = change
    with pytest.raises(DamagedError, match=rf"summary\.json is damaged \({key}=.* cannot be\)"):
        Summary.read(path)


def test_what_can_be_is_read(tmp_path):
    path = tmp_path / "summary.json"
    summary = SUMMARY(
        finished=True, val_top1=3.5, val_top5=4, mask_updates=5, best={"top1": 1.0}, dead_layers=["fc"],
        warnings=["so"],
        modelled_ms=0.5, modelled_ms_dense=1.0, modelled_from="times.json", top1=100, sparsity=0,
    )  # fmt: skip
    path.write_text(json.dumps(summary.plain()))
    assert Summary.read(path) == summary
