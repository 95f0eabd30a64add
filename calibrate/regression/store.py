"""The rows of all runs under a results folder, kept together so that thousands of runs are read at once.

    results/.rows/rows-v1-<time>-<process>.parquet    rows of some runs, one line a row and run

It is made from the runs' own folders and can be deleted at any time: what is missing is made again. One process adds to
it at a time; readers never wait, and see whole files only. Files of another version are left alone. An object store's
address works in place of the folder where DuckDB reads it, and is never written.

Example: ``refresh(Path("results")); read("results", device="NVIDIA H200").series``

DuckDB: ``select started, middle from 'results/.rows/*.parquet' where name like 'rms_norm%' order by started``
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calibrate.regression.compare import Key, Side
from calibrate.regression.history import Night
from calibrate.regression.statistics import Array
from profiler.record.files import Lock, make_folder, replacing
from profiler.record.folder import RunFolder, run_paths
from profiler.record.parquet import schema
from profiler.record.run import RequestError
from roofline.reading import entry, one_line, parse_json

STORE, STORE_SCHEMA = ".rows", 1
PREFIX = f"rows-v{STORE_SCHEMA}-"
MOST_FILES = 64
"""Files after which they become one: opening a file takes about a millisecond."""
AT_ONCE = 250
"""Runs whose rows are written at once: what is written is not lost where the rest is interrupted."""
COLUMNS = schema(
    ("run device started name key made_of unit", pa.string()),
    ("run_id key_id", pa.int64()),
    ("middle", pa.float64()),
    ("seconds", pa.list_(pa.float64())),
)
MEND = "delete it; the rows are made again from the runs (history does it)"


@dataclass(frozen=True)
class Stored:
    """Rows of one device over its runs, the oldest first."""

    nights: tuple[Night, ...]
    series: Mapping[Key, Array]
    """Log of the middle time over a run's processes, shape (nights,); NaN where a run lacks the row."""


def refresh(results: Path, rows_of: Callable[[RunFolder], Side], say: Callable[[str], None] = lambda line: None) -> int:
    """Add the finished runs that the store lacks; how many. Runs that cannot be read are told and left out.

    Raises RequestError where the store cannot be written or another process adds to it.
    """
    base = results / STORE
    known = _known(base)
    named = {f"{path.parent.name}/{path.name}": path for path in run_paths(results)}
    lacking = [(name, path) for name, path in named.items() if _identity(name) not in known]
    if not lacking:
        return 0
    make_folder(base)
    lock = Lock(base / ".lock")
    try:
        added = 0
        for first in range(0, len(lacking), AT_ONCE):
            sides = []
            for name, path in lacking[first : first + AT_ONCE]:
                try:
                    folder = RunFolder.open(path)
                    if folder.run.finished:
                        sides.append((name, rows_of(folder)))
                except RequestError as error:
                    say(f"{path} is left out: {error}")
            add(base, sides)
            added += sum(any(row.seconds for row in side.rows) for _, side in sides)
    finally:
        lock.release()
    return added


