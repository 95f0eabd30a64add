"""The calibration of a run's own device: kernels by shapes that follow from it, laws fitted to them, kept in its spec.

Wiring only: `calibrate` chooses and fits, `profiler` measures.

Example: ``calibrate_device(folder, torch.device("cpu"), ("float32",), quick=False, visits=2, seed=0, step=print)``
"""

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from profiler.record.store import RunFolder
from profiler.record.version import roofcal_version
from roofline.calibrated import Provenance
from roofline.hardware import HardwareSpec
from roofline.level import ReferenceLevel

if TYPE_CHECKING:
    import torch

    from calibrate.kernel_shapes import Demand
    from profiler.record.run import Cell

PROBE_PART = 1 / 16
"""Of the device's memory, for the operands of one probe."""
PROBE_BYTES = 7 << 27
"""And never more: on a CPU making them takes time."""

LIKELY, LARGER = 5e8, 4.0
"""Parameters of a model that no catalogue names, and how many times more the largest model may have whose shapes are
asked for: a range that holds its sizes without measuring what only much larger models have."""

SECONDS = 45.0
"""For the kernels of a calibration; with more visits asked for, as many times more."""
VISITS = 3
"""Of each kernel, unless more are asked for."""

DTYPES = ("float32", "bfloat16", "float16")
"""Types that models are built in, and kernels are made in."""

Step = Callable[[str, float], None]


def calibrate_device(
    folder: RunFolder,
    device: "torch.device",
    dtypes: Collection[str],
    *,
    quick: bool,
    visits: int,
    seed: int,
    step: Step,
) -> HardwareSpec:
    """Measure kernels in `dtypes`, fit, and keep kernels.parquet and spec.json; the spec that was kept.

    Args: `quick`, half of the kernels; `visits`, how often each of them is measured, with all others in between. What
    cannot be measured or fitted is in `HardwareSpec.missing`, with its reason.
    """
    from calibrate.exchange.observed import observations
    from calibrate.kernel_shapes import kernel_shapes
    from calibrate.live import fit_measured, stored_laws
    from profiler.devices.backend import free_bytes
    from profiler.microbench.probe_kernels import STREAMING
    from profiler.microbench.probe_table import probe_kernels
    from profiler.record import kernels
    from profiler.timing.reference import ReferenceProbes
    from roofline.facts import facts_of

    spec = folder.read_spec()
    assert spec is not None and spec.measured is not None  # `measure_device` has run
    try:
        facts = facts_of(spec)
    except ValueError as error:
        return _kept(folder, spec, {"calibrated": str(error)})
    used = sorted(set(dtypes) & set(facts.matrix_flops_per_s) & set(DTYPES))
    missing: dict[str, str] = {}
    if left_out := sorted(set(dtypes) - set(used)):
        missing["calibrated"] = (
            f"no laws in {', '.join(left_out)}: kernels are made in {', '.join(DTYPES)}, with a peak"
        )
    if not used:
        return _kept(folder, spec, missing)
    memory_bytes = min(spec.measured.levels[-1].capacity_bytes, free_bytes(device))
    limit_bytes = min(PROBE_BYTES, PROBE_PART * memory_bytes)
    demand = demand_of(folder.run.cells)
    shapes = kernel_shapes(facts, used, limit_bytes, tuple(STREAMING), demand, quick=quick, seed=seed)
    probed = probe_kernels(
        shapes,
        device,
        facts.cache_bytes,
        eager={dtype: facts.matrix_flops_per_s[dtype] for dtype in used},
        visits=visits,
        limit_bytes=limit_bytes,
        versions=folder.run.environment.versions,
        progress=lambda part, what: step(f"calibration: {what}", part),
        reference=ReferenceProbes(device),
        seconds=SECONDS * max(1.0, visits / VISITS),
    )
    missing |= probed.failed
    if probed.table is None:
        return _kept(folder, spec, missing)
    kernels.write(folder.path, probed.table)
    step("calibration: laws", 0.9)
    laws = fit_measured(observations(probed.table), facts, seed)
    provenance = Provenance(
        runs=(str(folder.path),),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        versions={**folder.run.environment.versions, "roofcal": roofcal_version()},
    )
    levels = {name: ReferenceLevel(seconds=tuple(seconds)) for name, seconds in probed.reference.items()}
    spec = spec.model_copy(update={"calibrated": stored_laws(laws, provenance), "reference": levels})
    return _kept(folder, spec, missing)


def demand_of(cells: "Sequence[Cell]") -> "Demand":
    """What the models of a run are likely to ask of its device: the catalogue's shapes up to some times their size.

    Without cells, the whole catalogue's, a token and a prompt.
    """
    from calibrate.kernel_shapes import Demand
    from profiler.models.catalogue import catalogue, config_of, head_layouts, linear_shapes

    known = catalogue()
    sizes = [known[cell.model].parameters if cell.model in known else LIKELY for cell in cells]
    most = LARGER * max([*sizes, LIKELY]) if sizes else float("inf")
    configs = [config_of(name) for name, entry in known.items() if entry.parameters <= most]
    passes = [cell.workload for cell in cells]
    return Demand(
        weights=tuple(dict.fromkeys(one for config in configs for one in linear_shapes(config))),
        heads=tuple(dict.fromkeys(one for config in configs for one in head_layouts(config))),
        rows=tuple(sorted({one.batch * one.query_tokens for one in passes} | {1, 128})),
        contexts=tuple(sorted({one.query_tokens + one.context_tokens for one in passes} | {128})),
    )


def _kept(folder: RunFolder, spec: HardwareSpec, missing: dict[str, str]) -> HardwareSpec:
    spec = spec.model_copy(update={"missing": {**spec.missing, **missing}})
    folder.write_spec(spec)
    return spec
