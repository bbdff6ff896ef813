"""What came out of a run, as summary.json keeps it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from st3.errors import DamagedError, one_line
from st3.plain_files import read_json


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Accuracies are percent, of the network after the last epoch; zeros and MACs are counted in it."""

    top1: float
    """On the test images."""
    top5: float
    val_top1: float | None = None
    """On held-out training images, where there are some."""
    val_top5: float | None = None
    sparsity_target: float
    target: str
    """What the target counts: weights, flops or latency."""
    sparsity: float
    """zeros / prunable."""
    zeros: int
    prunable: int
    macs_dense: int
    macs: int
    modelled_ms_dense: float | None = None
    """Milliseconds of the pruned layers with dense kernels, from method.times; None: the run knew no times."""
    modelled_ms: float | None = None
    """Of the network as it is now: modelled from these times, not measured."""
    modelled_from: str | None = None
    """The file of times, and where they were measured."""
    epochs: int
    steps: int
    seconds: float
    warmup_seconds: float
    """Of these, the first steps, in which kernels are chosen, compiled and captured."""
    data_seconds: float
    """Of these, how long the device waited for training data."""
    saving_seconds: float = 0.0
    """And how long the training waited for checkpoints; 0: an earlier version did not count."""
    peak_memory_bytes: int
    processes: int
    method: str
    model: str
    dataset: str
    seed: int
    mask_updates: int | None = None
    """Optimizer steps in which the masks change; None: all that are sparse."""
    dead_layers: list[str] = field(default_factory=list)
    """Pruned layers whose weights are all zero."""
    constant_logits: bool = False
    """Whether the logits are the same for all test images."""
    warnings: list[str] = field(default_factory=list)
    """What a reader must know before the numbers."""
    best: dict = field(default_factory=dict)
    """The best evaluation at full sparsity; empty where there was none."""
    run_dir: str
    st3: str
    """Version."""
    finished: bool = False

    @property
    def modelled_removed(self) -> float | None:
        """The fraction of the pruned layers' time that is removed, as modelled; None: the run knew no times."""
        if self.modelled_ms_dense is None or self.modelled_ms is None:
            return None
        return 1 - self.modelled_ms / self.modelled_ms_dense

    @classmethod
    def read(cls, path: Path) -> "Summary":
        """From a summary.json, also of an earlier version. Raises `DamagedError`; `UserError` where it is not there."""
        content = read_json(path)
        try:
            kinds = get_type_hints(cls)
            known = {key: value for key, value in content.items() if key in kinds}
            if wrong := [key for key, value in known.items() if not _can_be(key, value, kinds[key])]:
                raise ValueError(f"{wrong[0]}={str(known[wrong[0]])[:50]} cannot be")
            return cls(**known)
        except (ValueError, TypeError, AttributeError) as error:
            raise DamagedError(f"{path} is damaged ({one_line(error)})") from error

    def plain(self) -> dict:
        """For JSON, without what there is none of."""
        perhaps = "val_", "modelled_"
        return {key: value for key, value in asdict(self).items() if value is not None or not key.startswith(perhaps)}


def _can_be(key: str, value: object, kind: Any) -> bool:
    """Whether a field may have this value. No number here is negative."""
    kinds = {get_origin(each) or each for each in get_args(kind)} if get_origin(kind) is UnionType else {kind}
    if float in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        most = 100 if "top" in key else 1 if key.startswith("sparsity") else float("inf")
        return 0 <= value <= most and value != float("inf")
    if int in kinds and isinstance(value, int) and not isinstance(value, bool):
        return value >= 0
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return type(value) in kinds - {int, float}
