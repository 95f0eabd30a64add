"""`hardware`: measure what the device reaches, in fresh processes, and write it as a spec.

Wiring only: options become a plan, `profiler.microbench.processes` runs it, `calibrate.device.spec` makes figures of
the measurements, `calibrate.report.device` reports them.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from profiler.cli import options as option
from profiler.cli import output
from profiler.cli.measuring import (
    VISITS,
    calibrate_device,
    calibration_s,
    look_before,
    new_run,
    prepare_process,
    require_same_machine,
)
from profiler.record.files import make_folder, require_separate
from profiler.record.folder import RunFolder
from profiler.record.run import MOST_MEMORY_GIB, MOST_PROCESSES, RequestError
from roofline.units import duration

if TYPE_CHECKING:
    from profiler.microbench.processes import Plan
    from roofline.hardware.spec import HardwareSpec

EXAMPLE = """
Examples:\n
python -m profiler hardware\n
python -m profiler hardware --quick --dtype bfloat16,float32\n
python -m profiler hardware --quick --calibrate\n
python -m profiler hardware --only memory,matmul --processes 10 --json\n
python -m profiler hardware --plan\n
python -m profiler hardware --resume results/DEVICE/RUN
"""

DTYPES = {
    "host": (("float32", "bfloat16", "float16", "int8"), ("float32", "bfloat16")),
    "accelerator": (
        ("float32", "tfloat32", "float16", "bfloat16", "float8_e4m3fn", "int8"),
        ("bfloat16", "float32", "tfloat32", "float8_e4m3fn"),
    ),
}
"""Default dtypes of products: those of a full run, and those of --quick."""


def hardware(
    device: option.DeviceName = "auto",
    dtype: Annotated[str | None, Option(help="Dtypes of the matrix products, as bfloat16,float32.")] = None,
    only: Annotated[str | None, Option(help="Run only these parts, as memory,matmul; --plan lists all.")] = None,
    quick: Annotated[
        bool, Option("--quick", help="Measure fewer sizes and shorter loads: about two minutes instead of six.")
    ] = False,
    calibrate: Annotated[
        bool, Option("--calibrate", help="Also time single kernels in the dtypes of --dtype, and fit laws to them.")
    ] = False,
    visits: option.Visits = VISITS,
    processes: Annotated[
        int,
        Option(
            help="Fresh processes that measure each figure; intervals need at least three.", min=1, max=MOST_PROCESSES
        ),
    ] = 3,
    threads: option.Threads = None,
    wait_quiet: option.WaitQuiet = 0.0,
    memory: Annotated[
        float | None,
        Option(
            help="Most memory of a measurement, in GiB. Default: an eighth of what is free.", callback=option.finite
        ),
    ] = None,
    plan: Annotated[bool, Option("--plan", help="Print what would run and how long it takes, then stop.")] = False,
    out: option.Out = Path("results"),
    name: option.Name = "hardware",
    resume: Annotated[Path | None, Option(help="Continue this interrupted run with its own options.")] = None,
    csv: option.Csv = None,
    as_json: option.AsJson = False,
) -> None:
    """Measure this device's bandwidths, peak rates and latencies.

    Each figure has its interval and conditions.
    """
    require_separate({"--csv": csv})
    options = {
        "device": device,
        "dtypes": dtype,
        "only": only,
        "quick": quick,
        "calibrate": calibrate,
        "visits": visits,
        "processes": processes,
        "threads": threads,
        "memory_gib": memory,
    }
    with output.stdout_to_stderr_if(as_json):
        if resume is None:
            options = _checked(options)
            steps = _plan(options)
            _print_plan(steps, print if plan and not as_json else output.remark)
            if plan:
                raise typer.Exit(output.GOOD)
            folder = _new(options, out, name, wait_quiet)
        else:
            folder = _resumed(resume)
            steps = _plan(folder.run.options)
    with folder:
        with output.stdout_to_stderr_if(as_json):
            spec = _measure(folder, steps)
        raise typer.Exit(_report(folder, spec, as_json, csv))


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options with all names in full. Raises RequestError for an unknown name, with those that are known."""
    from profiler.devices.backend import backend_of, parse_device
    from profiler.microbench import suite
    from profiler.microbench.matmul import PRODUCTS

    device = parse_device(options["device"])
    full, short = DTYPES["host" if backend_of(device).is_host else "accelerator"]
    dtypes = short if options["quick"] else full
    if options["dtypes"]:
        dtypes = option.dtypes(options["dtypes"])
    for name in dtypes:
        if name not in PRODUCTS:
            raise RequestError(f"--dtype {name}: products are not measured in it; use {', '.join(PRODUCTS)}")
    known = [part.name for part in suite.parts(device.type)]
    names = [name.strip() for name in options["only"].split(",")] if options["only"] else []
    words = {part: [word.strip() for word in part.split(",")] for part in known}  # either word of "memory, one core"
    chosen = [part for part in known if set(words[part]) & set(names)]
    for name in names:
        if name not in {word for part in known for word in words[part]}:
            raise RequestError(f"--only {name} is not measured on {device.type}; use {', '.join(known)}")
    if options["memory_gib"] is not None and not 0 < options["memory_gib"] < MOST_MEMORY_GIB:
        raise RequestError(f"--memory takes a size in GiB above 0, as 4; not {options['memory_gib']:g}")
    return options | {"device": str(device), "dtypes": ",".join(dtypes), "only": ";".join(chosen) or None}


