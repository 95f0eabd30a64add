"""Bandwidth of each level of the memory hierarchy, as torch's own kernels reach it.

Convention: bytes read plus bytes written, each once; no write-allocate traffic is added. Three kernels on float32
random normal data: read (`sum`), copy (`copy_`) and add (`add(out=)`); a level's bandwidth is the best of them.
Caches are measured warm with a working set of half their capacity; main memory cold, with operands that take turns
past the last-level cache. The last-level cache may be shared with others, of whom a virtual machine does not tell:
its capacity is twice the largest working set at which its bandwidth still shows. A level that is not distinctly
faster than the next one is merged into it.

Example: ``kept, reasons = levels(device, [visit(device, budget_s=2.0) for _ in range(3)])``
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from profiler.environment import cpu_cache_levels
from profiler.host import read_limits, usable_cpus
from profiler.microbench.undisturbed import collect, fastest_s, merged
from profiler.timing.clock import clock_for
from profiler.timing.flush import Rotation, copies
from profiler.timing.sampler import Samples
from roofline.hardware import find_device

DISTINCT = 1.15
"""A level must be this much faster than the next one to count as a level of its own: above run-to-run noise."""
MAIN_LIMIT_BYTES = {"cpu": 768 << 20, "cuda": 4 << 30}
"""Most memory that a measurement of main memory takes, and never more than 1/8 of it. On a GPU each of four operands
is then 1 GiB, a kernel of 0.2 ms and more, beside which the gap to the next one (2 µs) does not matter."""
BLOCK_BYTES = 16 << 20
"""Random data is made once in this size and repeated: generating a GiB takes longer than measuring it."""

Progress = Callable[[float, str], None]
"""Called with the part done (0 to 1) and what is being done."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """A level of the hierarchy, all threads together."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What one kernel reached on one working set."""

    kernel: str
    working_set_bytes: int
    bytes_per_call: int
    cold: bool
    samples: Samples

    @property
    def bytes_per_s(self) -> float:
        return self.bytes_per_call / fastest_s(self.samples)


@dataclass(frozen=True, slots=True)
class MeasuredLevel:
    """One level with the best kernel on it."""

    name: str
    capacity_bytes: int
    """What this process gets of it, at most what the system says."""
    stated_bytes: int
    best: Bandwidth


Levels = tuple[MeasuredLevel, ...]
"""The smallest cache first, main memory last."""


