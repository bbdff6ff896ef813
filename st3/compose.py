"""Hydra, in our words: where the YAML files are, and from overrides to a checked configuration."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from st3.errors import UserError
from st3.settings import shown

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
            check_words(overrides)
            words = spell_out(overrides)
            return load_config(of_stored_run(compose("config", words), words))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(in_one_line(error)) from error


def check_words(words: Sequence[str]) -> None:
    """Raises `UserError`, in our words, for what Hydra's grammar does not take, and for what would have no meaning."""
    sweep = {"-m", "--multirun"} & set(words)
    for word in words:
        if word.startswith("-") and word.partition("=")[0] not in OPTIONS:
            raise UserError(f"{shown(word)} is no option: a setting is typed as SETTING=VALUE, without dashes")
    for before, word in zip(["", *words], words, strict=False):
        flag = before.startswith("-") and before not in ("-m", "--multirun")  # perhaps the word is its value
        if not word.startswith("-") and not (flag and "=" not in word):
            _check_word(word, bool(sweep))


OPTIONS = {
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r", "-m",
    "--multirun", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun", "--info", "-i",
}  # fmt: skip
"""Hydra's."""


def _check_word(word: str, sweep: bool) -> None:
    name = shown(word)
    try:
        if not re.match(r"[+~]{0,2}[^\s=+~.@]", word) or len(word.partition("=")[0]) > LONGEST_NAME:
            raise UserError(f"'{name}' is no override: write SETTING=VALUE")
        override = OverridesParser.create().parse_override(word)
        value = override.value()
    except (HydraException, ValueError, RecursionError) as error:
        raise UserError(f"'{name}': {_grammar(word)}") from error
    if override.is_delete():
        raise UserError(f"{name}: a setting cannot be taken away, give it another value")
    if override.is_sweep_override() and not sweep:
        raise UserError(f"{name} has several values: add -m to train with each of them, or write a list as [a,b]")
    if not sweep and override.key_or_group in groups() and not isinstance(value, str | list | dict):
        raise UserError(f"{name}: choose one of the options of {override.key_or_group}, which st3-train --help lists")


LONGEST_NAME = 200
"""Letters of a setting's name, which Hydra also looks for as a file."""
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def _grammar(word: str) -> str:
    """What is wrong with a word that is no override."""
    _, equals, value = word.partition("=")
    if not equals:
        return "there is no = in it, write SETTING=VALUE"
    wanted, quote, escaped = list[str](), "", False
    for letter in value:
        if escaped or letter == "\\":
            escaped = not escaped
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _CLOSING:
            wanted.append(_CLOSING[letter])
        elif letter in _CLOSING.values() and (not wanted or wanted.pop() != letter):
            return f"the {letter} closes nothing"
    if quote or wanted:
        return f"a {quote or wanted[-1]} is missing at its end"
    return "what follows the = is no value: text with signs such as = : , ( [ in it must be in quotes, \"KEY='…'\""


def groups() -> set[str]:
    """The groups of options: folders of configs/."""
    return {path.name for path in Path(config_path()).iterdir() if path.is_dir()}


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
    directory = stored = None
    with suppress(OmegaConfBaseException):  # of an interpolation, which is refused later
        if isinstance(composed.run_dir, str) and composed.run_dir:
            _check_folder(Path(composed.run_dir))
            if not typed & groups():
                directory = RunDirectory(Path(composed.run_dir))
                stored = directory.config()
    if directory is None or stored is None:
        return composed
    settings = OmegaConf.create(stored_config(stored, directory.path).plain())
    for key in typed | {"run_dir", "dry_run", "dataset.changed"}:  # what was accepted once was that
        OmegaConf.update(settings, key, OmegaConf.select(composed, key), force_add=True)
    return settings


def _check_folder(run_dir: Path) -> None:
    """Raises `UserError` where no run can be: before all else, and in a dry run, too."""
    from st3.training.run_directory import RunDirectory

    try:
        below = next(path for path in (run_dir, *run_dir.parents) if path.exists())
        if not below.is_dir():
            raise UserError(f"run_dir={run_dir}: {below} is a file, choose another folder")
        RunDirectory(run_dir).check()
    except UserError:
        raise
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"run_dir={shown(str(run_dir))} can be no folder ({reason})") from error


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
    return text if len(text) < 400 else f"{text[:400]}…"
