"""The results of a suite of serving kernels on disk: a journal while it runs, suite.parquet when it is finished.

    suite.jsonl     a line for each kernel in each process, on the disk before the next kernel begins
    suite.parquet   the same, a row each; fields without a column are JSON in `record`

A kernel is a family, a provider, a dtype and sizes. It is run in several fresh processes, and each gives one
`KernelResult`: what its check found, and its measured time. Torch-free. Example::

    log = SuiteLog(folder.path)
    log.append(result)
    log.finish(run)
    read_suite_results(folder.path)

DuckDB: ``select family, provider, median(time_s) from 'results/*/*/suite.parquet' group by all``
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
from pydantic import Field, field_validator

from profiler.record.files import SUITE, SUITE_JOURNAL, Journal
from profiler.record.kernel_table import COLUMNS as KERNEL_COLUMNS
from profiler.record.kernel_table import DIMS, Kernels, Source
from profiler.record.measurement import Measurement
from profiler.record.parquet import Table, schema
from profiler.record.run import Run
from roofline.laws.kinds import KINDS
from roofline.reading import parse_json, record_from, record_of
from roofline.record import Record

SUITE_SCHEMA = 1
TORCH, FORMAT = "torch", "suite"
"""The provider whose kernels `predict` prices, and the format of the kernels' source: they were measured here."""
CheckStatus = Literal[
    "passed",
    "wrong shape",
    "wrong dtype",
    "wrong numbers",
    "not finite",
    "non-deterministic",
    "writes its input",
    "runtime error",
    "compile error",
    "timeout",
    "not installed",
    "unsupported",
]
STATUSES: tuple[CheckStatus, ...] = get_args(CheckStatus)
WRONG: frozenset[CheckStatus] = frozenset(STATUSES) - {"passed", "not installed", "unsupported"}
"""Statuses of a kernel that must not be used: it is wrong, or it fails."""
LOWEST_SIZE, HIGHEST_SIZE = 0, 1 << 40
"""Sizes that any kernel may have."""


class KernelId(Record):
    """One kernel: what the command line names, and what rows of several runs are joined by."""

    family: str
    provider: str
    dtype: str
    dims: dict[str, int]
    """Sizes by name, in the family's order."""

    @field_validator("dims")
    @classmethod
    def _possible(cls, dims: dict[str, int]) -> dict[str, int]:
        for name, size in dims.items():
            if not LOWEST_SIZE <= size <= HIGHEST_SIZE:
                raise ValueError(f"size {name} is {size}")
        return dims

    @property
    def shape(self) -> str:
        """The sizes as the option --shape takes them: "m=8,n=4096,k=4096"."""
        return ",".join(f"{name}={size}" for name, size in self.dims.items())

    @property
    def key(self) -> str:
        """Return one line that identifies it."""
        return f"{self.family} {self.provider} {self.dtype} {self.shape}"


class Check(Record):
    """Finding of the comparison with the reference."""

    status: CheckStatus
    reason: str | None = None
    """The reason of any status but "passed", in one line."""
    worst: float | None = None
    """Largest error ÷ the error that the tolerance allows there; 1 is the limit. None where nothing was compared."""
    where: str | None = None
    """The element that is furthest off: "y[3, 17] is 0.25 instead of 0.5"."""
    compared: int = Field(default=0, ge=0)
    """Calls whose outputs were compared."""
    notes: tuple[str, ...] = ()
    """Steps that the check left out, as operands at odd addresses that the kernel refuses."""


class KernelResult(Record):
    """One kernel in one fresh process."""

    schema_version: int = SUITE_SCHEMA
    kernel: KernelId
    process: int = Field(ge=1)
    check: Check
    measurement: Measurement | None = None
    """None where the check failed, or no time was asked for."""
    flops: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    bytes: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Compulsory reads and writes."""
    law: tuple[str, dict[str, float]] | None = None
    """The kind of `roofline.laws.kinds` that describes it, and its sizes as that law has them."""
    models: tuple[str, ...] = ()
    """Models whose step runs it."""
    file: str | None = None
    """The user's file that it is from."""
    versions: dict[str, str] = {}
    """Package -> version of what ran it."""
    tolerance: str | None = None
    """The tolerance of the comparison and the reason for it."""
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Seconds of the whole process."""

    @property
    def time_s(self) -> float | None:
        """Median of the samples in seconds; None where it was not timed."""
        return self.measurement.value(0.5) if self.measurement is not None and self.measurement.has_value else None


COLUMNS = schema(
    ("run device family provider dtype shape", pa.string()),
    ("process", pa.int64()),
    ("status reason", pa.string()),
    ("time_s flops bytes", pa.float64()),
    ("cache_state clock", pa.string()),
    ("samples", pa.list_(pa.float64())),
    ("record", pa.string()),
)
MEND = "restore it, or measure again: python -m profiler kernels"
TABLE = Table(SUITE, "table of a suite", SUITE_SCHEMA, COLUMNS, MEND)


class SuiteLog:
    """The journal of one suite's run, with the results that it holds already."""

    def __init__(self, folder: Path, *, mend: bool = True) -> None:
        """`mend` drops a torn last line; use it only where no other process may be writing the journal."""
        self._folder = folder
        self._journal = Journal(folder / SUITE_JOURNAL)
        self._results: dict[tuple[str, int], KernelResult] = {}
        if self._journal.path.exists():
            if mend:
                self._journal.drop_torn_line()
            self._take(self._journal.read(lambda line: record_of(KernelResult, line)))
        elif (folder / SUITE).exists():
            self._take(TABLE.read(folder, _results))

    @property
    def results(self) -> list[KernelResult]:
        """The latest result of each kernel in each process, in the order in which they were first measured."""
        return list(self._results.values())

    def get(self, kernel: KernelId, process: int) -> KernelResult | None:
        """The result of a kernel in a process; None where there is none yet."""
        return self._results.get((kernel.key, process))

    def append(self, result: KernelResult) -> None:
        """Keep a result; it is on the disk when this returns. Raises RequestError where the disk refuses."""
        self._journal.append(result.model_dump(mode="json"), result.kernel.key)
        self._take([result])

    def finish(self, run: Run) -> None:
        """Replace the journal by the table."""
        TABLE.write(self._folder, pa.Table.from_pylist([_row(run, each) for each in self.results], schema=COLUMNS))
        self._journal.path.unlink(missing_ok=True)

    def _take(self, results: Iterable[KernelResult]) -> None:
        self._results |= {(result.kernel.key, result.process): result for result in results}


