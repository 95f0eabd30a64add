"""The measuring engine: one way to time anything, with its conditions watched and judged.

What is timed is checked, warmed up to a steady state (`warm_up`), and sampled until a stop rule holds
(`sample_rounds`), in windows in which clocks, power and other work are watched; `judge` tells what these conditions
mean. Microbenchmarks time one call (`measure`), `profiler.passes.measure` rounds of passes, `profiler.timing.turns`
kernels that take turns.

Example::

    timed = measure(product_case("bfloat16", (1024, 1024, 1024), device), Setting(clock, cache_bytes=50 << 20))
    timed.samples.median_s, timed.cache.holds
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from profiler.devices.conditions import device_labels, host_labels, other_share, worst
from profiler.devices.watch import GpuReading, Watch
from profiler.record.measurement import CacheSource, CacheState, Label, State, Status, WarmUp, Window
from profiler.timing.cache_state import Rotation, copies, state_of
from profiler.timing.clocks import Call, Clock, floor_s
from profiler.timing.stopping import Modes, Reason, Rules, Stopping, median_interval, modes
from roofline.units import whole_percent

WARM_UP_PART = 0.25
"""Most of the time limit that warm-up may take."""
WINDOW_S = 0.25
"""Seconds of samples between two readings of the conditions: NVML's own figures are averages of 0.1 to 1 s."""
WARM_CALLS = 3
"""Calls of a warm-up whose median is compared: the fewest that have a middle one."""
FALLING = 0.02
"""A median this much below the one before is still falling: the size of the interval that sampling asks for."""
FEWEST = 2
"""Calls of a warm-up at least: the first pays for initialisation, the second tells what a call takes."""
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
    """The settings of a timing: its clock, the state of the caches and its limits."""

    clock: Clock
    cache: State = "warm"
    rules: Rules = field(default_factory=Rules)
    min_sample_s: float = 0.0
    """Shortest sample; calls are repeated within one until it is reached."""
    warm_up_s: float = 0.0
    """Least warm-up: a GPU raises its clocks in some ten milliseconds."""
    cache_bytes: int | None = None
    """Size of the last-level cache; None where it is not known."""
    cache_source: CacheSource = "stated"
    placements: int = 1
    """Operands to take turns at least, where memory allows: a process has one luck with the placement of each."""
    limit_bytes: int = 1 << 30
    """Most memory for copies of operands."""
    watch: Watch | None = None
    """Reads clocks, power and other work beside the samples."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Times of one call, in the order they were taken."""

    times_s: tuple[float, ...]
    """Seconds a call, mean of `repeats` calls in a row."""
    repeats: int
    stop_reason: Reason
    clock: str
    warm_up: WarmUp
    windows: tuple[Window, ...] = ()

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)

    @property
    def modes(self) -> Modes | None:
        """The two modes that the times fall into; None where they may as well have one."""
        return modes(self.times_s)

    @property
    def interval_s(self) -> tuple[float, float]:
        """The 90 % interval of the median, which covers both modes where there are two; (0, inf) of too few times."""
        return median_interval(self.times_s)


@dataclass(frozen=True, slots=True)
class Timed:
    """The result of `measure`."""

    samples: Samples
    cache: CacheState
    floor_s: float
    placements: int
    """Operands that took turns, one a sample; 1 where a sample goes round them all."""


def measure(case: Case[T], setting: Setting) -> Timed:
    """Time a case under a setting.

    A cold state for which there is not enough memory is measured all the same, and `cache.holds` is False. Raises
    ArithmeticError where an output is wrong or not finite, and ValueError where one operand exceeds the memory limit.
    """
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


def sample(
    call: Call,
    clock: Clock,
    *,
    rules: Rules | None = None,
    min_sample_s: float = 0.0,
    multiple: int = 1,
    warm_up_s: float = 0.0,
    watch: Watch | None = None,
) -> Samples:
    """Time `call` on `clock` until `rules` end it: warm-up, then samples of at least `min_sample_s` each.

    `multiple`: repeats within a sample are a multiple of it where they are more than one, so that each sample goes
    round all operands in turn. The time limit counts the warm-up, so a budget holds. Raises ArithmeticError where the
    clock gives no positive time.
    """
    rules = rules or Rules()
    began = clock.now()
    warmed, once_s = warm_up(call, clock, min_s=warm_up_s, max_s=max(warm_up_s, WARM_UP_PART * rules.max_time_s))
    repeats = _repeats(call, clock, once_s, min_sample_s, multiple)
    times: list[float] = []

    def window() -> Iterator[float]:
        opened = clock.now()
        while True:
            taken = clock.time(call, repeats)
            if not (math.isfinite(taken) and taken > 0):
                raise ArithmeticError(f"the clock ({clock.name}) gave {taken} s for {repeats} calls; time more at once")
            times.append(taken / repeats)
            yield taken / repeats
            if clock.now() - opened >= WINDOW_S:
                return

    reason, windows = sample_rounds(window, rules, clock.now, began, repeats=repeats, watch=watch)
    return Samples(tuple(times), repeats, reason, clock.name, warmed, windows)


