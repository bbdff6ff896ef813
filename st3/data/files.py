"""Image files read in worker processes, a whole batch at a time: as pixels, or as JPEG that is decoded elsewhere."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch.utils.data import Dataset

from st3.data.images import UnreadableImageError, mode_of, naming, opened, parsed, read_image
from st3.data.loader import mixed_seed
from st3.data.views import View
from st3.data.workers import Batches
from st3.errors import DataError

END_OF_IMAGE, START_OF_SCAN = b"\xff\xd9", b"\xff\xda"  # markers of a JPEG file


def seen(view: View, image: Image.Image, numbers: Sequence[int]) -> np.ndarray:
    """What `view` shows of a decoded image at `numbers`: uint8 [H, W, C]."""
    pixels = np.asarray(view.cut(image, numbers))
    return pixels.reshape(*pixels.shape[:2], -1)


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


MOST_LEFT_OUT = 100


class LeftOut:
    """The files among `images` of one split that cannot be read and are left out: dataset.on_error=skip."""

    def __init__(self, images: int):
        self.images = images
        self.limit = min(max(1, images // 100), MOST_LEFT_OUT, images - 1)
        self.errors: dict[str, str] = {}
        """What is the matter, by path. Each file is counted once, however often it is met."""

    def add(self, errors: Mapping[str, str]) -> None:
        """Count these files, too.

        Raises:
            DataError: there are too many.
        """
        self.errors |= errors
        if len(self.errors) > self.limit:
            raise DataError(
                f"more than {self.limit} of {self.images:,} image files cannot be read, the most that "
                f"dataset.on_error=skip leaves out ({next(iter(self.errors.values()))}; st3 check DIR lists all)"
            )


OnError = Literal["stop", "leave_out", "replace"]
"""What `ImageFiles` does about a file that cannot be read."""


class ImageFiles(Dataset):
    """Maps (epoch, indices) to uint8 images [B, C, H, W] and int64 labels [B], and the errors met, by path.

    Errors are returned, because an exception raised in a worker would reach the main process wrapped in the worker's
    traceback. What is done about a file that cannot be read, `on_error`:

        stop       nothing is returned but its error
        leave_out  the batch is smaller
        replace    the next readable file of the split takes its place, with its label, in the view of that place:
                   a function of the files alone, whatever the epoch, the worker and the process
    """

    def __init__(
        self,
        paths: np.ndarray,
        labels: torch.Tensor,
        view: View,
        channels: int,
        seed: int,
        on_error: OnError = "stop",
    ):
        self.paths = paths
        self.labels = labels
        self.view = view
        self.mode = mode_of(channels)
        self.seed = seed
        self.on_error = on_error

    def __getitem__(self, batch: tuple[int, torch.Tensor]) -> tuple[Sequence[torch.Tensor], dict[str, str]]:
        epoch, indices = batch
        errors: dict[str, str] = {}
        try:
            # Views are drawn from the global generator; its state is restored afterwards.
            with torch.random.fork_rng(devices=[]):
                return self.read(epoch, indices, errors), errors
        except UnreadableImageError as error:
            return (), errors | {error.path: str(error)}

    def read(self, epoch: int, indices: torch.Tensor, errors: dict[str, str]) -> Sequence[torch.Tensor]:
        """The batch; what is left out goes into `errors`. Seeds the global generator.

        Raises:
            UnreadableImageError: a file that is not left out, or too many in its stead.
        """
        images, shown = [], []
        for index in indices.tolist():
            for candidate in self.candidates(index):
                try:
                    image = read_image(self.paths[candidate], self.mode)
                except UnreadableImageError as error:
                    if self.on_error == "stop" or len(errors) > MOST_LEFT_OUT:
                        raise
                    errors[error.path] = str(error)
                else:
                    images.append(seen(self.view, image, self.draw(image, epoch, index)))
                    shown.append(candidate)
                    break
        width, height = self.view.size
        pixels = np.array(images, np.uint8).reshape(-1, height, width, 1 if self.mode == "L" else 3)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), self.labels[shown]

    def candidates(self, index: int) -> Iterator[int]:
        """The files that may be read for the place `index`, the first that can be."""
        yield index
        if self.on_error == "replace":
            yield from range(index + 1, len(self.paths))
            yield from range(index)

    def draw(self, image: Image.Image, epoch: int, index: int) -> tuple[int, ...]:
        """The view of one image: a function of (seed, epoch, index) and its size. Seeds the global generator."""
        # 1 + index, because a trailing 0 would mix to the seed of the order. Not torch.manual_seed: it also
        # seeds the accelerators, at a hundred times the cost.
        torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, 1 + index))
        return self.view.draw(image)


class EncodedFiles(ImageFiles):
    """Maps (epoch, indices) to an `EncodedBatch` with the views that `ImageFiles` draws; RGB only, on_error "stop"."""

    def read(self, epoch: int, indices: torch.Tensor, errors: dict[str, str]) -> EncodedBatch:
        """See `ImageFiles`. A JPEG file is not decoded: its size is in its header. No file is left out."""
        contents, lengths, views, pixels = [], [], [], []
        for index in indices.tolist():
            path = self.paths[index]
            with opened(path) as encoded:
                content = encoded.read()
                file = parsed(io.BytesIO(content))
            view = self.draw(file, epoch, index)
            if left_to_any_decoder := reads_alike(file, content):
                contents.append(content)
            else:
                with naming(path):
                    image = file.convert(self.mode)
                pixels.append(seen(self.view, image, view))
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


def checked(batches: Batches, left_out: LeftOut | None = None) -> Iterator[Sequence[torch.Tensor]]:
    """The batches; files that cannot be read are counted in `left_out`.

    Raises:
        DataError: a file that cannot be read and shall not be left out, or too many of them.
    """
    for batch, errors in batches:
        if errors:
            if left_out is None:
                raise DataError(next(iter(errors.values())))
            left_out.add(errors)
        yield batch
