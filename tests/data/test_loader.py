"""What several processes are served."""

import pytest
import torch
from data_cases import FAKE, FOLDER, build, epoch, refused


def loaders(use, world_size, **arguments):
    """That loader of every process."""
    return [getattr(build(**arguments, rank=rank, world_size=world_size), use) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("augment", ["crop_flip", "random_resized_crop"])
def test_training_batches_of_all_processes_are_those_of_one(tree, augment, world_size):
    arguments = FOLDER | {"root": str(tree), "augment": augment}
    alone = build(**arguments).train
    shared = loaders("train", world_size, **arguments)
    assert {(len(each), each.num_images, each.batch_size) for each in shared} == {(3, 12, 4)}
    for number in (0, 1):
        batches = zip(alone.epoch(number), *(each.epoch(number) for each in shared), strict=True)
        for (images, labels), *parts in batches:
            assert [len(part) for part, _ in parts] == [4 // world_size] * world_size
            assert torch.equal(images, torch.cat([part for part, _ in parts]))
            assert torch.equal(labels, torch.cat([part for _, part in parts]))


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["none", "random_resized_crop"])
@pytest.mark.parametrize("world_size", [4, 7])
def test_processes_evaluate_each_image_once_and_some_may_have_none(tree, augment, world_size):
    arguments = FOLDER | {"root": str(tree), "augment": augment, "val_images": 3, "batch_size": 7, "workers": 1}
    arguments |= {"eval_batch_size": 1, "batch_size": world_size}
    for use, count in (("val", 3), ("test", 6)):
        expected = epoch(loaders(use, 1, **arguments)[0])
        shared = loaders(use, world_size, **arguments)
        assert sum(each.num_images for each in shared) == count
        assert min(each.num_images for each in shared) == count // world_size
        batches = [list(each.epoch(0)) for each in shared]
        assert [len(each) for each in shared] == [len(each) for each in batches]
        images, labels = zip(*(batch for each in batches for batch in each), strict=True)
        assert torch.equal(expected[0], torch.cat(images))
        assert torch.equal(expected[1], torch.cat(labels))


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    message = refused(**FAKE | {"batch_size": 16}, rank=1, world_size=3)
    assert message.startswith("batch_size: 16 images")
    assert "set batch_size to a multiple of 3" in message
