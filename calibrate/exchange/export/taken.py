"""How the figures of a run came about: its machine, versions, date, and the clocks seen while measuring.

Example: ``taken_of(RunFolder.open(path)).clocks`` → "SM 1,410–1,980 MHz, median 1,605"
"""

import statistics

from calibrate.exchange.export.source import Taken
from profiler.record.folder import RunFolder


def taken_of(folder: RunFolder) -> Taken:
    """Of a run on disk. Raises RequestError where its measurements are damaged."""
    machine = folder.run.environment
    return Taken(
        device=machine.device,
        versions=machine.versions,
        clocks=_clocks(folder),
        date=folder.run.started,
        run=str(folder.path),
    )


def _clocks(folder: RunFolder) -> str | None:
    """Of a characterisation: what the windows of its measurements read; None where nothing could be read."""
    if folder.content != "hardware":
        return None
    from profiler.record.hardware_table import read_measurements

    windows = [window for one in read_measurements(folder.path) for window in one.windows]
    seen = (
        ("SM", [w.sm_clock_hz for w in windows if w.sm_clock_hz is not None]),
        ("memory", [w.memory_clock_hz for w in windows if w.memory_clock_hz is not None]),
        ("CPU", [w.cpu_clock_hz for w in windows if w.cpu_clock_hz is not None]),
    )
    said = [
        f"{name} {min(hz) / 1e6:,.0f}–{max(hz) / 1e6:,.0f} MHz, median {statistics.median(hz) / 1e6:,.0f}"
        for name, hz in seen
        if hz
    ]
    return "; ".join(said) or None
