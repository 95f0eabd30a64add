"""Laws of a device from measured kernels, and their scores on other kernels.

`calibrate_tables` fits to designed points of some groups and scores on other kernels (public tables, runs of other
tools). The fit is given the designed rows alone, so that no other latency can leak into it; beside its error stand
those of the datasheet roofline and of the four-constant roofline fitted to the same points. `fit_measured` fits to all
kernels that a run measured on its own device, judged by folds of whole groups.

A prediction p of a measured time t is off by |p − t| / t. Its mean counts each kernel alike, the time-weighted error
Σ|p − t| / Σt counts seconds alike, and the bias says whether predictions are long or short on average.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibrate.kernels.choose import design
from calibrate.kernels.correct import FOLDS, train_on
from calibrate.kernels.fit import Observations, fit, halves, joined, observations
from profiler.record.folder import RunFolder
from profiler.record.kernel_table import has_kernels, read_kernels
from profiler.record.run import RequestError
from roofline.hardware.spec import SPEC_SCHEMA, HardwareSpec
from roofline.laws.eager_modules import EagerModules, operations_of
from roofline.laws.fitted import Z90, Extent, FittedLaw, Provenance
from roofline.laws.kinds import OPERATOR, kind_of, law_for, law_named, work_of
from roofline.laws.law import Dims, Facts, Floats, FourConstant
from roofline.laws.work import Work, datasheet_s, weight_bytes

MOST_POINTS = 1000
"""Most points of a fit: a correction's time grows with their cube. With 2,000, four kinds took 47 s of CPU, and
intervals covered 84 to 87 % of one split of the public tables."""
FEW_FOLDS = 3
"""Folds of groups where a run fits some hundred laws while its user waits."""
FEWEST = 6
"""Least number of kernels of a run's own device that a law is fitted to."""
Interval = tuple[Floats, Floats]

TERCILES = ("small", "medium", "large")
"""Thirds of the kernels by measured time."""
DECODING = "decode"
"""Region of the kernels that a decode step of a large model waits for."""
FEW_ROWS = 64.0
"""Most rows of a product in that region: sequences of a batch."""
LONG_KEYS = 4096.0
"""Least keys of attention in it: from there reading the cache takes longer than the fixed cost of a call."""
Tables = dict[tuple[str, str], Observations]
"""Measured kernels by (kind, dtype)."""


@dataclass(frozen=True)
class Score:
    """Errors of predictions over some kernels, as fractions."""

    rows: int
    mape: float
    """Mean of |p − t| / t."""
    median: float
    p90: float
    time_weighted: float
    """Σ|p − t| / Σt."""
    bias: float
    """Mean of (p − t) / t: above 0 predictions are long."""
    coverage: float | None
    """Share of measured times within the prediction's 90 % interval; None where there is no interval."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A fitted law with its scores; every figure is of kernels that it was not fitted to."""

    law: FittedLaw
    scores: Score
    datasheet: Score
    four_constant: Score
    regions: Mapping[str, Score]
    noise: float | None
    """Noise of repeated measurements among the scored; None where nothing was repeated."""

    @property
    def kind(self) -> str:
        return self.law.kind

    @property
    def dtype(self) -> str:
        return self.law.dtype

    @property
    def points(self) -> int:
        return self.law.points


@dataclass(frozen=True)
class Skipped:
    """A kind and dtype that was not calibrated."""

    kind: str
    dtype: str
    reason: str


@dataclass(frozen=True)
class Calibration:
    """The laws of all kinds of a device."""

    fitted: tuple[Calibrated, ...]
    skipped: tuple[Skipped, ...]


def tables(folders: Sequence[RunFolder]) -> Tables:
    """Kernels of all runs by (kind, dtype). Raises RequestError for a run without kernels."""
    parts: dict[tuple[str, str], list[Observations]] = {}
    for folder in folders:
        if not has_kernels(folder.path):
            raise RequestError(
                f"{folder.path} holds no measured kernels; import a table first: python -m profiler import --help"
            )
        for key, table in observations(read_kernels(folder.path)).items():
            parts.setdefault(key, []).append(table)
    return {key: joined(key[0], tables) for key, tables in parts.items()}


