"""The report of a fleet: which units are not like their sisters, what the device model reaches, what upgrades did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibrate.fleet.outliers import LEAST, Off, Outlier, Unit
from calibrate.fleet.upgrades import Upgrade
from calibrate.report.document import Cell, Column, Document, Part, Section, Text, brief, figure, table
from roofline.hardware.spec import Characteristic, HardwareSpec
from roofline.units import MINUS, in_unit, percent

FLEET_SCHEMA = 1
"""Version of the JSON document; keys are only ever added."""


@dataclass(frozen=True)
class DeviceFleet:
    """The units of one device model."""

    device: str
    units: Sequence[Unit]
    outliers: Sequence[Outlier]
    spec: HardwareSpec
    """Value of the model, from the units that are alike."""
    upgrades: Sequence[Upgrade]


def fleet_document(fleets: Sequence[DeviceFleet]) -> Document:
    """A section for each device model."""
    return Document("Fleet", [Section(fleet.device, _device(fleet)) for fleet in fleets])


def fleet_json(fleets: Sequence[DeviceFleet]) -> dict[str, Any]:
    """The same as a document; figures in their own units."""
    return {
        "schema_version": FLEET_SCHEMA,
        "devices": [
            {
                "device": fleet.device,
                "units": [{"name": unit.name, "hostname": unit.hostname} for unit in fleet.units],
                "outliers": [
                    {
                        "unit": found.unit.name,
                        "hostname": found.unit.hostname,
                        "differs": found.is_certain,
                        "rate": found.rate,
                        "rate_of_two": found.rate_of_two,
                        "cause": found.cause,
                        "figures": [
                            {"name": off.name, "value": off.value, "median": off.median, "unit": off.unit,
                             "ratio": off.ratio, "distance": off.distance}
                            for off in found.figures
                        ],
                    }
                    for found in fleet.outliers
                ],
                "figures": [
                    {"name": c.name, "dtype": c.dtype, "unit": c.unit, "value": c.value, "low": c.low, "high": c.high,
                     "spread": c.variation, "units": c.replicates}
                    for c in fleet.spec.characteristics
                ],
                "upgrades": [
                    {"what": up.what, "key": dict(up.key), "ratio": up.ratio, "low": up.low, "high": up.high,
                     "units": up.units}
                    for up in fleet.upgrades
                ],
            }
            for fleet in fleets
        ],
    }  # fmt: skip


def _device(fleet: DeviceFleet) -> list[Part]:
    certain = sum(found.is_certain for found in fleet.outliers)
    doubtful = len(fleet.outliers) - certain
    if len(fleet.units) < LEAST:
        told = f"{len(fleet.units)} units are too few to tell which is unlike the others; {LEAST} are needed"
    else:
        told = f"{len(fleet.units)} units; unlike their sisters: {certain} for certain, {doubtful} perhaps"
    few = [one for one in fleet.spec.characteristics if not one.name.startswith(("curve.", "cache."))]
    rows = [(found, off) for found in fleet.outliers for off in found.figures or (None,)]
    return [
        Text(told, "strong"),
        Section("Units that are not like their sisters", (table(_OFF, rows),)),
        Section("Upgrades, each unit compared with itself", (table(_UPGRADES, fleet.upgrades),)),
        Section("What the device model reaches", brief(_FIGURES, few, fleet.spec.characteristics)),
    ]


_OFF: tuple[Column[tuple[Outlier, Off | None]], ...] = (
    Column("unit", lambda row: row[0].unit.name, code=True),
    Column("host", lambda row: row[0].unit.hostname, words=True, drop=2),
    Column(
        "verdict", lambda row: Cell("differs" if row[0].is_certain else "may differ", bad=row[0].is_certain), words=True
    ),
    Column("figure", lambda row: row[1].name if row[1] else "", words=True),
    Column("here", lambda row: in_unit(row[1].value, row[1].unit) if row[1] else "", drop=3),
    Column("fleet", lambda row: in_unit(row[1].median, row[1].unit) if row[1] else "", drop=3),
    Column("off", lambda row: percent(row[1].ratio - 1, signed=True) if row[1] else "", strong=True),
    Column("spreads", lambda row: f"{row[1].distance:+.1f}".replace("-", MINUS) if row[1] else "", drop=4),
    Column("likely cause", lambda row: row[0].cause, wraps=True),
)
_UPGRADES: tuple[Column[Upgrade], ...] = (
    Column("upgrade", lambda up: up.what, wraps=True),
    Column("row", lambda up: up.name, code=True),
    Column("change", lambda up: percent(up.ratio - 1, signed=True), strong=True),
    Column("90 % interval", lambda up: f"{percent(up.low - 1, signed=True)} to {percent(up.high - 1, signed=True)}"),
    Column("units", lambda up: str(up.units)),
)
_FIGURES: tuple[Column[Characteristic], ...] = (
    Column("figure", lambda c: c.name, words=True),
    Column("dtype", lambda c: c.dtype or "", words=True, optional=True),
    Column("median", lambda c: Cell(in_unit(c.value, c.unit), c.value)),
    Column("low", lambda c: in_unit(c.low, c.unit), drop=2),
    Column("high", lambda c: in_unit(c.high, c.unit), drop=2),
    Column("spread", lambda c: figure(c.variation, percent)),
    Column("units", lambda c: str(c.replicates)),
)
