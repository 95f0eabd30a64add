"""The reports of a campaign: how far its shards are, what they have measured together, which units are not like their
sisters, what their device model reaches, and what upgrades did; and their JSON.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from calibrate.fleet.outliers import LEAST, Off, Outlier, Unit
from calibrate.fleet.upgrades import Upgrade
from calibrate.report.document import Cell, Column, Document, Facts, Lines, Part, Section, Text, brief, figure, table
from profiler.record.campaign import FINAL, Found, Merged, Shard
from roofline.hardware.spec import Characteristic, HardwareSpec
from roofline.units import MINUS, UNKNOWN, duration, in_unit, percent

CAMPAIGN_SCHEMA = 1
"""Version of the JSON documents; keys are only ever added."""


def status_document(merged: Merged, now: datetime) -> Document:
    """A row for each shard, and what is missing."""
    columns: tuple[Column[Shard], ...] = (
        Column("shard", lambda shard: shard.record.name, words=True),
        Column("state", lambda shard: _state(shard, now), words=True),
        Column("parts", lambda shard: f"{_ended(shard)} of {len(shard.own)}"),
        Column("time", lambda shard: figure(_spent_s(shard), _duration)),
        Column("host", lambda shard: shard.record.hostname, words=True, drop=2),
        Column("device", lambda shard: shard.record.unit, code=True, drop=1),
        Column("last", lambda shard: _last(shard), wraps=True),
    )
    parts: list[Part] = [Text(_headline(merged, now), "strong"), *_doubts(merged)]
    parts.append(Section("Shards", (table(columns, merged.shards),)))
    parts.append(Section("Parts without a result", (table(_PARTS, _unfinished(merged)),)))
    return Document(_title(merged), parts)


def status_json(merged: Merged, now: datetime) -> dict[str, Any]:
    """The same as a document."""
    return {
        "schema_version": CAMPAIGN_SCHEMA,
        "is_whole": merged.is_whole,
        "shards": [
            {
                "shard": shard.record.name,
                "state": shard.state(now),
                "ended": _ended(shard),
                "parts": len(shard.own),
                "spent_s": _spent_s(shard),
                "hostname": shard.record.hostname,
                "unit": shard.record.unit,
                "started": shard.record.started,
            }
            for shard in merged.shards
        ],
        "absent": merged.absent,
        "left_out": merged.left_out,
        "parts": [_part_json(found) for found in merged.parts],
    }


def collected_document(merged: Merged, runs: Mapping[str, Mapping[str, Any]], scores: Sequence[Any] = ()) -> Document:
    """Return the report of a campaign: conditions, parts, held-out kernels, and predicted against measured times.

    Args: run.json of each part that has one; `kinds` of the part "held-out", as `calibrate --json` has them.
    """
    parts: list[Part] = [
        *_doubts(merged),
        Section("Conditions", _conditions([run for run in runs.values() if run])),
        Section("Parts", (table(_PARTS, merged.parts),)),
        Section("Kernels that a fit of the other half had not seen", (table(_KINDS, scores),)),
    ]
    told = "Predictions come from the device's figures and laws alone; no model was used to fit them."
    rows = list(merged.cells.values())
    passes: list[Part] = [Text(told), table(_CELLS, rows)] if rows else [Text("No pass has been measured.")]
    parts.append(Section("Predicted against measured", passes))
    return Document(_title(merged), parts)


def collected_json(merged: Merged, runs: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a document: `passes` as `run --json` has them, each with its part, shard, unit and run."""
    return {
        "schema_version": CAMPAIGN_SCHEMA,
        "is_whole": merged.is_whole,
        "absent": merged.absent,
        "left_out": merged.left_out,
        "repeated": merged.repeated,
        "parts": [_part_json(found) for found in merged.parts],
        "runs": dict(runs),
        "passes": [{"key": key, **row} for key, row in merged.cells.items()],
    }


def _title(merged: Merged) -> str:
    return f"Campaign {merged.shards[0].record.plan}" if merged.shards else "Campaign"


def _headline(merged: Merged, now: datetime) -> str:
    states = [shard.state(now) for shard in merged.shards] + ["not begun"] * len(merged.absent)
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    ended = sum(_is_final(found) for found in merged.parts)
    return f"{len(states)} shards: {counts}; {ended} of {len(merged.parts)} parts have ended"


def _doubts(merged: Merged) -> list[Part]:
    lines = [f"shard {name} has not begun, or its folder is not here" for name in merged.absent]
    return [
        Lines([*lines, *merged.left_out], tone="warning"),
        Lines(merged.repeated, "Measured more than once, of which the newest counts"),
    ]


def _is_final(found: Found) -> bool:
    return found.line is not None and found.line.status in FINAL


def _unfinished(merged: Merged) -> list[Found]:
    return [found for found in merged.parts if not _is_final(found)]


def _ended(shard: Shard) -> int:
    return sum(part.name in shard.ended and shard.ended[part.name].status in FINAL for part in shard.own)


def _spent_s(shard: Shard) -> float:
    return sum(line.seconds for line in shard.ended.values())


