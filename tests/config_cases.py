"""Configurations for tests, composed once for each choice of options: composing takes a tenth of a second."""

import copy
import functools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from st3.compose import compose_config, config_path
from st3.config import Config, load_config
from st3.errors import UserError

CONFIGS = Path(config_path())
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


@functools.cache
def _by_hydra(*options: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", list(options))


def composed(*overrides: str) -> DictConfig:
    """What Hydra composes. Values are set upon the options as Hydra sets those that are typed with ++."""
    options = [o for o in overrides if o.partition("=")[0] in GROUPS]
    config = copy.deepcopy(_by_hydra(*options))
    OmegaConf.set_struct(config, False)
    for override in OverridesParser.create().parse_overrides([o for o in overrides if o not in options]):
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


@functools.cache
def load(*overrides: str) -> Config:
    return load_config(composed(*overrides))


def refused(*overrides: str) -> str:
    """What is said of settings that `load` refuses."""
    return _one_line(lambda: load(*overrides))


def typed_wrong(*overrides: str) -> str:
    """What is said of overrides that are refused as they are typed."""
    return _one_line(lambda: compose_config(overrides))


def _one_line(action) -> str:
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert not re.search(r"\n|  |Traceback", message)
    return message
