"""The measurements of a characterisation on disk: a journal while it runs, hardware.parquet when it is finished.

    hardware.jsonl     a line a measurement, part or choice of shapes, on the disk before the next begins
    hardware.parquet   a row a measurement with its raw samples; fields without a column are JSON in `record`

The results are in one place at a time: the journal is removed once the table is written. Example::

    log = HardwareLog(folder.path)
    log.append(measurement)
    log.finish(run)
    read_measurements(folder.path)

DuckDB: ``select benchmark, "case", dtype, process, list_median(samples) from 'results/*/*/hardware.parquet'``
"""

import json
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pydantic import PositiveInt, model_validator

from profiler.record.files import HARDWARE, HARDWARE_JOURNAL, Journal
from profiler.record.measurement import MEASUREMENT_SCHEMA, Layout, Measurement
from profiler.record.parquet import Table, schema
from profiler.record.run import Run
from roofline.reading import parse_json, record_from, record_of
from roofline.record import Record

COLUMNS = schema(
    ("run device benchmark case dtype", pa.string()),
    ("threads process", pa.int64()),
    ("unit", pa.string()),
    ("work value", pa.float64()),
    ("status reason cache_state clock stop_reason", pa.string()),
    ("samples", pa.list_(pa.float64())),
    ("record", pa.string()),
)
MEND = "restore it, or measure again: python -m profiler hardware"
TABLE = Table(HARDWARE, "table of measurements", MEASUREMENT_SCHEMA, COLUMNS, MEND)


Shape = tuple[PositiveInt, PositiveInt, PositiveInt]


class Line(Record):
    """A line of the journal: one of its fields."""

    measurement: Measurement | None = None
    shape: tuple[str, Shape, Layout] | tuple[str, Shape] | None = None
    done: tuple[int, str] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("a line holds a measurement, a shape or a part that is done")
        return self


class HardwareLog:
    """The journal of one characterisation, with the results that it holds already."""

    def __init__(self, folder: Path, *, mend: bool = True) -> None:
        """`mend` drops a torn last line; use it only where no other process may be writing the journal."""
        self._folder = folder
        self._journal = Journal(folder / HARDWARE_JOURNAL)
        self.measurements: list[Measurement] = []
        self.done: set[tuple[int, str]] = set()
        """(process, part) that are complete."""
        self.shapes: dict[str, tuple[int, int, int]] = {}
        """m, n, k of the fastest product of each dtype."""
        self.layouts: dict[str, Layout] = {}
        """Layout of the second operand of that product; older journals do not state it."""
        if self._journal.path.exists():
            if mend:
                self._journal.drop_torn_line()
            self._journal.read(self._take)
        elif (folder / HARDWARE).exists():
            self.measurements = TABLE.read(folder, _measurements)

    def append(self, measurement: Measurement) -> None:
        """Keep a measurement; it is on the disk when this returns. Raises RequestError where the disk refuses."""
        about = f"{measurement.benchmark} {measurement.case}"
        self._journal.append({"measurement": measurement.model_dump(mode="json")}, about)
        self.measurements.append(measurement)

    def choose(self, dtype: str, shape: tuple[int, int, int], layout: Layout) -> None:
        """Keep the fastest shape of a dtype, and how its second operand is stored."""
        self._journal.append({"shape": [dtype, list(shape), layout]}, dtype)
        self.shapes[dtype], self.layouts[dtype] = shape, layout

    def close_part(self, process: int, part: str) -> None:
        """Mark a part of a process as done, so that a resumed run does not repeat it."""
        self._journal.append({"done": [process, part]}, part)
        self.done.add((process, part))

    def finish(self, run: Run) -> None:
        """Replace the journal by the table."""
        rows = [_row(run, measurement) for measurement in self.measurements]
        TABLE.write(self._folder, pa.Table.from_pylist(rows, schema=COLUMNS))
        self._journal.path.unlink(missing_ok=True)

    def _take(self, line: bytes) -> None:
        content = record_of(Line, line)
        if content.measurement is not None:
            self.measurements.append(content.measurement)
        elif content.shape is not None:
            dtype, shape, *layout = content.shape
            self.shapes[dtype] = shape
            if layout:
                self.layouts[dtype] = layout[0]
        elif content.done is not None:
            self.done.add(content.done)


def count_measurements(folder: Path) -> int:
    """Number of measurements, without reading their samples; a torn last line of a journal does not count.

    Raises RequestError where the table is damaged.
    """
    journal = folder / HARDWARE_JOURNAL
    if journal.exists():
        return sum(line.startswith(b'{"measurement":') for line in Journal(journal).lines())
    return TABLE.rows(folder) if (folder / HARDWARE).exists() else 0


def read_measurements(folder: Path) -> list[Measurement]:
    """Return all measurements of a characterisation, in the order they were taken; none where the folder holds none.

    Nothing is changed, so that a characterisation can be read while it runs. Raises RequestError for a file that is
    damaged, not roofcal's, or from a newer roofcal.
    """
    return HardwareLog(folder, mend=False).measurements


def _row(run: Run, measurement: Measurement) -> dict[str, Any]:
    content = measurement.model_dump(mode="json")
    plain = {name: content.pop(name) for name in COLUMNS.names if name in content}
    return {
        **plain,
        "run": run.name,
        "device": run.environment.device,
        "value": measurement.value() if measurement.has_value else None,
        "cache_state": measurement.cache.declared if measurement.cache is not None else None,
        "record": json.dumps(content, allow_nan=False),
    }


def _measurements(table: Any, header: dict[str, Any]) -> list[Measurement]:
    rows = table.select([name for name in table.column_names if name in Measurement.model_fields]).to_pylist()
    records = map(parse_json, table["record"].to_pylist())
    return [record_from(Measurement, {**record, **row}) for record, row in zip(records, rows, strict=True)]
