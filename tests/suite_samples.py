"""Results of a suite of serving kernels made by hand: times that are written down here, on a CPU with known peaks."""

from profiler.record.measurement import CacheState, Label, Measurement
from profiler.record.suite_table import Check, CheckStatus, KernelId, KernelResult

SPREAD = (0.98, 1.0, 1.03)
"""Of a kernel's time, by process."""


def result(
    family: str,
    provider: str,
    time_s: float | None,
    dims: dict[str, int],
    *,
    dtype: str = "float32",
    process: int = 1,
    flops: float = 0.0,
    moved: float = 1e6,
    law: tuple[str, dict[str, float]] | None = None,
    status: CheckStatus = "passed",
    cache: str = "cold",
    labels: tuple[Label, ...] = (),
    file: str | None = None,
    models: tuple[str, ...] = (),
) -> KernelResult:
    """One kernel in one process; `time_s` None: it was not timed."""
    measurement = None
    if time_s is not None:
        state = CacheState.model_validate(
            {"declared": cache, "operand_bytes": 1000, "between_bytes": 10**8, "cache_bytes": 10**7, "holds": True}
        )
        measurement = Measurement(
            benchmark=family,
            case=provider,
            dtype=dtype,
            process=process,
            unit="s",
            work=1,
            status="done",
            samples=(0.9 * time_s, time_s, 1.2 * time_s),
            quantile=0.5,
            clock="by hand",
            cache=state,
            labels=labels,
        )
    return KernelResult(
        kernel=KernelId(family=family, provider=provider, dtype=dtype, dims=dims),
        process=process,
        check=Check(status=status, reason=None if status == "passed" else f"it was {status}", worst=0.25, compared=4),
        measurement=measurement,
        flops=flops,
        bytes=moved,
        law=law,
        file=file,
        models=models,
        versions={"torch": "2.13.0"},
        tolerance="y: by hand",
    )


def replicated(family: str, provider: str, time_s: float, dims: dict[str, int], **more: object) -> list[KernelResult]:
    """One kernel in three processes."""
    return [
        result(family, provider, time_s * factor, dims, process=i, **more)  # type: ignore[arg-type]
        for i, factor in enumerate(SPREAD, start=1)
    ]
