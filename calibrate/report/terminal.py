"""A run on the terminal: what the device is, and for each pass its layers, its waterfall and its closure.

Lines never exceed the console's width: columns that matter least are left out, long module paths lose their middle.
Without colour (piped) nothing is lost: marks are characters.

Example: ``render(reports, run, spec, rich.console.Console())``
"""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from calibrate.passes.pass_report import PassReport
from calibrate.report import compiled, peaks, tables, wording
from calibrate.report.grid import GAP, characters, grid, needed, rule, say
from calibrate.report.units import UNKNOWN, aligned, percent, seconds
from calibrate.report.wording import Fact
from profiler.record.run import CellResult, Run
from roofline.hardware.spec import HardwareSpec

LEFT_OUT_FIRST = (
    "repeat",
    "foreseen",
    "count",
    "flops",
    "bytes",
    "predicted",
    "bound",
    "ideal",
    "kind",
    "efficiency",
    "share",
    "sure",
    "time",
)
"""Columns of the layer table in the order they go when the console is narrow."""

NARROWEST_PATH = 20
"""Characters of a module path below which a column goes instead."""

NARROWEST_BAR = 8
WIDEST_BAR = 40
"""Characters of the waterfall's bar."""

_WIDTH_FOR_MEANINGS = 110
"""Characters from which the waterfall has room for its words beside its bar."""

_STYLE = {"path": "cyan", "kind": "dim", "time": "bold", "bound": "dim"}


def render(
    reports: Sequence[PassReport], run: Run, spec: HardwareSpec, console: Console, failed: Sequence[CellResult] = ()
) -> None:
    """Print a whole run; nothing is computed here but the layout."""
    _environment(reports, run, spec, console)
    for report in reports:
        _pass(report, run, spec, console)
    if reports and console.width < _WIDTH_FOR_MEANINGS:
        _meanings(reports, console)
    if failed:
        rule(console, "no result")
        for what, status, reason in wording.failed_rows(failed):
            say(console, f"{what}: {status}: {reason}", "red")
    if not reports and not failed:
        say(console, "no pass has been measured in this run")


def _environment(reports: Sequence[PassReport], run: Run, spec: HardwareSpec, console: Console) -> None:
    rule(console, f"{run.environment.device}")
    _facts(console, wording.environment(run))
    for note in run.environment.notes:
        say(console, f"warning: {note}", "yellow")
    rows = peaks.peak_rows(spec, sorted({report.workload.dtype for report in reports}) or None)
    if not rows:
        say(console, "peaks: – (neither a datasheet nor a measurement)")
        _missing(spec, console)
        return
    console.print()
    said = [row.show(row.datasheet.value if row.datasheet else None) for row in rows]
    reached = [row.show(row.measured.value if row.measured else None) for row in rows]
    share = [
        percent(row.measured.value / row.datasheet.value if row.measured and row.datasheet else None) for row in rows
    ]
    columns = [
        ("peaks", [row.name for row in rows], "cyan", True),
        ("datasheet", said, "", False),
        ("achieved", reached, "bold", False),
    ]
    if any(row.interval() for row in rows):
        columns.append((peaks.RANGE, [row.interval() or UNKNOWN for row in rows], "", False))
    if any(row.datasheet for row in rows):
        columns.append(("of datasheet", share, "", False))
    while len(columns) > 3 and needed(columns) > console.width:
        columns.pop()
    grid(console, columns, shrink=0)
    warning = peaks.unsteady(rows)
    if warning:
        say(console, f"warning: {warning}", "yellow")
    _missing(spec, console)
    if (laws := peaks.laws(spec)) is not None:
        say(console, laws)
    if any(row.measured for row in rows):
        say(console, "achieved: measured in this run; spec.json and report.md say how for each figure", "dim")
    if any(row.datasheet for row in rows):
        say(console, "datasheet: spec.json and report.md name the document of each figure", "dim")


def _missing(spec: HardwareSpec, console: Console) -> None:
    for line in peaks.missing(spec):
        say(console, line, "dim")


def _pass(report: PassReport, run: Run, spec: HardwareSpec, console: Console) -> None:
    console.print()
    console.print(Text("─" * console.width, style="dim"))
    verdict = wording.verdict(report)
    if verdict:
        say(console, f"{wording.title(report)}: {verdict}", "bold red")
        say(console, wording.headline(report), "bold")
    else:
        say(console, f"{wording.title(report)}: {wording.headline(report)}", "bold")
    say(console, wording.ideal_uses(report, spec))
    say(console, wording.predicted(report))
    for sentence in (*wording.level(report), wording.compared(report)):
        say(console, sentence)
    for sentence in wording.warnings(report):
        say(console, sentence if sentence.startswith("!") else f"warning: {sentence}", "yellow")
    for sentence in (wording.how_timed(report), *wording.notes(report), wording.what_ran(report)):
        say(console, sentence, "dim")
    for what, names in (("differs from the trace", report.differences), ("not read in this phase", report.inactive)):
        if names:
            say(console, f"{what}: {len(names)}: {wording.some(names)}", "dim")
    console.print()
    _layers(report, console)
    console.print()
    _kernels(report, console)
    _waterfall(report, console)
    console.print()
    _closure(wording.closure(report, run.environment.device_kind), console)


