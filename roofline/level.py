"""The level of the machine: how slow it was while a pass was measured, against when its laws were fitted.

The same short probes run in every visit of a calibration and in every round of a measured pass: a stream from main
memory, a matrix product, a host operation. The ratio of their times is what the machine itself changed by in between,
which is not what a law got wrong. `roofline.level_prices` prices operations by it.

Example: ``HardwareSpec(…, reference={"memory": ReferenceLevel(seconds=(0.011, 0.012, 0.011))})``
"""

from pydantic import Field

from roofline.record import Record

PROBES = ("memory", "product", "host")
"""What the probes are called: a stream from main memory, a matrix product, a host operation."""


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
