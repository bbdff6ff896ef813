"""From a run directory, or the file of a network, to the network, ready for use."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from st3.config import stored_config
from st3.data.files import seen
from st3.data.images import mode_of, read_image
from st3.data.loader import Normalise
from st3.deploy.card import Card, named_classes
from st3.errors import UserError
from st3.models import build_model
from st3.models.weights import put, read_file, read_header
from st3.training.machine import Machine, pick_device, pick_precision
from st3.training.run_directory import RunDirectory


class Preprocess:
    """An image, or the path of its file, to what the network takes: float32 [C, image_size, image_size], normalised.

    It is what the evaluation of the run does to an image file. Raises `UserError` for a file that cannot be read.
    """

    def __init__(self, card: Card):
        self._view, self._mode = card.make_view(), mode_of(card.channels)
        self._normalise = Normalise(card.mean, card.std, card.image_size, "cpu")

    def __call__(self, image: Image.Image | str | Path) -> Tensor:
        decoded = image.convert(self._mode) if isinstance(image, Image.Image) else read_image(str(image), self._mode)
        pixels = torch.from_numpy(seen(self._view, decoded, self._view.draw(decoded)).copy())
        return self._normalise(pixels.permute(2, 0, 1)[None])[0].contiguous()


@dataclass(frozen=True)
class Trained:
    """A network with what must be known to use it."""

    model: nn.Module
    """In eval mode, on its device, channels_last."""
    card: Card
    directory: RunDirectory
    """The folder that its file lies in: a run's, or any."""


def load(source: str | Path, device: str = "cpu") -> Any:
    """The network of a finished run, in eval mode: `[B, C, H, W]` float → logits `[B, classes]`.

    It is the ordinary module that was trained, with two attributes more: `preprocess(IMAGE or PATH)` gives the
    network's input `[C, H, W]`, as the evaluation of the run did; logit i is of `classes[i]`.

    Args:
        source: the folder of a run, which means its model.safetensors; or such a file, wherever it is.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: no network there, a damaged file, or one that does not say what is needed to use it.
    """
    trained = load_trained(source, pick_device(device))
    model: Any = trained.model
    model.preprocess, model.classes = Preprocess(trained.card), trained.card.classes
    return model


def load_trained(source: str | Path, device: torch.device) -> Trained:
    """As `load`, with all that is known of the network."""
    path = find_network(Path(source))
    card = _card(path)
    with torch.device("meta"):
        sketch = _build(card)
    if shapes := read_header(path)[1]:  # before there is memory for it, which a description may ask for without end
        _put(sketch, shapes, card, path)
    with torch.random.fork_rng(devices=[]):  # weights are drawn, then replaced
        model = _build(card)
    _put(model, read_file(path, option=""), card, path)
    model = model.eval().to(device).to(memory_format=torch.channels_last)
    return Trained(model, card, RunDirectory(path.parent))


def _build(card: Card) -> nn.Module:
    return build_model(card.model, classes=len(card.classes), channels=card.channels, image_size=card.image_size)


def _put(model: nn.Module, values: Mapping[str, Tensor], card: Card, path: Path) -> None:
    """Raises `UserError` where they do not fit."""
    if head := put(model, values, str(path), option=""):
        raise UserError(f"{path} does not fit its description: its layer {head} is not for {len(card.classes)} classes")


def find_network(source: Path) -> Path:
    """The file that holds the network: `source`, or that of the run in the folder `source`.

    Raises `UserError` where there is none, or a training that is not finished; `DamagedError` where it is not what was
    written.
    """
    directory = RunDirectory(source if source.is_dir() else source.parent)
    path = directory.checked((directory.network if source.is_dir() else source).name)
    unfinished = directory.has_checkpoint() and not directory.network.exists()
    if source == directory.last or (source.is_dir() and unfinished):
        raise UserError(
            f"{source} is a training that may go on, not a network to use: finish it with "
            f"st3-train run_dir={directory.path}, or give {directory.best} if it is there"
        )
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of a finished run, or its model.safetensors")
    return path


def _card(path: Path) -> Card:
    (metadata, _), directory = read_header(path), RunDirectory(path.parent)
    if card := Card.read(metadata, str(path)):
        return card
    stored = directory.config()
    if stored is None:
        raise UserError(
            f"{path} does not say what it is a network for (image size, mean, std, …), as files of earlier versions: "
            "put it back into the folder of its run, beside config.yaml"
        )
    if path != directory.network and directory.network.exists():  # best.pt
        return _card(directory.network)
    config, summary = stored_config(stored, directory.path), directory.summary()
    classes = named_classes(metadata) or tuple(map(str, range(config.dataset.classes or 0)))
    if not classes:
        raise UserError(f"{path} does not say how many classes there are: write dataset.classes into config.yaml")
    return Card.of_run(config, classes, summary.sparsity if summary else None)


def find_run(path: Path) -> RunDirectory:
    """The folder of a finished run. Raises `UserError` for anything else."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder: give that of a finished run")
    directory = RunDirectory(find_network(path).parent)
    if directory.config() is None:
        raise UserError(f"{path} holds a network, but no config.yaml: give the folder of a finished run")
    return directory


def choose_machine(directory: RunDirectory, device: str, precision: str | None) -> tuple[Machine, str]:
    """Where to compute and how exactly, and a note where that is not what was recorded.

    Without a `precision`, that of the run, or fp32 where it is not known or the device cannot compute so. Raises
    `UserError` for what is not there.
    """
    chosen, recorded = pick_device(device), directory.environment().get("precision", "fp32")
    if precision is not None:
        return Machine(chosen, pick_precision(precision, chosen)), ""
    if recorded == "fp16" and chosen.type == "cpu":
        return Machine(chosen, "fp32"), f", not {recorded} as in training, which a CPU has not"
    return Machine(chosen, recorded), ""
