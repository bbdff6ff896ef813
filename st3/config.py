"""What a run is made of: the schema that the YAML files and the command line must fit, and every check on it.

The values are in configs/; a default here means only that a part is off or left to the machine.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from st3.data import check_options
from st3.errors import UserError
from st3.sparsify import METHODS


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network; input channels, image size and classes come from the data set."""

    name: str
    """A name that `st3.models.build_model` knows: ours, any torchvision classifier, or timm/NAME."""
    init: str = "default"
    """default (the architecture's own) or kaiming_normal (fan-in, every Conv2d and Linear)."""
    depth: int | None = None
    """Layers, for families by depth (wide_resnet)."""
    width: float | None = None
    """Width multiplier (mobilenet_v1) or widening factor (wide_resnet)."""
    dropout: float | None = None
    """Dropout probability, for networks that have it."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The images."""

    name: str
    """A data set that `st3.data.build_data` knows."""
    root: str | None = None
    """Folder with the data."""
    classes: int | None = None
    """Number of classes; null: read from the folder."""
    channels: int
    """1 (grey) or 3 (RGB)."""
    image_size: int
    """Side of the square images that the network sees, in pixels."""
    mean: list[float]
    """Mean of each channel, of pixels in [0, 1]."""
    std: list[float]
    """Standard deviation of each channel."""
    augment: str = "none"
    """none, crop, crop_flip or random_resized_crop."""
    val_images: int = 0
    """Training images held out for validation, always the same ones."""
    train_images: int | None = None
    """Training images before the hold-out; null: counted in the folder."""
    test_images: int | None = None
    """Test images; null: counted in the folder."""
    workers: int = 0
    """Processes that read image files."""
    download: bool = False
    """Fetch a known data set that is not at root."""
    decode: str = "cpu"
    """JPEG files with random_resized_crop: cpu (the workers) or gpu (on CUDA, with the same crops)."""
    cache: str | None = None
    """Folder where an image folder that is decoded once (any other augment) leaves its pixels; null: nowhere."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How raw weights become sparse."""

    name: str
    """A method in `st3.sparsify.METHODS`. Of the settings below each method has its own; null: as it is published."""
    shrink: str | None = None
    """st3: soft or hard thresholding."""
    rescale: bool | None = None
    """st3: restore each output channel's magnitude."""
    gradient: str | None = None
    """st3: straight_through, or masked (only kept weights receive gradient)."""
    allocation: str | None = None
    """gmp: global or uniform; rigl, set: erk or uniform. How the zeros are shared by the layers."""
    every: str | None = None
    """gmp, rigl, set, granet: duration between updates of the masks, as in `ScheduleConfig`."""
    until: str | None = None
    """rigl, set: when the connections stop moving; granet: when regrowth has reached its final fraction; probmask: when
    the masks become hard."""
    drop: float | None = None
    """rigl, set: fraction of its kept weights that a layer replaces at first."""
    regrow: float | None = None
    """granet: the same."""
    regrow_final: float | None = None
    """granet: the same at `until`."""
    exponent: float | None = None
    """feather: p, between soft (1) and hard thresholding (infinity)."""
    theta: float | None = None
    """feather: factor of the gradient of zeroed weights."""
    threshold_init: float | None = None
    """str: start value of the learned thresholds, before the sigmoid."""
    threshold_decay: float | None = None
    """str: their weight decay."""
    probability_lr: float | None = None
    """probmask: learning rate of the probabilities."""
    backward: float | None = None
    """topkast: fraction of all weights that are zeroed and still get gradient."""
    decay: float | None = None
    """topkast: extra decay."""
    include: list[str] = field(default_factory=lambda: ["*"])
    """Patterns of layer names to prune."""
    exclude: list[str] = field(default_factory=list)
    """Patterns of layer names to leave dense."""
    target: str = "weights"
    """What sparsity counts: weights (fraction zeroed) or flops (fraction of the pruned layers' MACs removed)."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Sparsity over training. Durations: 5 or 5ep (epochs), 200st (optimizer steps), 50% (of training)."""

    name: str
    """ramp (polynomial), constant, or alternating (AC/DC's phases)."""
    start: str | None = None
    """Duration of the first dense phase."""
    end: str | None = None
    """When the ramp reaches the target, or the last sparse phase begins."""
    power: float | None = None
    """ramp: its power; 3 is the cubic one."""
    period: str | None = None
    """alternating: duration of a sparse phase and of a dense one."""
    last_dense: str | None = None
    """alternating: when the last dense phase begins."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Weight decay applies to Conv and Linear weights only."""

    name: str
    """sgd or adamw."""
    lr: float
    """Peak learning rate."""
    weight_decay: float
    """Coefficient on the raw weights."""
    momentum: float | None = None
    """SGD's momentum."""
    nesterov: bool | None = None
    """SGD's Nesterov variant."""
    betas: list[float] | None = None
    """AdamW's two."""
    eps: float | None = None
    """AdamW's."""


