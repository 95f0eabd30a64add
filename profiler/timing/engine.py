"""The measuring engine: one way to time anything, with its conditions declared, checked and kept.

A `Case` says what to run on which operands and what must come out. `measure` makes as many operands as the declared
cache state needs, checks the output once against its reference before and once after timing, warms up to a steady
state, samples until a stop rule holds, and returns the samples with the reason, the state that the caches really had,
and the conditions of each window.

Contract: raises ArithmeticError where an output is wrong or not finite, ValueError where the operands of a cold case
exceed the memory limit, and what torch raises; it never returns a time of work that was not done. A cold state for
which there is not enough memory is measured all the same, and `cache.holds` is False.

Example::

    timed = measure(product_case("bfloat16", (1024, 1024, 1024), device), Setting(clock, cache_bytes=50 << 20))
    timed.samples.median_s, timed.cache.holds
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from profiler.devices.watch import Watch
from profiler.record.measurement import CacheSource, CacheState, State
from profiler.timing.clock import Clock
from profiler.timing.floor import floor_s
from profiler.timing.flush import Rotation, copies, state_of
from profiler.timing.sampler import Samples, sample
from profiler.timing.stopping import Rules

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Case(Generic[T]):
    """Something to time. Its outputs are part of its operands, so that they are rewritten by every call."""

    make: Callable[[], T]
    """Fresh operands, random normal, with outputs that hold NaN."""
    run: Callable[[T], object]
    touched_bytes: int
    """Distinct bytes that one call touches."""
    check: Callable[[T, object], None] = lambda operands, result: None
    """Raises ArithmeticError where the operands' outputs, or what `run` returned, are not what they must be."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how long to time."""

    clock: Clock
    cache: State = "warm"
    rules: Rules = field(default_factory=Rules)
    min_sample_s: float = 0.0
    """Shortest sample; calls are repeated within one until it is reached."""
    warm_up_s: float = 0.0
    """Least warm-up: a GPU raises its clocks in some ten milliseconds."""
    cache_bytes: int | None = None
    """Of the last-level cache; None where it is not known."""
    cache_source: CacheSource = "stated"
    placements: int = 1
    """Operands to take turns at least, where memory allows: a process has one luck with the placement of each."""
    limit_bytes: int = 1 << 30
    """Most memory for copies of operands."""
    watch: Watch | None = None
    """Reads clocks, power and other work beside the samples."""


@dataclass(frozen=True, slots=True)
class Timed:
    """What `measure` found."""

    samples: Samples
    cache: CacheState
    floor_s: float
    placements: int
    """Operands that took turns, one a sample; 1 where a sample goes round them all."""


def measure(case: Case[T], setting: Setting) -> Timed:
    """Time a case under a setting."""
    cold = setting.cache == "cold"
    count = copies(case.touched_bytes, setting.cache_bytes or 0, limit_bytes=setting.limit_bytes) if cold else 1
    count = max(count, min(setting.placements, setting.limit_bytes // max(1, case.touched_bytes)))
    turns = Rotation([case.make() for _ in range(count)])
    first = turns.next()
    began = setting.clock.now()
    result = case.run(first)
    first_s = setting.clock.now() - began
    case.check(first, result)
    turns.restart()
    # The first call counts, so that a slow call does not double its time; a call that sets up a library leaves half.
    rules = setting.rules.within(max(setting.rules.max_time_s - first_s, setting.rules.max_time_s / 2))
    last: object = None

    def call() -> None:
        nonlocal last
        last = case.run(turns.next())

    samples = sample(
        call,
        setting.clock,
        rules=rules,
        min_sample_s=setting.min_sample_s,
        multiple=count,
        warm_up_s=setting.warm_up_s,
        watch=setting.watch,
    )
    case.check(turns.current, last)
    # All operands lie between the making of one and its first use, so that those not used yet count as well; a clock
    # that replays uses the same ones in each sample, and no others.
    taking_turns = turns.distinct if setting.clock.replays else len(turns)
    return Timed(
        samples=samples,
        cache=state_of(setting.cache, taking_turns, case.touched_bytes, setting.cache_bytes, setting.cache_source),
        floor_s=floor_s(setting.clock),
        placements=turns.distinct if setting.placements > 1 and samples.repeats == 1 else 1,
    )
