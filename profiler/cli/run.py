"""`run`: measure the device, profile the models, predict, and report.

Wiring only: options become a plan, `profiler.job` measures its cells, `calibrate` reports them.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from profiler.cli import options as option
from profiler.cli import output
from profiler.cli.measuring import (
    PARTS,
    VISITS,
    Spent,
    calibrate_device,
    describe_times,
    device_s,
    estimate,
    look_before,
    measure_device,
    new_run,
    prepare_process,
    require_same_machine,
)
from profiler.record.files import make_folder, require_separate
from profiler.record.folder import RunFolder
from profiler.record.run import LONGEST_S, MOST_SEED, Mode, PlannedScenario, RequestError
from roofline.dtypes import MODEL_DTYPES
from roofline.units import duration

if TYPE_CHECKING:
    from calibrate.passes.pass_report import PassReport
    from calibrate.scenarios.scenario import Answer
    from profiler.record.run import CellResult
    from roofline.hardware.spec import HardwareSpec

EXAMPLE = """
Examples:\n
python -m profiler run\n
python -m profiler run llama-3.1-8b --prompt 128,2048 --context 1024 --batch 1,16\n
python -m profiler run llama-3.1-8b --phase decode --cuda-graph\n
python -m profiler run ./my-model --layers 4 --dtype bfloat16 --csv layers.csv\n
python -m profiler run llama-3.1-8b --scenario verify --scenario prefix:prompt=4096\n
python -m profiler run --resume results/DEVICE/RUN
"""

SECONDS, QUICK_SECONDS = 6.0, 3.0
"""Seconds of passes for each cell: the default, and with --quick."""

STEPS = "steps.csv"
"""File in the folder of a run with scenarios: its step-time table."""
MODES: dict[tuple[bool, bool], Mode] = {
    (False, False): "eager",
    (False, True): "cuda-graph",
    (True, False): "compile",
    (True, True): "compile-cuda-graph",
}
"""(--compile, --cuda-graph) -> how passes run; with both, the compiled model is captured."""


def run(
    invocation: typer.Context,
    models: Annotated[list[str] | None, option.MODEL] = None,
    device: option.DeviceName = "auto",
    dtype: Annotated[str | None, Option(help="Dtypes of weights and activations, as bfloat16,float32.")] = None,
    phase: option.Phases = "prefill,decode",
    prompt: option.Prompts = "128",
    context: option.Contexts = "128",
    batch: option.Batches = "1",
    layers: Annotated[int | None, Option(help="Run only the first N repeated layers, and scale up.")] = None,
    scenario: Annotated[
        list[str] | None,
        Option(
            metavar="NAME[:OPTION=VALUE,…]",
            help="Measure a serving technique instead of these passes; repeatable; 'list' lists them, 'all' runs all.",
        ),
    ] = None,
    attn: option.Attention = "default",
    experts: option.Experts = "default",
    cache: option.Cache = "dynamic",
    weights: Annotated[str, Option(help="Weights of the models: random or pretrained.")] = "random",
    compiled: Annotated[bool, Option("--compile", help="Compile the model with torch.compile.")] = False,
    cuda_graph: Annotated[bool, Option("--cuda-graph", help="Replay each pass from a CUDA graph.")] = False,
    trust_remote_code: option.TrustRemoteCode = False,
    seconds: Annotated[
        float | None,
        Option(
            help="Seconds of passes for each cell. Default: 6, or 3 with --quick.",
            min=0.1,
            max=LONGEST_S,
            callback=option.finite,
        ),
    ] = None,
    quick: Annotated[bool, Option("--quick", help="Measure fewer passes, and the device more briefly.")] = False,
    calibrate: Annotated[
        bool, Option("--calibrate/--no-calibrate", help="Before the models, fit laws to this device's kernels.")
    ] = True,
    visits: option.Visits = VISITS,
    hardware: Annotated[
        str | None, Option(help="Figures of this device from an earlier run: its spec.json, its name, or 'last'.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of the weights, the tokens and the calibration.", min=0, max=MOST_SEED)] = 0,
    threads: option.Threads = None,
    wait_quiet: option.WaitQuiet = 0.0,
    out: option.Out = Path("results"),
    name: option.Name = "run",
    resume: Annotated[
        Path | None, Option(help="Continue this run with its own options; only --seconds may differ.")
    ] = None,
    csv: option.Csv = None,
    as_json: option.AsJson = False,
) -> None:
    """Measure how fast each layer runs, and how fast it could run."""
    if scenario == ["list"]:
        from profiler.cli.scenarios import print_list

        print_list(as_json)
        return
    require_separate({"--csv": csv}, [Path(hardware)] if hardware is not None else [])
    if resume is not None:
        if models:
            raise RequestError("--resume continues with the models of its run; name none, or start a new run")
        if scenario:
            raise RequestError("--resume continues with the scenarios of its run; name none, or start a new run")
        folder, done = _resumed(resume, seconds, wait_quiet)
    else:
        options = {
            "device": device,
            "seconds": seconds or (QUICK_SECONDS if quick else SECONDS),
            "quick": quick,
            "calibrate": calibrate,
            "visits": visits,
            "seed": seed,
            "threads": threads,
            "trust_remote_code": trust_remote_code,
        }
        lengths = {  # all options are checked before torch is loaded, which takes seconds
            "phases": option.words("--phase", phase, ("prefill", "decode", "chunk")),
            "prompts": option.distinct("--prompt", prompt),
            "contexts": option.distinct("--context", context),
            "batches": option.distinct("--batch", batch),
            "dtypes": option.words("--dtype", ",".join(option.dtypes(dtype)), MODEL_DTYPES) if dtype else (),
        }
        ways = {
            "cache": option.words("--cache", cache, ("dynamic", "static"))[0],
            "weights": option.words("--weights", weights, ("random", "pretrained"))[0],
        }
        if hardware is not None:
            option.measured_figures(hardware, out)
        scenarios: Sequence[tuple[str, Any]] = ()
        if scenario:
            from profiler.cli.scenarios import named
            from profiler.cli.vain import written_options

            scenarios = named(scenario, written_options(invocation))
        from profiler.job import Choices, Shapes

        shapes = Shapes(**lengths)  # type: ignore[arg-type]
        choices = Choices(
            attn=attn,
            experts=experts,
            layers=layers,
            trust_remote_code=trust_remote_code,
            mode=MODES[compiled, cuda_graph],
            **ways,  # type: ignore[arg-type]
        )
        folder, done = (
            _new(models or [], shapes, choices, scenarios, options, out, name, hardware, wait_quiet),
            frozenset(),
        )
    spent = Spent(folder.run.spent_s)
    with folder:
        with output.stdout_to_stderr_if(as_json):
            _measure(folder, done, spent)
        raise typer.Exit(_show(folder, as_json, spent, csv))


def _new(
    models: list[str],
    shapes: Any,
    choices: Any,
    scenarios: Sequence[tuple[str, Any]],
    options: dict[str, Any],
    out: Path,
    name: str,
    hardware: str | None,
    wait_s: float,
) -> RunFolder:
    """The folder of a new run whose plan has been checked."""
    from profiler.devices.backend import parse_device
    from profiler.devices.environment import collect
    from profiler.job import plan

    prepare_process(options)
    device = parse_device(options["device"])
    planned: tuple[PlannedScenario, ...] = ()
    if scenarios:
        from profiler.cli.scenarios import plan_scenarios

        cells, planned = plan_scenarios(models, device, shapes.dtypes, choices, scenarios)
    else:
        cells = plan(models, device, shapes, choices)
    spec = None if hardware is None else option.measured_spec(hardware, collect(device, ()), out)
    make_folder(out)
    problems = look_before(str(device), out, wait_s)
    run = new_run(name, collect(device, problems), cells, options | {"device": str(device)})
    folder = RunFolder.create(out, run.model_copy(update={"scenarios": planned}))
    if spec is not None:
        folder.write_spec(spec)
    return folder


def _resumed(path: Path, seconds: float | None, wait_s: float) -> tuple[RunFolder, frozenset[str]]:
    """The folder of a run that began on this machine with this software, and the cells that need no other measurement.

    `seconds` of passes for each cell replace those of the run, unless None.
    """
    from calibrate.passes.reports import sound

    run = RunFolder.open(path).run
    require_same_machine(run)
    run.require_options("seconds", "quick", "seed", "trust_remote_code")
    folder, _ = RunFolder.open_for_resume(path)
    try:
        look_before(str(run.options["device"]), path, wait_s)
        if seconds is not None:
            folder.note(options={**folder.run.options, "seconds": seconds})
        return folder, sound(folder)
    except BaseException:
        folder.close()
        raise


def _measure(folder: RunFolder, done: frozenset[str], spent: Spent) -> None:
    import torch

    from profiler.job import Job, measure_cells, planned_pass_s, planned_weight_bytes
    from profiler.models.catalogue import silence

    silence()
    options = folder.run.options
    quick = bool(options["quick"])
    job = Job(
        device=torch.device(str(options["device"])),
        budget_s=float(options["seconds"] or 0),
        seed=int(options["seed"] or 0),
        trust_remote_code=bool(options["trust_remote_code"]),
    )
    spec = folder.read_spec()
    calibrate = bool(options.get("calibrate", False)) and not (spec and spec.calibrated)
    left = [cell for cell in folder.run.cells if cell.key not in done]
    weights = planned_weight_bytes(left, job)
    expected = estimate(
        folder.run,
        weights,
        device_s=0.0 if spec else device_s(quick),
        calibrate=calibrate,
        pass_s=planned_pass_s(weights, job.device),
    )
    output.remark(f"this takes about {describe_times(expected, len(left))}")
    added = {part: folder.run.spent_s.get(part, 0.0) + expected.get(part, 0.0) for part in PARTS}
    folder.note(estimated_s={part: seconds for part, seconds in added.items() if seconds})
    try:
        unit_s = [
            expected.get("device", 0.0) + expected.get("calibration", 0.0),
            *([expected.get("passes", 0.0) / len(left)] * len(left) if left else []),
        ]
        with output.resumable(folder.path), output.progress(1 + len(left), unit_s=unit_s) as step:
            device_part = _part(expected, "device") if calibrate else 1.0
            if spec is None:
                with spent.on("device"):
                    measure_device(
                        folder, job.device, quick=quick, step=lambda text, part: step(text, device_part * part)
                    )
            if calibrate:
                dtypes = {cell.workload.dtype for cell in folder.run.cells}
                visits = int(options.get("visits") or VISITS)
                with spent.on("calibration"):
                    calibrate_device(
                        folder,
                        job.device,
                        dtypes,
                        quick=quick,
                        visits=visits,
                        seed=job.seed,
                        step=lambda text, part: step(text, device_part + (1 - device_part) * part),
                    )
            with spent.on("passes"):
                measure_cells(folder, done, job, step)
    finally:
        folder.note(spent_s=spent.parts)
    with spent.on("report"):
        folder.finish()


def _part(expected: Mapping[str, float], part: str) -> float:
    """A part's share of the time for the device and its calibration, which are one unit of progress."""
    seconds = {name: expected.get(name, 0.0) for name in ("device", "calibration")}
    return seconds[part] / max(sum(seconds.values()), 1e-9)


