"""Times of operations at another level of the machine than the one that their laws were fitted at.

An operation's time is split by what its executed roofline waits for: bytes of main memory follow the probe "memory";
arithmetic and bytes of caches, which run at the clock of the cores, the probe "product"; on a CPU the fixed cost of an
operation, which the interpreter and the dispatcher take, the probe "host". What follows no probe (a link, the fixed
cost of a GPU's kernel) keeps the level of the calibration.

Example: ``law_s * level_factors(waits(prepared, spec.measured, spec.kind), levels)`` → seconds of each operation
"""

from collections.abc import Mapping

import numpy as np

from roofline.caches import level_bytes
from roofline.hardware.spec import Peaks
from roofline.laws.law import Floats
from roofline.level import PROBES, LevelRatio
from roofline.price import Prepared, Rates, roofs


def waits(prepared: Prepared, peaks: Peaks, kind: str) -> Floats:
    """Share of each operation's time that follows each probe, shape (operations, probes), probes as in `PROBES`.

    A row adds up to 1 where nothing else is waited for, and is 0 where a peak that the operation needs is not known.
    `kind`: of the device, as `HardwareSpec.kind`.
    """
    ops = prepared.graph.ops
    if not ops:
        return np.zeros((0, len(PROBES)))
    rates, moved = Rates.of(ops, peaks), level_bytes(prepared.touches, peaks, "in situ")
    matrix_flops, vector_flops, link_bytes, messages = (
        np.array([getattr(op, name) for op in ops], dtype=float)
        for name in ("matrix_flops", "vector_flops", "link_bytes", "messages")
    )
    matrix_s, vector_s, _, link_s = roofs(rates, matrix_flops, vector_flops, moved, link_bytes, messages)
    each_s = moved * rates.level_s
    fixed = peaks.host_s_per_op.value if peaks.host_s_per_op and kind == "cpu" else 0.0
    parts = np.stack(
        (each_s[:, -1], matrix_s + vector_s + each_s[:, :-1].sum(axis=1), np.full(len(ops), fixed)), axis=1
    )
    whole = parts.sum(axis=1) + link_s
    shares = np.divide(parts, whole[:, None], out=np.zeros_like(parts), where=whole[:, None] > 0)
    return np.where(np.isnan(whole)[:, None], 0.0, shares)


def level_factors(shares: Floats, levels: Mapping[str, LevelRatio]) -> Floats:
    """What the time of each operation is multiplied by; a probe without a ratio is at the calibration's level."""
    return np.asarray(1 + shares @ np.array([ratio_of(levels, probe) - 1 for probe in PROBES]))


def ratio_of(levels: Mapping[str, LevelRatio], probe: str) -> float:
    """1 where the probe has none."""
    return levels[probe].ratio if probe in levels else 1.0
