"""What laws need to know of a device before anything is measured, from its spec.

The datasheet where there is one; a device without one (most CPUs) is described by its measured figures. Figures that
neither has are assumed: priors need only be right to a factor.
"""

from roofline.hardware.spec import HardwareSpec, Peaks
from roofline.laws.law import Facts

OUTWARD = ("nvlink", "infinity-fabric", "ici")
"""Links of a device to others of its kind."""
CACHE_S = 26e-6
"""Size of a last-level cache in seconds of main memory's bandwidth: median of the device files that name both."""
UNIT_FLOPS_PER_S = 450e9
"""float32 vector rate of a unit: median of the GPUs among the device files."""
MATRIX_PER_VECTOR = 8.0
"""16-bit matrix rate ÷ float32 vector rate: median of the device files."""


def facts_of(spec: HardwareSpec) -> Facts:
    """The facts of a device; `assumed` names those that its datasheet does not say.

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

    On a CPU the measured size comes first: a virtual machine states, and a datasheet names, the cache of the whole
    processor, of which a process gets a part. A level that is not in `measured` is not faster than main memory, so that
    laws need not know of it.
    """
    chip = spec.chip.last_level_cache_bytes if spec.chip else None
    sizes = [p.levels[-2].capacity_bytes if p and len(p.levels) > 1 else None for p in (peaks, spec.measured)]
    if spec.kind == "cpu" and sizes[1] is not None:
        return sizes[1]
    return chip.value if chip else next((size for size in sizes if size is not None), None)
