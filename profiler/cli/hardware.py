"""`hardware`: measure what the device reaches, in fresh processes, and keep it as a spec.

Wiring only: options become a plan, `profiler.microbench.characterise` carries it out, `profiler.microbench.spec` makes
figures of it, `calibrate.report.device` shows them.
"""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from profiler.cli.calibrating import VISITS, calibrate_device
from profiler.cli.errors import GOOD, INCONCLUSIVE, INVALID, resumable
from profiler.cli.output import console, print_json, stdout_to_stderr_if
from profiler.cli.progress import progress
from profiler.record.errors import RequestError
from profiler.record.run import Run, differing
from profiler.record.store import RunFolder

if TYPE_CHECKING:
    from profiler.microbench.characterise import Plan
    from roofline.hardware import HardwareSpec

EXAMPLE = """
Examples:\n
python -m profiler hardware\n
python -m profiler hardware --quick --dtype bfloat16,float32\n
python -m profiler hardware --quick --calibrate\n
python -m profiler hardware --only memory,matmul --processes 10 --json\n
python -m profiler hardware --plan\n
python -m profiler hardware --resume results/DEVICE/RUN
"""

DTYPES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cpu": (("float32", "bfloat16", "float16", "int8"), ("float32", "bfloat16")),
    "cuda": (
        ("float32", "tfloat32", "float16", "bfloat16", "float8_e4m3fn", "int8"),
        ("bfloat16", "float32", "tfloat32", "float8_e4m3fn"),
    ),
}
"""In full and with --quick."""


