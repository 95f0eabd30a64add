"""A prediction on the terminal: each pass with its layer kinds, its memory, the requests, and a sweep as a table.

Lines never exceed the console's width: columns that matter least are left out, long module paths lose their middle.
Without colour (piped) nothing is lost: what does not fit is marked "!".

Example: ``render(prediction, rich.console.Console())``
"""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from calibrate.report.grid import GAP, Column, characters, grid, needed, rule, say
from calibrate.report.predicted import kinds, wording
from calibrate.report.units import UNKNOWN, aligned
from roofline.predict.passes import PassPrediction, Prediction

LEFT_OUT_FIRST = ("dtype", "rate", "count", "link", "kind", "intensity", "share", "bytes", "bound", "flops", "time")
"""Columns of the table of layer kinds in the order they go when the console is narrow."""

KIND_STAYS = ("dtype", "rate", "count", "link", "intensity", "share", "bytes", "bound", "flops", "kind", "time")
"""The same where paths repeat: only their kinds tell them apart."""

SWEEP_LEFT_OUT_FIRST = ("FLOPs", "traffic", "query", "memory", "tokens/s", "context", "fits")
REQUEST_LEFT_OUT_FIRST = ("memory", "output", "tokens/s", "prompt", "end to end", "fits")

NARROWEST_PATH = 20
"""Characters of a module path below which a column goes instead."""

SWEEP_ROWS = 200
"""More workloads are read from a file, not from a screen."""

_STYLE = {"path": "cyan", "kind": "dim", "dtype": "dim", "time": "bold", "bound": "dim"}


def render(prediction: Prediction, console: Console) -> None:
    """Print it all; nothing is computed here but the layout."""
    rule(console, f"{prediction.model} on {prediction.hardware}")
    for sentence in wording.summary(prediction):
        say(console, sentence)
    for note in prediction.notes:
        say(console, f"note: {note}", "yellow")
    detailed = [step for step in prediction.passes if step.ops]
    for step in detailed:
        _pass(step, prediction, console)
    swept = [step for step in prediction.passes if not step.ops]
    if swept:
        _sweep(swept, prediction, console)
    if prediction.requests:
        _requests(prediction, console)


def _pass(step: PassPrediction, prediction: Prediction, console: Console) -> None:
    console.print()
    console.print(Text("─" * console.width, style="dim"))
    say(console, f"{wording.title(step)}: {wording.headline(step, prediction)}", "bold")
    if misfit := wording.misfit(step, prediction):
        say(console, misfit, "bold red")
    if step.missing and step.time_s is not None:
        say(console, f"warning: peaks that are not known: {', '.join(step.missing)}", "yellow")
    console.print()
    _layers(step, console)
    say(console, wording.memory(step.memory), "red" if step.fits is False else "")


def _layers(step: PassPrediction, console: Console) -> None:
    rows = kinds.kind_rows(step)
    folded = kinds.fold(rows, step.time_s)
    shown = (*folded, kinds.total_row(rows, "total", step.time_s))
    keys, columns = [], []
    for column in kinds.shown_columns(rows):
        cells = [column.cell(row) for row in shown]
        if column.key == "bound":  # a sum waits for nothing
            cells = [cell if row.kind else "" for cell, row in zip(cells, shown, strict=True)]
        keys.append(column.key)
        columns.append(
            (column.header, cells if column.text else aligned(cells), _STYLE.get(column.key, ""), column.text)
        )
    marked = [row.time_s is None for row in shown]
    order = LEFT_OUT_FIRST if len({row.path for row in folded}) == len(folded) else KIND_STAYS
    _fitted(console, keys, columns, order, marked=marked, rule_before_last=True)


def _sweep(steps: Sequence[PassPrediction], prediction: Prediction, console: Console) -> None:
    console.print()
    console.print(Text("─" * console.width, style="dim"))
    say(console, f"{len(steps)} workloads", "bold")
    console.print()
    some = steps[:SWEEP_ROWS]
    cells = [wording.sweep_row(step) for step in some]
    columns: list[Column] = [("phase", [wording.phase(step) for step in some], "cyan", True)]
    columns += _figures(wording.SWEEP_COLUMNS, cells)
    marked = [step.fits is False or step.time_s is None for step in some]
    _fitted(console, ["phase", *wording.SWEEP_COLUMNS], columns, SWEEP_LEFT_OUT_FIRST, marked=marked)
    if len(steps) > len(some):
        say(console, f"… and {len(steps) - len(some)} more workloads; the CSV has them all", "dim")
    misfits = [step for step in steps if step.fits is False]
    if misfits:
        most = wording.misfit(max(misfits, key=lambda step: step.memory.peak), prediction)
        say(console, f"! {len(misfits)} of {len(steps)} do not fit; the largest {most.partition(': ')[2]}", "red")
    if absent := sorted({name for step in steps if step.time_s is None for name in step.missing}):
        say(console, f"time {UNKNOWN}: no {prediction.peaks} peak for {', '.join(absent)}", "yellow")


def _requests(prediction: Prediction, console: Console) -> None:
    rule(console, "requests")
    columns = _figures(wording.REQUEST_COLUMNS, wording.request_rows(prediction))
    marked = [request.fits is False for request in prediction.requests]
    _fitted(console, [*wording.REQUEST_COLUMNS], columns, REQUEST_LEFT_OUT_FIRST, marked=marked)
    for request in prediction.requests:
        if misfit := wording.misfit(request, prediction):
            asked = f"batch {request.batch}, {request.prompt_tokens} + {request.output_tokens} tokens"
            say(console, f"{misfit} at the last token ({asked})", "red")


def _figures(headers: Sequence[str], rows: wording.Rows) -> list[Column]:
    return [
        (header, [row[i][0] for row in rows], "", True)
        if header == "fits"
        else (header, aligned([row[i][0] for row in rows]), "bold" if header == "time" else "", False)
        for i, header in enumerate(headers)
    ]


def _fitted(
    console: Console,
    keys: Sequence[str],
    columns: Sequence[Column],
    left_out_first: Sequence[str],
    marked: Sequence[bool],
    rule_before_last: bool = False,
) -> None:
    """A table whose columns go, in an order, until its first one has room."""
    left = dict(zip(keys, columns, strict=True))
    least = min(NARROWEST_PATH, characters(*columns[0][:2]))
    for key in left_out_first:
        if needed([*left.values()][1:]) + GAP + least <= console.width:
            break
        left.pop(key, None)
    grid(console, [*left.values()], shrink=0, marked=marked, rule_before_last=rule_before_last)
