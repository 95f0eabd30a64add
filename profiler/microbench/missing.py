"""A case that this device does not have: a measurement without samples, with its reason.

Example: ``missing(bench, "transfer", "pinned", unit="B/s", reason="no device memory apart from the host's")``
"""

from profiler.microbench.bench import Bench
from profiler.record.measurement import Measurement, Unit


def missing(
    bench: Bench, benchmark: str, case: str, *, unit: Unit, reason: str, dtype: str | None = None
) -> Measurement:
    """One that failed before it was tried, so that a report says why there is none."""
    return Measurement(
        benchmark=benchmark,
        case=case,
        dtype=dtype,
        threads=bench.threads,
        process=bench.process,
        unit=unit,
        work=1,
        status="failed",
        reason=reason,
    )
