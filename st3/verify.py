"""Check that the files of runs are what was written: st3 verify RUN …

Reads every file that a complete run's manifest.json lists, and every checkpoint, and compares sizes and SHA-256. Whole
folders of runs may be given. Runs of earlier versions have no manifest; of them only checkpoints are read.

examples:
  st3 verify outputs/first
  st3 verify outputs            all runs in it
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory, or a folder with some in it")


def run(options: argparse.Namespace) -> int:
    """A line for each run. 0, or `DamagedError`'s exit code where one is damaged."""
    from st3.errors import DamagedError
    from st3.report.found import run_paths
    from st3.training.run_directory import RunDirectory

    damaged = 0
    for path in run_paths(options.runs):
        directory = RunDirectory(path)
        found = directory.damage()
        damaged += bool(found)
        print(f"{path}: {'; '.join(found) or directory.listed()}", flush=True)
    return DamagedError.exit_code if damaged else 0
