"""`hardware`: measure what the device reaches, in fresh processes, and keep it as a spec.

Wiring only: options become a plan, `profiler.microbench.processes` carries it out, `calibrate.device.spec` makes
figures of it, `calibrate.report.device` shows them.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calibrate.report.units import duration
from profiler.cli import output
from profiler.cli.measuring import VISITS, calibrate_device, new_run, require_same_machine, set_threads
from profiler.record.folder import RunFolder
from profiler.record.run import RequestError

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
"""Types that products are measured in by default, in full and with --quick."""


def hardware(
    device: Annotated[
        str, typer.Option(help="Device to measure: cpu, cuda, cuda:1, or auto (a GPU where there is one).")
    ] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="Types to multiply matrices in, separated by commas, as bfloat16,float32.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Run only these parts, separated by commas, as memory,matmul; --plan lists all.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure fewer sizes and shorter loads: about two minutes instead of six.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Also time single kernels in the types of --dtype and fit laws to them.")
    ] = False,
    visits: Annotated[
        int, typer.Option(help="How often --calibrate measures each kernel; on a busy machine, more are surer.", min=1)
    ] = VISITS,
    processes: Annotated[
        int,
        typer.Option(help="Fresh processes that measure each figure; from three on, figures have intervals.", min=1),
    ] = 3,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads that an operation uses; torch's own choice otherwise.", min=1)
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(help="Most memory that a measurement takes, in GiB; an eighth of what is free otherwise."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would run and how long it takes, then stop.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder in which results are kept.")] = Path("results"),
    name: Annotated[str, typer.Option(help="Name of the run, as `list` shows it.")] = "hardware",
    resume: Annotated[
        Path | None, typer.Option(help="Continue this interrupted run with the options that it was started with.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, everything else on stderr.")
    ] = False,
) -> None:
    """Measure what this device reaches: bandwidths, peak rates and latencies, each with its interval and conditions."""
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
            todo = _plan(options)
            _print_plan(todo, sys.stdout if plan and not as_json else sys.stderr)
            if plan:
                raise typer.Exit(output.GOOD)
            folder = _new(options, out, name)
        else:
            folder = _resumed(resume)
            todo = _plan(folder.run.options)
        with folder:
            spec = _measure(folder, todo)
            code = _write(folder, spec)
    _show(folder, spec, as_json)
    raise typer.Exit(code)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options with the device by its full name. Raises RequestError: what is unknown, and what to write."""
    from profiler.devices.backend import backend_of, parse_device
    from profiler.microbench import suite
    from profiler.microbench.matmul import PRODUCTS

    device = parse_device(options["device"])
    full, short = DTYPES["host" if backend_of(device).is_host else "accelerator"]
    given = options["dtypes"]
    dtypes = tuple(dict.fromkeys(given.split(","))) if given else (short if options["quick"] else full)
    for name in dtypes:
        if name not in PRODUCTS:
            raise RequestError(f"--dtype {name} is not a type that products are measured in; use {', '.join(PRODUCTS)}")
    known = [part.name for part in suite.parts(device.type)]
    names = [name.strip() for name in options["only"].split(",")] if options["only"] else []
    words = {part: [word.strip() for word in part.split(",")] for part in known}  # "memory, one core": either names it
    chosen = [part for part in known if any(word in names for word in words[part])]
    for name in names:
        if not any(name in some for some in words.values()):
            raise RequestError(f"--only {name} is not measured on {device.type}; use {', '.join(known)}")
    if options["memory_gib"] is not None and not 0 < options["memory_gib"] < 1 << 20:
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


def _print_plan(plan: "Plan", stream: Any) -> None:
    """What will run and roughly how long, before it starts."""
    from profiler.microbench import suite

    known = {part.name: part.what for part in suite.PARTS}
    for part, count in Counter(part for stage in plan.stages for part in stage.parts).items():
        what = known.get(part, "search for the fastest shape of the products of each type")
        print(f"{part:18} {count:2} × {plan.seconds(part):4.0f} s  {what}", file=stream)
    print(
        f"{plan.device}, {', '.join(plan.dtypes)}: {len(plan.stages)} fresh processes, about {duration(plan.total_s)}",
        file=stream,
        flush=True,
    )


def _new(options: dict[str, Any], out: Path, name: str) -> RunFolder:
    from profiler.devices.environment import collect, findings

    set_threads(options)
    all_findings = findings(options["device"], out)
    # Mere notes too: that the clock is not held, or ECC is off, matters only where the device itself is measured.
    notes = tuple(finding.what for finding in all_findings)
    environment = collect(options["device"], all_findings).model_copy(update={"notes": notes})
    return RunFolder.create(out, new_run(name, environment, (), options))


def _resumed(path: Path) -> RunFolder:
    """The folder of a characterisation, if this is still the machine and the software that it began on."""
    seen = RunFolder.open(path)
    run = seen.run
    if run.cells or (run.finished and seen.content != "hardware"):
        raise RequestError(
            f"{path} is not a run of `hardware`; continue it with: python -m profiler run --resume {path}"
        )
    if run.finished:
        raise RequestError(f"{path} is finished; look at it with: python -m profiler show {path}")
    require_same_machine(run)
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
    with output.resumable(folder.path, "hardware"), output.progress(plan.total + calibrate) as step:
        characterise(plan, log, step)
        spec = spec_of(log.measurements, folder.run.environment, memory_hierarchy(device))
        folder.write_spec(spec)
        if calibrate and spec.measured is not None:
            quick, visits, begun = bool(options["quick"]), int(options.get("visits") or VISITS), plan.total
            spec = calibrate_device(
                folder,
                device,
                plan.dtypes,
                quick=quick,
                visits=visits,
                seed=0,
                step=lambda text, part: step(text, begun + part),
            )
    log.finish(folder.run)
    folder.finish()
    return spec


def _write(folder: RunFolder, spec: "HardwareSpec") -> int:
    """Write the reports; the exit code."""
    from calibrate.report import html, markdown
    from calibrate.report.device import device_document
    from profiler.record.hardware_table import read_measurements

    measurements = read_measurements(folder.path)
    report = device_document(spec, measurements, folder.run)
    folder.write_report("report.md", markdown.render(report))
    folder.write_report("report.html", html.render(report))
    states = {figure.status for figure in spec.characteristics}
    without_peaks = spec.measured is None and any(measured.benchmark == "memory" for measured in measurements)
    if "invalid" in states:
        return output.INVALID
    return output.INCONCLUSIVE if "inconclusive" in states or without_peaks else output.GOOD


def _show(folder: RunFolder, spec: "HardwareSpec", as_json: bool) -> None:
    from calibrate.report.device import device_document
    from calibrate.report.json import device_json
    from calibrate.report.terminal import render
    from profiler.record.hardware_table import read_measurements

    measurements = read_measurements(folder.path)
    if as_json:
        output.print_json(device_json(folder.path / "spec.json", spec, measurements, folder.run))
    else:
        render(device_document(spec, measurements, folder.run), output.console())
        print(f"\nkept in {folder.path}", file=sys.stderr)
