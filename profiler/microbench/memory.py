"""Bandwidth of memory as torch's own kernels reach it: the four of STREAM, and read and write alone.

Convention: bytes read plus bytes written, each once, as in STREAM (McCalpin, 1995); the read of a line before it is
written (write-allocate) is not added. float32, random normal data, outputs given. Main memory is cold: every operand is
past the last-level cache. A cache is warm: the same operands again.

Example: ``[m.value() for m in main_memory(Bench(torch.device("cpu")))]``
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
"""An operand in main memory: on a GPU a kernel of 0.2 ms and more, beside which the gap to the next one (2 µs) does not
matter; on a CPU several times the largest cache (STREAM asks for 4) in a short sample."""
PLACEMENTS = PerDevice(host=4, accelerator=1)
"""Sets of operands that take turns: which pages of a host's memory they lie on moves their bandwidth by a quarter and
more, from one set to the next."""
MAIN_BUDGETS = 2
"""Budgets of a case that a kernel on main memory has: its calls are the longest, so it has the fewest samples. On a
CPU its value is the fastest of them, as in STREAM, of the middle placement: a call of 10 ms is long enough for one
reading of the clock, while CUDA events wander by 10–30 µs."""
MOST_TENSORS = 3
"""Operands of the kernels with the most."""
BLOCK_ELEMENTS = 4 << 20
"""Random data is made once in this size and repeated: generating a GiB takes longer than measuring it."""
CHECKED = 4096
"""Elements of an output that are compared with the reference, evenly spread."""
TOLERANCE = 1e-5
"""Relative error: a few roundings of float32 (6e-8 each)."""
CURVE_BYTES = PerDevice(host=(256 << 10, 1 << 30), accelerator=(512 << 10, 8 << 30))
"""Working sets of the curve. Below 256 KiB a torch operation on a CPU is dispatch, not memory."""
PER_OCTAVE, QUICK_PER_OCTAVE = 3, 2
"""Sizes of an octave: plateaus need three."""
CURVE_KERNELS = ("read", "triad")

Operands = tuple[Tensor, ...]
"""Inputs first, then the output where there is one."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One pattern of access."""

    tensors: int
    """Operands of equal size; each is read or written once."""
    run: Callable[..., object]
    expected: Callable[..., Tensor] | None
    """The output from the inputs, in float64; None: the result is a sum."""

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

    The pages of a large operand are made when it is first written, which takes longer than measuring a kernel on it;
    each kernel anew would triple the time of the benchmark. An operand that was written as an output is filled with
    random data again before it is an input.
    """

    def __init__(self, size_bytes: int, device: torch.device) -> None:
        self._elements, self._device = size_bytes // 4, device
        self._tensors: list[Tensor] = []
        self._written: set[int] = set()

    def take(self, number: int, kernel: str) -> Operands:
        """The operands of a kernel's `number`th set, counted from 0: inputs random normal, the output NaN."""
        inputs, tensors = KERNELS[kernel].inputs, KERNELS[kernel].tensors
        places = range(number * tensors, (number + 1) * tensors)
        while len(self._tensors) < places.stop:
            self._tensors.append(normal(self._elements, self._device))
        for place in places[:inputs]:
            if place in self._written:
                fill_normal(self._tensors[place])
        self._written -= set(places[:inputs])
        for place in places[inputs:]:
            self._tensors[place].fill_(math.nan)
            self._written.add(place)
        return tuple(self._tensors[place] for place in places)


def main_memory(bench: Bench, placements: int | None = None) -> Iterator[Measurement]:
    """Every kernel on main memory, on so many sets of operands in turn (None: `PLACEMENTS`).

    With little memory the operands are smaller; where not even those fit that get past a usual last-level cache, each
    kernel is a measurement that says what is missing.
    """
    name = main_capacity(bench.device).name
    size = operand_bytes(bench)
    pool = Pool(size, bench.device)
    for kernel in KERNELS:
        if why := no_room(bench):
            yield bench.missing("memory", kernel, unit="B/s", reason=why, dtype="float32")
            continue
        timed = bench.time(
            "memory",
            kernel,
            lambda kernel=kernel: case(kernel, size, bench.device, pool),  # type: ignore[misc]
            unit="B/s",
            work=KERNELS[kernel].tensors * size,
            dtype="float32",
            cache="cold",
            parameters={"operand_bytes": size, "level": name},
            budget_s=MAIN_BUDGETS * bench.budget_s,
            placements=placements or PLACEMENTS.of(bench.device),
            quantile=0.0 if bench.backend.is_host else FASTEST,
        )
        yield judged(timed, read_curve(bench.device)) if kernel == "read" and bench.backend.is_host else timed


def no_room(bench: Bench) -> str | None:
    """Why main memory cannot be told from a cache within the memory allowed; None where it can."""
    needed = int(PAST * min(bench.cache_bytes or 0, TRUSTED_BYTES))
    if needed <= (bench.limit_bytes or 0):
        return None
    return f"{needed} bytes are needed to get past a cache, {bench.limit_bytes} are allowed: free or allow more memory"


