"""T3: the operations of an executed graph priced with the calibrated laws of a device, and the host's gaps before them.

The most special law of the spec prices each operation; an operation without a law keeps the roofline's price and is
counted. Times at another level of the machine follow from the resources that each operation waits for (`waits`).
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
from roofline.price import Prepared, Rates, roofs

HELD = "resident"
"""Constant of the laws that determine which part of the last-level cache holds operands between kernels."""


@dataclass(frozen=True, eq=False)
class LawPrices:
    """Prices of the operations of a graph, in its order."""

    time_s: Floats
    """Seconds of one execution; NaN where neither a law nor the roofline knows it."""
    by_law: NDArray[np.bool_]
    """True where a law priced it."""
    outside: NDArray[np.bool_]
    """True where a law priced it beyond the sizes that the law was fitted on."""
    law: NDArray[np.int_]
    """Index of the law in `HardwareSpec.calibrated`; −1 without a law."""
    low_s: Floats
    """Lower end of the law's 90 % interval; NaN without a law or where intervals were not requested."""
    high_s: Floats


def law_prices(prepared: Prepared, spec: HardwareSpec, otherwise: Floats, *, with_intervals: bool = False) -> LawPrices:
    """Price every operation; `otherwise` has the times of operations without a law. Raises ValueError where the spec
    has laws but not the facts that they need."""
    time_s, priced = np.array(otherwise, dtype=float), np.zeros(len(otherwise), dtype=bool)
    outside, number = np.zeros(len(otherwise), dtype=bool), np.full(len(otherwise), -1)
    low_s, high_s = np.full((2, len(otherwise)), np.nan)
    prices = LawPrices(time_s, priced, outside, number, low_s, high_s)
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
        time_s[places] = law.time_s(dims, facts)
        priced[places], outside[places] = True, law.outside(dims)
        number[places] = known[key]
        if with_intervals:
            low_s[places], high_s[places] = law.interval(dims, facts)
    return prices


def host_gap_s(graph: OpGraph, spec: HardwareSpec) -> Floats | None:
    """Seconds of the host before each operation, by the law for the pass's dtype or another; None without a law."""
    law = _law_for(graph, spec)
    return None if law is None else law.time_s(gap_dims(graph.ops), facts_of(spec))


def host_gap_interval(graph: OpGraph, spec: HardwareSpec) -> tuple[Floats, Floats] | None:
    """Ends of the 90 % interval of each gap in seconds; None without a law."""
    law = _law_for(graph, spec)
    return None if law is None else law.interval(gap_dims(graph.ops), facts_of(spec))


def _law_for(graph: OpGraph, spec: HardwareSpec) -> FittedLaw | None:
    laws = {law.dtype: law for law in _laws(spec)} if spec.calibrated else {}
    if not laws or not graph.ops:
        return None
    return laws.get(graph.workload.dtype, next(iter(laws.values())))


def _laws(spec: HardwareSpec) -> list[FittedLaw]:
    """The spec's laws of gaps; older specs have other constants, and then the host's cost of an operation is used."""
    names = {constant.name for constant in law_named(HOST_GAP).constants(facts_of(spec), "")}
    return [law for law in spec.calibrated if law.kind == HOST_GAP and set(law.values) == names]


def least_gap_s(spec: HardwareSpec, kernels: int) -> Floats | None:
    """Seconds before each kernel of a compiled pass, shape (kernels,): no module is entered, and the loop that calls
    the kernels stays in the caches. None without a law or kernels."""
    law = next(iter(_laws(spec)), None) if spec.calibrated else None
    nothing = dict.fromkeys(law_named(HOST_GAP).dims, np.zeros(kernels))
    return None if law is None or not kernels else law.time_s(nothing, facts_of(spec))


def waits(prepared: Prepared, peaks: Peaks, kind: str) -> Floats:
    """Share of each operation's time that follows each probe of `PROBES`, shape (operations, probes).

    The executed roofline splits an operation's time: bytes of main memory follow the probe "memory"; arithmetic and
    bytes of caches, which depend on the clock of the cores, "product"; on a CPU (`kind`) the fixed cost of an
    operation, the interpreter's and the dispatcher's, "host". The rest (a link, the fixed cost of a GPU's kernel) keeps
    the calibration's level. A row is 0 where a peak that the operation needs is unknown.
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
    levels_s = moved * rates.level_s
    fixed = peaks.host_s_per_op.value if peaks.host_s_per_op and kind == "cpu" else 0.0
    cores_s = matrix_s + vector_s + levels_s[:, :-1].sum(axis=1)
    parts = np.stack((levels_s[:, -1], cores_s, np.full(len(ops), fixed)), axis=1)
    whole = parts.sum(axis=1) + link_s
    shares = np.divide(parts, whole[:, None], out=np.zeros_like(parts), where=whole[:, None] > 0)
    return np.where(np.isnan(whole)[:, None], 0.0, shares)


def level_factors(shares: Floats, levels: Mapping[str, LevelRatio]) -> Floats:
    """Factor on the time of each operation; a probe without a ratio is at the calibration's level."""
    return np.asarray(1 + shares @ np.array([ratio_of(levels, probe) - 1 for probe in PROBES]))


def ratio_of(levels: Mapping[str, LevelRatio], probe: str) -> float:
    """The ratio of a probe; 1 where it has none."""
    return levels[probe].ratio if probe in levels else 1.0
