"""Times kernels in turn, over several visits: each visit is watched and judged, and repeated where disturbed.

What changes with time (neighbours of a shared host, a device's heat) then falls on all of them alike. A visit while the
device was throttled or shared never counts; one on a busy host counts only where too few others remain. In every visit,
and in every round of a measured pass, run reference probes: a stream through main memory and a matrix product in each
dtype, and small operations issued by the host. The ratio of their times says how much slower the machine is than when
its laws were fitted.

Example: ``take_turns(["a", "b"], measure_one, visits=3, seconds=45, on_cpu=True, watch=watch).counted("a")``
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

import torch
from torch import nn

from profiler.devices.activity import waited_s
from profiler.devices.backend import PerDevice, backend_of, free_bytes
from profiler.devices.conditions import REASONS
from profiler.devices.watch import GpuReading, Watch
from profiler.record.measurement import Label, Window
from profiler.timing.clocks import Clock, HostClock, clock_for
from profiler.timing.engine import Verdict, judge
from roofline.laws.fitted import probe_in

FEWEST_VISITS = 2
"""Visits at least, however long they take: a single one could be another process's fault."""
TRIES = 2
"""Most visits for each one that is asked for, where some of them are disturbed."""
BUSY_SHARE = 0.25
"""Share of all cores that others took, above which a visit on a CPU is disturbed: as for a pass
(`calibrate.passes.verdict.MOST_OTHER_WORK`)."""
R = TypeVar("R")
T = TypeVar("T")


class Watched:
    """Runs what is timed in a window of its own."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.windows: list[Window] = []

    def __call__(self, run: Callable[[], R]) -> R:
        self._watch.begin()
        result = run()
        self.windows.append(self._watch.end(1))
        return result


@dataclass(frozen=True, slots=True)
class Visit(Generic[T]):
    """One turn of a kernel, with its conditions."""

    result: T
    windows: tuple[Window, ...]
    verdict: Verdict
    reference: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each reference probe beside it, the mean of those before and after, as a round of a pass has them."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing else had the device meanwhile, as far as is known."""
        return self.verdict.status == "done"


@dataclass(slots=True)
class Turns(Generic[T]):
    """All visits, by name."""

    visits: dict[str, list[Visit[T]]]
    on_cpu: bool
    failed: dict[str, Exception] = field(default_factory=dict)
    """The error that a visit raised; no further visit was made, and the visits before it count."""
    before: GpuReading | None = None
    """The GPU as the driver described it before the first visit, and after the last one."""
    after: GpuReading | None = None

    def counted(self, name: str) -> list[Visit[T]]:
        """The visits that a result may be made of."""
        valid = [visit for visit in self.visits[name] if visit.verdict.status != "invalid"]
        sound = [visit for visit in valid if visit.is_sound]
        return sound if len(sound) >= FEWEST_VISITS else valid

    def labels(self) -> tuple[Label, ...]:
        """The conditions of the visits that count, and how many do not."""
        everything, counted = self._visits()
        labels = self._judged(counted).labels if counted else ()
        if left_out := [visit for visit in everything if not any(visit is other for other in counted)]:
            what = f"{len(left_out)} of {len(everything)} visits do not count: {self._why(left_out)}"
            labels += (Label(severity="note", what=what, share=len(left_out) / len(everything)),)
        return labels

    def warning(self) -> str | None:
        """Say what disturbed visits, what became of them and what to do, in one line; None where none was disturbed."""
        everything, counted = self._visits()
        disturbed = [visit for visit in everything if not visit.is_sound]
        if not disturbed:
            return None
        kept = sum(any(visit is other for other in counted) for visit in disturbed)
        fate = "all left out" if not kept else f"{kept} of them used, since too few others remain"
        return (
            f"{len(disturbed)} of {len(everything)} visits to the calibration's kernels were disturbed, {fate}: "
            f"{self._why(disturbed)}; for a better calibration {self._remedy(disturbed)} and run again"
        )

    def _visits(self) -> tuple[list[Visit[T]], list[Visit[T]]]:
        """All visits, and those that count."""
        everything = [visit for visits in self.visits.values() for visit in visits]
        return everything, [visit for name in self.visits for visit in self.counted(name)]

    def _judged(self, visits: Iterable[Visit[T]]) -> Verdict:
        windows = [window for visit in visits for window in visit.windows]
        return judge(windows, self.before, self.after, on_cpu=self.on_cpu)

    def _why(self, visits: Sequence[Visit[T]]) -> str:
        labels = [label.what for label in self._judged(visits).labels if label.severity != "note"]
        return "; ".join(labels) or str(visits[0].verdict.reason)

    def _remedy(self, visits: Iterable[Visit[T]]) -> str:
        """Return the remedies for the conditions of disturbed visits."""
        remedies: dict[str, None] = {}
        for visit in visits:
            for window in visit.windows:
                for bit, _, severity, remedy in REASONS:
                    if severity == "invalidates" and (window.event_reasons or 0) & bit:
                        remedies[remedy] = None
                if window.foreign:
                    remedies["stop the other processes on the GPU (nvidia-smi lists them)"] = None
            if visit.verdict.status == "inconclusive":
                remedies["stop other work on this machine"] = None
        return ", ".join(remedies) or "see what `python -m profiler doctor` says"