def chosen(fitted: Tables, kinds: Sequence[str]) -> Tables:
    """Tables of the requested kinds, or all. Raises RequestError for a kind that the runs do not have."""
    known = sorted({kind for kind, _ in fitted})
    if unknown := [kind for kind in kinds if kind not in known]:
        raise RequestError(f"--kind {unknown[0]}: the runs have no such kernels; they have {', '.join(known)}")
    return {key: table for key, table in fitted.items() if not kinds or key[0] in kinds}


def calibrate_tables(
    fitted: Tables,
    scored: Tables | None,
    facts: Facts,
    points: int | None,
    seed: int,
    step: Callable[[str, int], None] = lambda name, done: None,
) -> Calibration:
    """Laws of each kind and dtype, fitted to half of its groups and scored on the rest, or on `scored` if given.

    `step` is called with the name of each table as its fit begins, and how many are done. Raises RequestError, one
    line, where nothing could be calibrated.
    """  # fmt: skip
    done, skipped = [], []
    for at, ((kind, dtype), table) in enumerate(fitted.items()):
        step(f"{kind} {dtype}", at)
        try:
            if scored is None:
                seen, unseen = halves(table, seed)
            elif (kind, dtype) in scored:
                seen, unseen = table, scored[kind, dtype]
            else:
                raise ValueError(f"{kind} {dtype}: the scored runs have no such kernels")
            done.append(calibrate_kind(seen, unseen, facts, points, seed))
        except ValueError as error:
            skipped.append(Skipped(kind, dtype, str(error)))
    if not done:
        more = f" (and {len(skipped) - 1} more like it)" if len(skipped) > 1 else ""
        raise RequestError(f"nothing to calibrate: {skipped[0].reason if skipped else 'no kernels'}{more}")
    return Calibration(tuple(done), tuple(skipped))


def fit_s(rows: int, points: int | None) -> float:
    """About the CPU seconds of a table: a start, each row, each point, and the inverse of the points' matrix.

    The figures are of tables of 8 to 105 rows, four fits to 2,000 points, and 1,000 of 48,830 rows on an AMD EPYC.
    """
    most = min(rows, points or MOST_POINTS, MOST_POINTS)
    return 0.04 + 1.1e-4 * rows + 1e-3 * most + 1.5e-9 * most**3


def calibrated_spec(spec: HardwareSpec, calibration: Calibration, provenance: Provenance) -> HardwareSpec:
    """The spec with the new laws; they replace earlier ones of the same kind and dtype. Where whole modules were timed
    and kernels of a kind were not, the constants of the modules' law are that kind's."""
    new = stored_laws([calibrated.law for calibrated in calibration.fitted], provenance)
    parts = [part for law in new for part in parts_of(law)]
    laws = {(law.kind, law.dtype): law for law in (*parts, *spec.calibrated, *new)}
    return spec.model_copy(update={"schema_version": SPEC_SCHEMA, "calibrated": tuple(laws.values())})


def parts_of(law: FittedLaw) -> tuple[FittedLaw, ...]:
    """The laws that a law of whole modules sums; none of another law.

    Each has its share of the constants, the sum's scatter as its interval, and no correction, which is of the sum. A
    kind has none where the times of modules leave most of its constants at their priors.
    """
    whole, found = law_named(law.law), []
    if not isinstance(whole, EagerModules) or law.correction is None:
        return ()
    for kind, sizes in operations_of(law.correction.dims).items():
        own = [c for c in law.constants if c.name.startswith(f"{kind}.")]
        if 2 * sum(c.determined for c in own) < len(own):
            continue
        kept = {
            "kind": kind, "law": kind, "correction": None, "unseen": None, "width": Z90 * law.scale,
            "constants": tuple(c.model_copy(update={"name": c.name.removeprefix(f"{kind}.")}) for c in own),
            "domain": {n: Extent(low=sizes[n].min(), high=sizes[n].max()) for n in whole.laws[kind].dims},
        }  # fmt: skip
        found.append(law.model_copy(update=kept))
    return tuple(found)


