"""The answers of scenarios: a section, a table and a plot of each curve, and the same as JSON."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from calibrate.report.document import Cell, Column, Figure, Lines, Part, Section, Text, chart, figure, printable, table
from calibrate.scenarios.quantity import Quantity
from calibrate.scenarios.scenario import Answer, Curve, Row
from roofline.units import MINUS, UNKNOWN, bytes_per_s, dtype, in_unit, number, percent, plus_minus, seconds, size

SHOWN: Mapping[str, Callable[[float | None], str]] = {
    "s": seconds,
    "B": size,
    "B/s": bytes_per_s,
    "J": partial(in_unit, unit="J"),
    "×": lambda value: UNKNOWN if value is None else f"{value:.3g}".replace("-", MINUS),
    "": number,
}
"""Unit of a curve -> how its figures are printed."""


def scenario_sections(answers: Sequence[Answer]) -> list[Section]:
    """Return a section for each scenario of a run."""
    return [_section(i, answer) for i, answer in enumerate(answers)]


def _section(i: int, answer: Answer) -> Section:
    title = f"{printable(answer.name)}: {printable(answer.model)} {dtype(answer.dtype)}"
    if answer.refused is not None:
        return Section(title, (Text(f"not measured: {answer.refused}", "bad"),), name=f"scenario-{i}")
    curves = (part for k, curve in enumerate(answer.curves) for part in _curve(f"scenario-{i}-{k}", curve))
    parts: list[Part] = [
        Text(answer.question, "strong"),
        Lines(answer.findings),
        Lines([f"no result: {line}" for line in answer.lost], tone="warning"),
        *curves,
    ]
    return Section(title, parts, name=f"scenario-{i}")


def _curve(name: str, curve: Curve) -> Iterator[Part]:
    show = SHOWN[curve.unit]
    columns: tuple[Column[Row], ...] = (
        Column(curve.x, lambda row: _x(row.x), words=any(isinstance(row.x, str) for row in curve.rows)),
        Column("of", lambda row: row.series, words=True, optional=True),
        Column("measured", lambda row: figure(row.quantity.measured, show), strong=True),
        Column("±", lambda row: _half(row.quantity), drop=2),
        Column("predicted", lambda row: figure(row.quantity.predicted, show), optional=True),
        Column("error", lambda row: figure(row.quantity.error, partial(percent, signed=True)), optional=True, drop=1),
        Column("", lambda row: row.note, words=True, optional=True, drop=3),
    )
    parts = (
        Figure(name, chart("scenario_plots.curve_chart", curve, SHOWN[curve.unit])),
        Text(curve.note, "faint"),
        table(columns, curve.rows),
    )
    yield Section(curve.title, parts, pair=True)


def _x(x: float | str) -> Cell:
    return Cell(x) if isinstance(x, str) else figure(x, number)


def _half(quantity: Quantity) -> Cell:
    if quantity.half is None or quantity.measured is None:
        return Cell(UNKNOWN)
    low, high = quantity.measured - quantity.half, quantity.measured + quantity.half
    return Cell(plus_minus(low, high, quantity.measured) if quantity.half else "", quantity.half)


def scenarios_json(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the answers for ``--json``, in SI units; nothing where a run has no scenarios."""
    return {"scenarios": [_answer_json(answer) for answer in answers]} if answers else {}


def _answer_json(answer: Answer) -> dict[str, Any]:
    return {
        "scenario": answer.name,
        "model": answer.model,
        "dtype": answer.dtype,
        "options": dict(answer.options),
        "refused": answer.refused,
        "findings": list(answer.findings),
        "lost": list(answer.lost),
        "curves": [
            {
                "title": curve.title,
                "x": curve.x,
                "unit": curve.unit,
                "rows": [_row_json(row) for row in curve.rows],
            }
            for curve in answer.curves
        ],
    }


def _row_json(row: Row) -> dict[str, Any]:
    of = row.quantity
    known = of.measured is not None and of.half is not None
    return {
        "x": row.x,
        "series": row.series,
        "measured": of.measured,
        "low": (of.measured or 0.0) - (of.half or 0.0) if known else None,
        "high": (of.measured or 0.0) + (of.half or 0.0) if known else None,
        "predicted": of.predicted,
        "error": of.error,
        "note": row.note,
    }
