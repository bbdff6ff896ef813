"""Read every image of a folder and list what is wrong with it, in one go.

Listed are images that are damaged, of odd size or colour mode, or the same, byte for byte, in several splits or
classes; classes that a split lacks; class folders without images. The folder is what dataset.root=DIR would be:
DIR/train with DIR/val or DIR/test, or one folder per class. Nothing is changed.

examples:
  st3 check DIR              the first of each kind, and how many there are
  st3 check DIR --all        all of them, also for a file: st3 check DIR --all > found.txt
  st3 check DIR --workers 16

The exit code is 0 if all is well, 1 if something was found, 3 if there are no images in DIR. Odd colour modes are only
listed: training converts them.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st3.errors import UserError

if TYPE_CHECKING:
    from st3.data.check import Check

SHOWN = 5
"""Findings of a kind that are listed without --all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be typed after `st3 check`."""
    parser.add_argument("root", metavar="DIR", type=Path, help="the folder that holds train/, val/, test/ or classes")
    parser.add_argument("--all", action="store_true", help=f"list everything, not the first {SHOWN} of each kind")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read (default: one for each core)")


def run(options: argparse.Namespace) -> int:
    """The exit code: 0, or 1 when something was found. Raises `UserError`."""
    from tqdm import tqdm

    from st3.data.check import check_folder

    def progress(images: Iterable[Any], total: int) -> Iterable[Any]:
        return tqdm(images, "reading", total, unit=" images", leave=False, disable=None, file=sys.stderr)

    workers = len(os.sched_getaffinity(0)) if options.workers is None else options.workers
    if workers < 0:
        raise UserError(f"--workers {workers} must not be negative")
    check = check_folder(options.root, workers, progress)
    print(describe(options.root, check, None if options.all else SHOWN))
    return 1 if check.found else 0


# What is said of each kind: where something was found, and where nothing was.
WORDS = {
    "damaged": ("cannot be read", "none"),
    "odd size": ("of another size than most, or far from it", "none"),
    "odd mode": ("of another colour mode than most (training converts them)", "none"),
    "duplicate": (
        "in several splits or classes, byte for byte (near-duplicates are not looked for)",
        "none, byte for byte (near-duplicates are not looked for)",
    ),
    "classes": ("with other classes than the rest", "the same in all splits"),
    "empty": ("class folders without images", "none"),
}


def describe(root: Path, check: "Check", most: int | None) -> str:
    """The findings in words, at most `most` lines of a kind (None: all)."""
    splits = [f"{name} {images:,}" for name, images in check.splits.items() if name]
    within = f" ({', '.join(splits)})" if splits else ", no splits"
    lines = [f"{root}: {check.images:,} images{within}, {check.classes:,} classes", ""]
    for kind, found in check.findings.items():
        some, none = WORDS[kind]
        lines.append(f"{kind:<10} {f'{len(found):,} {some}' if found else none}")
        lines += [f"           {line}" for line in found[:most]]
        if most is not None and len(found) > most:
            lines.append(f"           … and {len(found) - most:,} more: --all lists them")
    return "\n".join(lines)