def calibrate_kind(
    seen: Observations, scored: Observations, facts: Facts, points: int | None = None, seed: int = 0
) -> Calibrated:
    """Fit to at most `points` designed rows of `seen` (`MOST_POINTS` if None), score on all of `scored`. Raises
    ValueError, one line, without a law, sizes or facts that it needs, or with fewer points than constants."""
    law, arithmetic = law_for(seen.kind, seen.dtype, facts)
    named = f"{seen.kind} {seen.dtype}"
    for table in (seen, scored):
        if lacking := [name for name in law.dims if name not in table.dims]:
            raise ValueError(f"{named}: its rows do not say {', '.join(lacking)}, which its law needs")
    try:
        constants = len(law.constants(facts, arithmetic))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{named}: the device's peak of {arithmetic} is not known ({error})") from error
    budget = min(MOST_POINTS if points is None else points, MOST_POINTS, len(seen))
    if budget < constants:
        have = f"{budget} {'row' if budget == len(seen) else 'point'}{'' if budget == 1 else 's'}"
        raise ValueError(f"{named}: its law has {constants} constants, and {have} cannot determine them")
    designed = seen.take(design(law, seen.dims, facts, arithmetic, budget, seed, seen.group))
    fitted = _fitted(designed, facts, seed)
    predicted, interval = fitted.time_s(scored.dims, facts), fitted.interval(scored.dims, facts)
    least = work_of(scored.kind, scored.dims, scored.dtype)
    return Calibrated(
        law=fitted,
        scores=scores(predicted, scored.time_s, interval),
        datasheet=scores(datasheet_s(least, facts, arithmetic), scored.time_s),
        four_constant=_four_constant(designed, least, scored, facts, seed),
        regions=by_region(predicted, scored.time_s, regions_of(scored, facts.cache_bytes), interval),
        noise=repeat_noise(scored),
    )


def fit_measured(tables: Mapping[tuple[str, str], Observations], facts: Facts, seed: int = 0) -> list[FittedLaw]:
    """A law for each kind and dtype that has at least `FEWEST` rows, since priors replace what few rows cannot tell. A
    law of all operators of a kind of streaming is added for operators that were not measured."""
    pools: dict[tuple[str, str], list[Observations]] = {}
    for (kind, dtype), table in tables.items():
        if kind.startswith(OPERATOR):
            pools.setdefault((kind_of(kind).name, dtype), []).append(table)
    pooled = {key: joined(key[0], parts) for key, parts in pools.items()}
    return [_fitted(table, facts, seed, FEW_FOLDS) for table in {**tables, **pooled}.values() if len(table) >= FEWEST]


def _fitted(seen: Observations, facts: Facts, seed: int, folds: int = FOLDS) -> FittedLaw:
    """The law of a table's kind and dtype, fitted to all its rows."""
    law, arithmetic = law_for(seen.kind, seen.dtype, facts)
    fitted = train_on(law, replace(seen, dtype=arithmetic), facts, seed, folds)
    return fitted.model_copy(update={"dtype": seen.dtype})


def stored_laws(laws: Sequence[FittedLaw], provenance: Provenance) -> tuple[FittedLaw, ...]:
    """The laws with their provenance, as a spec stores them."""
    return tuple(law.model_copy(update={"provenance": provenance}) for law in laws)


