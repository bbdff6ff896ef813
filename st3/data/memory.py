"""Image folders that are decoded once, whole, into memory; and the cache file that replaces this in later runs."""

import contextlib
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
import torch

from st3.data.config import DatasetConfig
from st3.data.files import ImageFiles, LeftOut, OnError, checked
from st3.data.images import naming
from st3.data.views import WholeView
from st3.data.workers import Batches
from st3.errors import DiskError, UserError
from st3.whole_files import replacing

CACHE_FORMAT = 1  # raise it whenever the same images would give another cache file
HEADER_BYTES = 128


def decode_once(
    paths: np.ndarray, config: DatasetConfig, announce: bool = True, left_out: LeftOut | None = None
) -> torch.Tensor:
    """Every file as pixels in memory: uint8 [N, channels, image_size, image_size], channels_last.

    With a cache folder the pixels are written to a file there, and later mapped into memory from it, as long as no
    image has changed. Several processes may use it at the same time.

    Args:
        paths: file names below the dataset's root, object array [N].
        announce: print a line when a cache file is written, used or damaged.
        left_out: files that cannot be read are black, and counted here; None: they are an error. With any of them no
            cache file is written, because it has no place to say so.

    Raises:
        DataError: a file that cannot be read, by its path, or too many of them.
        DiskError: a cache that cannot be used.
    """
    shape = len(paths), config.image_size, config.image_size, config.channels

    def decode() -> np.ndarray:
        places = torch.arange(len(paths))  # in place of labels: they say which images have come
        on_error: OnError = "stop" if left_out is None else "leave_out"
        files = ImageFiles(paths, places, WholeView(config.image_size), config.channels, seed=0, on_error=on_error)
        batches = [(0, indices) for indices in places.split(1000)]
        pixels = np.empty(shape, np.uint8)
        black = np.ones(len(paths), bool)
        for images, came in checked(Batches(files, batches, workers=config.workers), left_out):
            pixels[came.numpy()] = images.permute(0, 2, 3, 1).numpy()
            black[came.numpy()] = False
        pixels[black] = 0
        return pixels

    if config.cache is None:
        pixels = decode()
    else:
        assert config.root is not None
        path = _cache_path(config.cache, paths, config.root, shape)
        pixels = _cached(path, shape, decode, announce, left_out)
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


def _cached(
    path: Path, shape: tuple[int, ...], decode: Callable[[], np.ndarray], announce: bool, left_out: LeftOut | None
) -> np.ndarray:
    """The pixels in `path`, uint8 `shape`; made by `decode()` and written there, if they are not and are complete."""

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
    if left_out and left_out.errors:
        say(f"not written: {len(left_out.errors):,} of {shape[0]:,} image files cannot be read")
        return pixels
    with _usable(path.parent):
        _write(path, pixels)
    say(f"written: {shape[0]:,} images, {pixels.nbytes / 1e6:,.1f} MB")
    return pixels


@contextlib.contextmanager
def _usable(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"cannot use dataset.cache={cache} ({error}): set dataset.cache to a folder that can be written, or to null"
        ) from None


def _header(pixels: np.ndarray) -> bytes:
    text = f"st3 pixels, format {CACHE_FORMAT}, shape {pixels.shape}, CRC-32 {zlib.crc32(pixels.data):08x}\n"
    return text.encode().ljust(HEADER_BYTES)


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """uint8 `shape`, mapped from the file, which does not change when the pixels are written to; None: damaged."""
    if path.stat().st_size != HEADER_BYTES + np.prod(shape):
        return None
    pixels = np.memmap(path, np.uint8, mode="c", offset=HEADER_BYTES, shape=shape)
    with path.open("rb") as file:
        return pixels if file.read(HEADER_BYTES) == _header(pixels) else None


def _write(path: Path, pixels: np.ndarray) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_header(pixels))
        file.write(pixels.data)


def check_memory(images: int, copied: int, config: DatasetConfig, device: torch.device) -> None:
    """Refuse to decode into memory what does not fit there.

    Args:
        images: of all splits together; they end on `device`.
        copied: how many of these are in the machine's memory twice for a moment.

    Raises:
        UserError: there is less memory available.
    """
    channels, image_size = config.channels, config.image_size
    each, processes = channels * image_size**2, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each holds all images
    available = [("memory", (images + copied) * each * processes, available_memory())]
    if device.type == "cuda":
        available.append((f"memory on {device}", images * each, torch.cuda.mem_get_info(device)[0]))
    for where, needed, free in available:
        if free is not None and needed > free:
            raise UserError(
                f"{config.root} decoded into memory is {images:,} images of {channels}×{image_size}×{image_size}, "
                f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of {where} are free: set "
                "dataset.augment=random_resized_crop, which decodes during training, or a smaller dataset.image_size"
            )


def available_memory() -> int | None:
    """Bytes that this machine can still give; None: unknown."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.M):
            return 1024 * int(found[1])
    try:  # not Linux, or an old one: all memory that there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
