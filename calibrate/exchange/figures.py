"""Figures of one device for an export, measured or from its datasheet, and the files that an export makes.

An exporter asks a `Ledger` for each figure, so that no number gets into a file without its source. That provenance is
written as comments, as a field, or as a JSON file beside one that has no room for it.

Example::

    source = source_of(load_device("nvidia-h200-sxm"), "datasheet", version="0.1.0", now=now)
    ledger = Ledger(source, "GenZ")
    flops = ledger.sixteen_bit() / 1e12
    Export((File.text("genz.py", commented(ledger.provenance(folded="…")) + text),), ledger.left_out)
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pandas as pd

from calibrate.exchange.op_tables import LawPrice, Price, RooflinePrice
from profiler.record.folder import RunFolder
from roofline.hardware.spec import Figure, HardwareSpec, Level, Link, Peaks, doubted, far_below
from roofline.price_by_law import law_notes

Origin = Literal["measured", "datasheet", "calibrated"]
"""Peaks that were measured, or that the datasheet has; "calibrated": laws price kernels, peaks are measured."""

BETWEEN = ("nvlink", "infinity-fabric", "ici", "neuronlink", "pcie")
"""Links between the devices of one node, best first; devices without a link of their own use PCIe."""
FP8 = ("float8_e4m3fn", "float8_e4m3fnuz")
VALID = {
    "measured": "rates of the fastest large calls on cold operands; small kernels and fixed costs are not in them",
    "datasheet": "dense peaks of the datasheet, which no kernel reaches",
    "calibrated": "times of kernels by laws fitted to measurements; rates are those of the fastest large calls",
}
SIDECAR = ".provenance.json"


@dataclass(frozen=True, slots=True)
class Taken:
    """The conditions under which figures were measured; empty where only the spec is known."""

    device: str | None = None
    """The driver's name for the device."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of torch, the driver, CUDA, …"""
    clocks: str | None = None
    """Range of the clocks that were read while measuring."""
    date: str | None = None
    """UTC, ISO 8601."""
    run: str | None = None
    """Folder of the run."""


@dataclass(frozen=True, slots=True)
class Source:
    """Everything that an exporter reads."""

    spec: HardwareSpec
    peaks: Peaks
    origin: Origin
    price: Price
    version: str
    """Version of roofcal."""
    now: datetime
    """Time of the export."""
    taken: Taken = Taken()

    @property
    def name(self) -> str:
        """Name of the entry in the other tool, which none of its own entries has."""
        return f"{self.spec.name}-roofcal-{self.origin}"

    @property
    def doubts(self) -> dict[str, str]:
        """Figures and laws that may not be the device's, and why."""
        laws = law_notes(self.spec.calibrated) if self.origin == "calibrated" else []
        return doubted(self.peaks) | far_below(self.peaks) | {f"law {i}": note for i, note in enumerate(laws, 1)}

    @property
    def main(self) -> Level:
        """Main memory."""
        return self.peaks.levels[-1]

    @property
    def between(self) -> tuple[str, Link] | None:
        """The link to other devices of the node, with its name; None where it has no figure of this origin.

        PCIe counts only where the datasheet has no better link: a single device measures its copies to the host, which
        devices with a link of their own do not use among themselves.
        """
        listed = self.spec.datasheet.links if self.spec.datasheet else {}
        name = next((name for name in BETWEEN if name in listed or (name != "pcie" and name in self.peaks.links)), None)
        return (name, self.peaks.links[name]) if name and name in self.peaks.links else None


