"""How slow the machine was while a pass was measured, against when the laws were fitted: its level.

The same short probes run in every visit of a calibration and in every round of a measured pass: a stream from main
memory, a matrix product, a host operation. The ratio of their times is what the machine itself changed by in between,
and not what a law got wrong.

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
