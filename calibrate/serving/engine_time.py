"""Constants of a serving engine, fitted to measured times of a token, and predictions with intervals.

A request's time between two tokens is a sum of terms (`roofline.serving.surface.TERMS`), each times a constant: the
seconds that the device's laws give the kernels, whose constants are near 1, and numbers of steps, sequences, streaming
kernels and all-reduces, whose constants are the engine's own time. Kernel tables of the engine itself leave the first
little room; where only another engine's kernels were measured (`foreign`), attention and products of this one may be
faster or slower as a whole, which is said as a constant with its interval and not hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibrate.kernels.fit import NOISE, Fitted, Observations, fit
from roofline.laws.fitted import Z90
from roofline.laws.law import Constant, Dims, Facts, Floats, Values
from roofline.serving.engine import Engine
from roofline.serving.step import DECODE, EXPERTS, MOVED, PARTS, PREFILL, PRODUCTS
from roofline.serving.surface import LAUNCHING, PROMPTS, SECONDS, TERMS

OWN_SPREAD = {PRODUCTS: 0.05, EXPERTS: 0.08, DECODE: 0.08, PREFILL: 0.1, MOVED: 0.2, PROMPTS: 0.3, LAUNCHING: 0.3}
"""Standard deviation of the logarithm of each part's constant where the engine's own kernels were measured: the laws'
errors on unseen shapes (3 to 8 %), which one model's shapes share."""
FOREIGN = 2.0
"""Factor on these where the kernels are another engine's: products come from the same libraries, attention and experts
do not."""
CARRIED = (0.25, 0.5)
"""Factors on the spreads of priors that are tried where rows of several models tell how far the constants of some hold
for another."""
MODEL_SPREAD, MODEL_COUNT = 0.1, 2.0
"""Expected standard deviation of log predicted ÷ measured over rows of an unseen model, and the number of models that
this expectation counts as."""
FEWEST_ROWS = 4


@dataclass(frozen=True)
class EngineTime:
    """The time of a token as a law: its sizes are the terms."""

    engine: Engine
    foreign: bool = False
    shared: float = 1.0
    """Factor on the spreads of priors beside fitted rows, since rows of one model are off together."""
    name: str = "engine_time"
    dims: tuple[str, ...] = TERMS

    def constants(self, facts: Facts, dtype: str) -> tuple[Constant, ...]:
        wide = self.shared * (FOREIGN if self.foreign else 1.0)
        parts = [
            Constant(
                part, "1", 0.1, 10.0, 1.0, wide * OWN_SPREAD[part], f"time of {part} ÷ that of the tables' kernels"
            )
            for part in SECONDS
        ]
        own = [
            Constant(name, "s", value / 100, value * 30, value, self.shared * spread, f"of a {name}")
            for name in TERMS[len(SECONDS) :]
            for value, spread in ((self.engine.constants[name].value, self.engine.constants[name].spread),)
        ]
        return (*parts, *own)

    def time_s(self, dims: Dims, facts: Facts, dtype: str, values: Values) -> Floats:
        return np.asarray(sum(np.asarray(dims[name]) * values[name] for name in TERMS))

    def priors(self, facts: Facts) -> Floats:
        return np.array([constant.prior for constant in self.constants(facts, "")])

    def as_here(self, other: Engine) -> Floats:
        """Factors on the terms of another version, whose own time is expected to be so many times this one's."""
        own = [other.constants[name].value / self.engine.constants[name].value for name in TERMS[len(SECONDS) :]]
        return np.array([1.0] * len(SECONDS) + own)


@dataclass(frozen=True)
class FittedEngine:
    """An engine's constants in the order of `TERMS`, and the error that is expected on a model not fitted on."""

    constants: Floats
    fitted: Fitted | None
    """None where there was nothing to fit to, and the priors stand."""
    deviation: float
    """Standard deviation of log measured ÷ predicted."""


def fit_engine(law: EngineTime, terms: Floats, measured_s: Floats, models: Sequence[str], facts: Facts) -> FittedEngine:
    """Fit to rows of some models: `terms` has shape (rows, terms), `measured_s` and `models` a value for each row."""
    spread = MODEL_SPREAD * (1.5 if law.foreign else 1.0)
    if len(measured_s) < FEWEST_ROWS:
        return FittedEngine(law.priors(facts), None, 2 * spread)
    names, of = sorted(set(models)), np.array(models, dtype=np.str_)
    dims = {name: terms[:, i] for i, name in enumerate(TERMS)}
    seen = Observations("engine_time", "", dims, measured_s, of)

    def fitted_to(rows: NDArray[np.bool_], shared: float) -> Fitted:
        return fit(replace(law, shared=shared), seen.take(rows), facts)

    def off(fitted: Fitted) -> Floats:
        return np.log(terms @ np.array([fitted.values[name] for name in TERMS]) / measured_s)

    # All rows of a model say as much of another as one row that is off by `spread`, unless another model's rows show
    # that its constants hold there.
    shared = NOISE / (spread * float(np.sqrt(len(measured_s) / len(names))))
    if len(names) > 1:
        shared = min(
            (shared, *CARRIED),
            key=lambda share: sum(np.abs(off(fitted_to(of != name, share))[of == name]).mean() for name in names),
        )
    fitted = fitted_to(np.ones(len(of), dtype=bool), shared)
    squares = [float(np.mean(off(fitted)[of == name] ** 2)) for name in names]
    total = MODEL_COUNT * spread**2 + sum(squares)
    constants = np.array([fitted.values[name] for name in TERMS])
    return FittedEngine(constants, fitted, float(np.sqrt(total / (MODEL_COUNT + len(names)))))


def interval(predicted_s: Floats, deviation: float) -> tuple[Floats, Floats]:
    """Ends of the 90 % interval."""
    return predicted_s * np.exp(-Z90 * deviation), predicted_s * np.exp(Z90 * deviation)


def chosen_rows(terms: Floats, models: Sequence[str], most: int) -> list[int]:
    """At most `most` rows to fit to: of each model alike, far from each other in what their time consists of."""
    shares = terms[:, : len(PARTS)] / np.maximum(terms[:, : len(PARTS)].sum(axis=1, keepdims=True), 1e-30)
    places = np.concatenate([shares * 2, np.log(np.maximum(terms.sum(axis=1, keepdims=True), 1e-30))], axis=1)
    names = sorted(set(models))
    kept: list[int] = []
    for turn, name in enumerate(names):
        rows = [i for i, model in enumerate(models) if model == name]
        room = (most - len(kept)) // (len(names) - turn)
        left = dict.fromkeys(rows, np.inf)
        following = rows[int(np.argmin(places[rows, -1]))]
        for _ in range(min(room, len(rows))):
            kept.append(following)
            left.pop(following)
            if not left:
                break
            for i in left:
                left[i] = min(left[i], float(np.linalg.norm(places[i] - places[following])))
            following = max(left, key=lambda i: left[i])
    return kept
