"""What `run` and `hardware` share: a machine as it was, the device's calibration, and the time that all of it takes.

Wiring only: `calibrate` chooses and fits, `profiler` measures. An estimate is the plan's own budgets and what a model's
size adds, weights that are drawn and passes that are traced; every second that is not a budget is in `Costs`.

Example: ``calibrate_device(folder, torch.device("cpu"), ("float32",), quick=False, visits=2, seed=0, step=print)``
"""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from calibrate.report.units import duration
from profiler.cli.output import Step
from profiler.record.folder import RunFolder
from profiler.record.run import Cell, Environment, RequestError, Run, differing, roofcal_version
from roofline.hardware.spec import HardwareSpec
from roofline.laws.fitted import Provenance, ReferenceLevel

if TYPE_CHECKING:
    import torch

    from calibrate.kernels.choose import Demand

PROBE_PART = 1 / 16
"""Share of the device's memory that the operands of one probe may take."""
PROBE_BYTES = 7 << 27
"""Bytes that they never exceed: on a CPU making them takes time."""

LIKELY, LARGER = 5e8, 4.0
"""Parameters of a model that no catalogue names, and how many times more the largest model may have whose shapes are
asked for: a range that holds its sizes without measuring what only much larger models have."""

SECONDS = 50.0
"""Time for the kernels of a calibration, three visits to each on two quiet cores; with more visits asked for, as many
times more."""
VISITS = 3
"""Visits to each kernel, unless more are asked for."""

DEVICE_S, QUICK_DEVICE_S = 10.0, 5.0
"""Seconds of `measure_device`, in full and with --quick."""

DTYPES = ("float32", "bfloat16", "float16")
"""Types that models are built in, and kernels are made in."""


def set_threads(options: Mapping[str, Any]) -> None:
    """Let torch use as many threads as the run asks for."""
    if options.get("threads"):
        import torch

        torch.set_num_threads(int(options["threads"]))


def new_run(name: str, environment: Environment, cells: tuple[Cell, ...], options: Mapping[str, Any]) -> Run:
    """A run that begins now, by this command."""
    return Run(
        name=name,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv[1:]),
        environment=environment,
        cells=cells,
        options=dict(options),
    )


def require_same_machine(run: Run) -> None:
    """Raises RequestError where this is not the machine, or not the software, that a run began on."""
    from profiler.devices.environment import collect

    set_threads(run.options)
    if changed := differing(run.environment, collect(str(run.options["device"]))):
        raise RequestError(f"--resume: this run began with {'; '.join(changed)}; measure it there, or start a new run")


def device_s(quick: bool) -> float:
    """Seconds of `measure_device`."""
    return QUICK_DEVICE_S if quick else DEVICE_S


def measure_device(folder: RunFolder, device: "torch.device", *, quick: bool, step: Step) -> HardwareSpec:
    """The datasheet where one describes the device, and what a short measurement reaches; kept as spec.json.

    Raises RequestError if the folder cannot be written, or if main memory cannot be measured.
    """
    from calibrate.device.spec import spec_of_peaks
    from profiler.devices.caches import memory_hierarchy
    from profiler.microbench.suite import measure_peaks

    try:
        measurements = measure_peaks(
            device,
            sorted({cell.workload.dtype for cell in folder.run.cells} | {"float32"}),
            budget_s=device_s(quick),
            progress=lambda part, text: step(f"device: {text}", part),
        )
        spec = spec_of_peaks(measurements, folder.run.environment, memory_hierarchy(device))
    except RuntimeError as error:
        raise RequestError(f"{error}; free memory, or name this device's spec.json with --hardware") from error
    folder.write_spec(spec)
    return spec


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
    from calibrate.kernels.choose import kernel_shapes
    from calibrate.kernels.observations import observations
    from calibrate.kernels.score import fit_measured, stored_laws
    from profiler.devices.backend import free_bytes
    from profiler.kernels.family import streaming_operators
    from profiler.kernels.table import probe_kernels
    from profiler.record.kernel_table import write_kernels
    from profiler.timing.reference import ReferenceProbes
    from roofline.hardware.facts import facts_of

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
    shapes = kernel_shapes(facts, used, limit_bytes, streaming_operators(), demand, quick=quick, seed=seed)
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
    if probed.warning is not None:
        missing["calibration"] = probed.warning
        print(f"calibration: {probed.warning}", file=sys.stderr, flush=True)
    if probed.table is None:
        return _kept(folder, spec, missing)
    write_kernels(folder.path, probed.table)
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


