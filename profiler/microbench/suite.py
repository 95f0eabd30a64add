"""The microbenchmarks of a full characterisation (`hardware`).

A new microbenchmark is a function and a row of `PARTS`: the plan, the processes, the figures and the reports follow
from its measurements. `replicated` parts run in every fresh process, so that their figures have intervals over
processes; the others run once: curves and fits over many sizes, whose figures come from the fit.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from profiler.devices.backend import Backend, backend_of
from profiler.microbench import energy, matmul, memory, peak, pointwise, transfer
from profiler.microbench import host_cost as launch
from profiler.microbench.bench import Bench
from profiler.microbench.host_cost import clocks, host_cost
from profiler.microbench.matmul import Shape
from profiler.record.measurement import Measurement

Run = Callable[[Bench], Iterator[Measurement]]
Need = Literal["any device", "the host", "graphs", "joules", "memory of its own"]
NEEDS: Mapping[Need, Callable[[Backend], bool]] = {
    "any device": lambda backend: True,
    "the host": lambda backend: backend.is_host,
    "graphs": lambda backend: backend.captures_graphs,
    "joules": lambda backend: backend.counts_energy,
    "memory of its own": lambda backend: not backend.is_host,
}
"""Features that a part may need of the device, and whether a kind of device has them."""
BUDGET_S, QUICK_BUDGET_S = 0.4, 0.12
"""Seconds of one case."""
SUSTAINED_S, QUICK_SUSTAINED_S = 10.0, 1.5
"""Seconds of sustained load, for one dtype in one process."""


@dataclass(frozen=True, slots=True)
class Part:
    """A microbenchmark of the suite."""

    name: str
    what: str
    """Shown in the plan."""
    run: Run
    seconds: tuple[float, float]
    """Rough time on a 2-core CPU, or a GPU: full and quick, for the plan, without the start of the process."""
    replicated: bool = True
    """Whether it runs in every fresh process, or only once."""
    needs: Need = "any device"
    one_core: bool = False
    """Whether it runs on one thread."""
    needs_search: bool = False
    """Whether it times the shapes that the search finds (`Bench.shapes`)."""


def _burst(bench: Bench) -> Iterator[Measurement]:
    return peak.burst(bench, bench.shapes)


def _sustained(bench: Bench) -> Iterator[Measurement]:
    return peak.sustained(bench, _main_shapes(bench), QUICK_SUSTAINED_S if bench.quick else SUSTAINED_S)


def _energy(bench: Bench) -> Iterator[Measurement]:
    return energy.energy(bench, _main_shapes(bench))


def _collectives(bench: Bench) -> Iterator[Measurement]:
    from profiler.microbench.collectives.launch import collectives

    return collectives(bench)


def _main_shapes(bench: Bench) -> dict[str, Shape]:
    """Shapes of the dtypes that models run in; sustained load of the others says nothing new about the power cap."""
    return {dtype: shape for dtype, shape in bench.shapes.items() if dtype in ("float32", "bfloat16", "float8_e4m3fn")}


SEARCH = "search"
"""Name of the part that finds the fastest product of each dtype; it runs before the parts that need it."""
PARTS: tuple[Part, ...] = (
    Part("memory", "bandwidth of main memory: read, write, copy, scale, add, triad", memory.main_memory, (5, 3)),
    Part("caches", "bandwidth of each cache: read, copy, triad", memory.caches, (9, 3)),
    Part("matmul", "the fastest matrix product of each type, in a burst", _burst, (2, 1), needs_search=True),
    Part("sustained", "the same products under load for seconds", _sustained, (21, 4), needs_search=True),
    Part("skinny", "matrix products of 1 to 256 rows, with weights from main memory", matmul.skinny, (10, 3)),
    Part("vector", "arithmetic of pointwise and row-wise operations, in cache", pointwise.vector, (4, 2)),
    Part("pointwise", "pointwise operations, with given and with fresh outputs", pointwise.throughput, (13, 6)),
    Part("launch", "cost of a call, of a kernel launch, of a CUDA graph", launch.launch, (3, 1)),
    Part("host", "host time of an operation of a model", host_cost, (1, 1)),
    Part("energy", "joules per FLOP and per byte", _energy, (12, 4), needs="joules", needs_search=True),
    Part("clocks", "the same kernels by three clocks", clocks, (8, 6), replicated=False, needs="graphs"),
    Part("memory, one core", "main memory on one core", memory.main_memory, (5, 3), needs="the host", one_core=True),
    Part("matmul, one core", "matrix products on one core", _burst, (2, 1), True, "the host", True, needs_search=True),
    Part("curve", "bandwidth over the size of the working set", memory.curve, (20, 4), replicated=False),
    Part("transfer", "copies from host to device and back", transfer.transfer, (30, 6), False, "memory of its own"),
    Part("collectives", "collectives between GPUs, or processes of a CPU", _collectives, (40, 15), replicated=False),
)


def parts(kind: str) -> tuple[Part, ...]:
    """The parts for a kind of device, in the order they run."""
    backend = backend_of(kind)
    return tuple(part for part in PARTS if NEEDS[part.needs](backend))


def named(name: str) -> Part:
    """The part of that name. Raises KeyError."""
    return next(part for part in PARTS if part.name == name)
