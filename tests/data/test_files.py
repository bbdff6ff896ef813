"""Image files read in worker processes."""

import os

import numpy as np
import pytest
import torch
from data_cases import FOLDER, build, epoch
from PIL import Image

from st3.data.files import EncodedFiles, ImageFiles
from st3.data.views import RandomView, WholeView
from st3.data.workers import Batches
from st3.errors import UserError


def test_grey_conversion_is_the_luminance(tree):
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tree / "test" / "a" / "0.png")
    (tree / "test" / "a" / "0.jpg").unlink()
    for augment in ("random_resized_crop", "none"):
        grey = {"channels": 1, "mean": [0.0], "std": [1 / 255], "augment": augment}
        images, _ = epoch(build(**FOLDER | grey | {"root": str(tree)}).test)
        luminance = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
        assert (images[0] - luminance).abs().max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
def test_a_corrupt_file_is_named(tree, workers, augment):
    bad = tree / "test" / "b" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(UserError) as caught:
        epoch(build(**FOLDER | {"root": str(tree), "workers": workers, "augment": augment}).test)
    assert str(caught.value).startswith(f"cannot read image {bad}: ")
    assert str(caught.value).endswith("; remove or replace the file")
    assert "Traceback" not in str(caught.value)


def test_views_are_drawn_from_the_header_as_from_the_pixels(photographs):
    paths, labels = photographs
    encoded = EncodedFiles(paths, labels, RandomView(32), 3, seed=5)[2, torch.arange(6)][0]
    plain = ImageFiles(paths, labels, RandomView(32), 3, seed=5)
    with torch.random.fork_rng():
        expected = [list(plain.draw(Image.open(path).convert("RGB"), 2, i)) for i, path in enumerate(paths)]
    assert encoded.views.tolist() == expected
    assert encoded.lengths.tolist() == [os.path.getsize(path) for path in paths]


def test_more_workers_than_cores_are_no_reason_to_warn(recwarn):
    files = ImageFiles(np.array(["none"], object), torch.zeros(1), WholeView(8), 3, 0)
    Batches(files, [], workers=500)
    assert not recwarn.list
