"""What no device can be: figures in the wrong unit, and figures that contradict each other.

The bounds are so wide that only a wrong unit crosses them: each holds every device and every measurement of one with
room on both sides, and says for which unit a value below it is usually mistaken. `inconsistent` refuses only what no
hardware does, such as 8 bits slower than 16; a sparse figure beside dense ones shows in that way.

Example: ``next(implausible("datasheet.matrix.bfloat16.value", "rate", 989.4)).what`` → "989.4 is below 1e+08 FLOP/s…"
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DTYPES = (
    "float64",
    "float32",
    "tfloat32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float4_e2m1fn_x2",
    "int8",
    "uint8",
    "int4",
)
"""Names of dtypes in a device file: torch's, and two that torch has none for: "tfloat32" and "int4"."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A field that cannot be right."""

    field: str
    """Its path: "datasheet.matrix.bfloat16.value"."""
    what: str
    """What is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Values between which every device lies, and the reason."""

    low: float
    high: float
    unit: str
    reason: str


BOUNDS: dict[str, Bounds] = {
    # 16-bit products emulated by one slow core reach 1e9 FLOP/s; B300 in GFLOPS is 1.35e7. A rack of 72 is 7e17.
    "rate": Bounds(1e8, 1e18, "FLOP/s", "no processor computes at such a rate; 989.4 TFLOPS is 989.4e12"),
    # one channel of DDR3 is 1e10; 22 TB/s in MB/s is 2.2e7. Caches of a whole GPU reach some 1e14.
    "bandwidth": Bounds(1e8, 1e15, "bytes/s", "no memory has such a bandwidth; 4800 GB/s is 4.8e12"),
    # 100 Mbit Ethernet is 1.25e7; NVLink in MB/s is 9e5.
    "link_bandwidth": Bounds(1e6, 1e14, "bytes/s", "no link has such a bandwidth; 450 GB/s is 450e9, 400 Gbit/s 50e9"),
    "capacity_bytes": Bounds(1024, 1e14, "bytes", "no cache is of such a size; 50 MB is 50e6"),
    # a container may be held to some 100 MB; 141 GB in MB is 1.41e5
    "main_capacity_bytes": Bounds(1e7, 1e15, "bytes", "no main memory is of such a size; 141 GB is 141e9"),
    "time_s": Bounds(1e-9, 1.0, "s", "no operation or message costs that; 5 µs is 5e-6"),
    "base_clock_hz": Bounds(1e7, 2e10, "Hz", "no chip has such a clock; 1980 MHz is 1.98e9"),
    "boost_clock_hz": Bounds(1e7, 2e10, "Hz", "no chip has such a clock; 1980 MHz is 1.98e9"),
    "matrix_clock_hz": Bounds(1e7, 2e10, "Hz", "no chip has such a clock; 1980 MHz is 1.98e9"),
    "last_level_cache_bytes": Bounds(1e4, 1e12, "bytes", "no last-level cache is of such a size; 50 MB is 50e6"),
    "power_w": Bounds(1.5, 1e5, "W", "no such device draws that; 0.7 kW is 700"),
    "units": Bounds(1, 1e6, "units", "no chip has that many"),
    "released": Bounds(1970, 2100, "(a year)", "no device is of that year"),
}


def implausible(field: str, quantity: str, value: float) -> Iterable[Problem]:
    """The problem of a value that lies outside the `BOUNDS` of its quantity, or is not a number."""
    bounds = BOUNDS[quantity]
    if not math.isfinite(value):
        yield Problem(field, f"{value:g} is not a finite number; give {bounds.unit}, or leave the figure out")
    elif not bounds.low <= value <= bounds.high:
        side, bound = ("below", bounds.low) if value < bounds.low else ("above", bounds.high)
        yield Problem(field, f"{value:g} is {side} {bound:g} {bounds.unit}: {bounds.reason}; give {bounds.unit}")


LARGEST_STEP = 2.2
"""From TF32 to 16 bits, and from 16 bits to FP8, the dense rate at most doubles on every tensor core so far; with one
sparse figure in a pair it is four times. 10 % for rounded figures."""
FASTER_OR_EQUAL = (
    ("float32", "tfloat32"),
    ("tfloat32", "float16"),
    ("tfloat32", "bfloat16"),
    *(
        (wide, narrow)
        for wide in ("float16", "bfloat16")
        for narrow in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int8")
    ),
)
"""(wide, narrow): where both exist, the narrow dtype is at least as fast."""


def inconsistent(field: str, rates: Mapping[str, float], *, tensor_cores: bool) -> Iterable[Problem]:
    """Pairs of matrix rates, by dtype in FLOP/s, that cannot both be dense peaks of one device.

    A CPU (not `tensor_cores`) may have a matrix unit for some dtypes alone, so that only its order is checked.
    """
    for wide, narrow in FASTER_OR_EQUAL:
        if wide not in rates or narrow not in rates:
            continue
        step = rates[narrow] / rates[wide]
        if step < 0.98:
            yield Problem(
                f"{field}.{narrow}.value",
                f"{rates[narrow]:g} is slower than {wide} ({rates[wide]:g}); is {wide} a sparse figure? "
                "Give both dense, in FLOP/s",
            )
        if tensor_cores and step > LARGEST_STEP and wide != "float32" and narrow != "int8":
            yield Problem(
                f"{field}.{narrow}.value",
                f"{rates[narrow]:g} is {step:.1f} times {wide} ({rates[wide]:g}), no tensor core more than doubles it; "
                "a figure with sparsity? Give half of it",
            )
