import csv
import json

import numpy as np
import pytest
from PIL import Image

from st3.report import draw_run

METRICS = ["epoch", "step", "train_loss", "lr", "sparsity_scheduled", "sparsity", "threshold", "macs", "val_top1",
           "val_top5", "test_top1", "test_top5", "images_per_second"]  # fmt: skip
BLUE, ORANGE, GREEN = (0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)


def write_csv(path, columns, rows) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def make_run(folder, *, epochs=3, val=False, layers=4, sparsity=0.9):
    rows = []
    for step in range(1, 2 * epochs + 1):
        row = {"epoch": (step + 1) // 2, "step": step, "train_loss": 1 / step, "lr": 0.1, "threshold": 0.1,
               "sparsity": sparsity * step / (2 * epochs), "macs": 100}  # fmt: skip
        if step % 2 == 0:
            row |= {"test_top1": 50 + step, "test_top5": 90}
            row |= {"val_top1": 40 + 2 * step, "val_top5": 80} if val else {}
        rows.append(row)
    write_csv(folder / "metrics.csv", METRICS, rows)
    columns = ["name", "shape", "params", "pruned", "zeros", "sparsity", "threshold", "macs_dense", "macs"]
    write_csv(
        folder / "layers.csv",
        columns,
        [
            {"name": f"layer{i}.conv", "pruned": str(i > 0), "sparsity": sparsity * i / layers, "zeros": i}
            for i in range(layers)
        ],
    )
    summary = {"model": "resnet20", "dataset": "fake", "method": "st3", "top1": 56.0, "sparsity": sparsity,
               "macs_dense": 40_000_000, "macs": 5_000_000, "steps": 2 * epochs, "epochs": epochs}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def picture(folder) -> np.ndarray:
    path = draw_run(folder)
    assert path == folder / "run.png"
    return np.asarray(Image.open(path).convert("RGB"))


def pixels_of(image, colour) -> int:
    return int((np.abs(image.astype(int) - colour).sum(-1) < 12).sum())


@pytest.mark.parametrize("val", [False, True])
def test_curves_and_bars_are_drawn(tmp_path, val):
    image = picture(make_run(tmp_path, val=val))
    assert image.shape[0] >= 400
    assert image.shape[1] >= 1000
    left, right = np.array_split(image, 2, axis=1)
    assert pixels_of(left, BLUE) > 100  # test accuracy
    assert (pixels_of(left, GREEN) > 100) == val  # validation accuracy, only where there is one
    assert pixels_of(left, ORANGE) > 100  # sparsity
    assert pixels_of(right, ORANGE) > 2000  # the bars of the layers


@pytest.mark.parametrize(
    "options", [{"epochs": 1, "layers": 1}, {"epochs": 40, "layers": 90}, {"sparsity": 0.0}], ids=str
)
def test_short_long_and_dense_runs_too(tmp_path, options):
    image = picture(make_run(tmp_path, **options))
    colours = np.unique(image.astype(np.int32) @ [1 << 16, 1 << 8, 1])
    assert len(colours) > 20
    assert pixels_of(np.array_split(image, 2, axis=1)[0], BLUE) > 20


def test_a_sparser_run_has_higher_bars(tmp_path):
    counts = []
    for sparsity in (0.3, 0.9):
        folder = tmp_path / str(sparsity)
        folder.mkdir()
        counts.append(pixels_of(np.array_split(picture(make_run(folder, sparsity=sparsity)), 2, axis=1)[1], ORANGE))
    assert 2 < counts[1] / counts[0] < 4