def take_turns(
    names: Sequence[str],
    take: Callable[[str, Watched], T],
    *,
    visits: int,
    seconds: float = math.inf,
    longest_s: float = math.inf,
    on_cpu: bool,
    watch: Watch,
    read: Callable[[], GpuReading | None] = lambda: None,
    now: Callable[[], float] = time.monotonic,
    progress: Callable[[int], None] = lambda taken: None,
    earlier: Mapping[str, Sequence[Visit[T]]] = MappingProxyType({}),
    keep: Callable[[str, Visit[T]], None] = lambda name, visit: None,
    probe: Callable[[], dict[str, float]] = dict,
) -> Turns[T]:
    """Visit everything in turn until each has `visits` sound visits, with all others in between.

    A visit that was disturbed is repeated at the end of its round, `TRIES` times the visits at most. After `seconds`
    nothing is begun that has had `FEWEST_VISITS`, and after `longest_s` nothing at all: what was visited once then
    counts as it is, and what was not visited has failed with TimeoutError.

    Args: `take` makes one visit, and runs what it times through its `Watched`; `read` gives the GPU as the driver
    describes it, around each visit; `progress` is called with the number of visits before each; `earlier` visits, of a
    process that was ended, count like those made here; `keep` is given each visit as soon as it is judged; `probe`
    times the reference probes, before and after each visit.
    """
    turns: Turns[T] = Turns({name: list(earlier.get(name, ())) for name in names}, on_cpu)
    sound = {name: sum(visit.is_sound for visit in taken) for name, taken in turns.visits.items()}
    began, count = now(), 0

    def is_open(name: str) -> bool:
        tries = len(turns.visits[name])
        most = TRIES * visits + len(earlier.get(name, ()))
        if name in turns.failed or sound[name] >= visits or tries >= most or now() - began > longest_s:
            return False
        return tries < min(visits, FEWEST_VISITS) or now() - began <= seconds

    while waiting := [name for name in names if is_open(name)]:
        name = min(waiting, key=lambda name: (sound[name], len(turns.visits[name])))
        progress(count)
        count += 1
        before = read()
        turns.before = turns.before or before
        watched = Watched(watch)
        try:
            before_s = probe()
            result = take(name, watched)
            after_s = probe()
        except (RuntimeError, MemoryError, ValueError, ArithmeticError) as error:
            turns.failed[name] = error
            continue
        windows, turns.after = tuple(watched.windows), read()
        verdict = judge(windows, before, turns.after, on_cpu=on_cpu, most_other_work=BUSY_SHARE)
        reference = {probe: (seconds + after_s.get(probe, seconds)) / 2 for probe, seconds in before_s.items()}
        turns.visits[name].append(Visit(result, windows, verdict, reference))
        keep(name, turns.visits[name][-1])
        sound[name] += turns.visits[name][-1].is_sound
    for name in names:
        if not turns.visits[name] and name not in turns.failed:
            turns.failed[name] = TimeoutError(f"not reached within {longest_s:.0f} s")
    return turns


STRETCH_S = 0.012
"""Seconds of one probe's calls: several time slices, so that other work on the cores takes its share as it does of a
pass."""
CONTENDED = 0.1
"""Share of a stretch that threads waited for a core, above which other work disturbs it: a barrier of threads of which
one has lost its core is then most of a short stretch. Beside one busy loop on two cores a product took seven times as
long in 12 ms, and 2.7 times in 0.25 s, as did a pass of a second."""
CONTENDED_S = 0.25
"""Seconds of a stretch that is disturbed so: some tens of time slices."""
STREAM_BYTES = PerDevice(host=256 << 20, accelerator=1 << 30)
"""Read by the stream: several times what caches hold for one process. On a CPU which pages it lies on moves a stream of
64 MiB by a factor of two from one allocation to the next; a matrix of 256 MiB, by a twentieth."""
STREAM_PART = 1 / 32
"""Largest share of the free memory for the stream."""
DEPTH = 1024
"""Columns of the matrix on a CPU: a hidden size."""
PRODUCT_SIZE = 4096
"""Rows, columns and depth of the product of a GPU: long enough to run at the device's clock."""
ROWS = 128
"""Rows of the product of a CPU, with `DEPTH` rows of the streamed matrix, other ones each time."""
HOST_OPERATIONS = 64
"""Small operations, each issued by a module of its own, of one call of the host's probe."""


