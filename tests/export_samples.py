"""A made-up GPU with odd figures, so that a wrong unit cannot hide, and what roofcal itself computes from its peaks."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from calibrate.exchange.figures import Source, Taken, source_of
from roofline.graph.op import Kind
from roofline.hardware.spec import Chip, Figure, HardwareSpec, Level, Link, Peaks
from roofline.price import roofline

NOW = datetime(2026, 5, 9, 10, 11, 12, tzinfo=UTC)
TAKEN = Taken(
    device="Example GPU 77",
    versions={"torch": "2.13.0", "driver": "580.65"},
    clocks="SM 1,410–1,980 MHz, median 1,605",
    date="2026-05-08T09:00:00+00:00",
    run="results/example/1",
)


def figure(value: float) -> Figure:
    return Figure(value=value, source=f"measured: {value!r}", low=value * 0.99, high=value * 1.01)


def peaks(**changes: Any) -> Peaks:
    given: dict[str, Any] = {
        "matrix": {
            "bfloat16": figure(701.3e12),
            "float16": figure(689.7e12),
            "float8_e4m3fn": figure(1301.9e12),
            "int8": figure(1299.1e12),
        },
        "vector": {"float32": figure(51.7e12)},
        "levels": (
            Level(name="L2", capacity_bytes=57e6, bandwidth=figure(9.7e12)),
            Level(name="HBM", capacity_bytes=77.7e9, bandwidth=figure(3.337e12)),
        ),
        "links": {
            "pcie": Link(bandwidth=figure(51.3e9)),
            "nvlink": Link(bandwidth=figure(371.9e9), latency_s=figure(6.3e-6)),
            "network": Link(bandwidth=figure(43.1e9)),
        },
    }
    return Peaks(**{**given, **changes})


def bare() -> Peaks:
    """No more than a 16-bit peak and a main memory."""
    return peaks(matrix={"bfloat16": figure(300e12)}, levels=peaks().levels[1:], links={})


def spec(measured: Peaks | None = None, **changes: Any) -> HardwareSpec:
    given: dict[str, Any] = {
        "name": "example-77",
        "kind": "cuda",
        "chip": Chip(units=figure(131), unit="SM", boost_clock_hz=figure(1.977e9), power_w=figure(690)),
        "datasheet": peaks(matrix={"bfloat16": figure(900e12)}),
        "measured": measured or peaks(),
        "uuid": "GPU-7777",
    }
    return HardwareSpec(**{**given, **changes})


def source(measured: Peaks | None = None, **changes: Any) -> Source:
    return source_of(spec(measured, **changes), None, version="9.8.7", now=NOW, taken=TAKEN)


@dataclass(frozen=True)
class Work:
    """One kernel, as `roofline` wants it."""

    matrix_flops: float
    vector_flops: float = 0.0
    dtype: str = "bfloat16"
    link: str | None = None
    link_bytes: float = 0.0
    messages: float = 0.0
    path: str = ""
    beside: str | None = None
    count: float = 1.0
    kind: Kind = Kind.TRANSFER
    dims: Mapping[str, int] = field(default_factory=dict)


def seconds(of: Peaks, flops: float, bytes_: float, dtype: str = "bfloat16") -> float:
    """What roofcal says of a kernel whose bytes come from main memory."""
    level_bytes = np.zeros((1, len(of.levels)))
    level_bytes[0, -1] = bytes_
    return float(roofline([Work(flops, dtype=dtype)], level_bytes, of).time_s[0])


def message_seconds(of: Peaks, link: str, bytes_: float, messages: float = 0.0) -> float:
    """What roofcal says of a transfer."""
    work = Work(0.0, link=link, link_bytes=bytes_, messages=messages)
    return float(roofline([work], np.zeros((1, len(of.levels))), of).time_s[0])


def provenance_in_comments(text: str) -> dict[str, Any]:
    """The provenance that `commented` put at the head of a file."""
    head = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
    provenance: dict[str, Any] = json.loads("\n".join(line.removeprefix("# ") for line in head))
    return provenance
