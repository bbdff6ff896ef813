"""The loader of image folders that are too large for memory: files are decoded anew each epoch."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import pil_to_tensor

from st3.data.augmentation import Augmenter
from st3.data.files import EncodedBatch, EncodedFiles, ImageFiles, LeftOut, OnError, checked
from st3.data.images import naming, parsed
from st3.data.loader import Loader, Normalise, mixed_seed
from st3.data.views import CentralView, RandomView, View, WholeView
from st3.data.workers import Batches
from st3.errors import UserError

DECODERS = "cpu", "gpu"


class FolderLoader(Loader):
    """Reads, crops and resizes files in `workers` processes (0: in this one); see `Loader`.

    `paths` are N file names (object array [N]), `labels` int64 [N]. A training loader takes a random resized
    crop and mirrors half of the images; any other takes the central crop; `view` is taken instead of either. `decode`
    is "cpu", Pillow in the workers, or "gpu": the workers only read the files, and `device`, of whatever type, decodes,
    crops and resizes; the crops are the same, the pixels differ by the rounding of two decoders.

    A file that cannot be read ends the epoch; with `left_out` it is counted there, and in training another takes its
    place (see `ImageFiles`).

    The workers of a training loader live as long as the loader, those of any other only for an epoch: so at most
    `workers` of them are idle, not three times as many.

    Raises:
        UserError: `device` cannot decode.
        DataError: from `epoch`, a file that cannot be read, by its path, or too many of them; see `Batches`, too.
    """

    def __init__(
        self,
        paths: np.ndarray,
        labels: torch.Tensor,
        *,
        image_size: int,
        channels: int,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        decode: str = "cpu",
        workers: int = 0,
        training: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        left_out: LeftOut | None = None,
        augmenter: Augmenter | None = None,
        view: View | None = None,
    ):
        order = {"seed": seed, "rank": rank, "world_size": world_size}
        super().__init__(labels, batch_size=batch_size, training=training, augmenter=augmenter, **order)
        self.device = torch.device(device)
        self.left_out = left_out
        self.normalise = Normalise(mean, std, image_size, device)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        view = view or (RandomView(image_size) if training else CentralView(image_size))
        files: ImageFiles
        self.prepare: Callable[..., Sequence[torch.Tensor]]
        if decode == "gpu":
            assert channels == 3
            assert left_out is None
            assert not isinstance(view, WholeView)  # which cuts no tensors
            files = EncodedFiles(paths, labels, view, channels, seed)
            self.prepare = DeviceDecoder(paths, view, self.device)
        else:
            skip: OnError = "replace" if training else "leave_out"
            files = ImageFiles(paths, labels, view, channels, seed, "stop" if left_out is None else skip)
            self.prepare = partial(copied, device=self.device)
        self.sampler: list[tuple[int, torch.Tensor]] = []
        self.batches = Batches(
            files,
            self.sampler,
            workers=workers if len(paths) else 0,
            persistent=training,
            pin_memory=self.device.type == "cuda",
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of one epoch; see `Loader`. Starting an epoch ends the one that is under way."""
        random = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        self.sampler[:] = [(epoch, indices) for indices in self.split(self.order(random))[start:]]
        augmentations = self.augmentations(random)[start:]
        batches = prepared(checked(self.batches, self.left_out), self.prepare, self.stream)
        for (images, labels), draws in zip(batches, augmentations, strict=True):
            if len(labels):  # else all were left out
                images = self.augmenter.distort(images, [draws])
                yield self.augmenter.finish(self.normalise(images), labels, draws)


def copied(batch: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """The tensors of a batch on `device`, without waiting for it where they are pinned."""
    return [part.to(device, non_blocking=True) for part in batch]


def prepared(
    batches: Iterable, prepare: Callable[..., Sequence[torch.Tensor]], stream: torch.cuda.Stream | None
) -> Iterator[Sequence[torch.Tensor]]:
    """`prepare(batch)` of each batch.

    With a `stream`, the next batch is prepared there before the present one is handed out, so that the device copies
    or decodes it while the current stream computes. The current stream waits only for a batch that is not ready yet.
    """
    if stream is None:
        yield from map(prepare, batches)
        return

    def hand_out(tensors: Sequence[torch.Tensor], done: torch.cuda.Event) -> Sequence[torch.Tensor]:
        current = torch.cuda.current_stream(stream.device)
        current.wait_event(done)
        for tensor in tensors:
            tensor.record_stream(current)  # keeps the other stream from reusing their memory too early
        return tensors

    waiting = None
    for batch in batches:
        with torch.cuda.stream(stream):
            coming = prepare(batch), stream.record_event()
        if waiting:
            yield hand_out(*waiting)
        waiting = coming
    if waiting:
        yield hand_out(*waiting)


class DeviceDecoder:
    """Maps an `EncodedBatch` to uint8 images [B, 3, H, W] and int64 labels [B] on `device`, which decodes the JPEGs.

    Pillow decodes in this process what `device` refuses; `paths` are for the message where it fails, too.

    Raises:
        UserError: `device` decodes no JPEG at all.
        DataError: when called, a damaged file.
    """

    def __init__(self, paths: np.ndarray, view: RandomView | CentralView, device: torch.device):
        self.paths = paths
        self.view = view
        self.device = device
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG")
        try:  # once, now: a device without a decoder would else refuse every image, and Pillow would decode them all
            self._decode([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)])
        except RuntimeError as error:
            raise UserError(
                f"dataset.decode=gpu, but torchvision decodes no JPEG on {device} "
                f"({str(error).splitlines()[0]}): set dataset.decode=cpu"
            ) from None

    def __call__(self, batch: EncodedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        if self.device.type == "cuda":
            # torchvision allocates its output on the current stream but writes it on one of its own: what was cut
            # out of the last batch must be done before that memory is written again.
            torch.cuda.current_stream(self.device).synchronize()
        encoded = batch.lengths > 0
        decoded = iter(self._decoded(batch.content.split(batch.lengths[encoded].tolist()), batch.indices[encoded]))
        pixels = iter(batch.pixels.to(self.device, non_blocking=True))
        images = [
            self.view.cut(next(decoded), view) if is_encoded else next(pixels)
            for is_encoded, view in zip(encoded.tolist(), batch.views.tolist(), strict=True)
        ]
        return torch.stack(images), batch.labels.to(self.device, non_blocking=True)

    def _decode(self, files: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return decode_jpeg(list(files), mode=ImageReadMode.RGB, device=self.device)

    def _decoded(self, files: Sequence[torch.Tensor], indices: torch.Tensor) -> list[torch.Tensor]:
        """uint8 [3, height, width] of each file, uint8 [bytes]."""
        if not files:
            return []
        try:
            return self._decode(files)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # one refused file is enough for this: find out which are fine
            return [self._one(file, self.paths[index]) for file, index in zip(files, indices.tolist(), strict=True)]

    def _one(self, file: torch.Tensor, path: str) -> torch.Tensor:
        try:
            return self._decode([file])[0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            with naming(path):
                image = parsed(io.BytesIO(file.numpy().tobytes())).convert("RGB")
        return pil_to_tensor(image).to(self.device)