def _repeats(call: Call, clock: Clock, once_s: float, min_sample_s: float, multiple: int) -> int:
    if once_s >= min_sample_s:
        return multiple if clock.replays else 1
    repeats = math.ceil(min_sample_s / max(once_s, 1e-9))
    # A single call overstates the time of one in a row: count again.
    repeats = math.ceil(min_sample_s * repeats / max(clock.time(call, repeats), 1e-9))
    return multiple * math.ceil(max(1, repeats) / multiple)


def sample_rounds(
    take: Callable[[], Iterable[float]],
    rules: Rules,
    now: Callable[[], float],
    began: float,
    *,
    repeats: int = 1,
    fewest: int = 1,
    runs: int = 1,
    watch: Watch | None = None,
) -> tuple[Reason, tuple[Window, ...]]:
    """Take rounds of samples, each watched in a window of its own, until the rules end them.

    Args: `take`, gives the samples of a round, seconds a call, and is left as soon as a rule holds; `began`, when the
    time limit began on the clock `now`; `repeats`, calls in a sample; `fewest`, rounds at least; `runs`, of the timed
    thing for each sample that `take` gives.
    """
    stopping = Stopping(rules)
    windows: list[Window] = []
    timed_s, done = 0.0, 0
    while True:
        done += 1
        if watch is not None:
            watch.begin()
        count, reason = 0, None
        for sample_s in take():
            count += 1
            timed_s += sample_s * repeats
            reason = stopping.add(sample_s, timed_s=timed_s, elapsed_s=now() - began)
            if reason:
                break
        if watch is not None:
            windows.append(watch.end(count * runs))
        if reason and done >= fewest:
            return reason, tuple(windows)


def warm_up(call: Call, clock: Clock, *, min_s: float, max_s: float, fewest: int = FEWEST) -> tuple[WarmUp, float]:
    """Run `call` until it is steady, for `min_s` to `max_s` seconds; also the seconds of the last call.

    Lazy initialisation, page faults, clocks that rise and algorithms that are still being chosen make the first calls
    slower. `fewest` calls at least: 1 does where the call has run before. The first never counts towards steadiness.
    Raises ArithmeticError where the clock gives no finite time.
    """
    began = clock.now()
    times: list[float] = []
    while True:
        times.append(clock.time(call, 1))
        if not math.isfinite(times[-1]):
            raise ArithmeticError(f"the clock ({clock.name}) gave {times[-1]} s for a call")
        spent_s = clock.now() - began
        steady = is_steady(times[1:])
        if len(times) >= fewest and (spent_s >= max_s or (steady and spent_s >= min_s)):
            return WarmUp(calls=len(times), seconds=spent_s, steady=steady), times[-1]


def is_steady(times_s: list[float]) -> bool:
    """Whether the last `WARM_CALLS` times are not below those before them; False while there are too few."""
    if len(times_s) < 2 * WARM_CALLS:
        return False
    last, before = times_s[-WARM_CALLS:], times_s[-2 * WARM_CALLS : -WARM_CALLS]
    return statistics.median(last) >= (1 - FALLING) * statistics.median(before)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The meaning of a measurement's conditions for its result."""

    status: Status
    """invalid: not this device's speed; inconclusive: other work had the host that the measured work ran on."""
    device: tuple[Label, ...]
    host: tuple[Label, ...]
    other_work: float | None
    """Share of the time of all cores that others took; None where it is not known."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """All labels, those of the device first."""
        return *self.device, *self.host

    @property
    def reason(self) -> str | None:
        """The reason why the status is not "done", in one line."""
        if self.status == "done":
            return None
        invalidating = [label.what for label in self.labels if label.severity == "invalidates"]
        return "; ".join(invalidating) or f"other work took {whole_percent(self.other_work or 0)} of the host's cores"


def mode_labels(times_s: Sequence[float]) -> tuple[Label, ...]:
    """A label where the times fall into two modes, else none."""
    if (two := modes(times_s)) is None:
        return ()
    what = (
        f"the samples fall into two modes, {two.low_s * 1e6:.3g} µs ({two.low_share:.0%}) and "
        f"{two.high_s * 1e6:.3g} µs ({1 - two.low_share:.0%}): the median may be either, the time is between them"
    )
    return (Label(severity="warns", what=what, share=min(two.low_share, 1 - two.low_share)),)


def judge(
    windows: Sequence[Window],
    before: GpuReading | None,
    after: GpuReading | None,
    *,
    on_cpu: bool,
    more: Iterable[Label] = (),
    most_other_work: float = 1.0,
) -> Verdict:
    """The verdict on a measurement, from its windows and the readings of the GPU around it (None on a CPU).

    `on_cpu`: whether the measured work runs on the host, so that other work there takes from it; `more`: other labels
    of the device's; `most_other_work`: share of all cores that others may take beside work on a CPU.
    """
    device, host = (*device_labels(windows, before, after), *more), tuple(host_labels(windows))
    other_work = other_share(windows)
    status: Status = "done"
    if worst(device) == "invalidates":
        status = "invalid"
    elif on_cpu and (worst(host) == "invalidates" or (other_work or 0.0) > most_other_work):
        status = "inconclusive"
    return Verdict(status, device, host, other_work)