def _layers(report: PassReport, console: Console) -> None:
    rows = tables.fold(tables.layer_rows(report), report.wall_s)
    rows = (*rows, tables.busy_row(report))
    columns = []
    for column in tables.LAYER_COLUMNS:
        cells = [column.cell(row) for row in rows]
        columns.append((column.key, column.header, cells if column.text else aligned(cells), column.text))
    for key in LEFT_OUT_FIRST:
        fixed = sum(characters(header, cells) + GAP for _, header, cells, _ in columns[1:])
        if fixed + min(NARROWEST_PATH, characters(*columns[0][1:3])) <= console.width:
            break
        columns = [column for column in columns if column[0] != key]
    grid(
        console,
        [(header, cells, _STYLE.get(key, ""), text) for key, header, cells, text in columns],
        shrink=0,
        marked=[row.above_one for row in rows],
        rule_before_last=True,
    )


def _kernels(report: PassReport, console: Console) -> None:
    """Of a compiled pass; names and modules lose their middle where the console is narrow."""
    rows = [compiled.cells(kernel, report) for kernel in compiled.shown(report)]
    if not rows:
        return
    columns = [
        (header, list(texts) if align == "l" else aligned(list(texts)), "cyan" if i == 0 else "", align == "l")
        for i, (header, align, texts) in enumerate(
            zip(compiled.HEADER, compiled.ALIGN, zip(*rows, strict=True), strict=True)
        )
    ]
    for room in (0, 1):  # the wider of the two texts gives way first
        spare = console.width - needed(columns)
        if spare >= 0:
            break
        header, texts, style, text = columns[1 - room]
        width = max(NARROWEST_PATH, characters(header, texts) + spare)
        columns[1 - room] = (
            header,
            [each if len(each) <= width else f"{each[: width - 1]}…" for each in texts],
            style,
            text,
        )
    grid(console, columns, shrink=0)
    console.print()


def _waterfall(report: PassReport, console: Console) -> None:
    rows = tables.pass_terms(report)
    labels = [*(row.label for row in rows), "wall"]
    times = aligned([*(seconds(row.time_s, signed=True) for row in rows), seconds(report.wall_s)])
    shares = aligned([*(percent(row.share, signed=True) for row in rows), percent(1.0)])
    meanings = [*(wording.meaning(row) for row in rows), ""]
    columns = [("waterfall", labels, "cyan", True), ("", times, "bold", False)]
    if any(row.half_s is not None for row in rows):
        halves = [seconds(row.half_s) if row.half_s is not None else "" for row in rows]
        columns.append(("±", aligned([*halves, wording.half_wall(report)]), "", False))
    columns.append(("of wall", shares, "", False))
    used = sum(characters(header, cells) + GAP for header, cells, _, _ in columns)
    if console.width >= _WIDTH_FOR_MEANINGS:
        used += max(map(len, meanings)) + GAP
    width = min(console.width - used, WIDEST_BAR)
    if width >= NARROWEST_BAR:
        columns.append(("", _bars(rows, report.wall_s, width), "green", True))
    if console.width >= _WIDTH_FOR_MEANINGS:
        columns.append(("", meanings, "dim", True))
    grid(console, columns, shrink=0, rule_before_last=True)


def _bars(rows: Sequence[tables.TermRow], wall_s: float, width: int) -> list[str]:
    """Each term from where the sum stood to where it brings it; a term that takes away is drawn light."""
    ends = [row.start_s + (row.time_s or 0.0) for row in rows]
    low = min([0.0, *ends, *(row.start_s for row in rows)])
    high = max([wall_s, *ends])
    scale = width / (high - low) if high > low else 0.0
    bars = []
    for row, end_s in zip(rows, ends, strict=True):
        left, right = sorted((round((row.start_s - low) * scale), round((end_s - low) * scale)))
        left = min(left, width - 1)
        mark = "░" if (row.time_s or 0.0) < 0 else "█"
        length = max(right - left, 1) if row.time_s else 0
        bars.append(" " * left + mark * length)
    return [*bars, " " * round(-low * scale) + "█" * round(wall_s * scale)]


def _closure(facts: Sequence[Fact], console: Console) -> None:
    marks = {None: "", True: "holds", False: "DOES NOT HOLD"}
    columns = [
        ("closure", [fact.name for fact in facts], "cyan", True),
        ("", [fact.value for fact in facts], "", False),
        ("", [marks[fact.holds] for fact in facts], "", True),
        ("asked", [fact.asked for fact in facts], "dim", True),
    ]
    fits = needed(columns) <= console.width
    grid(console, columns if fits else columns[:3], shrink=0, marked=[fact.holds is False for fact in facts])
    for fact in facts:
        if fact.implies:
            say(console, f"{fact.name}: {fact.implies}", "yellow")


def _meanings(reports: Sequence[PassReport], console: Console) -> None:
    rule(console, "terms of the waterfall")
    rows = {
        row.label: wording.meaning(row)
        for report in reports
        for row in tables.waterfall_rows(report.waterfall, report.wall_s)
    }
    _facts(console, [Fact(name=label, value=text) for label, text in rows.items()])


def _facts(console: Console, facts: Sequence[Fact]) -> None:
    for fact in facts:
        say(console, f"{fact.name}: {fact.value}")
