"""The report of `predict --find`: the best configurations, the trade of throughput against latency, what cannot run."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

import plotly.graph_objects as go

from calibrate.report import theme
from calibrate.report.document import Cell, Column, Document, Facts, Figure, Lines, Part, Section, Text, figure, table
from calibrate.report.prediction import between
from calibrate.report.theme import plain
from roofline.serving.find import Offer, Search
from roofline.units import dtype, magnitude, number, percent, seconds

BEST = 10
"""Rows of the table of the best."""

COLUMNS: tuple[Column[Offer], ...] = (
    Column("device", lambda offer: offer.place.device, words=True),
    Column("dtype", lambda offer: dtype(offer.place.dtype), words=True),
    Column("TP·PP·EP", lambda offer: f"{offer.place.tensor}·{offer.place.stages}·{offer.place.experts}", words=True),
    Column("devices", lambda offer: figure(offer.place.devices, number), drop=6),
    Column("batch", lambda offer: figure(offer.batch, number)),
    Column("tokens/s each", lambda offer: Cell(magnitude(offer.per_device), offer.per_device), strong=True),
    Column("90 %", lambda offer: _span(offer.per_device_interval), words=True, drop=5),
    Column("per cost", lambda offer: _cost(offer), optional=True, drop=1),
    Column("TTFT", lambda offer: figure(offer.ttft_s)),
    Column("90 % ", lambda offer: between(*offer.ttft_interval_s), words=True, drop=4),
    Column("TPOT", lambda offer: figure(offer.tpot_s), strong=True),
    Column("90 %  ", lambda offer: between(*offer.tpot_interval_s), words=True, drop=3),
)
ROW = ("device", "dtype", "tensor", "stages", "experts", "devices", "batch", "tokens_per_s", "tokens_per_s_per_device",
       "tokens_per_cost", "ttft_s", "ttft_low_s", "ttft_high_s", "tpot_s", "tpot_low_s", "tpot_high_s", "replayed",
       "meets")  # fmt: skip


def found_document(title: str, found: Search, notes: Sequence[str]) -> Document:
    """The report for a terminal or a file."""
    target = found.target
    limits = [f"{name} ≤ {seconds(time_s)}" for name, time_s in (("TTFT", target.ttft_s), ("TPOT", target.tpot_s))
              if time_s < math.inf]  # fmt: skip
    facts = [
        (
            "target",
            f"{' and '.join(limits)}, prompts of {target.prompt_tokens}, {target.output_tokens} tokens of output",
        ),
        ("searched", f"{found.asked:,} configurations; {len(found.estimates):,} can run"),
        ("replayed", f"the {len(found.replayed)} best of the estimates, of which {len(found.meeting)} meet the target"),
    ]
    parts: list[Part] = [Facts(facts), Lines([f"note: {note}" for note in notes], tone="warning")]
    without = [f"{name}: {percent(share)}" for name, share in found.bare.items() if share > 0.1]
    parts.append(Lines(without, "Kernels' time without a law of its own, at most", tone="warning"))
    parts.append(Text(_headline(found), "strong"))
    firsts = {offer.place: offer for offer in reversed(found.meeting)}
    best = sorted(firsts.values(), key=lambda offer: -offer.per_device)[:BEST]
    words = "the best batch of each way to divide the model; tokens/s of each device"
    parts.append(Section("Most tokens for each device", (Text(words, "faint"), table(COLUMNS, best))))
    of_devices = {offer.place.device: offer for offer in reversed(found.meeting)}
    if len(dict.fromkeys(offer.place.device for offer in found.estimates)) > 1 and of_devices:
        each = sorted(of_devices.values(), key=lambda offer: -offer.per_device)
        parts.append(Section("The best on each device that meets the target", (table(COLUMNS, each),)))
    if (cheap := found.best_for_cost) is not None:
        parts.append(Section("Most tokens for the cost", (table(COLUMNS, [cheap]),)))
    words = "no other configuration has both more tokens for each device and a shorter time between tokens"
    parts.append(Section("Throughput against latency", (Text(words, "faint"), table(COLUMNS, found.front))))
    parts.append(Figure("front", lambda: _plot(found), "Points are estimates, the line joins what no other one beats."))
    left = sorted(found.left_out.items(), key=lambda item: -item[1])
    parts.append(Lines([f"{count:,}: {why}" for why, count in left if count], "Configurations that cannot run"))
    return Document(title, parts)


def _headline(found: Search) -> str:
    if not found.meeting:
        near = min(found.replayed or found.estimates, key=lambda offer: offer.tpot_s, default=None)
        if near is None:
            return "no configuration can run; see below"
        return f"no configuration meets the target; the shortest TPOT is {seconds(near.tpot_s)}: {_named(near)}"
    best = found.meeting[0]
    whole = best.tpot_interval_s[1] <= found.target.tpot_s and best.ttft_interval_s[1] <= found.target.ttft_s
    doubt = "" if whole else "; its intervals reach beyond the target"
    return f"best: {_named(best)}, {magnitude(best.per_device)} tokens/s a device{doubt}"


def _named(offer: Offer) -> str:
    place = offer.place
    return f"{place.devices} × {place.device}, {dtype(place.dtype)}, batch {offer.batch}"


def _span(ends: tuple[float, float]) -> str:
    return f"{magnitude(ends[0])} to {magnitude(ends[1])}"


def _cost(offer: Offer) -> Cell:
    return Cell(magnitude(offer.per_cost) if offer.per_cost is not None else "", offer.per_cost)


def _plot(found: Search) -> go.Figure | None:
    """Tokens a second of each device over TPOT: estimates as points, the replayed front as a line."""
    if not found.estimates:
        return None
    drawn = theme.style(go.Figure(), "TPOT", "tokens/s a device", height=460, showlegend=True)
    for i, name in enumerate(dict.fromkeys(offer.place.device for offer in found.estimates)):
        offers = [offer for offer in found.estimates if offer.place.device == name]
        x, y = [offer.tpot_s for offer in offers], [offer.per_device for offer in offers]
        marker = {"size": 4, "opacity": 0.5}
        theme.points(drawn, name, x, y, [_hover(offer) for offer in offers], i, marker=marker, mode="markers")
    front = sorted(found.front, key=lambda offer: offer.tpot_s)
    style = {"color": theme.DARK, "width": 1.8}
    x, y = [offer.tpot_s for offer in front], [offer.per_device for offer in front]
    theme.points(drawn, "replayed, not beaten", x, y, [_hover(offer) for offer in front], line=style,
                 marker={"color": theme.DARK, "size": 7})  # fmt: skip
    every = [*found.estimates, *front]
    theme.log_axis(drawn, "x", [offer.tpot_s for offer in every], seconds)
    theme.log_axis(drawn, "y", [offer.per_device for offer in every], magnitude)
    if found.target.tpot_s < math.inf:
        theme.upright(drawn, found.target.tpot_s, "target", theme.RED, "dash")
    return drawn


def _hover(offer: Offer) -> str:
    place = offer.place
    degrees = f"TP {place.tensor}, PP {place.stages}, EP {place.experts}"
    return plain(f"{_named(offer)}, {degrees}: TTFT {seconds(offer.ttft_s)}, TPOT {seconds(offer.tpot_s)}")


def _row(offer: Offer) -> dict[str, Any]:
    (first_low, first_high), (low, high) = offer.ttft_interval_s, offer.tpot_interval_s
    known = offer.replayed  # an estimate has no interval
    values = (
        *asdict(offer.place).values(), offer.place.devices, offer.batch, offer.tokens_per_s, offer.per_device,
        offer.per_cost, offer.ttft_s, first_low if known else None, first_high if known else None, offer.tpot_s,
        low if known else None, high if known else None, offer.replayed, offer.meets if known else None,
    )  # fmt: skip
    return dict(zip(ROW, values, strict=True))


def found_json(title: str, found: Search, notes: Sequence[str]) -> dict[str, Any]:
    """The search for ``--json``, in SI units; `best` and `best_for_cost` are null where nothing meets the target."""
    best, cheap = found.best, found.best_for_cost
    target = {name: None if value == math.inf else value for name, value in asdict(found.target).items()}
    return {
        "title": title,
        "target": target,
        "configurations": found.asked,
        "can_run": len(found.estimates),
        "left_out": dict(found.left_out),
        "without_law": dict(found.bare),
        "best": None if best is None else _row(best),
        "best_for_cost": None if cheap is None else _row(cheap),
        "meeting": [_row(offer) for offer in found.meeting],
        "front": [_row(offer) for offer in found.front],
        "notes": list(notes),
    }


def found_csv(found: Search, file: TextIO) -> None:
    """Write a row for each configuration that can run: a replay where there is one, else the estimate."""
    replayed = {(offer.place, offer.batch): offer for offer in found.replayed}
    writer = csv.DictWriter(file, fieldnames=ROW)
    writer.writeheader()
    writer.writerows(_row(replayed.get((offer.place, offer.batch), offer)) for offer in found.estimates)
