"""`st3 check DIR` on small real files."""

import shutil

import numpy as np
import pytest
from PIL import Image

from st3.cli import main
from st3.data.check import check_folder
from st3.errors import UserError


@pytest.fixture
def tree(tmp_path):
    """train/ with 12 and test/ with 6 different RGB files of 24x20 pixels in each of the classes a, b."""
    pixels = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label in ("a", "b"):
            folder = tmp_path / "DIR" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return tmp_path / "DIR"


def spoil(tree):
    cut = tree / "train" / "a" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    (tree / "test" / "b" / "0.jpg").write_bytes(b"")
    (tree / "test" / "b" / "1.jpg").write_bytes(b"<html>")
    Image.new("RGB", (24, 21)).save(tree / "train" / "a" / "2.jpg")
    Image.new("L", (24, 20)).save(tree / "train" / "a" / "3.jpg")
    shutil.copy(tree / "train" / "a" / "4.jpg", tree / "test" / "a" / "x.jpg")
    shutil.copy(tree / "train" / "a" / "5.jpg", tree / "train" / "b" / "x.jpg")
    shutil.copy(tree / "train" / "a" / "6.jpg", tree / "train" / "a" / "x.jpg")  # harmless
    shutil.copytree(tree / "train" / "b", tree / "test" / "c", ignore=lambda folder, names: names)
    (tree / "train" / ".cache").mkdir()


def test_all_is_well(tree, capsys):
    assert main(["check", str(tree), "--workers", "2"]) == 0
    answer = capsys.readouterr()
    assert answer.err == ""
    assert (
        answer.out
        == f"""{tree}: 36 images (train 24, test 12), 2 classes

damaged    none
odd size   none
odd mode   none
duplicate  none, byte for byte (near-duplicates are not looked for)
classes    the same in all splits
empty      none
"""
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_is_found_in_one_go(tree, workers):
    spoil(tree)
    check = check_folder(tree, workers)
    cut, *others = check.findings.pop("damaged")
    assert cut.startswith("train/a/1.jpg: ")
    assert others == ["test/b/0.jpg: empty file", "test/b/1.jpg: no JPEG, PNG, PPM, BMP, TIFF or WEBP image"]
    assert check.findings == {
        "odd size": ["train/a/2.jpg: 24×21, most are 24×20"],
        "odd mode": ["train/a/3.jpg: L, most are RGB"],
        "duplicate": ["train/a/4.jpg = test/a/x.jpg", "train/a/5.jpg = train/b/x.jpg"],
        "classes": ["train/ has no c"],
        "empty": ["test/c/"],
    }


def test_long_lists_are_cut_with_a_count(tree, capsys):
    for i in range(8):
        (tree / "train" / "b" / f"{i}.jpg").write_bytes(b"")
    assert main(["check", str(tree), "--workers", "0"]) == 1
    short = capsys.readouterr().out
    assert "damaged    8 cannot be read\n           train/b/0.jpg: empty file\n" in short
    assert "train/b/4.jpg" in short
    assert "train/b/5.jpg" not in short
    assert "           … and 3 more: --all lists them\n" in short
    assert main(["check", str(tree), "--workers", "0", "--all"]) == 1
    full = capsys.readouterr().out
    assert all(f"train/b/{i}.jpg: empty file" in full for i in range(8))
    assert "more" not in full


def test_a_folder_of_classes_has_no_splits_and_any_file_only_once(tree, capsys):
    assert main(["check", str(tree / "train"), "--workers", "0"]) == 0
    assert f"{tree}/train: 24 images, no splits, 2 classes\n" in capsys.readouterr().out
    shutil.copy(tree / "train" / "a" / "6.jpg", tree / "train" / "a" / "x.jpg")  # one may be held out
    assert check_folder(tree / "train").findings["duplicate"] == ["a/6.jpg = a/x.jpg"]


def test_where_sizes_vary_only_extremes_are_odd(tree):
    for i, size in enumerate([(40, 30), (30, 40), (35, 22), (24, 60), (4, 20), (24, 121), (90, 90)] * 2):
        Image.new("RGB", size).save(tree / "train" / "a" / f"{i}.png")
    odd = check_folder(tree).findings["odd size"]
    assert [line.split(",")[0] for line in odd] == [
        f"train/a/{i}.png: {size}" for i, size in (("11", "4×20"), ("12", "24×121"), ("13", "90×90"), ("4", "4×20"),
                                                  ("5", "24×121"), ("6", "90×90"))
    ]  # fmt: skip
    assert odd[0].endswith("the median of the shorter side is 20")


def test_a_wrong_folder_is_a_mistake(tree, capsys):
    for folder, says in ((tree / "none", "is no folder"), (tree / "train" / "a", "has no images in SPLIT/CLASS/FILE")):
        assert main(["check", str(folder)]) == 3
        err = capsys.readouterr().err
        assert err.startswith(f"st3 check: error: {folder} {says}")
        assert err.count("\n") == 1
    assert main(["check", str(tree), "--workers", "-1"]) == 2
    with pytest.raises(UserError, match="is no folder"):
        check_folder(tree / "none")


def test_a_bar_shows_how_far_it_is(tree):
    seen = []

    def progress(images, total):
        seen.append(total)
        for image in images:
            seen.append(image.name)
            yield image

    check_folder(tree, progress=progress)
    assert seen[0] == 36
    assert len(set(seen)) == 37


def test_another_colour_mode_alone_is_listed_and_no_fault(tmp_path, capsys):
    for number in range(10):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("L" if number == 3 else "RGB", (8, 8), number).save(tmp_path / "a" / f"{number}.png")
    assert main(["check", str(tmp_path), "--workers", "0"]) == 0
    assert "a/3.png: L, most are RGB" in capsys.readouterr().out
