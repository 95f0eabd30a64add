"""Compares two sides row by row: what got slower, what did not, and what nobody can say.

A side holds rows, each a kernel, a layer or a pass under one key, with one time for each process that measured it.
Verdicts:

    slower, faster   different at a false discovery rate of `LEVEL` over all rows, and by more than the tolerance
    same             the whole interval lies within the tolerance
    ambiguous        neither: too few replicates, or too noisy ones
    incomparable     measured under other conditions, so that a difference says nothing about the code
    missing, new     in one side only
    failed           there is no time on one side, for a reason that is given

Example::

    result = compare(Side("base", rows, conditions), Side("new", rows, conditions), tolerance=0.01)
    result.slower[0].sentence    # "slower by 6.1 % (4.0 to 8.2 %): 71 → 67 % of the device"
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from calibrate.regression.statistics import Array, Estimates, joined, moderated, single, unpaired
from profiler.record.run import RequestError
from roofline.units import percent, whole_percent

Verdict = Literal["slower", "faster", "same", "ambiguous", "incomparable", "missing", "new", "failed"]
VERDICTS: tuple[Verdict, ...] = (
    "slower", "failed", "missing", "ambiguous", "faster", "same", "incomparable", "new",
)  # fmt: skip
"""In the order in which they are shown."""

LEVEL = 0.05
"""False discovery rate over the rows of a comparison: of what is called slower or faster, so much may be neither."""
COVERED = 0.95
"""Coverage of the intervals that are shown."""
TOLERANCE = 0.01
"""A smaller change counts as none, unless another tolerance is asked for; pyperf's rule has the same."""

CONDITIONS = ("device", "device unit", "driver", "clock policy", "threads", "method version")
"""Conditions that have to be the same on both sides for a difference to be about the code."""

Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was timed, under a key that both sides share."""

    key: Key
    """Fields with their values, in order: (("kernel", "rms_norm"), ("shape", "8×4096"), ("dtype", "bfloat16"))."""
    seconds: tuple[float, ...] = ()
    """One positive time for each process; a cost in `unit` for what is no time. Empty where it failed."""
    share: float | None = None
    """Share of what the device could do: ideal time ÷ measured time."""
    unit: str = "s"
    failed: str | None = None
    """The reason why there is no time."""

    @property
    def name(self) -> str:
        return " ".join(value for _, value in self.key if value)


@dataclass(frozen=True)
class Side:
    """One of the two things that are compared."""

    name: str
    rows: tuple[Row, ...]
    conditions: Mapping[str, str | None] = field(default_factory=dict)
    """Of `CONDITIONS`; what is not known is None."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Software, commit and observed clocks, which name the cause of a difference."""
    hostname: str = ""
    started: str = ""
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict on one row; times are middles over processes, in the row's unit."""

    key: Key
    verdict: Verdict
    reason: str = ""
    unit: str = "s"
    base_s: float | None = None
    new_s: float | None = None
    ratio: float | None = None
    """New ÷ base; above 1 is slower."""
    low: float | None = None
    """Ends of the ratio's interval, of `COVERED` coverage; None where a side has one replicate."""
    high: float | None = None
    p: float | None = None
    """Two-sided p, adjusted for the number of rows (Benjamini and Hochberg)."""
    base_share: float | None = None
    new_share: float | None = None
    replicates: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return " ".join(value for _, value in self.key if value)

    @property
    def sentence(self) -> str:
        """The verdict with its figures, in one line."""
        if self.ratio is None:
            return f"{self.verdict}: {self.reason}" if self.reason else self.verdict
        slower = self.ratio >= 1
        size = percent(self.ratio - 1 if slower else 1 - self.ratio)
        words = {"slower": f"slower by {size}", "faster": f"faster by {size}", "same": "same"}
        text = words.get(self.verdict, f"{self.verdict}, {'slower' if slower else 'faster'} by {size}")
        if self.low is not None and self.high is not None:
            low, high = (self.low - 1, self.high - 1) if slower else (1 - self.high, 1 - self.low)
            text += f" ({percent(low).removesuffix(' %')} to {percent(high)})"
        if self.base_share is not None and self.new_share is not None:
            shares = [whole_percent(share) for share in (self.base_share, self.new_share)]
            text += f": {shares[0].removesuffix(' %')} → {shares[1]} of the device"
        return f"{text}; {self.reason}" if self.reason else text


