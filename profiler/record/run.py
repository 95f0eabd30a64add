"""The records of a run: the machine, the request, and the measurements or the reason why there are none. Torch-free.

Raw samples are kept; statistics are derived when they are shown.
"""

import importlib.metadata
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from profiler.record.measurement import Label, WarmUp, Window
from roofline.record import Record
from roofline.workload import Workload

RUN_SCHEMA = 8
"""4 added modes and kernels of several operations; 5 added reference probes, and seconds estimated and spent; 6 added
rows and checksums of tables; 7 added verdicts; 8 added what governs the clocks, scenarios, changes of a model, and
mixed steps."""
METHOD_VERSION = 4
"""It is raised whenever the way of timing changes, so that runs are not compared across the change. 3: a process keeps
the memory that it frees (`profiler.devices.host.keep_freed_memory`). 4: reference probes run three times in a round,
and the mean of their times counts, of rounds and of visits."""

SAME_VERSIONS = ("torch", "transformers", "cuda", "driver")
"""Software whose version affects measurements."""


class RequestError(ValueError):
    """A request that cannot be done; the message is one line with the problem and its remedy. Exit code 2."""


class InvalidMeasurement(RuntimeError):
    """A measurement that cannot be trusted: throttling, a foreign process, a value that is not finite. Exit code 4."""


