"""The settings of a network."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network; input channels, image size and classes come from the data set."""

    name: str
    """One of `st3.models.model_names()`, `wrnD_K` such as wrn34_2, or timm/NAME. Our own networks come before
    torchvision's of the same name."""
    init: str = "default"
    """default (the architecture's own) or kaiming_normal (fan-in, every Conv2d and Linear)."""
    depth: int | None = None
    """Layers of wide_resnet, 6n + 4; null: 28."""
    width: float | None = None
    """Widening factor k of wide_resnet, null: 10; or width multiplier α of mobilenet_v1, null: 1."""
    dropout: float | None = None
    """Dropout probability between the convolutions of a block, of wide_resnet and wrnD_K; null: 0."""
    weights: str = ""
    """What to start from: pretrained (what torchvision or timm publishes), a .safetensors or .pt file, or the folder of
    a run; empty: the initialization."""
    bn_eps: float = 0.0
    """ε of every BatchNorm, added to the variance; 0: the architecture's own, mostly 1e-5."""