@dataclass(frozen=True, kw_only=True)
class LRScheduleConfig:
    """Learning rate over training; durations as in `ScheduleConfig`."""

    name: str
    """constant, multistep, cosine or one_cycle."""
    warmup: str = "0"
    """Duration of a linear warm-up to the peak (one_cycle: until its peak)."""
    milestones: list[str] | None = None
    """multistep: when the rate is multiplied by gamma."""
    gamma: float | None = None
    """multistep: the factor."""
    final: float | None = None
    """cosine, one_cycle: the rate at the end, as a fraction of the peak."""
    initial: float | None = None
    """one_cycle: the rate at the start, as a fraction of the peak."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    model: ModelConfig
    dataset: DatasetConfig
    method: MethodConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    lr_schedule: LRScheduleConfig

    sparsity: float
    """Target: fraction of the prunable weights (or MACs, see method.target) to zero, in [0, 1)."""
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per optimizer step."""
    accumulate: int = 1
    """Split each step's batch into this many forward and backward passes."""
    label_smoothing: float = 0.0
    """Probability mass spread over all classes, in [0, 1)."""
    clip_norm: float | None = None
    """Clip the gradient to this L2 norm; null: never."""
    ema: float | None = None
    """Decay of an exponential moving average of the raw weights, whose projection is then evaluated and saved."""
    seed: int = 0
    """Of initialization, data order, augmentation and dropout."""
    precision: str = "auto"
    """auto (bf16 on CUDA that has it, else fp16; fp32 on CPU), fp32, bf16 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: str = "auto"
    """on, off, or auto: compile the network with torch.compile on CUDA, where the run is long enough to win by it."""
    capture: str = "auto"
    """on, off, or auto: issue a whole optimizer step as one CUDA graph, where the network is small."""
    profile: bool = False
    """Trace some steps with PyTorch's profiler into the run directory."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    log_every: int = 50
    """Optimizer steps between rows of metrics."""
    run_dir: str | None = None
    """Where the run is written, and continued if unfinished; null: a new folder under outputs/."""
    dry_run: bool = False
    """Print what would be done, write nothing."""

    def __post_init__(self):
        _check(0 <= self.sparsity < 1, f"sparsity={self.sparsity:g} lies outside [0, 1): try sparsity=0.9")
        for name in ("epochs", "batch_size", "accumulate", "eval_every", "log_every"):
            _check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        _check(
            self.batch_size % self.accumulate == 0,
            f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}: choose one that does",
        )
        _check(0 <= self.label_smoothing < 1, f"label_smoothing={self.label_smoothing:g} lies outside [0, 1)")
        _check(self.clip_norm is None or self.clip_norm > 0, f"clip_norm={self.clip_norm} must be positive, or null")
        _check(self.ema is None or 0 < self.ema < 1, f"ema={self.ema} must lie between 0 and 1, or be null")
        _check(self.seed >= 0, f"seed={self.seed} must not be negative")
        _one_of("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        for name in ("compile", "capture"):
            _one_of(name, getattr(self, name), ("auto", "on", "off"))
        _check(0 < self.optimizer.lr < math.inf, f"optimizer.lr={self.optimizer.lr:g} must be positive and finite")
        for group, name in (
            ("optimizer", "weight_decay"),
            ("optimizer", "momentum"),
            ("optimizer", "eps"),
            ("lr_schedule", "gamma"),
            ("lr_schedule", "final"),
            ("lr_schedule", "initial"),
        ):
            value = getattr(getattr(self, group), name)
            _check(value is None or value >= 0, f"{group}.{name}={value} must not be negative")
        power = self.schedule.power
        _check(power is None or power > 0, f"schedule.power={power} must be positive: 3 is the cubic ramp")
        self._check_data()
        _one_of("method.target", self.method.target, ("weights", "flops"))
        self._check_switches(
            "schedule",
            self.schedule,
            {
                "ramp": ("start", "end", "power"),
                "constant": (),
                "alternating": ("start", "period", "last_dense", "end"),
            },
            all_needed=True,
        )
        self._check_switches(
            "optimizer",
            self.optimizer,
            {"sgd": ("momentum", "nesterov"), "adamw": ("betas", "eps")},
            common=("lr", "weight_decay"),
            all_needed=True,
        )
        betas = self.optimizer.betas
        _check(
            betas is None or (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)),
            f"optimizer.betas={betas} must be two numbers in [0, 1): optimizer.betas=[0.9,0.999]",
        )
        self._check_switches(
            "lr_schedule",
            self.lr_schedule,
            {
                "constant": (),
                "multistep": ("milestones", "gamma"),
                "cosine": ("final",),
                "one_cycle": ("final", "initial"),
            },
            common=("warmup",),
            all_needed=True,
        )
        self._check_switches(
            "method",
            self.method,
            {name: tuple(f.name for f in fields(method)) for name, method in METHODS.items()},
            common=("include", "exclude", "target"),
        )

    def _check_data(self):
        data = self.dataset
        _check(data.image_size >= 1, f"dataset.image_size={data.image_size} must be at least 1")
        _check(all(std > 0 for std in data.std), f"dataset.std={data.std} must be positive")
        for name in ("val_images", "workers"):
            _check(getattr(data, name) >= 0, f"dataset.{name}={getattr(data, name)} must not be negative")
        _one_of("dataset.decode", data.decode, ("cpu", "gpu"))
        options = ("root", "channels", "mean", "std", "augment", "download", "decode", "cache")
        check_options(data.name, **{name: getattr(data, name) for name in options})

    def _check_switches(self, group, config, used, common=(), all_needed=False):
        """Each variant of a group has its own settings: none without effect, and (if so) none missing."""
        _one_of(f"{group}.name", config.name, tuple(used))
        for key, value in asdict(config).items():
            if key == "name" or key in common:
                continue
            mine = key in used[config.name]
            _check(
                mine or value is None,
                f"{group}.{key}={value} has no effect with {group}.name={config.name}: set {group}.{key}=null",
            )
            _check(not (mine and all_needed and value is None), f"{group}.name={config.name} needs {group}.{key}=…")

    @property
    def target_sparsity(self) -> float:
        """The sparsity that the run will reach: 0 for the dense baseline, whatever `sparsity` says."""
        return 0.0 if self.method.name == "dense" else self.sparsity


