"""One kind and dtype calibrated and judged: a law fitted to designed points of some groups, scored on other kernels.

The fit is handed the designed rows alone, so that no other latency can leak into it. Beside its error stand those of
the datasheet roofline, which knows no measurement, and of the four-constant roofline fitted to the same points.

Example: ``calibrate_kind(seen, unseen, facts, points=200, seed=0).scores.mape``
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from calibrate.fit import fit
from calibrate.model import Model, train
from calibrate.observations import Observations
from calibrate.validate import Scores, by_region, regions_of, repeat_noise, scores
from roofline.calibrated import CalibratedLaw, Correction, Estimate, Extent, Held, Provenance
from roofline.laws.four_constant import FourConstant
from roofline.laws.law import Dims, Facts
from roofline.laws.registry import subject
from roofline.laws.work import Work, datasheet_s, work

MOST_POINTS = 1000
"""That a fit is given: a correction's time grows with their cube. With 2,000, four kinds took 47 s of CPU, and
intervals covered 84 to 87 % of one split of the public tables."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A fitted law with its judgement; every figure is of kernels that it was not fitted to."""

    kind: str
    dtype: str
    model: Model
    points: int
    """Measured kernels that were fitted to."""
    scores: Scores
    datasheet: Scores
    four_constant: Scores
    regions: Mapping[str, Scores]
    noise: float | None
    """Of repeated measurements among the scored; None where nothing was repeated."""


def calibrate_kind(
    seen: Observations, scored: Observations, facts: Facts, points: int | None = None, seed: int = 0
) -> Calibrated:
    """Fit to at most `points` designed rows of `seen` (`MOST_POINTS` if None), score on all of `scored`.

    Raises ValueError, one line: no law, sizes that the table lacks, fewer points than constants, facts missing.
    """
    law, dtype = subject(seen.kind, seen.dtype, facts)
    named = f"{seen.kind} {seen.dtype}"
    fitting, judged = (replace(each, dtype=dtype) for each in (seen, scored))
    for each in (fitting, judged):
        if lacking := [name for name in law.dims if name not in each.dims]:
            raise ValueError(f"{named}: its rows do not say {', '.join(lacking)}, which its law needs")
    try:
        constants = len(law.constants(facts, dtype))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{named}: the device's peak of {dtype} is not known ({error})") from error
    budget = min(MOST_POINTS if points is None else points, MOST_POINTS, len(fitting))
    if budget < constants:
        have = f"{budget} {'row' if budget == len(fitting) else 'point'}{'' if budget == 1 else 's'}"
        raise ValueError(f"{named}: its law has {constants} constants, and {have} cannot determine them")
    model = train(law, fitting, facts, budget, seed)
    predicted, interval = model.time_s(judged.dims), model.interval(judged.dims)
    least = work(scored.kind, judged.dims, scored.dtype)
    return Calibrated(
        kind=seen.kind,
        dtype=seen.dtype,
        model=model,
        points=len(model.points),
        scores=scores(predicted, judged.time_s, interval),
        datasheet=scores(datasheet_s(least, facts, dtype), judged.time_s),
        four_constant=_four_constant(model.points, least, judged, seen, facts, seed),
        regions=by_region(predicted, judged.time_s, regions_of(judged, facts.cache_bytes), interval),
        noise=repeat_noise(judged),
    )


def stored(calibrated: Calibrated, provenance: Provenance) -> CalibratedLaw:
    """The law as a spec keeps it."""
    return stored_model(calibrated.kind, calibrated.dtype, calibrated.model, provenance)


def stored_model(kind: str, dtype: str, model: Model, provenance: Provenance) -> CalibratedLaw:
    """A model of any kernels as a spec keeps it."""
    law, arithmetic, process = model.corrected.law, model.corrected.dtype, model.corrected.process
    bounds = model.corrected.bounds
    return CalibratedLaw(
        kind=kind,
        dtype=dtype,
        law=law.kind,
        arithmetic=arithmetic,
        constants=tuple(
            Estimate(
                name=one.name,
                unit=one.unit,
                value=model.fitted.values[one.name],
                low=min(model.fitted.low[one.name], model.fitted.values[one.name]),
                high=max(model.fitted.high[one.name], model.fitted.values[one.name]),
                determined=one.name not in model.fitted.undetermined,
                what=one.what,
            )
            for one in law.constants(model.facts, arithmetic)
        ),
        domain={name: Extent(low=low, high=high) for name, (low, high) in model.ranges.items()},
        points=len(model.points),
        scale=model.fitted.scale,
        unseen=model.unseen_error,
        correction=None
        if process is None
        else Correction(
            points={name: tuple(column.tolist()) for name, column in model.points.dims.items()},
            residuals=tuple(process.residuals.tolist()),
            variances=tuple(process.variances.tolist()),
            groups=tuple(process.group.tolist()),
            scale=process.scale,
            noise=process.noise,
            apart=process.apart,
            lengths=tuple(process.lengths.tolist()),
            watched=model.corrected.watched,
        ),
        width=model.corrected.width,
        held=None if bounds is None else Held(overhead_s=bounds.overhead_s, most=bounds.most, least=bounds.least),
        doubts=model.fitted.doubts,
        provenance=provenance,
    )


def _four_constant(
    points: Observations, least: Work, judged: Observations, seen: Observations, facts: Facts, seed: int
) -> Scores:
    law = FourConstant(seen.kind)
    fitted = fit(law, replace(points, dims=_roofs(work(seen.kind, points.dims, seen.dtype))), facts, seed)
    return scores(law.time_s(_roofs(least), facts, points.dtype, fitted.values), judged.time_s)


def _roofs(found: Work) -> Dims:
    return {"flops": np.asarray(found.flops), "bytes": found.bytes + found.link_bytes}
