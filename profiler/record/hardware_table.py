"""What a characterisation measured, on disk: a journal while it goes on, hardware.parquet when it is finished.

    hardware.jsonl     a line a measurement, part or choice of shapes, on the disk before the next begins
    hardware.parquet   a row a measurement with its raw samples; what has no column of its own is JSON in `record`

The results are in one place at a time: the journal is removed after the table is whole.

Example::

    log = HardwareLog(folder.path)
    log.append(measurement)
    log.finish(run)
    read_measurements(folder.path)

DuckDB: ``select benchmark, "case", dtype, process, list_median(samples) from 'results/*/*/hardware.parquet'``
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from profiler.record.files import Journal
from profiler.record.folder import HARDWARE, HARDWARE_JOURNAL
from profiler.record.measurement import MEASUREMENT_SCHEMA, Layout, Measurement
from profiler.record.parquet import Table
from profiler.record.run import Run

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

TABLE = Table(
    HARDWARE,
    "table of measurements",
    MEASUREMENT_SCHEMA,
    COLUMNS,
    mend="restore it, or measure again: python -m profiler hardware",
)


class HardwareLog:
    """The journal of one characterisation, and what it holds already."""

    def __init__(self, folder: Path, *, mend: bool = True) -> None:
        """`mend`: drop a torn last line; not while another process may be writing it."""
        self._folder = folder
        self._journal = Journal(folder / HARDWARE_JOURNAL)
        self.measurements: list[Measurement] = []
        self.done: set[tuple[int, str]] = set()
        """(process, part) that came to their end."""
        self.shapes: dict[str, tuple[int, int, int]] = {}
        """m, n, k of the fastest product of each dtype."""
        self.layouts: dict[str, Layout] = {}
        """How the second operand of that product lies in memory; not known of a journal from before it was kept."""
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
        """Keep the fastest shape of a dtype, and how its second operand lies in memory."""
        self._journal.append({"shape": [dtype, list(shape), layout]}, dtype)
        self.shapes[dtype], self.layouts[dtype] = shape, layout

    def close_part(self, process: int, part: str) -> None:
        """Mark a part of a process as done, so that a resumed run does not repeat it."""
        self._journal.append({"done": [process, part]}, part)
        self.done.add((process, part))

    def finish(self, run: Run) -> None:
        """Turn the journal into the table."""
        rows = [_row(run, measurement) for measurement in self.measurements]
        TABLE.write(self._folder, pa.Table.from_pylist(rows, schema=COLUMNS))
        self._journal.path.unlink(missing_ok=True)

    def _take(self, line: bytes) -> None:
        content = json.loads(line)
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


def count_measurements(folder: Path) -> int:
    """How many there are, without reading their samples; a torn last line of a journal does not count.

    Raises RequestError where the table is not whole.
    """
    journal = folder / HARDWARE_JOURNAL
    if journal.exists():
        return sum(line.startswith(b'{"measurement":') for line in journal.read_bytes().split(b"\n")[:-1])
    return TABLE.rows(folder) if (folder / HARDWARE).exists() else 0


def read_measurements(folder: Path) -> list[Measurement]:
    """All measurements of a characterisation, in the order they were taken; none where the folder holds none.

    Changes nothing, so that a characterisation can be looked at while it goes on. Raises RequestError: damaged, not
    roofcal's, or from a newer roofcal.
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
    fields = set(Measurement.model_fields)
    return [
        Measurement.model_validate(
            {**json.loads(row["record"]), **{name: value for name, value in row.items() if name in fields}}
        )
        for row in table.to_pylist()
    ]
