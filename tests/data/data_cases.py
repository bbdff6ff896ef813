"""Settings of datasets, and what several tests do with them."""

from dataclasses import fields

import pytest
import torch

from st3.data import Data, DatasetConfig, build_data
from st3.errors import UserError

FAKE = {
    "name": "fake", "root": None, "classes": 10, "channels": 3, "image_size": 8, "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3], "augment": "crop_flip", "val_images": 0, "train_images": 50, "test_images": 23,
    "workers": 0, "download": False, "batch_size": 16, "seed": 0, "device": "cpu", "eval_batch_size": 10,
}  # fmt: skip
FOLDER = FAKE | {
    "name": "folder", "classes": None, "train_images": None, "test_images": None, "image_size": 16,
    "augment": "random_resized_crop", "batch_size": 4,
}  # fmt: skip

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def dataset(**settings) -> DatasetConfig:
    """Of these settings, those of the dataset."""
    own = {field.name for field in fields(DatasetConfig)}
    return DatasetConfig(**{key: value for key, value in settings.items() if key in own})


def build(**settings) -> Data:
    """`build_data` of the settings of a dataset, with the other arguments among them."""
    config = dataset(**settings)
    return build_data(config, **{key: value for key, value in settings.items() if not hasattr(config, key)})


def epoch(loader, number=0):
    """All (images, labels) of one epoch, concatenated."""
    images, labels = zip(*loader.epoch(number), strict=True)
    return torch.cat(images), torch.cat(labels)


def refused(**arguments) -> str:
    with pytest.raises(UserError) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
