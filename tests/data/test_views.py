"""Which part of an image is seen."""

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from st3.data.views import CentralView, RandomView


def test_views_are_those_of_torchvision():
    image = Image.effect_noise((61, 47), 100).convert("RGB")
    random, transform = RandomView(16), v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()])
    mirrored = set()
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = random.draw(image)
        torch.manual_seed(seed)
        assert np.array_equal(random.cut(image, drawn), transform(image))
        mirrored.add(drawn[-1])
    assert mirrored == {0, 1}
    transform = v2.Compose([v2.Resize(18), v2.CenterCrop(16)])
    assert np.array_equal(CentralView(16).cut(image, ()), transform(image))
