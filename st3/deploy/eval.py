"""Measure a finished run's network: top-1, top-5, every class, and what is taken for what.

On the images of the run, as its own evaluation saw them, or on other ones: DIR/CLASS/FILE, or a tree with train/, val/,
test/. Their classes are matched by name. Written are RUN/evaluation/SPLIT.json, SPLIT.csv (a row for each class) and
SPLIT.png (the confusion matrix); with --data the name of DIR is added, so that nothing is overwritten.

examples:
  st3 eval RUN                       its test images: the accuracy of summary.json
  st3 eval RUN --split train         the images that it was trained on, without augmentation
  st3 eval RUN --data DIR            other images of the same classes
  st3 eval RUN --device cpu --precision fp32
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from st3.settings import shown

if TYPE_CHECKING:
    from st3.deploy.evaluation import Evaluation
    from st3.training.summary import Summary

SHOWN = 3
"""Classes and confusions that are named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be typed after `st3 eval`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a finished run")
    parser.add_argument("--data", metavar="DIR", type=Path, help="other images than the run's own")
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="default: test")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write (default: RUN/evaluation)")
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="default: that of the training, where the device has it"
    )


def run(options: argparse.Namespace) -> int:
    """The exit code. Raises `UserError`."""
    from st3.deploy.confusion_picture import draw_confusion
    from st3.deploy.evaluation import evaluate_run, free_name
    from st3.deploy.network import choose_machine, find_run, load_trained

    directory = find_run(options.run)
    machine, note = choose_machine(directory, options.device, options.precision)
    print(f"computing  {machine.precision} on {machine.device}{note}", flush=True)
    trained = load_trained(directory.path, machine.device)
    evaluation = evaluate_run(trained, machine, options.split, options.data)

    folder = options.out or directory.path / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    name = free_name(folder, options.split, options.data)
    evaluation.write_json(folder / f"{name}.json")
    evaluation.write_csv(folder / f"{name}.csv")
    draw_confusion(evaluation, trained.card, folder / f"{name}.png")
    print(describe(evaluation, None if options.data else directory.finished()))
    summary = directory.summary()
    if summary and not summary.finished:
        print(f"warning    {directory.path} goes on for more epochs: this is the network from before them")
    print(f"written    {folder / name}.json, .csv, .png")
    return 0


def describe(evaluation: "Evaluation", summary: "Summary | None") -> str:
    """What was measured, in words, and whether it is what the summary of the run says of that split."""
    of_run = {"test": (summary.top1, summary.top5), "val": (summary.val_top1, summary.val_top5)} if summary else {}
    known, measured = of_run.get(evaluation.split), (evaluation.top1, evaluation.top5)
    what = f"{evaluation.images:,} {'' if evaluation.split == 'all' else f'{evaluation.split} '}images"
    lines = [
        f"top-1      {evaluation.top1:.2f} % (top-5 {evaluation.top5:.2f} %) of {what}"
        + (", as summary.json says" if known == measured else "")
    ]
    if known and known != measured:
        lines.append(
            f"warning    summary.json says {known[0]:.2f} % (top-5 {known[1]:.2f} %): another device, precision or "
            "number of processes rounds differently; else the images or the network have changed"
        )
    hardest = evaluation.hardest()[:SHOWN]
    lines.append(f"hardest    {', '.join(f'{shown(label)} {accuracy:.1f} %' for label, accuracy in hardest)}")
    confused = evaluation.confused()[:SHOWN]
    if confused:
        pairs = (
            f"{shown(true)} → {shown(predicted)} ({count:,} of {images:,})"
            for true, predicted, count, images in confused
        )
        lines.append(f"mistaken   {', '.join(pairs)}")
    if missing := evaluation.missing():
        from st3.data import named

        lines.append(f"warning    no images of {named(missing)}")
    lines += [f"warning    {text}" for text in evaluation.warnings]
    return "\n".join(lines)
