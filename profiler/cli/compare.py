"""`compare`: what got slower between two runs, or two sets of runs. Wiring only; no torch, no device."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from profiler.cli import output
from profiler.cli.options import AsJson, Html, Results, finite
from profiler.record.files import replacing, require_separate
from profiler.record.run import RequestError

if TYPE_CHECKING:
    from calibrate.regression.compare import Result

EXAMPLE = """
Examples:\n
python -m profiler compare last-week last --tolerance 0.02\n
python -m profiler compare nights/monday nights/tuesday --write junit=junit.xml --write markdown=summary.md\n
Exit codes:\n
0 nothing is slower\n
1 something is slower\n
2 the request is wrong\n
3 nothing could be told\n
4 something failed or is missing
"""

Write = Annotated[
    list[str] | None,
    Option(
        "--write",
        help="Write FORMAT=FILE, as junit=out.xml; repeatable. Formats: junit, markdown, bencher, hud, gha, otava.",
    ),
]
Tolerance = Annotated[
    float, Option(help="Relative change that does not matter, as 0.01 for 1 %.", min=0, max=1, callback=finite)
]


def compare(
    base: Annotated[str, Argument(metavar="BASE", help="A run, runs joined by commas, or a folder of runs.")],
    new: Annotated[str, Argument(metavar="NEW", help="The new side, given in the same way.")],
    tolerance: Tolerance = 0.01,
    spread: Annotated[
        float | None,
        Option(
            help="Relative difference between processes, as 0.005; with it, rows of a single process are judged too.",
            min=0, max=1, callback=finite,
        ),
    ] = None,
    allow: Annotated[
        bool, Option("--allow", help="Also show runs of different devices, drivers or methods, marked incomparable.")
    ] = False,
    write: Write = None,
    html: Html = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say what got slower, and where the difference went.

    Each run counts as one process of its side.
    """
    from calibrate.regression.compare import compare as compared
    from calibrate.regression.sources import find_side, moved
    from calibrate.report.comparison import comparison_document, comparison_json

    files = wanted_files(write, html)
    before, after = find_side(base, results), find_side(new, results)
    result = compared(before.side, after.side, tolerance=tolerance, spread=spread, allow=allow)
    for path in (*before.unfinished, *after.unfinished):
        output.say(f"warning: {path} is not finished; what it lacks counts as missing or new", sys.stderr)
    grown = moved(before.passes, after.passes)
    write_files(files, result)
    about = (result, grown)
    output.show(as_json, lambda: comparison_json(*about), lambda: comparison_document(*about), html=html)
    told = set(result.counts)
    if "slower" in told:
        raise typer.Exit(output.SLOWER)
    if told & {"failed", "missing"}:
        raise typer.Exit(output.INVALID)
    if not told & {"faster", "same"}:
        raise typer.Exit(output.INCONCLUSIVE)


def wanted_files(write: list[str] | None, html: Path | None = None) -> dict[str, Path]:
    """Format -> file of each --write. Raises RequestError for an unknown format, no file, or one file twice."""
    from calibrate.exchange.dashboards import DASHBOARDS

    files: dict[str, Path] = {}
    for text in write or ():
        form, _, name = text.partition("=")
        if form not in DASHBOARDS or not name:
            raise RequestError(f"--write takes FORMAT=FILE with {', '.join(DASHBOARDS)}; not {text!r:.60}")
        files[form] = Path(name)
    require_separate({"--html": html, **{f"--write {form}": path for form, path in files.items()}}, [])
    return files


def write_files(files: dict[str, Path], result: "Result") -> None:
    """Write the result in each format."""
    from calibrate.exchange.dashboards import DASHBOARDS

    for form, path in files.items():
        with replacing(path) as partial:
            partial.write_text(DASHBOARDS[form](result), encoding="utf-8")
