"""`show`: one run on the terminal, or as JSON; it needs neither the device nor torch."""

from pathlib import Path
from typing import Annotated

import typer

from profiler.cli.output import console, print_json
from profiler.record.index import find_run

EXAMPLE = "Example:  python -m profiler show last"


def show(
    run: Annotated[str, typer.Argument(help="A run's folder, the end of its name, or 'last'.")],
    results: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")] = False,
) -> None:
    """A run's layers, waterfalls and closure, as `run` printed them."""
    from calibrate.report.terminal import render
    from calibrate.reports import document, load, load_spec

    folder = find_run(run, results)
    reports, failed = load(folder)
    if as_json:
        print_json(document(folder, reports, failed))
    else:
        render(reports, folder.run, load_spec(folder), console(), failed)
