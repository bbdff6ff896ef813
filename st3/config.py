"""What a run is made of: what is common to all runs, and the checks across groups.

The values are in configs/; a default here means only that a part is off or left to the machine.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from st3.data import AugmentationConfig, DatasetConfig, check_options
from st3.durations import Interval
from st3.errors import UserError, one_line
from st3.models import ModelConfig
from st3.optim import LRSettings, OptimizerSettings
from st3.settings import hints
from st3.sparsify import Dense, Method, RawStep, ScheduleSettings
from st3.variants import VARIANTS, build, plain, typed, unknown_choice, unknown_setting


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which layers are pruned, and what the sparsity counts. Typed in the group `method`."""

    include: list[str] = field(default_factory=lambda: ["*"])
    """Patterns of layer names to prune."""
    exclude: list[str] = field(default_factory=list)
    """Patterns of layer names to leave dense."""
    target: str = "weights"
    """What sparsity counts: weights (fraction zeroed), flops (fraction of the pruned layers' MACs removed) or latency
    (fraction of the pruned layers' measured time removed)."""
    times: str | None = None
    """File of measured times of the network's layers, for method.target=latency and method.cost=time."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    model: ModelConfig
    dataset: DatasetConfig
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Of training images, after dataset.augment."""
    method: Method
    selection: Selection = field(default_factory=Selection)
    raw_step: RawStep = field(default_factory=RawStep)
    """What follows the optimizer's step before the projection."""
    schedule: ScheduleSettings
    optimizer: OptimizerSettings
    lr_schedule: LRSettings

    sparsity: float
    """Target: fraction of the prunable weights (or MACs, or time, see method.target) to zero, in [0, 1)."""
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per optimizer step."""
    accumulate: int = 1
    """Split each step's batch into this many forward and backward passes."""
    label_smoothing: float = 0.0
    """Probability mass spread over all classes, in [0, 1)."""
    clip_norm: float = 0.0
    """Clip the gradient to this L2 norm; 0: never."""
    ema: float = 0.0
    """Decay of an exponential moving average of the raw weights; its projection is evaluated and saved. 0: none."""
    seed: int = 0
    """Of initialization, data order, augmentation and dropout."""
    precision: str = "auto"
    """auto (bf16 where the device computes with it, else fp16 on CUDA and fp32 on the CPU), fp32, bf16 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: str = "auto"
    """on, off, or auto: compile the network with torch.compile on CUDA, where the run is long enough to win by it."""
    capture: str = "auto"
    """on, off, or auto: issue a whole optimizer step as one CUDA graph, where the network is small."""
    profile: bool = False
    """Trace some steps with PyTorch's profiler into the run directory."""
    logger: str = "none"
    """Where the numbers also go, beside TensorBoard: none, wandb or mlflow."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    log_every: int = 50
    """Optimizer steps between rows of metrics."""
    checkpoint_every: str = "10min"
    """How often the state is saved within an epoch: 10min, 500st (optimizer steps), or 0 for at its end only."""
    ddp_timeout: int = 1800
    """Seconds that one of several processes waits for the others before it takes them for lost."""
    run_dir: str | None = None
    """Where the run is written, and continued if unfinished; null: a new folder under outputs/."""
    dry_run: bool = False
    """Print what would be done, write nothing."""

    def __post_init__(self) -> None:
        _check(0 <= self.sparsity < 1, f"sparsity={self.sparsity:g} lies outside [0, 1): try sparsity=0.9")
        for name in ("epochs", "batch_size", "accumulate", "eval_every", "log_every"):
            _check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        _check(self.epochs <= 10**6, f"epochs={self.epochs} must be at most {10**6}")
        _check(
            self.batch_size % self.accumulate == 0,
            f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}: choose one that does",
        )
        _check(0 <= self.label_smoothing < 1, f"label_smoothing={self.label_smoothing:g} lies outside [0, 1)")
        _check(self.clip_norm >= 0, f"clip_norm={self.clip_norm:g} must not be negative: 0 never clips")
        _check(0 <= self.ema < 1, f"ema={self.ema:g} lies outside [0, 1): 0 keeps no average")
        _check(
            not self.ema or not self.schedule.finetune.amount,
            f"ema={self.ema:g} averages raw weights, which schedule.finetune={self.schedule.finetune} replaces: "
            "leave out one of them",
        )
        _check(self.seed >= 0, f"seed={self.seed} must not be negative")
        _one_of("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        for name in ("compile", "capture"):
            _one_of(name, getattr(self, name), ("auto", "on", "off"))
        Interval.parse(self.checkpoint_every)
        _check(1 <= self.ddp_timeout <= 10**7, f"ddp_timeout={self.ddp_timeout} must be 1 to 10,000,000 seconds")
        _one_of("logger", self.logger, ("none", "wandb", "mlflow"))
        _one_of("method.target", self.selection.target, ("weights", "flops", "latency"))
        self._check_times()
        check_options(self.dataset)

    def _check_times(self) -> None:
        by_time = {"method.target=latency": self.selection.target == "latency"}
        by_time |= {"method.cost=time": self.method.scales_by == "time"}
        needed = [setting for setting, given in by_time.items() if given]
        if self.selection.times is None:
            _check(not needed, f"{' and '.join(needed)} needs a file of measured times: method.times=FILE")
        else:
            _check(bool(needed), f"method.times={self.selection.times} has no effect without {' or '.join(by_time)}")

    def flat(self) -> dict[str, Any]:
        """As `plain`, each setting by its dotted name."""
        return _flat(self.plain())

    @property
    def target_sparsity(self) -> float:
        """The sparsity that the run will reach: 0 for the dense baseline, whatever `sparsity` says."""
        return 0.0 if isinstance(self.method, Dense) else self.sparsity

    def plain(self) -> dict[str, Any]:
        """As YAML has it; `load_config` takes it back, and so does a later version."""
        nodes = {group: plain(getattr(self, group)) for group in VARIANTS}
        nodes["method"] |= asdict(self.selection)
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _NODES}
        return {**{group: asdict(getattr(self, group)) for group in _PLAIN}, **nodes, **own}


_PLAIN: dict[str, Any] = {"model": ModelConfig, "dataset": DatasetConfig, "augmentation": AugmentationConfig}
"""Groups of one kind of settings, whatever option is chosen."""
_NODES = {*_PLAIN, "selection", *VARIANTS}
"""Fields of `Config` that are more than a value."""


def load_config(composed: Mapping[str, Any] | DictConfig) -> Config:
    """The checked configuration for what Hydra composed.

    Raises `UserError` for unknown keys (also those added with `+`), values of the wrong type, and values that do not
    fit together; the message names the override to change.
    """
    try:
        node: Any = OmegaConf.to_container(OmegaConf.create(dict(composed)), resolve=True)
        for name in ("compile", "capture"):  # YAML reads on and off as true and false
            if isinstance(node.get(name), bool):
                node[name] = "on" if node[name] else "off"
        return _from_nodes(node)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def _from_nodes(node: dict[str, Any]) -> Config:
    kinds = get_type_hints(Config)
    _check_complete(Config, node)
    for key, value in node.items():
        _check(key in kinds and key != "selection", unknown_setting(key, setting_names()))
        _check(key not in _NODES or isinstance(value, dict), f"{key}={value} is not a group of settings")
    selected, method = get_type_hints(Selection), node["method"]
    return Config(
        **{group: _group(cls, group, node[group]) for group, cls in _PLAIN.items() if group in node},
        selection=_group(Selection, "method", {key: method[key] for key in method if key in selected}),
        method=build("method", {key: method[key] for key in method if key not in selected}),
        **{group: build(group, node[group]) for group in VARIANTS if group in node and group != "method"},
        **typed(kinds, {key: value for key, value in node.items() if key not in _NODES}),
    )


def _group(cls: Any, group: str, node: dict[str, Any]) -> Any:
    kinds = hints(cls)
    for key in node:
        _check(key in kinds, unknown_setting(f"{group}.{key}", setting_names()))
    _check_complete(cls, node, f"{group}.")
    return cls(**typed(kinds, node, group))


def _check_complete(cls: Any, node: Mapping[str, Any], prefix: str = "") -> None:
    for each in fields(cls):
        optional = each.default is not MISSING or each.default_factory is not MISSING
        _check(each.name in node or optional, f"{prefix}{each.name} is missing: give it a value")


def stored_config(stored: Mapping[str, Any], run_dir: Path) -> Config:
    """From the settings stored in a run directory, by this or an earlier version.

    What is not stored has the default that it has now. Raises `UserError` for what this version does not know.
    """
    try:
        return _from_stored(stored)
    except _UNREADABLE as error:
        raise UserError(
            f"run_dir={run_dir} holds a run that this version cannot continue ({one_line(error)}): "
            "finish it with the version that environment.yaml names, or choose another run_dir"
        ) from error


def refuse_other(
    stored: Mapping[str, Any], config: Config, run_dir: Path, but_for: Collection[str] = frozenset()
) -> Config:
    """The settings stored in a run directory.

    Raises `UserError` where others than `but_for` are others than those of `config`, but for fewer epochs.
    """
    before = stored_config(stored, run_dir)
    longer = {"epochs"} if config.epochs > before.epochs else set()
    for key, (theirs, ours) in differing(before, config).items():
        if key not in longer and key not in but_for:
            raise UserError(
                f"run_dir={run_dir} holds a run with {key}={theirs}, not {ours}: "
                "choose another run_dir, or give the same settings to continue it"
            )
    if "raw_step" not in stored and config.method.name in _OTHER_RULES:
        raise UserError(
            f"run_dir={run_dir} holds a run of an earlier version, whose method={config.method.name} had other rules: "
            "finish it with the version that environment.yaml names, or choose another run_dir"
        )
    return before


def differing(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted name → value before and now, of the settings of `now` that decide what is computed and were others."""
    theirs, ours = before.flat(), _counted(now)
    return {key: (theirs.get(key), ours[key]) for key in sorted(ours) if theirs.get(key) != ours[key]}


