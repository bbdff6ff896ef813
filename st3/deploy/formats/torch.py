"""A program of `torch.export`, which any PyTorch runs without st3."""

import io
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from st3.deploy.card import Card
from st3.deploy.formats.format import Format, Network, StoredWeight


class Torch(Format):
    """`torch.export.load(FILE, extra_files=…)`; the extra files are what the card says, one for each key."""

    name: ClassVar = "torch"
    file: ClassVar = "model.pt2"

    def write(self, program: ExportedProgram, card: Card, path: Path) -> None:
        content = io.BytesIO()  # written by C++ code, a full disk would end the process
        torch.export.save(program, content, extra_files=card.metadata())
        path.write_bytes(content.getbuffer())

    def open(self, path: Path, threads: int = 1) -> Network:
        torch.set_num_threads(threads)
        module = torch.export.load(path).module()

        def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.no_grad():
                return module(torch.from_numpy(pixels)).numpy()

        return run

    def weights(self, path: Path) -> list[StoredWeight]:
        state = torch.export.load(path).state_dict
        return [StoredWeight.of(each.detach().numpy()) for each in state.values() if each.ndim > 1]
