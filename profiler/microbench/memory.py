"""Bandwidth of memory with torch's own kernels: the four of STREAM, and reading and writing alone.

Bytes are counted as in STREAM (McCalpin, 1995): bytes read plus bytes written, without the read of a line before it is
written (write-allocate). Data are float32, random normal; outputs are given. Main memory is measured cold: no operand
is in the last-level cache. A cache is measured warm: with the same operands again.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from profiler.devices.backend import PerDevice
from profiler.devices.caches import TRUSTED_BYTES, ReadCurve, cache_capacities, main_capacity, read_curve
from profiler.microbench.bench import Bench
from profiler.record.measurement import FASTEST, Capacity, Label, Measurement, State
from profiler.timing.cache_state import PAST
from profiler.timing.engine import Case

FACTOR = 3.0
"""Factor of scale and triad, as in STREAM."""
OPERAND_BYTES = PerDevice(host=128 << 20, accelerator=1 << 30)
"""Size of an operand in main memory. On a GPU its kernel takes 0.2 ms and more, so that the gap to the next one (2 µs)
does not matter; on a CPU it is several times the largest cache (STREAM asks for 4) in a short sample."""
PLACEMENTS = PerDevice(host=4, accelerator=1)
"""Sets of operands that take turns: bandwidth varies by a quarter and more with the pages of host memory they lie
on."""
MAIN_BUDGETS = 2
"""A kernel on main memory gets so many budgets of a case: its calls are the longest, so it has the fewest samples. On a
CPU its value is the fastest sample of the middle placement, as in STREAM: a call of 10 ms is long enough for one
reading of the clock, while CUDA events have a jitter of 10–30 µs."""
BLOCK_ELEMENTS = 4 << 20
"""Random data is made once in this size and repeated: generating a GiB takes longer than measuring it."""
CHECKED = 4096
"""Elements of an output that are compared with the reference, evenly spread."""
TOLERANCE = 1e-5
"""Relative error: a few roundings of float32 (6e-8 each)."""
CURVE_BYTES = PerDevice(host=(256 << 10, 1 << 30), accelerator=(512 << 10, 8 << 30))
"""Smallest and largest working set of the curve: below 256 KiB a CPU operation of torch is dispatch, not memory."""
PER_OCTAVE, QUICK_PER_OCTAVE = 3, 2
"""Sizes in each octave; plateaus need three."""
CURVE_KERNELS = ("read", "triad")

Operands = tuple[Tensor, ...]
"""Inputs first, then the output where there is one."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A pattern of access."""

    tensors: int
    """Number of operands, all of one size; each is read or written once."""
    run: Callable[..., object]
    expected: Callable[..., Tensor] | None
    """Gives the output from the inputs, in float64; None where the result is a sum."""

    @property
    def inputs(self) -> int:
        return self.tensors - (self.expected is not None)


KERNELS: dict[str, Kernel] = {
    "read": Kernel(1, lambda a: torch.sum(a), None),
    "write": Kernel(1, lambda c: c.fill_(FACTOR), lambda: torch.tensor(FACTOR)),
    "copy": Kernel(2, lambda a, c: c.copy_(a), lambda a: a),
    "scale": Kernel(2, lambda a, c: torch.mul(a, FACTOR, out=c), lambda a: a * FACTOR),
    "add": Kernel(3, lambda a, b, c: torch.add(a, b, out=c), lambda a, b: a + b),
    "triad": Kernel(3, lambda a, b, c: torch.add(a, b, alpha=FACTOR, out=c), lambda a, b: a + FACTOR * b),
}


