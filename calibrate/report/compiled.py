"""The kernels of a compiled pass as a table: which modules each came from, and what it took.

Example: ``HEADER, [cells(kernel, report) for kernel in shown(report)]``
"""

from calibrate.passes.pass_report import FusedKernel, PassReport
from calibrate.report.tables import fold_modules
from calibrate.report.units import number, percent, seconds

HEADER = ("kernel", "from", "×", "time", "share", "roofline")
ALIGN = "llrrrr"
TITLE = "Compiled kernels"
SMALLEST_SHARE = 0.002
"""Share of the wall below which a kernel is left out on a terminal."""
MOST_ON_TERMINAL = 20


def shown(report: PassReport) -> tuple[FusedKernel, ...]:
    """Those that a terminal has room for, the slowest first."""
    return tuple(k for k in report.kernels[:MOST_ON_TERMINAL] if k.measured_s >= SMALLEST_SHARE * report.wall_s)


def cells(kernel: FusedKernel, report: PassReport) -> tuple[str, ...]:
    """One row: as `HEADER`."""
    share = kernel.measured_s / report.wall_s if report.wall_s > 0 else None
    return (
        kernel.name,
        fold_modules(kernel.modules),
        number(kernel.count),
        seconds(kernel.measured_s),
        percent(share),
        seconds(kernel.predicted_s),
    )
