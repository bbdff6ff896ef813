"""AC/DC (Peste et al. 2021, arXiv:2106.12379): compressed and dense phases in turn."""

from dataclasses import dataclass

from st3.sparsify.masks import MaskPruner, clear_state
from st3.sparsify.thresholds import quantile


@dataclass(frozen=True, kw_only=True)
class ACDC:
    """In a compressed phase only the globally largest weights of its first moment live, the others are 0; in a dense
    phase all do, the zeroed ones from 0 on, and without momentum.

    The phases are the schedule's (`AlternatingPhases`). `ŵ = w·m`, the gradient is masked.
    """

    def start(self, weights, schedule) -> "ACDCPruner":
        """With all weights kept."""
        return ACDCPruner(weights)


class ACDCPruner(MaskPruner):
    def __init__(self, weights):
        super().__init__(weights, for_good=True)
        self._compressed = False

    def changes(self, step, sparsity):
        return self._compressed != (sparsity > 0)

    def update(self, step, sparsity, raw, optimizer):
        if sparsity > 0 and not self._compressed:
            magnitudes = raw.flat.abs()
            kept = raw.parts(magnitudes > quantile(magnitudes, sparsity))
            self.set_masks([k.as_strided(m.shape, m.stride()) for k, m in zip(kept, self.masks, strict=True)])
        if self._compressed and not sparsity > 0:
            for mask in self.masks:
                mask.fill_(True)
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    clear_state(optimizer, weight)
        self._compressed = sparsity > 0
        super().update(step, sparsity, raw, optimizer)

    def state_dict(self):
        return super().state_dict() | {"compressed": self._compressed}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._compressed = state["compressed"]
