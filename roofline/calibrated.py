"""A law with the constants that a device was found to have: how a spec keeps them, and what they predict.

Everything needed to price again is in the record, as plain numbers: the law's name, its constants with intervals, what
it leaves as learnt from the measured kernels, how wide a prediction's interval is, the sizes it was fitted on, what it
was fitted from. Outside those sizes a prediction is the law's extrapolation, and `outside` says so.

Example: ``calibrated.time_s({"m": m, "n": n, "k": k}, facts_of(spec))`` → seconds, shape of `m`
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import pydantic
from pydantic import Field

from roofline.record import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from roofline.laws.bounds import Bounds
    from roofline.laws.corrected import Corrected
    from roofline.laws.law import Dims, Facts, Floats, Law

CALIBRATED_SCHEMA = 3
"""2: intervals of predictions; a correction keeps its points' sizes. 3: code that has been driven out of caches."""
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
    """What the law leaves, learnt: the numbers of a `roofline.laws.process.Process`."""

    points: dict[str, tuple[float, ...]]
    """Sizes of the measured kernels, by name; those that a law can do without, too."""
    residuals: tuple[float, ...]
    """log measured − log of the law, of each."""
    variances: tuple[float, ...]
    """Of each residual's noise."""
    groups: tuple[int, ...]
    """Number of the group that each is of."""
    scale: float = Field(gt=0)
    noise: float = Field(gt=0)
    apart: float = Field(gt=0)
    lengths: tuple[float, ...]
    """A length for each of `roofline.laws.corrected.Corrected.places`."""
    watched: tuple[str, ...]
    """Constants of the law whose responses are among those."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        columns = (*self.points.values(), self.variances, self.groups)
        if {len(column) for column in columns} != {len(self.residuals)}:
            raise ValueError("a correction has each size, a residual, a variance and a group of every point")
        return self

    def on(self, bare: "Corrected", facts: "Facts") -> "Corrected":
        """The law with this correction. Raises ValueError where it is another law's."""
        import numpy as np

        from roofline.laws.process import Process

        watching = replace(bare, watched=self.watched)
        _, places = watching.places({name: np.array(column) for name, column in self.points.items()}, facts)
        if places.shape[1] != len(self.lengths):
            raise ValueError(f"a correction of {len(self.lengths)} lengths for {places.shape[1]} features")
        residuals, variances, groups = (np.array(one) for one in (self.residuals, self.variances, self.groups))
        known = (self.scale, self.noise, self.apart, np.array(self.lengths))
        return replace(watching, process=Process(places, residuals, variances, groups, *known))


class Held(Record):
    """Between which times the law is held: the numbers of a `roofline.laws.bounds.Bounds`."""

    overhead_s: float = Field(gt=0, allow_inf_nan=False)
    most: float = Field(ge=1, allow_inf_nan=False)
    least: float = Field(ge=0, le=1)


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
    unseen: float | None = Field(default=None, ge=0)
    """Mean of |predicted ÷ measured − 1| of each of those kernels, by models that had not seen its group."""
    correction: Correction | None = None
    width: float = Field(gt=0, allow_inf_nan=False)
    """Half a 90 % interval of a prediction: in deviations of the correction, or on the logarithm of time where there is
    none."""
    held: Held | None = None
    """None where the work of its kernels is not known, and of laws kept before there were bounds; of these, `bounds`
    finds them again where a correction has kept the measured kernels."""
    doubts: tuple[str, ...] = ()
    """What makes its constants doubtful, a sentence each."""
    provenance: Provenance

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_here(cls, content: Any) -> Any:
        """Before fields are complained about that another schema has."""
        version = content.get("schema_version", CALIBRATED_SCHEMA) if isinstance(content, dict) else CALIBRATED_SCHEMA
        if isinstance(version, int) and version != CALIBRATED_SCHEMA:
            what = "newer roofcal: update it" if version > CALIBRATED_SCHEMA else "older roofcal: calibrate again"
            raise ValueError(f"the law of {content.get('kind')} is from a{'n' if what[0] == 'o' else ''} {what}")
        return content

    @pydantic.model_validator(mode="after")
    def _known(self) -> Self:
        from roofline.laws.registry import law_named  # numpy: verbs that only list runs do without it

        law_named(self.law)
        return self

    @property
    def values(self) -> dict[str, float]:
        """Constants by name."""
        return {one.name: one.value for one in self.constants}

    @property
    def is_outdated(self) -> bool:
        """Whether the law has changed since its constants were kept: products got bounds, gaps more constants."""
        if self.law == "host_gap":
            return "share" not in self.values
        return self.law in ("matmul", "module") and self.held is None

    def time_s(self, dims: "Dims", facts: "Facts") -> "Floats":
        """Seconds of each kernel. Raises ValueError where a size or constant is missing."""
        return self._corrected(dims, facts).time_s(dims, facts)

    def interval(self, dims: "Dims", facts: "Facts") -> "tuple[Floats, Floats]":
        """Seconds between which 90 % of kernels like each lie. Raises ValueError as `time_s`."""
        return self._corrected(dims, facts).interval(dims, facts)

    def outside(self, dims: "Dims") -> "NDArray[np.bool_]":
        """True where a size lies beyond those it was fitted on."""
        import numpy as np

        beyond = [
            (dims[name] > extent.high * MARGIN) | (dims[name] * MARGIN < extent.low)
            for name, extent in self.domain.items()
            if name in dims
        ]
        rows = len(next(iter(dims.values()), ()))
        return np.logical_or.reduce(beyond) if beyond else np.zeros(rows, dtype=bool)

    def _corrected(self, dims: "Dims", facts: "Facts") -> "Corrected":
        """What prices kernels of these sizes, once it is known to be able to."""
        from roofline.laws.corrected import Corrected
        from roofline.laws.registry import law_named

        law = law_named(self.law)
        if lacking := [name for name in law.dims if name not in dims]:
            raise ValueError(f"the law of {self.kind} needs {', '.join(lacking)}")
        if {constant.name for constant in law.constants(facts, self.arithmetic)} != set(self.values):
            raise ValueError(f"the constants kept for {self.kind} {self.dtype} are another law's; calibrate again")
        domain = {name: (extent.low, extent.high) for name, extent in self.domain.items() if name in law.dims}
        bare = Corrected(law, self.arithmetic, self.values, self.width, domain=domain, bounds=self._bounds(law, facts))
        return bare if self.correction is None else self.correction.on(bare, facts)

    def _bounds(self, law: "Law", facts: "Facts") -> "Bounds | None":
        """As they are kept; of a law kept before there were bounds, from its correction's kernels, if it has one."""
        import numpy as np

        from roofline.laws.bounds import Bounds
        from roofline.laws.work import work

        if self.held is not None:
            return Bounds(self.held.overhead_s, self.held.most, self.held.least)
        if self.correction is None:
            return None
        points = {name: np.array(column) for name, column in self.correction.points.items()}
        law_s = law.time_s(points, facts, self.arithmetic, self.values)
        try:
            found = work(law.kind, points, self.arithmetic)
        except ValueError:  # a law whose work is not known
            return None
        measured_s = law_s * np.exp(np.array(self.correction.residuals))
        return Bounds.of(found, facts, self.arithmetic, measured_s, law_s)
