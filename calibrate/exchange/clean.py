"""Cleans the rows of another tool's table by rules; counts the rows that each rule drops, and refuses a wrong unit.

    a size that is missing, not positive or not whole    dropped
    a latency that is no number, zero, negative, infinite    dropped
    a whole kind a thousand times off                    refused: "latency looks like µs, not ms"
    faster than the device can be, or hopelessly slow    dropped
    the same row twice; a shape measured repeatedly      one row with the median of the times

A time is compared with the least that its work takes, ``max(flops / peak, bytes / bandwidth, 2 µs)``. Warm caches,
tails and poor kernels put the ratio between 0.5 and some hundreds, its median over a table between 1 and 10 (H200,
A100: 1.9 to 8.5 over GEMM, attention, experts); a wrong unit moves all ratios by a thousand.

Example: ``clean(parsed, "gemm_perf.parquet", limits)`` → (frame, {"repeat of a row above": 9})
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from calibrate.exchange.tables import Floats, Parsed, without
from profiler.record.kernel_table import DIMS, TEXTS
from profiler.record.run import RequestError
from roofline.dtypes import BOUNDED_BY
from roofline.hardware.spec import HardwareSpec
from roofline.laws.kinds import KINDS
from roofline.laws.work import Work

SIZE = "size missing, not positive or not whole"
NOT_FINITE = "latency is no finite number"
NOT_POSITIVE = "latency zero or negative"
TOO_FAST = "faster than the device can be"
TOO_SLOW = "absurdly slow"
EXACT = "repeat of a row, equal in all"
REPEATED = "repeat of a shape, median taken"

MAY_BE_ZERO = ("context", "window", "skew")

UNITS = ("ns", "µs", "ms", "s")

ANY_RATE = 1e17
"""FLOP/s that no single device reaches: the fastest announced has 2e16, in 4 bits."""
ANY_BANDWIDTH = 1e15
"""Bytes/s that no memory or cache reaches."""
SLACK = 1.2
"""Rate ÷ datasheet peak that is possible: clocks can be above those that the peak is quoted at."""
LAUNCH_S = 2e-6
"""Seconds of a kernel that has almost no work."""
LINK = 5e10
"""Bytes/s of a typical link between devices; they go from 1e10 (a network) to 4.5e11 (NVLink)."""
SHORTEST_S, LONGEST_S = 1e-7, 1e3
"""No kernel is shorter (a hundred or two cycles), and nobody measures one for a quarter of an hour."""
TYPICAL_RATE, TYPICAL_BANDWIDTH = 5e14, 2e12
"""FLOP/s and bytes/s that are assumed for an unknown device."""
SLOW, FAST = 150.0, 0.1
"""Median ratios that mean a wrong unit: far from both 1 to 10 and a thousand times that."""
HOPELESS = 2e4
"""Ratio that no kernel has in a single row (the worst of the tables above: 2,400)."""


@dataclass(frozen=True)
class Limits:
    """Peaks of a device's datasheet, as far as they are known."""

    rates: dict[str, float]
    """FLOP/s of the matrix units by dtype; empty where they are not known."""
    bandwidth_bytes_per_s: float | None

    def rate(self, dtype: str, cached_bytes: float) -> float:
        """The most FLOP/s that kernels of a dtype reach; weights in few bits may run at any of the device's rates."""
        if not self.rates:
            return ANY_RATE
        own = self.rates.get(BOUNDED_BY.get(dtype, dtype))
        if own is None:
            return max(self.rates.values())
        cached = self.rates.get("float8_e4m3fn", 0.0) if cached_bytes == 1 else 0.0
        return max(own, cached)


def limits_of(spec: HardwareSpec | None) -> Limits:
    """Peaks of a device's datasheet; empty where no file describes the device."""
    sheet = spec.datasheet if spec is not None else None
    if sheet is None:
        return Limits({}, None)
    rates = {dtype: figure.value for dtype, figure in sheet.matrix.items()}
    return Limits(rates, sheet.levels[-1].bandwidth.value if sheet.levels else None)