def demand_of(cells: Sequence[Cell]) -> "Demand":
    """What the models of a run are likely to ask of its device: the catalogue's shapes up to some times their size.

    Without cells, the whole catalogue's, a token and a prompt.
    """
    from calibrate.kernels.choose import Demand
    from profiler.models.catalogue import catalogue, config_of, head_layouts, linear_shapes

    known = catalogue()
    sizes = [known[cell.model].parameters if cell.model in known else LIKELY for cell in cells]
    most = LARGER * max([*sizes, LIKELY]) if sizes else float("inf")
    configs = [config_of(name) for name, entry in known.items() if entry.parameters <= most]
    passes = [cell.workload for cell in cells]
    return Demand(
        weights=tuple(dict.fromkeys(shape for config in configs for shape in linear_shapes(config))),
        heads=tuple(dict.fromkeys(layout for config in configs for layout in head_layouts(config))),
        rows=tuple(sorted({each.batch * each.query_tokens for each in passes} | {1, 128})),
        contexts=tuple(sorted({each.query_tokens + each.context_tokens for each in passes} | {128})),
    )


def _kept(folder: RunFolder, spec: HardwareSpec, missing: dict[str, str]) -> HardwareSpec:
    spec = spec.model_copy(update={"missing": {**spec.missing, **missing}})
    folder.write_spec(spec)
    return spec


PARTS = ("device", "calibration", "passes", "report")


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that no budget names, as runs of the default models on two cores of a shared EPYC took them."""

    device: float = 1.45
    """Times the budget of the device's figures: operands are made, and the last case ends after the budget."""
    start_s: float = 9.0
    """First visit to the kernels of one dtype: operands, first calls, the trace."""
    visit_s: float = 6.5
    """Another visit to all kernels of one dtype."""
    quick: float = 0.5
    """Kernels with --quick ÷ all."""
    laws_s: float = 6.0
    """The fit of the laws of one dtype."""
    weights_s_per_byte: float = 1 / 1.5e9
    """Random weights, written once."""
    model_s: float = 1.0
    """A model is built twice, with weights and without."""
    cell_s: float = 3.0
    """A pass is traced, checked, warmed up, and its last round of passes ends after the budget."""
    fewest_passes: float = 8.0
    """Passes of a cell at the least: one to warm up, one checked, three rounds of one plain and one profiled."""
    report_s: float = 2.0
    """Reports are written: most of it is loading what draws pictures."""


COSTS = Costs()


def estimate(
    run: Run,
    weight_bytes: Mapping[Cell, float],
    *,
    device_s: float,
    calibrate: bool,
    pass_s: Mapping[Cell, float] = MappingProxyType({}),
    costs: Costs = COSTS,
) -> dict[str, float]:
    """Seconds of each part that there is to do.

    Args: `weight_bytes`, of the model of each cell that is to be measured; `device_s`, the budget of the device's
    figures, 0 where they are known; `calibrate`, whether laws are to be fitted; `pass_s`, about how long a pass takes.
    """
    options = run.options
    visits, budget_s = int(options.get("visits") or 1), float(options.get("seconds") or 0)
    dtypes = {cell.workload.dtype for cell in run.cells}
    part = costs.quick if options.get("quick") else 1.0
    kernels_s = part * (costs.start_s + (visits - 1) * costs.visit_s)
    models = {(cell.model, cell.workload.dtype): size for cell, size in weight_bytes.items()}
    passes_s = sum(costs.model_s + size * costs.weights_s_per_byte for size in models.values())
    fewest_s = [costs.fewest_passes * pass_s.get(cell, 0.0) for cell in weight_bytes]
    passes_s += sum(max(budget_s, needed_s) + costs.cell_s for needed_s in fewest_s)
    parts = {
        "device": device_s * costs.device,
        "calibration": len(dtypes) * (kernels_s + costs.laws_s) if calibrate else 0.0,
        "passes": passes_s,
        "report": costs.report_s,
    }
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


def told(parts: Mapping[str, float], passes: int) -> str:
    """ "2 min 20 s: device 15 s, calibration 75 s, 4 passes 45 s, report 3 s"."""
    names = {"passes": f"{passes} {'pass' if passes == 1 else 'passes'}"}
    each = ", ".join(f"{names.get(name, name)} {duration(seconds)}" for name, seconds in parts.items())
    return f"{duration(sum(parts.values()))}: {each}"


class Spent:
    """Seconds of each part so far; a part that is entered again is added to."""

    def __init__(self, before: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`before`: what a run that is resumed had spent."""
        self.parts = dict(before or {})
        self._clock = clock

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Within it, time is spent on a part, also where it ends in an error."""
        begin = self._clock()
        try:
            yield
        finally:
            self.parts[part] = self.parts.get(part, 0.0) + self._clock() - begin
