import numpy as np
import pytest
from fake_runs import fake_layer, fake_run, fake_summary
from PIL import Image

from st3.report import draw_run

BLUE, ORANGE, GREEN, RED = (0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73), (0xC0, 0, 0)


def picture(folder, *, epochs=3, val=False, layers=4, sparsity=0.9) -> np.ndarray:
    """Of a run with two steps an epoch and an evaluation after each epoch."""
    metrics = []
    for step in range(1, 2 * epochs + 1):
        row = {"epoch": (step + 1) // 2, "step": step, "sparsity": sparsity * step / (2 * epochs)}
        row |= {"train_loss": 2 / step, "sparsity_scheduled": row["sparsity"]}
        if step % 2 == 0:
            row |= {"test_top1": 50 + step} | ({"val_top1": 40 + 2 * step} if val else {})
        metrics.append(row)
    directory = fake_run(
        folder,
        fake_summary(sparsity=sparsity, epochs=epochs, steps=2 * epochs),
        layers=[fake_layer(f"layer{i}.conv", sparsity * i / layers, pruned=i > 0) for i in range(layers)],
        metrics=metrics,
    )
    draw_run(directory)
    return np.asarray(Image.open(directory.picture).convert("RGB"))


def pixels_of(image, colour) -> int:
    return int((np.abs(image.astype(int) - colour).sum(-1) < 12).sum())


@pytest.mark.parametrize("val", [False, True])
def test_curves_and_bars_are_drawn(tmp_path, val):
    image = picture(tmp_path, val=val)
    assert image.shape[0] >= 400
    assert image.shape[1] >= 1000
    (loss, accuracy), (sparsity, layers) = (np.array_split(half, 2, axis=1) for half in np.array_split(image, 2))
    assert pixels_of(loss, BLUE) > 100
    assert pixels_of(accuracy, BLUE) > 100  # test accuracy
    assert (pixels_of(accuracy, GREEN) > 100) == val  # validation accuracy, only where there is one
    assert pixels_of(loss, ORANGE) == pixels_of(accuracy, ORANGE) == 0
    assert pixels_of(sparsity, ORANGE) > 100
    assert pixels_of(layers, ORANGE) > 2000  # the bars of the layers


def test_what_is_dead_is_red(tmp_path):
    directory = fake_run(
        tmp_path,
        fake_summary(constant_logits=True),
        layers=[fake_layer("a", 1.0), fake_layer("b", 0.5), fake_layer("c", 1.0, pruned=False)],
        metrics=[{"epoch": 1, "step": 2, "sparsity": 0.9, "test_top1": 10.0, "train_loss": 2.3}],
    )
    draw_run(directory)
    image = np.asarray(Image.open(directory.picture).convert("RGB"))
    (_, accuracy), (_, layers) = (np.array_split(half, 2, axis=1) for half in np.array_split(image, 2))
    assert pixels_of(accuracy, RED) > 100  # the words
    assert pixels_of(layers, RED) > 2000  # one bar of the three


def test_nothing_is_red_where_all_is_well(tmp_path):
    assert pixels_of(picture(tmp_path), RED) == 0


@pytest.mark.parametrize(
    "options", [{"epochs": 1, "layers": 1}, {"epochs": 40, "layers": 90}, {"sparsity": 0.0}], ids=str
)
def test_short_long_and_dense_runs_too(tmp_path, options):
    image = picture(tmp_path, **options)
    colours = np.unique(image.astype(np.int32) @ [1 << 16, 1 << 8, 1])
    assert len(colours) > 20
    assert pixels_of(np.array_split(image, 2, axis=1)[0], BLUE) > 20


def test_a_sparser_run_has_higher_bars(tmp_path):
    images = [picture(tmp_path / str(sparsity), sparsity=sparsity) for sparsity in (0.3, 0.9)]
    low, high = (pixels_of(np.array_split(image, 2, axis=1)[1], ORANGE) for image in images)
    assert 2 < high / low < 4
