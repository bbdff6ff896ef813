import benchmark
import pytest
import torch
from benchmarks.epoch import epoch_table

from st3.training.machine import Machine

RESNET20 = 270_896


@pytest.mark.slow
def test_epochs_of_any_method():
    arguments = benchmark.parse(["epoch", "--quick", "--rounds", "1", "--methods", "rigl,probmask"])
    [(_, settings)] = benchmark.tables_of(arguments, torch.device("cpu"))
    settings.train_images, settings.val_images = 32, 8
    (section,) = epoch_table(settings, Machine(torch.device("cpu")))
    results = [each.result for each in section.contenders]
    assert [result["contender"] for result in results] == ["dense", "rigl", "probmask"]
    assert [result["zeros"] for result in results] == [0, *[pytest.approx(0.9 * RESNET20, abs=1)] * 2]
    assert {result["execution"] for result in results} == {"eager"}
    assert {result["scores"]["epoch"] for result in results} == {2}
    assert "rigl: updates its masks every 100 steps; an epoch has 3." in section.notes
    assert "24 training, 8 validation and 32 test images, random; sparsity 0.9 throughout." in section.notes