class ReferenceProbes:
    """The probes of one device, with their operands.

    The stream and the product run in each dtype, since what slows one may not slow another: two cores of a shared EPYC
    change for seconds to a state in which float32 products take 1.25 times as long, bfloat16 products 1.0 to 1.1,
    bfloat16 matrix-vector products 1.2 and float32 ones 1.0.
    """

    def __init__(
        self,
        device: torch.device,
        clock: Clock | None = None,
        dtypes: Iterable[str] = ("float32",),
        waited: Callable[[], float] = waited_s,
    ) -> None:
        """`clock`, of the device's work, and `waited`, seconds that this process has waited for cores: tests inject
        them. `dtypes`: floating-point ones."""
        device_clock = clock or clock_for(device)
        backend = backend_of(device)
        stream_bytes = int(min(STREAM_BYTES.of(device), STREAM_PART * free_bytes(device)))
        kept = torch.ones(max(1, stream_bytes // 4 // DEPTH), DEPTH) if backend.is_host else None
        small = torch.zeros(1, device=device)
        steps = nn.Sequential(*(_Add() for _ in range(HOST_OPERATIONS)))

        def host() -> None:
            steps(small)
            backend.synchronize(device)

        self._calls: dict[str, tuple[Callable[[], object], Clock]] = {}
        for name in dict.fromkeys(dtypes):
            dtype = getattr(torch, name)
            on_device = _on_a_gpu(device, stream_bytes, dtype) if kept is None else _on_cores(kept, dtype)
            for probe, call in zip(("memory", "product"), on_device, strict=True):
                self._calls[probe_in(probe, name)] = (call, device_clock)
        self._calls["host"] = (host, clock or HostClock())
        self._repeats: dict[str, int] = {}
        self._waited = waited

    def time(self) -> dict[str, float]:
        """Seconds of one call of each probe now, by name: "memory.float32", "product.float32", "host"."""
        seconds = {}
        with torch.no_grad():
            for name, (call, clock) in self._calls.items():
                if name not in self._repeats:
                    clock.time(call, 1)  # the first call allocates and chooses a kernel
                    self._repeats[name] = max(1, round(STRETCH_S / max(clock.time(call, 1), 1e-9)))
                repeats, before = self._repeats[name], self._waited()
                stretch_s = clock.time(call, repeats)
                if self._waited() - before > CONTENDED * stretch_s:
                    repeats = max(1, round(CONTENDED_S * repeats / stretch_s))
                    stretch_s = clock.time(call, repeats)
                seconds[name] = stretch_s / repeats
        return seconds


def _on_a_gpu(
    device: torch.device, stream_bytes: int, dtype: torch.dtype
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A sum over all of a stream, and a product in the caches."""
    stream = torch.randn(max(1, stream_bytes // dtype.itemsize), device=device, dtype=dtype)  # power follows the data
    size = (PRODUCT_SIZE, PRODUCT_SIZE)
    rows, weights = (torch.randn(size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(rows)
    return stream.sum, lambda: torch.mm(rows, weights.T, out=out)


def _on_cores(kept: torch.Tensor, dtype: torch.dtype) -> tuple[Callable[[], object], Callable[[], object]]:
    """A matrix-vector product with all of a stream, and products with a part of it after the other. All dtypes read the
    same bytes, of which two of 16 bits make a float32 of 1."""
    stream = kept.view(dtype).view(-1, DEPTH)
    vector, rows = torch.ones(1, DEPTH, dtype=dtype), torch.randn(ROWS, DEPTH).to(dtype)
    parts = itertools.cycle(stream.split(min(DEPTH, len(stream)))[: max(1, len(stream) // DEPTH)])
    linear = torch.nn.functional.linear
    return lambda: linear(vector, stream), lambda: linear(rows, next(parts))


class _Add(nn.Module):
    """One small operation behind the interpreter's call of a module."""

    def forward(self, small: torch.Tensor) -> torch.Tensor:
        return small.add_(1.0)
