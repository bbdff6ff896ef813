import json
import os

import pytest

from st3.errors import DiskError
from st3.whole_files import save_json, write_atomically, write_named, write_text


class StopError(Exception):
    pass


@pytest.mark.parametrize("old", [None, "old"])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, old):
    path = tmp_path / "file.txt"
    if old:
        path.write_text(old)

    def write(temporary):
        temporary.write_text("ha")
        raise StopError

    with pytest.raises(StopError):
        write_atomically(path, write)
    assert (path.read_text() if path.exists() else None) == old
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert [each.name for each in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "new"


def test_a_file_that_does_not_fit_is_named_and_keeps_the_one_before(tmp_path, small_disk):
    save_json(path := tmp_path / "summary.json", 1)
    with small_disk(1000), pytest.raises(DiskError) as caught:
        save_json(path, "x" * 2000)
    assert str(caught.value) == (
        f"cannot write {path}: File too large. See to it that it can be written, then give the same command again"
    )
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("summary.json", "1\n")]


def test_a_link_in_the_place_of_the_file_leads_to_no_other_file(tmp_path):
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "file.txt").symlink_to(other)
    write_atomically(tmp_path / "file.txt", lambda temporary: temporary.write_text("new"))
    assert (other.read_text(), (tmp_path / "file.txt").read_text()) == ("mine", "new")
    assert not (tmp_path / "file.txt").is_symlink()


def test_two_that_write_at_once_do_not_meet(tmp_path):
    """The second begins and ends while the first writes."""
    path = tmp_path / "page.html"

    def write(temporary):
        temporary.write_text("first")
        write_text(path, "second")

    write_atomically(path, write)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("page.html", "first")]


def test_a_file_that_somebody_names_may_be_a_link_or_a_pipe(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "page.html")
    write_named(tmp_path / "link", "é")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "page.html").read_bytes() == "é".encode()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_named(tmp_path / "pipe", "é")
    assert os.read(reader, 10) == "é".encode()
    os.close(reader)
    with pytest.raises(DiskError, match=r"cannot write .*: Is a directory"):
        write_named(tmp_path, "é")


def test_json_reads_as_written(tmp_path):
    value = {"top1": 91.25, "best": {}, "name": "ST-3σ"}
    save_json(tmp_path / "summary.json", value)
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "ST-3σ" in text
