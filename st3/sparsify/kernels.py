"""ST-3's threshold and projection of all layers together in six launches, written in Triton.

The plain functions of `thresholds` and `projections` say what is computed; the first use of each `Kernels` compares
the two. The threshold is an exact selection by radix: four passes count the magnitudes by eight bits each, from
the exponent down, so the weights are read four times and nothing but the counts is written; the projection reads them
once more and writes the sparse ones.
"""

import warnings
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from st3.sparsify.flat_weights import FlatWeights

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch brings Triton along where it supports it
    triton = None

_DIGITS = ((23, 8), (15, 8), (7, 8), (0, 7))
"""(shift, bits) of each pass over the 31 bits of a float32 magnitude; as integers they order like the floats."""
_BINS = 256
_CHUNK = 4096
_HIGHEST = 2**31 - 1

if triton is not None:

    @triton.jit
    def _narrow(counts, wanted, BINS: tl.constexpr):
        """The bin of `counts` that holds the value of rank `wanted`, and the rank within that bin."""
        bins = tl.arange(0, BINS)
        in_bin = tl.load(counts + bins)
        up_to = tl.cumsum(in_bin, 0)
        found = tl.sum((up_to <= wanted).to(tl.int32), 0)
        before = tl.sum(tl.where(bins < found, in_bin, 0), 0)
        return found, wanted - before

    @triton.jit
    def _count(
        flat, start, size, layer, inverse, sparsity, counts, above, chunks, total,
        PASS: tl.constexpr, SHIFT: tl.constexpr, BITS: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
        HIGHEST: tl.constexpr,
    ):  # fmt: skip
        """Count the magnitudes that share the prefix found so far by their next `BITS` bits into counts[PASS].

        The last pass also finds the smallest magnitude with a higher prefix.
        """
        wanted = tl.floor((total - 1) * tl.load(sparsity)).to(tl.int32)
        prefix = wanted * 0
        for earlier in tl.static_range(PASS):
            digit, wanted = _narrow(counts + earlier * BINS, wanted, BINS)
            prefix = prefix * BINS + digit  # every digit but the last has eight bits
        counted = tl.zeros([BINS], tl.int32)
        higher = tl.full([CHUNK], HIGHEST, tl.int32)
        for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
            place = tl.arange(0, CHUNK)
            inside = place < tl.load(size + chunk)
            weight = tl.load(flat + tl.load(start + chunk) + place, mask=inside, other=0.0)
            scaled = tl.abs(weight) * tl.load(inverse + tl.load(layer + chunk))
            bits = scaled.to(tl.int32, bitcast=True)
            high = bits >> (SHIFT + BITS) if PASS > 0 else bits * 0
            counted += tl.histogram((bits >> SHIFT) & ((1 << BITS) - 1), BINS, mask=inside & (high == prefix))
            if SHIFT == 0:
                higher = tl.minimum(higher, tl.where(inside & (high > prefix), bits, HIGHEST))
        tl.atomic_add(counts + PASS * BINS + tl.arange(0, BINS), counted, sem="relaxed")
        if SHIFT == 0:
            tl.atomic_min(above, tl.min(higher, 0), sem="relaxed")

    @triton.jit
    def _finish(
        sparsity, counts, above, scale, threshold, thresholds, total, layers,
        BINS: tl.constexpr, PASSES: tl.constexpr, LAST_BITS: tl.constexpr, LAYERS: tl.constexpr,
        HIGHEST: tl.constexpr,
    ):  # fmt: skip
        """From all counts to the interpolated threshold and each layer's; leaves the counts ready for the next time."""
        rank = (total - 1) * tl.load(sparsity)
        wanted = tl.floor(rank).to(tl.int32)
        fraction = rank - wanted
        prefix = wanted * 0
        for earlier in tl.static_range(PASSES - 1):
            digit, wanted = _narrow(counts + earlier * BINS, wanted, BINS)
            prefix = prefix * BINS + digit
        last = counts + (PASSES - 1) * BINS
        digit, wanted = _narrow(last, wanted, BINS)
        bins = tl.arange(0, BINS)
        in_bin = tl.load(last + bins)
        ties = tl.sum(tl.where(bins == digit, in_bin, 0), 0)
        next_digit = tl.min(tl.where((bins > digit) & (in_bin > 0), bins, BINS), 0)
        low = (prefix << LAST_BITS) + digit
        high = tl.where(next_digit < BINS, (prefix << LAST_BITS) + next_digit, tl.load(above))
        high = tl.where((wanted + 1 < ties) | (high == HIGHEST), low, high)
        low_value, high_value = low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
        between = low_value.to(tl.float64) + (high_value.to(tl.float64) - low_value.to(tl.float64)) * fraction
        tau = between.to(tl.float32)
        tau = tl.where(tau < high_value, tau, low_value)
        tl.store(threshold, tau)
        each = tl.arange(0, LAYERS)
        tl.store(thresholds + each, tau * tl.load(scale + each, mask=each < layers, other=0.0), mask=each < layers)
        tl.debug_barrier()  # all counts are read before they are cleared
        for earlier in tl.static_range(PASSES):
            tl.store(counts + earlier * BINS + bins, tl.zeros([BINS], tl.int32))
        tl.store(above, HIGHEST)

    @triton.jit
    def _project(
        flat, start, size, layer, inverse, scale, target, threshold,
        SOFT: tl.constexpr, RESCALE: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """One output channel: shrink, rescale, write to the model's own weight."""
        row = tl.program_id(0)
        first, count, of_layer = tl.load(start + row), tl.load(size + row), tl.load(layer + row)
        invert, sigma, tau = tl.load(inverse + of_layer), tl.load(scale + of_layer), tl.load(threshold)
        out = tl.load(target + row).to(tl.pointer_type(tl.float32))
        kappa = 1.0
        if RESCALE:
            everything, kept = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
            for block in range(0, count, BLOCK):
                place = block + tl.arange(0, BLOCK)
                magnitude = tl.abs(tl.load(flat + first + place, mask=place < count, other=0.0))
                everything += magnitude
                kept += tl.where(magnitude * invert > tau, magnitude, 0.0)
            rho = (tl.sum(kept, 0) / count + 1e-6) / (tl.sum(everything, 0) / count + 1e-6)
            kappa = 1.01 / (rho + 0.01)
        for block in range(0, count, BLOCK):
            place = block + tl.arange(0, BLOCK)
            weight = tl.load(flat + first + place, mask=place < count, other=0.0)
            scaled = tl.abs(weight) * invert
            value = weight
            if SOFT:
                value = tl.where(weight < 0, tau - scaled, scaled - tau) * sigma
            tl.store(out + place, tl.where(scaled > tau, value * kappa, 0.0), mask=place < count)


class Kernels:
    """The tables that the kernels need for weights `raw` [N] and the model's own weights `targets`.

    `scales`: each layer's σ_l, 1 where magnitudes are compared as they are. See `kernels_for` for what fits.
    """

    def __init__(self, raw: FlatWeights, targets: Sequence[Tensor], scales: Sequence[float]):
        device = raw.flat.device

        def table(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device)

        chunks, rows, begin = [], [], 0
        for index, (weight, target) in enumerate(zip(raw.layers, targets, strict=True)):
            total, row = weight.numel(), weight[0].numel()
            chunks += [(begin + at, min(_CHUNK, total - at), index) for at in range(0, total, _CHUNK)]
            address = target.data_ptr()
            rows += [(begin + at, row, index, address + 4 * at) for at in range(0, total, row)]
            begin += total
        starts, sizes, layers = zip(*chunks, strict=True)
        self._chunks = table(starts, torch.int64), table(sizes, torch.int32), table(layers, torch.int32)
        starts, sizes, layers, addresses = zip(*rows, strict=True)
        self._rows = table(starts, torch.int64), table(sizes, torch.int32), table(layers, torch.int32)
        self._addresses = table(addresses, torch.int64)
        self._block = min(1024, triton.next_power_of_2(max(sizes)))
        self._scale = table(list(scales), torch.float32)
        self._inverse = table([1 / scale for scale in scales], torch.float32)
        self._counts = torch.zeros(len(_DIGITS), _BINS, dtype=torch.int32, device=device)
        self._above = torch.full((), _HIGHEST, dtype=torch.int32, device=device)
        self._threshold = torch.empty((), dtype=torch.float32, device=device)
        self._flat = raw.flat
        self._made_for = _fingerprint(targets, scales)
        processors = torch.cuda.get_device_properties(device).multi_processor_count if raw.flat.is_cuda else 1
        self._programs = min(len(chunks), 4 * processors)
        self._targets = list(targets)
        self._checked = self._wrong = False

    def serves(self, targets: Sequence[Tensor], scales: Sequence[float]) -> bool:
        """Whether the tables are still right."""
        return self._made_for == _fingerprint(targets, scales)

    def project(
        self, sparsity: Tensor, *, soft: bool, rescale: bool, plain: Callable[[Sequence[Tensor]], Tensor]
    ) -> Tensor:
        """Write the sparse weights for `sparsity` (0-d float64) to the targets; returns the thresholds, [layers].

        The first time, `plain`, which does the same, is asked too; where it says something else, it is taken from
        then on, with a warning.
        """
        with torch.cuda.device_of(self._flat):  # where Triton launches
            return self._project(sparsity, soft, rescale, plain)

    def _project(
        self, sparsity: Tensor, soft: bool, rescale: bool, plain: Callable[[Sequence[Tensor]], Tensor]
    ) -> Tensor:
        if self._checked:
            return plain(self._targets) if self._wrong else self._launch(sparsity, soft, rescale)
        self._checked = self._wrong = True
        try:
            thresholds = self._launch(sparsity, soft, rescale)
            ours = [target.clone() for target in self._targets]
            expected = plain(self._targets)
            self._wrong = not _agree([thresholds, *ours], [expected, *self._targets])
            trouble = "it does not agree with the plain one"
        except Exception as error:  # Triton, its compilers and the driver raise a dozen types
            expected = plain(self._targets)
            trouble = f"{type(error).__name__}: {error}".partition("\n")[0]
        if self._wrong:
            warnings.warn(
                f"st3's fused projection cannot be used on this device ({trouble}); the plain one is slower",
                stacklevel=2,
            )
        return expected

    def _launch(self, sparsity: Tensor, soft: bool, rescale: bool) -> Tensor:
        # Contracted to one rounding, a product and a difference would not be what the plain functions compute.
        exact = {"enable_fp_fusion": False}
        constants = {"BINS": _BINS, "HIGHEST": _HIGHEST, **exact}
        total = self._flat.numel()
        for number, (shift, bits) in enumerate(_DIGITS):
            _count[(self._programs,)](
                self._flat, *self._chunks, self._inverse, sparsity, self._counts, self._above,
                self._chunks[0].numel(), total, PASS=number, SHIFT=shift, BITS=bits, CHUNK=_CHUNK, **constants,
            )  # fmt: skip
        layers = self._scale.numel()
        thresholds = torch.empty(layers, dtype=torch.float32, device=self._flat.device)
        _finish[(1,)](
            sparsity, self._counts, self._above, self._scale, self._threshold, thresholds, total, layers,
            PASSES=len(_DIGITS), LAST_BITS=_DIGITS[-1][1], LAYERS=triton.next_power_of_2(layers), **constants,
        )  # fmt: skip
        _project[(self._addresses.numel(),)](
            self._flat, *self._rows, self._inverse, self._scale, self._addresses, self._threshold,
            SOFT=soft, RESCALE=rescale, BLOCK=self._block, **exact,
        )  # fmt: skip
        torch.autograd.graph.increment_version(self._targets)  # as PyTorch's own operations do
        return thresholds


_KERNELS: WeakKeyDictionary[FlatWeights, Kernels] = WeakKeyDictionary()


def kernels_for(raw: FlatWeights, targets: Sequence[Tensor], scales: Sequence[float]) -> Kernels | None:
    """The kernels for these weights, made once; None where they do not serve.

    They do for fewer than 2³¹ weights in float32 on CUDA, each output channel in one piece of memory.
    """
    if triton is None or not raw.flat.is_cuda or raw.flat.dtype != torch.float32:
        return None
    kernels = _KERNELS.get(raw)
    if kernels is None or not kernels.serves(targets, scales):
        together = all(t.device == raw.flat.device and t.dtype == raw.flat.dtype for t in targets)
        in_rows = all(len(w) == 1 or w.stride(0) == w[0].numel() for w in raw.layers)
        alike = all(w.stride() == t.stride() for w, t in zip(raw.layers, targets, strict=True))
        if not (together and in_rows and alike and raw.flat.numel() < 2**31):
            return None
        kernels = _KERNELS[raw] = Kernels(raw, targets, scales)
    return kernels


def _fingerprint(targets: Sequence[Tensor], scales: Sequence[float]) -> tuple:
    return tuple(scales), tuple(target.data_ptr() for target in targets)


def _agree(ours: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Equal within rounding, with zeros in the same places but for one that rounding may move."""
    moved = sum(((a == 0) != (b == 0)).sum() for a, b in zip(ours, expected, strict=True))
    close = [torch.isclose(a, b, rtol=1e-4) | ((a == 0) != (b == 0)) for a, b in zip(ours, expected, strict=True)]
    return bool(moved <= 1) and all(bool(each.all()) for each in close)
