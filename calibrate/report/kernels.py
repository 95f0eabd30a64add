"""The reports of a table of kernels and of a calibration.

Errors are of kernels to which a law was not fitted; the errors that a fit leaves on its own points are not shown.
"""

from functools import partial
from typing import Any

from calibrate.kernels.score import DECODING, FEW_ROWS, LONG_KEYS, Calibrated, Calibration
from calibrate.report.document import Column, Document, Facts, Lines, Part, Section, Text, figure, table
from calibrate.report.json import kernel_kinds
from profiler.record.folder import RunFolder
from profiler.record.kernel_table import Kernels
from roofline.units import number, percent


def kernels_document(folder: RunFolder, kernels: Kernels) -> Document:
    """The report of a table: rows kept by kind and dtype, and rows that every rule took out of each file."""
    environment, spec = folder.run.environment, folder.read_spec()
    datasheet = spec.name if spec is not None and spec.datasheet is not None else "not known"
    columns: tuple[Column[dict[str, Any]], ...] = (
        Column("kind", lambda kind: kind["kind"], words=True),
        Column("dtype", lambda kind: kind["dtype"], words=True),
        Column("rows", lambda kind: figure(kind["rows"], number)),
        Column("groups", lambda kind: figure(kind["groups"], number)),
        Column("fastest", lambda kind: figure(kind["least_s"]), drop=2),
        Column("median", lambda kind: figure(kind["median_s"]), strong=True),
        Column("slowest", lambda kind: figure(kind["most_s"]), drop=1),
    )
    files: list[Part] = []
    for source in kernels.sources:
        timed = "" if source.timed == source.rows else f" with {source.timed} times"
        tool = ", ".join(f"{name} {version}" for name, version in source.versions.items()) or source.format
        files.append(Text(f"{source.file}: {source.rows} rows{timed} ({tool}), {source.kept} kept"))
        files.append(Lines([f"{count} left out: {rule}" for rule, count in source.cleaned.items()], tone="faint"))
    parts: list[Part] = [
        Text(f"datasheet: {datasheet}"),
        *files,
        Section("Kernels by kind", (table(columns, kernel_kinds(kernels)),)),
        Lines([f"note: {warning}" for warning in environment.notes], tone="warning"),
    ]
    return Document(f"{environment.device}: {number(len(kernels))} kernels", parts)


_COLUMNS: tuple[Column[Calibrated], ...] = (
    Column("kind", lambda kind: kind.kind, words=True),
    Column("dtype", lambda kind: kind.dtype, words=True),
    Column("points", lambda kind: figure(kind.points, number), drop=6),
    Column("scored", lambda kind: figure(kind.scores.rows, number), drop=5),
    Column("mean", lambda kind: figure(kind.scores.mape, percent), strong=True),
    Column("median", lambda kind: figure(kind.scores.median, percent), drop=3),
    Column("p90", lambda kind: figure(kind.scores.p90, percent), drop=4),
    Column("weighted", lambda kind: figure(kind.scores.time_weighted, percent)),
    Column("bias", lambda kind: figure(kind.scores.bias, partial(percent, signed=True)), drop=1),
    Column("in 90 %", lambda kind: figure(kind.scores.coverage, percent), drop=2),
    Column("datasheet", lambda kind: figure(kind.datasheet.mape, percent), drop=7),
    Column("4-constant", lambda kind: figure(kind.four_constant.mape, percent), drop=8),
    Column("noise", lambda kind: figure(kind.noise, percent), drop=9),
)

_WORDS = {
    "mean, median, p90": "|predicted − measured| ÷ measured of the scored kernels, which the law was not fitted to",
    "weighted": "the same error, each kernel counted by its seconds",
    "bias": "mean of (predicted − measured) ÷ measured: above 0, predictions are too long",
    "in 90 %": "share of the kernels within the interval that should hold 90 % of them",
    "datasheet": "mean error of the roofline at datasheet peaks, without any measurement",
    "4-constant": "mean error of a roofline with four constants, fitted to the same points",
    "noise": "how far repeated measurements of one kernel differ",
}


def calibration_document(calibration: Calibration) -> Document:
    """The scores of each kind, those of decoding alone, each kind's doubts, and what was skipped."""
    regions, doubts = [], []
    for kind in calibration.fitted:
        name = f"{kind.kind} {kind.dtype}"
        if (scores := kind.regions.get(DECODING)) is not None:
            attends = kind.kind.endswith("attention")
            kernels = f"at least {LONG_KEYS:.0f} keys" if attends else f"at most {FEW_ROWS:.0f} rows, uncached weights"
            regions.append(
                f"{name}, as in decode ({kernels}): {scores.rows} scored, mean {percent(scores.mape)}, "
                f"weighted {percent(scores.time_weighted)}, bias {percent(scores.bias, signed=True)}"
            )
        doubts += [f"{name}: doubtful: {doubt}" for doubt in kind.law.doubts]
        if names := ", ".join(kind.law.undetermined):
            doubts.append(f"{name}: the points do not determine {names}; kept near the prior")
    parts = (
        table(_COLUMNS, calibration.fitted),
        Lines(regions),
        Lines(doubts, tone="warning"),
        Lines([f"not calibrated: {skipped.reason}" for skipped in calibration.skipped], tone="warning"),
        Facts(tuple(_WORDS.items()), "faint"),
    )
    return Document("Errors on kernels held out from the fit", parts)
