"""Reads workloads from a parquet file of any length, and writes their prices to another, a block of rows at a time.

    workloads   columns batch, query_tokens, context_tokens, whole numbers; any further columns go along
    prices      the same rows and columns, totals of a pass, and a column "time_s DEVICE" for each device

Example::

    with Workloads(Path("in.parquet")) as rows, written(Path("out.parquet")) as write:
        for table, sweep in rows.blocks(): write(with_prices(table, priced, names))

DuckDB: ``select batch, min(columns('time_s .*')) from 'prices*.parquet' group by batch``
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from profiler.record.files import replacing
from profiler.record.parquet import ALONE
from profiler.record.run import RequestError
from roofline.reading import DAMAGED, entry, one_line
from roofline.sweep.polynomial import Sweep

SIZES = {"batch": 1, "query_tokens": 1, "context_tokens": 0}
"""Columns of a workload, and their least values."""
MOST = 2**40
"""Sizes and their products must be below, so that bytes stay within the whole numbers that floats hold exactly."""
BLOCK = 1 << 16
"""Rows that are in memory at once: some 50 MB with the times of 50 devices."""
MEND = "it needs whole numbers batch, query_tokens and context_tokens in columns of these names"


class Workloads:
    """A parquet file of workloads, read block by block."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises RequestError where it is none, or lacks a column."""
        self.path = path
        if entry(path) != "file":
            raise RequestError(f"no file {path} of workloads; {MEND}")
        with self._refusals():
            self._file = pq.ParquetFile(path, **ALONE)
            columns = self._file.schema_arrow
            for name in SIZES:
                at = columns.get_field_index(name)
                if at < 0 or not pa.types.is_integer(columns.field(at).type):
                    raise ValueError(f"there is no column {name} of whole numbers")
            if taken := [name for name in columns.names if name.startswith("time_s ")]:
                raise ValueError(f"column {taken[0]!r} would be overwritten")
        self.rows = int(self._file.metadata.num_rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def blocks(self, first: int = 0, last: int | None = None, sizes_only: bool = False) -> Iterator[tuple[Any, Sweep]]:
        """Rows `first` to `last` in blocks, each as a table and its workloads.

        Raises RequestError for a damaged file, and for a row that is no workload, which it names.
        """
        end, place = self.rows if last is None else last, 0
        batches = self._file.iter_batches(BLOCK, columns=list(SIZES) if sizes_only else None, use_threads=False)
        while True:
            with self._refusals():
                batch = next(batches, None)
            if batch is None or place >= end:
                return
            begin, stop = max(first - place, 0), min(end - place, len(batch))
            if begin < stop:
                table = pa.table(batch.slice(begin, stop - begin))
                yield table, self._sweep(table, place + begin)
            place += len(batch)

    def _sweep(self, table: Any, place: int) -> Sweep:
        """The workloads of a table whose first row is the file's row `place`."""
        arrays = []
        for name, least in SIZES.items():
            column = table.column(name)
            values = column.to_numpy() if not column.null_count else np.full(len(table), np.nan)
            if len(wrong := np.flatnonzero(~((values >= least) & (values < MOST)))):
                at = int(wrong[0])
                value = column[at].as_py()
                raise RequestError(
                    f"{self.path} row {place + at + 1}: {name} is {value}, not a whole number from {least} to {MOST}"
                )
            arrays.append(values.astype(float))
        batch, query, context = arrays
        if len(wrong := np.flatnonzero(batch * (query + context) >= MOST)):
            raise RequestError(f"{self.path} row {place + int(wrong[0]) + 1}: batch × tokens is beyond any memory")
        return Sweep(batch, query, context)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (*DAMAGED, OSError, MemoryError, pa.ArrowException) as error:
            raise RequestError(f"{self.path} holds no workloads ({one_line(error)}); {MEND}") from error


def with_prices(table: Any, totals: Mapping[str, Any], times: Sequence[tuple[str, Any]]) -> Any:
    """The table with a column for each total, and one of seconds for each device; null where a time is not known."""
    for name, values in totals.items():
        table = table.append_column(name, pa.array(values))
    for device, seconds in times:
        table = table.append_column(f"time_s {device}", pa.array(seconds, from_pandas=True))
    return table


@contextmanager
def written(path: Path) -> Iterator[Callable[[Any], None]]:
    """Yield a function that adds a table; the file stands there, whole, once the block has ended well.

    Raises RequestError where the disk refuses; no half of a file is left.
    """
    with replacing(path) as partial:
        writer: Any = None

        def add(table: Any) -> None:
            nonlocal writer
            if writer is None:
                writer = pq.ParquetWriter(partial, table.schema, compression="zstd", compression_level=1,
                                          use_dictionary=list(SIZES))  # fmt: skip
            writer.write_table(table)

        try:
            yield add
        finally:
            if writer is not None:
                writer.close()
