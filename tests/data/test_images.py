"""Single files that are no images, or should not be read: named at once, and never opened where that may not end."""

import os
import resource
import socket
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from data_cases import FOLDER, build, dataset, epoch
from PIL import EpsImagePlugin, Image

import st3
from st3.data import probe
from st3.data.check import check_folder
from st3.data.files import EncodedFiles
from st3.data.images import UnreadableImageError, read_image
from st3.data.views import CentralView
from st3.errors import DataError


def png(width, height):
    """A PNG file of zeros, as small as it can be."""

    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    packer = zlib.compressobj(9)
    row = bytes(1 + width)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def a_socket(path):
    path.unlink()
    with socket.socket(socket.AF_UNIX) as end:
        os.chdir(path.parent)  # the name of a socket must be short
        end.bind(path.name)


def in_place(make):
    def fault(path):
        path.unlink()
        make(path)

    return fault


FAULTS = {
    "FIFO": (in_place(os.mkfifo), "it is a FIFO, not a file"),
    "socket": (a_socket, "it is a socket, not a file"),
    "device": (in_place(lambda path: path.symlink_to("/dev/zero")), "it is a device, not a file"),
    "folder": (in_place(lambda path: path.symlink_to(path.parent)), "it is a folder, not a file"),
    "gone": (Path.unlink, "No such file or directory"),
    "dangling link": (in_place(lambda path: path.symlink_to("nowhere")), "No such file or directory"),
    "circular link": (in_place(lambda path: path.symlink_to(path.name)), "Too many levels of symbolic links"),
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "text": (lambda path: path.write_bytes(b"<html>"), "no JPEG, PNG, PPM, BMP, TIFF or WEBP image"),
    "truncated": (truncated, "image file is truncated"),
    "EPS": (lambda path: Image.new("RGB", (8, 8)).save(path, "EPS"), "no JPEG, PNG, PPM, BMP, TIFF or WEBP image"),
    "large": (lambda path: path.write_bytes(png(10_000, 9_000)), "Image size (90000000 pixels) exceeds limit of"),
    "bomb": (lambda path: path.write_bytes(png(20_000, 20_000)), "Image size (400000000 pixels) exceeds limit of"),
}


@pytest.fixture(autouse=True)
def nothing_starts_ghostscript(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # and returns there
    monkeypatch.setattr(EpsImagePlugin, "EpsImageFile", None)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_no_image_is_named_in_one_line(tree, fault):
    make, says = FAULTS[fault]
    bad = tree / "test" / "b" / "1.jpg"
    data = {kind: build(**FOLDER | {"root": str(tree), "workers": workers}) for kind, workers in (("", 0), ("w", 2))}
    make(bad)
    before = time.monotonic()
    for each in data.values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow's of a large image: it is refused instead
            with pytest.raises(DataError) as caught:
                epoch(each.test)
        assert str(caught.value).startswith(f"cannot read image {bad}: {says}")
        assert "\n" not in str(caught.value)
    _, errors = EncodedFiles([str(bad)], [0], CentralView(32), 3, seed=0)[0, torch.arange(1)]
    if fault != "truncated":  # which a GPU's decoder may find out
        assert says in errors[str(bad)]
    assert time.monotonic() - before < 30


@pytest.mark.parametrize("fault", FAULTS)
def test_it_can_be_left_out_in_training_and_the_check_of_a_folder_lists_it(tree, fault):
    make, says = FAULTS[fault]
    bad = tree / "train" / "b" / "0.jpg"
    config = FOLDER | {"root": str(tree), "on_error": "skip", "workers": 2}
    data = build(**config)
    make(bad)
    images, _ = epoch(data.train)
    assert len(images) == 12
    assert data.warnings() == [f"1 image files that cannot be read were left out: {bad}"]
    if fault in ("gone", "folder"):  # not listed any more, or other files in it
        return
    assert [line.startswith(f"train/b/0.jpg: {says}") for line in check_folder(tree, 2).findings["damaged"]] == [True]
    with pytest.raises(DataError, match=r"b/0\.jpg"):
        probe(dataset(**FOLDER | {"root": str(tree)}))


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    file = tmp_path / "0.png"
    Image.new("RGB", (8, 8)).save(file)
    file.chmod(0)
    code = """import os, sys
from st3.data.images import read_image
if os.geteuid() == 0:
    os.seteuid(65534)  # nobody
read_image(sys.argv[1], "RGB")"""
    done = subprocess.run(
        [sys.executable, "-c", code, file], capture_output=True, text=True, cwd=Path(st3.__file__).parents[1]
    )
    assert f"cannot read image {file}: Permission denied; remove or replace the file" in done.stderr


def test_a_bomb_is_refused_without_its_memory(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(20_000, 20_000))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableImageError):
        read_image(str(tmp_path / "bomb.png"), "RGB")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB; decoded it is 400 MB


def test_warnings_of_the_caller_are_as_they_were(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    before = list(warnings.filters)
    read_image(str(tmp_path / "0.png"), "RGB")
    assert warnings.filters == before
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("name", ["two\nlines.jpg", "bell\a.jpg", os.fsdecode(b"\xff\xfe.jpg")])
def test_a_name_that_no_line_can_hold_is_escaped(tmp_path, name):
    with pytest.raises(UnreadableImageError) as caught:
        read_image(str(tmp_path / name), "RGB")
    assert str(caught.value).isprintable()


def test_other_kinds_of_jpeg_are_still_read(photographs):
    with Image.open(photographs[0][0]) as image:
        image.save(photographs[0][1], "MPO", save_all=True, append_images=[image])
        for kind in ("PNG", "PPM", "BMP", "TIFF", "WEBP"):
            image.save(photographs[0][2], kind)
            assert read_image(photographs[0][2], "RGB").size == image.size
    assert read_image(photographs[0][1], "RGB").size == image.size
