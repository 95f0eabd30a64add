"""Measurements as several processes would have made them, with known values."""

from collections.abc import Sequence
from typing import Any

from profiler.record.measurement import CacheState, Label, Measurement, WarmUp

WARM = CacheState(declared="warm", operand_bytes=100, between_bytes=100, cache_bytes=1000, holds=True)


def measured(benchmark: str, case: str, value: float, **given: Any) -> Measurement:
    """A measurement whose value is `value` in its unit, from 20 samples of which half are a fifth slower."""
    unit, work = given.pop("unit", "B/s"), given.pop("work", 1e9)
    sample = work / value if unit in ("B/s", "FLOP/s") else value * work
    about: dict[str, Any] = {
        "status": "done",
        "samples": (sample,) * 10 + (1.2 * sample,) * 10,
        "clock": "monotonic clock",
        "stop_reason": "precise",
        "warm_up": WarmUp(calls=7, seconds=0.01, steady=True),
        "cache": WARM,
        "dtype": "float32",
        "threads": 2,
        **given,
    }
    return Measurement(benchmark=benchmark, case=case, unit=unit, work=work, **about)


def replicated(benchmark: str, case: str, values: Sequence[float], **given: Any) -> list[Measurement]:
    """One measurement for each process, from process 1 on."""
    return [measured(benchmark, case, value, process=i, **given) for i, value in enumerate(values, start=1)]


def lost(benchmark: str, case: str, reason: str, status: str = "failed", **given: Any) -> Measurement:
    """A measurement without a result."""
    about = {"dtype": "float32", "threads": 2, "unit": "B/s", "work": 1.0, **given}
    return Measurement(benchmark=benchmark, case=case, status=status, reason=reason, **about)  # type: ignore[arg-type]


def characterised() -> list[Measurement]:
    """A 2-core CPU with one cache that shows, in three processes."""
    three = (1.0, 1.01, 0.99)
    found = []
    for kernel, rate in (("read", 20e9), ("write", 60e9), ("copy", 22e9), ("triad", 24e9)):
        parameters = {"operand_bytes": 256 << 20, "level": "DRAM"}
        found += replicated("memory", kernel, [rate * x for x in three], parameters=parameters)
        found += replicated("memory", kernel, [rate * x / 2 for x in three], parameters=parameters, threads=1)
    for level, size, rate in (("L2", 1 << 20, 100e9), ("L3", 16 << 20, 24.5e9)):
        parameters = {"kernel": "triad", "working_set_bytes": size, "level": level}
        found += replicated("cache", f"triad {size}", [rate * x for x in three], parameters=parameters)
    for dtype, rate in (("float32", 150e9), ("bfloat16", 400e9)):
        given = {"unit": "FLOP/s", "dtype": dtype, "parameters": {"m": 512, "n": 512, "k": 512}}
        found += replicated("matmul", "burst", [rate * x for x in three], **given)
        found += replicated("matmul", "sustained", [0.9 * rate * x for x in three], quantile=0.5, **given)
        found += replicated("vector", "gelu", [0.1 * rate * x for x in three], **given)
        found += replicated("vector", "layer_norm", [0.2 * rate * x for x in three], **given)
    found += replicated("host", "operation", [1e-5 * x for x in three], unit="s", work=200.0)
    found.append(lost("matmul", "burst", "NotImplementedError: no kernel", unit="FLOP/s", dtype="int8"))
    return found


CAP = Label(severity="warns", what="power cap in 83 % of the time", share=0.83)
