"""kernels.parquet: a run's table of measured kernels, a row each, and where each of its rows is from. Torch-free.

    kind dtype op      what was timed: "matmul", "bfloat16", "gemm"
    m n k batch …      its sizes, `DIMS`; null where that kind has no such size
    time_s             seconds
    group              what is held out together when a fit is scored
    kernel distribution framework version    what ran it
    source row         place in `Kernels.sources`, and the row of that file, the first one being 0

The version and the sources of a table are JSON in the file's own metadata. Example::

    write_kernels(folder.path, Kernels(table, (source,)))
    read_kernels(folder.path).counts()                # {("matmul", "bfloat16"): 7203}

DuckDB: ``select kind, dtype, count(*), median(time_s) from 'results/*/*/kernels.parquet' group by all``
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from profiler.record.files import KERNELS, KERNELS_MEND
from profiler.record.measurement import Label
from profiler.record.parquet import Table, schema
from roofline.reading import record_from
from roofline.record import Record

KERNELS_SCHEMA = 1

DIMS: Mapping[str, str] = {
    "m": "rows of a product: tokens",
    "n": "columns of a product: output features",
    "k": "depth of a product: input features",
    "batch": "sequences",
    "heads": "query heads",
    "kv_heads": "key and value heads",
    "query": "new tokens of a sequence",
    "kv": "keys that the last of them can see: context and query",
    "context": "tokens in the cache before them",
    "head_dim": "width of a head",
    "window": "keys that a query sees at most; 0: all",
    "kv_bytes": "bytes of one cached element",
    "tokens": "rows of activations",
    "hidden": "width of the residual stream",
    "inner": "width of the feed-forward network or of an expert, before it is split among ranks",
    "vocab": "rows of the embedding, before it is split among ranks",
    "topk": "experts a token goes to",
    "experts": "experts of all ranks",
    "tp": "ranks that share each matrix",
    "ep": "ranks that share the experts",
    "skew": "exponent of the power law of experts' loads; 0: uniform",
    "weight_bits": "bits of one weight",
    "ranks": "devices of a collective",
    "per_node": "devices of a collective on one node",
    "bytes": "bytes of a collective's message, as nccl-tests counts them",
    "elements": "elements that a pointwise kernel writes",
    "bytes_read": "compulsory reads of a kernel that streams, in bytes",
    "bytes_written": "compulsory writes of a kernel that streams, in bytes",
    "flops": "vector FLOPs of a kernel that streams",
    "kernels": "kernel launches of the operation",
    "gathered": "1 where its reads are rows looked up by index",
    "strided": "1 where its reads are not contiguous",
    "cold": "share of its bytes that no cache holds beforehand",
    "rows": "rows of a matrix as it is stored",
    "reach": "bytes that other kernels have touched since its code last ran",
    "streamed": "bytes that products with one row have read since the line last ran",
    "modules": "modules that the host leaves and enters before it",
}
"""Sizes by name; float columns of the table."""

LATER = ("cold", "rows", "reach", "modules", "streamed")
"""Sizes that tables of an earlier roofcal do not have."""

COLUMNS = schema(
    ("kind dtype op", pa.string()),
    (" ".join(DIMS), pa.float64()),
    ("time_s", pa.float64()),
    ("group kernel distribution framework version", pa.string()),
    ("source row", pa.int64()),
)
TEXTS = tuple(column.name for column in COLUMNS if column.type == pa.string())

TABLE = Table(KERNELS, "table of kernels", KERNELS_SCHEMA, COLUMNS, mend=KERNELS_MEND)


class Source(Record):
    """A file of which rows were read, with counts that account for all of its rows."""

    file: str
    """Path as the user wrote it."""
    sha256: str
    """SHA-256 of its bytes."""
    format: str
    """Tool that wrote it: "aiconfigurator", …"""
    unit: str
    """Unit of its latencies: "ms", "ns"."""
    device: str | None = None
    """Name of the device in the file; None where it has none."""
    model: str | None = None
    """Model whose modules its rows are."""
    versions: dict[str, str] = {}
    """Framework -> version."""
    rows: int = Field(ge=0)
    """Rows in the file."""
    timed: int = Field(ge=0)
    """Times in those rows: several a row where a row times several kernels."""
    kept: int = Field(ge=0)
    """Rows of this table that came from it."""
    cleaned: dict[str, int] = {}
    """Rule -> number of times that it removed."""
    labels: tuple[Label, ...] = ()
    """Conditions in which kernels of this machine were timed: throttling, other work, visits that do not count."""

    @model_validator(mode="after")
    def _closes(self) -> Self:
        if self.kept + sum(self.cleaned.values()) != self.timed:
            raise ValueError(f"{self.timed} times, but {self.kept} kept and {sum(self.cleaned.values())} taken out")
        return self


@dataclass(frozen=True, eq=False)
class Kernels:
    """Measured kernels with their sources."""

    table: Any
    """The pyarrow table, with the columns `COLUMNS`."""
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if self.table.schema.names != COLUMNS.names:
            raise ValueError(f"a table of kernels has the columns {', '.join(COLUMNS.names)}")
        times = self.table["time_s"]
        if times.null_count or not pc.all(pc.and_(pc.is_finite(times), pc.greater(times, 0))).as_py():
            raise ValueError("a table of kernels has at least one row, and each time is positive and finite")
        for name in DIMS:
            sizes = self.table[name]
            if not pc.all(pc.and_(pc.is_finite(sizes), pc.greater_equal(sizes, 0))).as_py() and not (
                sizes.null_count == len(self)
            ):
                raise ValueError(f"a table of kernels has finite sizes from 0, and {name} has others")
        if sum(source.kept for source in self.sources) != len(self):
            raise ValueError(f"{len(self)} rows, but sources of {sum(source.kept for source in self.sources)}")

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def counts(self) -> dict[tuple[str, str], int]:
        """Rows by kind and dtype, the most frequent first."""
        grouped = self.table.group_by(["kind", "dtype"], use_threads=False).aggregate([([], "count_all")]).to_pylist()
        ordered = sorted(grouped, key=lambda row: (-row["count_all"], row["kind"], row["dtype"]))
        return {(row["kind"], row["dtype"]): row["count_all"] for row in ordered}


def has_kernels(folder: Path) -> bool:
    """Return whether a run's folder holds a table of kernels."""
    return (folder / KERNELS).exists()


