"""`report`: stored runs as one interactive page that opens offline. Wiring only; no torch, no device."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from profiler.cli import output
from profiler.cli.options import AsJson, Results
from profiler.record.files import require_separate, write_text
from profiler.record.folder import find_run
from profiler.record.run import RequestError

EXAMPLE = """
Examples:\n
python -m profiler report last\n
python -m profiler report last-week last --out runs.html
"""
PAGE = "report.html"


def report(
    runs: Annotated[list[str], Argument(metavar="RUN", help="Runs: a folder, the end of a name, or 'last'.")],
    out: Annotated[
        Path | None, Option(help="File to write. Default: report.html in the run's folder; several runs need a name.")
    ] = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Write runs as one interactive page that opens offline.

    Several runs stand side by side, each compared with the first.
    """
    folders = [find_run(run, results) for run in runs]
    paths = [folder.path.resolve() for folder in folders]
    if twice := next((path for i, path in enumerate(paths) if path in paths[:i]), None):
        raise RequestError(f"{twice} is named twice; name each run once")
    if out is None and len(folders) > 1:
        raise RequestError(f"name the page of {len(folders)} runs, as --out runs.html")
    page = folders[0].path / PAGE if out is None else out
    read = [file for path in paths for file in path.rglob("*") if file.is_file() and file.name != PAGE]
    require_separate({"--out": page}, read)
    with output.stdout_to_stderr_if(as_json):
        from calibrate.report.html import render
        from calibrate.report.runs import report_document

        text = render(report_document(folders))
        write_text(page, text)
    if as_json:
        output.print_json({"report": str(page), "runs": list(map(str, paths)), "bytes": len(text.encode())})
    else:
        output.say(f"wrote {page}, {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
