"""A file of measured times for a ResNet-20, without measuring any."""

from pathlib import Path

import torch

from st3.measure import Times
from st3.models import build_model
from st3.sparsify import LayerTimes, weight_layers


def write_times(path: Path, shape: tuple[int, int, int], classes: int, **changes) -> Times:
    """A sparse kernel is as fast as the dense one with half of the weights, and takes 0.1 ms without any."""
    with torch.device("meta"):
        network = build_model("resnet20", classes=classes, channels=shape[0], image_size=shape[1])
    layers = {
        name: LayerTimes(weights=w.numel(), dense_ms=0.1 + w.numel() * 5e-5, base_ms=0.1, ms_per_weight=1e-4)
        for name, w in weight_layers(network).items()
    }
    facts = {"runtime": "MNN 3.6.1", "device": "EPYC", "threads": 1, "batch": 1, "model": "resnet20"}
    times = Times(**facts | {"input": shape, "date": "2026-11-28", "layers": layers} | changes)
    times.write(path)
    return times
