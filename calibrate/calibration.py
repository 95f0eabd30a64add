"""One kind and dtype calibrated and judged: a law fitted to designed points of some groups, scored on other kernels.

The fit is handed the designed rows alone, so that no other latency can leak into it. Beside its error stand those of
the datasheet roofline, which knows no measurement, and of the four-constant roofline fitted to the same points.

Example: ``calibrate_kind(seen, unseen, facts, points=200, seed=0).scores.mape``
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from calibrate.correction import LARGEST
from calibrate.design import design
from calibrate.eager_modules import EagerModules
from calibrate.fit import fit
from calibrate.model import Model, train_on
from calibrate.observations import Observations
from calibrate.validate import Scores, by_region, regions_of, repeat_noise, scores
from calibrate.work import Work, datasheet_s, work
from roofline.calibrated import CalibratedLaw, Correction, Estimate, Extent, Provenance
from roofline.laws.four_constant import FourConstant
from roofline.laws.law import Dims, Facts, Law
from roofline.laws.registry import LAWS, arithmetic, subject

MODULE = "module"
"""Kind of whole modules: the sum of operations, each by its own law."""
OF_MODULES = ("matmul", "pointwise", "prefill_attention")
"""Laws that modules are made of."""


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


def law_of(kind: str, dtype: str, facts: Facts) -> tuple[Law, str]:
    """The law of a kind and dtype, and the dtype it computes in. Raises ValueError: there is none."""
    if kind == MODULE:
        return EagerModules({name: LAWS[name] for name in OF_MODULES}), arithmetic(dtype, facts.matrix_flops_per_s)
    return subject(kind, dtype, facts)


def calibrate_kind(
    seen: Observations, scored: Observations, facts: Facts, points: int | None = None, seed: int = 0
) -> Calibrated:
    """Fit to at most `points` designed rows of `seen` (all of them if None), score on all of `scored`.

    Raises ValueError, one line: no law, sizes that the table lacks, fewer points than constants, facts missing.
    """
    law, dtype = law_of(seen.kind, seen.dtype, facts)
    named = f"{seen.kind} {seen.dtype}"
    fitting, judged = (replace(_prepared(each), dtype=dtype) for each in (seen, scored))
    for each in (fitting, judged):
        if lacking := [name for name in law.dims if name not in each.dims]:
            raise ValueError(f"{named}: its rows do not say {', '.join(lacking)}, which its law needs")
    try:
        constants = len(law.constants(facts, dtype))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{named}: the device's peak of {dtype} is not known ({error})") from error
    budget = len(fitting) if points is None else min(points, len(fitting))
    if budget < constants:
        have = f"{len(fitting)} rows" if budget == len(fitting) else f"{budget} points"
        raise ValueError(f"{named}: its law has {constants} constants, and {have} cannot determine them")
    rows = design(law, fitting.dims, facts, dtype, budget, seed, fitting.group)
    points_read = fitting.take(rows)
    model = train_on(law, points_read, facts, seed)
    predicted, interval = model.time_s(judged.dims), model.interval(judged.dims)
    least = work(scored.kind, judged.dims, scored.dtype)
    return Calibrated(
        kind=seen.kind,
        dtype=seen.dtype,
        model=model,
        points=len(points_read),
        scores=scores(predicted, judged.time_s, interval),
        datasheet=scores(datasheet_s(least, facts, dtype), judged.time_s),
        four_constant=_four_constant(points_read, least, judged, seen, facts, seed),
        regions=by_region(predicted, judged.time_s, regions_of(judged), interval),
        noise=repeat_noise(judged),
    )


def stored(calibrated: Calibrated, provenance: Provenance) -> CalibratedLaw:
    """The law as a spec keeps it. Raises ValueError for modules, whose law is of other laws."""
    if calibrated.kind == MODULE:
        raise ValueError("the law of modules is made of other laws; a spec keeps those")
    return stored_model(calibrated.kind, calibrated.dtype, calibrated.model, calibrated.points, provenance)


def stored_model(kind: str, dtype: str, model: Model, points: int, provenance: Provenance) -> CalibratedLaw:
    """A model of any kernels as a spec keeps it."""
    kept = model.correction if model.correction is not None and model.strength > 0 else None
    return CalibratedLaw(
        kind=kind,
        dtype=dtype,
        law=model.law.kind,
        arithmetic=model.dtype,
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
            for one in model.law.constants(model.facts, model.dtype)
        ),
        domain={name: Extent(low=low, high=high) for name, (low, high) in model.ranges.items()},
        points=points,
        scale=model.fitted.scale,
        correction=None
        if kept is None
        else Correction(
            points=tuple(map(tuple, kept.features.tolist())),
            weights=tuple(kept.weights.tolist()),
            scale=kept.scale,
            lengths=tuple(kept.lengths.tolist()),
            largest=LARGEST,
            strength=model.strength,
        ),
        provenance=provenance,
    )


def _prepared(observations: Observations) -> Observations:
    """Modules with what their operations need: tokens in the cache before them."""
    dims: Dims = observations.dims
    if observations.kind == MODULE and "kv_tokens" not in dims and "context" in dims:
        dims = {**dims, "kv_tokens": dims["context"]}
    return replace(observations, dims=dims)


def _four_constant(
    points: Observations, least: Work, judged: Observations, seen: Observations, facts: Facts, seed: int
) -> Scores:
    law = FourConstant(seen.kind)
    fitted = fit(law, replace(points, dims=_roofs(work(seen.kind, points.dims, seen.dtype))), facts, seed)
    return scores(law.time_s(_roofs(least), facts, points.dtype, fitted.values), judged.time_s)


def _roofs(found: Work) -> Dims:
    return {"flops": np.asarray(found.flops), "bytes": found.bytes + found.link_bytes}
