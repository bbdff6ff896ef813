"""ST-3's threshold and projection of all layers together in five launches, written in Triton.

The plain functions of `thresholds` and `projections` say what is computed; the first use of each `Kernels` compares
the two. The threshold is an exact selection over the bits of the magnitudes, which as integers order like the floats:
a pass reads the weights and counts those in a window by the leading bits of their place in it; the part that holds the
wanted rank is the next window. The first window lies around the last threshold. Where that misses, two passes over all
magnitudes, which do nothing otherwise, find the window; the device decides. After one more pass the projection knows
the threshold, reads the weights once more and writes the sparse ones.
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

_SHIFTS = (9, 20, 9, 0)
"""Of each pass: a magnitude's place in the window, shifted right by it, is the number of its count.

So the first window has 2²⁰ places: a threshold that moves by less than 3 % stays in it, with 1 to 5 % of the weights.
"""
_BINS = 2048
"""Counts of a pass: all that 31 bits leave after a shift of 20."""
_FEW = 1 << 20
"""Up to so many weights, chunks are small, so that every processor gets some."""
_HIGHEST = 2**31 - 1
"""No magnitude has higher bits, not even NaN, which comes after infinity as it does when PyTorch sorts."""

if triton is not None:

    @triton.jit
    def _narrow(counts, found, below, PASS: tl.constexpr, SHIFT: tl.constexpr, BINS: tl.constexpr):
        """From what `PASS` has counted: where the part with the wanted rank starts, the rank in it, its number.

        The number is BINS where all that was counted ranks lower, the rank negative where all of it ranks higher.
        """
        base, wanted = tl.load(found + 3 * PASS), tl.load(found + 3 * PASS + 1)
        if PASS == 0:
            wanted -= tl.load(below)
        bins = tl.arange(0, BINS)
        in_bin = tl.load(counts + PASS * BINS + bins)
        part = tl.sum((tl.cumsum(in_bin, 0) <= wanted).to(tl.int32), 0)
        before = tl.sum(tl.where(bins < part, in_bin, 0), 0)
        return base + (part << SHIFT), wanted - before, part

    @triton.jit
    def _window(
        sparsity, counts, found, below, last, total, PASS: tl.constexpr, BEFORE: tl.constexpr, BINS: tl.constexpr,
    ):  # fmt: skip
        """Where the window of `PASS` starts, the rank wanted in it, whether the first pass has made it needless.

        `BEFORE` is the shift of the pass before.
        """
        rank = tl.floor((total - 1) * tl.load(sparsity)).to(tl.int32)
        base, wanted, known = rank * 0, rank, rank * 0
        if PASS == 0:
            base = tl.maximum((tl.load(last) >> BEFORE) - BINS // 2, 0) << BEFORE
        elif PASS == 1:
            start, inside, part = _narrow(counts, found, below, 0, BEFORE, BINS)
            hit = (inside >= 0) & (part < BINS)
            base, wanted, known = tl.where(hit, start, 0), tl.where(hit, inside, rank), hit.to(tl.int32)
        else:
            known = tl.load(found + 3 * PASS - 1)
            if known != 0:
                base, wanted = tl.load(found + 3 * PASS - 3), tl.load(found + 3 * PASS - 2)
            else:
                base, wanted, _ = _narrow(counts, found, below, PASS - 1, BEFORE, BINS)
        return base, wanted, known

    @triton.jit
    def _count(
        flat, start, size, inverse, sparsity, counts, found, below, above, last, chunks, total,
        PASS: tl.constexpr, SHIFT: tl.constexpr, BEFORE: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
        HIGHEST: tl.constexpr,
    ):  # fmt: skip
        """Count the magnitudes in the window of `PASS` into counts[PASS].

        The first pass also counts those below its window, the last finds the smallest above its own.
        """
        turn = tl.program_id(0)
        base, wanted, known = _window(sparsity, counts, found, below, last, total, PASS, BEFORE, BINS)
        if turn == 0:
            tl.store(found + 3 * PASS, base)
            tl.store(found + 3 * PASS + 1, wanted)
            tl.store(found + 3 * PASS + 2, known)
            _clear(counts, below, above, PASS, BINS, HIGHEST)
        if PASS == 1 or PASS == 2:
            turn = tl.where(known != 0, chunks, turn)
        place = tl.arange(0, CHUNK)
        lower, higher = tl.zeros([CHUNK], tl.int32), tl.full([CHUNK], HIGHEST, tl.int32)
        while turn < chunks:  # not `range`: of tensors, it fails in Triton 3.6's interpreter
            # Every other pass goes backwards: where the one before it ended is still in the cache.
            chunk = chunks - 1 - turn if PASS % 2 == 1 else turn
            # Beyond the chunk NaN, which ranks above every threshold that is a number.
            inside = place < tl.load(size + chunk)
            weight = tl.load(flat + tl.load(start + chunk) + place, mask=inside, other=float("nan"))
            bits = (weight * tl.load(inverse + chunk)).to(tl.int32, bitcast=True) & HIGHEST
            part = (bits - base).to(tl.uint32, bitcast=True) >> SHIFT
            tl.atomic_add(counts + PASS * BINS + part, 1, mask=part < BINS, sem="relaxed")
            if PASS == 0:
                lower += (bits < base).to(tl.int32)
            if SHIFT == 0:
                higher = tl.minimum(higher, tl.where(bits >= base + BINS, bits, HIGHEST))
            turn += tl.num_programs(0)
        if PASS == 0:
            tl.atomic_add(below, tl.sum(lower, 0), sem="relaxed")
        if SHIFT == 0:
            tl.atomic_min(above, tl.min(higher, 0), sem="relaxed")

    @triton.jit
    def _clear(counts, below, above, LAUNCH: tl.constexpr, BINS: tl.constexpr, HIGHEST: tl.constexpr):
        """Make ready for the next time what the launch before this one was the last to read."""
        if LAUNCH != 1:  # that was pass 0, which reads no counts
            of_pass: tl.constexpr = (LAUNCH + 3) % 5  # two launches ago, of five
            tl.store(counts + of_pass * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        if LAUNCH == 0:
            tl.store(above, HIGHEST)
        if LAUNCH == 2:
            tl.store(below, 0)

    @triton.jit
    def _threshold(sparsity, counts, found, below, above, total, BINS: tl.constexpr):
        """From the counts of the last pass to τ, between two order statistics, and the bits of the lower one."""
        low, wanted, part = _narrow(counts, found, below, 3, 0, BINS)
        bins = tl.arange(0, BINS)
        in_bin = tl.load(counts + 3 * BINS + bins)
        ties = tl.sum(tl.where(bins == part, in_bin, 0), 0)
        high = tl.min(tl.where((bins > part) & (in_bin > 0), low - part + bins, tl.load(above)), 0)
        high = tl.where(wanted + 1 < ties, low, high)  # NaN where nothing is above: τ is low then
        rank = (total - 1) * tl.load(sparsity)
        low_value, high_value = low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
        width = high_value.to(tl.float64) - low_value.to(tl.float64)
        tau = (low_value.to(tl.float64) + width * (rank - tl.floor(rank))).to(tl.float32)
        return tl.where(tau < high_value, tau, low_value), low

    @triton.jit
    def _shrink(weight, inverse, sigma, tau, SOFT: tl.constexpr):
        """The thresholded weight, as the plain functions compute it: `where` would hide NaN."""
        scaled = weight * inverse
        if SOFT:
            limited = tl.minimum(tl.maximum(scaled, -tau), tau, propagate_nan=tl.PropagateNan.ALL)
            return (scaled - limited) * sigma
        else:
            return weight * (tl.abs(scaled) > tau)

    @triton.jit
    def _project(
        flat, start, size, inverse, scale, target, sparsity, counts, found, below, above, last, thresholds, scales,
        rows, layers, total,
        BINS: tl.constexpr, LAYERS: tl.constexpr, BLOCK: tl.constexpr, SOFT: tl.constexpr, RESCALE: tl.constexpr,
        HIGHEST: tl.constexpr,
    ):  # fmt: skip
        """Find τ, then for each output channel: shrink, rescale, write to the model's own weight."""
        tau, low = _threshold(sparsity, counts, found, below, above, total, BINS)
        row = tl.program_id(0)
        if row == 0:
            tl.store(last, low)
            each = tl.arange(0, LAYERS)
            tl.store(thresholds + each, tau * tl.load(scales + each, mask=each < layers), mask=each < layers)
            _clear(counts, below, above, 4, BINS, HIGHEST)
        places = tl.arange(0, BLOCK)
        while row < rows:
            begin, count = flat + tl.load(start + row), tl.load(size + row)
            invert, sigma = tl.load(inverse + row), tl.load(scale + row)
            out = tl.load(target + row).to(tl.pointer_type(tl.float32))
            kappa = 1.0
            if RESCALE:
                everything, kept = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
                block = count * 0
                while block < count:
                    place = block + places
                    weight = tl.load(begin + place, mask=place < count, other=0.0)
                    everything += tl.abs(weight)
                    kept += tl.abs(weight) * (tl.abs(weight * invert) > tau)
                    block += BLOCK
                rho = (tl.sum(kept, 0) / count + 1e-6) / (tl.sum(everything, 0) / count + 1e-6)
                kappa = 1.01 / (rho + 0.01)
            block = count * 0
            while block < count:
                place = block + places
                weight = tl.load(begin + place, mask=place < count, other=0.0)
                tl.store(out + place, _shrink(weight, invert, sigma, tau, SOFT) * kappa, mask=place < count)
                block += BLOCK
            row += tl.num_programs(0)


