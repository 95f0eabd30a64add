"""The report of a device's history, and its JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibrate.regression.compare import Key
from calibrate.regression.history import LEAST_NIGHTS, Change, Night, versions_of
from calibrate.regression.statistics import Array
from calibrate.report.document import Column, Document, Facts, Figure, Lines, Part, Section, Text, chart, figure, table
from roofline.units import percent

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


def _signed(value: float | None) -> str:
    return percent(value, signed=True)