def _plan(options: Mapping[str, Any]) -> "Plan":
    from profiler.microbench.processes import make_plan

    memory = options["memory_gib"]
    return make_plan(
        str(options["device"]),
        tuple(str(options["dtypes"]).split(",")),
        replicates=int(options["processes"]),
        quick=bool(options["quick"]),
        threads=options["threads"],
        limit_bytes=int(memory * 2**30) if memory else None,
        only=frozenset(str(options["only"]).split(";")) if options["only"] else None,
    )


def _print_plan(plan: "Plan", show: Callable[[str], None]) -> None:
    """Print the parts and about how long they take."""
    from profiler.microbench import suite

    known = {part.name: part.what for part in suite.PARTS}
    for part, count in Counter(part for stage in plan.stages for part in stage.parts).items():
        what = known.get(part, "search for the fastest shape of the products of each dtype")
        show(f"{part:18} {count:2} × {plan.seconds(part):4.0f} s  {what}")
    show(f"{plan.device}, {', '.join(plan.dtypes)}: {len(plan.stages)} fresh processes, about {duration(plan.total_s)}")


def _new(options: dict[str, Any], out: Path, name: str, wait_s: float) -> RunFolder:
    from profiler.devices.environment import collect

    prepare_process(options)
    make_folder(out)
    all_findings = look_before(str(options["device"]), out, wait_s)
    # A run of `hardware` records mere notes too, such as that the clock is not locked or that ECC is off.
    notes = tuple(finding.what for finding in all_findings)
    environment = collect(options["device"], all_findings).model_copy(update={"notes": notes})
    return RunFolder.create(out, new_run(name, environment, (), options))


def _resumed(path: Path) -> RunFolder:
    """The folder of an unfinished run of `hardware` that began on this machine with this software."""
    before = RunFolder.open(path)
    run = before.run
    if run.cells or (run.finished and before.content != "hardware"):
        raise RequestError(
            f"{path} is not a run of `hardware`; continue it with: python -m profiler run --resume {path}"
        )
    if run.finished:
        raise RequestError(f"{path} is finished; look at it with: python -m profiler show {path}")
    require_same_machine(run)
    run.require_options("dtypes", "only", "processes", "quick", "threads", "memory_gib")
    return RunFolder.open_for_resume(path)[0]


def _measure(folder: RunFolder, plan: "Plan") -> "HardwareSpec":
    import torch

    from calibrate.device.spec import spec_of
    from profiler.devices.caches import memory_hierarchy
    from profiler.microbench.processes import characterise
    from profiler.record.hardware_table import HardwareLog

    log = HardwareLog(folder.path)
    device, options = torch.device(plan.device), folder.run.options
    calibrate = bool(options.get("calibrate"))
    unit_s = [*plan.unit_s]
    if calibrate:
        unit_s.append(calibration_s(len(plan.dtypes), folder.run.options))
    with (
        output.resumable(folder.path, "hardware"),
        output.progress(len(unit_s), unit_s=unit_s, before=len(log.done)) as step,
    ):
        characterise(plan, log, step)
        spec = spec_of(log.measurements, folder.run.environment, memory_hierarchy(device))
        folder.write_spec(spec)
        if calibrate and spec.measured is not None:
            spec = calibrate_device(
                folder,
                device,
                plan.dtypes,
                quick=bool(options["quick"]),
                visits=int(options.get("visits") or VISITS),
                seed=0,
                step=lambda text, part: step(text, plan.total + part),
            )
    log.finish(folder.run)
    folder.finish()
    return spec


def _report(folder: RunFolder, spec: "HardwareSpec", as_json: bool, csv: Path | None) -> int:
    """Write and show the reports; return the exit code."""
    from calibrate.report.device import device_document
    from calibrate.report.json import device_json
    from calibrate.report.residuals import with_calibration
    from profiler.record.hardware_table import read_measurements

    measurements = read_measurements(folder.path)
    report = with_calibration(device_document(spec, measurements, folder.run), folder, spec)
    output.write_reports(folder, report)
    spec_path = folder.path / "spec.json"
    figures = device_json(spec_path, spec, measurements, folder.run)
    output.show(as_json, lambda: figures, lambda: report, kept=folder.path)
    if csv is not None:
        from calibrate.report.run_csv import write_figures

        write_figures(csv, figures["figures"])
    states = {figure.status for figure in spec.characteristics}
    without_peaks = spec.measured is None and any(measured.benchmark == "memory" for measured in measurements)
    if "invalid" in states:
        return output.INVALID
    return output.INCONCLUSIVE if "inconclusive" in states or without_peaks else output.GOOD