def write_kernels(folder: Path, kernels: Kernels) -> None:
    """Write the table into a run's folder, whole or not at all. Raises RequestError where the disk refuses."""
    sources = [source.model_dump(mode="json") for source in kernels.sources]
    counts = [[kind, dtype, rows] for (kind, dtype), rows in kernels.counts().items()]
    TABLE.write(folder, kernels.table, sources=sources, counts=counts)


def read_kernels(folder: Path) -> Kernels:
    """Read the table of a run's folder. Raises RequestError if it is missing, damaged, or from a newer roofcal."""
    return TABLE.read(folder, _kernels)


def _kernels(table: Any, header: Mapping[str, Any]) -> Kernels:
    for name in [name for name in LATER if name not in table.column_names]:
        table = table.append_column(name, pa.nulls(len(table), pa.float64()))
    sources = tuple(record_from(Source, source) for source in header["sources"])
    kernels = Kernels(table.select(COLUMNS.names).cast(COLUMNS), sources)
    if kernels.counts() != _counts(header):
        raise ValueError("its rows are not those that its header counts")
    return kernels


def _counts(header: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    counts = {}
    for kind, dtype, rows in header["counts"]:
        if type(rows) is not int or rows < 1 or not isinstance(kind, str) or not isinstance(dtype, str):
            raise ValueError(f"its header counts {rows!r:.20} rows of {kind!r:.20} {dtype!r:.20}")
        counts[kind, dtype] = rows
    return counts


def count_kernels(folder: Path) -> dict[tuple[str, str], int]:
    """Rows by kind and dtype, without reading them. Raises RequestError as `read_kernels`."""
    return TABLE.header(folder, _counts)