def load_config(composed: DictConfig) -> Config:
    """The checked configuration for what Hydra composed.

    Raises `UserError` for unknown keys (also those added with `+`), values of the wrong type, and values that do not
    fit together; the message names the override to change.
    """
    try:
        plain = OmegaConf.create(OmegaConf.to_container(composed, resolve=True))
        for name in ("compile", "capture"):  # YAML reads on and off as true and false
            if isinstance(plain.get(name), bool):
                plain[name] = "on" if plain[name] else "off"
        _refuse_unknown(plain, Config)
        return OmegaConf.to_object(OmegaConf.merge(_schema(Config), plain))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def _schema(cls: type) -> DictConfig:
    node = OmegaConf.structured(cls)
    OmegaConf.set_readonly(node, False)  # as OmegaConf makes frozen dataclasses; it must take the values first
    for each in fields(cls):
        if is_dataclass(each.type):
            node[each.name] = _schema(each.type)
    return node


def _refuse_unknown(given: DictConfig, cls: type, prefix: str = "") -> None:
    known = {each.name: each.type for each in fields(cls)}
    for key, value in given.items():
        name = f"{prefix}{key}"
        _check(key in known, unknown_setting(name))
        if is_dataclass(known[key]):
            _check(isinstance(value, DictConfig), f"{name}={value} is not a group of settings")
            _refuse_unknown(value, known[key], prefix=f"{name}.")


def unknown_setting(name: str) -> str:
    """The complaint about a setting that does not exist, with those that are spelled like it."""
    known = [f.name for f in fields(Config)]
    known += [f"{f.name}.{g.name}" for f in fields(Config) if is_dataclass(f.type) for g in fields(f.type)]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "st3-train --cfg job prints them all"
    return f"{name} is not a setting: {hint}"


def unknown_choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """The complaint about a value that is not among those allowed."""
    close = difflib.get_close_matches(value, allowed, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"choose among {', '.join(allowed)}"
    return f"{name}={value} does not exist: {hint}"


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    _check(value in allowed, unknown_choice(name, value, allowed))
