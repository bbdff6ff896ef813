"""The object that makes a model sparse while somebody's optimizer trains it."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from st3.durations import Length
from st3.errors import UserError
from st3.sparsify.costs import Costs, LayerCosts, LayerTimes
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.layers import weight_layers
from st3.sparsify.masks import FixedMasks
from st3.sparsify.method import GlobalThreshold, Method, Pruner
from st3.sparsify.methods import METHODS
from st3.sparsify.raw_steps import RawStep
from st3.sparsify.schedules import Constant, Schedule
from st3.sparsify.thresholds import held_open


@dataclass(frozen=True)
class LayerState:
    """One layer of `weight_layers` as it stands now."""

    name: str
    shape: tuple[int, ...]
    pruned: bool
    """Whether the sparsifier prunes this layer."""
    zeros: int
    """Weights that are exactly zero in the model."""
    threshold: float
    """Magnitude at or below which its raw weights are zeroed; 0 where nothing is pruned (yet)."""


class Sparsifier:
    """Keeps the sparse weights in the model and the raw ones beside the optimizer.

        sparsifier = Sparsifier(model, "st3", schedule=0.9)
        sparsifier.attach(optimizer)

    From then on every `optimizer.step()` moves the raw weights (momentum, weight decay and clipping act on them) and
    leaves their projection in the model, which stays an ordinary module with ordinary parameters: `state_dict()` is
    at any moment a plain sparse network. While the scheduled sparsity is 0 the model holds the raw weights
    themselves and training is the dense training, bit for bit. The closure of `optimizer.step(closure)` sees the sparse
    weights and is called once; an optimizer that calls it more often, as LBFGS does, does not work.

    Args:
        model: any module. The prunable weights are those of every `nn.Conv2d` and `nn.Linear`, and of the input
            projections of `nn.MultiheadAttention`, that require gradient; frozen ones are left as they are. A weight
            shared by several layers counts once.
            Weights must be float32 or float64 and on one device (mixed precision belongs into autocast).
        method: a name in `METHODS` ("st3", "gmp", "rigl", …) or the settings of a method, `RigL(every=100)`.
        schedule: sparsity as a number (from the first step on) or an object with `value(step) -> float`, where
            step 0 is the projection after the first optimizer step.
        length: of the training, in optimizer steps (or as a `Length`): for methods whose settings are fractions of it,
            such as the time between updates of masks.
        finetune_from: the first optimizer step with fixed masks: what is zero then stays zero, and the sparse weights
            become the raw ones. None: never.
        raw_step: what follows the optimizer's step before the projection, such as `HAM()`; None: nothing.
        include, exclude: shell-style patterns on layer names ("layer4.*", "fc"); a layer is pruned when it matches
            one of `include` and none of `exclude`. A pattern that matches no layer is an error.
        target: "weights", so that sparsity is the fraction of weights that are zero, "flops", the fraction of
            multiply-accumulates removed from the pruned layers, which needs `macs`, or "latency", the fraction of
            their time with dense kernels that is removed, which needs `times`.
        macs: multiply-accumulates of each dense layer by name, as `st3.measure.layer_macs` gives.
        times: of each layer by name, in milliseconds, as `st3.measure.Times.read(path).layers` gives.

    A method whose settings ask for what weights cost (`ST3(cost_exponent=0.5)`) needs `macs` or `times`, too.

    rigl, set and probmask draw random numbers when they start: in several processes, seed PyTorch alike before.

    Raises:
        UserError: for an unknown method or target, a pattern or selection that matches nothing, weights that are not
            plain float parameters on one device, masks that would be fixed before the network is at its target, costs
            that are missing or of other layers, a sparsity that removes more of them than the layers can lose.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | Method = "st3",
        schedule: float | Schedule = 0.9,
        *,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        target: str = "weights",
        macs: Mapping[str, int] | None = None,
        times: Mapping[str, LayerTimes] | None = None,
        length: int | Length | None = None,
        finetune_from: int | None = None,
        raw_step: RawStep | None = None,
    ):
        if isinstance(method, str):
            if method not in METHODS:
                raise UserError(f"method={method} does not exist: choose one of {', '.join(METHODS)}")
            method = METHODS[method]()
        self.method = method
        self.length = Length(length) if isinstance(length, int) else length
        self.raw_step = raw_step or RawStep()
        self.schedule = Constant(float(schedule)) if isinstance(schedule, int | float) else schedule
        self.step = 0
        """Projections done so far, one per optimizer step."""
        self.sparsity = 0.0
        """Scheduled sparsity of the latest projection."""

        self._layers = weight_layers(model)
        if not self._layers:
            raise UserError("the model has no Conv2d or Linear layer: there is nothing to prune")
        chosen = _choose(list(self._layers), include, exclude)
        self._pruned = {n: w for n, w in self._layers.items() if n in chosen and w.requires_grad}
        if not self._pruned:
            raise UserError(
                "include and exclude leave no layer to prune: widen include, narrow exclude, or unfreeze weights"
            )
        _check_weights(self._pruned)
        self._costs = _costs(target, macs, times, self._pruned)
        if self._costs:
            _check_reach(self._costs, self.schedule, method)
        self._cost_of_one = _cost_of_one(method, macs, times, self._pruned)
        self._pruner = self._start()
        self._fixed = False
        """Whether the masks are fixed."""
        self._finetune_from = finetune_from
        if finetune_from is not None:
            _check_finetuning(finetune_from, self.schedule, self._pruner)

        # Raw weights and thresholds exist once something is pruned; until then the model's weights are the raw ones.
        self._raw: FlatWeights | None = None
        self._buffers = 0  # how often they have been given new memory
        self._thresholds: Tensor | None = None
        self._sparsity = _any(self._pruned).new_zeros((), dtype=torch.float64)  # `sparsity`, where the weights are
        self._homes: list[Tensor] | None = None
        self._written: list[tuple[int, int]] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def prunable(self) -> int:
        """N, the number of weights that the sparsity refers to."""
        return sum(w.numel() for w in self._pruned.values())

    @property
    def pruned_layers(self) -> list[str]:
        """Names of the layers that are pruned."""
        return list(self._pruned)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The model's own weights of the pruned layers by name: sparse, but for the time of an optimizer step."""
        return dict(self._pruned)

    @property
    def sparsity_is_outcome(self) -> bool:
        """Whether the method only ends up at some sparsity, whatever the schedule says."""
        return self._pruner.sparsity_is_outcome

    def mask_updates(self) -> list[int] | None:
        """In which steps of the training of `length` the masks change; None: in each one that is sparse."""
        assert self.length
        steps = self.length.steps if self._finetune_from is None else self._finetune_from
        return self._pruner.updates(self.schedule, steps)

    def attach(self, optimizer: Optimizer) -> "Sparsifier":
        """Sparsify from the next `optimizer.step()` on. Returns itself.

        Raises `UserError` when already attached or when a pruned weight is in none of the parameter groups.
        """
        if self._hooks:
            raise UserError("this Sparsifier is attached already: detach() it first")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if missing := [n for n, w in self._pruned.items() if id(w) not in held]:
            raise UserError(
                f"the optimizer does not hold the weight of {missing[0]} ({len(missing)} of {len(self._pruned)} pruned "
                "layers): give it all parameters, exclude or freeze those layers, and build the Sparsifier after "
                "anything that replaces parameters"
            )
        if self._raw is None and self._sparsity.device != _any(self._pruned).device:  # the model was moved
            self._pruner = self._start()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        if type(self._pruner).route is not Pruner.route or self._finetune_from is not None:
            # At the weight itself, so that clipping and accumulation see the gradient as it is used.
            self._hooks += [w.register_hook(self._route(i, w)) for i, w in enumerate(self._pruned.values())]
        for group in self._pruner.parameter_groups():
            if not any(id(group["params"][0]) in map(id, other["params"]) for other in optimizer.param_groups):
                optimizer.add_param_group(group)
        starts_sparse = self._pruner.starts_sparse or getattr(self.schedule, "initial", 0) > 0
        if starts_sparse and self._raw is None and not _any(self._pruned).is_meta:
            with torch.no_grad():
                self._set_sparsity(self.schedule.value(0))
                raw = self._keep_raw(FlatWeights.copy_of(list(self._pruned.values())))
                self._pruner.update(-1, self.sparsity, raw, optimizer)
                self._project(raw)
        return self

    def detach(self) -> None:
        """Stop sparsifying. The model keeps its sparse weights."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def layers(self) -> list[LayerState]:
        """Every Conv2d and Linear layer, in order. Reads from the device once; a model on "meta" has no zeros."""
        weights = list(self._layers.values())
        zeros = [0] * len(weights) if weights[0].is_meta else torch.stack([(w == 0).sum() for w in weights]).tolist()
        thresholds = dict.fromkeys(self._pruned, 0.0)
        if self._thresholds is not None:
            thresholds = dict(zip(self._pruned, self._thresholds.tolist(), strict=True))
        return [
            LayerState(name, tuple(weight.shape), name in self._pruned, count, thresholds.get(name, 0.0))
            for (name, weight), count in zip(self._layers.items(), zeros, strict=True)
        ]

    def zeros(self) -> Tensor:
        """Exact zeros in each pruned layer now, int64 [layers] on the device, in the order of `pruned_layers`."""
        return torch.stack([(w == 0).sum() for w in self._pruned.values()])

    def thresholds(self) -> Tensor:
        """Each pruned layer's threshold now, [layers] on the device."""
        return self._thresholds if self._thresholds is not None else _any(self._pruned).new_zeros(len(self._pruned))

    def raw_weights(self) -> dict[str, Tensor]:
        """The raw weights by layer name: live tensors, to be read (by an average, say) and not written."""
        raw = self._raw.layers if self._raw is not None else [w.detach() for w in self._pruned.values()]
        return dict(zip(self._pruned, raw, strict=True))

    @torch.no_grad()
    def project(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Project other raw weights (averaged ones, say) as this step projects its own. Changes no state."""
        if self._raw is None:
            return dict(raw)
        weights = FlatWeights.copy_of([raw[name] for name in self._pruned])
        sparse = [torch.empty_like(w) for w in weights.layers]
        self._pruner.project(weights, self._sparsity, sparse)
        return dict(zip(self._pruned, sparse, strict=True))

    def reaches(self, target: float) -> bool:
        """Whether the network has the sparsity `target` now: the schedule has come to it, unless the method goes its
        own way, and the zeros are there, to half a point. Waits for the device."""
        if self.sparsity < target and not self.sparsity_is_outcome:
            return False
        zeros = self.zeros().tolist()
        removed = self._costs.removed(zeros) if self._costs else sum(zeros) / self.prunable
        return removed >= target - 0.005

    def state_dict(self) -> dict:
        """Tensors and plain numbers that, with the model's own state, restore everything."""
        raw = {} if self._raw is None else {n: w.clone() for n, w in self.raw_weights().items()}
        method = self._pruner.state_dict()
        return {"step": self.step, "sparsity": self.sparsity, "raw": raw, "method": method, "fixed": self._fixed}

    def load_state_dict(self, state: Mapping) -> None:
        """Restore `state_dict()`; the pruned weights in the model become the projection of the restored raw ones.

        Raises `UserError` when the state is of other layers.
        """
        raw = state["raw"]
        fits = raw.keys() == self._pruned.keys() and all(raw[n].shape == w.shape for n, w in self._pruned.items())
        if raw and not fits:
            raise UserError("this sparsifier state belongs to other layers: build model and selection as they were")
        if self._homes is not None:  # a step has raised; what was loaded into the model since is in the raw weights
            with torch.no_grad():
                torch._foreach_copy_(self._homes, [w.data for w in self._pruned.values()])
            self._put_back()
        if state.get("fixed", False) != self._fixed:
            self._fixed = not self._fixed
            self._pruner = self._fixed_masks() if self._fixed else self._start()
        self._pruner.load_state_dict(state["method"])
        self.step = state["step"]
        self._set_sparsity(state["sparsity"])
        if not raw:
            self._raw = self._thresholds = None
            return
        weights = list(self._pruned.values())
        with torch.no_grad():
            kept = self._raw
            if kept is None or not kept.fits(weights):
                self._thresholds = None
                kept = self._keep_raw(FlatWeights(weights))
            kept.copy_([raw[name] for name in self._pruned])  # in place: a captured step knows where they are
            self._project(kept)

    def _start(self) -> Pruner:
        pruner = self.method.start([w.detach() for w in self._pruned.values()], self.schedule, self.length)
        if self._costs:
            pruner.weigh(self._costs)
        if self._cost_of_one:
            pruner.scale_by(self._cost_of_one)
        return pruner

    # The step, from its two ends.

    def next_step(self, step: int | None = None) -> tuple[int, bool] | None:
        """What kind of step comes next: steps of one kind issue the same work to the device, so that one can be
        captured and replayed for the others. None: it is like no other, as the method decides something on the host.

        `step` is its number, for a loop that also counts the steps that a gradient scaler skips.
        """
        if step is not None:
            self.step = step
        sparsity = self.schedule.value(self.step)
        if self._pruner.changes(self.step, sparsity) or self._is_to_fix(self.step):
            return None
        return self._buffers if self._raw is not None else 0, sparsity > 0 or self._pruner.works_before_ramp

    def count_step(self) -> None:
        """Move on by one step: the hooks do, but not while a captured step is replayed; to be called before that."""
        self._set_sparsity(self.schedule.value(self.step))
        self.step += 1

    def _set_sparsity(self, value: float) -> None:
        self.sparsity = value
        weight = _any(self._pruned)
        if self._sparsity.device != weight.device:  # the model was moved
            self._sparsity = self._sparsity.to(weight.device)
        self._sparsity.fill_(value)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        given = _call_closure(args, kwargs)  # while the model is sparse
        if self._homes is None:  # otherwise a step that raised has left the raw weights in place
            if self._raw is not None:
                self._take(self._raw)
            if not _is_skipped(optimizer):
                weights = list(self._pruned.values())
                self._pruner.before_step(self.step, self.schedule.value(self.step), weights, optimizer)
        return given

    def _take(self, raw_weights: FlatWeights) -> None:
        """Let the parameters point to the raw values: nothing is copied."""
        for (name, weight), written in zip(self._pruned.items(), self._written, strict=True):
            if (weight._version, weight.data_ptr()) != written:
                raise UserError(
                    f"the weight of {name} was changed or moved outside the optimizer, which the raw weights do not "
                    "know of: restore with Sparsifier.load_state_dict, or build a new Sparsifier"
                )
        self._homes = [w.data for w in self._pruned.values()]
        for weight, raw in zip(self._pruned.values(), raw_weights.layers, strict=True):
            weight.data = raw

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        skipped = _is_skipped(optimizer)
        captured = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if not skipped:
            self.raw_step.apply(optimizer)
            if not captured:  # what is captured is not yet done
                self.count_step()
        self._put_back()
        weights = list(self._pruned.values())
        if self.sparsity > 0 or self._pruner.works_before_ramp:
            if self._raw is None:
                self._keep_raw(FlatWeights.copy_of(weights))
        elif self._raw is not None:
            torch._foreach_copy_([w.detach() for w in weights], self._raw.layers)
            self._raw = self._thresholds = None
        if not skipped:
            self._pruner.update(self.step - 1, self.sparsity, self._raw, optimizer)
        if self._raw is not None:
            self._project(self._raw)
            if not skipped and not captured and self._is_to_fix(self.step - 1):
                self._fix_masks(self._raw)

    def _is_to_fix(self, step: int) -> bool:
        """Whether the masks are to be fixed after this step: the last one before, or a later one if that is skipped."""
        return self._finetune_from is not None and step + 1 >= self._finetune_from and not self._fixed

    def _fix_masks(self, raw: FlatWeights) -> None:
        raw.copy_([w.detach() for w in self._pruned.values()])
        self._pruner, self._fixed = self._fixed_masks(), True
        self._buffers += 1  # what was captured before is another kind of step
        self._project(raw)

    def _fixed_masks(self) -> FixedMasks:
        weights = [w.detach() for w in self._pruned.values()]
        masks = FixedMasks(weights, self._pruner.sparsity_is_outcome)
        masks.set_masks([w != 0 for w in weights])
        return masks

    def _keep_raw(self, raw: FlatWeights) -> FlatWeights:
        self._raw = raw
        self._buffers += 1
        return raw

    def _put_back(self) -> None:
        """Let the parameters point to the model's own memory again."""
        for weight, home in zip(self._pruned.values(), self._homes or [], strict=self._homes is not None):
            weight.data = home
        self._homes = None

    def _project(self, raw: FlatWeights) -> None:
        """Put the projection of the raw weights into the model."""
        weights = [w.detach() for w in self._pruned.values()]
        thresholds = self._pruner.project(raw, self._sparsity, weights)
        if self._thresholds is None:
            self._thresholds = thresholds
        else:
            self._thresholds.copy_(thresholds)  # in place, for who reads them between replays
        self._written = [(w._version, w.data_ptr()) for w in self._pruned.values()]

    def _route(self, layer: int, weight: nn.Parameter) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            if self._raw is None:
                return gradient
            routed = self._pruner.route(layer, weight, self._raw.layers[layer], gradient, self.step)
            if routed.stride() == gradient.stride():
                return routed
            return torch.empty_like(gradient).copy_(routed)  # DistributedDataParallel wants it laid out as it was

        return hook


def _call_closure(args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Call the closure of `optimizer.step(closure)`. Arguments of the step with one in its place that repeats the loss,
    once: an optimizer that wants another would evaluate raw weights. None: there is no closure."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer itself
    if closure is None:
        return None
    with torch.enable_grad():
        losses = [closure()]

    def repeat() -> Any:
        if not losses:
            raise UserError("the optimizer evaluates its closure twice in a step, as LBFGS does: choose another one")
        return losses.pop()

    return ((args[0], repeat, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | {"closure": repeat})


def _is_skipped(optimizer: Optimizer) -> bool:
    """Optimizers that do the gradient scaler's check themselves (fused) run their hooks on skipped steps, too."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


def _any(weights: Mapping[str, Tensor]) -> Tensor:
    """One of them, for device and dtype."""
    return next(iter(weights.values())).detach()


def _choose(names: list[str], include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    for option, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise UserError(f"{option} is a list of patterns: {option}=['{patterns}']")
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(f"{option}: no Conv2d or Linear layer is named like '{pattern}'")

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return {name for name in names if matches(name, include) and not matches(name, exclude)}


def _check_weights(weights: dict[str, nn.Parameter]) -> None:
    first = _any(weights)
    addresses: dict[int, str] = {}
    for name, weight in weights.items():
        if not weight.is_meta and (other := addresses.setdefault(weight.data_ptr(), name)) != name:
            raise UserError(f"the weights of {other} and {name} are two parameters in one memory: share the parameter")
        if weight.dtype not in (torch.float32, torch.float64) or weight.dtype != first.dtype:
            raise UserError(f"the weight of {name} is {weight.dtype}: keep weights in float32 and use autocast")
        if weight.device != first.device:
            raise UserError(f"the weight of {name} is on {weight.device}, others on {first.device}: one device, please")


def _check_finetuning(start: int, schedule: Schedule, pruner: Pruner) -> None:
    if start < 1:
        raise UserError(f"finetune_from={start} leaves nothing to sparsify: it must be at least 1")
    if schedule.value(start - 1) != schedule.value(sys.maxsize):
        raise UserError("schedule.finetune begins before the schedule is at its target: shorten the one or the other")
    if start <= pruner.hard_from:
        raise UserError("schedule.finetune begins before the masks are hard: shorten it or lower method.until")


def _costs(
    target: str,
    macs: Mapping[str, int] | None,
    times: Mapping[str, LayerTimes] | None,
    weights: dict[str, nn.Parameter],
) -> Costs | None:
    """What sparsity is a fraction of; None where every weight counts the same."""
    if target == "weights":
        return None
    if target == "flops":
        _check_macs("target=flops", macs, weights)
        return Costs(target, [LayerCosts.of_macs((macs or {})[name], w.numel()) for name, w in weights.items()])
    if target == "latency":
        _check_times("target=latency", times, weights)
        return Costs(target, [LayerCosts.of_times((times or {})[name]) for name in weights])
    raise UserError(f"target={target} is not known: choose weights, flops or latency")


def _cost_of_one(
    method: Method,
    macs: Mapping[str, int] | None,
    times: Mapping[str, LayerTimes] | None,
    weights: dict[str, nn.Parameter],
) -> list[float] | None:
    """What one weight of each layer costs, where the method asks for it."""
    if method.scales_by == "macs":
        _check_macs("method.cost_exponent", macs, weights)
        return [(macs or {})[name] / weight.numel() for name, weight in weights.items()]
    if method.scales_by == "time":
        _check_times("method.cost=time", times, weights)
        each = {name: (times or {})[name].ms_per_weight for name in weights}
        if idle := [name for name in weights if each[name] == 0]:
            raise UserError(f"method.cost=time cannot weigh {idle[0]}, whose weights take no time: {_exclude(idle)}")
        return list(each.values())
    return None


def _check_macs(setting: str, macs: Mapping[str, int] | None, weights: Mapping[str, Tensor]) -> None:
    missing = weights.keys() - (macs or {}).keys()
    if macs is None or missing:
        raise UserError(f"{setting} needs macs of every pruned layer, also {', '.join(sorted(missing))}")
    if idle := [name for name in weights if macs[name] == 0]:
        raise UserError(f"{setting} cannot weigh {idle[0]}, which has no MACs: {_exclude(idle)}")


def _check_times(setting: str, times: Mapping[str, LayerTimes] | None, weights: Mapping[str, Tensor]) -> None:
    if times is None:
        raise UserError(f"{setting} needs times of every pruned layer")
    if missing := [name for name in weights if name not in times]:
        raise UserError(f"times has no {missing[0]}, which is pruned: measure this network, or {_exclude(missing)}")
    for name, weight in weights.items():
        if times[name].weights != weight.numel():
            raise UserError(
                f"times is of another network: {name} has {times[name].weights:,} weights there, "
                f"{weight.numel():,} here"
            )


def _exclude(names: Sequence[str]) -> str:
    return f"exclude=[{','.join(names)}]"


def _check_reach(costs: Costs, schedule: Schedule, method: Method) -> None:
    """Raises `UserError` where the schedule asks for more than can be removed; it does most at one of its ends."""
    density = method.min_density if isinstance(method, GlobalThreshold) else 0
    limit = costs.removed([layer.size - (held_open(layer.size, density) if density else 0) for layer in costs.layers])
    asked = max(schedule.value(0), schedule.value(sys.maxsize))
    if asked >= limit:
        below = (math.ceil(limit * 1e4) - 1) / 1e4
        raise UserError(
            f"sparsity={asked:g} is more than target={costs.target} can remove from the pruned layers: "
            f"at most sparsity={below:g}"
        )
