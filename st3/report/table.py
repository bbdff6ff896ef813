"""A table of results: which runs it is made of, and what was published for them. A YAML file defines it:

title: …
notes: [one sentence or more on what is trained, counted and pruned, …]
overrides: [what every run says to st3-train, …]
sparsities: [0.8, 0.9]          for the series without points of their own
accuracy: validation            what ranks the rows: of held-out training images; without this line of the test images
reference: ST-3                 the series that others are compared with in the plot of differences; else the best row
series:
  - label: ST-3                 the name of its rows, and of its line in the plots
    method: st3                 method=st3; without `run: false` every series names one
    overrides: [what this series says besides, or instead]
    source: arXiv:2212.01076    where its published figures are from
    note: what a reader must know about this series
    run: false                  nothing here trains it: only its published figures are shown
    points:                     its rows: sparsity, and what was published at it, if anything
      0.8: {top1: 76.95, macs_millions: 1215}
      0.9: {}
"""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3.errors import UserError
from st3.plain_files import read_yaml

MOST_ROWS = 1000
"""Of a table; each is at least one training."""


@dataclass(frozen=True)
class Published:
    """What a paper says of a row."""

    top1: float
    """Percent."""
    macs_millions: float | None
    source: str


@dataclass(frozen=True)
class Row:
    """One network: a method at a sparsity."""

    label: str
    method: str | None
    """Name in `st3.sparsify.METHODS`; None where nothing here trains it."""
    sparsity: float
    overrides: tuple[str, ...]
    """What st3-train is told, besides the seed and the run directory."""
    published: Published | None
    settings: tuple[tuple[str, str], ...] = ()
    """Where rows are made from runs that were found: name and value of each setting besides method and sparsity that
    tells them apart, columns of their own."""

    @property
    def slug(self) -> str:
        """Its name in file names."""
        plain = unicodedata.normalize("NFKD", self.label.replace("σ", "-sigma")).lower()
        return f"{re.sub(r'[^a-z0-9]+', '-', plain).strip('-')}-{100 * self.sparsity:g}"

    @property
    def name(self) -> str:
        """Its name in text."""
        return f"{self.label}, {100 * self.sparsity:g} %" if self.sparsity else self.label


@dataclass(frozen=True)
class Series:
    """One method over the sparsities: the rows that a line connects in the plots."""

    label: str
    note: str | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """Some series, and what is to be said of all of them."""

    name: str
    title: str
    notes: tuple[str, ...]
    series: tuple[Series, ...]
    accuracy: str = "test"
    """Of which images: test or validation."""
    reference: str | None = None
    """Label of the series from which differences are drawn; None: the best row at each sparsity."""

    @property
    def rows(self) -> list[Row]:
        return [row for series in self.series for row in series.rows]


def load_table(path: Path) -> Table:
    """Read a definition.

    Raises `UserError`, naming file and entry, for what is not one or says what a table may not say, and as `read_yaml`
    does.
    """
    what = str(path)
    content = _settings(
        what,
        read_yaml(path),
        needed={"title", "overrides", "series"},
        allowed={"notes", "sparsities", "accuracy", "reference"},
    )
    common = _overrides(what, content)
    sparsities = _list(f"{what}: sparsities", content.get("sparsities", []))
    series: list[Series] = []
    for number, entry in enumerate(_list(f"{what}: series", content["series"]), start=1):
        series.append(_series(f"{what}, series {number}", entry, common, sparsities))
        if sum(len(each.rows) for each in series) > MOST_ROWS:
            raise UserError(f"{what} has more than {MOST_ROWS} rows: write several tables")
    notes = tuple(_text(f"{what}: a note", note) for note in _list(f"{what}: notes", content.get("notes", [])))
    accuracy = content.get("accuracy", "test")
    if accuracy not in ("test", "validation"):
        raise UserError(f"{what}: accuracy {accuracy} is neither test nor validation")
    title = _text(f"{what}: title", content["title"])
    table = Table(path.stem, title, notes, tuple(series), accuracy, content.get("reference"))
    if table.reference not in (None, *(each.label for each in series)):
        raise UserError(f"{what}: reference {table.reference} is the label of no series")
    slugs = [row.slug for row in table.rows]
    if twice := sorted({slug for slug in slugs if slugs.count(slug) > 1}):
        raise UserError(f"{what}: two rows would share the name {twice[0]}: change a label")
    return table


