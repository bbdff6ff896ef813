"""A small vision transformer: Dosovitskiy et al. 2020, arXiv:2010.11929, of torchvision's layers."""

from torch import nn
from torchvision.models import VisionTransformer

from st3.errors import UserError
from st3.models.external import replace_first_conv

PATCH = 4
"""Pixels of a patch's side."""


def vit_tiny(*, classes: int, channels: int, image_size: int) -> nn.Module:
    """ViT for small images: `[B, channels, image_size, image_size]` float → logits `[B, classes]`.

    Patches of 4 pixels and 192 features in 3 heads, as DeiT-Ti has (arXiv:2012.12877); a third of its 12 blocks, with
    2·192 hidden units each as ViT-Lite has (arXiv:2104.05704), so that a CPU trains it in minutes: 1.2 million
    parameters. No dropout. torchvision's own initialization, in which the classifier is 0.

    Raises:
        UserError: `image_size` is no multiple of 4.
    """
    if image_size % PATCH:
        near = max(PATCH, round(image_size / PATCH) * PATCH)
        raise UserError(f"vit_tiny cuts images into patches of {PATCH}×{PATCH} pixels: try dataset.image_size={near}")
    model = VisionTransformer(
        image_size, PATCH, num_layers=4, num_heads=3, hidden_dim=192, mlp_dim=384, num_classes=classes
    )
    if channels != 3:
        replace_first_conv(model, channels)
    return model
