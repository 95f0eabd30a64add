"""What is exported: peaks of one origin of one device, and who took them, when, with what.

Example: ``source_of(load_device("nvidia-h200-sxm"), "datasheet", version="0.1.0", now=now)``
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from calibrate.exchange.export.law_price import LawPrice
from calibrate.exchange.export.price import Price, RooflinePrice
from roofline.hardware.spec import HardwareSpec, Level, Link, Peaks

Origin = Literal["measured", "datasheet"]

BETWEEN = ("nvlink", "infinity-fabric", "ici", "pcie")
"""Links between devices of one node, the first that a device has: those without one of their own talk over PCIe."""
NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Taken:
    """How measured figures came about; empty where only the spec is known."""

    device: str | None = None
    """As the driver names it."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of torch, the driver, CUDA, …"""
    clocks: str | None = None
    """Seen while measuring."""
    date: str | None = None
    """UTC, ISO 8601."""
    run: str | None = None
    """Folder of the run."""


@dataclass(frozen=True, slots=True)
class Source:
    """All that an exporter reads."""

    spec: HardwareSpec
    peaks: Peaks
    origin: Origin
    price: Price
    version: str
    """Of roofcal."""
    now: datetime
    """When it is exported."""
    taken: Taken = Taken()

    @property
    def name(self) -> str:
        """Of the entry in the other tool: never that of one it has already."""
        return f"{self.spec.name}-roofcal-{self.origin}"

    @property
    def main(self) -> Level:
        """Main memory."""
        return self.peaks.levels[-1]

    @property
    def between(self) -> tuple[str, Link] | None:
        """The link to other devices of the node, with its name; None where it has no figure of this origin.

        The datasheet says which link it is: copies to the host, which one device alone can measure, are not what
        devices talk over where they have a link of their own.
        """
        sold = self.spec.datasheet.links if self.spec.datasheet else {}
        name = next((name for name in BETWEEN if name in sold or (name != "pcie" and name in self.peaks.links)), None)
        return (name, self.peaks.links[name]) if name and name in self.peaks.links else None


def source_of(
    spec: HardwareSpec,
    origin: Origin | None,
    *,
    version: str,
    now: datetime,
    taken: Taken | None = None,
    price: Price | None = None,
) -> Source:
    """Choose the peaks: measured ones unless the datasheet's are asked for.

    The price, unless given, is that of the spec's calibrated laws, and the roofline's where it has none. Raises
    ValueError, one line, where the spec has no such peaks: another origin is never taken in silence.
    """
    wanted: Origin = origin or "measured"
    peaks = spec.measured if wanted == "measured" else spec.datasheet
    if peaks is None:
        instead = (
            "export its datasheet with --peaks datasheet, or measure it: python -m profiler hardware"
            if wanted == "measured"
            else "leave --peaks datasheet out"
        )
        raise ValueError(f"{spec.name} has no {wanted} peaks; {instead}")
    return Source(
        spec=spec,
        peaks=peaks,
        origin=wanted,
        price=price or (LawPrice(spec, RooflinePrice(peaks)) if spec.calibrated else RooflinePrice(peaks)),
        version=version,
        now=now,
        taken=taken or Taken(),
    )
