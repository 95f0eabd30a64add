"""The report of `calibrate --engine`: an engine's constants on one server, what stays undetermined, and the errors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.report.document import Column, Document, Facts, Lines, Section, Text, figure, table
from calibrate.serving.from_results import FittedServer
from roofline.laws.fitted import Estimate
from roofline.serving.predict import OWN_NAMES, PART_NAMES
from roofline.serving.surface import LAUNCHING, PROMPTS, TERMS
from roofline.units import number, percent, seconds

NAMES = PART_NAMES | OWN_NAMES | {PROMPTS: "tokens of prompts: products, experts", LAUNCHING: OWN_NAMES["launch"]}


@dataclass(frozen=True)
class _Row:
    estimate: Estimate
    prior: float

    def show(self, value: float | None) -> str:
        return seconds(value) if self.estimate.unit == "s" else f"× {value:.3g}"

    @property
    def interval(self) -> str:
        return f"{self.show(self.estimate.low)} to {self.show(self.estimate.high)}"


COLUMNS: tuple[Column[_Row], ...] = (
    Column("constant", lambda row: NAMES[row.estimate.name], words=True),
    Column("expected", lambda row: figure(row.prior, row.show)),
    Column("fitted", lambda row: figure(row.estimate.value, row.show), strong=True),
    Column("90 %", lambda row: row.interval, words=True),
    Column("", lambda row: "" if row.estimate.determined else "not determined", words=True),
)


def server_document(path: Path, fitted: FittedServer, notes: list[str]) -> Document:
    """The report for a terminal or a file."""
    before, after = (np.abs(fitted.errors(constants)) for constants in (fitted.priors, fitted.fit.constants))
    rows = [_Row(estimate, float(prior)) for estimate, prior in zip(fitted.estimates, fitted.priors, strict=True)]
    open_ones = [NAMES[row.estimate.name] for row in rows if not row.estimate.determined]
    facts = [
        ("fitted to", f"{number(len(fitted.seen))} times"),
        ("mean error before", percent(float(before.mean()))),
        ("mean error after, of the fitted times", percent(float(after.mean()))),
        ("expected of other models", f"± {percent(fitted.fit.deviation)} (one standard deviation)"),
        ("written to", str(path)),
    ]
    which = "all of them" if len(open_ones) == len(rows) else ", ".join(open_ones)
    undetermined = f"not determined by these times alone: {which}; what was expected of them weighs more"
    return Document(
        f"Constants of {fitted.engine.name}",
        (
            Facts(facts),
            Lines([f"note: {note}" for note in notes], tone="warning"),
            Text(undetermined if open_ones else "", "strong"),
            Section("Constants", (table(COLUMNS, rows),)),
            Text("a factor is the time of the engine's kernels ÷ that by the device's laws", "faint"),
        ),
    )


def server_json(path: Path, fitted: FittedServer, notes: list[str]) -> dict[str, Any]:
    """The same for ``--json``, in SI units."""
    errors, before = fitted.errors(fitted.fit.constants), fitted.errors(fitted.priors)
    return {
        "engine": str(path),
        "name": fitted.engine.name,
        "constants": [
            {**estimate.model_dump(), "prior": float(prior)}
            for estimate, prior in zip(fitted.estimates, fitted.priors, strict=True)
        ],
        "undetermined": [estimate.name for estimate in fitted.estimates if not estimate.determined],
        "deviation": fitted.fit.deviation,
        "times": [
            {"name": one.name, "measured_s": one.time_s, "error": float(error), "error_before": float(first),
             "terms": dict(zip(TERMS, map(float, one.terms), strict=True))}
            for one, error, first in zip(fitted.seen, errors, before, strict=True)
        ],
        "notes": notes,
    }  # fmt: skip
