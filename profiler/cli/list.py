"""`list`: the runs under a results folder, the unfinished and the unreadable ones too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from profiler.cli.output import print_json
from profiler.record.index import RunSummary, list_runs

EXAMPLE = "Example:  python -m profiler list --results results"


def list_(
    results: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")] = False,
) -> None:
    """The runs under a results folder, the oldest first."""
    runs = list_runs(results)
    if as_json:
        print_json({"results": str(results), "runs": [run.model_dump(mode="json") for run in runs]})
    elif runs:
        for line in _lines(runs):
            print(line)
    else:
        print(f"no runs under {results}; make one with: python -m profiler run")


def _lines(runs: list[RunSummary]) -> Iterator[str]:
    """Columns of even width; never wrapped, so that a name can be copied or cut out by other programs."""
    rows = [("run", "state", "cells", "models")]
    for run in runs:
        name = f"{run.path.parent.name}/{run.path.name}"
        cells = "–" if run.state == "unreadable" or run.kind != "passes" else str(run.cells)
        rows.append((name, run.state, cells, run.why or _what(run)))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, state, cells, models in rows:
        yield f"{name:{wide[0]}}  {state:{wide[1]}}  {cells:>{wide[2]}}  {models}"


def _what(run: RunSummary) -> str:
    """The models, or that it is a characterisation or a table."""
    if run.kind == "kernels":
        kinds: dict[str, int] = {}
        for what, rows in run.kernels.items():
            kind = what.partition(" ")[0]
            kinds[kind] = kinds.get(kind, 0) + rows
        return "kernels: " + ", ".join(f"{rows} {kind}" for kind, rows in kinds.items())
    if run.kind == "hardware":
        return f"hardware, {run.measurements} measurement{'' if run.measurements == 1 else 's'}"
    return ", ".join(run.models)
