"""A run as GitHub Markdown: every row of every table, and how each figure came about.

Nothing is folded or shortened here; null is "–".

Example: ``Path("report.md").write_text(render(reports, run, spec, failed), encoding="utf-8")``
"""

from collections.abc import Sequence

from calibrate.passes.pass_report import PassReport
from calibrate.report import compiled, marks, peaks, tables, wording
from calibrate.report.units import UNKNOWN, number, percent, plus_minus, seconds
from calibrate.report.wording import Fact
from profiler.record.run import CellResult, Run
from roofline.hardware.spec import HardwareSpec

FEW = 10
"""Inactive parameters that are named; the rest are counted."""


def render(reports: Sequence[PassReport], run: Run, spec: HardwareSpec, failed: Sequence[CellResult] = ()) -> str:
    """The whole run as one document."""
    parts = [f"# {marks.text(run.name)} on {marks.text(run.environment.device)}"]
    if reports:
        parts += ["## Passes", _passes(reports, run)]
    else:
        parts.append("No pass has been measured in this run.")
    if failed:
        rows = [(marks.text(what), status, marks.text(reason)) for what, status, reason in wording.failed_rows(failed)]
        parts += ["## No result", marks.table(("what", "status", "reason"), "lll", rows)]
    for report in reports:
        parts += _pass(report, run, spec)
    parts += ["## Environment", marks.facts(wording.environment(run)), *marks.listed("Warnings", run.environment.notes)]
    parts += ["## Peaks", *_peaks(spec)]
    parts += ["## Words", *_words()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _passes(reports: Sequence[PassReport], run: Run) -> str:
    rows = [
        (
            marks.text(wording.title(report)),
            report.status if report.status == "done" else f"**{report.status}**",
            seconds(report.wall_s),
            plus_minus(report.wall_s_low, report.wall_s_high, report.wall_s),
            seconds(report.busy_s),
            seconds(tables.ideal_total_s(report)),
            report.ideal_peaks or UNKNOWN,
            seconds(report.predicted_busy_s),
            seconds(report.predicted_wall_s),
            "holds" if wording.closes(report, run.environment.device_kind) else "**DOES NOT HOLD**",
        )
        for report in reports
    ]
    header = ("pass", "status", "wall", "±", "busy", "could be", "at peaks", "predicted busy", "predicted wall")
    return marks.table((*header, "closure"), "llrrrrlrrl", rows)


def _pass(report: PassReport, run: Run, spec: HardwareSpec) -> list[str]:
    lines = [
        wording.ideal_uses(report, spec),
        wording.predicted(report),
        *wording.level(report),
        wording.compared(report),
        wording.how_timed(report),
        *wording.notes(report),
        wording.what_ran(report),
    ]
    verdict = wording.verdict(report)
    return [
        f"## {marks.text(wording.title(report))}",
        f"> **{marks.text(verdict)}**" if verdict else "",
        f"**{marks.text(wording.headline(report))}**",
        "\n".join(f"> **{marks.text(sentence)}**  " for sentence in wording.warnings(report)),
        "\n".join(f"- {marks.text(line)}" for line in lines),
        "### Layer kinds",
        _layers(report),
        *_kernels(report),
        "### Waterfall",
        _waterfall(report),
        "### Where the time of each layer kind goes",
        _layer_waterfalls(report),
        "### Closure",
        _closure(wording.closure(report, run.environment.device_kind)),
        *marks.listed(
            f"{len(report.differences)} differences between the meta trace and what the device ran", report.differences
        ),
        *_inactive(report.inactive),
    ]


def _layers(report: PassReport) -> str:
    rows = tables.layer_rows(report)
    columns = tables.LAYER_COLUMNS
    header = [*(column.header for column in columns), "kernels"]
    align = "".join("l" if column.text else "r" for column in columns) + "l"
    cells = [
        [
            marks.code(row.label),
            *(marks.text(column.cell(row)) for column in columns[1:]),
            ", ".join(map(marks.code, row.kernels)) or UNKNOWN,
        ]
        for row in rows
    ]
    total = tables.busy_row(report)
    cells.append(["**busy**", *(marks.text(column.cell(total)) for column in columns[1:]), ""])
    return marks.table(header, align, cells)


def _kernels(report: PassReport) -> list[str]:
    if not report.kernels:
        return []
    rows = [
        [marks.code(name), marks.code(modules), *map(marks.text, figures)]
        for name, modules, *figures in (compiled.cells(kernel, report) for kernel in report.kernels)
    ]
    return [f"### {compiled.TITLE}", marks.table(compiled.HEADER, compiled.ALIGN, rows)]


def _waterfall(report: PassReport) -> str:
    rows = [
        (
            row.label,
            seconds(row.time_s, signed=True),
            seconds(row.half_s),
            percent(row.share, signed=True),
            marks.text(wording.meaning(row)),
        )
        for row in tables.pass_terms(report)
    ]
    wall = ("**wall**", seconds(report.wall_s), wording.half_wall(report), percent(1.0))
    rows.append((*wall, "median of the unprofiled passes"))
    return marks.table(("term", "time", "±", "of wall", "what it is"), "lrrrl", rows)


def _layer_waterfalls(report: PassReport) -> str:
    header, rows = tables.layer_terms(report)
    cells = [
        [marks.code(label), kind, *(seconds(value, signed=True) for value in values)] for label, kind, values in rows
    ]
    return marks.table(("layer kind", "kind", *header), "ll" + "r" * len(header), cells)


def _closure(facts: Sequence[Fact]) -> str:
    holds = {None: UNKNOWN, True: "yes", False: "**NO**"}
    rows = [
        (fact.name, fact.value, fact.asked, ": ".join(filter(None, (holds[fact.holds], fact.implies))))
        for fact in facts
    ]
    return marks.table(("", "found", "asked", "holds"), "lrll", rows)


def _inactive(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f", and {number(len(names) - FEW)} more" if len(names) > FEW else ""
    return [f"{len(names)} parameters are not read in this phase: {', '.join(map(marks.code, names[:FEW]))}{more}"]


def _peaks(spec: HardwareSpec) -> list[str]:
    found = peaks.peak_rows(spec)
    absent = marks.listed("Figures left out", peaks.missing(spec))
    if (laws := peaks.laws(spec)) is not None:
        absent = [*absent, marks.text(laws)]
    if not found:
        return ["No peaks of this device are known: neither a datasheet nor a measurement.", *absent]
    warning = peaks.unsteady(found)
    said = f"> **{marks.text(warning)}**" if warning else ""
    rows = [
        (
            marks.text(row.name),
            row.show(row.datasheet.value if row.datasheet else None),
            row.show(row.measured.value if row.measured else None),
            row.interval() or UNKNOWN,
            marks.text(row.datasheet.source) if row.datasheet else UNKNOWN,
            marks.text(row.measured.source) if row.measured else UNKNOWN,
        )
        for row in found
    ]
    header = ("", "datasheet", "achieved", peaks.RANGE, "source of the datasheet's", "how it was achieved")
    return [f"Device file: {marks.code(spec.name)}", marks.table(header, "lrrrll", rows), said, *absent]


def _words() -> list[str]:
    words = {**wording.WORDS, **{term.replace("_", " "): wording.MEANING[term] for term in tables.TERMS}}
    return ["\n".join(f"- **{word}**: {marks.text(text)}" for word, text in words.items())]
