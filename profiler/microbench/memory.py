"""Bandwidth of memory as torch's own kernels reach it: the four of STREAM, and read and write alone.

Convention: bytes read plus bytes written, each once, as in STREAM (McCalpin, 1995); the read of a line before it is
written (write-allocate) is not added. float32, random normal data, outputs given. Main memory is cold: every operand is
past the last-level cache. A cache is warm: the same operands again.

Example: ``[m.value() for m in main_memory(Bench(torch.device("cpu")))]``
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from profiler.microbench.bench import Bench
from profiler.microbench.caches import Capacity, cache_capacities, main_capacity
from profiler.record.measurement import FASTEST, Measurement, State
from profiler.timing.engine import Case
from profiler.timing.flush import PAST

FACTOR = 3.0
"""Of scale and triad, as in STREAM."""
OPERAND_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
"""An operand in main memory: on a GPU a kernel of 0.2 ms and more, beside which the gap to the next one (2 µs) does not
matter; on a CPU several times the largest cache (STREAM asks for 4) in a short sample."""
PLACEMENTS = {"cpu": 4, "cuda": 1}
"""Sets of operands that take turns: which pages of a host's memory they lie on moves their bandwidth by a quarter and
more, from one set to the next."""
MAIN_BUDGETS = 2
"""Budgets of a case that a kernel on main memory has: its calls are the longest, so it has the fewest samples. On a
CPU its value is the fastest of them, as in STREAM, of the middle placement: a call of 10 ms is long enough for one
reading of the clock, while CUDA events wander by 10–30 µs."""
BLOCK_ELEMENTS = 4 << 20
"""Random data is made once in this size and repeated: generating a GiB takes longer than measuring it."""
CHECKED = 4096
"""Elements of an output that are compared with the reference, evenly spread."""
TOLERANCE = 1e-5
"""Relative: a few roundings of float32 (6e-8 each)."""
CURVE_BYTES = {"cpu": (256 << 10, 1 << 30), "cuda": (512 << 10, 8 << 30)}
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


KERNELS: dict[str, Kernel] = {
    "read": Kernel(1, lambda a: torch.sum(a), None),
    "write": Kernel(1, lambda c: c.fill_(FACTOR), lambda: torch.tensor(FACTOR)),
    "copy": Kernel(2, lambda a, c: c.copy_(a), lambda a: a),
    "scale": Kernel(2, lambda a, c: torch.mul(a, FACTOR, out=c), lambda a: a * FACTOR),
    "add": Kernel(3, lambda a, b, c: torch.add(a, b, out=c), lambda a, b: a + b),
    "triad": Kernel(3, lambda a, b, c: torch.add(a, b, alpha=FACTOR, out=c), lambda a, b: a + FACTOR * b),
}


def main_memory(bench: Bench) -> Iterator[Measurement]:
    """Every kernel on main memory."""
    name = main_capacity(bench.device).name
    for kernel in KERNELS:
        size = operand_bytes(bench, kernel)
        yield bench.time(
            "memory",
            kernel,
            lambda kernel=kernel, size=size: case(kernel, size, bench.device),  # type: ignore[misc]
            unit="B/s",
            work=KERNELS[kernel].tensors * size,
            dtype="float32",
            cache="cold",
            parameters={"operand_bytes": size, "level": name},
            budget_s=MAIN_BUDGETS * bench.budget_s,
            placements=PLACEMENTS[bench.device.type],
            quantile=FASTEST if bench.is_cuda else 0.0,
        )


def caches(bench: Bench) -> Iterator[Measurement]:
    """Read, copy and triad on working sets that stand for each cache; `levels.ladder` makes levels of them."""
    known = cache_capacities(bench.device)
    for cache in known:
        for size in working_sets(cache, known):
            for kernel in ("read", "copy", "triad"):
                yield on_working_set(bench, "cache", kernel, size, "warm", {"level": cache.name})


def curve(bench: Bench) -> Iterator[Measurement]:
    """Bandwidth over the size of the working set, each used again and again: plateaus are levels, knees capacities."""
    first, last = CURVE_BYTES[bench.device.type]
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


def operand_bytes(bench: Bench, kernel: str) -> int:
    """Of each operand in main memory: `OPERAND_BYTES`, less where memory is limited, in whole blocks if possible."""
    size = min(OPERAND_BYTES[bench.device.type], (bench.limit_bytes or 0) // KERNELS[kernel].tensors)
    cache = bench.cache_bytes or 0
    return max(size, math.ceil(PAST * cache / KERNELS[kernel].tensors / 64) * 64) // 64 * 64


def case(kernel: str, size_bytes: int, device: torch.device) -> Case[Operands]:
    """A kernel on operands of `size_bytes` each; the output holds NaN until it is written."""
    one = KERNELS[kernel]
    inputs = one.tensors - (one.expected is not None)

    def make() -> Operands:
        given = [normal(size_bytes // 4, device) for _ in range(inputs)]
        outputs = [torch.full_like(given[0] if given else torch.empty(size_bytes // 4, device=device), math.nan)]
        return (*given, *(outputs if one.expected is not None else ()))

    def check(operands: Operands, result: object) -> None:
        if one.expected is None:
            _check_sum(operands[0], result)
            return
        *given, out = operands
        stride = max(1, out.numel() // CHECKED)
        some = [tensor[::stride].double() for tensor in given]
        _agree(kernel, out[::stride].double(), one.expected(*some).to(out.device))
        _agree(kernel, out[-1:].double(), one.expected(*(t[-1:].double() for t in given)).to(out.device))

    return Case(make, lambda operands: one.run(*operands), one.tensors * size_bytes, check)


def normal(elements: int, device: torch.device) -> Tensor:
    """Random normal float32, one block repeated, every page touched."""
    block = torch.randn(min(elements, BLOCK_ELEMENTS), device=device)
    return block.repeat(-(-elements // block.numel()))[:elements] if elements > block.numel() else block


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


def _agree(kernel: str, found: Tensor, expected: Tensor) -> None:
    worst = float((found - expected).abs().max())
    scale = float(expected.abs().max())
    if not worst <= TOLERANCE * max(scale, 1.0):  # NaN is refused too
        raise ArithmeticError(f"{kernel} wrote values that differ by {worst:g} from the reference")
