"""A plain PyTorch loop that ends with a network that is 90 % zeros; stopped half-way and continued from its checkpoint.

python docs/examples/plain_loop.py
"""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from st3 import Sparsifier
from st3.sparsify import PolynomialRamp

STEPS, STOP = 60, 30
CHECKPOINT = Path(tempfile.mkdtemp(), "checkpoint.pt")


def make():
    model = nn.Sequential(nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2704, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = PolynomialRamp(final=0.9, start=5, end=40)  # dense for 5 steps, 90 % from step 40 on
    return model, optimizer, Sparsifier(model, "st3", schedule, length=STEPS).attach(optimizer)


def train(model, optimizer, steps):
    for step in steps:
        random = torch.Generator().manual_seed(step)
        images, labels = torch.randn(32, 1, 28, 28, generator=random), torch.randint(10, (32,), generator=random)
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()  # moves the raw weights, and leaves sparse ones in the model


model, optimizer, sparsifier = make()
train(model, optimizer, range(STOP))
parts = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier}
torch.save({name: part.state_dict() for name, part in parts.items()}, CHECKPOINT)

model, optimizer, sparsifier = make()  # another process, later
parts = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier}
for name, state in torch.load(CHECKPOINT, weights_only=True).items():  # the model first, the sparsifier last
    parts[name].load_state_dict(state)
train(model, optimizer, range(STOP, STEPS))
print(f"{sparsifier.zeros().sum():,} of {sparsifier.prunable:,} weights are zero after {sparsifier.step} steps")
