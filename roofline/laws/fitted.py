"""A law with the constants that a device was found to have: what a fit makes, a spec keeps, and predictions price with.

Everything needed to price again is in the record, as plain numbers: the law's name, its constants with intervals, what
it leaves as learnt from the measured kernels, how wide a prediction's interval is, the sizes it was fitted on, what it
was fitted from. A kernel whose sizes lie beyond those that were fitted (`outside`) is priced with care, in three ways.

- Its correction is that of the nearest kernel within the fitted sizes, and fades with the distance to it: by half
  within two doublings, to nothing beyond five. What remains is the law.
- The law is held between the roofline and a multiple of it (`roofline.laws.bounds`), within the fitted sizes as well.
- Its interval is never narrower than that of the nearest fitted sizes, and widens with the distance.

Example: ``fitted.time_s({"m": m, "n": n, "k": k}, facts_of(spec))`` → seconds, shape of `m`
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from roofline.laws.bounds import Bounds
from roofline.laws.kinds import categories, law_named, work_of
from roofline.laws.law import Dims, Facts, Floats, Law
from roofline.laws.residuals import EXPONENTS, Residuals, doublings, features, responses
from roofline.record import Record

FITTED_SCHEMA = 3
"""2: intervals of predictions; a correction keeps its points' sizes. 3: code that has been driven out of caches."""
MARGIN = 1.001
"""Sizes beyond the fitted ones by less than this factor are not outside: rounding."""
RESPONSE = 4.0
"""Doublings of a size that a constant which decides a kernel wholly counts as."""
FADED = 2.4
"""Doublings beyond the fitted sizes at which a correction is faded to 1/e: flat where the fitted sizes end, so that a
size a little beyond them is priced as those within."""
DRIFT = 0.1
"""Standard deviation of the law itself, on the logarithm of time, that each doubling beyond the fitted sizes adds."""
Z90 = 1.6449
"""Normal quantile of a 90 % interval."""


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
    """The law's residuals as they are kept: the numbers of a `roofline.laws.residuals.Residuals`."""

    points: dict[str, tuple[float, ...]]
    """Sizes of the measured kernels, by name; those that a law can do without, too."""
    residuals: tuple[float, ...]
    """log measured − log of the law, of each."""
    variances: tuple[float, ...]
    """Variance of each residual's noise."""
    groups: tuple[int, ...]
    """Number of the group that each is of."""
    scale: float = Field(gt=0)
    noise: float = Field(gt=0)
    apart: float = Field(gt=0)
    lengths: tuple[float, ...]
    """A length for each column of `FittedLaw.places`."""
    watched: tuple[str, ...]
    """Constants of the law whose responses are among those."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        columns = (*self.points.values(), self.variances, self.groups)
        if {len(column) for column in columns} != {len(self.residuals)}:
            raise ValueError("a correction has each size, a residual, a variance and a group of every point")
        return self

    @classmethod
    def of(cls, residuals: Residuals, points: Dims, watched: tuple[str, ...]) -> Self:
        """The record of what was learnt from `points`."""
        return cls(
            points={name: tuple(column.tolist()) for name, column in points.items()},
            residuals=tuple(residuals.residuals.tolist()),
            variances=tuple(residuals.variances.tolist()),
            groups=tuple(residuals.group.tolist()),
            scale=residuals.scale,
            noise=residuals.noise,
            apart=residuals.apart,
            lengths=tuple(residuals.lengths.tolist()),
            watched=watched,
        )

    @property
    def dims(self) -> dict[str, Floats]:
        """Sizes of the measured kernels as arrays."""
        return {name: np.array(column) for name, column in self.points.items()}

    def at(self, places: Floats) -> Residuals:
        """The process whose points lie at `places`, shape (points, features). Raises ValueError: another law's."""
        if places.shape[1] != len(self.lengths):
            raise ValueError(f"a correction of {len(self.lengths)} lengths for {places.shape[1]} features")
        residuals, variances, groups = (np.array(each) for each in (self.residuals, self.variances, self.groups))
        known = (self.scale, self.noise, self.apart, np.array(self.lengths))
        return Residuals(places, residuals, variances, groups, *known)


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
    """Versions of what measured, and of roofcal."""


PROBES = ("memory", "product", "host")
"""Reference probes that run in every visit of a calibration and in every round of a measured pass: a stream from main
memory, a matrix product, a host operation. The ratio of their times is what the machine itself changed by in between,
which is not what a law got wrong; `roofline.price_by_law.level_factors` prices operations by it."""


class ReferenceLevel(Record):
    """Times of one probe while the kernels were timed that the laws were fitted to."""

    seconds: tuple[float, ...] = Field(min_length=1)
    """One for each visit, or group of probes, of the calibration, in the order of time."""


class LevelRatio(Record):
    """Time of one probe beside a pass ÷ its time in the calibration: above 1 the machine was slower beside the pass."""

    ratio: float = Field(gt=0, allow_inf_nan=False)
    low: float = Field(gt=0, allow_inf_nan=False)
    """Lower end of its 90 % interval."""
    high: float = Field(gt=0, allow_inf_nan=False)


