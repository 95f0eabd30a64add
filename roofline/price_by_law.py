"""T3: the operations of an executed graph priced with the calibrated laws of a device, and the host's gaps before them.

Each operation is priced once, by the most special law that the spec has for it; what no law describes keeps the
roofline's price, and is counted. Times at another level of the machine than the one that the laws were fitted at follow
from what each operation waits for (`waits`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roofline.caches import level_bytes
from roofline.graph.op import OpGraph
from roofline.hardware.facts import facts_of
from roofline.hardware.spec import HardwareSpec, Peaks
from roofline.law_inputs import by_law, cold_shares, gap_dims, law_inputs
from roofline.laws.fitted import PROBES, FittedLaw, LevelRatio
from roofline.laws.kinds import HOST_GAP, law_named
from roofline.laws.law import Floats
from roofline.price import Prepared, Rates, op_roofs

HELD = "resident"
"""Constant of laws: the fitted share of the last-level cache that holds operands from one kernel to the next."""


@dataclass(frozen=True, eq=False)
class LawPrices:
    """Prices of the operations of a graph, in its order."""

    time_s: Floats
    """Seconds of one execution; NaN where neither a law nor the roofline knows it."""
    by_law: NDArray[np.bool_]
    """Whether a law priced it."""
    outside: NDArray[np.bool_]
    """Whether that law was fitted on other sizes."""
    law: NDArray[np.int_]
    """Which of the spec's laws priced it, by position in `HardwareSpec.calibrated`; −1 where none did."""
    low_s: Floats
    """Lower end of the law's 90 % interval; NaN where no law priced it, or intervals were not asked for."""
    high_s: Floats


def law_prices(prepared: Prepared, spec: HardwareSpec, otherwise: Floats, *, with_intervals: bool = False) -> LawPrices:
    """Price every operation, with the time `otherwise` where no law of `spec` prices it.

    Raises ValueError where the spec has laws but not the facts that they need.
    """
    size = len(otherwise)
    priced, outside = np.zeros((2, size), dtype=bool)
    low_s, high_s = np.full((2, size), np.nan)
    prices = LawPrices(np.array(otherwise, dtype=float), priced, outside, np.full(size, -1), low_s, high_s)
    known = {(law.kind, law.dtype): i for i, law in enumerate(spec.calibrated)}
    if not known:
        return prices
    facts = facts_of(spec)
    inputs = law_inputs(prepared, facts.cache_bytes)
    for key, places in by_law(inputs, known).items():
        law, rows = spec.calibrated[known[key]], [row for place in places if (row := inputs[place]) is not None]
        names = set.intersection(*(set(row.dims) for row in rows))
        dims = {name: np.array([row.dims[name] for row in rows]) for name in names}
        if (held := law.values.get(HELD, 1.0)) < 1:
            dims["cold"] = cold_shares(prepared.touches, held * facts.cache_bytes)[places]
        prices.time_s[places] = law.time_s(dims, facts)
        priced[places], outside[places], prices.law[places] = True, law.outside(dims), known[key]
        if with_intervals:
            low_s[places], high_s[places] = law.interval(dims, facts)
    return prices


def host_gap_s(graph: OpGraph, spec: HardwareSpec) -> Floats | None:
    """Seconds of the host before each operation, by the law for the pass's dtype or another; None without a law."""
    law = _law_for(graph, spec)
    return None if law is None else law.time_s(gap_dims(graph.ops), facts_of(spec))


def host_gap_interval(graph: OpGraph, spec: HardwareSpec) -> tuple[Floats, Floats] | None:
    """Ends, in seconds, between which 90 % of gaps like the one before each operation lie; None without a law."""
    law = _law_for(graph, spec)
    return None if law is None else law.interval(gap_dims(graph.ops), facts_of(spec))


def _law_for(graph: OpGraph, spec: HardwareSpec) -> FittedLaw | None:
    laws = {law.dtype: law for law in _gap_laws(spec)} if graph.ops else {}
    return laws.get(graph.workload.dtype, next(iter(laws.values()), None))


def _gap_laws(spec: HardwareSpec) -> list[FittedLaw]:
    """Laws of the host's gaps; those of an older spec had other constants and are left out."""
    if not spec.calibrated:
        return []
    names = {constant.name for constant in law_named(HOST_GAP).constants(facts_of(spec), "")}
    return [law for law in spec.calibrated if law.kind == HOST_GAP and set(law.values) == names]


def least_gap_s(spec: HardwareSpec, kernels: int) -> Floats | None:
    """Seconds before each of the kernels of a compiled pass, shape (kernels,): no module is entered, and the loop that
    calls them is never long out of the caches."""
    law = next(iter(_gap_laws(spec)), None)
    nothing = dict.fromkeys(law_named(HOST_GAP).dims, np.zeros(kernels))
    return None if law is None or not kernels else law.time_s(nothing, facts_of(spec))


def waits(prepared: Prepared, peaks: Peaks, kind: str) -> Floats:
    """Share of each operation's time that follows each probe, shape (operations, probes), probes as in `PROBES`.

    By its executed roofline on a device of `kind`: bytes of main memory follow the probe "memory"; arithmetic and bytes
    of caches, which run at the clock of the cores, the probe "product"; on a CPU the fixed cost of an operation, which
    the interpreter and the dispatcher take, the probe "host". A link, and the fixed cost of a GPU's kernel, follow no
    probe and keep the level of the calibration. A row is 0 where a peak that the operation needs is not known.
    """
    ops = prepared.graph.ops
    if not ops:
        return np.zeros((0, len(PROBES)))
    rates, moved = Rates.of(ops, peaks), level_bytes(prepared.touches, peaks, "in situ")
    matrix_s, vector_s, _, link_s = op_roofs(ops, rates, moved)
    level_s = moved * rates.level_s
    fixed = peaks.host_s_per_op.value if peaks.host_s_per_op and kind == "cpu" else 0.0
    computing_s = matrix_s + vector_s + level_s[:, :-1].sum(axis=1)
    parts = np.stack((level_s[:, -1], computing_s, np.full(len(ops), fixed)), axis=1)
    whole = parts.sum(axis=1) + link_s
    shares = np.divide(parts, whole[:, None], out=np.zeros_like(parts), where=whole[:, None] > 0)
    return np.where(np.isnan(whole)[:, None], 0.0, shares)


def level_factors(shares: Floats, levels: Mapping[str, LevelRatio]) -> Floats:
    """Factor for the time of each operation; a probe without a ratio is at the calibration's level."""
    return np.asarray(1 + shares @ np.array([ratio_of(levels, probe) - 1 for probe in PROBES]))


def ratio_of(levels: Mapping[str, LevelRatio], probe: str) -> float:
    """The ratio of a probe; 1 where there is none."""
    return levels[probe].ratio if probe in levels else 1.0