MENDING = frozenset({"optimizer.lr", "clip_norm", "precision", "lr_schedule.warmup"})
"""Settings that may change in a run whose loss was not finite."""


def settings_that_count(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name → value of all settings that decide what a run directory's run has computed; `stored` is its
    config.yaml, by this or an earlier version. What was not stored has the default that it has now; a dense network
    has no schedule, and its sparsity is 0.

    Raises `UserError` where this version does not know such settings.
    """
    try:
        config = _from_stored(stored)
    except _UNREADABLE as error:
        raise UserError(f"its config.yaml is not one of this version ({one_line(error)})") from error
    return _counted(config) | {"sparsity": config.target_sparsity}


def settings_digest(config: Config) -> str:
    """Twelve hexadecimal digits that runs of the same settings share, whatever their seed, where and how they run.

    They are kept in files, longer than run directories. So a setting at its default plays no part: one that is added,
    and whose default is what was done before, changes no digest.
    """
    left_out = {"seed"} | _at_default(config)
    settings = {key: value for key, value in _counted(config).items() if key not in left_out}
    settings["sparsity"] = config.target_sparsity
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


_UNREADABLE = (UserError, OmegaConfBaseException, KeyError, TypeError)
"""What `_from_stored` raises for settings that this version does not know."""
_OTHER_RULES = {"rigl", "set", "granet", "topkast", "probmask"}
"""Methods that compute something else since runs store a `raw_step`."""
_FREE_OF_DATA = "root", "workers", "download", "cache", "changed"
_FREE = {"run_dir", "dry_run", "device", "compile", "capture", "profile", "log_every", "logger"}
_FREE |= {"checkpoint_every", "ddp_timeout", *(f"dataset.{name}" for name in _FREE_OF_DATA)}
"""Settings that may differ when a run is continued: they change where and how it runs, not what it computes."""


def _from_stored(stored: Mapping[str, Any]) -> Config:
    return _from_nodes(dict(stored) if "raw_step" in stored else _without_foreign_keys(stored))


def _counted(config: Config) -> dict[str, Any]:
    idle = () if config.target_sparsity else "schedule."
    return {key: value for key, value in config.flat().items() if key not in _FREE and not key.startswith(idle)}


def _at_default(config: Config) -> set[str]:
    """Dotted names of the settings that have their default."""
    nodes = {f"{group}.": getattr(config, group) for group in (*_PLAIN, *VARIANTS)}
    return {
        prefix + each.name
        for prefix, node in [*nodes.items(), ("method.", config.selection), ("", config)]
        for each in fields(node)
        if getattr(node, each.name) == each.default
    }


def _without_foreign_keys(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Earlier versions stored the settings of all variants of a group, null where they were another's or published."""

    def given(node: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: given(value) if isinstance(value, dict) else value for key, value in node.items() if value is not None
        }

    return given(stored)


def _flat(nodes: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nodes.items():
        flat |= {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _check(value in allowed, unknown_choice(name, value, allowed))


def setting_names() -> list[str]:
    """Of all settings but the variants' own, dotted."""
    own = [key for key in get_type_hints(Config) if key not in _NODES]
    groups = {**_PLAIN, "method": Selection}
    return own + [f"{group}.{key}" for group, cls in groups.items() for key in hints(cls)]
