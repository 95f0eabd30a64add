"""A versioned parquet file of a run's folder: rows with a fixed schema, and a header in the file's own metadata.

The header is JSON under the key `roofcal`; it holds the schema's version and all that is not in the rows.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from profiler.record.files import RUN_FILE, read_record, replacing, requested
from profiler.record.run import RUN_SCHEMA, RequestError, Run, TableSum
from roofline.reading import DAMAGED, Unreadable, entry, one_line, parse_json, read_bytes, schema_version

T = TypeVar("T")

METADATA_KEY = b"roofcal"
MOST_BYTES = 512 << 20
"""Bytes of a parquet file that is read."""
MOST_ROWS, MOST_COLUMNS, MOST_CHUNKS = 20_000_000, 10_000, 1_000_000
"""Rows of a table, its columns, and its columns × groups of rows; AIConfigurator's largest table has 600,000 rows."""
MOST_DECODED = 1 << 30
"""Bytes that a table may take in memory."""
ALONE = {"pre_buffer": False}
"""Read by the calling thread alone, as `use_threads=False` decodes. A thread of Arrow's pool that gives back bytes of
Python while the interpreter ends is ended within C++, which aborts the process: a verb that fails right after reading
a table would now and then exit with SIGABRT. A run's tables are read in milliseconds."""


def schema(*groups: tuple[str, Any]) -> pa.Schema:
    """The schema of columns in order; a group is names, separated by spaces, and their type."""
    return pa.schema([(name, kind) for names, kind in groups for name in names.split()])


@dataclass(frozen=True)
class Table:
    """One kind of parquet file."""

    file: str
    """Name within a run's folder."""
    what: str
    """Its name in error messages: "table of kernels"."""
    schema_version: int
    columns: pa.Schema
    mend: str
    """Advice where the file is missing or damaged."""

    def write(self, folder: Path, rows: Any, **header: Any) -> None:
        """Write a pyarrow table of `columns` into a folder, whole or not at all.

        Raises RequestError where the disk refuses, ValueError where a number of the header is not finite.
        """
        content = json.dumps({"schema_version": self.schema_version, **header}, allow_nan=False).encode()
        with replacing(folder / self.file) as partial:
            table = rows.cast(self.columns).replace_schema_metadata({METADATA_KEY: content})
            pq.write_table(table, partial, compression="zstd")

    def read(self, folder: Path, decode: Callable[[Any, dict[str, Any]], T]) -> T:
        """Return what `decode` makes of the rows and the header.

        Raises RequestError, one line, for a file that is missing, damaged, from a newer roofcal, or not the one that
        run.json counts and sums up, and where `decode` raises one of `DAMAGED`.
        """
        with self._refusals(folder):
            content = read_bytes(folder / self.file, MOST_BYTES, self.mend)
            kept = sums(folder).get(self.file)
            if kept is not None and kept.sha256 != hashlib.sha256(content).hexdigest():
                raise ValueError("its checksum in run.json is another one: it was changed or cut")
            table = read_parquet(content)
            self._require_columns(table.schema)
            return decode(table.replace_schema_metadata(None), self._header(folder, table.schema.metadata))

    def header(self, folder: Path, decode: Callable[[dict[str, Any]], T]) -> T:
        """Return what `decode` makes of the header, without reading the rows. Raises RequestError as `read` does."""
        with self._refusals(folder), self._opened(folder) as file:
            return decode(self._header(folder, file.schema_arrow.metadata))

    def rows(self, folder: Path) -> int:
        """Number of rows, without reading them. Raises RequestError as `read` does."""
        with self._refusals(folder), self._opened(folder) as file:
            return int(file.metadata.num_rows)

    @contextmanager
    def _opened(self, folder: Path) -> Iterator[Any]:
        """The file with its rows unread, as many as run.json counts."""
        content = read_bytes(folder / self.file, MOST_BYTES, self.mend)
        with pq.ParquetFile(pa.BufferReader(content), **ALONE) as file:
            kept, rows = sums(folder).get(self.file), file.metadata.num_rows
            if kept is not None and kept.rows != rows:
                raise ValueError(f"it has {rows} rows, and run.json counts {kept.rows}")
            yield file

    def _require_columns(self, columns: Any) -> None:
        """Raise ValueError for a column of another type than roofcal writes; `decode` misses those that lack."""
        for column in columns:
            place = self.columns.get_field_index(column.name)
            if place >= 0 and column.type != self.columns.field(place).type:
                raise ValueError(f"column {column.name} holds {column.type}, not {self.columns.field(place).type}")

    def _header(self, folder: Path, metadata: Any) -> dict[str, Any]:
        if METADATA_KEY not in (metadata or {}):
            raise ValueError("roofcal did not write it")
        header = parse_json(metadata[METADATA_KEY])
        schema_version(header, folder / self.file, self.schema_version, self.what, self.mend)
        return dict(header)

    @contextmanager
    def _refusals(self, folder: Path) -> Iterator[None]:
        path = folder / self.file
        try:
            yield
        except RequestError:
            raise
        except Unreadable as error:
            raise RequestError(str(error)) from error
        except OSError as error:  # Arrow's own
            raise RequestError(f"cannot read {path}: {error.strerror or one_line(error)}; {self.mend}") from error
        except (*DAMAGED, MemoryError, pa.ArrowException) as error:
            raise RequestError(f"{path} is no whole {self.what} ({one_line(error)}); {self.mend}") from error


