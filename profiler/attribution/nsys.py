"""The timeline in an export of Nsight Systems (``nsys export --type sqlite report.nsys-rep``).

Kernels, copies, memsets and the calls that launched them, and ranges of NVTX as host events; PyTorch emits one for each
operator (``emit_nvtx``), and engines for steps and modules. No table of the system, the environment or the target is
read. Correlation ids count from 1 in each process, so that ours combine them with it.

Tables and columns: Nsight Systems User Guide, "SQLite Schema Reference". Start and end are in ns.

Example: ``read_nsys("report.sqlite").device[0].name``
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from profiler.attribution.timeline import (
    LAUNCHES,
    BrokenEvent,
    DeviceEvent,
    HostEvent,
    Launch,
    LaunchKind,
    Timeline,
    base_name,
    order,
)  # fmt: skip
from roofline.reading import Unreadable, entry, one_line

MAGIC = b"SQLite format 3\x00"
"""First bytes of the file (https://www.sqlite.org/fileformat.html, section 1.3)."""
MOST_BYTES = 4 << 30
MOST_ROWS = 2_000_000
"""Rows of a table that are read: each becomes an object of some 300 bytes."""
MOST_STEPS = 200
"""Instructions of SQLite's machine for a row, of which a plain one takes some 20; a hostile schema asks for more."""
LONGEST = 1 << 20
"""Bytes of a value: the longest names of kernels have some 10 kB."""

_KERNELS, _COPIES, _MEMSETS = (f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET"))
_CALLS, _RANGES, _TEXTS = "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS", "StringIds"
_DEVICE: dict[str, tuple[Literal["kernel", "memcpy", "memset"], str]] = {
    _KERNELS: ("kernel", ""), _COPIES: ("memcpy", "Memcpy"), _MEMSETS: ("memset", "Memset"),
}  # fmt: skip
_COPY_KINDS = {1: "HtoD", 2: "DtoH", 8: "DtoD", 10: "PtoP"}
"""CUpti_ActivityMemcpyKind; as kineto names copies."""
_THREAD_BITS = 24
"""The guide: a globalTid is the globalPid and, in its low 24 bits, the thread's number."""


def is_nsys(path: Path) -> bool:
    """Whether a file is a database of SQLite."""
    if entry(path) != "file":
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_nsys(path: Path) -> Timeline:
    """Read an export. Times become seconds from the first event.

    Raises Unreadable for other databases, for damaged ones and for those beyond `MOST_BYTES` or `MOST_ROWS`.
    """
    if (size := path.stat().st_size) > MOST_BYTES:
        raise Unreadable(f"{path} has {size:,} bytes, and at most {MOST_BYTES:,} are read; export a shorter range")
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            return _timeline(database, path)
    except (sqlite3.Error, OverflowError, MemoryError, TypeError, ValueError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(
            f"{path} is no complete export of Nsight Systems ({one_line(error)}); export it again with "
            "nsys export --type sqlite"
        ) from error


def _timeline(database: sqlite3.Connection, path: Path) -> Timeline:
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
    database.text_factory = lambda raw: raw.decode("utf-8", errors="replace")
    database.execute("PRAGMA trusted_schema = OFF")
    database.execute("PRAGMA cell_size_check = ON")
    tables = {
        name: {column[1] for column in database.execute(f'PRAGMA table_info("{name}")')}
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchmany(1000)
        if name in {*_DEVICE, _CALLS, _RANGES, _TEXTS}
    }
    if _TEXTS not in tables or not tables.keys() & _DEVICE.keys():
        raise Unreadable(
            f"{path} holds no GPU work of Nsight Systems (table {_KERNELS}); record with nsys profile --trace=cuda,nvtx"
        )
    texts = dict(_rows(database, path, _TEXTS, ("id", "value"), tables))
    timed = [table for table in (*_DEVICE, _CALLS, _RANGES) if "start" in tables.get(table, ())]
    zero = min(
        (start for table in timed for (start,) in _rows(database, path, table, ("min(start)",), tables)
         if type(start) is int), default=0,
    )  # fmt: skip
    device: list[DeviceEvent] = []
    broken: list[BrokenEvent] = []
    numbers: dict[tuple[int, int], int] = {}

    def number(process: int | None, correlation: int | None) -> int | None:
        if not correlation:
            return None
        return numbers.setdefault((process or 0, correlation), len(numbers) + 1)

    worked: dict[int | None, LaunchKind] = {}
    for table, (kind, label) in _DEVICE.items():
        named = ("demangledName", "shortName") if kind == "kernel" else ("copyKind",)
        wanted = ("start", "end", "deviceId", "streamId", "globalPid", "correlationId", *named)
        for start, end, on, stream, process, correlation, *names in _rows(database, path, table, wanted, tables):
            full, short = names if kind == "kernel" else (None, None)
            name = _kernel(texts, full, short) if kind == "kernel" else f"{label} {_COPY_KINDS.get(names[0], '')}"
            if not _is_time(start, end) or type(on) is not int or type(stream) is not int:
                broken.append(BrokenEvent(name[:60], "its times or ids are not numbers", True))
                continue
            ours = number(process, correlation)
            worked[ours] = "kernel" if kind == "kernel" else "memory"
            device.append(DeviceEvent(name.strip(), *_span(start, end, zero), stream, on, ours, kind))
    launches: dict[int, Launch] = {}
    for start, end, thread, correlation, name_id in _rows(
        database, path, _CALLS, ("start", "end", "globalTid", "correlationId", "nameId"), tables
    ):
        if not _is_time(start, end) or end < start or type(thread) is not int:
            continue
        ours = number(thread >> _THREAD_BITS << _THREAD_BITS, correlation)
        name = base_name(texts.get(name_id, ""))
        launched = LAUNCHES.get(name) or worked.get(ours)
        if ours is not None and launched is not None and ours not in launches:
            launches[ours] = Launch(name, *_span(start, end, zero), thread, ours, launched)
    host = [
        HostEvent(str(text or texts.get(text_id, "")), *_span(start, end, zero), thread, None)
        for start, end, text, text_id, thread in _rows(
            database, path, _RANGES, ("start", "end", "text", "textId", "globalTid"), tables
        )
        if end is not None and _is_time(start, end) and end >= start and type(thread) is int
    ]
    if not device:
        raise Unreadable(f"{path} holds no kernel; record with nsys profile --trace=cuda,nvtx")
    return Timeline(
        tuple(sorted(host, key=order)),
        tuple(sorted(launches.values(), key=order)),
        tuple(sorted(device, key=order)),
        tuple(broken),
    )


def _rows(
    database: sqlite3.Connection, path: Path, table: str, columns: tuple[str, ...], tables: dict[str, set[str]]
) -> Iterator[tuple[Any, ...]]:
    """Those columns of a table; NULL for those that this version of Nsight Systems does not write."""
    if table not in tables:
        return
    present = tables[table]
    if "start" in columns and not {"start", "end"} <= present:
        raise Unreadable(f"{path}: its table {table} has no start and end; export it again")
    names = ", ".join(column if "(" in column else f'"{column}"' if column in present else "NULL" for column in columns)
    left = MOST_ROWS * MOST_STEPS

    def worked() -> bool:
        nonlocal left
        left -= 1000 * MOST_STEPS
        return left < 0

    database.set_progress_handler(worked, 1000 * MOST_STEPS)
    for count, row in enumerate(database.execute(f'SELECT {names} FROM main."{table}"'), start=1):
        if count > MOST_ROWS:
            raise Unreadable(f"{path}: its table {table} has above {MOST_ROWS:,} rows; export a shorter range")
        yield row


def _is_time(*values: object) -> bool:
    return all(type(value) is int for value in values)


def _span(start: int, end: int, zero: int) -> tuple[float, float]:
    return (start - zero) * 1e-9, (end - zero) * 1e-9


def _kernel(texts: dict[Any, Any], full: Any, short: Any) -> str:
    return str(texts.get(full) or texts.get(short) or "")
