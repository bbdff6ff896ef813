"""Say what pictures show: the most probable classes of each, from a finished run's network.

A folder is searched for image files, in it and below. Pictures are prepared as the evaluation of the run did it. What
cannot be read is named and left out; the exit code is then 1.

examples:
  st3 predict RUN cat.jpg dog.png            the five most probable classes of each
  st3 predict RUN DIR --top 1                of all images in DIR
  st3 predict RUN DIR --csv found.csv        also as a table: a row for each picture and class
  st3 predict FILE.safetensors DIR --json found.json --device cpu
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from st3.errors import UserError
from st3.settings import printable, shown

if TYPE_CHECKING:
    from st3.deploy.prediction import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be typed after `st3 predict`."""
    parser.add_argument("network", metavar="RUN", type=Path, help="the folder of a finished run, or model.safetensors")
    parser.add_argument("pictures", metavar="FILE", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes of each picture (default: 5)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write file, rank, class, probability")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda or cuda:N")


def run(options: argparse.Namespace) -> int:
    """The exit code: 0, or 1 where a picture could not be read. Raises `UserError`."""
    if options.top < 1:
        raise UserError(f"--top {options.top} must be at least 1")
    from st3.deploy.network import choose_machine, find_network, load_trained
    from st3.deploy.prediction import find_pictures, predict, write_csv, write_json
    from st3.training.run_directory import RunDirectory

    path, pictures = find_network(options.network), find_pictures(options.pictures)
    machine, note = choose_machine(RunDirectory(path.parent), options.device, None)
    if note:
        print(f"computing in {machine.precision}{note}", file=sys.stderr)
    predictions, unreadable = predict(load_trained(path, machine.device), machine, pictures, options.top)
    if predictions:
        print(describe(predictions))
    if options.csv:
        write_csv(options.csv, predictions)
    if options.json:
        write_json(options.json, predictions)
    for error in unreadable:
        print(error, file=sys.stderr)
    return 1 if unreadable else 0


def describe(predictions: Sequence["Prediction"]) -> str:
    """A line for each picture, its classes in columns."""
    files = [printable(each.file) for each in predictions]
    first = max(map(len, files))
    ranks = zip(*(each.classes for each in predictions), strict=True)
    widths = [max(len(shown(label)) for label, _ in rank) for rank in ranks]
    return "\n".join(
        "  ".join(
            [file.ljust(first)]
            + [
                f"{shown(label):<{width}} {100 * p:5.1f} %"
                for (label, p), width in zip(each.classes, widths, strict=True)
            ]
        )
        for file, each in zip(files, predictions, strict=True)
    )
