"""Disks that are full, read-only or gone, in the middle of a run. Needs root, for a small file system in memory.

    python -m scripts.reliability.disk OUT

Each case: the run begins, the fault is made, the run ends; what it says is counted (one line and exit code 6); then the
fault is mended and the same command must come to the bytes of a run that met no fault. Prints a table.
"""

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.reliability.runs import SMALL, command, digests, running, wait_for

WORDS = [*SMALL, "epochs=6", "log_every=2", "checkpoint_every=7st"]


@dataclass(frozen=True)
class Case:
    """A fault, made when `after` checkpoints are there; -1: before the run."""

    name: str
    after: int
    size: str
    fault: Callable[[Path], object]
    mend: Callable[[Path], object]


def fill(disk: Path) -> None:
    """To the last byte, as another program may."""
    with open(disk / "others", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass


def remount(options: str) -> Callable[[Path], object]:
    return lambda disk: subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def nothing(disk: Path) -> None: ...


GROW = remount("size=64m")
CASES = [
    *(Case(f"only {size} of room", 0, size, nothing, GROW) for size in ("4k", "16k", "64k", "1m", "3m", "5m", "8m")),
    *(
        Case(f"filled by others after {after} checkpoints", after, "64m", fill, lambda d: (d / "others").unlink())
        for after in (0, 1, 2, 4, 6)
    ),
    Case("read-only", -1, "64m", remount("ro"), remount("rw")),
    *(
        Case(f"folder gone after {after} checkpoints", after, "64m", lambda d: shutil.rmtree(d / "run"), nothing)
        for after in (1, 3)
    ),
    Case("name of 300 bytes", 0, "64m", nothing, nothing),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    out = options.out.resolve() / "disk"
    shutil.rmtree(out, ignore_errors=True)
    (out / "whole").mkdir(parents=True)
    with running([*WORDS, "run_dir=run"], out / "whole") as process:
        process.wait()
    expected = digests(out / "whole" / "run")
    print("| fault | exit | says | partial files left | after mending |\n|---|---|---|---|---|", flush=True)
    for number, case in enumerate(each for each in CASES if options.only in each.name):
        _try(case, out / str(number), expected)


def _try(case: Case, folder: Path, expected: dict[str, str]) -> None:
    disk = folder / "disk"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={case.size}", "tmpfs", disk], check=True)
    try:
        run = disk / ("n" * 300 if "name" in case.name else "run")
        words = [*WORDS, f"run_dir={run}"]
        if case.after < 0:
            case.fault(disk)
        with running(words, folder) as process:
            if case.fault is not nothing and case.after >= 0:
                wait_for(lambda: _checkpoints(run) >= case.after and (run / "metrics.csv").exists(), process)
                case.fault(disk)
            process.wait(180)
        said = [line for line in (folder / "said.txt").read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in said if "error:" in line or line.startswith(("Traceback", "Exception"))]
        one = len(errors) == 1 and errors[0].startswith("st3-train: error:")
        left = [str(path.relative_to(disk)) for path in disk.rglob("*.partial")]
        case.mend(disk)
        again = ""
        if "name" not in case.name:
            answer = subprocess.run(
                command(words), cwd=folder, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            again = "same bytes" if answer.returncode == 0 and digests(run) == expected else f"exit {answer.returncode}"
        says = "one line" if one else f"{len(errors)} lines: {errors[-1] if errors else ''}"
        print(f"| {case.name} | {process.returncode} | {says} | {', '.join(left) or 'none'} | {again} |", flush=True)
    finally:
        subprocess.run(["umount", disk], check=False)


def _checkpoints(run: Path) -> int:
    """The number of the newest."""
    return max([int(path.name) for path in (run / "checkpoints").glob("[0-9]*")], default=0)


if __name__ == "__main__":
    main()
