"""A `Bench` gives a microbenchmark its device, clock and time budget, and times one case at a time.

A benchmark is a generator function that takes a `Bench` and yields one `Measurement` a case; it neither catches errors
nor knows of processes, files or progress. A case that fails (out of memory, a dtype that the device lacks, a wrong
output, a lost device) becomes a measurement with its reason, and the next case is tried. Example::

    def copies(bench: Bench) -> Iterator[Measurement]:
        yield bench.time("memory", "copy", lambda: copy_case(bench.device, 1 << 30), unit="B/s", work=2 << 30)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from profiler.devices.backend import Backend, PerDevice, backend_of, free_bytes
from profiler.devices.caches import EffectiveCache, effective_cache
from profiler.devices.watch import GpuReading, Watch
from profiler.record.measurement import (
    FASTEST,
    CacheSource,
    CacheState,
    Label,
    Layout,
    Measurement,
    State,
    Unit,
)
from profiler.timing.clocks import ABOVE, Clock, clock_for, too_short
from profiler.timing.engine import Case, Setting, judge, measure, mode_labels
from profiler.timing.stopping import Rules

MEMORY_PART = 1 / 8
"""Largest part of the device's free memory that a case takes: other programs and torch's workspaces need the rest."""
LIMIT_BYTES = PerDevice(host=3 << 29, accelerator=16 << 30)
"""Most memory that a case takes, however much is free."""
SAMPLE_S = PerDevice(host=2e-4, accelerator=1e-3)
"""Shortest sample: on a CPU below a scheduler's slice (milliseconds), so that some samples fall between those of
other work; on a GPU so long that the jitter of events (10–30 µs) and launches do not matter."""
WARM_UP_S = PerDevice(host=0.0, accelerator=0.03)
"""Shortest warm-up: a GPU raises its clocks from idle in some ten milliseconds."""
BURST = Rules(min_samples=7, relative_width=0.01)
"""Stop rule of a burst; `max_time_s` becomes the budget of the case."""
LOADED = Rules(min_samples=3, max_samples=100_000, relative_width=0.0, noise_tolerance=0.0)
"""Stop rule of a sustained load, which ends when its time is up, however precise its samples are."""


@dataclass(slots=True)
class Bench:
    """The device to measure, the time and memory of a case, and the process that measures."""

    device: torch.device
    budget_s: float = 0.3
    """Seconds that a case may take, warm-up included and setup excluded."""
    process: int = 0
    dtypes: tuple[str, ...] = ("float32",)
    """Types in which matrix and vector work is measured."""
    quick: bool = False
    limit_bytes: int | None = None
    """Most memory that a case takes; None stands for `LIMIT_BYTES` and `MEMORY_PART`."""
    shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """m, n, k of the fastest product of each dtype that was searched."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """Layout of the second operand of that product."""
    cache: EffectiveCache | None = None
    """The last-level cache, where another process has found it already."""
    clock: Clock = field(init=False)
    watch: Watch = field(init=False)
    read: Callable[[], GpuReading | None] = field(init=False)
    """Reads the GPU's state from its driver before and after each case: MIG, ECC, memory errors; None on a CPU."""
    cache_bytes: int | None = field(init=False)
    """Size of the last-level cache, which cold operands must exceed."""
    cache_source: CacheSource = field(init=False)
    cache_reason: str = field(init=False)
    """The origin of the cache's size, in one line."""

    def __post_init__(self) -> None:
        self.clock = clock_for(self.device)
        self.watch = self.backend.watch(self.device)
        self.read = partial(self.backend.reading, self.device)
        cache = self.cache or effective_cache(self.device)
        self.cache_bytes, self.cache_source, self.cache_reason = cache.bytes, cache.source, cache.reason
        if self.limit_bytes is None:
            self.limit_bytes = int(min(LIMIT_BYTES.of(self.device), MEMORY_PART * free_bytes(self.device)))

    @property
    def backend(self) -> Backend:
        """The kind of device."""
        return backend_of(self.device)

    @property
    def threads(self) -> int | None:
        """Host threads of an operation; None on a GPU."""
        return torch.get_num_threads() if self.backend.is_host else None

    def missing(self, benchmark: str, case: str, *, unit: Unit, reason: str, **about: Any) -> Measurement:
        """A measurement without samples, whose reason a report can show; `about` holds further fields of it."""
        fields = {"threads": self.threads, "process": self.process, "unit": unit, "work": 1, **about}
        return Measurement(benchmark=benchmark, case=case, status="failed", reason=reason, **fields)

    def time(
        self,
        benchmark: str,
        case: str,
        build: Callable[[], Case[Any]],
        *,
        unit: Unit,
        work: float,
        dtype: str | None = None,
        cache: State = "warm",
        parameters: dict[str, int | float | str] | None = None,
        budget_s: float | None = None,
        clock: Clock | None = None,
        quantile: float = FASTEST,
        rules: Rules = BURST,
        sample_s: float | None = None,
        placements: int = 1,
    ) -> Measurement:
        """Time one case. An exception becomes the reason of a failed measurement; only an interruption passes.

        `build` allocates the operands; it is called here, so that out of memory fails only this case. `sample_s` is the
        shortest sample, None for the device's `SAMPLE_S`. `placements` is that of `Setting`.
        """
        about: dict[str, Any] = {"unit": unit, "work": work, "dtype": dtype, "quantile": quantile}
        about["parameters"] = parameters or {}
        used = clock or self.clock
        setting = Setting(
            clock=used,
            cache=cache,
            rules=rules.within(self.budget_s if budget_s is None else budget_s),
            min_sample_s=SAMPLE_S.of(self.device) if sample_s is None else sample_s,
            warm_up_s=WARM_UP_S.of(self.device),
            cache_bytes=self.cache_bytes,
            cache_source=self.cache_source,
            limit_bytes=self.limit_bytes or 0,
            placements=placements,
            watch=self.watch,
        )
        before = self.read()
        try:
            with torch.no_grad():
                timed = measure(build(), setting)
        except Exception as error:  # noqa: BLE001 - whatever a device raises fails its case, and the others go on
            return self.missing(benchmark, case, reason=reason(error), clock=used.name, **about)
        finally:
            self.backend.release_memory()
        samples = timed.samples
        sample_s = samples.median_s * samples.repeats
        more = flags(timed.cache, sample_s, timed.floor_s, used.name, self.cache_reason)
        more += mode_labels(samples.times_s)
        verdict = judge(samples.windows, before, self.read(), on_cpu=self.backend.is_host, more=more)
        return Measurement(
            benchmark=benchmark,
            case=case,
            threads=self.threads,
            process=self.process,
            **about,
            status=verdict.status,
            reason=verdict.reason,
            samples=samples.times_s,
            repeats=samples.repeats,
            placements=timed.placements,
            clock=samples.clock,
            floor_s=timed.floor_s,
            stop_reason=samples.stop_reason,
            warm_up=samples.warm_up,
            cache=timed.cache,
            windows=samples.windows,
            labels=verdict.labels,
        )


def flags(cache: CacheState, sample_s: float, floor: float, clock: str, cache_reason: str = "") -> list[Label]:
    """Labels for a cache state that is not as declared or rests on an assumption, and for samples that are too short.

    `floor` is the time of an empty call by this clock, in seconds.
    """
    labels = []
    if cache.declared == "cold" and cache.cache_source != "stated":
        what = f"the last-level cache is taken as {cache.cache_bytes} bytes, {cache.cache_source}: {cache_reason}"
        labels.append(Label(severity="note", what=what, share=1.0))
    warnings = []
    if cache.holds is False:
        warnings.append(
            f"declared {cache.declared}, but only {cache.between_bytes} bytes were touched between two uses of an "
            f"operand, and the cache holds {cache.cache_bytes}"
        )
    if too_short(sample_s, floor):
        warnings.append(
            f"a sample of {sample_s * 1e6:.3g} µs is shorter than {ABOVE} times an empty call, which takes "
            f"{floor * 1e6:.3g} µs by this clock ({clock})"
        )
    return labels + [Label(severity="warns", what=what, share=1.0) for what in warnings]


def reason(error: BaseException) -> str:
    """The type and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