def hardware(
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="Types of products, as bfloat16,float32.")] = None,
    only: Annotated[str | None, typer.Option(help="Parts, as memory,matmul; --plan lists them.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes and shorter loads: a minute or two.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Also fit laws to kernels, in --dtype.")] = False,
    visits: Annotated[int, typer.Option(help="Of each kernel, with --calibrate.", min=1)] = VISITS,
    processes: Annotated[int, typer.Option(help="Fresh processes that measure each figure.", min=1)] = 3,
    threads: Annotated[int | None, typer.Option(help="Host threads within an operation.", min=1)] = None,
    memory: Annotated[float | None, typer.Option(help="Most memory of a case, in GiB.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only print what would run, and how long.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("results"),
    name: Annotated[str, typer.Option(help="Name of the run.")] = "hardware",
    resume: Annotated[Path | None, typer.Option(help="Go on with this run; its own options hold.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, everything else on stderr.")] = False,
) -> None:
    """Measure what this device reaches: bandwidths, peaks, latencies, each with its interval and conditions."""
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
    with stdout_to_stderr_if(as_json):
        if resume is None:
            options = _checked(options)
            todo = _plan(options)
            _print_plan(todo, sys.stdout if plan and not as_json else sys.stderr)
            if plan:
                raise typer.Exit(GOOD)
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
    from profiler.device import parse_device
    from profiler.microbench import suite
    from profiler.microbench.matmul import PRODUCTS

    device = parse_device(options["device"])
    full, short = DTYPES[device.type]
    given = options["dtypes"]
    dtypes = tuple(dict.fromkeys(given.split(","))) if given else (short if options["quick"] else full)
    for one in dtypes:
        if one not in PRODUCTS:
            raise RequestError(f"--dtype {one} is no type of a product; use {', '.join(PRODUCTS)}")
    known = [part.name for part in suite.parts(device.type)]
    names = [name.strip() for name in options["only"].split(",")] if options["only"] else []
    words = {part: [word.strip() for word in part.split(",")] for part in known}  # "memory, one core": either names it
    chosen = [part for part in known if any(word in names for word in words[part])]
    for name in names:
        if not any(name in some for some in words.values()):
            raise RequestError(f"--only {name} is no part of this; use {', '.join(known)}")
    if options["memory_gib"] is not None and not 0 < options["memory_gib"] < 1 << 20:
        raise RequestError(f"--memory takes GiB above 0, as 4; not {options['memory_gib']:g}")
    return options | {"device": str(device), "dtypes": ",".join(dtypes), "only": ";".join(chosen) or None}


def _plan(options: Mapping[str, Any]) -> "Plan":
    from profiler.microbench.characterise import make_plan

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

    counts: dict[str, int] = {}
    for stage in plan.stages:
        for part in stage.parts:
            counts[part] = counts.get(part, 0) + 1
    for part, count in counts.items():
        what = "the fastest shape of each dtype" if part == suite.SEARCH else suite.named(part).what
        print(f"{part:18} {count:2} × {plan.seconds(part):4.0f} s  {what}", file=stream)
    print(
        f"{plan.device}, {', '.join(plan.dtypes)}: {len(plan.stages)} fresh processes, about {_duration(plan.total_s)}",
        file=stream,
        flush=True,
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _new(options: dict[str, Any], out: Path, name: str) -> RunFolder:
    from profiler.environment import collect, findings

    _set_threads(options)
    found = findings(options["device"], out)
    # all of them: that the clock is not held, or ECC off, is worth a note only where the device itself is measured
    notes = tuple(one.what for one in found)
    run = Run(
        name=name,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv[1:]),
        environment=collect(options["device"], found).model_copy(update={"notes": notes}),
        cells=(),
        options=options,
    )
    return RunFolder.create(out, run)


def _resumed(path: Path) -> RunFolder:
    """The folder of a characterisation, if this is still the machine and the software that it began on."""
    from profiler.environment import collect
    from profiler.record.hardware import has_measurements

    run = RunFolder.open(path).run
    if run.cells or not (has_measurements(path) or not run.finished):
        raise RequestError(f"{path} is no characterisation; go on with it by: python -m profiler run --resume {path}")
    if run.finished:
        raise RequestError(f"{path} is finished; look at it with: python -m profiler show {path}")
    _set_threads(run.options)
    if changed := differing(run.environment, collect(str(run.options["device"]))):
        raise RequestError(f"--resume: this run began with {'; '.join(changed)}; measure it there, or start a new run")
    return RunFolder.open_for_resume(path)[0]


def _set_threads(options: Mapping[str, Any]) -> None:
    if options.get("threads"):
        import torch

        torch.set_num_threads(int(options["threads"]))


def _measure(folder: RunFolder, plan: "Plan") -> "HardwareSpec":
    import torch

    from profiler.microbench.characterise import characterise
    from profiler.microbench.spec import spec_of
    from profiler.record.hardware import HardwareLog

    log = HardwareLog(folder.path)
    device, options = torch.device(plan.device), folder.run.options
    calibrate = bool(options.get("calibrate"))
    with resumable(folder.path, "hardware"), progress(plan.total + calibrate) as step:
        characterise(plan, log, step)
        spec = spec_of(log.measurements, folder.run.environment, device)
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
    from profiler.record.hardware import read_measurements

    measurements = read_measurements(folder.path)
    report = device_document(spec, measurements, folder.run)
    folder.write_report("report.md", markdown.render(report))
    folder.write_report("report.html", html.render(report))
    found = {one.status for one in spec.characteristics}
    without_peaks = spec.measured is None and any(one.benchmark == "memory" for one in measurements)
    return INVALID if "invalid" in found else INCONCLUSIVE if "inconclusive" in found or without_peaks else GOOD


def _show(folder: RunFolder, spec: "HardwareSpec", as_json: bool) -> None:
    from calibrate.report.device import device_document
    from calibrate.report.json import device_json
    from calibrate.report.terminal import render
    from profiler.record.hardware import read_measurements

    measurements = read_measurements(folder.path)
    if as_json:
        print_json(device_json(folder.path / "spec.json", spec, measurements, folder.run))
    else:
        render(device_document(spec, measurements, folder.run), console())
        print(f"\nkept in {folder.path}", file=sys.stderr)
