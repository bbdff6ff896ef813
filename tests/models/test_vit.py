"""The small vision transformer against its description."""

import pytest
import torch
from model_cases import build, meta, parameters
from torchvision.models import VisionTransformer

from st3.measure import layer_macs

BLOCK = 4 * 192 * 192 + 2 * 192 * 384
"""Weights of one: queries, keys, values and the output of attention; two Linear layers."""


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 28), (3, 32), (1, 64)])
def test_weights_and_macs_follow_from_the_sizes(channels, size):
    model = meta("vit_tiny", classes=10, channels=channels, image_size=size)
    tokens, patch = (size // 4) ** 2, channels * 4 * 4
    biases = 192 + 4 * (576 + 192 + 384 + 192) + 10
    norms, learned = (2 * 4 + 1) * 2 * 192, (tokens + 1) * 192 + 192  # position embeddings and the class token
    assert parameters(model) == 192 * patch + 4 * BLOCK + 192 * 10 + biases + norms + learned
    macs = layer_macs(model, (channels, size, size))
    assert sum(macs.values()) == tokens * 192 * patch + (tokens + 1) * 4 * BLOCK + 192 * 10


def test_it_is_torchvisions_and_starts_like_it():
    torch.manual_seed(2)
    ours = build("vit_tiny", classes=7, image_size=32)
    torch.manual_seed(2)
    theirs = VisionTransformer(32, 4, 4, 3, 192, 384, num_classes=7)
    assert type(ours) is VisionTransformer
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_a_stem_for_grey_images_has_the_scale_of_one_for_colours():
    torch.manual_seed(2)
    grey, colour = (build("vit_tiny", classes=7, channels=n, image_size=28).conv_proj for n in (1, 3))
    assert grey.weight.shape == (192, 1, 4, 4)
    assert grey.weight.std().item() == pytest.approx(colour.weight.std().item(), rel=0.05)
