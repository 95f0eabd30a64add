"""What laws need to know of a device before anything is measured, from its spec.

The datasheet where there is one; a device without one (most CPUs) is described by what was measured of it, since priors
need only be right to a factor.

Example: ``facts_of(load_device("nvidia-h200-sxm")).units == 132``
"""

from roofline.hardware.spec import HardwareSpec, Peaks
from roofline.laws.law import Facts

OUTWARD = ("nvlink", "infinity-fabric", "ici")
"""Links to devices of its kind."""


CACHE_S = 26e-6
"""Size of a last-level cache in seconds of main memory's bandwidth: median of the device files that name both."""
UNIT_FLOPS_PER_S = 450e9
"""float32 vector rate of a unit: median of the GPUs among them."""
MATRIX_PER_VECTOR = 8.0
"""16-bit matrix rate ÷ float32 vector rate: median of the device files."""


def facts_of(spec: HardwareSpec) -> Facts:
    """What its datasheet does not say is taken as `assumed` names it: priors need only be right to a factor.

    Raises ValueError, one line: a spec without peaks, or without any rate of arithmetic.
    """
    peaks = spec.datasheet or spec.measured
    if peaks is None:
        raise ValueError(f"{spec.name} has no datasheet and no measured peaks; name a device file with --hardware")
    bandwidth = peaks.levels[-1].bandwidth.value
    assumed: list[str] = []
    vector = peaks.vector["float32"].value if "float32" in peaks.vector else None
    if vector is None:
        matrix = next((peaks.matrix[dtype].value for dtype in ("bfloat16", "float16") if dtype in peaks.matrix), None)
        if matrix is None:
            raise ValueError(f"{spec.name} does not say vector.float32, which laws need; add it to its device file")
        vector = matrix / MATRIX_PER_VECTOR
        assumed.append(f"vector.float32 {vector:.3g} FLOP/s")
    cache = _cache_bytes(spec, peaks)
    if cache is None:
        cache = CACHE_S * bandwidth
        assumed.append(f"chip.last_level_cache_bytes {cache:.3g} B")
    units = spec.chip.units.value if spec.chip and spec.chip.units else None
    if units is None:
        units = max(1, round(vector / UNIT_FLOPS_PER_S))
        assumed.append(f"chip.units {units:.0f}")
    link = next((peaks.links[name] for name in OUTWARD if name in peaks.links), None)
    return Facts(
        units=int(units),
        cache_bytes=cache,
        bandwidth_bytes_per_s=bandwidth,
        matrix_flops_per_s={dtype: figure.value for dtype, figure in peaks.matrix.items()},
        vector_flops_per_s=vector,
        link_bytes_per_s=link.bandwidth.value if link else None,
        cores=spec.kind == "cpu",
        assumed=tuple(assumed),
    )


def _cache_bytes(spec: HardwareSpec, peaks: Peaks) -> float | None:
    """Size of the last level before main memory.

    On a CPU what was measured comes first: a virtual machine states, and a datasheet names, the cache of the whole
    processor, of which a process gets what its cores reach and others leave. A level that is not in `measured` is not
    faster than main memory, so that laws need not know of it.
    """
    if spec.kind == "cpu" and spec.measured is not None and len(spec.measured.levels) > 1:
        return spec.measured.levels[-2].capacity_bytes
    if spec.chip and spec.chip.last_level_cache_bytes:
        return spec.chip.last_level_cache_bytes.value
    for origin in (peaks, spec.measured):
        if origin is not None and len(origin.levels) > 1:
            return origin.levels[-2].capacity_bytes
    return None
