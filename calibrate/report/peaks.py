"""The peaks of a device in a report: datasheet beside measured, their spread, and the laws it was calibrated to."""

from collections.abc import Sequence
from typing import Literal, get_args

from calibrate.report import document
from calibrate.report.document import Column, Lines, Part, Text, table
from roofline.hardware.spec import Figure, HardwareSpec, Peaks
from roofline.laws.fitted import FittedLaw
from roofline.laws.kinds import HOST_GAP, OPERATOR
from roofline.record import Record
from roofline.units import UNKNOWN, dtype, in_unit, percent

Unit = Literal["FLOP/s", "B/s", "s"]

STEADY_WITHIN = 0.5
"""(high − low) ÷ value; above it other work slowed some samples: a quiet machine repeats itself to percents."""


class PeakRow(Record):
    """One rate of the device, by origin."""

    name: str
    unit: Unit
    datasheet: Figure | None
    measured: Figure | None

    def shows(self, value: float | None) -> str:
        return in_unit(value, self.unit)

    def interval(self) -> str:
        """5–95 % range of the measurement's samples, "–" where there is none."""
        if self.spread is None or self.measured is None:
            return UNKNOWN
        return f"{self.shows(self.measured.low)} to {self.shows(self.measured.high)}"

    @property
    def of_datasheet(self) -> float | None:
        return self.measured.value / self.datasheet.value if self.measured and self.datasheet else None

    @property
    def spread(self) -> float | None:
        """(high − low) ÷ value of the measurement."""
        figure = self.measured
        if figure is None or figure.low is None or figure.high is None:
            return None
        return (figure.high - figure.low) / figure.value


PEAK_COLUMNS: tuple[Column[PeakRow], ...] = (
    Column("peak", lambda row: row.name, words=True),
    Column("datasheet", lambda row: row.shows(row.datasheet.value if row.datasheet else None)),
    Column("achieved", lambda row: row.shows(row.measured.value if row.measured else None), strong=True),
    Column("5–95 % of samples", lambda row: row.interval(), optional=True, drop=1),
    Column("of datasheet", lambda row: percent(row.of_datasheet), optional=True, drop=2),
    Column("source of the datasheet", lambda row: row.datasheet.source if row.datasheet else UNKNOWN,
           wraps=True, optional=True, views=document.FILES),
    Column("how it was achieved", lambda row: row.measured.source if row.measured else UNKNOWN,
           wraps=True, optional=True, views=document.FILES),
)  # fmt: skip


def peak_parts(spec: HardwareSpec) -> tuple[Part, ...]:
    """The peaks of a device, how sure they are, what is missing, and the laws it was calibrated to."""
    known = peak_rows(spec)
    reasons = {name: " ".join(reason.split()).removeprefix("RuntimeError: ") for name, reason in spec.missing.items()}
    missing = [f"missing or doubtful: {name}: {reason}" for name, reason in reasons.items()]
    none = "No peaks of this device are known: neither a datasheet nor a measurement."
    return (
        Text("" if known else none),
        table(PEAK_COLUMNS, known),
        Text(unsteady(known), "warning"),
        Lines(missing, tone="faint"),
        Text(laws(spec) or ""),
    )


def peak_rows(spec: HardwareSpec) -> tuple[PeakRow, ...]:
    """Every rate of the device, datasheet beside measured."""
    datasheet, measured = _figures(spec.datasheet), _figures(spec.measured)
    units = get_args(Unit)
    return tuple(
        PeakRow(name=name, unit=unit, datasheet=datasheet.get((unit, name)), measured=measured.get((unit, name)))
        for unit, name in sorted({**datasheet, **measured}, key=lambda key: units.index(key[0]))
    )


def laws(spec: HardwareSpec) -> str | None:
    """A sentence on the calibrated laws and their errors on groups that a fit had not seen; None without laws."""
    if not spec.calibrated:
        return None
    kinds: dict[str, list[FittedLaw]] = {}
    for law in spec.calibrated:
        kinds.setdefault("streaming operators" if law.kind.startswith(OPERATOR) else law.kind, []).append(law)
    errors = {}
    for kind, alike in kinds.items():
        unseen = [law.unseen for law in alike if law.unseen is not None and kind != HOST_GAP]  # no kernel
        errors[kind.replace("_", " ")] = sum(unseen) / len(unseen) if unseen else None
    listed = ", ".join(f"{kind} {percent(error)}" for kind, error in errors.items())
    old = sorted({law.kind.replace("_", " ") for law in spec.calibrated if law.is_outdated})
    again = f"; calibrate again for {', '.join(old)}: an older roofcal fitted other laws" if old else ""
    return f"{len(spec.calibrated)} calibrated laws; mean error on kernels held out from the fit: {listed}{again}"


def unsteady(rows: Sequence[PeakRow]) -> str:
    """A warning where the samples of a figure vary much; else ""."""
    wide = [f"{row.name} by {percent(row.spread)}" for row in rows if (row.spread or 0.0) > STEADY_WITHIN]
    if not wide:
        return ""
    reason = "other work, or a clock that changes; measure again on a quiet machine"
    return f"samples of the peaks vary ({', '.join(wide)}): {reason}"


def _figures(peaks: Peaks | None) -> dict[tuple[Unit, str], Figure]:
    if peaks is None:
        return {}
    figures: dict[tuple[Unit, str], Figure] = {
        **{("FLOP/s", f"matrix {dtype(name)}"): figure for name, figure in peaks.matrix.items()},
        **{("FLOP/s", f"vector {dtype(name)}"): figure for name, figure in peaks.vector.items()},
        **{("B/s", level.name): level.bandwidth for level in peaks.levels},
    }
    if peaks.host_s_per_op is not None:
        figures["s", "host per operation"] = peaks.host_s_per_op
    return figures