def add(base: Path, sides: Iterable[tuple[str, Side]]) -> None:
    """Write the rows of runs, under their names, as one more file; then join files where there are many."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS.names}
    for run, side in sides:
        made_of = {name: value for name, value in side.conditions.items() if value}
        about = json.dumps({**made_of, **side.versions, "hostname": side.hostname}, sort_keys=True)
        for row in side.rows:
            if not row.seconds:
                continue
            key = json.dumps(row.key)
            line = (run, side.conditions.get("device") or "", side.started, row.name, key, about, row.unit)
            values = (*line, _identity(run), _identity(key), float(np.median(row.seconds)), list(row.seconds))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    if columns["run"]:
        with replacing(_new_file(base)) as partial:
            pq.write_table(pa.table(columns, schema=COLUMNS), partial, compression="zstd")
    files = sorted(base.glob(f"{PREFIX}*.parquet"))
    if len(files) > MOST_FILES:
        with replacing(_new_file(base)) as partial, _opened(f"{base}/{PREFIX}*.parquet") as connection:
            relation = connection.sql("select * from rows order by device, key_id, started")
            relation.write_parquet(str(partial), compression="zstd")
        for file in files:
            file.unlink()


def read(results: Path | str, device: str | None = None) -> Stored:
    """All rows of a device, or of the only one that there is. Raises RequestError where there is none, or several."""
    where = f"{results}/{STORE}/{PREFIX}*.parquet"
    local = Path(str(results)) / STORE
    if "://" not in str(results) and not any(local.glob(f"{PREFIX}*.parquet")):
        raise RequestError(f"no finished runs under {results}; make one with: python -m profiler run")
    devices = [row[0] for row in _query(where, "select distinct device from rows order by 1", ())]
    chosen = [one for one in devices if device is None or device.lower() in one.lower()]
    if len(chosen) != 1:
        listed = ", ".join(devices)
        raise RequestError(f"{len(chosen)} devices match; name one with --device, of: {listed}")
    runs = _query(
        where,
        "select run_id, any_value(run), any_value(started), any_value(made_of) from rows where device = ? "
        "group by run_id order by 3, 2",
        chosen,
    )
    keys = _query(where, "select key_id, any_value(key) from rows where device = ? group by key_id order by 2", chosen)
    with _opened(where) as connection:
        query = "select run_id, key_id, middle from rows where device = ?"
        columns = connection.execute(query, chosen).fetchnumpy()
    run_order = np.array(sorted(range(len(runs)), key=lambda i: runs[i][0]))
    key_order = np.array(sorted(range(len(keys)), key=lambda i: keys[i][0]))
    at_run = run_order[np.searchsorted(np.array([runs[i][0] for i in run_order]), columns["run_id"])]
    at_key = key_order[np.searchsorted(np.array([keys[i][0] for i in key_order]), columns["key_id"])]
    middle = np.ma.filled(columns["middle"], np.nan)
    if not (np.isfinite(middle) & (middle > 0)).all():
        raise RequestError(f"{where} holds a time that is not positive; {MEND}")
    logs = np.full((len(runs), len(keys)), np.nan)  # a run's rows lie together in the file
    logs[at_run, at_key] = np.log(middle)
    try:
        texts = {made_of: _texts(made_of) for made_of in {row[3] for row in runs}}  # most runs have those of the last
        nights = tuple(Night(str(run), str(started), texts[made_of]) for _, run, started, made_of in runs)
        rows = [tuple((str(name), str(value)) for name, value in parse_json(key)) for _, key in keys]
    except (ValueError, TypeError, AttributeError) as error:
        raise RequestError(f"{where} names a run or a kernel by what is no JSON of texts; {MEND}") from error
    return Stored(nights, dict(zip(rows, np.ascontiguousarray(logs.T), strict=True)))


def _texts(text: str) -> dict[str, str]:
    """The names and values of a JSON object."""
    return {str(name): str(value) for name, value in parse_json(text).items()}


def _known(base: Path) -> set[int]:
    if entry(base) != "folder" or not any(base.glob(f"{PREFIX}*.parquet")):
        return set()
    return {row[0] for row in _query(f"{base}/{PREFIX}*.parquet", "select distinct run_id from rows", ())}


def _query(where: str, query: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
    with _opened(where) as connection:
        return list(connection.execute(query, list(values)).fetchall())


@contextmanager
def _opened(where: str) -> Iterator[Any]:
    """A connection with the view `rows`. Raises RequestError, one line, where the files cannot be read."""
    import duckdb  # it takes long to load

    connection = duckdb.connect()
    try:
        connection.read_parquet(where).create_view("rows")
        yield connection
    except duckdb.Error as error:
        raise RequestError(f"cannot read {where}: {one_line(error):.200}; {MEND}") from error
    finally:
        connection.close()


def _new_file(base: Path) -> Path:
    return base / f"{PREFIX}{time.time_ns()}-{os.getpid()}.parquet"


def _identity(text: str) -> int:
    """63 bits of a name's SHA-256: numbers are compared and read far faster than long names."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
