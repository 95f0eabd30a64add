"""The rates of a device as rows: datasheet beside measured, how far the samples spread, and what is missing.

Example: ``unsteady(peak_rows(spec))`` is None where the peaks were measured on a quiet machine
"""

from collections.abc import Sequence
from typing import Literal

from calibrate.report.units import bytes_per_s, dtype, flops_per_s, percent, seconds
from roofline.hardware.spec import Figure, HardwareSpec, Peaks
from roofline.laws.fitted import FittedLaw
from roofline.laws.kinds import HOST_GAP, OPERATOR
from roofline.record import Record

Unit = Literal["FLOP/s", "bytes/s", "s"]
_UNITS: tuple[Unit, ...] = ("FLOP/s", "bytes/s", "s")

RANGE = "5–95 % of samples"
"""Header of the range of a measured figure."""

STEADY_WITHIN = 0.5
"""(high − low) ÷ value; above it other work slowed some samples: a quiet machine repeats itself to percents."""


class PeakRow(Record):
    """One rate of the device, by origin."""

    name: str
    unit: Unit
    datasheet: Figure | None
    measured: Figure | None

    def show(self, value: float | None) -> str:
        return {"FLOP/s": flops_per_s, "bytes/s": bytes_per_s, "s": seconds}[self.unit](value)

    def interval(self) -> str:
        """5–95 % range of the measurement's samples, "" where there is none."""
        figure = self.measured
        if figure is None or figure.low is None or figure.high is None:
            return ""
        return f"{self.show(figure.low)} to {self.show(figure.high)}"

    @property
    def spread(self) -> float | None:
        """(high − low) ÷ value of the measurement."""
        figure = self.measured
        if figure is None or figure.low is None or figure.high is None:
            return None
        return (figure.high - figure.low) / figure.value


def peak_rows(spec: HardwareSpec, dtypes: Sequence[str] | None = None) -> tuple[PeakRow, ...]:
    """Every rate of the device, datasheet beside measured; matrix rates of `dtypes` only where given."""
    said, reached = _figures(spec.datasheet, dtypes), _figures(spec.measured, dtypes)
    return tuple(
        PeakRow(name=name, unit=unit, datasheet=said.get((unit, name)), measured=reached.get((unit, name)))
        for unit, name in sorted({**said, **reached}, key=lambda key: _UNITS.index(key[0]))
    )


def laws(spec: HardwareSpec) -> str | None:
    """What the device was calibrated to, with the error on sizes that folds of the fit had not seen; None without."""
    if not spec.calibrated:
        return None
    kinds: dict[str, list[FittedLaw]] = {}
    for law in spec.calibrated:
        kinds.setdefault("streaming operators" if law.kind.startswith(OPERATOR) else law.kind, []).append(law)
    said = []
    for kind, found in kinds.items():
        errors = [law.unseen for law in found if law.unseen is not None and kind != HOST_GAP]  # no kernel
        off = f" {percent(sum(errors) / len(errors))}" if errors else ""
        said.append(f"{kind.replace('_', ' ')}{off}")
    old = sorted({law.kind.replace("_", " ") for law in spec.calibrated if law.is_outdated})
    again = f"; kept by an older roofcal, whose laws were others: {', '.join(old)}; calibrate again" if old else ""
    return f"calibrated: {len(spec.calibrated)} laws, off on groups of kernels not fitted to: {', '.join(said)}{again}"


def unsteady(rows: Sequence[PeakRow]) -> str | None:
    """A warning where the samples of a figure vary much."""
    wide = [row for row in rows if row.spread is not None and row.spread > STEADY_WITHIN]
    if not wide:
        return None
    names = ", ".join(f"{row.name} by {percent(row.spread)}" for row in wide)
    return f"samples of the peaks vary ({names}): other work, or a clock that changes; run again on a quiet machine"


def missing(spec: HardwareSpec) -> tuple[str, ...]:
    """Each figure that could not be had, and why."""
    return tuple(f"{figure}: {reason}" for figure, reason in spec.missing.items())


def _figures(peaks: Peaks | None, dtypes: Sequence[str] | None) -> dict[tuple[Unit, str], Figure]:
    if peaks is None:
        return {}
    found: dict[tuple[Unit, str], Figure] = {}
    for name, figure in peaks.matrix.items():
        if dtypes is None or name in dtypes:
            found["FLOP/s", f"matrix {dtype(name)}"] = figure
    found |= {("FLOP/s", f"vector {dtype(name)}"): figure for name, figure in peaks.vector.items()}
    found |= {("bytes/s", level.name): level.bandwidth for level in peaks.levels}
    if peaks.host_s_per_op is not None:
        found["s", "host per operation"] = peaks.host_s_per_op
    return found