def roofcal_version() -> str:
    """Version of the installed distribution, or of the checkout where roofcal is run without being installed."""
    try:
        return importlib.metadata.version("roofcal")
    except importlib.metadata.PackageNotFoundError:
        return str(tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"])


class Environment(Record):
    """The machine and its software when the run started."""

    device: str
    """Name of the device from its driver or vendor."""
    device_kind: str
    """Torch's type of the device: "cpu", "cuda" or that of another accelerator."""
    device_uuid: str | None = None
    cores: int | None = Field(default=None, gt=0)
    """Host cores available to this process; this and the next two are None where another tool measured elsewhere."""
    threads: int | None = Field(default=None, gt=0)
    """Threads that torch uses within an operation."""
    memory_bytes: int | None = Field(default=None, gt=0)
    """Memory of the device."""
    hostname: str
    os: str
    python: str
    clocks: str | None = None
    """Settings that govern the device's clocks: "governor performance, boost off", "power limit 700 W"."""
    versions: dict[str, str]
    """Versions of torch, transformers, CUDA, the driver, roofcal, …; "commit" is that of the repository in which the
    run was started, with "-dirty" where its files were changed."""
    notes: tuple[str, ...] = ()
    """Conditions of the machine that may spoil a measurement, as `doctor` reports them."""

    @property
    def is_host(self) -> bool:
        """Return whether the device is the processors of the host."""
        return self.device_kind == "cpu"


def differing(then: Environment, now: Environment) -> list[str]:
    """The differences that make measurements of two environments incomparable, as "torch 2.11.0, here 2.13.0"."""
    pairs = [(field, getattr(then, field), getattr(now, field)) for field in ("device", "device_uuid", "threads")]
    pairs += [(name, then.versions.get(name), now.versions.get(name)) for name in SAME_VERSIONS]
    return [f"{name} {old}, here {new}" for name, old, new in pairs if old != new]


Mode = Literal["eager", "compile", "cuda-graph", "compile-cuda-graph"]
"""The way a model's passes run: operation by operation, with torch.compile, from a CUDA graph, or both."""


class Cell(Record):
    """A model with a workload and options, to be measured."""

    model: str
    workload: Workload
    attn: str
    """Requested attention implementation: "sdpa", "eager", …"""
    experts: str
    """Requested experts implementation; "default" is the model's own choice."""
    cache: str
    """"dynamic" or "static"."""
    layers: int | None = None
    """Number of repeated layers that run; None for all."""
    weights: Literal["random", "pretrained"] = "random"
    mode: Mode = "eager"
    change: str = ""
    """Change of the model before it runs, as "early_exit:after_layers=6" (`profiler.models.changed`)."""
    beside: Workload | None = None
    """Sequences of another kind in the same step: those that decode beside the chunk of a prompt."""

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
        layers = f"l{self.layers}" if self.layers else ""
        options = (self.experts, "default"), (self.cache, "dynamic"), (layers, ""), (self.weights, "random")
        chosen = [value for value, default in (*options, (self.mode, "eager")) if value != default]
        change = "".join(c if c.isalnum() else "_" for c in self.change)
        beside = f"beside-{self.beside.key}" if self.beside else ""
        return "-".join([model, self.workload.key, self.attn, *chosen, *filter(None, (change, beside))])


class OpTimes(Record):
    """Measured times of one operation of the graph, one sample a profiled pass."""

    op: int
    """Index into the graph's operations."""
    device_s: tuple[float, ...]
    """Time on the device: kernel time, overlap shared; on a CPU the operation's span."""
    gap_s: tuple[float, ...]
    """Device idle just before it."""
    kernels: tuple[str, ...] = ()
    """Names of its kernels, or of the backend that was chosen on a CPU."""


class KernelTimes(Record):
    """Measured times of one call of a kernel that a compiler made of several operations, one sample a profiled pass."""

    name: str
    """The compiler's name for it: "triton_poi_fused_add_mul_3", or the operator that it calls."""
    ops: tuple[int, ...] = Field(min_length=1)
    """Indices of the graph's operations that it computes, in order; an operation may be part of several kernels."""
    device_s: tuple[float, ...]
    """Time on the device, as in `OpTimes`."""
    gap_s: tuple[float, ...]
    """Device idle just before it."""


class Closure(Record):
    """The shares of the profiled time that are accounted for; no denominator leaves anything out."""

    attributed: float
    """Device time joined to a module ÷ all device time in the profile."""
    spans_plus_gaps: float
    """(Device time + gaps) ÷ profiled wall."""
    instrumented_ratio: float
    """Profiled wall ÷ unprofiled wall, median of adjacent pairs, after `subtracted_s`."""
    event_cost_s: float = 0.0
    """Seconds of the host for each event that the profiler records, measured beside the passes."""
    subtracted_s: float = 0.0
    """Events × their cost: seconds subtracted from a profiled pass, its operations and gaps."""
    launches: int = 0
    """Kernel launches of a pass in the runtime and driver APIs; 0 on a CPU."""
    kernels: int = 0
    """Kernels of a pass; equal to `launches` unless events were dropped."""
    memory_operations: int = 0
    """Calls of memcpy and memset, which are not among the kernels."""


class CellResult(Record):
    """The result of measuring a cell, or the reason why there is none."""

    cell: Cell
    status: Literal["done", "failed", "invalid"]
    reason: str | None = None
    """The reason why the cell failed or is invalid, in one line."""
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
    """Implementations that ran: attention backend, experts, cache class."""
    differences: tuple[str, ...] = ()
    """Operations in which the device's sequence differs from that of the meta trace."""
    cache_state: Literal["cold", "warm", "in situ"] = "in situ"
    clock: str = ""
    """"profiler spans" on a CPU, "kernel timeline" on a GPU."""
    peak_memory_bytes: int | None = None
    warm_up: WarmUp | None = None
    """Passes before the first sample."""
    stop_reason: str = ""
    """The reason why there are no more samples: "precise" (of the unprofiled wall), "time limit", "sample limit"."""
    windows: tuple[Window, ...] = ()
    """Clocks, power, temperature and other work, a window for each round of passes."""
    labels: tuple[Label, ...] = ()
    """Conditions of the device that follow from the windows."""
    other_work: float | None = None
    """Share of the usable host cores that other processes and the hypervisor took meanwhile; None where unknown."""
    reference: dict[str, tuple[float, ...]] = {}
    """Seconds of each reference probe (`laws.fitted.PROBES`) in each round of passes, equally many, in order."""
    fresh: dict[str, tuple[float, ...]] = {}
    """Seconds in processes that had not run the model before, one sample each: "weights", "first pass", "second
    pass"."""

    @property
    def rounds(self) -> int:
        """Number of rounds of equally many passes; where rounds were not recorded, each pass counts as one."""
        passes = len(self.wall_s), len(self.profiled_wall_s)
        rounds = len(self.windows)
        if rounds and not any(count % rounds for count in passes):
            return rounds
        return len(self.wall_s)


class ModelFacts(Record):
    """Facts that a scenario needs of a model to choose its passes."""

    layers: int = Field(ge=1)
    """Repeated layers."""
    experts: int = 0
    """Experts of a layer that has the most; 0 for a dense model."""
    keeps_cache: bool = True
    """Whether a pass can continue another one."""
    longest: int | None = None
    """Tokens that the model was made for; None without a limit."""


class PlannedScenario(Record):
    """A scenario of one model in one dtype: its cells, or the reason why it was refused."""

    name: str
    options: dict[str, Any] = {}
    """The options that were written."""
    model: str
    dtype: str
    facts: ModelFacts | None = None
    cells: tuple[str, ...] = ()
    """Keys of its cells, in the order of its steps."""
    refused: str | None = None


class TableSum(Record):
    """Rows and checksum of one table of a finished run, so that no row is lost unnoticed."""

    rows: int = Field(ge=0)
    sha256: str
    """SHA-256 of the file's bytes, in hexadecimal."""


Option = str | int | float | bool | None


@dataclass(frozen=True)
class Allowed:
    """The values that an option of a run may have."""

    kind: type | tuple[type, ...]
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False
    """Whether null is a value."""

    def problem(self, value: Option) -> str | None:
        """The reason why a value cannot be the option's; None where it can."""
        if value is None and self.optional:
            return None
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            return f"{value!r:.60} is no {' or '.join(WORDS[kind] for kind in kinds)}"
        if isinstance(value, int | float) and not self.low <= value <= self.high:
            return f"{value:g} is not from {self.low:g} to {self.high:g}"
        return None


WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
LONGEST_S = 86_400.0
"""Most seconds of passes for a cell: a day."""
MOST_VISITS, MOST_PROCESSES, MOST_THREADS = 1000, 1000, 4096
"""Most visits to a kernel, fresh processes of a characterisation, and threads: each is ten times what anybody uses."""
MOST_SEED = (1 << 63) - 1
MOST_MEMORY_GIB = float(1 << 20)

OPTIONS = {
    "device": Allowed(str, optional=True),
    "seconds": Allowed((int, float), 0, LONGEST_S),
    "quick": Allowed(bool),
    "calibrate": Allowed(bool),
    "visits": Allowed(int, 1, MOST_VISITS),
    "seed": Allowed(int, 0, MOST_SEED),
    "threads": Allowed(int, 1, MOST_THREADS, optional=True),
    "trust_remote_code": Allowed(bool),
    "dtypes": Allowed(str),
    "only": Allowed(str, optional=True),
    "processes": Allowed(int, 1, MOST_PROCESSES),
    "memory_gib": Allowed((int, float), 0, MOST_MEMORY_GIB, optional=True),
}
"""Options of a run that is resumed, and their values; an import has others, which nothing but people read."""


class Run(Record):
    """run.json: everything about a run except its samples and graphs."""

    schema_version: int = RUN_SCHEMA
    method_version: int = METHOD_VERSION
    name: str
    started: str
    """UTC, ISO 8601."""
    command: tuple[str, ...]
    environment: Environment
    cells: tuple[Cell, ...]
    scenarios: tuple[PlannedScenario, ...] = ()
    options: dict[str, Option] = {}
    finished: str | None = None
    """UTC; None while the run goes on or was interrupted."""
    estimated_s: dict[str, float] = {}
    """Estimated seconds of each part of the run when it began: "device", "calibration", …"""
    spent_s: dict[str, float] = {}
    """Seconds that each part took, summed over resumptions."""
    tables: dict[str, TableSum] = {}
    """Rows and checksum of each parquet file, once the run is finished."""
    verdicts: dict[str, int] = {}
    """Number of cells of each verdict ("done", "inconclusive", "invalid", "failed") when the run was last reported."""

    @field_validator("options")
    @classmethod
    def _possible(cls, options: dict[str, Option]) -> dict[str, Option]:
        for name, value in options.items():
            if name in OPTIONS and (problem := OPTIONS[name].problem(value)):
                raise ValueError(f"option {name}: {problem}")
        return options

    def require_options(self, *names: str) -> None:
        """Raise RequestError unless run.json still states each of these options."""
        if lacking := [name for name in names if name not in self.options]:
            raise RequestError(f"run.json states no option {', '.join(lacking)}; restore it, or start a new run")
