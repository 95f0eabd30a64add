"""An engine's constants fitted to the times of one server, and the engine's description with them.

Example: ``fit_server(engine, [Seen("result.json", terms, 0.012)], facts, foreign=False).described("vLLM here")``
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.kernels.fit import Observations, fit
from calibrate.serving.engine_time import (
    FEWEST_ROWS,
    MODEL_COUNT,
    MODEL_SPREAD,
    OWN_SPREAD,
    EngineTime,
    FittedEngine,
)
from profiler.record.run import RequestError
from roofline.laws.fitted import Z90, Estimate
from roofline.laws.law import Facts, Floats
from roofline.serving.engine import Engine, Prior
from roofline.serving.surface import LAUNCHING, SECONDS, TERMS

SHARED = 0.5
"""Factor on the spreads of priors beside the times of one server: they are for this very server, but are off together,
so that 30 of them say as much as a quarter of them would if they were independent."""
STAYED = 1e-3
"""Logarithm by which a constant moves that has stayed where it was expected."""
LEAST_SPREAD = 0.02
"""Least standard deviation of the logarithm of a fitted constant: times of one server repeat no better."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One measured time, of a token or of a step."""

    name: str
    terms: Floats
    """Terms of it, in the order of `TERMS`."""
    time_s: float


@dataclass(frozen=True, eq=False)
class FittedServer:
    """The constants of an engine on one server."""

    engine: Engine
    law: EngineTime
    seen: tuple[Seen, ...]
    fit: FittedEngine
    priors: Floats

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """Each constant with its 90 % interval; those that the times do not determine stay at their priors."""
        assert self.fit.fitted is not None
        known = self.fit.fitted
        units = {constant.name: (constant.unit, constant.what) for constant in self.law.constants(_NO_FACTS, "")}
        return tuple(
            Estimate(
                name=name, unit=units[name][0], value=known.values[name], low=min(known.low[name], known.values[name]),
                high=max(known.high[name], known.values[name]), determined=name not in known.undetermined,
                what=units[name][1],
            )
            for name in TERMS
        )  # fmt: skip

    def errors(self, constants: Floats) -> Floats:
        """predicted ÷ measured − 1 of each time."""
        return np.array([float(one.terms @ constants) / one.time_s - 1 for one in self.seen])

    def described(self, source: str) -> Engine:
        """The engine with the constants as they fit together. One that the times do not determine moves little, and its
        spread stays what was expected."""
        constants, factors = dict(self.engine.constants), dict(self.engine.factors)
        for estimate, prior in zip(self.estimates, self.priors, strict=True):
            if not estimate.determined and abs(np.log(estimate.value / prior)) < STAYED:
                continue
            spread = max(float(np.log(estimate.high / estimate.low)) / (2 * Z90), LEAST_SPREAD)
            name, value = estimate.name, estimate.value
            if name in SECONDS and name != LAUNCHING:
                spread = spread if estimate.determined else OWN_SPREAD[name]
                factors[name] = Prior(value=value, spread=spread, source=source)
                continue
            name = "launch" if name == LAUNCHING else name
            if name == "launch":
                value *= constants[name].value
            spread = spread if estimate.determined else constants[name].spread
            constants[name] = Prior(value=value, spread=spread, source=source)
        return self.engine.model_copy(update={"constants": constants, "factors": factors})


_NO_FACTS = Facts(units=1, cache_bytes=1.0, bandwidth_bytes_per_s=1.0, matrix_flops_per_s={}, vector_flops_per_s=1.0)
"""The constants of `EngineTime` do not depend on the device."""


def fit_server(engine: Engine, seen: Sequence[Seen], facts: Facts, foreign: bool) -> FittedServer:
    """Fit the constants; `foreign`: the device's laws are not of this engine's kernels.

    Raises RequestError, one line, for too few times.
    """
    if len(seen) < FEWEST_ROWS:
        raise RequestError(
            f"{len(seen)} measured times say nothing about an engine's constants; give at least {FEWEST_ROWS}, as "
            "results at several numbers of requests in flight"
        )
    law = EngineTime(engine, foreign, SHARED)
    terms, measured = np.array([one.terms for one in seen]), np.array([one.time_s for one in seen])
    dims = {name: terms[:, i] for i, name in enumerate(TERMS)}
    found = fit(law, Observations("engine_time", "", dims, measured, np.full(len(seen), engine.name)), facts)
    constants = np.array([found.values[name] for name in TERMS])
    squares = float(np.mean(np.log(terms @ constants / measured) ** 2))
    deviation = float(np.sqrt((MODEL_COUNT * MODEL_SPREAD**2 + squares) / (MODEL_COUNT + 1)))
    return FittedServer(engine, law, tuple(seen), FittedEngine(constants, found, deviation), law.priors(facts))
