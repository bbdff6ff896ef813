"""Accelerate: with gradients accumulated over two batches; the sparsifier is in its checkpoints. Stopped and continued.

pip install 'st3[accelerate]' && python docs/examples/accelerate_loop.py
"""

import tempfile

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy

from st3 import Sparsifier
from st3.sparsify import PolynomialRamp

EPOCHS, STEPS = 6, 24
FOLDER = tempfile.mkdtemp()
data = torch.utils.data.TensorDataset(torch.randn(256, 1, 28, 28), torch.randint(10, (256,)))


def make():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2704, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(data, 32))
    schedule = PolynomialRamp(final=0.9, start=3, end=15)
    sparsifier = Sparsifier(accelerator.unwrap_model(model), "st3", schedule, length=STEPS)
    sparsifier.attach(optimizer.optimizer)  # the optimizer inside: it steps only when the gradients are complete
    accelerator.register_for_checkpointing(sparsifier)
    return accelerator, model, optimizer, loader, sparsifier


def train(accelerator, model, optimizer, loader, epochs):
    for images, labels in (batch for _ in range(epochs) for batch in loader):
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(images), labels))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


accelerator, model, optimizer, loader, sparsifier = make()
train(accelerator, model, optimizer, loader, EPOCHS // 2)
accelerator.save_state(FOLDER)

accelerator, model, optimizer, loader, sparsifier = make()  # another process, later
accelerator.load_state(FOLDER)
train(accelerator, model, optimizer, loader, EPOCHS - EPOCHS // 2)
print(f"{sparsifier.zeros().sum():,} of {sparsifier.prunable:,} weights are zero after {sparsifier.step} steps")
