"""What a run is: the machine, what was asked, and what was measured, or why it ended early. Torch-free and versioned.

Raw samples are kept and statistics derived when they are shown.
"""

import importlib.metadata
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field

from profiler.record.measurement import Label, WarmUp, Window
from roofline.record import Record
from roofline.workload import Workload

RUN_SCHEMA = 5
"""4: modes, and kernels of several operations. 5: reference probes of each round, seconds estimated and spent."""
METHOD_VERSION = 2
"""Raised whenever the way a time is taken changes, so that runs are not compared across it."""

SAME_VERSIONS = ("torch", "transformers", "cuda", "driver")
"""Software whose version changes what is measured."""


class RequestError(ValueError):
    """What was asked cannot be done; the message is one line: what, and what to do about it. Exit code 2."""


class InvalidMeasurement(RuntimeError):
    """What was measured cannot be trusted: throttled, a foreign process, a value that is not finite. Exit code 4."""


def roofcal_version() -> str:
    """Version of the installed distribution, or of the checkout where roofcal is run without being installed."""
    try:
        return importlib.metadata.version("roofcal")
    except importlib.metadata.PackageNotFoundError:
        return str(tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"])


class Environment(Record):
    """The machine and its software, as found when the run started."""

    device: str
    """Driver's or vendor's name of the device."""
    device_kind: str
    """Torch's type of the device: "cpu", "cuda" or that of another accelerator."""
    device_uuid: str | None = None
    cores: int | None = Field(default=None, gt=0)
    """Host cores available to this process; this and what follows is None where another tool measured elsewhere."""
    threads: int | None = Field(default=None, gt=0)
    """Threads that torch uses within an operation."""
    memory_bytes: int | None = Field(default=None, gt=0)
    """Of the device."""
    hostname: str
    os: str
    python: str
    versions: dict[str, str]
    """Versions of torch, transformers, CUDA, the driver, roofcal, …"""
    notes: tuple[str, ...] = ()
    """What may spoil a measurement here, as `doctor` finds it."""

    @property
    def is_host(self) -> bool:
        """Whether the device is the processors of the host."""
        return self.device_kind == "cpu"


def differing(then: Environment, now: Environment) -> list[str]:
    """What makes measurements of two environments not comparable, as "torch 2.11.0, here 2.13.0"."""
    pairs = [(field, getattr(then, field), getattr(now, field)) for field in ("device", "device_uuid", "threads")]
    pairs += [(name, then.versions.get(name), now.versions.get(name)) for name in SAME_VERSIONS]
    return [f"{name} {old}, here {new}" for name, old, new in pairs if old != new]


Mode = Literal["eager", "compile", "cuda-graph", "compile-cuda-graph"]
"""How a model's passes run: operation by operation, compiled by torch.compile, replayed from a CUDA graph, or both."""


class Cell(Record):
    """One thing to measure: a model under a workload and its options."""

    model: str
    workload: Workload
    attn: str
    """Attention implementation asked for: "sdpa", "eager", …"""
    experts: str
    """Experts implementation asked for; "default" is the model's own choice."""
    cache: str
    """"dynamic" or "static"."""
    layers: int | None = None
    """Repeated layers that run, where not all do."""
    weights: Literal["random", "pretrained"] = "random"
    mode: Mode = "eager"

    @property
    def is_compiled(self) -> bool:
        return self.mode.startswith("compile")

    @property
    def is_graph(self) -> bool:
        return self.mode.endswith("cuda-graph")

    @property
    def key(self) -> str:
        """File-name-safe and unique within a run."""
        model = "".join(c if c.isalnum() or c in ".-" else "_" for c in self.model.strip("/"))
        options = "-".join(
            [
                self.attn,
                *([self.experts] if self.experts != "default" else []),
                *([self.cache] if self.cache != "dynamic" else []),
                *([f"l{self.layers}"] if self.layers else []),
                *([self.weights] if self.weights != "random" else []),
                *([self.mode] if self.mode != "eager" else []),
            ]
        )
        return f"{model}-{self.workload.key}-{options}"


class OpTimes(Record):
    """Measured times of one operation of the graph, one sample a profiled pass."""

    op: int
    """Index into the graph's operations."""
    device_s: tuple[float, ...]
    """Time on the device: kernel time, overlap shared; on a CPU the operation's span."""
    gap_s: tuple[float, ...]
    """Device idle just before it."""
    kernels: tuple[str, ...] = ()
    """Names of the kernels it became, or of the backend chosen on a CPU."""


class KernelTimes(Record):
    """Measured times of one call of a kernel that a compiler made of several operations, one sample a profiled pass."""

    name: str
    """The compiler's name for it: "triton_poi_fused_add_mul_3", or the operator that it calls."""
    ops: tuple[int, ...] = Field(min_length=1)
    """Indices of the operations of the graph that it came from, in order; one may be part of several kernels."""
    device_s: tuple[float, ...]
    """Time on the device, as that of an operation."""
    gap_s: tuple[float, ...]
    """Device idle just before it."""


class Closure(Record):
    """How much of what the profiler saw is accounted for. Ratios; nothing is left out of a denominator."""

    attributed: float
    """Device time joined to a module ÷ all device time seen."""
    spans_plus_gaps: float
    """(Device time + gaps) ÷ profiled wall."""
    instrumented_ratio: float
    """Profiled wall ÷ unprofiled wall, median of adjacent pairs, after `subtracted_s`."""
    event_cost_s: float = 0.0
    """Seconds of the host for each event that the profiler records, measured beside the passes."""
    subtracted_s: float = 0.0
    """Taken from the times of a profiled pass, its operations and gaps: events × their cost."""
    launches: int = 0
    """Kernel launches seen in the runtime and driver APIs, one pass; 0 on a CPU."""
    kernels: int = 0
    """Kernels seen, one pass; equal to `launches` unless events were dropped."""
    memory_operations: int = 0
    """memcpy and memset, counted apart."""


class CellResult(Record):
    """What measuring one cell gave: a result, or why there is none."""

    cell: Cell
    status: Literal["done", "failed", "invalid"]
    reason: str | None = None
    """Why it failed or is invalid, in one line."""
    graph: str | None = None
    """File of the OpGraph, relative to the run's folder."""
    wall_s: tuple[float, ...] = ()
    """Unprofiled passes."""
    profiled_wall_s: tuple[float, ...] = ()
    """Profiled passes, each taken next to the unprofiled one of the same position."""
    ops: tuple[OpTimes, ...] = ()
    """Empty where the pass was compiled."""
    kernels: tuple[KernelTimes, ...] = ()
    """Kernels of a compiled pass, in the order of the calls."""
    tail_gap_s: tuple[float, ...] = ()
    """Idle between the last operation and the end of a profiled pass."""
    unattributed_s: tuple[float, ...] = ()
    """Device time that belongs to no operation of the graph, one sample a profiled pass."""
    unattributed: tuple[str, ...] = ()
    """Names of the kernels or operators behind `unattributed_s`."""
    closure: Closure | None = None
    ran: dict[str, str] = {}
    """Implementations that really ran: attention backend, experts, cache class."""
    differences: tuple[str, ...] = ()
    """Operation by operation, where the device ran another sequence than the meta trace."""
    cache_state: Literal["cold", "warm", "in situ"] = "in situ"
    clock: str = ""
    """"profiler spans" on a CPU, "kernel timeline" on a GPU."""
    peak_memory_bytes: int | None = None
    warm_up: WarmUp | None = None
    """Passes before the first sample."""
    stop_reason: str = ""
    """Why there are no more samples: "precise" (of the unprofiled wall), "time limit", "sample limit"."""
    windows: tuple[Window, ...] = ()
    """Clocks, power, temperature and other work, a window for each round of passes."""
    labels: tuple[Label, ...] = ()
    """What the windows say of the device."""
    other_work: float | None = None
    """Share of the usable host cores that other processes and the hypervisor took meanwhile; None where unknown."""
    reference: dict[str, tuple[float, ...]] = {}
    """Seconds of each reference probe (`laws.fitted.PROBES`) before and after each round of passes, in order."""

    @property
    def rounds(self) -> int:
        """Rounds of as many passes each in which the samples were taken; where they were not recorded, every pass is
        a round of its own."""
        passes = len(self.wall_s), len(self.profiled_wall_s)
        rounds = len(self.windows)
        if rounds and not any(count % rounds for count in passes):
            return rounds
        return len(self.wall_s)


class Run(Record):
    """run.json: everything about a run but its samples and graphs."""

    schema_version: int = RUN_SCHEMA
    method_version: int = METHOD_VERSION
    name: str
    started: str
    """UTC, ISO 8601."""
    command: tuple[str, ...]
    environment: Environment
    cells: tuple[Cell, ...]
    options: dict[str, str | int | float | bool | None] = {}
    finished: str | None = None
    """UTC; None while the run is going on or was cut off."""
    estimated_s: dict[str, float] = {}
    """Seconds that each part of the run was estimated to take when it began: "device", "calibration", …"""
    spent_s: dict[str, float] = {}
    """Seconds that each part took, all resumptions together."""