def source_of(
    spec: HardwareSpec,
    origin: Origin | None,
    *,
    version: str,
    now: datetime,
    taken: Taken | None = None,
    has_times: bool = True,
) -> Source:
    """Everything that an exporter reads; `has_times`: the format has times of kernels, which laws price.

    Without an `origin` that is the spec's laws where the format has times, else measured peaks. Raises ValueError, one
    line, where the spec has no such laws or peaks: other ones are never taken in silence.
    """
    if origin is None:
        origin = "calibrated" if spec.calibrated and has_times else "measured"
    if origin == "calibrated" and not has_times:
        raise ValueError("this format has no times of kernels that laws could price; leave --peaks calibrated out")
    if origin == "calibrated" and not spec.calibrated:
        raise ValueError(f"{spec.name} has no calibrated laws; calibrate it, or leave --peaks calibrated out")
    if origin == "datasheet":
        peaks, advice = spec.datasheet, "leave --peaks datasheet out"
    elif origin == "calibrated":
        peaks, advice = spec.measured or spec.datasheet, "name the device in its spec"
    else:
        peaks = spec.measured
        advice = "export its datasheet with --peaks datasheet, or measure it: python -m profiler hardware"
    if peaks is None:
        raise ValueError(f"{spec.name} has no {origin} peaks; {advice}")
    roofline = RooflinePrice(peaks)
    price = LawPrice(spec, roofline) if origin == "calibrated" else roofline
    return Source(spec, peaks, origin, price, version, now, taken or Taken())


def taken_of(folder: RunFolder) -> Taken:
    """The conditions of the figures of a run on disk. Raises RequestError where its measurements are damaged."""
    machine = folder.run.environment
    return Taken(
        device=machine.device,
        versions=machine.versions,
        clocks=_clocks(folder),
        date=folder.run.started,
        run=str(folder.path),
    )


def _clocks(folder: RunFolder) -> str | None:
    """Range of the clocks in the measurements of a device; None where none could be read."""
    if folder.content != "hardware":
        return None
    from profiler.record.hardware_table import read_measurements  # Arrow takes long to load

    windows = [window for measurement in read_measurements(folder.path) for window in measurement.windows]
    ranges = []
    for name, clock in (("SM", "sm_clock_hz"), ("memory", "memory_clock_hz"), ("CPU", "cpu_clock_hz")):
        if mhz := [getattr(window, clock) / 1e6 for window in windows if getattr(window, clock) is not None]:
            ranges.append(f"{name} {min(mhz):,.0f}–{max(mhz):,.0f} MHz, median {statistics.median(mhz):,.0f}")
    return "; ".join(ranges) or None


