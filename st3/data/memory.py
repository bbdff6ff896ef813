"""Image folders that are decoded once, whole, into memory; and the file that spares it the next time."""

import hashlib
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
import torch

from st3.data.files import ImageFiles, checked, naming, worker_batches
from st3.data.views import WholeView
from st3.errors import UserError

CACHE_FORMAT = 1  # to be raised whenever the same files would give another cache file
HEADER_BYTES = 128


def decode_once(
    paths: np.ndarray,
    *,
    root: str,
    image_size: int,
    channels: int,
    workers: int,
    cache: str | None,
    announce: bool = True,
) -> torch.Tensor:
    """Every file as pixels in memory: uint8 [N, channels, image_size, image_size], channels_last.

    Args:
        paths: file names below `root`, object array [N].
        workers: processes that decode (0: this one).
        cache: folder where the pixels are kept in a file, and from where they are mapped into memory when no image
            has changed; None: nothing is kept. Several processes may use it at a time.
        announce: print a line when such a file is written, used or damaged.

    Raises:
        UserError: a file that cannot be read, by its path; a cache that cannot be used.
    """
    shape = len(paths), image_size, image_size, channels

    def decode() -> np.ndarray:
        files = ImageFiles(paths, torch.zeros(len(paths)), WholeView(image_size), channels, seed=0)
        batches = [(0, indices) for indices in torch.arange(len(paths)).split(1000)]
        pixels, done = np.empty(shape, np.uint8), 0
        for images, _ in checked(worker_batches(files, batches, num_workers=workers)):
            pixels[done : done + len(images)] = images.permute(0, 2, 3, 1).numpy()
            done += len(images)
        return pixels

    pixels = decode() if cache is None else _cached(_cache_path(cache, paths, root, shape), shape, decode, announce)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _cache_path(cache: str, paths: np.ndarray, root: str, shape: tuple[int, ...]) -> Path:
    """The file for exactly these pixels: its name is a hash of all that decides them."""
    digest = hashlib.sha256(f"{CACHE_FORMAT} {PIL.__version__} {shape}\n".encode())
    for path in paths:
        with naming(path):
            status = os.stat(path)
        name = os.fsencode(path.removeprefix(str(Path(root))))
        digest.update(b"%s\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns))
    return Path(cache, f"{digest.hexdigest()[:32]}.pixels")


def _cached(path: Path, shape: tuple[int, ...], decode: Callable[[], np.ndarray], announce: bool) -> np.ndarray:
    """The pixels in `path`, uint8 `shape`; made by `decode()` and written there if they are not."""

    def say(line: str) -> None:
        if announce:
            print(f"cache      {path} {line}", flush=True)

    with _usable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if (pixels := _read(path, shape)) is not None:
                say(f"read in place of {shape[0]:,} image files")
                return pixels
            say(f"is damaged: decoding the {shape[0]:,} image files again")
    pixels = decode()
    with _usable(path.parent):
        _write(path, pixels)
    say(f"written: {shape[0]:,} images, {pixels.nbytes / 1e6:,.1f} MB")
    return pixels


@contextmanager
def _usable(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot use dataset.cache={cache} ({error}): set dataset.cache to a folder that can be written, or to null"
        ) from None


def _header(pixels: np.ndarray) -> bytes:
    text = f"st3 pixels, format {CACHE_FORMAT}, shape {pixels.shape}, CRC-32 {zlib.crc32(pixels):08x}\n"
    return text.encode().ljust(HEADER_BYTES)


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """uint8 `shape`, mapped from the file (written to, memory changes and the file does not); None: damaged."""
    if path.stat().st_size != HEADER_BYTES + np.prod(shape):
        return None
    pixels = np.memmap(path, np.uint8, mode="c", offset=HEADER_BYTES, shape=shape)
    with path.open("rb") as file:
        return pixels if file.read(HEADER_BYTES) == _header(pixels) else None


def _write(path: Path, pixels: np.ndarray) -> None:
    """At once or not at all: processes that write the same file at a time do not meet, nor do readers see a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(_header(pixels))
            file.write(pixels)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_memory(images: int, copied: int, *, channels: int, image_size: int, root: str, device: torch.device) -> None:
    """Refuse to decode into memory what does not fit there.

    Args:
        images: in all splits; they end on `device`.
        copied: of these are for a moment twice in the machine's memory.

    Raises:
        UserError: there is less memory available.
    """
    each = channels * image_size**2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each process holds them all
    available = [("memory", (images + copied) * each, available_memory())]
    if device.type == "cuda":
        available.append((f"memory on {device}", images * channels * image_size**2, torch.cuda.mem_get_info(device)[0]))
    for where, needed, free in available:
        if free is not None and needed > free:
            raise UserError(
                f"{root} decoded into memory is {images:,} images of {channels}×{image_size}×{image_size}, "
                f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of {where} are free: set "
                "dataset.augment=random_resized_crop, which decodes during training, or a smaller dataset.image_size"
            )


def available_memory() -> int | None:
    """Bytes that this machine can still give; None: unknown."""
    try:
        return 1024 * int(re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)[1])
    except (OSError, TypeError):  # no Linux, or none that says so: all that there is
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None
