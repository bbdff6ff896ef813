"""BatchNorm statistics taken again over the training images: is a trained network better with them?

    python scripts/batchnorm_again.py FOLDER

FOLDER holds run directories ROW-sSEED, as `st3 reproduce` makes them. What evaluation divides by are running means of
the last steps, in which weights and masks were still changing; taken again they are those of the network as it is, over
all training images as they are evaluated, without augmentation. Prints for each row the accuracy on held-out training
images (test images where there are none) before and after, and the difference, paired by seed, with its 95 % interval.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

from st3.config import stored_config
from st3.data import build_split
from st3.deploy.evaluation import evaluate_run
from st3.deploy.network import Trained, choose_machine, load_trained
from st3.report.notes import plus_minus, signed
from st3.report.statistics import statistic
from st3.training.machine import Machine
from st3.training.run_directory import RunDirectory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for path in sorted(options.folder.glob("*-s*/summary.json")):
        directory = RunDirectory(path.parent)
        if summary := directory.finished():
            split = "test" if summary.val_top1 is None else "val"
            rows[path.parent.name.rpartition("-s")[0]].append(before_and_after(directory, split))
    print("| | n | before | again | difference |\n|---|---|---|---|---|")
    for name, found in rows.items():
        before, after = (statistic(values) for values in zip(*found, strict=True))
        difference = statistic([later - earlier for earlier, later in found])
        cells = name, str(len(found)), plus_minus(before), plus_minus(after), plus_minus(difference, signed)
        print(f"| {' | '.join(cells)} |", flush=True)


def before_and_after(directory: RunDirectory, split: str) -> tuple[float, float]:
    """Top-1 in percent."""
    machine, _ = choose_machine(directory, "cpu", None)
    trained = load_trained(directory.path, machine.device)
    before = evaluate_run(trained, machine, split).top1
    take_again(trained, machine)
    return before, evaluate_run(trained, machine, split).top1


@torch.no_grad()
def take_again(trained: Trained, machine: Machine) -> None:
    """Mean and variance of every BatchNorm, over batches of training images."""
    stored = trained.directory.config()
    assert stored
    config = stored_config(stored, trained.directory.path)
    for layer in trained.model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
            layer.train()
    for images, _ in build_split(config.dataset, "train", seed=config.seed, device=machine.device).loader.epoch(0):
        with machine.autocast():
            trained.model(images)
    trained.model.eval()


if __name__ == "__main__":
    main()
