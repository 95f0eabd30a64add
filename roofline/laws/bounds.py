"""Between which times a kernel lies whatever a law says of it: its work at the device's peaks, and a multiple of that.

A law is arithmetic with fitted constants, and far from the kernels that it was fitted to a term can grow without
reason. So its time is held between two bounds that need nothing but the kernel's work and the datasheet:

    floor   = the longest of FLOPs / peak, bytes that no cache can hold / memory, sent bytes / link, over `FASTER`
    ceiling = most · (roofline + overhead)

`roofline` is the longest of FLOPs / peak, bytes / memory and sent bytes / link, with all bytes from main memory, on as
many of the device's units as the kernel has pieces (`Work.pieces`): a long sequence of one head may occupy one alone.
`overhead` is the shortest of the measured kernels: what a call costs however little it does. `most` comes from the
measured kernels, too: the largest of measured ÷ (roofline + overhead) among them, times `HEADROOM`. Where the measured
kernels themselves are faster than the floor (a table that skips work, a datasheet that is too low), the floor is
lowered until they are not. A measured kernel counts only as far as the law agrees with it, so that single bad rows
loosen nothing. Both bounds grow with each size as the work does, so a law that grows still does between
them.

Example: ``Bounds.of(work, facts, "bfloat16", measured_s, law_s).held(law_s, work, facts, "bfloat16")``
"""

from typing import Self

import numpy as np
from pydantic import Field

from roofline.laws.law import Facts, Floats
from roofline.laws.work import Work, datasheet_s
from roofline.record import Record

FASTER = 1.2
"""Rate over the datasheet's peaks at which a device may run for a short time (boost clocks), or because a peak was
measured: the largest bound that most laws give a rate."""
HEADROOM = 10.0
"""Between the measured kernels' largest multiple of the roofline and the largest that is believed of others. On ten
splits of each of 22 public tables, groups not seen reach up to 7.4 times the largest multiple of those seen in all but
two tables (there up to 28: kernels of a kind of which some splits see none). At 3, single kernels of an H200's decode
attention were held at a ninth of their time."""


class Bounds(Record):
    """Bounds of all kernels of one kind and dtype on one device."""

    overhead_s: float = Field(gt=0, allow_inf_nan=False)
    """Seconds that a call takes however little it does."""
    most: float = Field(ge=1, allow_inf_nan=False)
    """Multiple of (roofline + overhead) that no kernel takes longer than."""
    least: float = Field(default=1.0, ge=0, le=1)
    """Part of the floor that every kernel takes at least; 1 unless the measured kernels show less."""

    @classmethod
    def of(cls, work: Work, facts: Facts, dtype: str, measured_s: Floats, law_s: Floats) -> Self:
        """From measured kernels, their work and what the law says of them; at least one kernel, times in seconds."""
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
        """A law's seconds, held between floor and ceiling."""
        ceiling_s = self.most * (roofline_s(work, facts, dtype) + self.overhead_s)
        return np.asarray(np.clip(law_s, self.least * floor_s(work, facts, dtype), ceiling_s))


def floor_s(work: Work, facts: Facts, dtype: str) -> Floats:
    """Seconds that every kernel takes: `FASTER` than the datasheet's peaks, operands in caches as far as they fit."""
    held = np.minimum(work.bytes, facts.cache_bytes * work.kernels)
    outside = Work(work.flops, work.bytes - held, work.link_bytes)
    return datasheet_s(outside, facts, dtype) / FASTER


def roofline_s(work: Work, facts: Facts, dtype: str) -> Floats:
    """Seconds by the datasheet on as many units as there are pieces."""
    return np.asarray(datasheet_s(work, facts, dtype) * facts.units / np.minimum(facts.units, work.pieces))
