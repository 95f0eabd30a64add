"""A law with the constants fitted to one device: the result of a fit, stored in a spec, used to price kernels.

The record holds all that pricing needs, as plain numbers. Kernels whose sizes lie beyond the fitted ones (`outside`)
are priced with care: their correction is that of the nearest fitted sizes and fades with the distance (by half within
two doublings, to nothing beyond five), their time stays within `roofline.laws.work`, as that of all kernels does, and
their interval starts from that of the nearest fitted sizes and widens with the distance.
"""

from collections.abc import Container, Mapping
from typing import Self

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from roofline.laws.kinds import categories, law_named, work_of
from roofline.laws.law import Dims, Facts, Floats, Law
from roofline.laws.residuals import EXPONENTS, Residuals, doublings, features, responses
from roofline.laws.work import Bounds
from roofline.record import Record

FITTED_SCHEMA = 3
"""Version 2 added intervals and the sizes of a correction's points; version 3 added code evicted from caches."""
MARGIN = 1.001
"""Factor by which a size must exceed the fitted ones to count as outside: below it the difference is rounding."""
RESPONSE = 4.0
"""Doublings of a size that equal the response of a kernel to the one constant that decides its time."""
FADED = 2.4
"""Doublings beyond the fitted sizes at which a correction has faded to 1/e: it is flat where the fitted sizes end."""
DRIFT = 0.1
"""Standard deviation of log time that each doubling beyond the fitted sizes adds to the law."""
Z90 = 1.6449
"""Normal quantile of a 90 % interval."""
WORST = 1.0
"""Mean error on held-out kernels above which a law prices nothing: a lower bound, such as the roofline, is never off by
more than 100 % of the measured time."""


class Estimate(Record):
    """One constant of a law on one device."""

    name: str
    unit: str
    value: float = Field(allow_inf_nan=False)
    low: float = Field(allow_inf_nan=False)
    """Lower end of a 90 % interval."""
    high: float = Field(allow_inf_nan=False)
    determined: bool
    """False: the data do not determine it, and it stays at its prior."""
    what: str = ""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"constant {self.name}: {self.value:g} is not within {self.low:g} to {self.high:g}")
        return self


class Extent(Record):
    """The smallest and the largest size that a law was fitted on."""

    low: float
    high: float


class Correction(Record):
    """The residuals of a law as they are stored: the numbers of a `roofline.laws.residuals.Residuals`."""

    points: dict[str, tuple[float, ...]]
    """Sizes of the measured kernels by name, including those that the law does not need."""
    residuals: tuple[float, ...]
    """log measured − log predicted of each kernel."""
    variances: tuple[float, ...]
    """Variance of each residual's noise."""
    groups: tuple[int, ...]
    """Number of each kernel's group."""
    scale: float = Field(gt=0)
    noise: float = Field(gt=0)
    apart: float = Field(gt=0)
    lengths: tuple[float, ...]
    """Length scale of each column of `FittedLaw.places`."""
    watched: tuple[str, ...]
    """Constants whose responses are among those columns."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        columns = (*self.points.values(), self.variances, self.groups)
        if {len(column) for column in columns} != {len(self.residuals)}:
            raise ValueError("a correction needs each size, a residual, a variance and a group for every point")
        return self

    @classmethod
    def of(cls, residuals: Residuals, points: Dims, watched: tuple[str, ...]) -> Self:
        """The record of a process fitted to kernels of the sizes `points`."""
        arrays = {name: tuple(getattr(residuals, name).tolist()) for name in ("residuals", "variances", "lengths")}
        return cls(
            points={name: tuple(column.tolist()) for name, column in points.items()},
            groups=tuple(residuals.group.tolist()),
            scale=residuals.scale,
            noise=residuals.noise,
            apart=residuals.apart,
            watched=watched,
            **arrays,
        )

    @property
    def dims(self) -> dict[str, Floats]:
        """Sizes of the measured kernels as arrays."""
        return {name: np.array(column) for name, column in self.points.items()}

    def at(self, places: Floats) -> Residuals:
        """The process with its points at `places`, shape (points, features). Raises ValueError for another law's
        places."""
        if places.shape[1] != len(self.lengths):
            raise ValueError(f"a correction of {len(self.lengths)} lengths for {places.shape[1]} features")
        residuals, variances, groups, lengths = (
            np.array(values) for values in (self.residuals, self.variances, self.groups, self.lengths)
        )
        return Residuals(places, residuals, variances, groups, self.scale, self.noise, self.apart, lengths)


class Provenance(Record):
    """The origin of a fitted law."""

    runs: tuple[str, ...]
    """Folders of the runs that it was fitted to."""
    sources: tuple[str, ...] = ()
    """Files from which imported runs were made."""
    date: str
    """UTC, ISO 8601."""
    seed: int
    versions: dict[str, str] = {}
    """Versions of the measuring software and of roofcal."""


PROBES = ("memory", "product", "host")
"""Reference probes of every calibration visit and of every round of a measured pass: a stream from main memory, a
matrix product, a host operation. The ratio of their times shows how the machine itself changed between the two;
`roofline.price_by_law.level_factors` prices operations by it."""


def probe_in(probe: str, dtype: str) -> str:
    """The name of a probe that runs in a dtype: "product.bfloat16". The host's has none, and in runs from before
    2026-12 no probe has: a float32 stream and product stood for all dtypes."""
    return f"{probe}.{dtype}"


def probe_of(probe: str, dtype: str, *places: Container[str]) -> str | None:
    """The name under which a probe is in all of these places: the probe in a dtype, or else the one without a dtype."""
    names = (probe_in(probe, dtype), probe)
    return next((name for name in names if all(name in place for place in places)), None)


class ReferenceLevel(Record):
    """Times of one probe while the kernels of a calibration were measured."""

    seconds: tuple[float, ...] = Field(min_length=1)
    """One time for each visit, or group of probes, in chronological order."""
    centre_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Time of the probe at the level to which the times of every visit were brought before laws were fitted to them;
    None where they were fitted as measured."""


