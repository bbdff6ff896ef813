"""Run directories as they look after training, made without any."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config_cases import load

from st3.measure import LayerRow
from st3.training.run_directory import METRICS, RunDirectory
from st3.training.summary import Summary

ENVIRONMENT = {
    "st3": "0.1.0",
    "torch": "2",
    "device": "x86_64",
    "cpu_threads": 1,
    "date": "2026-11-24",
    "git": {"commit": "0123456789abcdef", "changed_files": 2},
}


def fake_summary(**changes: Any) -> Summary:
    figures: dict[str, Any] = {
        "top1": 50.0, "top5": 90.0, "sparsity_target": 0.8, "target": "weights", "sparsity": 0.8, "zeros": 80_000,
        "prunable": 100_000, "macs_dense": 40_000_000, "macs": 5_500_000, "epochs": 4, "steps": 8, "seconds": 36.0,
        "warmup_seconds": 0.0, "data_seconds": 0.0, "peak_memory_bytes": 0, "processes": 1, "method": "st3",
        "model": "resnet20", "dataset": "fake", "seed": 0, "run_dir": "", "st3": "0.1.0", "finished": True,
    }  # fmt: skip
    return Summary(**figures | changes)


def fake_layer(name: str, sparsity: float, pruned: bool = True) -> LayerRow:
    """Ten weights with ten MACs each."""
    zeros, macs = round(10 * sparsity), round(100 * (1 - sparsity))
    return LayerRow(name, "1×10", 10, pruned, zeros, sparsity, threshold=0.1, macs_dense=100, macs=macs, dead=False)


def fake_run(
    path: Path,
    summary: Summary,
    *,
    config: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    layers: Sequence[LayerRow] = (),
    metrics: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] = ENVIRONMENT,
) -> RunDirectory:
    directory = RunDirectory(path)
    path.mkdir(parents=True, exist_ok=True)
    directory.start(config or {"epochs": summary.epochs}, overrides, environment)
    directory.write_layers(layers)
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, METRICS)
    rows.writeheader()
    rows.writerows(metrics)
    directory.write_metrics(text.getvalue())
    directory.write_summary(summary)
    return directory


def found_run(path, *overrides, top1=70.0, **changes):
    """A finished run of these settings."""
    config = load(*overrides)
    fake_run(
        path,
        fake_summary(
            top1=top1, sparsity=config.target_sparsity, sparsity_target=config.target_sparsity, seed=config.seed,
            method=config.method.name, model=config.model.name, dataset=config.dataset.name, **changes,
        ),
        config=config.plain(),
        overrides=overrides,
        layers=[fake_layer("conv", config.target_sparsity)],
        metrics=[{"step": 8, "test_top1": top1}],
    )  # fmt: skip
    return path
