"""Rows of another tool's table, cleaned by rule: what each rule took out is counted, and a wrong unit is refused.

    a size that is missing, not positive or not whole    taken out
    a latency that is no number, zero, negative, infinite    taken out
    a whole kind a thousand times off                    refused: "latency looks like µs, not ms"
    faster than the device can be, or hopelessly slow    taken out
    the same row twice; a shape measured repeatedly      one row, the median of the times

Example: ``clean(parsed, "gemm_perf.parquet", limits)`` → (frame, {"repeat of a row above": 9})
"""

import numpy as np
import pandas as pd

from calibrate.exchange import physics
from calibrate.exchange.parsed import Parsed, without
from calibrate.exchange.physics import Limits
from profiler.record.kernel_table import DIMS, TEXTS
from profiler.record.run import RequestError

SIZE = "size missing, not positive or not whole"
NOT_FINITE = "latency is no finite number"
NOT_POSITIVE = "latency zero or negative"
TOO_FAST = "faster than the device can be"
TOO_SLOW = "absurdly slow"
EXACT = "repeat of a row, equal in all"
REPEATED = "repeat of a shape, median taken"

REQUIRED: dict[str, tuple[str, ...]] = {
    "matmul": ("m", "n", "k"),
    "prefill_attention": ("batch", "heads", "kv_heads", "query", "kv", "head_dim", "kv_bytes"),
    "decode_attention": ("batch", "heads", "kv_heads", "query", "kv", "head_dim", "kv_bytes"),
    "experts": ("tokens", "hidden", "inner", "topk", "experts", "tp", "ep", "weight_bits"),
    "collective": ("ranks", "per_node", "bytes"),
    "module": ("tokens", "tp"),
    "norm": ("elements", "bytes_read"),
    "pointwise": ("elements", "bytes_read"),
    "embedding": ("elements", "bytes_read"),
}
"""Sizes that a kernel of a kind has: whole and positive."""

MAY_BE_ZERO = ("context", "window", "skew")

UNITS = ("ns", "µs", "ms", "s")


def clean(parsed: Parsed, file: str, limits: Limits) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows that can be true, and how many each rule took out, the importer's own among them.

    Raises RequestError, one line: a wrong unit, or nothing left.
    """
    dropped = dict(parsed.dropped)
    frame = without(parsed.frame, _bad_sizes(parsed.frame), SIZE, dropped)
    frame = without(frame, ~np.isfinite(frame["time_s"]), NOT_FINITE, dropped)
    frame = without(frame, frame["time_s"] <= 0, NOT_POSITIVE, dropped)
    _require_rows(frame, file, dropped)
    work = physics.work_of(frame)
    _refuse_wrong_unit(frame, physics.least_s(frame, work, limits), file, parsed.unit)
    fast, slow = physics.impossible(frame, work, limits)
    taken = pd.Series(slow & ~fast, index=frame.index)
    frame = without(frame, pd.Series(fast, index=frame.index), TOO_FAST, dropped)
    frame = without(frame, taken[frame.index], TOO_SLOW, dropped)
    _require_rows(frame, file, dropped)
    return _without_repeats(frame, dropped), dropped


def _bad_sizes(frame: pd.DataFrame) -> pd.Series:
    bad = pd.Series(False, index=frame.index)
    for kind, names in REQUIRED.items():
        of_kind = frame["kind"] == kind
        if of_kind.any():
            sizes = frame.loc[of_kind, list(names)]
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
        if steps := physics.unit_steps(of_kind.to_numpy()):
            place = min(max(UNITS.index(unit) - steps, 0), len(UNITS) - 1)
            much = f"{np.median(of_kind):.2g} times what the work takes at least"
            looks = f"looks like {UNITS[place]}, not {unit}" if UNITS[place] != unit else f"is not in {unit}"
            raise RequestError(
                f"{file}: latency {looks} (half of the {kind} rows take over {much}); convert it to {unit} first"
            )


def _without_repeats(frame: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    """One row a shape, in the order of their first ones."""
    shape = [*(name for name in TEXTS if name != "group"), *DIMS]
    again, exact = frame.duplicated(shape), frame.duplicated([*shape, "time_s"])
    if not again.any():
        return frame
    # the median of all of them: where a tool rounds its times, equal ones are repeats as good as others
    median = frame.groupby(shape, dropna=False, sort=False)["time_s"].transform("median")
    frame = without(frame.assign(time_s=median), exact, EXACT, dropped)
    return without(frame, again[frame.index], REPEATED, dropped)
