"""The picture of a confusion matrix: what is taken for what, and how many of each class are recognised."""

from pathlib import Path
from typing import Any

from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from st3.deploy.card import Card
from st3.deploy.evaluation import Evaluation
from st3.whole_files import save_picture

NUMBERS = 20
"""Up to so many classes, each field says its percentage."""
LABELS = 120
"""Of more classes, not each has its name at the axes."""
LONGEST = 22
"""Characters of a name."""


def draw_confusion(evaluation: Evaluation, card: Card, path: Path) -> None:
    """Write a PNG. A row is a true class; its fields are percent of its images, so that rare classes are seen, too."""
    count = len(evaluation.classes)
    shares = [
        [100 * each / of if of else 0.0 for each in row]
        for row, of in zip(evaluation.confusion, evaluation.class_images, strict=True)
    ]
    side = min(max(4.2, 0.55 * count), 11)
    figure = Figure(figsize=(side + 3.4, side + 1.6), layout="constrained")
    matrix, bars = figure.subplots(1, 2, sharey=True, width_ratios=[side, 1.3])
    sparsity = "" if card.sparsity is None else f", {100 * card.sparsity:.1f} % sparse"
    figure.suptitle(
        f"{card.model.name}{sparsity}: {evaluation.top1:.2f} % of {evaluation.images:,} "
        f"{'' if evaluation.split == 'all' else f'{evaluation.split} '}images"
    )
    # The square root brings out the few per cent of a confusion, beside the diagonal.
    image = matrix.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto", interpolation="nearest")
    _numbers(matrix, shares) if count <= NUMBERS else figure.colorbar(image, ax=bars)
    every = -(-count // LABELS)
    places, size = range(0, count, every), max(4.5, min(9, 700 / count))
    names = [each if len(each) <= LONGEST else f"{each[: LONGEST - 1]}…" for each in evaluation.classes[::every]]
    matrix.set_xticks(places, names, rotation=90, fontsize=size)
    matrix.set_yticks(places, names, fontsize=size)
    matrix.set(xlabel="taken for (% of the images of the row)", ylabel="true class")

    recognised = [row[place] for place, row in enumerate(shares)]
    bars.barh(range(count), recognised, color="#0072B2", height=0.8 if every == 1 else 1)
    bars.axvline(evaluation.top1, color="black", linewidth=1, linestyle="--")
    bars.tick_params(axis="y", left=False, labelleft=False)
    bars.set(xlim=(0, 100), xlabel="recognised (%)\ndashed: all")
    bars.spines[["top", "right"]].set_visible(False)
    save_picture(path, figure)


def _numbers(axes: Any, shares: list[list[float]]) -> None:
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            if value >= 0.05:
                text = f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
                colour = "white" if value > 30 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
