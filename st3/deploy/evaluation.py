"""A network's accuracy on one split, class by class."""

import itertools
import json
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from st3.config import stored_config
from st3.data import Images, build_folder, build_split
from st3.data.folders import evaluation_folder
from st3.deploy.network import Trained
from st3.errors import UserError
from st3.plain_files import csv_text, read_json
from st3.training.loop import evaluate
from st3.training.machine import Machine
from st3.whole_files import write_text

MOST_CLASSES = 5000
"""Of a confusion matrix that is written: 75 MB."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was counted. Accuracies are percent, of all images."""

    split: str
    """test, val, train; or all, of a tree that has no splits."""
    data: str
    """The data set of the run by its name or folder, or another folder."""
    images: int
    top1: float
    top5: float
    classes: tuple[str, ...]
    class_images: list[int]
    """How many images are of each class."""
    class_top1: list[int]
    """How many of these are recognised."""
    class_top5: list[int]
    """And how many are among the five most probable classes."""
    confusion: list[list[int]]
    """Images of the class of the row that were taken for the class of the column."""
    precision: str
    device: str
    warnings: list[str]

    def hardest(self) -> list[tuple[str, float]]:
        """Classes that have images, with their accuracy in percent, the lowest first."""
        counts = zip(self.classes, self.class_top1, self.class_images, strict=True)
        return sorted(((label, 100 * right / of) for label, right, of in counts if of), key=lambda each: each[1])

    def confused(self) -> list[tuple[str, str, int, int]]:
        """(class, what it was taken for, how often, images of the class), the most frequent first; at least once."""
        found = [
            (self.classes[true], self.classes[taken_for], count, self.class_images[true])
            for true, row in enumerate(self.confusion)
            for taken_for, count in enumerate(row)
            if count and taken_for != true
        ]
        return sorted(found, key=lambda each: -each[2])

    def missing(self) -> list[str]:
        """Classes without an image."""
        return [label for label, images in zip(self.classes, self.class_images, strict=True) if not images]

    def write_json(self, path: Path) -> None:
        """A line for each field: a confusion matrix with a line for each number could not be looked at. One of more
        than `MOST_CLASSES` is left out, null."""
        content = asdict(self) | ({"confusion": None} if len(self.classes) > MOST_CLASSES else {})
        lines = (f"  {json.dumps(key)}: {json.dumps(each, ensure_ascii=False)}" for key, each in content.items())
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    def write_csv(self, path: Path) -> None:
        """A row for each class: images, how many are recognised, how often others were taken for it; percentages."""
        predicted = [sum(column) for column in zip(*self.confusion, strict=True)]
        counts = zip(self.classes, self.class_images, self.class_top1, self.class_top5, predicted, strict=True)
        rows = [
            {
                "class": label, "images": images, "top1": top1, "top5": top5, "accuracy": _percent(top1, images),
                "predicted": taken, "precision": _percent(top1, taken),
            }
            for label, images, top1, top5, taken in counts
        ]  # fmt: skip
        write_text(path, csv_text(list(rows[0]), rows))


def evaluate_run(trained: Trained, machine: Machine, split: str, data: Path | None = None) -> Evaluation:
    """Evaluate on `split` of the run's own images, or of those in the folder `data`. Shows a progress bar.

    Raises:
        UserError: no such split, images that are no longer there or cannot be read, classes that the run does not know.
    """
    directory, card = trained.directory, trained.card
    stored = directory.config()
    assert stored is not None
    config = stored_config(stored, directory.path)
    dataset = config.dataset
    if machine.device.type != "cuda":
        dataset = replace(dataset, decode="cpu")
    if data is not None:
        folder = evaluation_folder(data, split)
        images = build_folder(dataset, folder, card.classes, machine.device)
        split, source = ("all" if folder == data else split), str(data.resolve())
    else:
        source = dataset.root or dataset.name
        if dataset.root is not None and not Path(dataset.root).exists():
            raise UserError(f"{source}, where the images of {directory.path} were, is not there: give --data DIR")
        images = build_split(dataset, split, seed=config.seed, device=machine.device)
        if images.classes != card.classes:
            raise UserError(f"{source} has other classes now than the network of {directory.path}: give --data DIR")
    return count(trained, machine, images, split, source)


def count(trained: Trained, machine: Machine, images: Images, split: str, source: str) -> Evaluation:
    """Evaluate on `images`; `split` and `source` say what they are."""
    counts = _Counts(len(images.classes), machine.device)
    batches = tqdm(
        images.loader.epoch(0), "evaluating", len(images.loader), unit=" batches", leave=False, disable=None,
        file=sys.stderr,
    )  # fmt: skip
    scores = evaluate(trained.model, batches, machine, counts.observe)
    class_images = counts.confusion.sum(1).tolist()
    return Evaluation(
        split=split,
        data=source,
        images=sum(class_images),
        top1=scores["top1"],
        top5=scores["top5"],
        classes=images.classes,
        class_images=class_images,
        class_top1=counts.confusion.diag().tolist(),
        class_top5=counts.among_five.tolist(),
        confusion=counts.confusion.tolist(),
        precision=machine.precision,
        device=str(machine.device),
        warnings=images.warnings(),
    )


class _Counts:
    """Sums up on the device what `evaluate` shows of each batch."""

    def __init__(self, classes: int, device: torch.device):
        self.classes = classes
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        self.among_five = torch.zeros(classes, dtype=torch.int64, device=device)

    def observe(self, best: Tensor, labels: Tensor) -> None:
        """See `evaluate`."""
        pairs = torch.bincount(labels * self.classes + best[:, 0], minlength=self.classes**2)
        self.confusion += pairs.view(self.classes, self.classes)
        found = (best == labels[:, None]).any(1)
        self.among_five += torch.bincount(labels, found, self.classes).long()


def free_name(folder: Path, split: str, data: Path | None) -> str:
    """What the files in `folder` are called: SPLIT, or SPLIT-NAME for the images in the folder `data`.

    SPLIT-NAME-2 and so on where that is taken by another folder of the same name.
    """
    if data is None:
        return split
    place = data.resolve()
    first = name = f"{split}-{re.sub('[^0-9A-Za-z_.-]+', '_', place.name)}"
    for number in itertools.count(2):
        path = folder / f"{name}.json"
        if not path.exists() or _about(path) == str(place):
            break
        name = f"{first}-{number}"
    return name


def _about(path: Path) -> str | None:
    """The images that the evaluation in a file is of; None: it cannot be read."""
    try:
        return read_json(path)["data"]
    except (UserError, KeyError, TypeError):
        return None


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else ""
