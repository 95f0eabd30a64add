"""The figures that one export takes, the ones it leaves out, and the provenance that both make up.

An exporter asks a `Ledger` for each figure, so that no number gets into a file without its source beside it.

Example::

    ledger = Ledger(source, "genz")
    flops = ledger.sixteen_bit() / 1e12
    ledger.provenance(folded="…")
"""

from typing import Any

from calibrate.exchange.export.source import NETWORK, Source
from roofline.hardware.spec import Figure

FP8 = ("float8_e4m3fn", "float8_e4m3fnuz")
VALID = {
    "measured": "rates of the fastest large calls on cold operands; small kernels and fixed costs are not in them",
    "datasheet": "dense peaks of the datasheet, which no kernel reaches",
}


class Ledger:
    """Figures of a source, noted as they are taken. Rates in FLOP/s and bytes/s, as everywhere here."""

    def __init__(self, source: Source, tool: str) -> None:
        self._source = source
        self._tool = tool
        self._figures: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}
        """Field of the other tool -> why it is not there, and what that tool does then."""
        self.sixteen = next((name for name in ("bfloat16", "float16") if name in source.peaks.matrix), "")
        """The 16-bit dtype that the device is exported with: bfloat16 where it is known."""

    def sixteen_bit(self) -> float:
        """Matrix FLOP/s of 16-bit inputs. Raises ValueError where it is not known."""
        return self.matrix(self.sixteen or "bfloat16")

    def matrix(self, dtype: str) -> float:
        """Matrix FLOP/s. Raises ValueError where it is not known."""
        found = self.matrix_or_none(dtype)
        if found is None:
            raise ValueError(self.refusal(f"matrix peak of {dtype}"))
        return found

    def matrix_or_none(self, *dtypes: str) -> float | None:
        """Matrix FLOP/s of the first of the dtypes that is known."""
        for dtype in dtypes:
            if figure := self._source.peaks.matrix.get(dtype):
                return self._take(f"matrix {dtype}", "FLOP/s", figure)
        return None

    def bandwidth(self) -> float:
        """Bytes/s of main memory."""
        return self._take(f"bandwidth {self._source.main.name}", "B/s", self._source.main.bandwidth)

    def capacity(self) -> float:
        """Bytes of main memory."""
        level = self._source.main
        return self._take(
            f"capacity {level.name}", "B", Figure(value=level.capacity_bytes, source=f"{self._source.origin} spec")
        )

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
        """Bytes/s to another device of the node, one direction."""
        found = self._source.between
        return None if found is None else self._take(f"link {found[0]}", "B/s", found[1].bandwidth)

    def between_latency(self) -> float | None:
        """Seconds of a message to another device of the node."""
        found = self._source.between
        if found is None or found[1].latency_s is None:
            return None
        return self._take(f"latency {found[0]}", "s", found[1].latency_s)

    def network(self) -> float | None:
        """Bytes/s that one device can send out of its node."""
        link = self._source.peaks.links.get(NETWORK)
        return None if link is None else self._take("link network", "B/s", link.bandwidth)

    def link(self, name: str) -> float | None:
        """Bytes/s of a link by its name."""
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
        """Why this cannot be exported, in one line."""
        return f"{self._source.spec.name} has no {self._source.origin} {what}, which {self._tool} needs; measure it"

    def provenance(self, folded: str, valid: str | None = None, priced: bool = False) -> dict[str, Any]:
        """Where every number is from. `valid`: more about the range; `priced`: the file has predicted times."""
        source, taken = self._source, self._source.taken
        found = {
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
        }
        return {name: value for name, value in found.items() if value is not None}

    def _take(self, name: str, unit: str, figure: Figure) -> float:
        ends = {end: getattr(figure, end) for end in ("low", "high") if getattr(figure, end) is not None}
        self._figures[name] = {"value": figure.value, "unit": unit, "source": figure.source, **ends}
        return figure.value
