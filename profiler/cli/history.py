"""`history`: when kernels of a device changed over all its runs, and by what. Wiring only; no torch, no device."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from profiler.cli import output
from profiler.cli.compare import Tolerance
from profiler.cli.options import AsJson, Results
from profiler.record.folder import RunFolder
from profiler.record.run import RequestError

if TYPE_CHECKING:
    from calibrate.regression.compare import Side

EXAMPLE = """
Examples:\n
python -m profiler history --results nights\n
python -m profiler history attention --device h200 --tolerance 0.02 --json
"""


def history(
    kernel: Annotated[str, Argument(metavar="KERNEL", help="Only rows whose name has this text.")] = "",
    device: Annotated[
        str | None, Option(help="Part of the device's name, if there are runs of several devices.")
    ] = None,
    tolerance: Tolerance = 0.01,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """List when kernels changed, over all runs of a device.

    A change that all rows share is attributed to the machine. To confirm another one, run `gate` between the versions
    before and after it.
    """
    import numpy as np

    from calibrate.regression.history import LEAST_NIGHTS, changes, common
    from calibrate.regression.store import read, refresh
    from calibrate.report.history import history_document, history_json

    with output.stdout_to_stderr_if(as_json):
        added = refresh(results, _rows, lambda line: output.say(line, sys.stderr))
        if added > 1:
            output.remark(f"{added} runs are new")
        stored = read(results, device)
        wanted = {key: row for key, row in stored.series.items() if kernel in " ".join(value for _, value in key)}
        if not wanted:
            raise RequestError(f"no row has {kernel!r:.60} in its name; leave it out to see all {len(stored.series)}")
        shared = common(np.array(list(stored.series.values())))
        found = changes(stored.nights, wanted, shared, tolerance) if len(stored.nights) >= LEAST_NIGHTS else []
    output.show(
        as_json,
        lambda: history_json(stored.nights, wanted, shared, found, tolerance),
        lambda: history_document(stored.nights, wanted, found, tolerance),
    )


def _rows(folder: RunFolder) -> "Side":
    from calibrate.regression.sources import side_of

    return side_of([folder]).side
