"""What must be known of a trained network to use it; it stands in the metadata of model.safetensors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import st3
from st3.config import Config
from st3.data import check_options
from st3.data.config import DatasetConfig
from st3.data.views import CentralView, WholeView
from st3.errors import UserError, one_line
from st3.models import ModelConfig
from st3.settings import converted, hints, shown

VIEWS: dict[str, type[WholeView | CentralView]] = {"whole": WholeView, "central": CentralView}
_OF_THE_START = "init", "weights"
"""Settings of a network that do not say what it is, but what it was before training."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """How the network is built, which images it takes, and what it tells apart.

    The rest follows: that images of at most 64 pixels got another stem, for one, from `image_size`.
    """

    model: ModelConfig
    classes: tuple[str, ...]
    """Logit i is of `classes[i]`."""
    channels: int
    """1 (grey) or 3 (RGB); image files are converted."""
    image_size: int
    """Side of the square images, in pixels."""
    mean: tuple[float, ...]
    """Of each channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    view: str
    """What the network sees of an image file: whole (see `WholeView`) or central (see `CentralView`)."""
    sparsity: float | None = None
    """Zeros / prunable weights; None: a run of before has not said it."""
    sparsity_target: float
    target: str
    """What the sparsity target counts: weights, flops or latency."""

    @classmethod
    def of_run(cls, config: Config, classes: Sequence[str], sparsity: float | None) -> "Card":
        """Of the network that a run with these settings leaves behind; it sees files as its own evaluation did."""
        data = config.dataset
        return cls(
            model=config.model,
            classes=tuple(classes),
            channels=data.channels,
            image_size=data.image_size,
            mean=tuple(data.mean),
            std=tuple(data.std),
            view="central" if data.streamed else "whole",
            sparsity=sparsity,
            sparsity_target=config.target_sparsity,
            target=config.selection.target,
        )

    def make_view(self) -> WholeView | CentralView:
        """What cuts the network's input out of an image."""
        return VIEWS[self.view](self.image_size)

    def check(self) -> None:
        """Raises `UserError` for what no network has."""
        if self.view not in VIEWS:
            raise UserError(f"view={shown(self.view)} is not known")
        check_options(
            DatasetConfig(
                name="folder",
                classes=len(self.classes),
                channels=self.channels,
                image_size=self.image_size,
                mean=list(self.mean),
                std=list(self.std),
            )
        )

    def metadata(self) -> dict[str, str]:
        """For the file: the model's name, the classes as a JSON list, the version of st3, and all else as JSON."""
        network = asdict(self) | {"classes": len(self.classes)}
        network["model"] = {key: value for key, value in network["model"].items() if key not in _OF_THE_START}
        return {
            "model": self.model.name,
            "classes": json.dumps(self.classes, ensure_ascii=False),
            "st3": st3.__version__,
            "network": json.dumps(network),
        }

    @classmethod
    def read(cls, metadata: Mapping[str, str], source: str) -> "Card | None":
        """From a file's metadata; None where it does not say enough, as in files of before.

        Raises `UserError`, which names the file `source`, for what this version cannot understand.
        """
        if "network" not in metadata:
            return None
        try:
            network: dict[str, Any] = json.loads(metadata["network"])
            network["model"] = ModelConfig(**_typed(ModelConfig, network["model"]))
            card = cls(**_typed(cls, network | {"classes": named_classes(metadata)}))
            card.check()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{source} has a description that st3 {st3.__version__} cannot read ({one_line(error)}): "
                f"use st3 {metadata.get('st3')}, which wrote it"
            ) from error
        return card


def named_classes(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The class names in a file's metadata, also in those of before; none where it has none.

    Raises `UserError` for what are no names.
    """
    try:
        names = json.loads(metadata.get("classes", "[]"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the names of its classes cannot be read ({error})") from error
    return tuple(converted("classes", names, list[str]))


def _typed(kind: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the fields of a dataclass are, as these take it. Raises `UserError`, naming the field."""
    kinds, typed = hints(kind), dict[str, Any]()
    for name, value in fields.items():
        known = name in kinds and kinds[name] is not ModelConfig
        value = converted(name, value, kinds[name]) if known else value
        typed[name] = tuple(value) if isinstance(value, list) else value
    return typed