def _state(shard: Shard, now: datetime) -> Cell:
    state = shard.state(now)
    return Cell(state, bad=state == "lost")


def _last(shard: Shard) -> str:
    line = max(shard.ended.values(), key=lambda line: line.at, default=None)
    if line is None:
        return ""
    return f"{line.part}: " + ("began" if line.is_open else line.status) + f" at {line.at[11:16]} UTC"


def _status(found: Found) -> str:
    if found.line is None:
        return "not begun"
    return "begun" if found.line.is_open else found.line.status


def _place(found: Found) -> str:
    if found.shard is not None:
        return found.shard.record.name
    return UNKNOWN if found.part.shard is None else str(found.part.shard)


def _part_json(found: Found) -> dict[str, Any]:
    line = found.line
    return {
        "part": found.part.name,
        "status": _status(found),
        "shard": found.shard.record.name if found.shard else None,
        "unit": found.unit,
        **({"seconds": line.seconds, "estimate_s": line.estimate_s, "run": line.run, "why": line.why} if line else {}),
    }


_PARTS: tuple[Column[Found], ...] = (
    Column("part", lambda found: found.part.name, code=True),
    Column("status", _status, words=True),
    Column("shard", _place, words=True),
    Column("device", lambda found: found.unit or "", code=True, optional=True, drop=2),
    Column("time", lambda found: figure(found.line.seconds if found.line else None, _duration)),
    Column("estimate", lambda found: figure(found.line.estimate_s if found.line else None, _duration), drop=1),
    Column("why", lambda found: (found.line.why or "") if found.line else "", wraps=True, optional=True),
)
_SCORES = ("mape", "median", "p90", "time_weighted", "bias", "coverage", "datasheet_mape", "noise")
_KINDS: tuple[Column[Mapping[str, Any]], ...] = (
    Column("kind", lambda kind: str(kind.get("kind")), words=True),
    Column("dtype", lambda kind: str(kind.get("dtype")), words=True),
    *(Column(n, lambda kind, n=n: str(kind.get(n))) for n in ("points", "scored")),  # type: ignore[misc]
    *(Column(n.replace("_", " "), lambda kind, n=n: figure(kind.get(n), percent)) for n in _SCORES),  # type: ignore[misc]
)


def _error(row: Mapping[str, Any], name: str) -> Cell:
    predicted, measured = row.get(f"predicted_{name}"), row.get(name)
    return figure(predicted / measured - 1 if predicted and measured else None, _signed)


_CELLS: tuple[Column[Mapping[str, Any]], ...] = (
    Column("model", lambda row: str(row["model"]), words=True),
    Column("mode", lambda row: str(row.get("mode", "eager")), words=True, drop=3),
    Column("phase", lambda row: str(row.get("phase")), words=True),
    *(Column(header, lambda row, n=n: str(row.get(n)))  # type: ignore[misc]
      for header, n in (("batch", "batch"), ("new", "query_tokens"), ("cached", "context_tokens"))),
    Column("wall", lambda row: figure(row.get("wall_s"))),
    Column("±", lambda row: figure(row.get("noise"), percent), drop=5),
    Column("error", lambda row: _error(row, "wall_s")),
    Column("busy", lambda row: figure(row.get("busy_s")), drop=4),
    Column("error", lambda row: _error(row, "busy_s"), drop=4),
    Column("by", lambda row: str(row.get("prediction") or UNKNOWN), words=True, drop=7),
    Column("attributed", lambda row: figure(row.get("attributed"), percent), drop=6),
    Column("status", lambda row: str(row.get("status")), words=True),
    Column("why", lambda row: str(row.get("reason") or ""), wraps=True, optional=True, drop=8),
)  # fmt: skip


def _conditions(runs: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Devices, hosts and versions of the runs, and the conditions that they had in common."""
    if not runs:
        return [Text("No part has come far enough to describe the machine.")]
    environments = [run["environment"] for run in runs]

    def every(of: Any) -> str:
        return "; ".join(dict.fromkeys(str(of(environment)) for environment in environments))

    units = list(dict.fromkeys(env.get("device_uuid") or env["hostname"] for env in environments))
    rows = [
        ("device", every(lambda env: env["device"])),
        ("units", f"{len(units)}: {', '.join(units)}"),
        ("host", every(lambda env: f"{env['cores']} cores, {env['threads']} threads, {env['os']}")),
        ("versions", every(lambda env: ", ".join(f"{name} {version}" for name, version in env["versions"].items()))),
        ("from", min(run["started"] for run in runs)),
        ("to", max(run.get("finished") or run["started"] for run in runs)),
    ]
    notes: dict[str, list[str]] = {}
    for note in (note for environment in environments for note in environment["notes"]):
        notes.setdefault(re.split(r"\d", note)[0], []).append(note)  # alike but for their figures
    lines = [same[0] + (f" (in {len(same)} parts)" if len(same) > 1 else "") for same in notes.values()]
    return [Facts(rows), Lines(lines, "Warnings", "warning")]


def _duration(value: float | None) -> str:
    return UNKNOWN if value is None else duration(value)


def _signed(value: float | None) -> str:
    return percent(value, signed=True)


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
