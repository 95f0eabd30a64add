"""Characterisations made by hand for the tests of their report: a 2-core CPU and a power-capped H200.

Samples are a rate with a spread that is written down here, so that figures can be recomputed; names and units are those
of the suite.
"""

import math
import random

import report_samples

from calibrate.device.figures import characteristics, with_datasheet
from profiler.record.measurement import CacheState, Label, Measurement, Unit, Window
from profiler.record.run import Run
from roofline.hardware.load import load_device
from roofline.hardware.spec import Characteristic, Figure, HardwareSpec, Level, Peaks

Sample = tuple[HardwareSpec, list[Measurement], Run]

PROCESSES = (1, 2, 3)
FACTOR = {0: 1.0, 1: 1.0, 2: 0.99, 3: 1.012}
"""Of a rate, by process."""
CAP = "power cap in 83 % of the time, SM clock 1,410–1,980 MHz, median 1,605"


def measurement(
    benchmark: str,
    case: str,
    rate: float,
    *,
    unit: Unit = "B/s",
    work: float = 1e9,
    process: int = 1,
    count: int = 12,
    **more: object,
) -> Measurement:
    """`rate` at the fastest tenth of the samples; a cost where the unit is one."""
    rate *= FACTOR[process] if unit in ("B/s", "FLOP/s") else 1 / FACTOR[process]
    best = work / rate if unit in ("B/s", "FLOP/s") else rate * work
    spread = random.Random(f"{benchmark}{case}{process}{more.get('dtype')}")
    slower = sorted(best * (1 + 0.02 * spread.random()) for _ in range(count - 2))
    samples = [best, best, *slower]
    spread.shuffle(samples)
    return Measurement.model_validate(
        {
            "benchmark": benchmark,
            "case": case,
            "process": process,
            "unit": unit,
            "work": work,
            "status": "done",
            "samples": samples,
            "clock": "perf_counter_ns",
            **more,
        }
    )


def failed(benchmark: str, case: str, reason: str, process: int = 1, **more: object) -> Measurement:
    about = {"benchmark": benchmark, "case": case, "unit": "FLOP/s", "work": 1.0, "status": "failed"}
    return Measurement.model_validate({**about, "reason": reason, "process": process, **more})


def cpu() -> Sample:
    """All cores beside one; a dtype that fails; a level that is not distinct; one process short of one figure."""
    found: list[Measurement] = []
    for process in PROCESSES:
        for threads, factor in ((2, 1.0), (1, 0.62)):
            about = {"process": process, "threads": threads, "dtype": "float32"}
            for kernel, rate in (("read", 52e9), ("copy", 44e9), ("triad", 49e9)):
                found.append(
                    measurement(
                        "memory",
                        kernel,
                        factor * rate,
                        cache=_cold(),
                        windows=_host(),
                        parameters={"operand_bytes": 256 << 20},
                        **about,
                    )
                )
            found.append(
                measurement("matmul", "burst", factor * 210e9, unit="FLOP/s", parameters=_shape(1024), **about)
            )
        about = {"process": process, "threads": 2}
        found.append(
            failed("matmul", "burst", "RuntimeError: no\nfloat8 product on this CPU", dtype="float8_e4m3fn", **about)
        )
        found.append(measurement("matmul", "sustained", 190e9, unit="FLOP/s", quantile=0.5, dtype="float32", **about))
        for size in (1 << 20, 2 << 20):
            for kernel, rate in (("read", 150e9), ("triad", 120e9)):
                level = {"kernel": kernel, "working_set_bytes": size, "level": "L2"}
                rate *= 1.1 if size == 1 << 20 else 1.0
                found.append(measurement("cache", f"{kernel} {size}", rate, dtype="float32", parameters=level, **about))
        for m in (1, 16, 256):
            found.append(_skinny("float32", m, 49e9, 210e9, **about))
        for operation, rate in (("gelu", 21e9), ("silu", 17e9), ("softmax", 9e9)):
            found.append(measurement("vector", operation, rate, unit="FLOP/s", dtype="float32", **about))
        found += _pointwise("float32", 45e9, 14e9, **about)
        found.append(measurement("host", "operation", 3.1e-6, unit="s", work=1, **about))
    for i in range(13):
        size = (256 << 10) << i
        rate = 150e9 if size <= 2 << 20 else 90e9 if size <= 32 << 20 else 50e9
        for kernel in ("read", "triad"):
            here = {"kernel": kernel, "working_set_bytes": size}
            found.append(
                measurement("curve", f"{kernel} {size}", rate, process=0, threads=2, dtype="float32", parameters=here)
            )
    figures = (
        *characteristics(found, threads=2),
        Characteristic(
            name="curve.plateau 1", unit="B/s", value=150e9, replicates=1,
            conditions="read and triad; working sets from 262144 to 2097152 bytes",
        ),
        Characteristic(
            name="curve.plateau 2", unit="B/s", value=90e9, replicates=1,
            conditions="read and triad; working sets from 4194304 to 33554432 bytes",
        ),
        Characteristic(name="curve.knee 1", unit="B", value=math.sqrt(2 * 4) * 2**20, replicates=1),
        Characteristic(name="collective.all_reduce.bandwidth", unit="B/s", reason="gloo is not built into this torch"),
    )  # fmt: skip
    source = "measured: memory.read; operand_bytes 268435456; cold"
    measured = Peaks(
        matrix={"float32": Figure(value=210e9, source="measured: matmul.burst")},
        vector={"float32": Figure(value=21e9, source="measured: vector.gelu")},
        levels=(
            Level(name="L2", capacity_bytes=4 << 20, bandwidth=Figure(value=150e9, source="measured: cache.read")),
            Level(name="DRAM", capacity_bytes=16e9, bandwidth=Figure(value=52e9, source=source, low=51e9, high=53e9)),
        ),
        host_s_per_op=Figure(value=3.1e-6, source="measured: host.operation"),
    )
    spec = HardwareSpec(
        name="amd-epyc-9b14", kind="cpu", measured=measured, characteristics=figures,
        missing={
            "level.L3": "merged into DRAM: 54.0 GB/s is not 15% above 52.0 GB/s",
            "matrix.float8_e4m3fn": "RuntimeError: no float8 product on this CPU",
        },
    )  # fmt: skip
    return spec, found, report_samples.run("cpu").model_copy(update={"cells": ()})


