"""Write a network to a file for another runtime, and find out whether the file is right before it is called one."""

import contextlib
import gzip
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import st3
from st3.config import stored_config
from st3.data import build_split
from st3.data.datasets import fashion_mnist_embedded
from st3.deploy.card import Card
from st3.deploy.formats import Format, Network, StoredWeight
from st3.deploy.network import Trained, load_trained
from st3.deploy.pixel_program import PixelNetwork, pixel_program, program_weights
from st3.errors import DiskError, UserError
from st3.sparsify import weight_layers
from st3.whole_files import save_json

BATCH = 4
"""Images that a file is tried on: one at a time, and all at once."""
TOLERANCE = 1e-4
"""How far a logit may be from PyTorch's, in units of the largest one."""


@dataclass(frozen=True, kw_only=True)
class ExportedLayer:
    """A layer's weight in the file."""

    layer: str
    weights: int
    zeros: int
    kernel: str
    """sparse: the runtime skips its zeros; dense: it computes with them."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What export.json says of a file."""

    format: str
    file: str
    model: str
    classes: tuple[str, ...]
    input: str
    output: str
    checked: str
    """On which images the file was run; or why it was not."""
    largest_difference: float | None
    """Of a logit from PyTorch's, in units of the largest one."""
    bytes: int
    """On disk, with all that belongs to the file."""
    bytes_gzip: int
    """Of the same, each file packed by gzip -9."""
    sparsity: float
    """Zeros / weights of the layers below."""
    layers: tuple[ExportedLayer, ...]
    versions: dict[str, str]
    date: str
    """UTC."""


