"""Reads other tools' tables, checks their columns, and holds their rows in roofcal's names and SI units.

Example: ``frame = read_table(path); require(frame, ("m", "n", "k"), path, "a table of products")``
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiler.record.kernel_table import DIMS, TEXTS
from profiler.record.run import RequestError

Floats = NDArray[np.float64]

MOST_NAMED = 6
"""Missing columns that an error names."""


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about files that do not say it themselves."""

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
    """Framework -> version, several joined by ", "."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rule -> rows that the importer itself dropped, such as those of an unknown dtype or operation."""


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet file, or CSV under any other ending.

    Raises RequestError, one line, where the file is missing, a folder, damaged, or without rows.
    """
    if not path.exists():
        raise RequestError(f"no file {path}; name a table to import")
    if path.is_dir():
        tables = sorted(file for file in path.rglob("*") if file.suffix in (".parquet", ".csv", ".txt"))
        example = tables[0] if tables else path / "gemm_perf.parquet"
        raise RequestError(f"{path} is a folder; name the files in it, such as {example}")
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, low_memory=False)
    except OSError as error:
        what = error.strerror or "not a whole parquet file"
        raise RequestError(f"cannot read {path}: {what}; fetch it again") from error
    except pd.errors.EmptyDataError as error:
        raise RequestError(f"{path} is empty; nothing to import") from error
    except (ValueError, KeyError) as error:  # pyarrow's errors, bad UTF-8 and pandas' ParserError among them
        raise RequestError(f"{path} is damaged ({' '.join(str(error).split())[:120]}); fetch it again") from error
    frame.columns = frame.columns.map(lambda name: str(name).strip())
    if not frame.columns.is_unique:
        raise RequestError(f"{path} has two columns {frame.columns[frame.columns.duplicated()][0]!r}; keep one")
    if frame.empty:
        raise RequestError(f"{path} has no rows; nothing to import")
    return frame.reset_index(drop=True)


def sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal. Raises RequestError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}; name a table to import") from error


def require(frame: pd.DataFrame, names: Iterable[str], path: Path, what: str) -> None:
    """Raise RequestError, which names the missing columns, unless `frame` has all columns of `what`."""
    if lacking := [name for name in names if name not in frame.columns]:
        columns = "column" if len(lacking) == 1 else "columns"
        more = len(lacking) - MOST_NAMED
        named = ", ".join(lacking[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise RequestError(f"{path}: missing {columns} {named} of {what}; import the table as it was written")


def numbers(column: pd.Series) -> Floats:
    """A column as floats, NaN where it holds no number."""
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
