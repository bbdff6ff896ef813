"""Exponential moving average of a network in sparse training."""

import copy

import torch
from torch import Tensor, nn

from st3.sparsify import Sparsifier


class RawAverage:
    """Averages the raw weights, and everything else in the state dict; its network is the projection of the average.

    Averaging the sparse weights themselves would fill zeros in again wherever the mask moved.
    `decay` d: `average ← d·average + (1 − d)·value`, with d at most `(1 + t)/(10 + t)` at update t, so that the
    first averages are not dominated by the initial weights.
    """

    def __init__(self, model: nn.Module, sparsifier: Sparsifier, decay: float):
        self._model, self._sparsifier, self.decay, self.updates = model, sparsifier, decay, 0
        # Layer name by parameter name, for the pruned weights. They can differ by more than ".weight".
        layers = {id(weight): layer for layer, weight in sparsifier.weights.items()}
        self._pruned = {name: layers[id(p)] for name, p in model.named_parameters() if id(p) in layers}
        self.values = {name: value.clone() for name, value in self._current().items()}

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each optimizer step. Never waits for the device."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = self._current()
        averaged = [name for name, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.values[n] for n in averaged], [current[n] for n in averaged], weight)
        for name in current.keys() - set(averaged):
            self.values[name].copy_(current[name])

    @torch.no_grad()
    def network(self) -> nn.Module:
        """A copy of the model that holds the projected average: as sparse as the model is now."""
        network = copy.deepcopy(self._model)
        pruned = self._pruned
        projected = self._sparsifier.project({layer: self.values[name] for name, layer in pruned.items()})
        named = dict(network.named_parameters()) | dict(network.named_buffers())
        for name, value in self.values.items():
            named[name].copy_(projected[pruned[name]] if name in pruned else value)
        return network

    @torch.no_grad()
    def finish(self) -> None:
        """Put the average into the model for good: its raw weights, their projection, everything else."""
        raw = {layer: self.values[name] for name, layer in self._pruned.items()}
        for name, value in self._current().items():
            value.copy_(self.values[name])
        state = self._sparsifier.state_dict()
        self._sparsifier.load_state_dict(state | {"raw": raw if state["raw"] else {}})

    def state_dict(self) -> dict:
        return {"values": self.values, "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])

    def _current(self) -> dict[str, Tensor]:
        current = {n: p.detach() for n, p in self._model.named_parameters()} | dict(self._model.named_buffers())
        raw = self._sparsifier.raw_weights()
        return current | {name: raw[layer] for name, layer in self._pruned.items()}