def _four_constant(designed: Observations, least: Work, scored: Observations, facts: Facts, seed: int) -> Score:
    """Score of the four-constant roofline fitted to the law's points; `least` is the work of the scored kernels."""
    law, (_, arithmetic) = FourConstant(designed.kind), law_for(designed.kind, designed.dtype, facts)
    points = replace(designed, dtype=arithmetic, dims=_roofs(work_of(designed.kind, designed.dims, designed.dtype)))
    values = fit(law, points, facts, seed).values
    return scores(law.time_s(_roofs(least), facts, arithmetic, values), scored.time_s)


def _roofs(work: Work) -> Dims:
    return {"flops": np.asarray(work.flops), "bytes": work.bytes + work.link_bytes}


def scores(predicted_s: Floats, measured_s: Floats, interval: Interval | None = None) -> Score:
    """The score of predictions. Raises ValueError: no rows, lengths that differ, or a prediction that is not finite."""
    if len(measured_s) == 0 or len(predicted_s) != len(measured_s):
        raise ValueError(
            f"{len(predicted_s)} predictions for {len(measured_s)} measured kernels; both need one a kernel"
        )
    if not bool(np.isfinite(predicted_s).all()):
        raise ValueError(f"{int((~np.isfinite(predicted_s)).sum())} predictions are not finite")
    off = (predicted_s - measured_s) / measured_s
    within = None
    if interval is not None:
        within = float(((interval[0] <= measured_s) & (measured_s <= interval[1])).mean())
    return Score(
        rows=len(measured_s),
        mape=float(np.abs(off).mean()),
        median=float(np.median(np.abs(off))),
        p90=float(np.quantile(np.abs(off), 0.9)),
        time_weighted=float(np.abs(predicted_s - measured_s).sum() / measured_s.sum()),
        bias=float(off.mean()),
        coverage=within,
    )


def by_region(
    predicted_s: Floats, measured_s: Floats, regions: Mapping[str, NDArray[np.bool_]], interval: Interval | None = None
) -> dict[str, Score]:
    """Score of each region (boolean by row) that has rows; regions may overlap."""
    return {
        name: scores(predicted_s[rows], measured_s[rows], (interval[0][rows], interval[1][rows]) if interval else None)
        for name, rows in regions.items()
        if rows.any()
    }


def regions_of(observations: Observations, cache_bytes: float = np.inf) -> dict[str, NDArray[np.bool_]]:
    """Thirds by time, attention by window and width of the cache, and the kernels of a decode step of a large model.
    `cache_bytes` is the size of the device's last-level cache, which large weights exceed."""
    dims = observations.dims
    low, high = np.quantile(observations.time_s, (1 / 3, 2 / 3))
    third = np.searchsorted((low, high), observations.time_s)
    regions = {name: third == place for place, name in enumerate(TERCILES)}
    if {"window", "kv_bytes"} <= set(dims):
        windowed, narrow = dims["window"] > 0, dims["kv_bytes"] < 2
        regions |= {"no window": ~windowed & ~narrow, "windowed": windowed & ~narrow, "narrow cache": narrow}
    if {"m", "n", "k"} <= set(dims):
        large = weight_bytes(observations.dtype) * dims["n"] * dims["k"] >= cache_bytes
        regions[DECODING] = (dims["m"] <= FEW_ROWS) & large
    elif observations.kind.endswith("decode_attention"):
        regions[DECODING] = dims["kv"] >= LONG_KEYS
    return regions


def repeat_noise(observations: Observations) -> float | None:
    """Mean of |t − centre| / centre over kernels of one shape measured several times, the centre being their median. No
    prediction from a shape can be nearer. None where nothing is repeated."""
    sizes = list(observations.dims)
    frame = pd.DataFrame({**observations.dims, "time_s": observations.time_s})
    repeated = frame[frame.duplicated(sizes, keep=False)] if sizes else frame[:0]
    if repeated.empty:
        return None
    centre = repeated.groupby(sizes)["time_s"].transform("median")
    return float((repeated["time_s"] / centre - 1).abs().mean())
