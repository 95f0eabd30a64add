"""What every microbenchmark is given: a device, a clock, a budget, and one way to time a case and to fail.

A benchmark is a generator function of a `Bench` that yields a `Measurement` for each of its cases; it neither catches
errors nor knows of processes, files or progress. A case that cannot be had (out of memory, a dtype that the device
cannot do, a wrong or non-finite output, a device that is gone) is a measurement with its reason, and the next one is
tried.

Example::

    def copies(bench: Bench) -> Iterator[Measurement]:
        yield bench.time("memory", "copy", lambda: copy_case(bench.device, 1 << 30), unit="B/s", work=2 << 30)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from profiler.devices.backend import Backend, PerDevice, backend_of, free_bytes
from profiler.devices.conditions import device_labels, host_labels, worst
from profiler.devices.nvml import GpuReading
from profiler.devices.watch import Watch
from profiler.microbench.effective_cache import effective_cache
from profiler.record.conditions import Label
from profiler.record.measurement import FASTEST, CacheSource, CacheState, Layout, Measurement, State, Status, Unit
from profiler.timing.clock import Clock, clock_for
from profiler.timing.engine import Case, Setting, measure
from profiler.timing.floor import ABOVE, too_short
from profiler.timing.stopping import Rules

MEMORY_PART = 1 / 8
"""Of the device's free memory, the most that a case may take: others, and torch's own workspaces, need the rest."""
LIMIT_BYTES = PerDevice(host=3 << 29, accelerator=16 << 30)
"""And never more than this."""
SAMPLE_S = PerDevice(host=2e-4, accelerator=1e-3)
"""Shortest sample: on a CPU below a scheduler's slice (milliseconds), so that some samples fall between those of
other work; on a GPU so long that events (10–30 µs of wander) and launches do not matter."""
WARM_UP_S = PerDevice(host=0.0, accelerator=0.03)
"""Least warm-up; a GPU raises its clocks from idle in some ten milliseconds."""
BURST = Rules(min_samples=7, relative_width=0.01)
"""When the samples of a burst end; `max_time_s` is the budget of the case."""


@dataclass(slots=True)
class Bench:
    """Where, how long and for which process to measure."""

    device: torch.device
    budget_s: float = 0.3
    """Seconds of a case, warm-up included; setting up comes on top."""
    process: int = 0
    dtypes: tuple[str, ...] = ("float32",)
    """That matrix and vector work is measured in."""
    quick: bool = False
    limit_bytes: int | None = None
    """Most memory of a case; None: `LIMIT_BYTES` and `MEMORY_PART`."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """The faster layout of the products of a type, where a search has found it."""
    clock: Clock = field(init=False)
    watch: Watch = field(init=False)
    read: Callable[[], GpuReading | None] = field(init=False)
    """The GPU as the driver describes it, around each case: MIG, ECC, memory errors; None without one."""
    cache_bytes: int | None = field(init=False)
    """Of the last-level cache that operands must get past to be cold."""
    cache_source: CacheSource = field(init=False)
    cache_reason: str = field(init=False)
    """What the size of the cache rests on, in one line."""

    def __post_init__(self) -> None:
        self.clock = clock_for(self.device)
        self.watch = self.backend.watch(self.device)
        self.read = partial(self.backend.reading, self.device)
        cache = effective_cache(self.device)
        self.cache_bytes, self.cache_source, self.cache_reason = cache.bytes, cache.source, cache.reason
        if self.limit_bytes is None:
            self.limit_bytes = int(min(LIMIT_BYTES.of(self.device), MEMORY_PART * free_bytes(self.device)))

    @property
    def backend(self) -> Backend:
        """The kind of device."""
        return backend_of(self.device)

    @property
    def threads(self) -> int | None:
        """Of an operation; None on a GPU."""
        return torch.get_num_threads() if self.backend.is_host else None

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
        """Time one case; whatever keeps it from a result is the reason of the measurement. Never raises but to stop.

        `build` allocates; it is called here so that a failure is the case's own. `sample_s`: shortest sample, None for
        the device's `SAMPLE_S`. `placements`: as of `Setting`.
        """
        about: dict[str, Any] = {
            "benchmark": benchmark,
            "case": case,
            "dtype": dtype,
            "threads": self.threads,
            "process": self.process,
            "parameters": parameters or {},
            "unit": unit,
            "work": work,
            "quantile": quantile,
        }
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
            return Measurement(**about, status="failed", reason=reason(error), clock=used.name)
        finally:
            self.backend.release_memory()
        samples = timed.samples
        sample_s = samples.median_s * samples.repeats
        host = host_labels(samples.windows)
        device = [
            *device_labels(samples.windows, before, self.read()),
            *flags(timed.cache, sample_s, timed.floor_s, used.name, self.cache_reason),
        ]
        status: Status = "done"
        if worst(device) == "invalidates":
            status = "invalid"
        elif worst(host) == "invalidates" and self.backend.is_host:
            status = "inconclusive"
        found = [*device, *host]
        return Measurement(
            **about,
            status=status,
            reason=None if status == "done" else "; ".join(x.what for x in found if x.severity == "invalidates"),
            samples=samples.times_s,
            repeats=samples.repeats,
            placements=timed.placements,
            clock=samples.clock,
            floor_s=timed.floor_s,
            stop_reason=samples.stop_reason,
            warm_up=samples.warm_up,
            cache=timed.cache,
            windows=samples.windows,
            labels=tuple(found),
        )


def flags(cache: CacheState, sample_s: float, floor: float, clock: str, cache_reason: str = "") -> list[Label]:
    """What of a result does not hold as declared, or rests on an assumption."""
    found = []
    if cache.declared == "cold" and cache.cache_source != "stated":
        what = f"the cache to get past is taken as {cache.cache_bytes} bytes, {cache.cache_source}: {cache_reason}"
        found.append(Label(severity="note", what=what, share=1.0))
    if cache.holds is False:
        found.append(
            Label(
                severity="warns",
                what=f"declared {cache.declared}, but {cache.between_bytes} bytes were touched between two uses of an "
                f"operand and the cache holds {cache.cache_bytes}",
                share=1.0,
            )
        )
    if too_short(sample_s, floor):
        found.append(
            Label(
                severity="warns",
                what=f"a sample of {sample_s * 1e6:.3g} µs is under {ABOVE} times the floor of the clock ({clock}, "
                f"{floor * 1e6:.3g} µs)",
                share=1.0,
            )
        )
    return found


def reason(error: BaseException) -> str:
    """Why a case has no result, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