class Pool:
    """Operands of equal size that the kernels on main memory share.

    Faulting in the pages of a large operand takes longer than measuring a kernel on it, so that new operands for each
    kernel would triple the time of the benchmark. An operand that was an output is refilled before it is an input.
    """

    def __init__(self, size_bytes: int, device: torch.device) -> None:
        self._elements, self._device = size_bytes // 4, device
        self._tensors: list[Tensor] = []
        self._written: set[int] = set()

    def take(self, number: int, kernel: str) -> Operands:
        """The operands of a kernel's set `number`, counted from 0: random normal inputs, and NaN as the output."""
        inputs, tensors = KERNELS[kernel].inputs, KERNELS[kernel].tensors
        places = range(number * tensors, (number + 1) * tensors)
        while len(self._tensors) < places.stop:
            self._tensors.append(normal(self._elements, self._device))
        for place in self._written.intersection(places[:inputs]):
            fill_normal(self._tensors[place])
        self._written.difference_update(places[:inputs])
        for place in places[inputs:]:
            self._tensors[place].fill_(math.nan)
        self._written.update(places[inputs:])
        return tuple(self._tensors[places.start : places.stop])


def main_memory(bench: Bench, placements: int | None = None) -> Iterator[Measurement]:
    """Time every kernel on main memory, on `placements` sets of operands in turn (None: `PLACEMENTS`).

    With little memory the operands are smaller. Where even operands that exceed a usual last-level cache do not fit,
    each kernel's measurement says how much memory is missing.
    """
    size = operand_bytes(bench)
    pool = Pool(size, bench.device)
    needed = int(PAST * min(bench.cache_bytes or 0, TRUSTED_BYTES))
    why = f"{needed} bytes are needed to exceed a cache, {bench.limit_bytes} are allowed: free or allow more memory"
    shared: dict[str, Any] = {
        "cache": "cold",
        "parameters": {"operand_bytes": size, "level": main_capacity(bench.device).name},
        "budget_s": MAIN_BUDGETS * bench.budget_s,
        "placements": placements or PLACEMENTS.of(bench.device),
        "quantile": 0.0 if bench.backend.is_host else FASTEST,
    }
    for kernel, access in KERNELS.items():
        about: dict[str, Any] = {"unit": "B/s", "dtype": "float32"}
        if needed > (bench.limit_bytes or 0):
            yield bench.missing("memory", kernel, reason=why, **about)
            continue
        build = partial(case, kernel, size, bench.device, pool)
        timed = bench.time("memory", kernel, build, work=access.tensors * size, **about, **shared)
        yield judged(timed, read_curve(bench.device)) if kernel == "read" and bench.backend.is_host else timed


def judged(read: Measurement, curve: ReadCurve | None) -> Measurement:
    """Mark the read of main memory as not cold where its rate is nearer to that of a cache than to main memory's.

    The measurement is unchanged where it has no result, or where no cache is distinctly faster than main memory.
    """
    if curve is None or curve.main_rate is None or curve.cached_rate is None or not read.has_value or not read.cache:
        return read
    rate, labels = read.value(), read.labels
    changes: dict[str, Any] = {"judged_by": "bytes and rate"}
    if rate >= math.sqrt(curve.main_rate * curve.cached_rate):
        changes["holds"] = False
        what = (
            f"not cold: {rate / 1e9:.3g} GB/s is the rate of a cache ({curve.cached_rate / 1e9:.3g} GB/s), not that of "
            f"main memory ({curve.main_rate / 1e9:.3g} GB/s)"
        )
        labels = (*labels, Label(severity="warns", what=what, share=1.0))
    return read.model_copy(update={"cache": read.cache.model_copy(update=changes), "labels": labels})


def caches(bench: Bench) -> Iterator[Measurement]:
    """Time read, copy and triad on working sets that fit each cache."""
    most = bench.cache_bytes or 0
    known = tuple(Capacity(name=c.name, bytes=min(c.bytes, most)) for c in cache_capacities(bench.device))
    if not known:
        yield bench.missing("cache", "all", unit="B/s", reason="the system describes no caches", dtype="float32")
    for cache in known:
        for size in working_sets(cache, known):
            for kernel in ("read", "copy", "triad"):
                yield on_working_set(bench, "cache", kernel, size, "warm", {"level": cache.name})


