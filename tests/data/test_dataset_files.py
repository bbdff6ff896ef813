"""The configuration files of the datasets, and the check of what is typed."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from data_cases import build, epoch
from hydra import compose, initialize_config_dir

from st3.config import load_config
from st3.data import DatasetConfig, check_options
from st3.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "dataset").glob("*.yaml"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("dataset.decode=fast", "dataset.decode=fast does not exist"),
        ("dataset.decode=gpu", "dataset.decode=gpu has no effect with dataset.augment=none: set dataset.decode=cpu"),
        (
            "dataset=folder dataset.decode=gpu dataset.channels=1 dataset.mean=[0] dataset.std=[1]",
            "dataset.decode=gpu gives RGB, not dataset.channels=1",
        ),
        ("dataset=fake dataset.cache=DIR", "dataset.cache=DIR has no effect with fake: set dataset.cache=null"),
        (
            "dataset=mnist dataset.augment=random_resized_crop",
            "dataset.augment=random_resized_crop reads image folders",
        ),
        ("dataset=fake dataset.root=DIR", "dataset.root=DIR has no effect on fake"),
        ("dataset.name=fakes", "unknown dataset 'fakes'"),
        ("dataset=folder dataset.cache=DIR", "dataset.cache=DIR has no effect with dataset.augment=random_resized"),
        ("dataset=imagenet dataset.decode=gpu", None),
        ("dataset=imagenet dataset.on_error=skip dataset.val_images=0.01", None),
        ("dataset=imagenet dataset.on_error=ignore", "dataset.on_error=ignore does not exist: choose among stop, skip"),
        ("dataset=fake dataset.on_error=skip", "dataset.on_error=skip has no effect with fake"),
        (
            "dataset=imagenet dataset.on_error=skip dataset.decode=gpu",
            "set dataset.decode=cpu, or dataset.on_error=sto",
        ),
        ("dataset=fake dataset.val_images=some", "dataset.val_images=some must be a number"),
        ("dataset=cifar10_folder dataset.cache=DIR", None),
    ],
)
def test_the_configuration_is_checked_before_any_data(overrides, message):
    with initialize_config_dir(str(CONFIGS[0].parents[1].resolve()), version_base="1.3"):
        composed = compose("config", overrides.split())
    if message is None:
        load_config(composed)
    else:
        with pytest.raises(UserError) as caught:
            load_config(composed)
        assert message in str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_dataset_file_gives_settings_that_fit_in_their_order(path):
    settings = yaml.safe_load(path.read_text())
    assert settings["name"] == path.stem
    assert list(settings) == [field.name for field in fields(DatasetConfig) if field.name in settings]
    assert None not in settings.values()
    check_options(DatasetConfig(**settings))


@pytest.mark.parametrize("name", ["fake", "fashion_mnist_embedded"])
def test_datasets_without_files_build_from_their_configuration(name):
    config = yaml.safe_load(next(path for path in CONFIGS if path.stem == name).read_text())
    data = build(**config, batch_size=64, seed=0, device="cpu")
    images, _ = epoch(data.test)
    # Mean and standard deviation are the dataset's own.
    assert images.mean().abs() < 0.02
    assert (images.std() - 1).abs() < 0.02