class Kernels:
    """The tables that the kernels need for weights `raw` [N] and the model's own weights `targets`.

    `scales`: each layer's σ_l, 1 where magnitudes are compared as they are. See `kernels_for` for what fits.
    """

    def __init__(self, raw: FlatWeights, targets: Sequence[Tensor], scales: Sequence[float]):
        device = raw.flat.device
        self._chunk, self._warps = (1024, 4) if raw.flat.numel() <= _FEW else (4096, 8)

        def table(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device)

        chunks, rows, begin = [], [], 0
        for weight, target, scale in zip(raw.layers, targets, scales, strict=True):
            count, row = weight.numel(), weight[0].numel()
            chunks += [(begin + at, min(self._chunk, count - at), 1 / scale) for at in range(0, count, self._chunk)]
            rows += [(begin + at, row, 1 / scale, scale, target.data_ptr() + 4 * at) for at in range(0, count, row)]
            begin += count
        starts, sizes, inverses = zip(*chunks, strict=True)
        self._chunks = table(starts, torch.int32), table(sizes, torch.int32), table(inverses, torch.float32)
        starts, sizes, inverses, factors, addresses = zip(*rows, strict=True)
        self._rows = (
            table(starts, torch.int32), table(sizes, torch.int32), table(inverses, torch.float32),
            table(factors, torch.float32), table(addresses, torch.int64),
        )  # fmt: skip
        self._block = min(1024, triton.next_power_of_2(max(sizes)))
        self._scale = table(list(scales), torch.float32)
        passes = len(_SHIFTS)
        self._counts = torch.zeros(passes, _BINS, dtype=torch.int32, device=device)
        self._found = torch.zeros(passes, 3, dtype=torch.int32, device=device)  # what _window finds
        self._below, self._above, self._last = torch.zeros(3, dtype=torch.int32, device=device)
        self._flat = raw.flat
        self._made_for = _fingerprint(targets, scales)
        processors = torch.cuda.get_device_properties(device).multi_processor_count if raw.flat.is_cuda else 1
        self._programs = 4 * processors  # by the registers that they take, about as many run at a time
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
            agree = []
            for _ in range(2):  # the first time no last threshold is known
                ours = [self._launch(sparsity, soft, rescale), *(target.clone() for target in self._targets)]
                expected = plain(self._targets)
                agree.append(_agree(ours, [expected, *self._targets]))
            self._wrong = not all(agree)
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
        constants = {"BINS": _BINS, "HIGHEST": _HIGHEST, "enable_fp_fusion": False}
        state = sparsity, self._counts, self._found, self._below, self._above, self._last
        total, chunks, rows, layers = self._flat.numel(), len(self._chunks[0]), len(self._rows[0]), len(self._scale)
        for number, shift in enumerate(_SHIFTS):
            _count[(min(chunks, self._programs),)](
                self._flat, *self._chunks, *state, chunks, total, PASS=number, SHIFT=shift,
                BEFORE=_SHIFTS[max(number - 1, 0)], CHUNK=self._chunk, num_warps=self._warps, **constants,
            )  # fmt: skip
        thresholds = torch.empty_like(self._scale)
        _project[(min(rows, 2 * self._programs),)](
            self._flat, *self._rows, *state, thresholds, self._scale, rows, layers, total,
            LAYERS=triton.next_power_of_2(layers), BLOCK=self._block, SOFT=soft, RESCALE=rescale, **constants,
        )  # fmt: skip
        torch.autograd.graph.increment_version(self._targets)  # as PyTorch's own operations do
        return thresholds


