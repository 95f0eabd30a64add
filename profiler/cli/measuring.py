"""The parts that `run` and `hardware` share: the check of the machine, the device's calibration, and estimates of time.

Wiring only: `calibrate` chooses and fits, `profiler` measures. An estimate is the sum of the plan's budgets and of the
costs that follow from a model's size; all seconds that are not a budget are in `Costs`.

Example: ``calibrate_device(folder, torch.device("cpu"), ("float32",), quick=False, visits=2, seed=0, step=print)``
"""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from profiler.cli.output import Step, remark, say
from profiler.record.folder import RunFolder
from profiler.record.run import Cell, Environment, RequestError, Run, differing, roofcal_version
from roofline.hardware.spec import HardwareSpec
from roofline.laws.fitted import Provenance, ReferenceLevel
from roofline.units import duration

if TYPE_CHECKING:
    import torch

    from calibrate.kernels.choose import Demand
    from profiler.devices.conditions import Finding

PROBE_PART = 1 / 16
"""Share of the device's memory that the operands of one kernel may take."""
PROBE_BYTES = 7 << 27
"""Most bytes of the operands of one kernel: making them takes time on a CPU."""

LIKELY, LARGER = 5e8, 4.0
"""Parameters that are assumed of a model outside of the catalogue, and the factor by which a model whose shapes are
measured may be larger than those of the run: so the range holds their sizes, but not those of much larger models."""

SECONDS, VISITS = 50.0, 3
"""Seconds of a calibration's kernels, and visits to each that they allow on two quiet cores; --visits takes more."""

LONGEST = 4.0
"""Longest calibration ÷ those seconds. On a machine so busy that two visits to each kernel take longer, laws of fewer
kernels are worth more than none."""

DEVICE_S, QUICK_DEVICE_S = 10.0, 5.0
"""Seconds of `measure_device`: the default, and with --quick."""

DTYPES = ("float32", "bfloat16", "float16")
"""Dtypes that calibration can make kernels in."""


def prepare_process(options: Mapping[str, Any]) -> None:
    """Let torch use as many threads as the run asks for, and this process keep the memory that it frees."""
    from profiler.devices.host import keep_freed_memory

    keep_freed_memory()
    if options.get("threads"):
        import torch

        torch.set_num_threads(int(options["threads"]))


def new_run(name: str, environment: Environment, cells: tuple[Cell, ...], options: Mapping[str, Any]) -> Run:
    """A run that begins now, by this command."""
    return Run(
        name=_encodable(name),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(map(_encodable, sys.argv[1:])),
        environment=environment,
        cells=cells,
        options=dict(options),
    )


def _encodable(text: str) -> str:
    """A text as UTF-8 can hold it: bytes of the command line that are none become "?"."""
    return text.encode("utf-8", "replace").decode()


def require_same_machine(run: Run) -> None:
    """Raise RequestError unless this machine and its software are those that a run began on."""
    from profiler.devices.environment import collect

    run.require_options("device")
    prepare_process(run.options)
    if changed := differing(run.environment, collect(str(run.options["device"]))):
        raise RequestError(f"--resume: this run began with {'; '.join(changed)}; resume it there, or start a new run")


LOOK_S = 5.0
"""Seconds between two looks at a busy machine: the kernel itself averages the load over this long (sched/loadavg.h)."""


