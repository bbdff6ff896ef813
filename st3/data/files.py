"""Image files read in worker processes, a whole batch at a time: as pixels, or as JPEG that is decoded elsewhere."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch.utils.data import DataLoader, Dataset

from st3.data.loader import mixed_seed
from st3.data.views import View
from st3.errors import UserError

END_OF_IMAGE, START_OF_SCAN = b"\xff\xd9", b"\xff\xda"  # markers of a JPEG file


class EncodedBatch(NamedTuple):
    """B images: as the bytes of their files where any JPEG decoder reads them alike, else as pixels."""

    content: torch.Tensor
    """uint8 [sum of lengths], the JPEG files one after the other."""
    lengths: torch.Tensor
    """int64 [B], bytes in `content`; 0: the image is in `pixels`."""
    views: torch.Tensor
    """int64 [B, numbers of a view], which part of each image is seen."""
    pixels: torch.Tensor
    """uint8 [images of length 0, C, image_size, image_size], that part of them."""
    indices: torch.Tensor
    """int64 [B], which images of the split these are."""
    labels: torch.Tensor
    """int64 [B]."""


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Whatever goes wrong in reading an image becomes a `UserError` that names its file."""
    try:
        yield
    except Exception as error:  # Pillow's decoders raise a dozen types
        raise UserError(f"cannot read image {path}: {error}; remove or replace the file") from None


class ImageFiles(Dataset):
    """Maps (epoch, indices) to uint8 images [B, C, H, W] and int64 labels [B].

    For an unreadable file the message is returned instead: an exception raised in a worker would reach the main
    process wrapped in the worker's traceback.
    """

    def __init__(self, paths: np.ndarray, labels: torch.Tensor, view: View, channels: int, seed: int):
        self.paths = paths
        self.labels = labels
        self.view = view
        self.mode = "L" if channels == 1 else "RGB"
        self.seed = seed

    def __getitem__(self, batch: tuple[int, torch.Tensor]) -> Sequence[torch.Tensor] | str:
        epoch, indices = batch
        try:
            # Views are drawn from the global generator; its state is restored afterwards.
            with torch.random.fork_rng(devices=[]):
                return self.read(epoch, indices)
        except UserError as error:
            return str(error)

    def read(self, epoch: int, indices: torch.Tensor) -> Sequence[torch.Tensor]:
        """The batch. Seeds the global generator."""
        images = []
        for index in indices.tolist():
            with naming(self.paths[index]), Image.open(self.paths[index]) as file:
                image = file.convert(self.mode)
            images.append(self.cut(image, self.draw(image, epoch, index)))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), self.labels[indices]

    def draw(self, image: Image.Image, epoch: int, index: int) -> tuple[int, ...]:
        """The view of one image: a function of (seed, epoch, index) and its size. Seeds the global generator."""
        # 1 + index, because a trailing 0 would mix to the seed of the order. Not torch.manual_seed: it also
        # seeds the accelerators, at a hundred times the cost.
        torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, 1 + index))
        return self.view.draw(image)

    def cut(self, image: Image.Image, view: Sequence[int]) -> np.ndarray:
        """What `view` sees of a decoded image: uint8 [H, W, C]."""
        pixels = np.asarray(self.view.cut(image, view))
        return pixels.reshape(*pixels.shape[:2], -1)


class EncodedFiles(ImageFiles):
    """Maps (epoch, indices) to an `EncodedBatch` with the views that `ImageFiles` draws; RGB only."""

    def read(self, epoch: int, indices: torch.Tensor) -> EncodedBatch:
        """See `ImageFiles`. A JPEG file is not decoded: its size is in its header."""
        contents, lengths, views, pixels = [], [], [], []
        for index in indices.tolist():
            path = self.paths[index]
            with naming(path):
                content = Path(path).read_bytes()
                file = Image.open(io.BytesIO(content))
            view = self.draw(file, epoch, index)
            if left_to_any_decoder := reads_alike(file, content):
                contents.append(content)
            else:
                with naming(path):
                    image = file.convert(self.mode)
                pixels.append(self.cut(image, view))
            lengths.append(len(content) if left_to_any_decoder else 0)
            views.append(view)
        width, height = self.view.size
        return EncodedBatch(
            content=torch.from_numpy(np.frombuffer(b"".join(contents), np.uint8).copy()),
            lengths=torch.tensor(lengths),
            views=torch.tensor(views, dtype=torch.int64),
            pixels=torch.from_numpy(np.array(pixels, np.uint8).reshape(-1, height, width, 3)).permute(0, 3, 1, 2),
            indices=indices,
            labels=self.labels[indices],
        )


def reads_alike(file: Image.Image, content: bytes) -> bool:
    """Whether any JPEG decoder makes the same RGB pixels of `content`, up to rounding; `file` is its opened image.

    False for other formats; for grey, CMYK and untransformed RGB, which decoders treat differently; for several
    pictures in one file; and for a file that is cut short, which some decoders fill with grey.
    """
    return (
        isinstance(file, JpegImageFile)
        and file.format == "JPEG"
        and file.mode == "RGB"
        and file.info.get("adobe_transform", 1) == 1
        and [component[0] for component in file.layer] != list(b"RGB")
        and content.rfind(END_OF_IMAGE) > content.rfind(START_OF_SCAN)
    )


def worker_batches(files: ImageFiles, sampler: Sequence[tuple[int, torch.Tensor]], **options: Any) -> DataLoader:
    """A DataLoader over whole batches, the items of `sampler`; `options` are DataLoader's.

    Each worker prepares two whole batches ahead, DataLoader's default, which is enough.
    """
    # batch_size=None: the sampler yields whole batches. Without a generator each epoch would draw from the global one.
    return DataLoader(files, sampler=sampler, batch_size=None, generator=torch.Generator(), **options)


def checked(batches: DataLoader) -> Iterator[Sequence[torch.Tensor]]:
    """The batches. Raises `UserError` for a file that cannot be read."""
    for batch in batches:
        if isinstance(batch, str):
            raise UserError(batch)
        yield batch
