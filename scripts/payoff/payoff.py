"""What accuracy costs in time: every run of a table in ONNX Runtime and MNN, one image, one thread.

    python scripts/payoff/payoff.py FOLDER OUT

FOLDER holds run directories ROW-sSEED, as `st3 reproduce` makes them. OUT/payoff.md is a table, OUT/payoff.png a
picture: accuracy against milliseconds and against MACs, with 95 % intervals over the seeds.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from tqdm import tqdm

from st3.deploy.benchmark import Batch, images_of, pinned, time_batch
from st3.deploy.network import load_trained
from st3.deploy.runtimes import Files, MnnRuntime, OnnxRuntime
from st3.report.statistics import Statistic, statistic
from st3.training.run_directory import RunDirectory

Found = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    rows: dict[str, Found] = {}
    for path in tqdm(sorted(options.folder.glob("*-s*/summary.json"))):
        if summary := RunDirectory(path.parent).finished():
            row = rows.setdefault(path.parent.name.rpartition("-s")[0], defaultdict(list))
            accuracy = summary.top1 if summary.val_top1 is None else summary.val_top1
            for name, value in (("top1", accuracy), ("macs", summary.macs / 1e6)):
                row[name].append(value)
            for name, value in milliseconds(path.parent, options.rounds).items():
                row[name].append(value)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "payoff.json").write_text(json.dumps(rows, indent=1))
    (options.out / "payoff.md").write_text(table(rows))
    draw(rows, options.out / "payoff.png")
    print(table(rows))


def milliseconds(run: Path, rounds: int) -> dict[str, float]:
    """Medians of process time in each runtime."""
    trained = load_trained(run, torch.device("cpu"))
    images = images_of(trained, 1)
    with tempfile.TemporaryDirectory() as folder, pinned(1):
        files = Files.make(trained, Path(folder))
        found: Batch = time_batch(trained, files, images, 1, rounds, (OnnxRuntime(), MnnRuntime()))
    return {f"{each.runtime}, {each.kind}": each.cpu_ms["median"] for each in found.timings}


def table(rows: dict[str, Found]) -> str:
    """Markdown."""
    lines = [
        "| | n | top-1 % | million MACs | ONNX Runtime, dense, ms | MNN, sparse | MNN, tuned |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        columns = "ONNX Runtime, dense", "MNN, sparse", "MNN, tuned, sparse"
        ms = [shown(statistic(found[column]), 3) for column in columns]
        cells = [
            name,
            str(len(found["top1"])),
            shown(statistic(found["top1"]), 2),
            shown(statistic(found["macs"]), 2),
            *ms,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(of: Statistic, digits: int) -> str:
    return f"{of.mean:.{digits}f}" + (f" ± {of.half_width:.{digits}f}" if of.half_width is not None else "")


def draw(rows: dict[str, Found], path: Path) -> None:
    """Rows that differ by their sparsity only, the last number of their names, are joined by a line."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    series: dict[str, list[Found]] = defaultdict(list)
    for name, found in rows.items():
        series[name.rpartition("-")[0]].append(found)
    for axis, column, label in zip(
        axes, ("MNN, tuned, sparse", "macs"), ("MNN, tuned: ms an image", "million MACs"), strict=True
    ):
        for name, colour, marker in zip(series, TABLEAU_COLORS, "osD^v<>PX*", strict=False):
            members = series[name]
            x, y = ([statistic(found[key]) for found in members] for key in (column, "top1"))
            axis.errorbar(
                [each.mean for each in x], [each.mean for each in y], [each.half_width or 0 for each in y],
                [each.half_width or 0 for each in x], label=name, color=colour, marker=marker, markersize=6,
                linewidth=1, capsize=2,
            )  # fmt: skip
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("top-1 (%)")
    axes[1].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