def look_before(
    device: str,
    results: Path,
    wait_s: float = 0.0,
    *,
    look: "Callable[[str, Path], tuple[Finding, ...]] | None" = None,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> "tuple[Finding, ...]":
    """Say on stderr what would spoil a measurement that is about to begin, and return all findings.

    While something does that may end by itself, such as other work, this waits, for `wait_s` seconds at most.
    """
    if look is None:
        from profiler.devices.environment import findings

        look = findings
    began_s = now()
    problems, is_waiting = look(device, results), False
    while any(p.passing and p.severity != "note" for p in problems) and now() - began_s < wait_s:
        if not is_waiting:
            busy = next(p for p in problems if p.passing)
            remark(f"waiting up to {duration(wait_s)} until this machine is quiet: {busy.what}")
            is_waiting = True
        sleep(min(LOOK_S, max(0.0, wait_s - (now() - began_s))))
        problems = look(device, results)
    if is_waiting:
        is_quiet = not any(p.passing and p.severity != "note" for p in problems)
        end = "it is quiet" if is_quiet else "it is still busy, and the measurement begins"
        remark(f"waited {duration(now() - began_s)}: {end}")
    for problem in problems:
        if problem.severity != "note":
            print(f"{problem.severity}: {problem.what}; {problem.mend}", file=sys.stderr, flush=True)
    return problems


def device_s(quick: bool) -> float:
    """Seconds that `measure_device` takes, about."""
    return QUICK_DEVICE_S if quick else DEVICE_S


def measure_device(
    folder: RunFolder, device: "torch.device", *, quick: bool, step: Step, dtypes: Collection[str] = ()
) -> HardwareSpec:
    """Measure the device's peaks briefly, and write them with its datasheet, if there is one, as spec.json.

    Products are measured in the dtypes of the run's cells, in `dtypes` as far as they are known, and in float32.

    Raises RequestError if the folder cannot be written, or if main memory cannot be measured.
    """
    from calibrate.device.peaks import spec_of_peaks
    from profiler.devices.caches import memory_hierarchy
    from profiler.microbench.matmul import PRODUCTS
    from profiler.microbench.short import measure_peaks

    try:
        measurements = measure_peaks(
            device,
            sorted({cell.workload.dtype for cell in folder.run.cells} | set(dtypes) & set(PRODUCTS) | {"float32"}),
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
    """Measure kernels in `dtypes`, fit laws to them, write kernels.parquet and spec.json, and return the spec.

    Args: `quick` halves the kernels; `visits` is how often each of them is measured, with all others in between. The
    reason why something cannot be measured or fitted is in `HardwareSpec.missing`.
    """
    from calibrate.kernels.choose import kernel_shapes
    from calibrate.kernels.fit import observations
    from calibrate.kernels.score import fit_measured, stored_laws
    from profiler.devices.backend import free_bytes
    from profiler.kernels.family import streaming_operators
    from profiler.kernels.journal import FILE, VisitJournal
    from profiler.kernels.table import probe_kernels
    from profiler.record.kernel_table import write_kernels
    from profiler.timing.turns import ReferenceProbes
    from roofline.hardware.spec import facts_of

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
            f"no laws in {', '.join(left_out)}: calibration needs a measured peak and one of {', '.join(DTYPES)}"
        )
    if not used:
        return _kept(folder, spec, missing)
    memory_bytes = min(spec.measured.levels[-1].capacity_bytes, free_bytes(device))
    limit_bytes = min(PROBE_BYTES, PROBE_PART * memory_bytes)
    demand = demand_of(folder.run.cells)
    shapes = kernel_shapes(facts, used, limit_bytes, streaming_operators(), demand, quick=quick, seed=seed)
    seconds = SECONDS * max(1.0, visits / VISITS)
    journal = VisitJournal(folder.path / FILE)
    if journal.lines:
        remark(f"calibration: goes on after the {len(journal.lines)} visits of {journal.path}")
    probed = probe_kernels(
        shapes,
        device,
        facts.cache_bytes,
        eager={dtype: facts.matrix_flops_per_s[dtype] for dtype in used},
        visits=visits,
        limit_bytes=limit_bytes,
        versions=folder.run.environment.versions,
        progress=lambda part, what: step(f"calibration: {what}", part),
        reference=ReferenceProbes(device, dtypes=used),
        peaks=spec.measured,
        seconds=seconds,
        longest_s=LONGEST * seconds,
        journal=journal,
    )
    missing |= probed.failed
    if probed.warning is not None:
        missing["calibration"] = probed.warning
        say(f"calibration: {probed.warning}", sys.stderr)
    if probed.table is None:
        return _kept(folder, spec, missing)
    write_kernels(folder.path, probed.table)
    journal.remove()
    step("calibration: laws", 0.9)
    laws = fit_measured(observations(probed.table), facts, seed)
    provenance = Provenance(
        runs=(str(folder.path),),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        versions={**folder.run.environment.versions, "roofcal": roofcal_version()},
    )
    levels = {
        name: ReferenceLevel(seconds=tuple(seconds), centre_s=probed.centre_s.get(name))
        for name, seconds in probed.reference.items()
    }
    spec = spec.model_copy(update={"calibrated": stored_laws(laws, provenance), "reference": levels})
    return _kept(folder, spec, missing)


def demand_of(cells: Sequence[Cell]) -> "Demand":
    """The shapes that the models of a run are likely to need: those of the catalogue up to some times their size.

    Without cells, they are those of the whole catalogue for one token and for a prompt.
    """
    from calibrate.kernels.choose import Demand
    from profiler.models.catalogue import catalogue, config_of, head_layouts, linear_shapes

    known = catalogue()
    sizes = [known[cell.model].parameters if cell.model in known else LIKELY for cell in cells]
    largest = LARGER * max([*sizes, LIKELY]) if sizes else float("inf")
    configs = [config_of(name) for name, entry in known.items() if entry.parameters <= largest]
    workloads = [cell.workload for cell in cells]
    return Demand(
        weights=tuple(dict.fromkeys(shape for config in configs for shape in linear_shapes(config))),
        heads=tuple(dict.fromkeys(layout for config in configs for layout in head_layouts(config))),
        rows=tuple(sorted({w.batch * w.query_tokens for w in workloads} | {1, 128})),
        contexts=tuple(sorted({w.query_tokens + w.context_tokens for w in workloads} | {128})),
    )


def _kept(folder: RunFolder, spec: HardwareSpec, missing: dict[str, str]) -> HardwareSpec:
    spec = spec.model_copy(update={"missing": {**spec.missing, **missing}})
    folder.write_spec(spec)
    return spec


PARTS = ("device", "calibration", "passes", "report")


@dataclass(frozen=True, slots=True)
class Costs:
    """Times beside the budgets, from runs of the default models on two cores of a shared EPYC."""

    device: float = 1.45
    """Time of the device's figures ÷ its budget: operands are made, and the last case ends after the budget."""
    start_s: float = 9.0
    """Seconds of the first visit to the kernels of one dtype: operands, first calls, the trace."""
    visit_s: float = 6.5
    """Seconds of another visit to all kernels of one dtype."""
    quick: float = 0.5
    """Kernels with --quick ÷ all kernels."""
    laws_s: float = 6.0
    """Seconds to fit the laws of one dtype."""
    weights_s_per_byte: float = 1 / 1.5e9
    """Seconds to write a byte of random weights."""
    model_s: float = 1.0
    """Seconds to build a model twice, with weights and without."""
    cell_s: float = 3.0
    """Seconds to trace, check and warm up a pass, and to end its last round after the budget."""
    fewest_passes: float = 8.0
    """Fewest passes of a cell: one to warm up, one checked, three rounds of one plain and one profiled."""
    report_s: float = 2.0
    """Seconds to write the reports, most of which load what draws plots."""


def calibration_s(dtypes: int, options: Mapping[str, Any], costs: Costs = Costs()) -> float:
    """Seconds of a calibration in so many dtypes, by the run's options."""
    part = costs.quick if options.get("quick") else 1.0
    visits = int(options.get("visits") or 1)
    return dtypes * (part * (costs.start_s + (visits - 1) * costs.visit_s) + costs.laws_s)


def estimate(
    run: Run,
    weight_bytes: Mapping[Cell, float],
    *,
    device_s: float,
    calibrate: bool,
    pass_s: Mapping[Cell, float] = MappingProxyType({}),
    costs: Costs = Costs(),
) -> dict[str, float]:
    """Seconds of each part of a run that is left to do.

    Args: `weight_bytes` of the model of each cell that is to be measured; `device_s`, the budget of the device's
    figures, 0 where they are known; `calibrate`, whether laws are to be fitted; `pass_s`, the seconds of one pass.
    """
    options = run.options
    budget_s = float(options.get("seconds") or 0)
    dtypes = {cell.workload.dtype for cell in run.cells}
    models = {(cell.model, cell.workload.dtype): size for cell, size in weight_bytes.items()}
    passes_s = sum(costs.model_s + size * costs.weights_s_per_byte for size in models.values())
    fewest_s = [costs.fewest_passes * pass_s.get(cell, 0.0) for cell in weight_bytes]
    passes_s += sum(max(budget_s, needed_s) + costs.cell_s for needed_s in fewest_s)
    parts = {
        "device": device_s * costs.device,
        "calibration": calibration_s(len(dtypes), options, costs) if calibrate else 0.0,
        "passes": passes_s,
        "report": costs.report_s,
    }
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


def describe_times(parts: Mapping[str, float], passes: int) -> str:
    """The total and its parts, as "2 min 20 s: device 15 s, calibration 75 s, 4 passes 45 s, report 3 s"."""
    names = {"passes": f"{passes} {'pass' if passes == 1 else 'passes'}"}
    listed = ", ".join(f"{names.get(name, name)} {duration(seconds)}" for name, seconds in parts.items())
    return f"{duration(sum(parts.values()))}: {listed}"


class Spent:
    """Seconds of each part so far; a part that is entered again is added to."""

    def __init__(self, before: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`before` has the seconds that a resumed run had spent."""
        self.parts = dict(before or {})
        self._clock = clock

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Within it, time counts for a part, also where it ends in an error."""
        begin = self._clock()
        try:
            yield
        finally:
            self.parts[part] = self.parts.get(part, 0.0) + self._clock() - begin
