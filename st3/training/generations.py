"""The last states of a run that is under way: two generations of them, each whole or not there at all."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from st3.errors import DamagedError
from st3.plain_files import LARGEST_DATA, read_bytes
from st3.training.checkpoints import load_checkpoint, save_checkpoint, tensor_bytes
from st3.training.manifest import Entry, Manifest
from st3.whole_files import PARTIAL, cannot_write, sync_folder, write_text

KEPT = 2
STATE, BEST, METRICS = "state.pt", "best.pt", "metrics.csv"


@dataclass(frozen=True)
class Generation:
    """What a run goes on from."""

    folder: Path
    state: dict
    """See `TrainingState.state_dict`; on the CPU."""
    metrics: str
    """Content of metrics.csv up to then."""

    @property
    def best(self) -> Path | None:
        """The best network up to then."""
        return self.folder / BEST if (self.folder / BEST).exists() else None


class Generations:
    """Numbered folders in `folder`. One is written under another name, and renamed when its manifest is there."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._good: list[int] = []
        """Numbers of those that were written or read by this object, in order."""

    def exist(self) -> bool:
        return bool(self.numbers())

    def numbers(self) -> list[int]:
        """Of the generations that are there, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(int(each.name) for each in self._folder.iterdir() if each.name.isdecimal())

    def newest(self) -> tuple[Generation | None, list[str]]:
        """The newest that is whole, if there is any, and what is the matter with those after it.

        Raises `DamagedError` where there are some, and none is whole.
        """
        damaged: list[str] = []
        for number in reversed(self.numbers()):
            try:
                generation = self._read(number)
            except DamagedError as error:
                damaged.append(str(error))
            else:
                self._good = [number]
                return generation, damaged
        if damaged:
            raise DamagedError(f"{damaged[0]}, and there is no other checkpoint: remove {self._folder} to begin again")
        return None, []

    def damage(self) -> list[str]:
        """What is the matter with each, in words."""
        found = []
        for number in self.numbers():
            try:
                self._read(number)
            except DamagedError as error:
                found.append(str(error))
        return found

    def write(self, state: dict, best: dict | None, metrics: str) -> Path | None:
        """One more, in place of the oldest; `best` None: the best network is still the one of before.

        Returns the file of the best network, if there is one. Raises `DiskError`.
        """
        number = max([*self.numbers(), 0]) + 1
        folder = self._folder / f".{number}{PARTIAL}"
        try:
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)
            self._folder.mkdir(exist_ok=True)  # in a run's folder, which is not made anew where it is gone
            folder.mkdir()
            save_checkpoint(folder / STATE, state)
            write_text(folder / METRICS, metrics)
            carried: dict[str, Entry] = {}
            if best is not None:
                save_checkpoint(folder / BEST, best)
            elif self._good:
                carried = self._carry(self._folder / str(self._good[-1]), folder)
            manifest = Manifest.of(folder, {STATE, METRICS, BEST} - carried.keys())
            manifest.entries.update(carried)
            manifest.write()
            folder.rename(self._folder / str(number))
            sync_folder(self._folder)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise cannot_write(self._folder / str(number), error, tensor_bytes(state)) from error
            raise
        self._good = [*self._good, number][-KEPT:]
        self._drop_others()
        written = self._folder / str(number) / BEST
        return written if written.exists() else None

    def _read(self, number: int) -> Generation:
        folder = self._folder / str(number)
        manifest = Manifest.read(folder)
        if manifest is None or STATE not in manifest.entries or METRICS not in manifest.entries:
            raise DamagedError(f"{folder} has no manifest of its files")
        for name in manifest.entries:
            if trouble := manifest.damage(name):
                raise DamagedError(trouble)
        metrics = read_bytes(folder / METRICS, LARGEST_DATA)
        return Generation(folder, load_checkpoint(folder / STATE), metrics.decode(errors="replace"))

    def _carry(self, old: Path, new: Path) -> dict[str, Entry]:
        """Copy the best network. Its entry stays what it was: damage in the old file shall not become the truth."""
        manifest = Manifest.read(old)
        entry = manifest.entries.get(BEST) if manifest else None
        if entry is None or not (old / BEST).exists():
            return {}
        shutil.copyfile(old / BEST, new / BEST)
        with open(new / BEST, "rb+") as file:
            os.fsync(file.fileno())
        return {BEST: entry}

    def _drop_others(self) -> None:
        for each in self._folder.iterdir():  # what else lies there is not ours
            number = each.name.removeprefix(".").removesuffix(PARTIAL)
            if number.isdecimal() and not (number == each.name and int(number) in self._good):
                shutil.rmtree(each, ignore_errors=True)
