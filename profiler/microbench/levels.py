"""Which levels of the memory hierarchy show in measured bandwidths, and what this process gets of each.

A level's bandwidth is the best of the kernels on it. The last-level cache may be shared with others, of whom a virtual
machine does not tell: its capacity is twice the largest working set at which its bandwidth still shows. A level that
is not distinctly faster than the next one is merged into it, so no level is slower than a larger one.

Example: ``ladder(main, {l2: [Reached("read", 2 << 20, 9e10, …)]})``
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiler.devices.caches import Capacity

DISTINCT = 1.15
"""A level must be this much faster than the next one to count as a level of its own: above run-to-run noise."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What a kernel reached on a working set."""

    kernel: str
    working_set_bytes: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class MeasuredLevel:
    """One level with the best kernel on it."""

    name: str
    capacity_bytes: int
    """What this process gets of it, at most what the system says."""
    stated_bytes: int
    best: Reached


def ladder(
    main: MeasuredLevel, caches: Mapping[Capacity, Sequence[Reached]]
) -> tuple[tuple[MeasuredLevel, ...], dict[str, str]]:
    """Main memory and, outwards from it, each cache (given from the smallest) that is distinctly faster.

    Also the reason of each level that was merged into the next, or has no figure at all.
    """
    kept = [main]
    reasons: dict[str, str] = {}
    for cache in reversed(list(caches)):
        if not caches[cache]:
            reasons[cache.name] = "no kernel has a result on it"
            continue
        outer = kept[0]
        level = plateau(cache, caches[cache], outer.best.bytes_per_s)
        if level is None:
            reached = max(one.bytes_per_s for one in caches[cache])
            how = "slower than" if reached < outer.best.bytes_per_s else f"not {DISTINCT - 1:.0%} above"
            reasons[cache.name] = (
                f"merged into {outer.name}: {reached / 1e9:.1f} GB/s is {how} {outer.best.bytes_per_s / 1e9:.1f} GB/s"
            )
        else:
            kept.insert(0, level)
    return tuple(kept), reasons


def plateau(cache: Capacity, found: Sequence[Reached], outer_bytes_per_s: float) -> MeasuredLevel | None:
    """The largest working set that is about as fast as the fastest; None if none is distinct from the next level."""
    by_size: dict[int, Reached] = {}
    for one in found:
        best = by_size.get(one.working_set_bytes)
        if best is None or one.bytes_per_s > best.bytes_per_s:
            by_size[one.working_set_bytes] = one
    fastest = max(one.bytes_per_s for one in by_size.values())
    if fastest < DISTINCT * outer_bytes_per_s:
        return None
    least = max(fastest / DISTINCT, DISTINCT * outer_bytes_per_s)
    chosen = max((one for one in by_size.values() if one.bytes_per_s >= least), key=lambda b: b.working_set_bytes)
    return MeasuredLevel(cache.name, min(cache.bytes, 2 * chosen.working_set_bytes), cache.bytes, chosen)