def read_suite_results(folder: Path) -> list[KernelResult]:
    """Return all results of a suite's run; none where the folder holds none.

    Nothing is changed, so that a suite can be read while it runs. Raises RequestError for a file that is damaged, not
    roofcal's, or from a newer roofcal.
    """
    return SuiteLog(folder, mend=False).results


def count_suite_results(folder: Path) -> int:
    """Number of results, without reading them; a torn last line of a journal does not count."""
    if (folder / SUITE_JOURNAL).exists():
        return len(Journal(folder / SUITE_JOURNAL).lines())
    return TABLE.rows(folder) if (folder / SUITE).exists() else 0


def law_kernels(results: Iterable[KernelResult], versions: Mapping[str, str]) -> Kernels | None:
    """The kernels that a law describes as the table that `calibrate` fits to; None where there is none.

    Of several providers of a shape it is torch's own time, since that is what `predict` prices, else the fastest.
    """
    kernels: dict[tuple[str, str, str], dict[str, list[KernelResult]]] = {}
    for result in results:
        if result.law is not None and result.time_s is not None and result.law[0] in KINDS:
            key = result.kernel.family, result.kernel.dtype, result.kernel.shape
            kernels.setdefault(key, {}).setdefault(result.kernel.provider, []).append(result)
    rows: list[dict[str, Any]] = []
    for providers in kernels.values():
        times = {name: _center(alike) for name, alike in providers.items()}
        name = TORCH if TORCH in times else min(times, key=times.__getitem__)
        first = providers[name][0]
        assert first.law is not None
        kind, sizes = first.law
        cache = first.measurement.cache if first.measurement is not None else None
        states = {"cold": float(cache is not None and cache.declared == "cold"), "reach": 0.0}
        rows.append(
            {name: size for name, size in {**sizes, **states}.items() if name in DIMS}
            | {
                "kind": kind,
                "dtype": first.kernel.dtype,
                "op": first.kernel.family,
                "time_s": times[name],
                "group": _group(kind, sizes, first.kernel),
                "kernel": name,
                "framework": "torch",
                "version": first.versions.get("torch", versions.get("torch", "")),
                "source": 0,
                "row": len(rows),
            }
        )
    if not rows:
        return None
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    source = Source(
        file=FORMAT,
        sha256=digest,
        format=FORMAT,
        unit="s",
        versions=dict(versions),
        rows=len(rows),
        timed=len(rows),
        kept=len(rows),
    )
    return Kernels(pa.Table.from_pylist(rows, schema=KERNEL_COLUMNS), (source,))


def _center(alike: Sequence[KernelResult]) -> float:
    """Geometric mean over processes, in seconds."""
    return math.exp(sum(math.log(result.time_s or math.nan) for result in alike) / len(alike))


def _group(kind: str, sizes: Mapping[str, float], kernel: KernelId) -> str:
    """Return what is held out together when a fit is scored: the kind's own group, else the shape."""
    try:
        return KINDS[kind].group.format_map({name: round(size) for name, size in sizes.items()}) or kernel.shape
    except KeyError:
        return kernel.shape


def _row(run: Run, result: KernelResult) -> dict[str, Any]:
    kernel, timed = result.kernel, result.measurement
    return {
        "run": run.name,
        "device": run.environment.device,
        "family": kernel.family,
        "provider": kernel.provider,
        "dtype": kernel.dtype,
        "shape": kernel.shape,
        "process": result.process,
        "status": result.check.status,
        "reason": result.check.reason,
        "time_s": result.time_s,
        "flops": result.flops,
        "bytes": result.bytes,
        "cache_state": timed.cache.declared if timed is not None and timed.cache is not None else None,
        "clock": timed.clock if timed is not None else None,
        "samples": list(timed.samples) if timed is not None else None,
        "record": json.dumps(result.model_dump(mode="json"), allow_nan=False),
    }


def _results(table: Any, header: Mapping[str, Any]) -> list[KernelResult]:
    del header
    return [record_from(KernelResult, parse_json(text)) for text in table["record"].to_pylist()]
