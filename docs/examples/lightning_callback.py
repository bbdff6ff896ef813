"""Lightning: the Sparsifier as a callback, whose state is in Lightning's checkpoints. Stopped half-way and continued.

pip install 'st3[lightning]' && python docs/examples/lightning_callback.py
"""

import tempfile
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from st3 import Sparsifier
from st3.sparsify import PolynomialRamp

EPOCHS, STEPS = 6, 48


class Sparse(L.Callback):
    saved = None

    def on_train_start(self, trainer, module):  # weights and optimizer are those of the checkpoint by now
        schedule = PolynomialRamp(final=0.9, start=5, end=30)
        self.sparsifier = Sparsifier(module, "st3", schedule, length=STEPS).attach(trainer.optimizers[0])
        if self.saved:
            self.sparsifier.load_state_dict(self.saved)

    def state_dict(self):
        return self.sparsifier.state_dict()

    def load_state_dict(self, state):
        self.saved = state


class Classifier(L.LightningModule):  # yours, unchanged
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2704, 10))

    def training_step(self, batch, _):
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


data = torch.utils.data.TensorDataset(torch.randn(256, 1, 28, 28), torch.randint(10, (256,)))
loader, checkpoint = torch.utils.data.DataLoader(data, 32), Path(tempfile.mkdtemp(), "half.ckpt")
quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
for epochs, start_from in ((EPOCHS // 2, None), (EPOCHS, checkpoint)):  # stopped half-way; another process, later
    sparse = Sparse()
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", gradient_clip_val=1.0, callbacks=[sparse], **quiet)
    trainer.fit(Classifier(), loader, ckpt_path=start_from)
    trainer.save_checkpoint(checkpoint)
done = sparse.sparsifier
print(f"{done.zeros().sum():,} of {done.prunable:,} weights are zero after {done.step} steps")
