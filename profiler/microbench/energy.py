"""What work costs in energy: joules a FLOP for the product of each type, joules a byte of main memory, watts at rest.

Each load runs without a pause for seconds, in samples so long that the gaps between them matter little. The energy is
the difference of the driver's counter over parts of a second and more, since the counter moves some ten times a second;
it is that of the whole device, its power at rest included. The first part is left out where there are others: clocks
and voltage are still settling.

Contract: a sample is joules a call, of one part; parameter "busy" is the share of the time in which calls ran. Where
the watch reads no energy there is one measurement, which says why.

Example: ``[(m.case, m.dtype, m.value()) for m in energy(bench, {"bfloat16": (4096, 4096, 4096)})]``
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profiler.devices.watch import Watch
from profiler.microbench.bench import Bench
from profiler.microbench.matmul import Shape, flops, layout_of, product_case, sizes
from profiler.microbench.memory import KERNELS, case, operand_bytes
from profiler.record.measurement import Measurement, Window
from profiler.timing.engine import Case
from profiler.timing.stopping import Rules

LOAD_S, QUICK_LOAD_S = 5.0, 1.5
"""Seconds of each load, warm-up included."""
PART_S = 1.0
"""Shortest part: ten steps of the counter, so that one more or less is a tenth."""
SAMPLE_S = 0.05
"""Shortest sample: between two of them the device waits for the host, some 50 µs."""
REST_S = 2.0
"""Before power at rest is read: a GPU lowers its clocks again within seconds."""
RESTS, QUICK_RESTS = 3, 1
"""Readings at rest, of `PART_S` each."""
LOADED = Rules(min_samples=3, max_samples=100_000, relative_width=0.0, noise_tolerance=0.0)
"""Only the time ends a load."""
COUNTER = "energy counter"
STILL = "the energy counter did not move"


@dataclass(frozen=True, slots=True)
class Part:
    """Windows in a row."""

    duration_s: float
    samples: int
    energy_j: float


def energy(
    bench: Bench, shapes: Mapping[str, Shape], sleep: Callable[[float], None] = time.sleep
) -> Iterator[Measurement]:
    """Watts at rest ("idle"), J/FLOP of the product of each dtype ("matmul"), J/B of a copy in main memory ("copy")."""
    if reason := no_energy(bench.watch):
        yield bench.missing("energy", "all", unit="W", reason=reason)
        return
    yield idle(bench, sleep)
    for dtype, shape in shapes.items():
        yield in_joules(product(bench, dtype, shape))
    yield in_joules(copies(bench))


def no_energy(watch: Watch) -> str | None:
    """Why a watch reads no energy; None where it does."""
    watch.begin()
    if watch.end(0).energy_j is not None:
        return None
    about = [text for text in watch.unread if "energy" in text.lower() or "nvml" in text.lower()]
    return "no energy reading: " + ("; ".join(about) or "only NVIDIA's driver counts it, through NVML")


def idle(bench: Bench, sleep: Callable[[float], None]) -> Measurement:
    """Watts while this process has nothing to do; its context on the device keeps the memory's clock up."""
    sleep(REST_S)
    windows = []
    for _ in range(QUICK_RESTS if bench.quick else RESTS):
        bench.watch.begin()
        sleep(PART_S)
        windows.append(bench.watch.end(0))
    watts = tuple(window.energy_j / window.duration_s for window in windows if window.energy_j and window.duration_s)
    without = bench.missing("energy", "idle", unit="W", reason=STILL)
    if not watts:
        return without
    done = {"status": "done", "reason": None, "samples": watts, "quantile": 0.5, "clock": COUNTER}
    return without.model_copy(update={**done, "windows": tuple(windows)})


def product(bench: Bench, dtype: str, shape: Shape) -> Measurement:
    """A product under lasting load; its samples are still seconds a call."""
    layout = layout_of(bench, dtype)
    about: dict[str, Any] = {"unit": "J/FLOP", "work": flops(shape), "parameters": sizes(shape, layout)}
    return _load(bench, "matmul", lambda: product_case(dtype, shape, bench.device, layout), dtype=dtype, **about)


def copies(bench: Bench) -> Measurement:
    """Copies in main memory under lasting load, bytes read and written; its samples are still seconds a call."""
    size = operand_bytes(bench)
    about: dict[str, Any] = {
        "unit": "J/B",
        "work": KERNELS["copy"].tensors * size,
        "parameters": {"operand_bytes": size},
    }
    return _load(bench, "copy", lambda: case("copy", size, bench.device), dtype="float32", cache="cold", **about)


def _load(bench: Bench, case: str, build: Callable[[], Case[Any]], **about: Any) -> Measurement:
    seconds = QUICK_LOAD_S if bench.quick else LOAD_S
    return bench.time("energy", case, build, budget_s=seconds, quantile=0.5, rules=LOADED, sample_s=SAMPLE_S, **about)


def in_joules(timed: Measurement, part_s: float = PART_S) -> Measurement:
    """The same measurement in joules a call, one sample for each part of its windows; as it is where it has none."""
    if not timed.samples:
        return timed
    measured = parts(timed.windows, part_s)
    joules = tuple(part.energy_j / (part.samples * timed.repeats) for part in measured[1:] or measured)
    if not joules or min(joules) <= 0:
        return timed.model_copy(update={"status": "failed", "reason": STILL, "samples": (), "clock": COUNTER})
    lasted_s = math.fsum(window.duration_s for window in timed.windows)
    busy = math.fsum(timed.samples) * timed.repeats / lasted_s
    parameters = {**timed.parameters, "busy": busy, "part_s": min(part.duration_s for part in measured)}
    return timed.model_copy(update={"samples": joules, "parameters": parameters, "clock": COUNTER, "floor_s": None})


def parts(windows: Sequence[Window], least_s: float) -> list[Part]:
    """Windows in a row of `least_s` together, what is left at the end with the last ones.

    A part with a window whose energy is not known, or with none of the samples, is left out.
    """
    groups: list[list[Window]] = []
    for window in windows:
        if groups and math.fsum(w.duration_s for w in groups[-1]) < least_s:
            groups[-1].append(window)
        else:
            groups.append([window])
    if len(groups) > 1 and math.fsum(w.duration_s for w in groups[-1]) < least_s:
        rest = groups.pop()
        groups[-1] += rest
    return [
        Part(
            duration_s=math.fsum(w.duration_s for w in group),
            samples=sum(w.samples for w in group),
            energy_j=math.fsum(w.energy_j or 0.0 for w in group),
        )
        for group in groups
        if all(w.energy_j is not None for w in group) and any(w.samples for w in group)
    ]
