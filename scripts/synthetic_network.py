"""A network of random weights with as many zeros, and as many MACs left, as a trained one: to time, not to use.

The weights that stay are the largest ones after those of each layer are multiplied by (output pixels)^p; p is chosen so
that the MACs are met, because a global threshold leaves the early layers, whose weights meet many pixels, denser than
the late ones. The weights of each layer are scaled so that signals neither grow nor vanish.

    python scripts/synthetic_network.py resnet50 0.9 FILE.safetensors --macs 764e6
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from st3.compose import compose_config
from st3.deploy.card import Card
from st3.measure import layer_macs
from st3.models import build_model
from st3.sparsify import weight_layers
from st3.training.checkpoints import save_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as in st3-train model=…")
    parser.add_argument("sparsity", type=float)
    parser.add_argument("file", type=Path)
    parser.add_argument("--macs", type=float, help="MACs that are left (default: as the same sparsity in all layers)")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    options = parser.parse_args()
    left = synthetic(
        options.file, options.model, options.sparsity, options.macs, options.image_size, options.classes
    )  # fmt: skip
    print(f"{options.file}: {100 * options.sparsity:.1f} % zeros, {left / 1e6:,.0f} M MACs left")


def synthetic(
    file: Path, model: str, sparsity: float, macs: float | None = None, image_size: int = 32, classes: int = 10
) -> int:
    """Write the file; returns the MACs that are left."""
    words = [f"model={model}", "dataset=fake", f"dataset.image_size={image_size}", f"dataset.classes={classes}"]
    config = compose_config(words)
    data = config.dataset
    torch.manual_seed(0)
    network = build_model(config.model, classes=classes, channels=data.channels, image_size=image_size)
    layers = {name: weight.data for name, weight in weight_layers(network).items()}
    costs = layer_macs(network, (data.channels, image_size, image_size))
    pixels = torch.tensor([costs[name] / weight.numel() for name, weight in layers.items()], dtype=torch.float64)
    drawn = [torch.randn_like(weight) for weight in layers.values()]
    left = _prune(drawn, pixels, sparsity, macs)
    for weight, values in zip(layers.values(), left, strict=True):
        weight.copy_(
            values / values.norm().clamp(min=1e-12) * (2 * weight.shape[0]) ** 0.5
        )  # a ReLU halves the variance
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    file.parent.mkdir(parents=True, exist_ok=True)
    names = tuple(f"class {number}" for number in range(classes))
    save_network(file, network.state_dict(), Card.of_run(config, names, sparsity).metadata())
    return int(sum(p * int((values != 0).sum()) for p, values in zip(pixels.tolist(), left, strict=True)))


def _prune(weights: list[Tensor], pixels: Tensor, sparsity: float, macs: float | None) -> list[Tensor]:
    low, high = -1.0, 1.0  # p
    while True:
        power = 0 if macs is None else (low + high) / 2
        scaled = [weight.abs() * float(p) ** power for weight, p in zip(weights, pixels, strict=True)]
        everything = torch.cat([each.flatten() for each in scaled])
        threshold = everything.kthvalue(max(1, round(sparsity * everything.numel()))).values
        kept = [each > threshold for each in scaled]
        left = float(sum(p * float(each.sum()) for p, each in zip(pixels, kept, strict=True)))
        if macs is None or high - low < 1e-4:
            return [torch.where(each, weight, 0) for weight, each in zip(weights, kept, strict=True)]
        low, high = (low, power) if left > macs else (power, high)


if __name__ == "__main__":
    main()