def curve(bench: Bench) -> Iterator[Measurement]:
    """Time bandwidth over the size of the working set, reused in place: plateaus are levels, knees are capacities."""
    first, last = CURVE_BYTES.of(bench.device)
    steps = QUICK_PER_OCTAVE if bench.quick else PER_OCTAVE
    for i in range(round(math.log2(last / first) * steps) + 1):
        size = int(first * 2 ** (i / steps))
        if size > (bench.limit_bytes or 0):
            break
        for kernel in CURVE_KERNELS:
            yield on_working_set(bench, "curve", kernel, size, "in place", {})


def on_working_set(
    bench: Bench, benchmark: str, kernel: str, size: int, cache: State, more: dict[str, int | float | str]
) -> Measurement:
    """Time a kernel whose operands are `size` bytes together."""
    tensors = KERNELS[kernel].tensors
    part = max(64, size // tensors // 64 * 64)  # a whole number of cache lines
    parameters = {"kernel": kernel, "working_set_bytes": size, **more}
    about: dict[str, Any] = {"dtype": "float32", "cache": cache, "parameters": parameters}
    build = partial(case, kernel, part, bench.device)
    return bench.time(benchmark, f"{kernel} {size}", build, unit="B/s", work=tensors * part, **about)


def operand_bytes(bench: Bench) -> int:
    """Size of an operand in main memory: `OPERAND_BYTES`, or a third of the memory limit where that is less."""
    size = min(OPERAND_BYTES.of(bench.device), (bench.limit_bytes or 0) // 3)
    return max(64, size // 64 * 64)  # a whole number of cache lines


def case(kernel: str, size_bytes: int, device: torch.device, pool: Pool | None = None) -> Case[Operands]:
    """The case of a kernel on operands of `size_bytes` each; the output holds NaN until it is written.

    The operands come from `pool`; None makes them for this case.
    """
    access = KERNELS[kernel]
    operands, number = pool or Pool(size_bytes, device), itertools.count()

    def check(operands: Operands, result: object) -> None:
        if access.expected is None:
            _check_sum(operands[0], result)
            return
        stride = max(1, operands[-1].numel() // CHECKED)
        for part in (slice(None, None, stride), slice(-1, None)):
            *inputs, out = (tensor[part].double() for tensor in operands)
            expected = access.expected(*inputs).to(out.device)
            worst, scale = float((out - expected).abs().max()), float(expected.abs().max())
            if not worst <= TOLERANCE * max(scale, 1.0):  # NaN is refused too
                raise ArithmeticError(f"{kernel} wrote values that differ by {worst:g} from the reference")

    return Case(
        lambda: operands.take(next(number), kernel),
        lambda operands: access.run(*operands),
        access.tensors * size_bytes,
        check,
    )


def normal(elements: int, device: torch.device) -> Tensor:
    """Random normal float32, one block repeated; every page is touched."""
    tensor = torch.empty(elements, device=device)
    fill_normal(tensor)
    return tensor


def fill_normal(tensor: Tensor) -> None:
    """Fill a tensor of one dimension with random normal data, one block repeated."""
    tensor[:BLOCK_ELEMENTS].normal_()
    for part in tensor.split(BLOCK_ELEMENTS)[1:]:
        part.copy_(tensor[: part.numel()])


def working_sets(cache: Capacity, known: tuple[Capacity, ...]) -> list[int]:
    """Sizes in bytes that fit a cache: half of it, and for the last, shared one, also the halvings of that half down
    to the size of the next smaller cache."""
    sizes = [cache.bytes // 2]
    if cache is not known[-1]:
        return sizes
    smaller = max((c.bytes for c in known if c.bytes < cache.bytes), default=cache.bytes)
    while sizes[-1] // 2 > smaller:
        sizes.append(sizes[-1] // 2)
    return sizes


def _check_sum(operand: Tensor, result: object) -> None:
    if not isinstance(result, Tensor):
        raise ArithmeticError("read gave no sum")
    exact = float(operand.sum(dtype=torch.float64))
    # partial sums of n random terms in float32 are off by some roundings of their own size, √n
    if not abs(float(result) - exact) <= 1e-2 * math.sqrt(operand.numel()):
        raise ArithmeticError(f"read gave the sum {float(result):g}, in float64 it is {exact:g}")