def answers_of(
    folder: RunFolder, reports: "Sequence[PassReport]", failed: "Sequence[CellResult]", spec: "HardwareSpec"
) -> "tuple[Sequence[Answer], dict[str, Any]]":
    """The answers of a run's scenarios, and their part of the JSON document; nothing for a run without scenarios."""
    if not folder.run.scenarios:
        return (), {}
    from calibrate.report.scenarios import scenarios_json
    from calibrate.scenarios.registry import answers

    found = answers(folder, reports, failed, spec)
    return found, scenarios_json(found)


def _show(folder: RunFolder, as_json: bool, spent: Spent, csv: Path | None) -> int:
    """Write and show the reports; return the exit code."""
    with spent.on("report"):
        from calibrate.passes.reports import advice, document, load_measured, load_spec
        from calibrate.report.run import run_document

        spec = load_spec(folder)
        reports, measured, failed = load_measured(folder, spec)
        answered, told = answers_of(folder, reports, failed, spec)
        report = run_document(reports, folder.run, spec, failed, measured, answers=answered)
        if spec.calibrated:
            from calibrate.report.residuals import with_calibration

            report = with_calibration(report, folder, spec)
        output.write_reports(folder, report)
        if answered:
            from calibrate.report.run_csv import write_steps

            write_steps(folder.path / STEPS, reports)
    verdicts = Counter([*(report.status for report in reports), *(result.status for result in failed)])
    folder.note(spent_s=spent.parts, verdicts=dict(verdicts))
    output.show(
        as_json,
        lambda: document(folder, reports, failed) | told,
        lambda: report,
        kept=folder.path,
    )
    estimated = duration(sum(folder.run.estimated_s.values()))
    output.remark(f"took {describe_times(spent.parts, len(folder.run.cells))} (estimated: {estimated})")
    if (next_step := advice(folder, reports)) is not None:
        output.say(next_step, sys.stderr)
    if csv is not None:  # last: what cannot be written costs nothing else
        from calibrate.report.run_csv import write_passes

        write_passes(csv, reports, failed)
    if any(one.refused is not None for one in folder.run.scenarios):
        return output.REQUEST
    return output.INVALID if "invalid" in verdicts else output.INCONCLUSIVE if set(verdicts) - {"done"} else output.GOOD
