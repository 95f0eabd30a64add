"""Reads other tools' tables, checks their columns, and holds their rows in roofcal's names and SI units.

The device that a table was measured on is named by the user, in the file, or in the names of its folders.

Example: ``frame, _ = read_table(path); require(frame, ("m", "n", "k"), path, "a table of products")``
"""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from profiler.record.files import requested
from profiler.record.kernel_table import DIMS, TEXTS
from profiler.record.parquet import MOST_BYTES, MOST_COLUMNS, read_parquet
from profiler.record.run import RequestError
from roofline.hardware.load import device_names, find_device, load_device
from roofline.hardware.spec import HardwareSpec
from roofline.reading import DAMAGED, entry, one_line, read_bytes

Floats = NDArray[np.float64]

MOST_CSV_BYTES = 256 << 20
"""Bytes of a CSV file; the largest public one has some 20 MB, and pandas needs ten times a file's bytes."""
MOST_NAMED = 6
"""Missing columns that an error names."""


@dataclass(frozen=True)
class ImportOptions:
    """Facts that the user states about files which do not state them."""

    device: str | None = None
    """Name of a device file."""
    dtype: str | None = None
    """Torch's name of the dtype, for formats that name none."""
    model: str | None = None
    """Hub name of the model whose modules are timed."""
    sizes: Mapping[str, float] = field(default_factory=dict)
    """Sizes of that model: hidden, inner, heads, kv_heads, head_dim, vocab."""


@dataclass(frozen=True, eq=False)
class Parsed:
    """Rows of one file in roofcal's names and SI units, before cleaning."""

    frame: pd.DataFrame
    """Columns of `profiler.record.kernel_table.COLUMNS` without `source`; NaN is left to the cleaning."""
    unit: str
    """Unit of the file's latencies; `time_s` is in seconds."""
    rows: int
    """Rows in the file."""
    device: str | None = None
    """The file's name for the device."""
    model: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Maps a framework to its version; several versions are joined by ", "."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Maps a rule to the number of rows that the importer itself dropped by it, as for an unknown dtype."""


TABLES = (".parquet", ".csv", ".txt", ".csv.gz", ".csv.bz2", ".csv.xz")
"""Endings of the tables in a folder."""
MOST_ENTRIES = 20_000
"""Files and folders that a folder is searched through: AIConfigurator has some 2,000 for all its devices."""


def tables_in(folder: Path) -> list[Path]:
    """The tables in a folder and the folders below it. Raises RequestError where there is none."""
    tables: list[Path] = []
    for seen, path in enumerate(folder.rglob("*")):
        if seen >= MOST_ENTRIES:
            raise RequestError(f"{folder} holds more than {MOST_ENTRIES:,} files; name a folder of one device's tables")
        if path.name.endswith(TABLES) and entry(path) == "file":
            tables.append(path)
    tables.sort()
    if not tables:
        raise RequestError(f"{folder} holds no table (none of {', '.join(TABLES)}); name a folder that does")
    return tables


def read_table(path: Path) -> tuple[pd.DataFrame, str]:
    """Read a parquet file, or CSV under any other ending, packed (.gz, .bz2, .xz) or not.

    Returns: the rows, and the SHA-256 of the file's bytes in hexadecimal.
    Raises RequestError, one line, where the file is missing, a folder, damaged, endless, or without rows.
    """
    there = entry(path)
    if there is None and not os.path.lexists(path):
        raise RequestError(f"no file {path}; name a table to import")
    if there == "folder":
        tables = sorted(file for file in path.rglob("*") if file.suffix in (".parquet", ".csv", ".txt"))
        example = tables[0] if tables else path / "gemm_perf.parquet"
        raise RequestError(f"{path} is a folder; name the files in it, such as {example}")
    with requested():
        content = read_bytes(path, MOST_BYTES, "name a table to import")
    try:
        frame = _parquet(content) if path.suffix == ".parquet" else _csv(_unpacked(content, path.suffix))
    except RequestError:
        raise
    except pd.errors.EmptyDataError as error:
        raise RequestError(f"{path} is empty; nothing to import") from error
    except (*DAMAGED, OSError, EOFError, MemoryError, lzma.LZMAError, pa.ArrowException) as error:
        raise RequestError(f"{path} is damaged ({one_line(error)}); fetch it again") from error
    frame.columns = frame.columns.map(lambda name: str(name).strip())
    if not frame.columns.is_unique:
        raise RequestError(f"{path} has two columns {frame.columns[frame.columns.duplicated()][0]!r:.60}; keep one")
    if frame.empty:
        raise RequestError(f"{path} has no rows; nothing to import")
    return frame.reset_index(drop=True), hashlib.sha256(content).hexdigest()


def _parquet(content: bytes) -> pd.DataFrame:
    table = read_parquet(content)
    for column in table.schema:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_nested(kind) or any(
            is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
        ):
            raise ValueError(f"column {column.name:.60} holds {kind}; a table has numbers and texts alone")
    return table.to_pandas(ignore_metadata=True, use_threads=False)


PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def _unpacked(content: bytes, suffix: str) -> bytes:
    """The bytes of a CSV file. Raises ValueError for an archive, and for more than `MOST_CSV_BYTES`."""
    if suffix in PACKED:
        with PACKED[suffix](io.BytesIO(content)) as file:
            content = file.read(MOST_CSV_BYTES + 1)
    if len(content) > MOST_CSV_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_CSV_BYTES:,} bytes")
    if b"\0" in content or content.startswith((b"PK\x03\x04", b"PAR1")):
        raise ValueError("it is neither text nor a parquet file by its ending")
    return content