@dataclass(frozen=True)
class Result:
    """All rows of a comparison, the most urgent first."""

    base: Side
    new: Side
    comparisons: tuple[Comparison, ...]
    tolerance: float
    common: float | None = None
    """Median ratio over all compared rows: what the machine, or a change of everything, did to all of them alike."""
    notes: tuple[str, ...] = ()
    """Caveats, a sentence each."""

    def of(self, *verdicts: Verdict) -> tuple[Comparison, ...]:
        return tuple(row for row in self.comparisons if row.verdict in verdicts)

    @property
    def slower(self) -> tuple[Comparison, ...]:
        return self.of("slower")

    @property
    def counts(self) -> dict[Verdict, int]:
        """Rows by verdict, without those that no row has."""
        counted = {verdict: len(self.of(verdict)) for verdict in VERDICTS}
        return {verdict: count for verdict, count in counted.items() if count}


def incomparable(base: Side, new: Side) -> list[str]:
    """Why the sides cannot be compared, a clause each: "driver 550.54 and 560.28"."""
    pairs = [(name, base.conditions.get(name), new.conditions.get(name)) for name in CONDITIONS]
    return [f"{name} {old or 'unknown'} and {now or 'unknown'}" for name, old, now in pairs if old != now]


def compare(
    base: Side, new: Side, *, tolerance: float = TOLERANCE, spread: float | None = None, allow: bool = False
) -> Result:
    """The verdict on every row.

    `tolerance` is a relative change that does not matter. `spread` is the relative standard deviation of a time from
    process to process, for rows with one replicate; without it, no such row is called slower or faster. Raises
    RequestError where a side is empty, no row is on both, or the conditions differ and `allow` is not set.
    """
    for side in (base, new):
        if not side.rows:
            raise RequestError(f"{side.name} holds nothing to compare; name a finished run")
        _require_unique(side)
    reasons = incomparable(base, new)
    if reasons and not allow:
        raise RequestError(
            f"{base.name} and {new.name} cannot be compared: {', '.join(reasons)}; measure both alike, or add --allow "
            "to see them side by side"
        )
    old, now = ({row.key: row for row in side.rows} for side in (base, new))
    both = [key for key in old if key in now]
    if not both:
        raise RequestError(f"{base.name} and {new.name} share no row; compare runs of the same kernels or models")
    done = _compared([old[key] for key in both], [now[key] for key in both], tolerance, spread, reasons)
    done += [Comparison(key, "missing", "not in the new side", old[key].unit) for key in old if key not in now]
    done += [Comparison(key, "new", "not in the base", now[key].unit) for key in now if key not in old]
    ratios = [row.ratio for row in done if row.ratio is not None]
    ordered = sorted(done, key=lambda row: (VERDICTS.index(row.verdict), -abs(math.log(row.ratio or 1.0)), row.name))
    return Result(base, new, tuple(ordered), tolerance, float(np.median(ratios)) if ratios else None)


def judge(
    estimates: Estimates, tolerance: float, least: float | None = None
) -> tuple[list[Verdict], Array, Array, Array]:
    """Verdict, adjusted p, and the ends of the log ratio's interval, for each kernel of a suite. A change of less than
    `least` (None: the tolerance) is neither slower nor faster."""
    from scipy.stats import false_discovery_control  # it takes longer to load than a history to make

    p = false_discovery_control(estimates.p_different()) if len(estimates.value) else np.empty(0)
    half = estimates.half(COVERED)
    low, high = estimates.value - half, estimates.value + half
    limit = math.log1p(tolerance)
    floor = limit if least is None else math.log1p(least)
    verdicts: list[Verdict] = []
    for value, chance, below, above in zip(estimates.value, p, low, high, strict=True):
        if chance <= LEVEL and abs(value) > floor:
            verdicts.append("slower" if value > 0 else "faster")
        else:
            verdicts.append("same" if -limit <= below and above <= limit else "ambiguous")
    return verdicts, p, low, high


