import os
import socket
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from st3.compose import config_path
from st3.errors import DamagedError, UserError
from st3.plain_files import LARGEST, LARGEST_DATA, csv_text, parse_yaml, read_csv, read_json, read_yaml

BOMB = "a: &a [x, x]\n" + "".join(
    f"{key}: &{key} [*{before}, *{before}]\n" for before, key in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize("path", sorted(Path(config_path()).rglob("*.yaml")), ids=lambda path: path.stem)
def test_it_reads_what_omegaconf_reads(path):
    assert read_yaml(path) == (OmegaConf.to_container(OmegaConf.load(path)) or None)


@pytest.mark.parametrize(
    "value",
    [1e-5, 1e300, 0, -3, "1e-3", "1:30", "2020-01-01", "on", "0123456789", "12e6", None, True, "<<", "a\nb"],
)
def test_what_omegaconf_writes_comes_back(value):
    text = OmegaConf.to_yaml(OmegaConf.create({"key": value}))
    assert parse_yaml(text.encode(), "file") == {"key": value}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (BOMB, "line 1: anchors (&) and aliases (*)"),
        ("a: *b", "anchors (&) and aliases (*)"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: tags (!)"),
        ("a: !!binary aGk=", "tags (!)"),
        ("[" * 1000 + "]" * 1000, "more than 32 lists"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(1000)), "more than 32 lists"),
        ("[" + "a," * 200_000 + "]", "more than 100,000 values"),
        ("a: " + "1" * 10_000, "Exceeds the limit"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}", "line 2: c is there twice"),
        ("a: 1\na: 1", "a is there twice"),
        ("a: [", "line 2"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("[a]: 1\n? {b: 1}\n: 2", "unhashable"),
        ("a: \0", "control characters"),
        (b"a: \xff", "utf-8"),
    ],
)
def test_what_is_hostile_ends_soon_in_one_line(content, says):
    began = time.monotonic()
    with pytest.raises(DamagedError) as error:
        parse_yaml(content if isinstance(content, bytes) else content.encode(), "table.yaml")
    assert time.monotonic() - began < 5
    assert str(error.value).startswith("cannot read table.yaml: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


READERS = [read_yaml, read_json, read_csv]


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_is_not_there_is_a_mistake_of_usage(tmp_path, read):
    with pytest.raises(UserError, match=r"cannot read .*nothing \(No such file") as error:
        read(tmp_path / "nothing")
    assert error.value.exit_code == 2


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["folder", "FIFO", "socket", "/dev/zero"])
def test_what_could_keep_a_reader_waiting_or_busy_for_ever_is_no_file(tmp_path, read, kind, monkeypatch):
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("file")
    else:
        path.symlink_to(kind)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DamagedError, match=r"file: it is no file$"):
        read(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_more_is_read_than_a_file_may_hold(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b" " * (LARGEST + 1))
    with pytest.raises(DamagedError, match="larger than 1,048,576 bytes"):
        read_yaml(path)
    with open(path, "wb") as file:
        file.truncate(LARGEST_DATA + 1)
    for read in (read_json, read_csv):
        with pytest.raises(DamagedError, match="larger than 100,000,000 bytes"):
            read(path)


@pytest.mark.parametrize("read", READERS)
def test_what_the_disk_does_not_give_back_is_damaged(tmp_path, read):
    (tmp_path / "file").symlink_to("/proc/self/mem")
    with pytest.raises(DamagedError, match=r"file \(Input/output error\)$"):
        read(tmp_path / "file")


@pytest.mark.parametrize("part", ['{"":0},', "[],", '"",'])
def test_a_json_file_that_would_be_gigabytes_is_not_built(tmp_path, part):
    path = tmp_path / "file.json"
    path.write_text(f"[{part * 4_000_001}0]")
    began = time.monotonic()
    with pytest.raises(DamagedError, match="more than 4,000,000 lists, objects and quotation marks"):
        read_json(path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("content", ["[" * 100_000, "", '{"a": 1', '{"a": ' + "9" * 10_000 + "}", b"\xff{}", "\0"])
def test_what_is_no_json_is_damaged(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DamagedError, match=r"cannot read .*file\.json: "):
        read_json(path)


@pytest.mark.parametrize(
    "content", ["a,b\n" + "x" * 200_000, b"\xff", "a,b\n" + "1,2\n" * 2_100_000, "a\n" + "x," * 10_000_001]
)
def test_what_is_no_csv_is_damaged(tmp_path, content):
    path = tmp_path / "file.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DamagedError, match=r"cannot read .*file\.csv: "):
        read_csv(path)


def test_a_table_is_read_as_it_was_written_and_no_text_of_it_is_a_formula(tmp_path):
    path, rows = tmp_path / "file.csv", [{"a": 'x,"y"\nz', "b": -1.5}, {"a": "", "b": None}]
    path.write_text(csv_text(("a", "b"), rows))
    assert read_csv(path) == [{"a": 'x,"y"\nz', "b": "-1.5"}, {"a": "", "b": ""}]
    path.write_text(csv_text(["a"], [{"a": sign + "1"} for sign in "=+-@'x"]))
    assert [row["a"] for row in read_csv(path)] == ["'=1", "'+1", "'-1", "'@1", "'1", "x1"]
