"""Columns as CSV text, every float in as many digits as it takes to read it back to the bit.

Example: ``csv_text({"m": np.array([1, 2]), "mfu": np.array([0.5, 0.25])})``
"""

import csv
import io
from collections.abc import Mapping

import numpy as np


def csv_text(table: Mapping[str, np.ndarray]) -> str:
    """A header and a line a row; NaN is an empty cell."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*(column.tolist() for column in table.values()), strict=True):
        writer.writerow("" if isinstance(value, float) and value != value else value for value in row)
    return sink.getvalue()
