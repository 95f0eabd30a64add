"""A law with the constants that a device was found to have: how a spec keeps them, and what they predict.

Everything needed to price again is in the record, as plain numbers: the law's name, its constants with intervals, the
sizes it was fitted on, what it was fitted from. Outside those sizes a prediction is the law's extrapolation, and
`outside` says so.

Example: ``calibrated.time_s({"m": m, "n": n, "k": k}, facts_of(spec))`` → seconds, shape of `m`
"""

from typing import TYPE_CHECKING, Self

import pydantic
from pydantic import Field

from roofline.record import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from roofline.laws.law import Dims, Facts, Floats

CALIBRATED_SCHEMA = 1
ROWS_AT_ONCE = 20_000
"""Of predictions: bounds memory."""
MARGIN = 1.001
"""Sizes beyond the fitted ones by less than this factor are not outside: rounding."""


class Estimate(Record):
    """One constant of a law on one device."""

    name: str
    unit: str
    value: float = Field(allow_inf_nan=False)
    low: float = Field(allow_inf_nan=False)
    """Lower end of a 90 % interval."""
    high: float = Field(allow_inf_nan=False)
    determined: bool
    """False: the data do not tell it, and it is its prior."""
    what: str = ""
    """Its physical meaning."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"constant {self.name}: {self.value:g} is not within {self.low:g} to {self.high:g}")
        return self


class Extent(Record):
    """Smallest and largest size that a law was fitted on."""

    low: float
    high: float


class Correction(Record):
    """What a law leaves, learnt: log time += strength·L·tanh(Σ w·scale²·exp(−½ Σ((x − point)/length)²) / L)."""

    points: tuple[tuple[float, ...], ...]
    """x of each: `roofline.laws.features` of the law's sizes."""
    weights: tuple[float, ...]
    scale: float = Field(gt=0)
    lengths: tuple[float, ...]
    largest: float = Field(gt=0)
    """L: bound of the whole, on the logarithm of time."""
    strength: float = Field(ge=0, le=1)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if {len(point) for point in self.points} != {len(self.lengths)} or len(self.points) != len(self.weights):
            raise ValueError("a correction has a weight for each point and a length for each feature")
        return self


class Provenance(Record):
    """What a law was fitted from."""

    runs: tuple[str, ...]
    """Folders of the runs."""
    sources: tuple[str, ...] = ()
    """Files that an imported run is from."""
    date: str
    """UTC, ISO 8601."""
    seed: int
    versions: dict[str, str] = {}
    """Of what measured, and of roofcal."""


class CalibratedLaw(Record):
    """The law of one kind and dtype on one device."""

    schema_version: int = CALIBRATED_SCHEMA
    kind: str
    """Of the kernels: "matmul", "decode_attention"."""
    dtype: str
    """As the kernels' table has it: "bfloat16", "fp8_block"."""
    law: str
    """Its name in `roofline.laws.registry`."""
    arithmetic: str
    """dtype that it computes in."""
    constants: tuple[Estimate, ...]
    domain: dict[str, Extent]
    """Of each size."""
    points: int = Field(gt=0)
    """Measured kernels that it was fitted to."""
    scale: float = Field(ge=0)
    """Robust standard deviation of log measured ÷ predicted on those; not its accuracy."""
    correction: Correction | None = None
    provenance: Provenance

    @pydantic.model_validator(mode="after")
    def _known(self) -> Self:
        from roofline.laws.registry import law_named  # numpy: verbs that only list runs do without it

        if self.schema_version > CALIBRATED_SCHEMA:
            raise ValueError(f"law of {self.kind} is from a newer roofcal (schema {self.schema_version}): update it")
        law_named(self.law)
        return self

    @property
    def values(self) -> dict[str, float]:
        """Constants by name."""
        return {one.name: one.value for one in self.constants}

    def time_s(self, dims: "Dims", facts: "Facts") -> "Floats":
        """Seconds of each kernel. Raises ValueError where a size or constant is missing."""
        import numpy as np

        from roofline.laws.features import features
        from roofline.laws.registry import law_named

        law = law_named(self.law)
        if lacking := [name for name in law.dims if name not in dims]:
            raise ValueError(f"the law of {self.kind} needs {', '.join(lacking)}")
        wanted = {constant.name for constant in law.constants(facts, self.arithmetic)}
        if wanted != set(self.values):
            raise ValueError(f"the constants kept for {self.kind} {self.dtype} are another law's; calibrate again")
        time_s = law.time_s(dims, facts, self.arithmetic, self.values)
        if self.correction is None:
            return time_s
        return np.asarray(time_s * np.exp(_mean(self.correction, features(dims, law.dims))))

    def outside(self, dims: "Dims") -> "NDArray[np.bool_]":
        """True where a size lies beyond those it was fitted on."""
        import numpy as np

        beyond = [
            (dims[name] > extent.high * MARGIN) | (dims[name] * MARGIN < extent.low)
            for name, extent in self.domain.items()
            if name in dims
        ]
        return np.logical_or.reduce(beyond) if beyond else np.zeros(0, dtype=bool)


def _mean(correction: Correction, features: "Floats") -> "Floats":
    import numpy as np

    lengths, points = np.array(correction.lengths), np.array(correction.points)
    parts = []
    for at in range(0, len(features), ROWS_AT_ONCE):
        a, b = features[at : at + ROWS_AT_ONCE] / lengths, points / lengths
        distance = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2 * a @ b.T
        covariance = correction.scale**2 * np.exp(-0.5 * np.maximum(distance, 0.0))
        parts.append(covariance @ np.array(correction.weights))
    total = np.concatenate([np.zeros(0), *parts])
    return np.asarray(correction.strength * correction.largest * np.tanh(total / correction.largest))