_KERNELS: WeakKeyDictionary[FlatWeights, Kernels] = WeakKeyDictionary()


def kernels_for(raw: FlatWeights, targets: Sequence[Tensor], scales: Sequence[float]) -> Kernels | None:
    """The kernels for these weights, made once; None where they do not serve.

    They do for fewer than 2³⁰ weights in float32 on CUDA, each output channel in one piece of memory.
    """
    if triton is None or not raw.flat.is_cuda or raw.flat.dtype != torch.float32:
        return None
    kernels = _KERNELS.get(raw)
    if kernels is None or not kernels.serves(targets, scales):
        together = all(t.device == raw.flat.device and t.dtype == raw.flat.dtype for t in targets)
        in_rows = all(len(w) == 1 or w.stride(0) == w[0].numel() for w in raw.layers)
        alike = all(w.stride() == t.stride() for w, t in zip(raw.layers, targets, strict=True))
        if not (together and in_rows and alike and raw.flat.numel() < 2**30):
            return None
        kernels = _KERNELS[raw] = Kernels(raw, targets, scales)
    return kernels


def _fingerprint(targets: Sequence[Tensor], scales: Sequence[float]) -> tuple:
    return tuple(scales), tuple(target.data_ptr() for target in targets)


def _agree(ours: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Equal within rounding, NaN to NaN, with zeros in the same places but for one that rounding may move."""
    moved = [(a == 0) != (b == 0) for a, b in zip(ours, expected, strict=True)]
    close = [torch.isclose(a, b, rtol=1e-4, equal_nan=True) for a, b in zip(ours, expected, strict=True)]
    return bool(sum(each.sum() for each in moved) <= 1) and all(
        bool((near | zero).all()) for near, zero in zip(close, moved, strict=True)
    )