def clean(parsed: Parsed, file: str, limits: Limits) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows that can be true, and how many rows each rule dropped, the importer's own rules among them.

    Raises RequestError, one line, for a wrong unit or where no row is left.
    """
    dropped = dict(parsed.dropped)
    frame = without(parsed.frame, _bad_sizes(parsed.frame), SIZE, dropped)
    frame = without(frame, ~np.isfinite(frame["time_s"]), NOT_FINITE, dropped)
    frame = without(frame, frame["time_s"] <= 0, NOT_POSITIVE, dropped)
    _require_rows(frame, file, dropped)
    work = _work_of_rows(frame)
    least_s = _least_s(frame, work, limits)
    _refuse_wrong_unit(frame, least_s, file, parsed.unit)
    time_s = frame["time_s"]
    fast = (time_s < SHORTEST_S) | (work.flops / time_s > np.minimum(SLACK * _rates(frame, limits), ANY_RATE))
    fast |= (work.bytes + work.link_bytes) / time_s > ANY_BANDWIDTH
    slow = ((time_s > LONGEST_S) | (time_s > HOPELESS * least_s)) & ~fast
    frame = without(frame, fast, TOO_FAST, dropped)
    frame = without(frame, slow[frame.index], TOO_SLOW, dropped)
    _require_rows(frame, file, dropped)
    return _without_repeats(frame, dropped), dropped


def _work_of_rows(frame: pd.DataFrame) -> Work:
    """Work of every row; zero where the kind has no formula, or a size that the formula needs is missing."""
    flops, moved, sent = (np.zeros(len(frame)) for _ in range(3))
    for (kind, dtype), rows in frame.groupby(["kind", "dtype"], dropna=False).indices.items():
        row = KINDS.get(str(kind))
        if row is None or row.work is None:
            continue
        places = np.zeros(len(rows))
        if row.category is not None:
            places = pd.Categorical(frame["op"].iloc[rows], categories=row.category[1]).codes.astype(float)
            rows, places = rows[places >= 0], places[places >= 0]
        columns = {name: frame[name].iloc[rows].to_numpy(dtype=float) for name in DIMS}
        dims = {name: column for name, column in columns.items() if not np.isnan(column).all()}
        if row.category is not None:
            dims[row.category[0]] = places
        try:
            work = row.work(dims, str(dtype))
        except KeyError:  # no row has a size that the formula needs, such as a module of an unknown model
            continue
        for column, amount in ((flops, work.flops), (moved, work.bytes), (sent, work.link_bytes)):
            column[rows] = np.nan_to_num(amount)
    return Work(flops, moved, sent)


def _bad_sizes(frame: pd.DataFrame) -> pd.Series:
    bad = pd.Series(False, index=frame.index)
    for row in KINDS.values():
        of_kind = frame["kind"] == row.name
        if of_kind.any():
            sizes = frame.loc[of_kind, list(row.sizes)]
            whole = np.isfinite(sizes) & (sizes > 0) & (np.floor(sizes) == sizes)
            bad[of_kind] = ~whole.all(axis=1)
    for name in MAY_BE_ZERO:
        bad |= (frame[name] < 0) | np.isinf(frame[name])
    bad |= (frame["kv_heads"] > frame["heads"]) | (frame["topk"] > frame["experts"])
    return bad


def _require_rows(frame: pd.DataFrame, file: str, dropped: dict[str, int]) -> None:
    if frame.empty:
        why = "; ".join(f"{rule}: {count}" for rule, count in dropped.items())
        raise RequestError(f"{file}: no row is left after cleaning ({why}); nothing to import")


def _refuse_wrong_unit(frame: pd.DataFrame, least_s: np.ndarray, file: str, unit: str) -> None:
    ratios = pd.Series(frame["time_s"].to_numpy() / least_s)
    for kind, of_kind in ratios.groupby(frame["kind"].to_numpy()):
        if steps := unit_steps(of_kind.to_numpy()):
            place = min(max(UNITS.index(unit) - steps, 0), len(UNITS) - 1)
            looks = f"looks like {UNITS[place]}, not {unit}" if UNITS[place] != unit else f"is not in {unit}"
            raise RequestError(
                f"{file}: latency {looks} (the median {kind} row takes {np.median(of_kind):.2g} times the least that "
                f"its work needs); convert it to {unit} first"
            )


def unit_steps(ratios: Floats) -> int:
    """Number of factors of a thousand by which a table's times are too long; 0 where the unit is right.

    `ratios` are the times over the least that the work takes.
    """
    middle = float(np.median(ratios))
    if FAST < middle < SLOW:
        return 0
    steps = round(float(np.log(middle / np.sqrt(SLOW * FAST)) / np.log(1000)))
    return steps or (1 if middle >= SLOW else -1)


def _without_repeats(frame: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    """Return one row for each shape, in the order in which shapes first occur."""
    shape = [*(name for name in TEXTS if name != "group"), *DIMS]
    again, exact = frame.duplicated(shape), frame.duplicated([*shape, "time_s"])
    if not again.any():
        return frame
    # Equal times count in the median too: a tool may round its times.
    median = frame.groupby(shape, dropna=False, sort=False)["time_s"].transform("median")
    frame = without(frame.assign(time_s=median), exact, EXACT, dropped)
    return without(frame, again[frame.index], REPEATED, dropped)


def _rates(frame: pd.DataFrame, limits: Limits) -> Floats:
    """The most FLOP/s that each row's dtype can reach."""
    pairs = list(zip(frame["dtype"], frame["kv_bytes"], strict=True))
    known = {pair: limits.rate(*pair) for pair in dict.fromkeys(pairs)}
    return np.array([known[pair] for pair in pairs], dtype=float)


def _least_s(frame: pd.DataFrame, work: Work, limits: Limits) -> Floats:
    """The least seconds that each row's work takes with cold caches."""
    rates = _rates(frame, limits) if limits.rates else np.full(len(frame), TYPICAL_RATE)
    bandwidth = limits.bandwidth_bytes_per_s or TYPICAL_BANDWIDTH
    roofs = np.maximum(work.flops / rates, work.bytes / bandwidth)
    return np.asarray(np.maximum(np.maximum(roofs, work.link_bytes / LINK), LAUNCH_S))
