"""Everything that a characterisation measures, as a list of parts: a new microbenchmark is a function and a row here.

A part runs in one process. `replicated` parts run in every fresh process, so that their figures have intervals over
processes; the others run once: the search, whose winner the replicates then time, and curves and fits over many sizes,
whose figures are those of the fit.

Example: ``[part.name for part in parts("cpu") if part.replicated]``
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from profiler.devices.backend import Backend, backend_of
from profiler.microbench import energy, launch, matmul, memory, peak, pointwise, transfer
from profiler.microbench.bench import Bench
from profiler.microbench.clocks import clocks
from profiler.microbench.collective import collectives
from profiler.microbench.host import host_cost
from profiler.microbench.matmul import Shape
from profiler.record.measurement import Measurement

Shapes = Mapping[str, Shape]
"""m, n, k of the fastest product of each dtype, from the search."""
Run = Callable[[Bench, Shapes], Iterator[Measurement]]

BUDGET_S, QUICK_BUDGET_S = 0.4, 0.12
"""Of one case."""
SUSTAINED_S, QUICK_SUSTAINED_S = 10.0, 1.5
"""Of one dtype and process under lasting load."""

Need = Literal["any device", "the host", "graphs", "joules", "memory of its own"]
NEEDS: Mapping[Need, Callable[[Backend], bool]] = {
    "any device": lambda backend: True,
    "the host": lambda backend: backend.is_host,
    "graphs": lambda backend: backend.captures_graphs,
    "joules": lambda backend: backend.counts_energy,
    "memory of its own": lambda backend: not backend.is_host,
}
"""What a part needs of the device."""


@dataclass(frozen=True, slots=True)
class Part:
    """One row."""

    name: str
    what: str
    """Shown in the plan."""
    run: Run
    replicated: bool
    seconds: tuple[float, float]
    """Rough time on a 2-core CPU, or a GPU: full and quick, for the plan; a process's own start comes on top."""
    needs: Need = "any device"
    one_core: bool = False
    """Runs on one thread; on a CPU alone."""


def _plain(function: Callable[[Bench], Iterator[Measurement]]) -> Run:
    return lambda bench, shapes: function(bench)


def _main_dtypes(shapes: Shapes) -> Shapes:
    """Those that models run in; lasting load of the others says nothing new about the power cap."""
    return {dtype: shape for dtype, shape in shapes.items() if dtype in ("float32", "bfloat16", "float8_e4m3fn")}


def _sustained(bench: Bench, shapes: Shapes) -> Iterator[Measurement]:
    return peak.sustained(bench, _main_dtypes(shapes), QUICK_SUSTAINED_S if bench.quick else SUSTAINED_S)


def _energy(bench: Bench, shapes: Shapes) -> Iterator[Measurement]:
    return energy.energy(bench, _main_dtypes(shapes))


SEARCH = "search"
"""The part that chooses shapes: run by name, before all others, since they depend on it."""

PARTS: tuple[Part, ...] = (
    Part("memory", "read, write, copy, scale, add, triad in main memory", _plain(memory.main_memory), True, (5, 3)),
    Part("caches", "read, copy, triad in each cache", _plain(memory.caches), True, (9, 3)),
    Part("matmul", "the fastest product of each dtype, in a burst", peak.burst, True, (2, 1)),
    Part("sustained", "the same under lasting load", _sustained, True, (21, 4)),
    Part("skinny", "products of 1 to 256 rows, cold weights", _plain(matmul.skinny), True, (10, 3)),
    Part("vector", "arithmetic of pointwise and row-wise operations, in cache", _plain(pointwise.vector), True, (4, 2)),
    Part("pointwise", "pointwise work, given and fresh outputs", _plain(pointwise.throughput), True, (13, 6)),
    Part("launch", "cost of a call, of a launch, of a graph", _plain(launch.launch), True, (3, 1)),
    Part("host", "host cost of an operation of a model", _plain(host_cost), True, (1, 1)),
    Part("energy", "joules per FLOP and per byte", _energy, True, (12, 4), "joules"),
    Part("clocks", "the same kernels by events, spans and graph replay", _plain(clocks), False, (8, 6), "graphs"),
    Part("memory, one core", "the same on one core", _plain(memory.main_memory), True, (5, 3), "the host", True),
    Part("matmul, one core", "the same on one core", peak.burst, True, (2, 1), "the host", True),
    Part("curve", "bandwidth over the working set", _plain(memory.curve), False, (20, 4)),
    Part("transfer", "host to device and back", _plain(transfer.transfer), False, (30, 6), "memory of its own"),
    Part("collectives", "collectives over torchrun", _plain(collectives), False, (40, 15)),
)  # fmt: skip


def parts(kind: str) -> tuple[Part, ...]:
    """The rows for a kind of device, in the order they run."""
    backend = backend_of(kind)
    return tuple(part for part in PARTS if NEEDS[part.needs](backend))


def named(name: str) -> Part:
    """The row of that name. Raises KeyError."""
    return next(part for part in PARTS if part.name == name)
