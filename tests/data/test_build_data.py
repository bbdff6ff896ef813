"""From the settings of a dataset to its loaders; what is refused, and in which words."""

import pytest
import torch
from data_cases import FAKE, FOLDER, build, epoch, needs_gpu, refused

from st3.data.datasets import fashion_mnist_embedded


def test_validation_images_are_held_out_the_same_for_every_seed():
    size = {"name": "fashion_mnist_embedded", "image_size": 28, "channels": 1, "mean": [0.0], "std": [1.0]}
    counts = {"train_images": 8000, "test_images": 2000, "augment": "none", "val_images": 1000}
    one, two = (build(**FAKE | size | counts | {"seed": seed}) for seed in (1, 2))
    assert torch.equal(one.val.images, two.val.images)
    assert one.val.num_images == 1000
    held, kept, whole = (
        {image.numpy().tobytes() for image in images}
        for images in (one.val.images, one.train.images, fashion_mnist_embedded().train.inputs)
    )
    assert not held & kept
    assert held | kept == whole
    assert len(set(one.val.labels.tolist())) == 10


@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folder_counts_shapes_and_labels(tree, augment, channels):
    stats = {"mean": [0.5] * channels, "std": [0.5] * channels, "channels": channels}
    data = build(**FOLDER | stats | {"root": str(tree), "augment": augment, "val_images": 2})
    assert data.classes == ("a", "b")
    assert [loader.num_images for loader in (data.train, data.val, data.test)] == [10, 2, 6]
    images, labels = epoch(data.train)
    assert images.shape == (8, channels, 16, 16)
    images, labels = epoch(data.test)
    assert images.shape == (6, channels, 16, 16)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part, _ in data.test.epoch(0))


@pytest.mark.gpu
@needs_gpu
def test_small_images_are_evaluated_in_larger_batches_on_a_gpu():
    small = FAKE | {"device": "cuda", "eval_batch_size": None}
    assert build(**small).test.batch_size == 2500
    assert build(**small | {"device": "cpu"}).test.batch_size == 500
    assert build(**small | {"image_size": 65}).test.batch_size == 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fakes"}, "unknown dataset 'fakes': set dataset.name to one of"),
        ({"augment": "cutout"}, "unknown dataset.augment=cutout"),
        ({"augment": "random_resized_crop"}, "set dataset.augment=crop_flip"),
        ({"channels": 2}, "set dataset.channels=1 or 3"),
        ({"mean": [0.5]}, "dataset.mean has 1 numbers but dataset.channels=3"),
        ({"std": [0.5]}, "dataset.std has 1 numbers but dataset.channels=3"),
        ({"batch_size": 51}, "batch_size=51 is larger than the 50 training images: lower batch_size"),
        ({"batch_size": 50, "val_images": 1}, "batch_size=50 is larger than the 49 training images"),
        ({"val_images": 50}, "dataset.val_images=50 leaves nothing of 50 training images: lower it"),
        ({"train_images": None}, "dataset.train_images=N is needed"),
        ({"download": True}, "set dataset.download=false"),
        ({"root": "somewhere"}, "set dataset.root=null"),
        ({"cache": "somewhere"}, "dataset.cache=somewhere has no effect with fake: set dataset.cache=null"),
        ({"decode": "fast"}, "dataset.decode=fast does not exist: choose among cpu, gpu"),
        ({"changed": "ask"}, "dataset.changed=ask does not exist: choose among stop, accept"),
        ({"image_size": 0}, "dataset.image_size=0 must be at least 1"),
        ({"std": [0.5, 0.0, 0.5]}, "dataset.std=[0.5, 0.0, 0.5] must be positive"),
        ({"val_images": -1}, "dataset.val_images=-1 must not be negative"),
        ({"val_images": 2.0}, "dataset.val_images=2.0 is no fraction below 1"),
        ({"val_images": 0.999}, "dataset.val_images=0.999 leaves nothing of 50 training images"),
        ({"val_images": 0.001}, "dataset.val_images=0.001 of 50 training images is none: raise it"),
        ({"val_images": 0.98}, "49 held out of 50 training images leave not one for each of 10 classes"),
        ({"workers": -1}, "dataset.workers=-1 must be at least 0 and at most 1000"),
        ({"decode": "gpu"}, "no effect with dataset.augment=crop_flip: set dataset.decode=cpu"),
        (
            {"name": "fashion_mnist_embedded", "train_images": None, "test_images": None},
            "dataset.channels=3 dataset.image_size=8 but fashion_mnist_embedded has 1 channels, 28 pixels a side: "
            "set dataset.channels=1 dataset.image_size=28",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    assert message in refused(**FAKE | change)