def _compared(
    base: Sequence[Row], new: Sequence[Row], tolerance: float, spread: float | None, reasons: Sequence[str]
) -> list[Comparison]:
    """Rows that both sides have, in their order."""
    done: dict[int, Comparison] = {}
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (old, now) in enumerate(zip(base, new, strict=True)):
        why = next((f"{where}: {row.failed or 'it has no time'}" for where, row in (("base", old), ("new", now))
                    if row.failed or not row.seconds), None)  # fmt: skip
        if why:
            done[index] = Comparison(old.key, "failed", why, old.unit)
        elif old.unit != now.unit:
            done[index] = Comparison(old.key, "incomparable", f"in {old.unit} and in {now.unit}", old.unit)
        else:
            groups.setdefault((len(old.seconds), len(now.seconds)), []).append(index)
    order, parts = [], []
    for counts, members in groups.items():
        before, after = (np.log(np.array([side[i].seconds for i in members], dtype=float)) for side in (base, new))
        lone = min(counts) < 2
        parts.append(single(before, after, spread) if lone and spread is not None else unpaired(before, after))
        order += members
    if not parts:
        return [done[index] for index in sorted(done)]
    estimates = moderated(joined(parts))
    verdicts, p, low, high = judge(estimates, tolerance)
    for at, index in enumerate(order):
        old, now = base[index], new[index]
        counts = len(old.seconds), len(now.seconds)
        known = bool(np.isfinite(low[at]))
        reason = ""
        if not known:
            reason = "a side has one process only, so that nothing says how much a process differs from the next"
        done[index] = Comparison(
            key=old.key,
            verdict="incomparable" if reasons else verdicts[at],
            reason=", ".join(reasons) if reasons else reason,
            unit=old.unit,
            base_s=float(np.median(old.seconds)),
            new_s=float(np.median(now.seconds)),
            ratio=math.exp(float(estimates.value[at])),
            low=math.exp(float(low[at])) if known else None,
            high=math.exp(float(high[at])) if known else None,
            p=float(p[at]) if known else None,
            base_share=old.share,
            new_share=now.share,
            replicates=counts,
        )
    return [done[index] for index in sorted(done)]


def _require_unique(side: Side) -> None:
    seen: set[Key] = set()
    for row in side.rows:
        if row.key in seen:
            raise RequestError(f"{side.name} holds {row.name!r:.80} twice; compare one run at a time")
        seen.add(row.key)
        if any(not math.isfinite(time) or time <= 0 for time in row.seconds):
            raise RequestError(f"{side.name}: {row.name!r:.80} has a time that is not positive; restore it from a copy")


def merged(name: str, sides: Iterable[Side]) -> Side:
    """Several runs as one side, each a further process of its rows. Raises RequestError where conditions differ."""
    sides = list(sides)
    first = sides[0]
    rows: dict[Key, list[Row]] = {}
    for side in sides:
        if reasons := incomparable(first, side):
            raise RequestError(f"{first.name} and {side.name} are no one side: {', '.join(reasons)}; name runs alike")
        for row in side.rows:
            rows.setdefault(row.key, []).append(row)
    together = []
    for key, alike in rows.items():
        times = tuple(time for row in alike for time in row.seconds)
        shares = [row.share for row in alike if row.share is not None]
        together.append(
            Row(
                key,
                times,
                float(np.median(shares)) if shares else None,
                alike[0].unit,
                None if times else next((row.failed for row in alike if row.failed), None),
            )
        )
    return Side(name, tuple(together), first.conditions, first.versions, first.hostname, first.started)