def judged(read: Measurement, curve: ReadCurve | None) -> Measurement:
    """Reading main memory held against what reading a cache reaches: not cold where it is nearer to that.

    As it is where it has no result or no cache is distinctly faster than main memory.
    """
    if curve is None or curve.main_rate is None or curve.cached_rate is None or not read.has_value or not read.cache:
        return read
    rate = read.value()
    warm = rate >= math.sqrt(curve.main_rate * curve.cached_rate)
    state = read.cache.model_copy(
        update={"judged_by": "bytes and rate", "holds": False if warm else read.cache.holds},
    )
    what = (
        f"not cold: {rate / 1e9:.3g} GB/s is the rate of a cache ({curve.cached_rate / 1e9:.3g} GB/s), not that of "
        f"main memory ({curve.main_rate / 1e9:.3g} GB/s)"
    )
    labels = (*read.labels, Label(severity="warns", what=what, share=1.0)) if warm else read.labels
    return read.model_copy(update={"cache": state, "labels": labels})


def caches(bench: Bench) -> Iterator[Measurement]:
    """Read, copy and triad on working sets that stand for each cache, of which levels are made later."""
    most = bench.cache_bytes or 0
    known = tuple(Capacity(name=c.name, bytes=min(c.bytes, most)) for c in cache_capacities(bench.device))
    if not known:
        yield bench.missing("cache", "all", unit="B/s", reason="the system describes no caches", dtype="float32")
    for cache in known:
        for size in working_sets(cache, known):
            for kernel in ("read", "copy", "triad"):
                yield on_working_set(bench, "cache", kernel, size, "warm", {"level": cache.name})


def curve(bench: Bench) -> Iterator[Measurement]:
    """Bandwidth over the size of the working set, each used again and again: plateaus are levels, knees capacities."""
    first, last = CURVE_BYTES.of(bench.device)
    limit = bench.limit_bytes or 0
    steps = QUICK_PER_OCTAVE if bench.quick else PER_OCTAVE
    for i in range(round(math.log2(last / first) * steps) + 1):
        size = int(first * 2 ** (i / steps))
        if size > limit:
            break
        for kernel in CURVE_KERNELS:
            yield on_working_set(bench, "curve", kernel, size, "in place", {})


def on_working_set(
    bench: Bench, benchmark: str, kernel: str, size: int, cache: State, more: dict[str, int | float | str]
) -> Measurement:
    """A kernel whose operands are `size` bytes together."""
    part = max(64, size // KERNELS[kernel].tensors // 64 * 64)  # a whole number of cache lines
    return bench.time(
        benchmark,
        f"{kernel} {size}",
        lambda: case(kernel, part, bench.device),
        unit="B/s",
        work=KERNELS[kernel].tensors * part,
        dtype="float32",
        cache=cache,
        parameters={"kernel": kernel, "working_set_bytes": size, **more},
    )


def operand_bytes(bench: Bench) -> int:
    """Size of an operand in main memory: `OPERAND_BYTES`, less where memory is limited; three of them fit."""
    size = min(OPERAND_BYTES.of(bench.device), (bench.limit_bytes or 0) // MOST_TENSORS)
    return max(64, size // 64 * 64)  # a whole number of cache lines


def case(kernel: str, size_bytes: int, device: torch.device, pool: Pool | None = None) -> Case[Operands]:
    """A kernel on operands of `size_bytes` each; the output holds NaN until it is written.

    `pool` has the operands; None: they are made for this case.
    """
    access = KERNELS[kernel]
    operands, number = pool or Pool(size_bytes, device), itertools.count()

    def make() -> Operands:
        return operands.take(next(number), kernel)

    def check(operands: Operands, result: object) -> None:
        if access.expected is None:
            _check_sum(operands[0], result)
            return
        *given, out = operands
        stride = max(1, out.numel() // CHECKED)
        some = [tensor[::stride].double() for tensor in given]
        _agree(kernel, out[::stride].double(), access.expected(*some).to(out.device))
        _agree(kernel, out[-1:].double(), access.expected(*(t[-1:].double() for t in given)).to(out.device))

    return Case(make, lambda operands: access.run(*operands), access.tensors * size_bytes, check)


def normal(elements: int, device: torch.device) -> Tensor:
    """Random normal float32, one block repeated, every page touched."""
    tensor = torch.empty(elements, device=device)
    fill_normal(tensor)
    return tensor


def fill_normal(tensor: Tensor) -> None:
    """Random normal data into a tensor of one dimension, one block repeated."""
    tensor[:BLOCK_ELEMENTS].normal_()
    for part in tensor.split(BLOCK_ELEMENTS)[1:]:
        part.copy_(tensor[: part.numel()])


def working_sets(cache: Capacity, known: tuple[Capacity, ...]) -> list[int]:
    """Half of a cache; of the last one, which others share, also the halves down to what the next smaller one holds."""
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


def _agree(kernel: str, written: Tensor, expected: Tensor) -> None:
    worst = float((written - expected).abs().max())
    scale = float(expected.abs().max())
    if not worst <= TOLERANCE * max(scale, 1.0):  # NaN is refused too
        raise ArithmeticError(f"{kernel} wrote values that differ by {worst:g} from the reference")
