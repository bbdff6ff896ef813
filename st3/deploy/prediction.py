"""The most probable classes of image files."""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets.folder import is_image_file
from tqdm import tqdm

from st3.data import evaluation_batch_size
from st3.data.files import ImageFiles
from st3.data.loader import Normalise
from st3.data.workers import Batches
from st3.deploy.network import Trained
from st3.errors import UserError
from st3.plain_files import csv_text
from st3.training.machine import Machine
from st3.whole_files import save_json, write_named

MOST_WORKERS = 8
"""Processes that read files, where there is more than one batch of them."""


@dataclass(frozen=True)
class Prediction:
    """What one picture shows."""

    file: str
    classes: list[tuple[str, float]]
    """The most probable ones with their probabilities, in [0, 1], the first first."""


def find_pictures(places: Iterable[Path]) -> list[str]:
    """The files among `places`, and the image files in and below the folders among them, sorted within each.

    Hidden files and folders are passed over. Raises `UserError` for a folder without images.
    """
    found: list[str] = []
    for place in places:
        if not place.is_dir():
            found.append(str(place))
            continue
        images = []
        for folder, folders, names in os.walk(place, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            images += [os.path.join(folder, name) for name in names if is_image_file(name) and name[0] != "."]
        if not images:
            raise UserError(f"{place} has no image files: give files, or a folder of them")
        found += sorted(images)
    return found


@torch.no_grad()
def predict(trained: Trained, machine: Machine, files: Sequence[str], top: int) -> tuple[list[Prediction], list[str]]:
    """The `top` most probable classes of each file that can be read, in order; and what is the matter with the others.

    Shows a progress bar.
    """
    card, device = trained.card, machine.device
    places, errors = torch.arange(len(files)), dict[str, str]()  # places stand where labels would: which files came
    images = ImageFiles(np.array(files, object), places, card.make_view(), card.channels, 0, on_error="leave_out")
    batches = [(0, part) for part in places.split(evaluation_batch_size(card.image_size, device))]
    workers = min(MOST_WORKERS, len(os.sched_getaffinity(0))) if len(batches) > 1 else 0
    normalise = Normalise(card.mean, card.std, card.image_size, device)
    predictions: list[Prediction] = []
    with tqdm(total=len(files), unit=" images", leave=False, disable=None, file=sys.stderr) as bar:
        for batch, (_, part) in zip(Batches(images, batches, workers=workers), batches, strict=True):
            (pixels, came), unreadable = batch
            errors |= unreadable
            if len(came):
                with machine.autocast():
                    logits = trained.model(normalise(pixels.to(device)))
                chosen = logits.topk(min(top, logits.shape[1])).indices
                probabilities = logits.float().softmax(1).gather(1, chosen)
                for place, best, values in zip(came.tolist(), chosen.tolist(), probabilities.tolist(), strict=True):
                    named = [(card.classes[label], value) for label, value in zip(best, values, strict=True)]
                    predictions.append(Prediction(files[place], named))
            bar.update(len(part))
    return predictions, [errors[file] for file in files if file in errors]


def write_csv(path: Path, predictions: Iterable[Prediction]) -> None:
    """A row for each picture and class."""
    rows = (
        {"file": each.file, "rank": rank, "class": label, "probability": f"{probability:.6f}"}
        for each in predictions
        for rank, (label, probability) in enumerate(each.classes, 1)
    )
    write_named(path, csv_text(("file", "rank", "class", "probability"), rows))


def write_json(path: Path, predictions: Iterable[Prediction]) -> None:
    """A list with an object for each picture."""
    save_json(
        path,
        [
            {"file": each.file, "classes": [{"class": label, "probability": p} for label, p in each.classes]}
            for each in predictions
        ],
    )
