"""Energy of work: joules a FLOP for the product of each dtype, joules a byte of main memory, watts at rest.

Each load runs for seconds without a pause, in samples so long that the gaps between them matter little. The driver's
counter of the whole device, idle power included, is read over parts of a second and more, since it moves some ten
times a second. The first part is left out where there are others: clocks and voltage are still settling.

A sample is joules a call, of one part; parameter "busy" is the share of the time in which calls ran.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from profiler.devices.watch import Watch
from profiler.microbench.bench import LOADED, Bench
from profiler.microbench.matmul import Shape, flops, layout_of, product_case, sizes
from profiler.microbench.memory import KERNELS, case, operand_bytes
from profiler.record.measurement import Measurement, Window
from profiler.timing.engine import Case

LOAD_S, QUICK_LOAD_S = 5.0, 1.5
"""Seconds of each load, warm-up included."""
PART_S = 1.0
"""Shortest part: the counter makes ten steps in it, so that one more or less is a tenth."""
SAMPLE_S = 0.05
"""Shortest sample: between two samples the device waits for the host, some 50 µs."""
REST_S = 2.0
"""Pause before power at rest is read: a GPU lowers its clocks again within seconds."""
RESTS, QUICK_RESTS = 3, 1
"""Readings at rest, of `PART_S` each."""
COUNTER = "energy counter"
STILL = "the energy counter did not move"


@dataclass(frozen=True, slots=True)
class Part:
    """A sum over consecutive windows."""

    duration_s: float
    samples: int
    energy_j: float


def energy(
    bench: Bench, shapes: Mapping[str, Shape], sleep: Callable[[float], None] = time.sleep
) -> Iterator[Measurement]:
    """Measure watts at rest ("idle"), J/FLOP of each dtype ("matmul") and J/B of a copy in main memory ("copy").

    Where the watch reads no energy, there is one measurement, which says why.
    """
    if reason := no_energy(bench.watch):
        yield bench.missing("energy", "all", unit="W", reason=reason)
        return
    yield _idle(bench, sleep)
    for dtype, shape in shapes.items():
        layout = layout_of(bench, dtype)
        build = partial(product_case, dtype, shape, bench.device, layout)
        parameters = sizes(shape, layout)
        yield _load(bench, "matmul", build, unit="J/FLOP", work=flops(shape), dtype=dtype, parameters=parameters)
    size = operand_bytes(bench)
    work, copy = KERNELS["copy"].tensors * size, partial(case, "copy", size, bench.device)
    about: dict[str, Any] = {"dtype": "float32", "cache": "cold", "parameters": {"operand_bytes": size}}
    yield _load(bench, "copy", copy, unit="J/B", work=work, **about)


def no_energy(watch: Watch) -> str | None:
    """Return the reason why a watch reads no energy; None where it reads some."""
    watch.begin()
    if watch.end(0).energy_j is not None:
        return None
    about = [text for text in watch.unread if "energy" in text.lower() or "nvml" in text.lower()]
    return "no energy reading: " + ("; ".join(about) or "only NVIDIA's driver counts it, through NVML")


def _idle(bench: Bench, sleep: Callable[[float], None]) -> Measurement:
    """Watts while this process does nothing; its context on the device keeps the memory's clock up."""
    sleep(REST_S)
    windows = []
    for _ in range(QUICK_RESTS if bench.quick else RESTS):
        bench.watch.begin()
        sleep(PART_S)
        windows.append(bench.watch.end(0))
    watts = tuple(window.energy_j / window.duration_s for window in windows if window.energy_j and window.duration_s)
    failed = bench.missing("energy", "idle", unit="W", reason=STILL)
    if not watts:
        return failed
    done = {"status": "done", "reason": None, "samples": watts, "quantile": 0.5, "clock": COUNTER}
    return failed.model_copy(update={**done, "windows": tuple(windows)})


def _load(bench: Bench, case: str, build: Callable[[], Case[Any]], **about: Any) -> Measurement:
    """Time a case under lasting load, and convert its samples to joules."""
    seconds = QUICK_LOAD_S if bench.quick else LOAD_S
    load: dict[str, Any] = {"budget_s": seconds, "quantile": 0.5, "rules": LOADED, "sample_s": SAMPLE_S}
    return in_joules(bench.time("energy", case, build, **load, **about))


def in_joules(timed: Measurement) -> Measurement:
    """The measurement in joules a call, with one sample for each part; unchanged where it has no samples."""
    if not timed.samples:
        return timed
    measured = parts(timed.windows, PART_S)
    joules = tuple(part.energy_j / (part.samples * timed.repeats) for part in measured[1:] or measured)
    if not joules or min(joules) <= 0:
        return timed.model_copy(update={"status": "failed", "reason": STILL, "samples": (), "clock": COUNTER})
    lasted_s = math.fsum(window.duration_s for window in timed.windows)
    busy = math.fsum(timed.samples) * timed.repeats / lasted_s
    parameters = {**timed.parameters, "busy": busy, "part_s": min(part.duration_s for part in measured)}
    return timed.model_copy(update={"samples": joules, "parameters": parameters, "clock": COUNTER, "floor_s": None})


def parts(windows: Sequence[Window], least_s: float) -> list[Part]:
    """Group consecutive windows into parts of `least_s` or more; a shorter rest joins the last part.

    A part without samples, or with a window whose energy is unknown, is left out.
    """
    groups: list[list[Window]] = []
    for window in windows:
        if groups and math.fsum(w.duration_s for w in groups[-1]) < least_s:
            groups[-1].append(window)
        else:
            groups.append([window])
    if len(groups) > 1 and math.fsum(w.duration_s for w in groups[-1]) < least_s:
        groups[-2:] = [groups[-2] + groups[-1]]
    return [
        Part(
            duration_s=math.fsum(w.duration_s for w in group),
            samples=sum(w.samples for w in group),
            energy_j=math.fsum(w.energy_j or 0.0 for w in group),
        )
        for group in groups
        if all(w.energy_j is not None for w in group) and any(w.samples for w in group)
    ]
