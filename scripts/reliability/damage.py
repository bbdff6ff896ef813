"""Files of a run that are damaged: are they named, and is anything wrong ever loaded?

    python -m scripts.reliability.damage OUT --flips 2000

Trains a small run twice, to its end and up to a checkpoint in the middle. Then damages one file at a time: a bit at a
random place, a page of zeros, cut in the middle, empty, gone, "{}" instead. Of checkpoints each file of the newest is
damaged and the state is read as a continued run reads it; of the complete run each file that a reader needs, by every
reader: continue, verify, eval, export, report, weights to start from. Prints a table of how many were found.
"""

import argparse
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from scripts.reliability.runs import SMALL, running
from st3.cli import main as st3
from st3.errors import DamagedError
from st3.training.generations import Generations

FAULTS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "bit": lambda content, draw: _flipped(content, draw),
    "page": lambda content, draw: _zeroed(content, draw),
    "cut": lambda content, draw: content[: len(content) // 2],
    "empty": lambda content, draw: b"",
    "{}": lambda content, draw: b"{}",
    "gone": lambda content, draw: None,
}
READERS = {
    "st3 verify": ("verify", (".json", ".csv", ".pt", ".safetensors", ".yaml", ".png")),
    "st3 eval": ("eval", ("model.safetensors", "config.yaml", "summary.json")),
    "st3 export": ("export", ("model.safetensors",)),
    "st3 report": ("report", ("config.yaml", "summary.json", "metrics.csv", "layers.csv")),
}
"""Name → verb, and the ends of the names of the files that it needs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, folder = random.Random(options.seed), options.out / "damage"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with running([*SMALL, "epochs=3", "run_dir=run"], folder) as process:
        process.wait()
    print("| what was damaged | how | n | named, and not used | used |\n|---|---|---|---|---|", flush=True)
    _checkpoints(folder / "run", draw, options.flips)
    _complete(folder, draw)


def _checkpoints(run: Path, draw: random.Random, flips: int) -> None:
    kept = Generations(run / "checkpoints")
    newest = run / "checkpoints" / str(kept.numbers()[-1])
    before = Generations(run / "checkpoints").newest()[0]
    assert before
    for fault, damage in FAULTS.items():
        found: Counter[str] = Counter()
        for _ in range(flips if fault == "bit" else 25):
            for path in [draw.choice(sorted(newest.iterdir()))] if fault == "bit" else sorted(newest.iterdir()):
                with damaged(path, damage, draw):
                    generation, told = Generations(run / "checkpoints").newest()
                assert generation
                found["named" if told and generation.state["step"] < before.state["step"] else "used"] += 1
        _row("a checkpoint's file", fault, found)


def _complete(folder: Path, draw: random.Random) -> None:
    run = folder / "run"
    for reader, (verb, needed) in READERS.items():
        for fault, damage in FAULTS.items():
            found: Counter[str] = Counter()
            for path in sorted(each for each in run.iterdir() if each.is_file() and each.name.endswith(needed)):
                out = [] if verb == "verify" else ["--out", str(folder / verb)]
                with damaged(path, damage, draw):
                    code, said = _said(verb, str(run), *out)
                named = path.name in said and code == DamagedError.exit_code
                if path.name == "manifest.json" and fault == "gone":
                    named = "not complete" in said  # it ends again from its checkpoint
                found["named" if named else "used"] += 1
            _row(f"a file that {reader} reads", fault, found)


def _said(*words: str) -> tuple[int, str]:
    text = StringIO()
    with redirect_stdout(text), redirect_stderr(text):
        code = st3(words)
    return code, text.getvalue()


def _row(what: str, fault: str, found: Counter[str]) -> None:
    print(f"| {what} | {fault} | {found.total()} | {found['named']} | {found['used']} |", flush=True)


class damaged:  # noqa: N801 (used as a function)
    """A context in which a file is damaged."""

    def __init__(self, path: Path, damage: Callable[[bytes, random.Random], bytes | None], draw: random.Random):
        self._path, self._content = path, path.read_bytes()
        self._other = damage(self._content, draw)

    def __enter__(self) -> None:
        self._path.unlink()
        if self._other is not None:
            self._path.write_bytes(self._other)

    def __exit__(self, *exception: object) -> None:
        self._path.write_bytes(self._content)


def _flipped(content: bytes, draw: random.Random) -> bytes:
    place, other = draw.randrange(8 * len(content)), bytearray(content)
    other[place // 8] ^= 1 << place % 8
    return bytes(other)


def _zeroed(content: bytes, draw: random.Random) -> bytes:
    """A page of zeros; of what is smaller, all of it."""
    start = draw.randrange(max(1, len(content) - 4096))
    return content[:start] + bytes(min(4096, len(content) - start)) + content[start + 4096 :]


if __name__ == "__main__":
    main()