class Ledger:
    """Gives the figures of a source, in SI units, and notes each one that was taken with where it is from."""

    def __init__(self, source: Source, tool: str) -> None:
        self._source = source
        self._tool = tool
        self._figures: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}
        """Maps a field of the other tool to the reason why it has no figure, and what that tool does then."""
        self.sixteen = next((name for name in ("bfloat16", "float16") if name in source.peaks.matrix), "")
        """The 16-bit dtype that is exported: bfloat16 where its rate is known, else float16."""

    def sixteen_bit(self) -> float:
        """Matrix FLOP/s of 16-bit inputs. Raises ValueError where it is not known."""
        rate = self.matrix_or_none(self.sixteen)
        if rate is None:
            raise ValueError(self.refusal("matrix peak of bfloat16"))
        return rate

    def matrix_or_none(self, *dtypes: str) -> float | None:
        """Matrix FLOP/s of the first of the dtypes that is known."""
        for dtype in dtypes:
            if figure := self._source.peaks.matrix.get(dtype):
                return self._take(f"matrix {dtype}", "FLOP/s", figure)
        return None

    def vector_or_none(self, dtype: str) -> float | None:
        """Vector FLOP/s of a dtype, where it is known."""
        figure = self._source.peaks.vector.get(dtype)
        return self._take(f"vector {dtype}", "FLOP/s", figure) if figure else None

    def bandwidth(self) -> float:
        """Bytes/s of main memory."""
        return self._take(f"bandwidth {self._source.main.name}", "B/s", self._source.main.bandwidth)

    def capacity(self) -> float:
        """Bytes of main memory."""
        level, source = self._source.main, f"{self._source.origin} spec"
        return self._take(f"capacity {level.name}", "B", Figure(value=level.capacity_bytes, source=source))

    def on_chip(self) -> float:
        """Bytes of the last level before main memory. Raises ValueError where it is not known."""
        caches, chip = self._source.peaks.levels[:-1], self._source.spec.chip
        if caches:
            figure = Figure(value=caches[-1].capacity_bytes, source=f"capacity of {caches[-1].name}")
        elif chip is not None and chip.last_level_cache_bytes is not None:
            figure = chip.last_level_cache_bytes
        else:
            raise ValueError(self.refusal("size of an on-chip cache"))
        return self._take("on-chip cache", "B", figure)

    def between(self) -> float | None:
        """Bytes/s to another device of the node, in one direction."""
        between = self._source.between
        return None if between is None else self._take(f"link {between[0]}", "B/s", between[1].bandwidth)

    def between_latency(self) -> float | None:
        """Seconds of a message to another device of the node."""
        between = self._source.between
        if between is None or between[1].latency_s is None:
            return None
        return self._take(f"latency {between[0]}", "s", between[1].latency_s)

    def link(self, name: str) -> float | None:
        """Bytes/s of a link, in one direction: "pcie", "network" (out of the node), …"""
        link = self._source.peaks.links.get(name)
        return None if link is None else self._take(f"link {name}", "B/s", link.bandwidth)

    def chip(self, name: str, unit: str) -> float | None:
        """A figure of the chip's datasheet: units, clocks, power."""
        figure = getattr(self._source.spec.chip, name, None)
        return self._take(f"chip {name}", unit, figure) if isinstance(figure, Figure) else None

    def leave_out(self, field: str, why: str) -> None:
        """Note a field of the other tool that has no figure."""
        self.left_out[field] = why

    def refusal(self, what: str) -> str:
        """Return one line that says which figure the tool needs and the source lacks."""
        return f"{self._source.spec.name} has no {self._source.origin} {what}, which {self._tool} needs; measure it"

    def provenance(self, folded: str, valid: str | None = None, priced: bool = False) -> dict[str, Any]:
        """The source of every number.

        Args: `folded`, factors of the tool that are divided out; `valid`, the range of sizes; `priced`, whether the
        file has predicted times.
        """
        source, taken = self._source, self._source.taken
        entries = {
            "by": f"roofcal {source.version}",
            "exported": source.now.isoformat(timespec="seconds"),
            "device": source.spec.name,
            "driver_name": taken.device,
            "uuid": source.spec.uuid,
            "peaks": source.origin,
            "measured_on": taken.date,
            "run": taken.run,
            "versions": taken.versions or None,
            "clocks": taken.clocks,
            "valid": "; ".join(filter(None, (VALID[source.origin], valid))),
            "priced_by": source.price.name if priced else None,
            "sixteen_bit": self.sixteen or None,
            "folded": folded,
            "figures": self._figures,
            "left_out": self.left_out or None,
            "doubts": self._source.doubts or None,
        }
        return {name: value for name, value in entries.items() if value is not None}

    def _take(self, name: str, unit: str, figure: Figure) -> float:
        ends = {end: getattr(figure, end) for end in ("low", "high") if getattr(figure, end) is not None}
        self._figures[name] = {"value": figure.value, "unit": unit, "source": figure.source, **ends}
        return figure.value


@dataclass(frozen=True, slots=True)
class File:
    """One file, not yet written."""

    path: str
    """The path within the export."""
    content: bytes

    @classmethod
    def text(cls, path: str, content: str) -> "File":
        return cls(path, content.encode("utf-8"))


@dataclass(frozen=True, slots=True)
class Export:
    """All files of one export, the main one first."""

    files: tuple[File, ...]
    left_out: dict[str, str]
    """Fields without a figure, as in `Ledger.left_out`."""


def plain(text: str) -> str:
    """Return one line that XML and JSON can hold: no control character, no lone surrogate, no space at its ends; never
    empty."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split())) or "unnamed"


def json_text(content: Any) -> str:
    """JSON as it is written to files. Raises ValueError where a number is not finite."""
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def sidecar(path: str, provenance: dict[str, Any]) -> File:
    """Provenance beside a file that has no room for it."""
    return File.text(path + SIDECAR, json_text(provenance))


def commented(provenance: dict[str, Any]) -> str:
    """Provenance as comment lines of Python or YAML."""
    return "".join(f"# {line}\n" for line in json_text(provenance).splitlines())


def csv_text(table: Mapping[str, np.ndarray]) -> str:
    """A header, and a line for each row; NaN is an empty cell."""
    return pd.DataFrame(dict(table)).to_csv(index=False, lineterminator="\n")