def cache_capacities(device: torch.device) -> tuple[Capacity, ...]:
    """Caches that the threads of one operation have together, the smallest first; empty where they are unknown."""
    if device.type == "cuda":
        return (Capacity("L2", int(torch.cuda.get_device_properties(device).L2_cache_size)),)
    cores, threads = len(usable_cpus()), torch.get_num_threads()
    return tuple(
        Capacity(level.name, level.bytes * max(1, min(threads, -(-cores // level.shared_by))))
        for level in cpu_cache_levels()
    )


def main_capacity(device: torch.device) -> Capacity:
    """Main memory of the device, named as in its datasheet where a file describes it; what a container may use."""
    if device.type == "cuda":
        spec = find_device(torch.cuda.get_device_name(device))
        name = spec.datasheet.levels[-1].name if spec is not None and spec.datasheet is not None else "DRAM"
        return Capacity(name, int(torch.cuda.get_device_properties(device).total_memory))
    total = int(psutil.virtual_memory().total)
    limit = read_limits()[1] if Path("/proc/self/cgroup").exists() else None
    return Capacity("DRAM", min(total, limit or total))


def normal_pool(size_bytes: int, device: torch.device) -> Tensor:
    """A flat float32 tensor of at most `size_bytes` of random normal data, every page touched."""
    block = torch.randn(min(size_bytes, BLOCK_BYTES) // 4, device=device)
    repeats = max(1, size_bytes // (block.numel() * 4))
    return block.repeat(repeats)


def kernels(pool: Tensor, turns: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """(bytes a call, call) of each kernel on a pool; with `turns` above 1 each call works on another part of it."""

    def parts(of: int) -> list[Tensor]:
        """`of` tensors for each turn, in the order of the turns."""
        length = pool.numel() // (turns * of)
        return [pool[i * length : (i + 1) * length] for i in range(turns * of)]

    whole, halves, thirds = parts(1), parts(2), parts(3)
    reads = Rotation(whole)
    pairs = Rotation([(halves[2 * i], halves[2 * i + 1]) for i in range(turns)])
    triples = Rotation([(thirds[3 * i], thirds[3 * i + 1], thirds[3 * i + 2]) for i in range(turns)])

    def copy() -> object:
        source, target = pairs.next()
        return target.copy_(source)

    def add() -> object:
        a, b, out = triples.next()
        return torch.add(a, b, out=out)

    return {
        "read": (whole[0].nbytes, lambda: torch.sum(reads.next())),
        "copy": (2 * halves[0].nbytes, copy),
        "add": (3 * thirds[0].nbytes, add),
    }


def measure(working_set_bytes: int, device: torch.device, *, turns: int, budget_s: float) -> list[Bandwidth]:
    """Every kernel on a working set; `turns` above 1 is the cold state. Raises ArithmeticError if data went bad."""
    pool = normal_pool(working_set_bytes, device)
    clock = clock_for(device)
    found = []
    calls = kernels(pool, turns)
    for name, (size, call) in calls.items():
        # CUDA: 1 ms of kernels in a row, so that events (10–30 µs of wander) and launches do not matter.
        samples = collect(
            call, clock, budget_s=budget_s / len(calls), min_sample_s=1e-3 if device.type == "cuda" else 1e-4
        )
        found.append(Bandwidth(name, working_set_bytes, size, turns > 1, samples))
    if not bool(torch.isfinite(pool.sum())):
        raise ArithmeticError(f"the data of a {working_set_bytes} byte working set became non-finite")
    return found


def best(found: Iterable[Bandwidth]) -> Bandwidth:
    """The kernel with the highest bandwidth over all visits."""
    return max(merged(found), key=lambda b: (not b.samples.is_thin, b.bytes_per_s))


def main_working_set(device: torch.device, *, limit_bytes: int | None = None) -> tuple[int, int]:
    """(bytes, turns) for main memory: the largest operands that still come back cold; (bytes, 1) if none can."""
    size = min(limit_bytes or MAIN_LIMIT_BYTES[device.type], main_capacity(device).bytes // 8)
    caches = cache_capacities(device)
    for turns in (4, 8, 16, 32):
        try:
            if not caches or copies(size // turns, caches[-1].bytes, limit_bytes=size) <= turns:
                return size, turns
        except ValueError:
            continue
    return size, 1


def visit(
    device: torch.device,
    *,
    budget_s: float,
    limit_bytes: int | None = None,
    progress: Progress = lambda part, what: None,
) -> dict[str, list[Bandwidth]]:
    """Every kernel on every working set, by level, main memory first.

    Main memory gets half of the budget; `limit_bytes` bounds its working set (None: `MAIN_LIMIT_BYTES`).
    """
    caches = cache_capacities(device)
    main = main_capacity(device)
    size, turns = main_working_set(device, limit_bytes=limit_bytes)
    progress(0.0, f"bandwidth of {main.name}")
    found = {main.name: measure(size, device, turns=turns, budget_s=budget_s / 2)}
    sets = {cache: working_sets(cache, caches) for cache in caches}
    share_s = budget_s / 2 / max(1, sum(len(s) for s in sets.values()))
    for done, cache in enumerate(reversed(caches)):
        progress(0.5 + 0.5 * done / len(caches), f"bandwidth of {cache.name}")
        found[cache.name] = [one for w in sets[cache] for one in measure(w, device, turns=1, budget_s=share_s)]
    return found


def levels(device: torch.device, visits: Sequence[dict[str, list[Bandwidth]]]) -> tuple[Levels, dict[str, str]]:
    """Levels from the smallest cache to main memory, and the reason of each level that was merged into the next."""
    main = main_capacity(device)
    reached = best(one for visit in visits for one in visit[main.name])
    return ladder(
        MeasuredLevel(main.name, main.bytes, main.bytes, reached),
        {cache: [one for visit in visits for one in visit[cache.name]] for cache in cache_capacities(device)},
    )


def ladder(main: MeasuredLevel, caches: dict[Capacity, list[Bandwidth]]) -> tuple[Levels, dict[str, str]]:
    """Main memory and, outwards from it, each cache (given from the smallest) that is distinctly faster.

    So no level is slower than a larger one: one that was measured so is merged and its reason says it.
    """
    kept = [main]
    reasons: dict[str, str] = {}
    for cache in reversed(caches):
        by_size: dict[int, list[Bandwidth]] = {}
        for one in caches[cache]:
            by_size.setdefault(one.working_set_bytes, []).append(one)
        found = [best(some) for some in by_size.values()]
        outer = kept[0]
        level = plateau(cache, found, outer.best.bytes_per_s)
        if level is None:
            reached = max(b.bytes_per_s for b in found)
            how = "slower than" if reached < outer.best.bytes_per_s else f"not {DISTINCT - 1:.0%} above"
            reasons[cache.name] = (
                f"merged into {outer.name}: {reached / 1e9:.1f} GB/s is {how} {outer.best.bytes_per_s / 1e9:.1f} GB/s"
            )
        else:
            kept.insert(0, level)
    return tuple(kept), reasons


def working_sets(cache: Capacity, caches: Sequence[Capacity]) -> list[int]:
    """Half of a cache; of the last one, which others share, also the halves down to what the next smaller one holds."""
    sizes = [cache.bytes // 2]
    if cache is not caches[-1]:
        return sizes
    smaller = max((c.bytes for c in caches if c.bytes < cache.bytes), default=cache.bytes)
    while sizes[-1] // 2 > smaller:
        sizes.append(sizes[-1] // 2)
    return sizes


def plateau(cache: Capacity, found: Sequence[Bandwidth], outer_bytes_per_s: float) -> MeasuredLevel | None:
    """The largest working set that is about as fast as the fastest; None if none is distinct from the next level."""
    fastest = max(b.bytes_per_s for b in found)
    if fastest < DISTINCT * outer_bytes_per_s:
        return None
    least = max(fastest / DISTINCT, DISTINCT * outer_bytes_per_s)
    chosen = max((b for b in found if b.bytes_per_s >= least), key=lambda b: b.working_set_bytes)
    return MeasuredLevel(cache.name, min(cache.bytes, 2 * chosen.working_set_bytes), cache.bytes, chosen)