class LevelRatio(Record):
    """Time of one probe beside a pass ÷ its time in the calibration; above 1 the machine was slower beside the pass."""

    ratio: float = Field(gt=0, allow_inf_nan=False)
    low: float = Field(gt=0, allow_inf_nan=False)
    """Lower end of its 90 % interval."""
    high: float = Field(gt=0, allow_inf_nan=False)


class FittedLaw(Record):
    """The law of one kind and dtype on one device."""

    kind: str
    """Kind of the kernels: "matmul", "decode_attention"."""
    schema_version: int = FITTED_SCHEMA
    dtype: str
    """dtype as the table of kernels has it: "bfloat16", "fp8_block"."""
    law: str
    """Name of the law in `roofline.laws.kinds`."""
    arithmetic: str
    """dtype of the arithmetic."""
    constants: tuple[Estimate, ...]
    domain: dict[str, Extent]
    """Sizes that it was fitted on; a size that is not named has no limits."""
    points: int = Field(gt=0)
    """Number of measured kernels that it was fitted to."""
    scale: float = Field(ge=0)
    """Robust standard deviation of log measured ÷ predicted on those kernels; it is not the accuracy of the law."""
    unseen: float | None = Field(default=None, ge=0)
    """Mean of |predicted ÷ measured − 1| of those kernels by models that had not seen the kernel's group."""
    correction: Correction | None = None
    """Correction of the residuals; None where the law stands alone."""
    width: float = Field(gt=0, allow_inf_nan=False)
    """Half a 90 % interval of a prediction: in standard deviations of the correction, else on the logarithm of time."""
    held: Bounds | None = None
    """Bounds of its times. None where the kernels' work is unknown, and for laws stored before bounds existed, whose
    bounds are computed again from the kernels of their correction, if any."""
    doubts: tuple[str, ...] = ()
    """Reasons to doubt its constants, a sentence each."""
    provenance: Provenance | None = None
    """None until a spec keeps it."""

    @pydantic.field_validator("schema_version")
    @classmethod
    def _read_here(cls, version: int, about: pydantic.ValidationInfo) -> int:
        """Report another schema version before its unknown fields are complained about."""
        if version != FITTED_SCHEMA:
            age, remedy = ("a newer", "update it") if version > FITTED_SCHEMA else ("an older", "calibrate again")
            raise ValueError(f"the law of {about.data.get('kind')} is from {age} roofcal: {remedy}")
        return version

    @pydantic.model_validator(mode="after")
    def _known(self) -> Self:
        law_named(self.law)
        return self

    @property
    def values(self) -> dict[str, float]:
        """Constants by name."""
        return {constant.name: constant.value for constant in self.constants}

    @property
    def is_usable(self) -> bool:
        """False where the law predicts held-out kernels worse than any lower bound would."""
        return self.unseen is None or self.unseen <= WORST

    @property
    def undetermined(self) -> tuple[str, ...]:
        """Constants that the data could not determine."""
        return tuple(constant.name for constant in self.constants if not constant.determined)

    @property
    def is_outdated(self) -> bool:
        """True where the formula has changed since its constants were stored: products got bounds, gaps constants."""
        if self.law == "host_gap":
            return "share" not in self.values
        return self.law in ("matmul", "module") and self.held is None

    def time_s(self, dims: Dims, facts: Facts) -> Floats:
        """Seconds of each kernel. Raises ValueError where a size or constant is missing."""
        rows, inside, distance = self._split(dims)
        if self.correction is None:
            return self._law_s(rows, facts)
        log_time, places = self.places(inside, facts, self.correction.watched)
        middle = self._logarithm(rows, facts, log_time, distance > 0)
        return np.asarray(np.exp(middle + _kept(distance) * self._residuals(self.correction, facts).mean(places)))

    def interval(self, dims: Dims, facts: Facts) -> tuple[Floats, Floats]:
        """Ends of each kernel's 90 % interval in seconds. Raises ValueError as `time_s` does."""
        middle, deviation, drift = self.spread(dims, facts)
        half = np.hypot(self.width * deviation, Z90 * drift)
        return np.exp(middle - half), np.exp(middle + half)

    def spread(self, dims: Dims, facts: Facts) -> tuple[Floats, Floats, Floats]:
        """log time of each kernel, the deviation that `width` multiplies (1: no correction), and the law's drift."""
        rows, inside, distance = self._split(dims)
        drift = DRIFT * distance
        if self.correction is None:
            return np.log(self._law_s(rows, facts)), np.ones_like(drift), drift
        log_time, places = self.places(inside, facts, self.correction.watched)
        kept, residuals = _kept(distance), self._residuals(self.correction, facts)
        middle = self._logarithm(rows, facts, log_time, distance > 0) + kept * residuals.mean(places)
        unknown = residuals.scale**2 + residuals.apart**2 + residuals.noise**2
        return middle, np.sqrt(kept**2 * residuals.deviation(places) ** 2 + (1 - kept**2) * unknown), drift

    def outside(self, dims: Dims) -> NDArray[np.bool_]:
        """True where a size lies beyond the fitted ones."""
        beyond = [
            (dims[name] > extent.high * MARGIN) | (dims[name] * MARGIN < extent.low)
            for name, extent in self.domain.items()
            if name in dims
        ]
        rows = len(next(iter(dims.values()), ()))
        return np.logical_or.reduce(beyond) if beyond else np.zeros(rows, dtype=bool)

    def places(self, dims: Dims, facts: Facts, watched: tuple[str, ...]) -> tuple[Floats, Floats]:
        """log time of the law, shape (rows,), and the coordinates of each kernel for its correction, (rows, features).
        Kernels are alike if their sizes and times are, and if the same constants (of `watched`) decide them."""
        law = self._checked(dims, facts)
        log_time, response = responses(law, dims, facts, self.arithmetic, self.values, watched)
        return log_time, np.concatenate(
            [features(dims, law.dims), log_time[:, None] / np.log(2), RESPONSE * response], axis=1
        )

    def bounds(self, facts: Facts) -> Bounds | None:
        """The stored bounds, or those computed from the kernels of the correction where none were stored."""
        if self.held is not None or self.correction is None:
            return self.held
        points = self.correction.dims
        law_s = law_named(self.law).time_s(points, facts, self.arithmetic, self.values)
        try:
            work = work_of(self.law, points, self.arithmetic)
        except ValueError:  # the work of these kernels is unknown
            return None
        return Bounds.of(work, facts, self.arithmetic, law_s * np.exp(np.array(self.correction.residuals)), law_s)

    def _checked(self, dims: Dims, facts: Facts) -> Law:
        """The law, after a check that it can price these sizes."""
        law = law_named(self.law)
        if lacking := [name for name in law.dims if name not in dims]:
            raise ValueError(f"the law of {self.kind} needs {', '.join(lacking)}")
        if {constant.name for constant in law.constants(facts, self.arithmetic)} != set(self.values):
            raise ValueError(f"the constants kept for {self.kind} {self.dtype} are another law's; calibrate again")
        return law

    def _residuals(self, correction: Correction, facts: Facts) -> Residuals:
        return correction.at(self.places(correction.dims, facts, correction.watched)[1])

    def _split(self, dims: Dims) -> tuple[Dims, Dims, Floats]:
        """Sizes as arrays, the nearest sizes within the domain, and the distance to those in doublings."""
        rows = {name: np.atleast_1d(np.asarray(dims[name], dtype=float)) for name in dims}
        inside, squares = dict(rows), np.zeros(1)
        needed = law_named(self.law).dims
        for name, extent in self.domain.items():
            if name in rows and name in needed and name not in categories():
                inside[name] = np.clip(rows[name], extent.low, extent.high)
                squares = squares + (_placed(name, rows[name]) - _placed(name, inside[name])) ** 2
        shape = next(iter(rows.values())).shape if rows else (0,)
        return rows, inside, np.broadcast_to(np.sqrt(squares), shape)

    def _logarithm(self, rows: Dims, facts: Facts, inside: Floats, beyond: NDArray[np.bool_]) -> Floats:
        """log time within the bounds; `inside` is the law's log time at the nearest fitted sizes."""
        if beyond.any():
            return np.asarray(np.log(self._law_s(rows, facts)))
        return np.asarray(np.log(self._held(np.exp(inside), rows, facts)))

    def _law_s(self, rows: Mapping[str, Floats], facts: Facts) -> Floats:
        law = self._checked(rows, facts)
        return self._held(np.atleast_1d(law.time_s(rows, facts, self.arithmetic, self.values)), rows, facts)

    def _held(self, law_s: Floats, rows: Mapping[str, Floats], facts: Facts) -> Floats:
        if (bounds := self.bounds(facts)) is None:
            return law_s
        return bounds.held(law_s, work_of(self.law, rows, self.arithmetic), facts, self.arithmetic)


def _placed(name: str, size: Floats) -> Floats:
    """Coordinate of a size, as in `roofline.laws.residuals.coordinates`."""
    return size if name in EXPONENTS else doublings(size)


def _kept(distance: Floats) -> Floats:
    """Part of a correction that remains so many doublings beyond the fitted sizes."""
    return np.asarray(np.exp(-((distance / FADED) ** 2)))
