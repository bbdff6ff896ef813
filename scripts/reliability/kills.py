"""A run that is killed again and again, and continued each time with the same command: are its bytes those of a run
that was never interrupted?

    python -m scripts.reliability.kills OUT --kills 200                  SIGKILL at any moment, one process
    python -m scripts.reliability.kills OUT --kills 30 --processes 2     two gloo processes under torchrun
    python -m scripts.reliability.kills OUT --kills 20 --signals         SIGTERM, SIGHUP, SIGUSR1, SIGINT in turn

Half of the moments are drawn (--seed) between 0 and --longest seconds after the start of the process: so some kills
meet the import of PyTorch, the making of the folder, the reading of a checkpoint. The others come up to --working
seconds after the run has said what it does: in steps, evaluations, writes. A run that ends before it is killed begins a
new one. Prints a line for each run, and a table.
"""

import argparse
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from scripts.reliability.runs import SMALL, digests, kill_all, last_words, running, wait_for

SIGNALS = signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--signals", action="store_true")
    parser.add_argument("--longest", type=float, default=12.0)
    parser.add_argument("--working", type=float, default=3.0)
    parser.add_argument("--epochs", type=int, default=8, help="of 20 steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", nargs="*", help="overrides of the run")
    options = parser.parse_intermixed_args()
    words = [*SMALL, f"epochs={options.epochs}", "checkpoint_every=10st", *options.words, "run_dir=run"]
    draw, ends, runs, kills, wrong, slow = random.Random(options.seed), Counter[str](), 0, 0, 0, 0.0

    reference = _whole(options.out / "whole", words, options.processes)
    while kills < options.kills:
        folder = options.out / f"killed-{runs}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        runs += 1
        while True:
            with running(words, folder, options.processes) as process:
                try:
                    _wait(process, folder, draw, options, forever=kills == options.kills)
                except subprocess.TimeoutExpired:  # it is still at work
                    kills += 1
                    number = SIGNALS[kills % len(SIGNALS)] if options.signals else signal.SIGKILL
                    begin = time.monotonic()
                    if options.signals:
                        process.send_signal(number)
                        code = process.wait(60)
                        slow = max(slow, time.monotonic() - begin)
                        ends[f"{number.name}: exit {code}"] += 1
                    else:
                        kill_all(process)
                        ends[number.name] += 1
                    continue
            ends[f"came to its end: exit {process.returncode}"] += 1
            break
        same = process.returncode == 0 and digests(folder / "run") == reference
        wrong += not same
        print(
            f"run {runs}: {kills} kills so far, {'same bytes' if same else 'OTHER BYTES: ' + last_words(folder)}",
            flush=True,
        )
    print("\n| processes | kills | runs | ended with other bytes | ends |\n|---|---|---|---|---|")
    said = ", ".join(f"{count} × {end}" for end, count in sorted(ends.items()))
    print(f"| {options.processes} | {kills} | {runs} | {wrong} | {said} |")
    if options.signals:
        print(f"\nslowest end after a signal: {slow:.1f} s")


def _wait(process: subprocess.Popen, folder: Path, draw: random.Random, options: argparse.Namespace, forever: bool):
    """Until it is to be killed. Raises `subprocess.TimeoutExpired` then; returns where the run has ended before."""
    if forever:
        process.wait()
    elif draw.random() < 0.5:
        process.wait(draw.uniform(0, options.longest))
    else:
        before = (folder / "said.txt").stat().st_size
        wait_for(lambda: b"\nseed " in (folder / "said.txt").read_bytes()[before:], process)
        process.wait(draw.uniform(0, options.working))


def _whole(folder: Path, words: list[str], processes: int) -> dict[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begin = time.monotonic()
    with running(words, folder, processes) as process:
        process.wait()
    found = digests(folder / "run")
    print(f"never interrupted: {time.monotonic() - begin:.0f} s, {len(found)} files", flush=True)
    return found


if __name__ == "__main__":
    main()