def gpu() -> Sample:
    """An H200 at its power cap: datasheet, clocks, transfers, graphs, collectives, energy."""
    found: list[Measurement] = []
    for process in PROCESSES:
        about = {"process": process}
        for kernel, rate in (("read", 4.52e12), ("triad", 4.16e12), ("copy", 4.01e12)):
            found.append(
                measurement(
                    "memory",
                    kernel,
                    rate,
                    dtype="float32",
                    cache=_cold(),
                    windows=_device(1980e6),
                    parameters={"operand_bytes": 1 << 30},
                    **about,
                )
            )
        for dtype, burst, lasting in (("bfloat16", 861e12, 794e12), ("float32", 52e12, 51e12)):
            found.append(
                measurement(
                    "matmul",
                    "burst",
                    burst,
                    unit="FLOP/s",
                    dtype=dtype,
                    parameters=_shape(4096),
                    windows=_device(1755e6),
                    **about,
                )
            )
            found.append(_sustained(dtype, lasting, process))
        found.append(measurement("matmul", "burst", 1453e12, unit="FLOP/s", dtype="float8_e4m3fn", **about))
        for m in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            found.append(_skinny("bfloat16", m, 4.52e12, 861e12, **about))
        found += _pointwise("bfloat16", 3.9e12, 3.7e12, **about)
        for case, cost in (("call", 1.6e-6), ("back to back", 2.5e-6)):
            found.append(measurement("launch", case, cost, unit="s", work=1, **about))
        for nodes in (1, 4, 16, 64, 256):
            found.append(measurement("launch", f"graph {nodes}", 4e-6 + 1.3e-6 * nodes, unit="s", work=1, **about))
        found.append(measurement("energy", "bfloat16", 0.8e-12, unit="J/FLOP", work=1e12, dtype="bfloat16", **about))
    found.append(failed("vector", "gelu", "CUDA error: out of memory", process=3, dtype="float32"))
    found += [measurement("vector", "gelu", 31e12, unit="FLOP/s", dtype="float32", process=p) for p in (1, 2)]
    for memory, latency, bandwidth in (("pinned", 8e-6, 55e9), ("pageable", 20e-6, 12e9)):
        for i in range(10, 31, 2):
            time_s = latency + 2**i / bandwidth
            here = {"memory": memory, "direction": "to device", "size_bytes": 2**i}
            found.append(
                measurement(
                    "transfer", f"{memory} to device {2**i}", 2**i / time_s, work=2**i, process=0, parameters=here
                )
            )
    for i in range(10, 31, 4):
        factor = 2 * 7 / 8
        time_s = 30e-6 + factor * 2**i / 400e9
        here = {"operation": "all_reduce", "size_bytes": 2**i, "ranks": 8}
        found.append(
            measurement(
                "collective",
                f"all_reduce {2**i}",
                factor * 2**i / time_s,
                work=factor * 2**i,
                process=0,
                parameters=here,
            )
        )
    device = load_device("nvidia-h200-sxm")
    fits = [
        *_fit("transfer.pinned to device", 55e9, 8e-6),
        *_fit("transfer.pageable to device", 12e9, 20e-6),
        *_fit("collective.all_reduce", 400e9, 30e-6),
        Characteristic(name="launch.graph node", unit="s", value=1.3e-6, replicates=3, low=1.28e-6, high=1.33e-6),
        Characteristic(name="launch.graph start", unit="s", value=4e-6, replicates=3, low=3.8e-6, high=4.3e-6),
        Characteristic(name="matmul.burst", dtype="int8", unit="FLOP/s", reason="RuntimeError: M must be above 16"),
    ]
    figures = with_datasheet((*characteristics(found, threads=None), *fits), device.datasheet)
    measured = Peaks(
        matrix={"bfloat16": Figure(value=861e12, source="measured: matmul.burst", low=852e12, high=870e12)},
        vector={"float32": Figure(value=31e12, source="measured: vector.gelu")},
        levels=(Level(name="HBM", capacity_bytes=141e9, bandwidth=Figure(value=4.52e12, source="measured: read")),),
    )
    spec = device.model_copy(
        update={
            "measured": measured,
            "characteristics": figures,
            "uuid": "GPU-3f2a-77",
            "missing": {"level.L2": "<none>"},
        }
    )
    return spec, found, report_samples.run().model_copy(update={"cells": ()})


