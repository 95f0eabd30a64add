"""Bounds of a kernel's time from its work and the device's datasheet, for terms of laws that grow without reason:

    floor   = the longest of FLOPs / peak, bytes that no cache can hold / memory, sent bytes / link, over `FASTER`
    ceiling = most · (roofline + overhead)

The roofline runs on as many of the device's units as the kernel has pieces (`Work.pieces`), `overhead` is the shortest
measured time, and `most` the largest of measured ÷ (roofline + overhead) times `HEADROOM`. Where measured kernels are
faster than the floor (a table that skips work, a datasheet that is too low), the floor is lowered to them. A measured
kernel counts only as far as the law agrees with it, so that single bad rows loosen nothing.
"""

from typing import Self

import numpy as np
from pydantic import Field

from roofline.laws.law import Facts, Floats
from roofline.laws.work import Work, datasheet_s
from roofline.record import Record

FASTER = 1.2
"""Rate ÷ datasheet's peak at which a device may run for a short time (boost clocks), or because a peak was measured:
the largest bound that most laws give a rate."""
HEADROOM = 10.0
"""Largest multiple of the roofline that is believed ÷ the largest measured one. On ten splits of each of 22 public
tables, held-out groups reach up to 7.4 times the largest multiple of those seen in all but two tables (up to 28 there:
some splits see no kernel of a kind). At 3, single kernels of an H200's decode attention were clipped to a ninth."""


class Bounds(Record):
    """The bounds of all kernels of one kind and dtype on one device."""

    overhead_s: float = Field(gt=0, allow_inf_nan=False)
    """Least time of a call in seconds."""
    most: float = Field(ge=1, allow_inf_nan=False)
    """Largest multiple of (roofline + overhead) that a kernel takes."""
    least: float = Field(default=1.0, ge=0, le=1)
    """Part of the floor that every kernel takes; 1 unless measured kernels were faster."""

    @classmethod
    def of(cls, work: Work, facts: Facts, dtype: str, measured_s: Floats, law_s: Floats) -> Self:
        """Bounds from at least one measured kernel, its work and the law's time for it; times in seconds."""
        short_s, long_s = np.minimum(measured_s, law_s), np.maximum(measured_s, law_s)
        overhead_s = float(long_s.min())
        multiples = short_s / (roofline_s(work, facts, dtype) + overhead_s)
        with np.errstate(divide="ignore"):
            over_floor = long_s / floor_s(work, facts, dtype)
        return cls(
            overhead_s=overhead_s,
            most=HEADROOM * max(float(multiples.max()), 1.0),
            least=min(1.0, float(over_floor.min())),
        )

    def held(self, law_s: Floats, work: Work, facts: Facts, dtype: str) -> Floats:
        """The law's seconds, clipped to floor and ceiling."""
        ceiling_s = self.most * (roofline_s(work, facts, dtype) + self.overhead_s)
        return np.asarray(np.clip(law_s, self.least * floor_s(work, facts, dtype), ceiling_s))


def floor_s(work: Work, facts: Facts, dtype: str) -> Floats:
    """Least seconds of a kernel: `FASTER` than the datasheet, with operands in caches as far as they fit."""
    held = np.minimum(work.bytes, facts.cache_bytes * work.kernels)
    outside = Work(work.flops, work.bytes - held, work.link_bytes)
    return datasheet_s(outside, facts, dtype) / FASTER


def roofline_s(work: Work, facts: Facts, dtype: str) -> Floats:
    """Seconds by the datasheet on as many units as the kernel has pieces."""
    return np.asarray(datasheet_s(work, facts, dtype) * facts.units / np.minimum(facts.units, work.pieces))
