"""What a network starts from: nothing, published weights, a file, or another run; and how sparse it is already."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from st3.config import Config
from st3.errors import UserError
from st3.models.weights import State, check_published, published, put, read_file
from st3.sparsify import weight_layers
from st3.training.run_directory import RunDirectory

PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Start:
    """Weights that are known before the network is built; published ones are fetched only then."""

    source: str
    """As typed."""
    values: State | None
    """Names of parameters and buffers to values; None: published ones."""
    raw: dict[str, Tensor]
    """By layer: raw weights where a run has left them, to be put in place of the sparse ones."""
    sparse: State | None = None
    """The sparse network, where `values` is another one."""

    def load(self, model: nn.Module, config: Config) -> str:
        """Into the network, on meta only to see whether it fits. The name of a head that stays new, or an empty one."""
        values, data = self.values, config.dataset
        if values is None:
            if next(model.parameters()).is_meta:
                return ""
            values = published(config.model, channels=data.channels, image_size=data.image_size)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        raw = {names[id(w)]: self.raw[layer] for layer, w in weight_layers(model).items() if layer in self.raw}
        return put(model, values | raw, self.source)

    def sparsity(self, model: nn.Module, pruned: Sequence[str], head: str) -> float:
        """The fraction of the weights of the layers `pruned` that are zero; a new head has no zeros."""
        values = self.sparse or self.values
        if values is None:
            return 0.0
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        layers = {layer: names[id(w)] for layer, w in weight_layers(model).items() if layer in pruned}
        zeros = sum(int((values[name] == 0).sum()) for layer, name in layers.items() if layer != head)
        return zeros / sum(weight_layers(model)[layer].numel() for layer in layers)


def find_start(config: Config) -> Start | None:
    """What `model.weights` means; None for a network that starts from its initialization.

    Raises `UserError` for a source that is not there, or holds no weights.
    """
    source = config.model.weights
    if not source:
        return None
    if source == PRETRAINED:
        check_published(config.model)
        return Start(source, None, {})
    path = Path(source)
    if path.is_dir():
        return _of_run(source, RunDirectory(path))
    if not path.exists():
        raise UserError(f"model.weights={source} does not exist: give {PRETRAINED}, a file, or the folder of a run")
    return Start(source, read_file(path), {})


def _of_run(source: str, directory: RunDirectory) -> Start:
    generation, _ = directory.checkpoint()
    if generation is None:
        if not directory.network.exists():
            raise UserError(f"model.weights={source} holds no weights: give the folder of a run, or a file")
        return Start(source, read_file(directory.checked("model.safetensors")), {})
    state = generation.state
    if state["average"]:  # of raw weights, and of all else
        return Start(source, state["average"]["values"], {}, sparse=state["model"])
    return Start(source, state["model"], state["sparsifier"]["raw"])
