"""What laws need to know of a device before anything is measured, from its spec.

The datasheet where there is one; a device without one (most CPUs) is described by what was measured of it, since priors
need only be right to a factor.

Example: ``facts_of(load_device("nvidia-h200-sxm")).units == 132``
"""

from roofline.hardware import HardwareSpec, Peaks
from roofline.laws.law import Facts

OUTWARD = ("nvlink", "infinity-fabric", "ici")
"""Links to devices of its kind."""


def facts_of(spec: HardwareSpec) -> Facts:
    """Raises ValueError, one line: which facts the spec lacks, and where they belong."""
    peaks = spec.datasheet or spec.measured
    if peaks is None:
        raise ValueError(f"{spec.name} has no datasheet and no measured peaks; name a device file with --hardware")
    units = spec.chip.units.value if spec.chip and spec.chip.units else None
    cache = _cache_bytes(spec, peaks)
    vector = peaks.vector.get("float32")
    found = {"chip.units": units, "chip.last_level_cache_bytes": cache, "vector.float32": vector}
    if lacking := [name for name, value in found.items() if value is None]:
        raise ValueError(f"{spec.name} does not say {', '.join(lacking)}, which laws need; add them to its device file")
    assert units is not None and cache is not None and vector is not None
    link = next((peaks.links[name] for name in OUTWARD if name in peaks.links), None)
    return Facts(
        units=int(units),
        cache_bytes=cache,
        bandwidth_bytes_per_s=peaks.levels[-1].bandwidth.value,
        matrix_flops_per_s={dtype: figure.value for dtype, figure in peaks.matrix.items()},
        vector_flops_per_s=vector.value,
        link_bytes_per_s=link.bandwidth.value if link else None,
    )


def _cache_bytes(spec: HardwareSpec, peaks: Peaks) -> float | None:
    """Of the last level before main memory."""
    if spec.chip and spec.chip.last_level_cache_bytes:
        return spec.chip.last_level_cache_bytes.value
    for one in (peaks, spec.measured):
        if one is not None and len(one.levels) > 1:
            return one.levels[-2].capacity_bytes
    return None
