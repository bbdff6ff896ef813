"""What a folder's files must be: their sizes and SHA-256, in a file that is written after all of them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from st3.errors import DamagedError, UserError
from st3.plain_files import read_json
from st3.whole_files import save_json

NAME = "manifest.json"
_LARGEST = 10**6
"""Bytes of a manifest that is read."""


@dataclass(frozen=True)
class Entry:
    """What one file must be."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Entry":
        with open(path, "rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


class Manifest:
    """The entries of the files in `folder`, by name."""

    def __init__(self, folder: Path, entries: Mapping[str, Entry]):
        self._folder, self.entries = folder, dict(entries)

    @classmethod
    def of(cls, folder: Path, names: Iterable[str]) -> "Manifest":
        """Of those of the files `names` that are there."""
        return cls(folder, {name: Entry.of(folder / name) for name in names if (folder / name).is_file()})

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """None where there is none. Raises `DamagedError`."""
        path = folder / NAME
        if not path.exists():
            return None
        try:
            files = (content := read_json(path, _LARGEST))["files"]
            if content["sha256"] != _digest(files):
                raise ValueError("its own SHA-256 is another")
            if any(Path(name).name != name for name in files):
                raise ValueError("it names files of other folders")
            return cls(folder, {name: Entry(int(each["bytes"]), str(each["sha256"])) for name, each in files.items()})
        except UserError as error:  # which says which file
            raise DamagedError(str(error)) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(f"{path} is damaged ({type(error).__name__}: {error})") from error

    def write(self) -> None:
        files = {name: {"bytes": each.bytes, "sha256": each.sha256} for name, each in self.entries.items()}
        save_json(self.path, {"files": files, "sha256": _digest(files)})

    @property
    def path(self) -> Path:
        return self._folder / NAME

    def damage(self, name: str) -> str:
        """What is the matter with a file, in words; nothing: it is what it must be, or it is not listed."""
        path, entry = self._folder / name, self.entries.get(name)
        if entry is None:
            return ""
        try:
            if path.exists() and not path.is_file():
                return f"{path} is no file"
            if path.stat().st_size != entry.bytes:
                return f"{path} has {path.stat().st_size:,} bytes, not {entry.bytes:,}"
            return "" if Entry.of(path) == entry else f"{path} is damaged: its SHA-256 is not that of manifest.json"
        except OSError as error:
            return f"{path} is gone" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"


def _digest(files: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