class FittedLaw(Record):
    """The law of one kind and dtype on one device."""

    schema_version: int = FITTED_SCHEMA
    kind: str
    """Kind of the kernels: "matmul", "decode_attention"."""
    dtype: str
    """As the kernels' table has it: "bfloat16", "fp8_block"."""
    law: str
    """Its name in `roofline.laws.kinds`."""
    arithmetic: str
    """dtype that it computes in."""
    constants: tuple[Estimate, ...]
    domain: dict[str, Extent]
    """Sizes that it was fitted on; one that is not named is never beyond."""
    points: int = Field(gt=0)
    """Measured kernels that it was fitted to."""
    scale: float = Field(ge=0)
    """Robust standard deviation of log measured ÷ predicted on those; not its accuracy."""
    unseen: float | None = Field(default=None, ge=0)
    """Mean of |predicted ÷ measured − 1| of each of those kernels, by models that had not seen its group."""
    correction: Correction | None = None
    """None: the law alone."""
    width: float = Field(gt=0, allow_inf_nan=False)
    """Half a 90 % interval of a prediction: in deviations of the correction, or on the logarithm of time where there is
    none."""
    held: Bounds | None = None
    """Times between which the law is held. None where the work of its kernels is not known, and of laws kept before
    there were bounds; of these, they are found again where a correction has kept the measured kernels."""
    doubts: tuple[str, ...] = ()
    """What makes its constants doubtful, a sentence each."""
    provenance: Provenance | None = None
    """None until a spec keeps it."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_here(cls, content: Any) -> Any:
        """Before fields are complained about that another schema has."""
        version = content.get("schema_version", FITTED_SCHEMA) if isinstance(content, dict) else FITTED_SCHEMA
        if isinstance(version, int) and version != FITTED_SCHEMA:
            what = "newer roofcal: update it" if version > FITTED_SCHEMA else "older roofcal: calibrate again"
            raise ValueError(f"the law of {content.get('kind')} is from a{'n' if what[0] == 'o' else ''} {what}")
        return content

    @pydantic.model_validator(mode="after")
    def _known(self) -> Self:
        law_named(self.law)
        return self

    @property
    def values(self) -> dict[str, float]:
        """Constants by name."""
        return {constant.name: constant.value for constant in self.constants}

    @property
    def undetermined(self) -> tuple[str, ...]:
        """Constants that the data do not tell from their priors."""
        return tuple(constant.name for constant in self.constants if not constant.determined)

    @property
    def is_outdated(self) -> bool:
        """Whether the law has changed since its constants were kept: products got bounds, gaps more constants."""
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
        """Seconds between which 90 % of kernels like each lie. Raises ValueError as `time_s`."""
        middle, deviation, drift = self.spread(dims, facts)
        half = np.hypot(self.width * deviation, Z90 * drift)
        return np.exp(middle - half), np.exp(middle + half)

    def spread(self, dims: Dims, facts: Facts) -> tuple[Floats, Floats, Floats]:
        """Middle of each kernel on the logarithm of time, the deviation that `width` multiplies, and the law's drift.

        The deviation is 1 where there is no correction.
        """
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
        """True where a size lies beyond those it was fitted on."""
        beyond = [
            (dims[name] > extent.high * MARGIN) | (dims[name] * MARGIN < extent.low)
            for name, extent in self.domain.items()
            if name in dims
        ]
        rows = len(next(iter(dims.values()), ()))
        return np.logical_or.reduce(beyond) if beyond else np.zeros(rows, dtype=bool)

    def places(self, dims: Dims, facts: Facts, watched: tuple[str, ...]) -> tuple[Floats, Floats]:
        """log time of the law, shape (rows,), and where its residuals find each kernel, shape (rows, features).

        Kernels resemble each other as their sizes do, and as the law says: in their time, and in which of the constants
        `watched` decide it.
        """
        law = self._checked(dims, facts)
        log_time, response = responses(law, dims, facts, self.arithmetic, self.values, watched)
        return log_time, np.concatenate(
            [features(dims, law.dims), log_time[:, None] / np.log(2), RESPONSE * response], axis=1
        )

    def bounds(self, facts: Facts) -> Bounds | None:
        """As they are kept; of a law kept before there were bounds, from its correction's kernels, if it has one."""
        if self.held is not None or self.correction is None:
            return self.held
        points = self.correction.dims
        law_s = law_named(self.law).time_s(points, facts, self.arithmetic, self.values)
        try:
            work = work_of(self.law, points, self.arithmetic)
        except ValueError:  # a law whose work is not known
            return None
        return Bounds.of(work, facts, self.arithmetic, law_s * np.exp(np.array(self.correction.residuals)), law_s)

    def _checked(self, dims: Dims, facts: Facts) -> Law:
        """The law, once it is known to be able to price these sizes."""
        law = law_named(self.law)
        if lacking := [name for name in law.dims if name not in dims]:
            raise ValueError(f"the law of {self.kind} needs {', '.join(lacking)}")
        if {constant.name for constant in law.constants(facts, self.arithmetic)} != set(self.values):
            raise ValueError(f"the constants kept for {self.kind} {self.dtype} are another law's; calibrate again")
        return law

    def _residuals(self, correction: Correction, facts: Facts) -> Residuals:
        return correction.at(self.places(correction.dims, facts, correction.watched)[1])

    def _split(self, dims: Dims) -> tuple[Dims, Dims, Floats]:
        """Sizes as arrays, the nearest ones within the domain, and how many doublings these are away."""
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
        """log time of the law, held. `inside`: the law's at the nearest sizes, a row's own unless it is beyond."""
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
    """Where a size lies among others, as `roofline.laws.residuals.coordinates` has it."""
    return size if name in EXPONENTS else doublings(size)


def _kept(distance: Floats) -> Floats:
    """Part of a correction that is believed so many doublings beyond the fitted sizes."""
    return np.asarray(np.exp(-((distance / FADED) ** 2)))