def _series(what: str, given: object, common: list[str], sparsities: list[Any]) -> Series:
    known = {"method", "overrides", "source", "note", "run", "points"}
    entry = _settings(what, given, needed={"label"}, allowed=known)
    for key in ("label", "method", "source", "note"):
        if key in entry:
            entry[key] = _text(f"{what}: {key}", entry[key])
    what = f"{what} ({entry['label']})"
    if entry.get("run", True) != ("method" in entry):
        raise UserError(f"{what}: give a method, or run: false where nothing here trains it")
    points = entry.get("points") or {each: {} for each in map(_as_key, sparsities)}
    if not points:
        raise UserError(f"{what} has no rows: give points, or sparsities for the whole table")
    if not isinstance(points, dict) or len(points) > MOST_ROWS:
        raise UserError(f"{what}: points must be at most {MOST_ROWS} sparsities, and what was published at each")
    rows = [_row(what, entry, common, sparsity, point) for sparsity, point in points.items()]
    return Series(entry["label"], entry.get("note"), tuple(sorted(rows, key=lambda row: row.sparsity)))


def _row(what: str, entry: dict[str, Any], common: list[str], sparsity: object, given: object) -> Row:
    if not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise UserError(f"{what}: the sparsity {sparsity} of a point lies outside [0, 1)")
    what = f"{what}, {sparsity:g}"
    point = _settings(what, given, needed=set(), allowed={"top1", "macs_millions", "overrides", "run"})
    published = None
    for key, most in (("top1", 100), ("macs_millions", 1e12)):
        figure = point.get(key, 0)
        if type(figure) not in (int, float) or not 0 <= figure <= most:
            raise UserError(f"{what}: {key} {figure} must be a number from 0 to {most:g}")
    if "top1" in point:
        if "source" not in entry:
            raise UserError(f"{what}: published figures need a source")
        published = Published(point["top1"], point.get("macs_millions"), entry["source"])
    elif "macs_millions" in point:
        raise UserError(f"{what}: macs_millions without top1")
    if "method" not in entry or not point.get("run", True):
        return Row(entry["label"], None, float(sparsity), (), published)
    own = [each for node in (entry, point) for each in _overrides(what, node)]
    overrides = (*common, f"method={entry['method']}", *own, f"sparsity={sparsity:g}")
    said = {override.partition("=")[0]: override for override in overrides}  # the last word on a setting
    return Row(entry["label"], entry["method"], float(sparsity), tuple(said.values()), published)


def _settings(what: str, given: object, *, needed: set[str], allowed: set[str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UserError(f"{what} is not a list of settings")
    if missing := sorted(needed - given.keys()):
        raise UserError(f"{what} lacks {missing[0]}")
    if unknown := sorted(given.keys() - needed - allowed, key=str):
        raise UserError(f"{what}: {unknown[0]} is not known, write {', '.join(sorted(needed | allowed))}")
    return given


_OF_TABLES = {"seed": "--seeds", "run_dir": "--out", "dry_run": "--dry-run"}
"""Settings that are said to the command, and how."""


def check_override(what: str, override: str) -> None:
    """Raises `UserError` for what no override of a table may say: where its runs are written and which they are, which
    is the command's to say, and what Hydra does besides composing settings."""
    name = override.partition("=")[0]
    if override.startswith("-") or re.search(r"\bhydra\b", name):
        raise UserError(f"{what}: {override} is no setting of a run, and not for a table")
    if instead := _OF_TABLES.get(name.lstrip("+~")):
        raise UserError(f"{what}: {override}: write {instead}")


def _overrides(what: str, node: dict[str, Any]) -> list[str]:
    found = [_text(f"{what}: an override", each) for each in _list(f"{what}: overrides", node.get("overrides", []))]
    for override in found:
        check_override(what, override)
    return found


def _text(what: str, given: object) -> str:
    """In one line."""
    if not isinstance(given, str):
        raise UserError(f"{what} must be text, not {str(given)[:60]}: put it in quotes")
    return " ".join(given.split())


def _as_key(given: object) -> object:
    """What cannot be one stays as text, to be refused as a sparsity."""
    return given if isinstance(given, int | float) else str(given)


def _list(what: str, given: object) -> list[Any]:
    if not isinstance(given, list):
        raise UserError(f"{what} must be a list")
    return given
