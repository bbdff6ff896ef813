"""The same training step as a plain loop has it, of the same network: what the package is measured against."""

import time
from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.harness import Contender, Result
from benchmarks.training import Batch
from st3.config import Config
from st3.errors import UserError
from st3.sketch import sketch
from st3.training.loop import seed_everything
from st3.training.machine import Machine


class PlainContender(Contender):
    """Forward, loss, backward, clipping and SGD in PyTorch alone; nothing is sparse."""

    def __init__(self, config: Config, name: str, mode: str, batch: Batch, machine: Machine, args: Namespace):
        super().__init__(name, mode, machine, method=name, mode=mode)
        self.config, self.batch, self.calls = config, batch, args.steps

    def build(self) -> None:
        if "captured" in self.group:
            raise UserError("a plain loop captures nothing")
        run = sketch(self.config)
        seed_everything(self.config.seed, 0)  # the same weights as the others
        self.model: nn.Module = run.make_model().to(self.machine.device, memory_format=torch.channels_last)
        self.forward = torch.compile(self.model) if self.group == "compiled" else self.model
        self.optimizer = self.config.optimizer.build(self.model)  # PyTorch's
        self.prunable, self.clip_norm = run.sparsifier.prunable, self.config.clip_norm
        self.model.train()

    def work(self) -> None:
        images, labels = self.batch
        with self.machine.autocast():
            self.loss = F.cross_entropy(self.forward(images), labels)
        self.loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def warm_up(self) -> None:
        begin = time.perf_counter()
        self.work()
        self.machine.wait()
        self.result |= {"warm_up_seconds": time.perf_counter() - begin, "peak_bytes": None}
        self.work()

    def check(self) -> Result:
        if not torch.isfinite(self.loss):
            raise UserError(f"{self.name} ends with the loss {self.loss.item()}: nothing reported")
        return {"loss": self.loss.item(), "zeros": 0, "weights": self.prunable}