def export(trained: Trained, kind: Format, folder: Path) -> Exported:
    """Write the file, and export.json beside it, into the new folder `folder`.

    It appears there when it has been run on one image and on `BATCH` and agrees with PyTorch (`TOLERANCE`, and the same
    top-1), and all layers' numbers have been found in it; nothing does before. `trained` is on the CPU.

    Raises:
        UserError: `folder` exists, the network has what the format has not, or the file is wrong.
        DiskError: `folder` cannot be made or written.
    """
    with _new_folder(folder) as aside:
        pixels, source = real_images(trained)
        reference = reference_logits(trained, pixels)
        program = pixel_program(trained)
        path = aside / kind.file
        kind.write(program, trained.card, path)
        layers = find_layers(program_weights(program, trained.model), weight_layers(trained.model), kind.weights(path))
        difference, checked = None, "not run: this kind of file runs on other machines only"
        if kind.runs_here:
            difference = compare(kind.open(path), pixels, reference)
            checked = f"{len(pixels)} {source}, one at a time and together"
        result = Exported(
            format=kind.name,
            file=kind.file,
            model=trained.card.model.name,
            classes=trained.card.classes,
            input=describe_input(trained.card),
            output="logits: float32 [batch, classes]",
            checked=checked,
            largest_difference=difference,
            bytes=sum(file.stat().st_size for file in _files(aside)),
            bytes_gzip=sum(len(gzip.compress(file.read_bytes(), 9)) for file in _files(aside)),
            sparsity=sum(each.zeros for each in layers) / sum(each.weights for each in layers),
            layers=tuple(layers),
            versions={"st3": st3.__version__} | kind.versions(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        save_json(aside / "export.json", asdict(result))
    return result


def pack(source: Path, folder: Path) -> tuple[int, int, Path]:
    """Write the safetensors file `source` as FILE.gz into the new folder `folder`: bytes before, after, and its path.

    Plain gzip, which every machine can unpack: indices and values, or a bit for each weight, come out a fifth smaller
    (docs/deploy.md), and would need a reader of their own. Raises `UserError` where `folder` exists, `DiskError`
    where it cannot be made or written.
    """
    if source.suffix != ".safetensors":
        raise UserError(f"--pack is for model.safetensors, not {source}")
    load_trained(source, torch.device("cpu"))  # says what is wrong with it
    content = source.read_bytes()
    packed = gzip.compress(content, 9, mtime=0)
    with _new_folder(folder) as aside:
        path = aside / f"{source.name}.gz"
        path.write_bytes(packed)
        if gzip.decompress(path.read_bytes()) != content:
            raise wrong_file("unpacked, it is not what was packed")
    return len(content), len(packed), folder / f"{source.name}.gz"


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which is called `folder` if all goes well, and is gone otherwise."""
    if folder.exists():
        raise UserError(f"{folder} exists: remove it, or choose another place with --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise DiskError(f"{folder} cannot be made ({error.strerror}): choose another place with --out") from error
    try:
        yield aside
        aside.chmod(0o755)  # a temporary folder is its owner's only
        aside.rename(folder)
    except OSError as error:  # a full disk; somebody else was faster
        raise DiskError(f"{folder} cannot be written ({error.strerror}): make room, or choose another --out") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def describe_input(card: Card) -> str:
    """What the exported network takes."""
    channels = {1: "grey", 3: "RGB"}[card.channels]
    shape = f"batch, {card.channels}, {card.image_size}, {card.image_size}"
    return f"pixels: float32 [{shape}], {channels}, in [0, 1], not normalised"


def find_layers(
    wanted: dict[str, Tensor], trained: dict[str, torch.nn.Parameter], stored: Sequence[StoredWeight]
) -> list[ExportedLayer]:
    """Each layer as the file has it. `wanted`: the weights that were to be written; `trained`: before BatchNorm was
    folded in.

    Raises `UserError` for a layer whose numbers are not in the file, or that has lost a zero on the way.
    """
    layers = []
    for name, weight in wanted.items():
        values, zeros = weight.numpy(), int((trained[name] == 0).sum())
        found = next((each for each in stored if each.is_of(values)), None)
        if found is None or found.zeros < zeros:
            others = [each.zeros for each in stored if each.size == values.size]
            nearest = min(others, key=lambda count: abs(count - zeros), default=None)
            there = "is not in the file" if nearest is None else f"may have {nearest:,} there, or other numbers"
            raise wrong_file(f"layer {name} has {zeros:,} zeros and {there}")
        kernel = "sparse" if found.sparse else "dense"
        layers.append(ExportedLayer(layer=name, weights=values.size, zeros=found.zeros, kernel=kernel))
    return layers


@torch.no_grad()
def reference_logits(trained: Trained, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """PyTorch's logits [B, classes] for `pixels` [B, C, H, W].

    Raises `UserError` where comparing with them would show nothing: they do not depend on the image, or are not finite.
    """
    logits = PixelNetwork(trained.model, trained.card).eval()(torch.from_numpy(pixels)).numpy()
    if not np.isfinite(logits).all():
        raise UserError("this network's logits are not finite: give one whose training ended well")
    if len(pixels) > 1 and not np.ptp(logits, axis=0).max() > TOLERANCE * np.abs(logits).max():
        raise UserError(
            f"the logits of this network are the same for {len(pixels)} different images, so that no file can be "
            "checked: give one that has learned something"
        )
    return logits


def compare(network: Network, pixels: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The largest difference of a logit from `reference`, in units of its largest one; alone and in a batch.

    Raises `UserError` where it is above `TOLERANCE` or a top-1 differs.
    """
    scale = float(np.abs(reference).max())
    worst = 0.0
    batches = [pixels[i : i + 1] for i in range(len(pixels))], [pixels]
    for parts in batches:
        logits = np.concatenate([network(np.ascontiguousarray(part)) for part in parts])
        size = len(parts[0])
        if logits.shape != reference.shape:
            raise wrong_file(f"for a batch of {size} its output has the shape {logits.shape}")
        if not np.abs(logits).max() > 0:
            raise wrong_file(f"for a batch of {size} its output is 0 or NaN")
        difference = float(np.abs(logits - reference).max()) / scale
        if not difference <= TOLERANCE or (logits.argmax(1) != reference.argmax(1)).any():
            raise wrong_file(
                f"for a batch of {size} its logits are {difference:.1e} of the largest one away from PyTorch's; "
                f"{TOLERANCE:.0e} and the same top-1 are wanted"
            )
        worst = max(worst, difference)
    return worst


def wrong_file(what: str) -> UserError:
    """A file that is not what it should be; it is deleted."""
    return UserError(f"the file is wrong: {what}; nothing was written")


def real_images(trained: Trained) -> tuple[NDArray[np.float32], str]:
    """`BATCH` images as pixels [B, C, H, W] in [0, 1], and what they are: the run's own test images if they are there,
    else some that come with st3."""
    card, stored = trained.card, trained.directory.config()
    if stored is not None:
        config = stored_config(stored, trained.directory.path)
        try:
            images = build_split(config.dataset, "test", seed=config.seed, device=torch.device("cpu"))
            normalised = next(iter(images.loader.epoch(0)))[0][:BATCH]
            mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (card.mean, card.std))
            return (normalised * std + mean).clamp(0, 1).contiguous().numpy(), "test images of the run"
        except UserError:
            pass  # they are no longer there
    embedded = fashion_mnist_embedded().test
    assert embedded is not None
    grey = torch.as_tensor(embedded.inputs)[:BATCH].float().view(BATCH, 1, 28, 28) / 255
    size = card.image_size, card.image_size
    pixels = torch.nn.functional.interpolate(grey, size, mode="bilinear").expand(-1, card.channels, -1, -1)
    return pixels.contiguous().numpy(), "embedded images of Fashion-MNIST, fitted to the size"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