def _cold() -> CacheState:
    return CacheState(declared="cold", operand_bytes=3 << 28, between_bytes=3 << 28, cache_bytes=32 << 20, holds=True)


def _host() -> tuple[Window, ...]:
    return (Window(start_s=0, duration_s=0.4, samples=12, cores=2, cpu_clock_hz=2.6e9, steal_fraction=0.01),)


def _device(clock_hz: float) -> tuple[Window, ...]:
    return (
        Window(start_s=0, duration_s=0.2, samples=12, sm_clock_hz=clock_hz, power_w=540, temperature_c=44, foreign=()),
    )


def _shape(side: int) -> dict[str, int]:
    return {"m": side, "n": side, "k": side}


def _sustained(dtype: str, rate: float, process: int) -> Measurement:
    """Ten windows of a second; the samples kept are those of the second half."""
    clocks = [1980e6, 1905e6, 1755e6, 1650e6, 1605e6, 1605e6, 1590e6, 1605e6, 1620e6, 1605e6]
    windows = tuple(
        Window(
            start_s=i,
            duration_s=1.0,
            samples=20,
            sm_clock_hz=clock,
            power_w=700 - 40 * (i < 2),
            temperature_c=45 + 2 * i,
        )
        for i, clock in enumerate(clocks)
    )
    label = Label(severity="note", what=CAP.replace("83", str(80 + process)), share=0.83)
    return measurement(
        "matmul", "sustained", rate, unit="FLOP/s", work=1e12, process=process, count=100, quantile=0.5, dtype=dtype,
        windows=windows, labels=(label,),
    )  # fmt: skip


def _skinny(dtype: str, m: int, bandwidth: float, peak: float, **about: object) -> Measurement:
    size = 2 if dtype == "bfloat16" else 4
    flops, moved = 2.0 * m * 4096 * 4096, size * (2 * m * 4096 + 4096 * 4096)
    time_s = max(moved / bandwidth, flops / peak) / 0.8
    shape = {"m": m, "n": 4096, "k": 4096, "flops": flops, "bytes": moved}
    return measurement("skinny", f"m{m}", time_s, unit="s", work=1, dtype=dtype, parameters=shape, **about)


def _pointwise(dtype: str, given: float, fresh: float, **about: object) -> list[Measurement]:
    found = []
    for operation in ("add", "gelu", "rms_norm"):
        for output, rate in (("given", given), ("fresh", fresh)):
            if operation != "rms_norm" or output == "fresh":
                case, here = f"{operation}, {output} output", {"operation": operation, "output": output}
                found.append(measurement("pointwise", case, rate, dtype=dtype, cache=_cold(), parameters=here, **about))
    return found


def _fit(name: str, bandwidth: float, latency_s: float) -> list[Characteristic]:
    return [
        Characteristic(
            name=f"{name}.bandwidth", unit="B/s", value=bandwidth, replicates=1, conditions="fit over sizes"
        ),
        Characteristic(name=f"{name}.latency", unit="s", value=latency_s, replicates=1, conditions="fit over sizes"),
    ]
