"""What a characterisation measured, on disk: a journal while it goes on, hardware.parquet when it is finished.

    hardware.jsonl     a line a measurement, part or choice of shapes, flushed to the disk before the next begins
    hardware.parquet   a row a measurement with its raw samples; what has no column of its own is JSON in `record`

A line that `kill -9` left unterminated counts as not written. Results are in one place at a time: the journal is
removed after the table is whole.

Example::

    log = HardwareLog(folder.path)
    log.append(measurement)
    log.finish(run)
    read_measurements(folder.path)

DuckDB: ``select benchmark, "case", dtype, process, list_median(samples) from 'results/*/*/hardware.parquet'``
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from profiler.record.errors import RequestError
from profiler.record.files import append_line, first_problem, replacing
from profiler.record.measurement import MEASUREMENT_SCHEMA, Layout, Measurement
from profiler.record.run import Run

JOURNAL, TABLE = "hardware.jsonl", "hardware.parquet"
MEND = "restore it, or measure again: python -m profiler hardware"
VERSION_KEY = b"roofcal"

COLUMNS = pa.schema(
    [
        ("run", pa.string()),
        ("device", pa.string()),
        ("benchmark", pa.string()),
        ("case", pa.string()),
        ("dtype", pa.string()),
        ("threads", pa.int64()),
        ("process", pa.int64()),
        ("unit", pa.string()),
        ("work", pa.float64()),
        ("value", pa.float64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("cache_state", pa.string()),
        ("clock", pa.string()),
        ("stop_reason", pa.string()),
        ("samples", pa.list_(pa.float64())),
        ("record", pa.string()),
    ]
)


class HardwareLog:
    """The journal of one characterisation, and what it holds already."""

    def __init__(self, folder: Path, *, mend: bool = True) -> None:
        """`mend`: drop a torn last line; not while another process may be writing it."""
        self._mend = mend
        self._folder = folder
        self._path = folder / JOURNAL
        self.measurements: list[Measurement] = []
        self.done: set[tuple[int, str]] = set()
        """(process, part) that came to their end."""
        self.shapes: dict[str, tuple[int, int, int]] = {}
        """m, n, k of the fastest product of each dtype."""
        self.layouts: dict[str, Layout] = {}
        """How the second operand of that product lies in memory; not known of a journal from before it was kept."""
        if self._path.exists():
            self._replay()
        elif (folder / TABLE).exists():
            self.measurements = _read_table(folder / TABLE)

    def append(self, one: Measurement) -> None:
        """Keep a measurement; it is on the disk when this returns. Raises RequestError where the disk refuses."""
        self._write({"measurement": one.model_dump(mode="json")})
        self.measurements.append(one)

    def choose(self, dtype: str, shape: tuple[int, int, int], layout: Layout) -> None:
        """Keep the fastest shape of a dtype, and how its second operand lies in memory."""
        self._write({"shape": [dtype, list(shape), layout]})
        self.shapes[dtype], self.layouts[dtype] = shape, layout

    def close_part(self, process: int, part: str) -> None:
        """Mark a part of a process as done, so that a resumed run does not repeat it."""
        self._write({"done": [process, part]})
        self.done.add((process, part))

    def finish(self, run: Run) -> None:
        """Turn the journal into the table."""
        rows = [_row(run, one) for one in self.measurements]
        metadata = {VERSION_KEY: json.dumps({"schema_version": MEASUREMENT_SCHEMA}).encode()}
        table = pa.Table.from_pylist(rows, schema=COLUMNS.with_metadata(metadata))
        with replacing(self._folder / TABLE) as partial:
            pq.write_table(table, partial, compression="zstd")
        self._path.unlink(missing_ok=True)

    def _write(self, content: dict[str, Any]) -> None:
        line = json.dumps(content, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            append_line(self._path, line)
        except OSError as error:
            raise RequestError(f"cannot write {self._path}: {error.strerror}; what came before it is kept") from error

    def _replay(self) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if self._mend and len(whole) != len(content):
            self._path.write_bytes(whole)
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                what = first_problem(error) if isinstance(error, ValidationError) else str(error)
                raise RequestError(
                    f"{self._path} line {number} is damaged ({what}); delete the line to go on without it"
                ) from error

    def _take(self, content: dict[str, Any]) -> None:
        if "measurement" in content:
            self.measurements.append(Measurement.model_validate(content["measurement"]))
        elif "shape" in content:
            dtype, (m, n, k), *layout = content["shape"]
            self.shapes[dtype] = (m, n, k)
            if layout:
                self.layouts[dtype] = layout[0]
        else:
            process, part = content["done"]
            self.done.add((process, part))


def has_measurements(folder: Path) -> bool:
    """Whether a run's folder holds a characterisation, finished or not."""
    return (folder / JOURNAL).exists() or (folder / TABLE).exists()


def count_measurements(folder: Path) -> int:
    """How many there are, without reading their samples; a torn last line of a journal does not count.

    Raises RequestError where the table is not whole.
    """
    journal, table = folder / JOURNAL, folder / TABLE
    if journal.exists():
        lines = journal.read_bytes().split(b"\n")[:-1]
        return sum(line.startswith(b'{"measurement":') for line in lines)
    if not table.exists():
        return 0
    try:
        return int(pq.read_metadata(table).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"cannot read {table}: {error}; {MEND}") from error


def read_measurements(folder: Path) -> list[Measurement]:
    """All measurements of a characterisation, in the order they were taken; none where the folder holds none.

    Changes nothing, so that a characterisation can be looked at while it goes on.

    Raises RequestError: damaged, not ours, or from a newer roofcal.
    """
    return HardwareLog(folder, mend=False).measurements


def _row(run: Run, one: Measurement) -> dict[str, Any]:
    content = one.model_dump(mode="json")
    plain = {name: content.pop(name) for name in COLUMNS.names if name in content}
    return {
        **plain,
        "run": run.name,
        "device": run.environment.device,
        "value": one.value() if one.has_value else None,
        "cache_state": one.cache.declared if one.cache is not None else None,
        "record": json.dumps(content, allow_nan=False),
    }


def _read_table(path: Path) -> list[Measurement]:
    try:
        table = pq.read_table(path)
        version = int(json.loads(table.schema.metadata[VERSION_KEY])["schema_version"])
        if version > MEASUREMENT_SCHEMA:
            raise RequestError(f"{path} is from a newer roofcal (schema {version}): update roofcal")
        return list(_records(table))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error}; {MEND}") from error
    except RequestError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{path} is not a whole table of measurements; {MEND}") from error


def _records(table: Any) -> Iterator[Measurement]:
    fields = set(Measurement.model_fields)
    for row in table.to_pylist():
        plain = {name: value for name, value in row.items() if name in fields}
        yield Measurement.model_validate({**json.loads(row["record"]), **plain})
