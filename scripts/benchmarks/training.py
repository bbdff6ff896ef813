"""Contenders that train as `st3-train` does, at the full sparsity throughout."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks.harness import Contender
from st3.config import Config
from st3.errors import UserError
from st3.run import build
from st3.sketch import choose_execution, sketch
from st3.sparsify import METHODS
from st3.variants import unknown_choice

Batch = tuple[Tensor, Tensor]
"""Images and labels."""

SETTINGS: dict[str, dict[str, Any]] = {
    "str": {"threshold_init": -2.0},  # the published one starts far from the full sparsity
    "rigl": {"every": 100},
    "set": {"every": 100},
    "granet": {"every": 1000},
}
"""Where they are not the defaults. In steps, so that the length of the training plays no part."""

NOTES = {
    "gmp": "its masks change only while the sparsity rises, by a quantile as hard_ste takes in each step; not timed.",
    "str": "its thresholds start at sigmoid(−2), the 90 % quantile of a new ResNet-20; the zeros are what comes of it.",
    "probmask": "timed while masks are drawn in every step; the zeros are those of the hard masks of one step more.",
    "set": "what it grows is 0 until it has a gradient, so that there may be more zeros than asked for.",
    "acdc": "in a compressed phase, where its masks stay; the steps between phases are not timed.",
    "pytorch": "the dense network in a plain loop, without this package.",
    "naive": "ST-3 with an autograd function in every layer and a full sort read by the host.",
}
"""What is timed, where the name of a method does not say it."""


def chosen(option: str, text: str, known: Sequence[str]) -> list[str]:
    """The names in `text`; "all" is every known one. Raises `UserError` for a name that is not known."""
    names = list(known) if text == "all" else text.split(",")
    for name in names:
        if name not in known:
            raise UserError(unknown_choice(option, name, [*known, "all"]))
    return names


def chosen_methods(text: str, *peers: str) -> list[str]:
    """What --methods asks for, after `dense`. The `peers` may be chosen, too, and are no methods."""
    return list(dict.fromkeys(["dense", *chosen("--methods", text, [*METHODS, *peers])]))


class Training(Contender):
    """What `st3.run` makes of `config` and a method. "dense" has nothing attached to its optimizer."""

    def make(self, config: Config, method: str) -> None:
        run = sketch(replace(config, method=METHODS[method](**SETTINGS.get(method, {}))))
        self.plan, self.macs, self.execution = run.plan, run.macs, choose_execution(run, self.machine)
        self.state, self.step = build(run, self.machine, self.execution)
        self.sparsifier = self.state.sparsifier
        if method == "dense":
            self.sparsifier.detach()
        self._changes = self.sparsifier.mask_updates() or []
        apart = self._changes[-1] - self._changes[-2] if len(self._changes) > 1 else 0
        self.all_change = apart == 1
        """Whether the masks change in every step, each time in another way."""
        self.every = apart if apart > 1 else 0
        """Steps from one update of the masks to the next, where there are others between."""
        self._updates = 0

    def ordinary_step(self, batch: Batch) -> Tensor:
        """A step that updates no masks, where there are such. Returns the loss."""
        kind = self.sparsifier.next_step()
        if kind is None and self.every:
            kind = self.sparsifier.next_step(self.sparsifier.step + 1)
        return self.step([batch], self.plan.lr, kind)

    def update_step(self, batch: Batch) -> None:
        """A step that updates masks: the training's one after the other, but for its very first."""
        self._updates = self._updates % (len(self._changes) - 1) + 1
        self.step([batch], self.plan.lr, self.sparsifier.next_step(self._changes[self._updates]))

    def final_step(self, batch: Batch) -> Tensor:
        """A step after which zeros can be counted: what has been grown moves, masks that are drawn become hard."""
        if self.all_change:
            self.sparsifier.next_step(self._changes[-1])
        return self.ordinary_step(batch)
