"""Hydra, in our words: where the YAML files are, and from overrides to a checked configuration."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from st3.errors import UserError

if TYPE_CHECKING:
    from st3.config import Config


def config_path() -> str:
    """The checkout's configs/ beside pyproject.toml, else the copy inside the installed package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    beside = (checkout / "pyproject.toml").exists() and (checkout / "configs").is_dir()
    return str((checkout if beside else package) / "configs")


def compose_config(overrides: Sequence[str]) -> "Config":
    """The configuration that `st3-train OVERRIDES` would have. Raises `UserError` for what the user can mend."""
    from st3.config import load_config

    try:
        with initialize_config_dir(config_path(), version_base="1.3"):
            words = spell_out(overrides)
            return load_config(of_stored_run(compose("config", words), words))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(in_one_line(error)) from error


def spell_out(words: Sequence[str]) -> list[str]:
    """What is typed, in words that Hydra understands.

    `model=NAME` for which configs/model has no file is `model.name=NAME`. In a sweep settings of a group are set by
    force: Hydra also composes it without its choices, where a method that is not swept over has no such setting.
    `model.weights=RUN` brings the network and the data of that run, where neither is typed nor a recipe's.
    """
    folder, spelled, sweep = Path(config_path(), "model"), list[str](), bool({"-m", "--multirun"} & set(words))
    for word in words:
        names = word.removeprefix("model=").split(",") if word.startswith("model=") else []
        if names and names != ["null"] and not any((folder / f"{name}.yaml").exists() for name in names):
            spelled += ["model=resnet20", f"model.name={','.join(names)}"]  # its file holds nothing but a name
            spelled += ["+model.dropout=0"] if names[0].startswith("wrn") else []
        elif sweep and re.match(r"(method|schedule|optimizer|lr_schedule)\.\w+=", word):
            spelled.append(f"++{word}")
        else:
            spelled.append(word)
    return spelled + _of_run(words)


def of_stored_run(composed: DictConfig, words: Sequence[str]) -> DictConfig:
    """What Hydra composed of the overrides `words`.

    Where `run_dir` holds a run and no option of a group is typed: the settings of that run, and what is typed beside.
    """
    from st3.config import stored_config
    from st3.training.run_directory import RunDirectory

    typed = {word.lstrip("+~").partition("=")[0] for word in words}
    groups = {path.name for path in Path(config_path()).iterdir() if path.is_dir()}
    directory = stored = None
    with suppress(OmegaConfBaseException):  # of an interpolation, which is refused later
        if composed.run_dir and not typed & groups:
            directory = RunDirectory(Path(composed.run_dir))
            stored = directory.config()
    if directory is None or stored is None:
        return composed
    settings = OmegaConf.create(stored_config(stored, directory.path).plain())
    for key in typed | {"run_dir", "dry_run"}:
        OmegaConf.update(settings, key, OmegaConf.select(composed, key), force_add=True)
    return settings


def _of_run(words: Sequence[str]) -> list[str]:
    typed = {word.partition("=")[0].lstrip("+"): word.partition("=")[2] for word in words}
    run = Path(typed.get("model.weights", "").strip("'\""))
    if not (run / "config.yaml").is_file() or "recipe" in typed:
        return []
    from st3.training.run_directory import RunDirectory

    stored, found = RunDirectory(run).config() or {}, []
    for group in {"model", "dataset"} - typed.keys():
        for key, value in stored.get(group, {}).items():
            if key != "weights" and f"{group}.{key}" not in typed:
                found.append(f"++{group}.{key}={_quoted(value)}")
    return sorted(found)


def _quoted(value: object) -> str:
    """For Hydra's grammar of overrides."""
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def in_one_line(error: Exception) -> str:
    """What Hydra's message means in terms of what was typed."""
    from st3.variants import unknown_choice, unknown_setting

    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and choice.startswith("submitit"):
            return f"{group}={choice} is not installed: pip install hydra-submitit-launcher"
        if group.partition("/")[0] == "recipe":  # also in folders, which Hydra takes for groups of their own
            folder = Path(config_path(), "recipe")
            recipes = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
            return unknown_choice("recipe", error.missing_cfg_file.removeprefix("recipe/"), recipes)
        if group == "model":
            return f"model={choice} has no file of its own: sweep over model.name"
        return unknown_choice(group, choice, error.options)
    if match := re.search(r"Could not override '([^']+)'", text):
        from st3.config import setting_names

        return unknown_setting(match[1], setting_names())
    return text
