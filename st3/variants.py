"""The variants by group and name: from a YAML node to the dataclass of its settings, and what is said of a wrong key.

python -m st3.variants      writes configs/GROUP/OPTION.yaml of every variant from its dataclass, which is the source
"""

import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from st3.durations import Duration
from st3.errors import UserError
from st3.models.registry import OWN
from st3.optim import LR_SCHEDULES, OPTIMIZERS
from st3.settings import Settings, converted, hints, shown
from st3.sparsify import METHODS, RAW_STEPS, SCHEDULES

VARIANTS: dict[str, Mapping[str, type[Settings]]] = {
    "method": METHODS,
    "raw_step": RAW_STEPS,
    "schedule": SCHEDULES,
    "optimizer": OPTIMIZERS,
    "lr_schedule": LR_SCHEDULES,
}


def build(group: str, node: Mapping[str, Any]) -> Any:
    """The settings that a group's node means: `name` says which variant, the other keys its fields.

    Raises `UserError` for a name or a key that does not exist, and for values of the wrong type.
    """
    name = str(node.get("name"))
    if name not in VARIANTS[group]:
        raise UserError(unknown_choice(f"{group}.name", name, list(VARIANTS[group])))
    cls = VARIANTS[group][name]
    given = {key: value for key, value in node.items() if key != "name"}
    for key in given:
        if key not in hints(cls):
            raise UserError(unknown_setting(f"{group}.{key}"))
    return cls(**typed(hints(cls), given, group))


def typed(types: Mapping[str, Any], node: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """The values of a node as `types` wants them. Raises `UserError`, naming the setting, as `converted` does."""
    prefix = f"{group}." if group else ""
    return {key: converted(f"{prefix}{key}", value, types[key]) for key, value in node.items()}


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as a node, as YAML has it."""
    return {"name": settings.name, **{field.name: _plain(getattr(settings, field.name)) for field in fields(settings)}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Duration) else value


# What is said about a wrong key or choice -----------------------------------------------------------------------------


def unknown_setting(name: str, others: Sequence[str] = ()) -> str:
    """The complaint about a setting that does not exist where it was given. `others` exist beside the variants'."""
    group, _, key = name.rpartition(".")
    owners = _owners().get(name)
    if owners:
        choices = " or ".join(owners) if len(owners) < 3 else f"{', '.join(owners[:-1])} or {owners[-1]}"
        return f"{name} is a setting of {group}={choices}, not of the {group} that is chosen"
    known = [*_owners(), *others]
    same_key = [each for each in known if each.rpartition(".")[2] == key]
    close = same_key or difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "st3-train --cfg job prints them all"
    return f"{name} is not a setting: {hint}"


def unknown_choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """The complaint about a value that is not among those allowed."""
    close = difflib.get_close_matches(value[:100], allowed, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"choose among {', '.join(allowed)}"
    return f"{name}={shown(value)} does not exist: {hint}"


@cache
def _owners() -> dict[str, list[str]]:
    """Dotted name of each variant's setting, and what may be typed to choose one that has it."""
    owners: dict[str, list[str]] = {}
    for group, variants in VARIANTS.items():
        for cls in variants.values():
            for key in hints(cls):
                owners.setdefault(f"{group}.{key}", []).append(cls.option or cls.name)
    for name, entry in OWN.items():
        for option in entry.options:
            owners.setdefault(f"model.{option}", []).append(name)
    return owners


# The YAML files -------------------------------------------------------------------------------------------------------


def to_yaml(cls: type[Settings]) -> str:
    """The file of a variant: what it is, its schedule where it has one, and each setting with its default."""
    documents = _field_docs(cls)
    lines = [f"# {line}" for line in textwrap.wrap(_first_paragraph(cls.__doc__), 118)]
    if follows := getattr(cls, "follows", None):
        lines += ["defaults:", f"  - override /schedule@_global_.schedule: {follows}", ""]
    for key, value in plain(cls()).items():
        text = OmegaConf.to_yaml({key: value}).strip() if not isinstance(value, list) else f"{key}: [{_listed(value)}]"
        lines.append(f"{text}  # {documents[key]}" if key in documents and key != "name" else text)
    return "\n".join(lines) + "\n"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _first_paragraph(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())


def _field_docs(cls: type) -> dict[str, str]:
    """The strings below the fields of a dataclass and of its bases."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and documented:
                found[field.target.id] = re.sub(r"\s+", " ", str(below.value.value))  # type: ignore[attr-defined]
    return found


def main() -> None:
    """Write the files into configs/ of the checkout."""
    configs = Path(__file__).resolve().parents[1] / "configs"
    for group, variants in VARIANTS.items():
        for cls in variants.values():
            (configs / group / f"{cls.option or cls.name}.yaml").write_text(to_yaml(cls), encoding="utf-8")


if __name__ == "__main__":
    main()
