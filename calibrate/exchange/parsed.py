"""What an importer makes of one file, before cleaning: rows in our words and SI units, whatever their values are.

Example: ``Parsed(frame, unit="ms", device="NVIDIA H200", rows=len(frame))``
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from profiler.record.kernel_table import DIMS, TEXTS


@dataclass(frozen=True, eq=False)
class Parsed:
    """Rows of one file."""

    frame: pd.DataFrame
    """Columns of `profiler.record.kernel_table.COLUMNS` without `source`; NaN is judged by the cleaning."""
    unit: str
    """Of the file's latencies; `time_s` is converted already."""
    rows: int
    """In the file."""
    device: str | None = None
    """As the file names it."""
    model: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Framework -> version, several joined by ", "."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rule -> times that the importer itself left out: a dtype or an operation that it does not know."""


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
