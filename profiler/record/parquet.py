"""A versioned parquet file of a run's folder: rows with a fixed schema, and a header in the file's own metadata.

The header is JSON under the key `roofcal`; it holds the schema's version and all that is not in the rows.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from profiler.record.files import first_problem, replacing
from profiler.record.run import RequestError

T = TypeVar("T")

METADATA_KEY = b"roofcal"
LONGEST_REASON = 200
"""Characters of a library's message that an error repeats."""


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

        Raises RequestError, one line, for a file that is missing, damaged or from a newer roofcal, and where `decode`
        raises ValueError, KeyError or TypeError.
        """
        with self._refusals(folder):
            table = pq.read_table(folder / self.file)
            return decode(table.replace_schema_metadata(None), self._header(folder, table.schema.metadata))

    def header(self, folder: Path, decode: Callable[[dict[str, Any]], T]) -> T:
        """Return what `decode` makes of the header, without reading the rows. Raises RequestError as `read` does."""
        with self._refusals(folder):
            return decode(self._header(folder, pq.read_schema(folder / self.file).metadata))

    def rows(self, folder: Path) -> int:
        """Number of rows, without reading them. Raises RequestError as `read` does."""
        with self._refusals(folder):
            return int(pq.read_metadata(folder / self.file).num_rows)

    def _header(self, folder: Path, metadata: Any) -> dict[str, Any]:
        if METADATA_KEY not in (metadata or {}):
            raise ValueError("roofcal did not write it")
        header = dict(json.loads(metadata[METADATA_KEY]))
        version = int(header["schema_version"])
        if version > self.schema_version:
            raise RequestError(
                f"{folder / self.file} is from a newer roofcal (schema {version}, this one reads "
                f"{self.schema_version}): update roofcal"
            )
        return header

    @contextmanager
    def _refusals(self, folder: Path) -> Iterator[None]:
        path = folder / self.file
        try:
            yield
        except RequestError:
            raise
        except OSError as error:
            raise RequestError(f"cannot read {path}: {error.strerror or _line(error)}; {self.mend}") from error
        except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
            why = first_problem(error) if isinstance(error, ValidationError) else _line(error)
            raise RequestError(f"{path} is no whole {self.what} ({why}); {self.mend}") from error


def _line(error: Exception) -> str:
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(what.split())[:LONGEST_REASON]
