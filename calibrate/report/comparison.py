"""The reports of a comparison and of a device's history, and their JSON; each view renders the same documents."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibrate.regression.compare import CONDITIONS, COVERED, Comparison, Key, Result, Verdict
from calibrate.regression.history import LEAST_NIGHTS, Change, Night, versions_of
from calibrate.regression.statistics import Array
from calibrate.report.document import (
    Cell,
    Column,
    Document,
    Facts,
    Figure,
    Lines,
    Part,
    Section,
    Text,
    chart,
    figure,
    table,
)
from calibrate.report.run_rows import label
from roofline.units import percent, precise, seconds, whole_percent

FOREST = "The rows that changed most; a whisker is the interval, the band the tolerance."
COMPARISON_SCHEMA = 1
"""Version of the JSON document; keys are only ever added."""
URGENT: tuple[Verdict, ...] = ("slower", "failed", "missing")
"""Verdicts that nobody may overlook."""


_COLUMNS: tuple[Column[Comparison], ...] = (
    Column("name", lambda row: row.name, code=True),
    Column("verdict", lambda row: Cell(row.verdict, bad=row.verdict in URGENT), words=True),
    Column("base", lambda row: figure(row.base_s, lambda value: _cost(value, row.unit)), drop=2),
    Column("new", lambda row: figure(row.new_s, lambda value: _cost(value, row.unit)), drop=3),
    Column("change", lambda row: figure(None if row.ratio is None else row.ratio - 1, _signed), strong=True),
    Column("95 % interval", lambda row: _interval(row), drop=1),
    Column("of the device", lambda row: _shares(row), optional=True, drop=4),
    Column("processes", lambda row: f"{row.replicates[0]} + {row.replicates[1]}", drop=5),
    Column("why", lambda row: row.reason, wraps=True, optional=True),
)


def comparison_document(
    result: Result, moved: Mapping[Key, Mapping[str, float]] | None = None, facts: tuple[tuple[str, str], ...] = ()
) -> Document:
    """The report: what changed first, then every row, then where the difference of each pass went."""
    urgent = result.of(*URGENT)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in result.counts.items())
    parts: list[Part] = [
        Text(counts, "bad" if urgent else "strong"),
        Lines([f"{row.name}: {row.sentence}" for row in urgent], tone="bad"),
        Facts([*facts, *_facts(result)]),
        Section(
            "Rows",
            (Figure("ratios", chart("comparison_plots.forest", result), FOREST), table(_COLUMNS, result.comparisons)),
        ),
    ]
    falls = {key: terms for key, terms in (moved or {}).items() if terms}
    for key, terms in falls.items():
        columns = (
            Column[tuple[str, float]]("term", lambda term: " + ".join(map(label, term[0].split("+"))), words=True),
            Column[tuple[str, float]]("grew by", lambda term: figure(term[1], _seconds), strong=True),
        )
        rows = sorted(terms.items(), key=lambda term: -abs(term[1]))
        name = " ".join(value for _, value in key)
        total = ("wall", sum(terms.values()))
        parts.append(Section(f"Where the difference went: {name}", (table(columns, rows, total),)))
    parts.append(Lines([f"note: {note}" for note in result.notes], tone="warning"))
    return Document(f"{result.base.name} against {result.new.name}", parts)


def comparison_json(result: Result, moved: Mapping[Key, Mapping[str, float]] | None = None) -> dict[str, Any]:
    """The same as a document that `compare --json` prints."""
    return {
        "schema_version": COMPARISON_SCHEMA,
        "base": _side(result, True),
        "new": _side(result, False),
        "tolerance": result.tolerance,
        "covered": COVERED,
        "common_ratio": result.common,
        "counts": dict(result.counts),
        "notes": list(result.notes),
        "rows": [row_json(row) for row in result.comparisons],
        "moved": [
            {"key": dict(key), "terms_s": dict(terms), "wall_s": sum(terms.values())}
            for key, terms in (moved or {}).items()
        ],
    }


def row_json(row: Comparison) -> dict[str, Any]:
    """One row; times are medians over processes, in `unit`."""
    return {
        "key": dict(row.key),
        "name": row.name,
        "verdict": row.verdict,
        "sentence": row.sentence,
        "reason": row.reason,
        "unit": row.unit,
        "base": row.base_s,
        "new": row.new_s,
        "ratio": row.ratio,
        "ratio_low": row.low,
        "ratio_high": row.high,
        "p": row.p,
        "base_share": row.base_share,
        "new_share": row.new_share,
        "replicates": list(row.replicates),
    }


def _side(result: Result, is_base: bool) -> dict[str, Any]:
    side = result.base if is_base else result.new
    return {
        "name": side.name,
        "started": side.started,
        "hostname": side.hostname,
        "rows": len(side.rows),
        "conditions": {name: side.conditions.get(name) for name in CONDITIONS},
        "versions": dict(side.versions),
    }


def _facts(result: Result) -> list[tuple[str, str]]:
    facts = [("tolerance", percent(result.tolerance))]
    if result.common is not None:
        facts.append(("all rows together", f"{_signed(result.common - 1)} (median)"))
    names = sorted(result.base.versions.keys() | result.new.versions.keys())
    pairs = [(name, result.base.versions.get(name, "none"), result.new.versions.get(name, "none")) for name in names]
    return [*facts, *((name, f"{old} → {now}") for name, old, now in pairs if old != now)]


def _cost(value: float | None, unit: str) -> str:
    """Seconds; a cost per byte or FLOP as it was before it was inverted, in digits."""
    return seconds(value) if unit == "s" or value is None else precise(value, unit)


def _signed(value: float | None) -> str:
    return percent(value, signed=True)


def _seconds(value: float | None) -> str:
    return seconds(value, signed=True)


def _interval(row: Comparison) -> str:
    if row.low is None or row.high is None:
        return ""
    return f"{_signed(row.low - 1)} to {_signed(row.high - 1)}"


def _shares(row: Comparison) -> str:
    if row.base_share is None or row.new_share is None:
        return ""
    return f"{whole_percent(row.base_share).removesuffix(' %')} → {whole_percent(row.new_share)}"


NOTE = "The rows that changed, at most twelve of them; a cross marks the first run after a change."
HISTORY_SCHEMA = 1
"""Version of the JSON document; keys are only ever added."""


def history_document(
    nights: Sequence[Night], series: Mapping[Key, Array], changes: Sequence[Change], tolerance: float
) -> Document:
    """All changes with their causes, and how each is confirmed."""
    columns: tuple[Column[Change], ...] = (
        Column("name", lambda change: change.name, code=True),
        Column("since", lambda change: nights[change.at].started[:10], words=True),
        Column("change", lambda change: figure(change.ratio - 1, _signed), strong=True),
        Column("cause", lambda change: change.cause, words=True),
        Column("state", state, words=True),
        Column("runs", lambda change: f"{change.nights[0]} + {change.nights[1]}", drop=2),
        Column("what else changed", lambda change: ", ".join(change.what), wraps=True, optional=True, drop=1),
    )
    few = len(nights) < LEAST_NIGHTS
    parts: list[Part] = [
        Text(
            f"{len(nights)} runs are too few to tell a change from noise; {LEAST_NIGHTS} are needed"
            if few
            else f"{len(changes)} changes of {len(series)} rows in {len(nights)} runs",
            "strong",
        ),
        Facts([("tolerance", percent(tolerance))]),
        Section(
            "Changes",
            (
                Figure("history", chart("comparison_plots.history", nights, series, changes), NOTE),
                table(columns, changes),
            ),
        ),
        Lines(confirmations(nights, changes), "Confirm what is open"),
    ]
    device = nights[-1].made_of.get("device", "this device") if nights else "no runs"
    return Document(f"History of {device}", parts)


def history_json(
    nights: Sequence[Night], series: Mapping[Key, Array], shared: Array, changes: Sequence[Change], tolerance: float
) -> dict[str, Any]:
    """The same as a document; times are in the rows' units, null where a run lacks the row."""
    return {
        "schema_version": HISTORY_SCHEMA,
        "tolerance": tolerance,
        "runs": [{"name": night.name, "started": night.started, "made_of": dict(night.made_of)} for night in nights],
        "machine": [math.exp(value) for value in shared],
        "rows": [
            {"key": dict(key), "times": [None if np.isnan(value) else math.exp(value) for value in logs]}
            for key, logs in series.items()
        ],
        "changes": [
            {
                "key": dict(change.key),
                "name": change.name,
                "at": change.at,
                "run": nights[change.at].name,
                "ratio": change.ratio,
                "cause": change.cause,
                "what": list(change.what),
                "state": state(change),
                "gate": change.gated,
                "runs": list(change.nights),
            }
            for change in changes
        ],
        "confirm": confirmations(nights, changes),
    }


def state(change: Change) -> str:
    """Return the gate's word, else "gradual" (a drift), "lasting", or "open" (too young to count without a gate)."""
    if change.gated in ("confirmed", "refuted"):
        return change.gated
    return "gradual" if change.gradual else "lasting" if change.lasts else "open"


def confirmations(nights: Sequence[Night], changes: Sequence[Change]) -> list[str]:
    """The commands that measure the commits of both sides against each other, where runs state them."""
    sides = [versions_of(change, nights) for change in changes if change.gated is None]
    return [f"python -m profiler gate {pair[0]} {pair[1]} --kernels FILE" for pair in dict.fromkeys(sides) if pair]