def _csv(content: bytes) -> pd.DataFrame:
    """Rows of a CSV file. Raises ValueError where a row would be lost or shifted."""
    lines = content.splitlines()
    columns = lines[0].count(b",") + 1 if lines else 0
    if columns > MOST_COLUMNS:
        raise ValueError(f"{columns:,} columns are more than any table has")
    frame = pd.read_csv(io.BytesIO(content), low_memory=False)
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("its rows have more fields than its first line has names")
    written = sum(1 for line in lines if line.strip()) - 1
    if len(frame) < written:
        raise ValueError(f"{written} lines give {len(frame)} rows: a quotation mark opens and does not close")
    return frame


def require(frame: pd.DataFrame, names: Iterable[str], path: Path, what: str) -> None:
    """Raise RequestError, which names the missing columns, unless `frame` has all columns of `what`."""
    if lacking := [name for name in names if name not in frame.columns]:
        columns = "column" if len(lacking) == 1 else "columns"
        more = len(lacking) - MOST_NAMED
        named = ", ".join(lacking[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise RequestError(f"{path}: missing {columns} {named} of {what}; import the table as it was written")


def numbers(column: pd.Series) -> Floats:
    """A column as floats, NaN where it holds no number; true and false, dates and spans of time are none."""
    if pd.api.types.is_object_dtype(column):
        column = column.where(~column.map(lambda value: isinstance(value, bool)), np.nan)
    elif not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_string_dtype(column)):
        return np.full(len(column), np.nan)
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_complex_dtype(column):
        return np.full(len(column), np.nan)
    return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=float)


def words(column: pd.Series) -> pd.Series:
    """A column as stripped text, "" where it is null."""
    return column.astype("object").where(column.notna(), "").astype(str).str.strip()


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with all columns of a table of kernels, in their order; absent columns are null."""
    filled = {name: frame.get(name, np.nan) for name in DIMS}
    texts = {name: frame.get(name, "") for name in TEXTS}
    return pd.DataFrame({**texts, **filled, "time_s": frame["time_s"], "row": frame["row"]}, index=frame.index)


def without(frame: pd.DataFrame, bad: pd.Series, rule: str, dropped: dict[str, int]) -> pd.DataFrame:
    """The rows that are not `bad`; the number of bad rows is added to `dropped` under the rule's name."""
    count = int(bad.sum())
    if count:
        dropped[rule] = dropped.get(rule, 0) + count
    return frame[~bad]


@dataclass(frozen=True)
class Device:
    """The device of an imported run."""

    name: str
    """The table's name for the device, else the driver's name in the device file."""
    spec: HardwareSpec | None
    """The device file with its datasheet; None where no file describes it."""
    warnings: tuple[str, ...] = ()


def device_of(named: Sequence[tuple[Path, str | None]], option: str | None) -> Device:
    """The device on which files were measured, each given with the name that it has for its device.

    `option` is a device file's name from the user. Raises RequestError, one line, where the files name several devices
    or none, or where `option` contradicts them.
    """
    names = sorted({name for _, name in named if name})
    if len(names) > 1:
        raise RequestError(f"the files are of {' and '.join(names)}; import each device by itself")
    name = names[0] if names else None
    own = find_device(name) if name else None
    if option is not None:
        try:
            spec = load_device(option)
        except ValueError as error:
            raise RequestError(f"--device: {error}") from error
        if own is not None and own.name != spec.name:
            raise RequestError(f"--device {option}: the table is of {name}, which is {own.name}; leave --device out")
        return Device(name or _driver_name(spec), spec)
    if name is None:
        return _by_folder([path for path, _ in named])
    unknown = () if own else (f"no device file describes {name!r}; name one with --device to add its datasheet",)
    return Device(name, own, unknown)


def _driver_name(spec: HardwareSpec) -> str:
    return spec.matches[0] if spec.matches else spec.name


def _by_folder(paths: Sequence[Path]) -> Device:
    """The device that folders are named after ("a100", "H100"); without a datasheet where several devices share it."""
    words = {word: whole for path in paths for word, whole in _folder_words(path).items()}
    if not words:
        raise RequestError(f"{paths[0]} does not say which device it is of; add --device, as nvidia-h100-sxm")
    if len(words) > 1:
        raise RequestError(f"the files' folders name {' and '.join(sorted(words))}; import each device by itself")
    ((word, whole),) = words.items()
    fitting = [name for name in device_names() if word in name.split("-")]
    if len(fitting) == 1:
        spec = load_device(fitting[0])
        return Device(_driver_name(spec), spec)
    return Device(whole, None, (f"{whole!r} may be {', '.join(fitting)}; say which with --device to get a datasheet",))


def _folder_words(path: Path) -> dict[str, str]:
    """The word of the innermost folder that occurs in device files' names: {"h100": "H100"}; empty where none does."""
    known = {word for name in device_names() for word in name.split("-") if re.fullmatch(r"[a-z]+[0-9]+[a-z]*", word)}
    known = {word for word in known if not word.startswith(("sxm", "xeon"))}
    for part in reversed(path.resolve().parts[:-1]):
        for word in re.findall("[A-Za-z0-9]+", part):
            if word.lower() in known:
                return {word.lower(): word}
    return {}
