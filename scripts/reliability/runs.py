"""What the scripts of this folder share: small runs of the real command, their ends, and what they leave."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SMALL = (
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=640", "dataset.test_images=41", "dataset.classes=7",
    "batch_size=32", "log_every=5", "precision=fp32", "device=cpu", "dataset.val_images=0",
)  # fmt: skip
"""Of a ResNet-20 that takes a second for 30 steps."""
RESULT = "model.safetensors", "best.pt"
"""Files whose bytes must be those of a run that was never interrupted."""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
TRAIN = (sys.executable, "-m", "st3.train")


def command(words: Sequence[str], processes: int = 1) -> list[str]:
    """Of one process, or of several under torchrun."""
    start = TRAIN if processes == 1 else (*TORCHRUN, "-m", "st3.train")
    return [*start, *words]


@contextmanager
def running(words: Sequence[str], folder: Path, processes: int = 1) -> Iterator[subprocess.Popen]:
    """The run in a process group of its own; what is left of it is killed at the end."""
    with open(folder / "said.txt", "a") as said:
        process = subprocess.Popen(
            command(words, processes), cwd=folder, stdout=said, stderr=said, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        yield process
    finally:
        kill_all(process)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the process and to those that it has started."""
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """Numbers of the processes that a process and its children have started and that are alive."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    found, new = list[int](), [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def wait_for(event: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> bool:
    """Whether `event` has come while the process ran."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if event():
            return True
        time.sleep(0.005)
    return event()


def digests(run: Path, names: Sequence[str] = RESULT) -> dict[str, str]:
    """SHA-256 of the files that are there."""
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names if (run / name).exists()}


def last_words(folder: Path) -> str:
    """The last line that was said."""
    lines = [line for line in (folder / "said.txt").read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""
