"""Image files that several tests read."""

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def tree(tmp_path):
    """train/ with 6 and test/ with 3 JPEG files of 24x20 pixels in each of the classes a, b."""
    pixels = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return tmp_path


@pytest.fixture
def photographs(tmp_path):
    """As `tree`, of smooth images of several sizes, which JPEG keeps well: paths [N], labels [N]."""
    pixels, paths = np.random.default_rng(0), []
    for i, (width, height) in enumerate([(90, 60), (64, 64), (50, 110), (201, 133), (33, 71), (128, 96)]):
        coarse = Image.fromarray(pixels.integers(256, size=(4, 5, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{i}.jpg")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return np.array([str(path) for path in paths], dtype=object), torch.arange(len(paths))