def sums(folder: Path) -> dict[str, TableSum]:
    """Rows and checksums of a finished run's tables; empty where it has no run.json, or an earlier one."""
    path = folder / RUN_FILE
    return read_record(path, Run, RUN_SCHEMA).tables if entry(path) is not None else {}


def sum_of(path: Path) -> TableSum:
    """Rows and checksum of a table that has just been written. Raises RequestError where it cannot be read."""
    with requested():
        content = read_bytes(path, MOST_BYTES)
    with pq.ParquetFile(pa.BufferReader(content), **ALONE) as file:
        return TableSum(rows=file.metadata.num_rows, sha256=hashlib.sha256(content).hexdigest())


def read_parquet(content: bytes) -> Any:
    """The table in the bytes of a parquet file.

    Raises ValueError or Arrow's errors for a file that is none, and for one that states more rows, or decodes to more
    bytes, than memory should be given for.
    """
    with pq.ParquetFile(pa.BufferReader(content), **ALONE) as file:
        about = file.metadata
        if not 0 <= about.num_rows <= MOST_ROWS or about.num_columns > MOST_COLUMNS:
            raise ValueError(f"{about.num_rows:,} rows of {about.num_columns:,} columns are more than any table has")
        if about.num_row_groups * about.num_columns > MOST_CHUNKS:
            raise ValueError(f"its rows lie in {about.num_row_groups:,} groups, more than any table has")
        chunks = [
            about.row_group(group).column(column)
            for group in range(about.num_row_groups)
            for column in range(about.num_columns)
        ]
        texts = sorted({chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"})
        # A page's values are in its bytes, but one text of a dictionary may stand in every row.
        least = sum(max(chunk.total_uncompressed_size, 8 * chunk.num_values) for chunk in chunks)
        most = sum(
            chunk.num_values * chunk.total_uncompressed_size for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"
        )
        if least > MOST_DECODED:
            raise ValueError(f"it unpacks to {least:,} bytes, more than any table has")
        if most <= MOST_DECODED:
            return file.read(use_threads=False)
    folded = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts, **ALONE).read(use_threads=False)
    decoded = sum(_text_bytes(chunk) for column in folded.columns for chunk in column.chunks)
    if decoded > MOST_DECODED:
        raise ValueError(f"its texts unpack to {decoded:,} bytes, more than any table has")
    return pq.ParquetFile(pa.BufferReader(content), **ALONE).read(use_threads=False)


def _text_bytes(array: Any) -> int:
    """Bytes of the texts of a column that was read with its dictionaries, those within lists among them."""
    if pa.types.is_dictionary(array.type):
        return int(pc.sum(pc.take(pc.binary_length(array.dictionary), array.indices)).as_py() or 0)
    if pa.types.is_struct(array.type):
        return sum(map(_text_bytes, array.flatten()))
    return _text_bytes(array.values) if pa.types.is_nested(array.type) and hasattr(array, "values") else 0
