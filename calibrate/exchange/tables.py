"""Other tools' tables: read whole, their columns required, and put into roofcal's words and SI units, before cleaning.

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
Flags = NDArray[np.bool_]

MOST_NAMED = 6
"""Missing columns that a refusal names."""


@dataclass(frozen=True)
class ImportOptions:
    """What files do not say themselves."""

    device: str | None = None
    """Name of a device file."""
    dtype: str | None = None
    """Torch's name, for formats that name none."""
    model: str | None = None
    """Hub name of the model whose modules are timed."""
    sizes: Mapping[str, float] = field(default_factory=dict)
    """Sizes of that model: hidden, inner, heads, kv_heads, head_dim, vocab."""


@dataclass(frozen=True, eq=False)
class Parsed:
    """Rows of one file in roofcal's words and SI units, whatever their values are."""

    frame: pd.DataFrame
    """Columns of `profiler.record.kernel_table.COLUMNS` without `source`; NaN is judged by the cleaning."""
    unit: str
    """Unit of the file's latencies; `time_s` is converted already."""
    rows: int
    """Rows in the file."""
    device: str | None = None
    """The file's name for it."""
    model: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Framework -> version, several joined by ", "."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rule -> times that the importer itself left out: a dtype or an operation that it does not know."""


def read_table(path: Path) -> pd.DataFrame:
    """A parquet file, or CSV under any other ending.

    Raises RequestError, one line: missing, a folder, damaged, or without rows.
    """
    if not path.exists():
        raise RequestError(f"no file {path}; name a table to import")
    if path.is_dir():
        raise RequestError(f"{path} is a folder; name the files in it, such as {_inside(path)}")
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
    """Raises RequestError that names the columns which `frame` lacks for being a table of `what`."""
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


def _inside(path: Path) -> Path:
    tables = sorted(file for file in path.rglob("*") if file.suffix in (".parquet", ".csv", ".txt"))
    return tables[0] if tables else path / "gemm_perf.parquet"


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with all columns, in their order: what is absent is null."""
    filled = {name: frame.get(name, np.nan) for name in DIMS}
    texts = {name: frame.get(name, "") for name in TEXTS}
    return pd.DataFrame({**texts, **filled, "time_s": frame["time_s"], "row": frame["row"]}, index=frame.index)


def without(frame: pd.DataFrame, bad: pd.Series, rule: str, dropped: dict[str, int]) -> pd.DataFrame:
    """The rows that are not `bad`; how many were is added to `dropped` under the rule."""
    count = int(bad.sum())
    if count:
        dropped[rule] = dropped.get(rule, 0) + count
    return frame[~bad]
