"""`run`: characterise the device, profile the models, predict, and report.

Wiring only: options become a plan, `profiler.job` measures it, `calibrate` makes reports of it.
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from calibrate.report.units import duration
from profiler.cli.calibrating import VISITS, calibrate_device
from profiler.cli.errors import GOOD, INCONCLUSIVE, INVALID, resumable
from profiler.cli.measured import measured_spec
from profiler.cli.output import console, print_json, stdout_to_stderr_if
from profiler.cli.progress import progress
from profiler.cli.spending import PARTS, Spent, estimate, told
from profiler.record.errors import RequestError
from profiler.record.run import Mode, Run, differing
from profiler.record.store import RunFolder

EXAMPLE = """
Examples:\n
python -m profiler run\n
python -m profiler run llama-3.1-8b --prompt 128,2048 --context 1024 --batch 1,16\n
python -m profiler run llama-3.1-8b --phase decode --cuda-graph\n
python -m profiler run ./my-model --layers 4 --dtype bfloat16 --json\n
python -m profiler run --resume results/DEVICE/RUN
"""

SECONDS, QUICK_SECONDS = 6.0, 3.0
"""Seconds of passes for each cell, in full and with --quick."""


def run(
    models: Annotated[
        list[str] | None, typer.Argument(help="Catalogue names, folders with config.json, hub ids.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="Types of weights and activations, as bfloat16,float32.")] = None,
    phase: Annotated[
        str, typer.Option(help="Of prefill, decode, chunk (a prompt after a context).")
    ] = "prefill,decode",
    prompt: Annotated[str, typer.Option(help="Prompt tokens of prefill and chunk, as 128,2048.")] = "128",
    context: Annotated[str, typer.Option(help="Tokens in the KV cache before decode and chunk.")] = "128",
    batch: Annotated[str, typer.Option(help="Sequences in a batch.")] = "1",
    layers: Annotated[int | None, typer.Option(help="Run only the first N repeated layers and scale up.")] = None,
    attn: Annotated[str, typer.Option(help="Attention implementation, as sdpa or eager.")] = "default",
    experts: Annotated[str, typer.Option(help="Experts implementation, as grouped_mm or eager.")] = "default",
    cache: Annotated[str, typer.Option(help="dynamic or static.")] = "dynamic",
    weights: Annotated[str, typer.Option(help="random or pretrained.")] = "random",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the model with torch.compile.")] = False,
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="Replay each pass from a CUDA graph.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run a model's own code.")] = False,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of passes for each cell; 6, or 3 with --quick.", min=0.1)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer passes, and a shorter look at the device.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Fit laws to this device's kernels before the models.")
    ] = True,
    visits: Annotated[
        int, typer.Option(help="Of each kernel in the calibration: on a busy machine, more are surer.", min=1)
    ] = VISITS,
    hardware: Annotated[
        Path | None, typer.Option(help="This device's spec.json from an earlier run, instead of measuring it again.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, tokens and the calibration.")] = 0,
    threads: Annotated[
        int | None, typer.Option(help="Host threads within an operation; torch's choice otherwise.", min=1)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("results"),
    name: Annotated[str, typer.Option(help="Name of the run.")] = "run",
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run; its own options hold, but --seconds can be another.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, everything else on stderr.")] = False,
) -> None:
    """Measure how fast each layer of a model runs here, and say how fast it could."""
    if resume is not None:
        if models:
            raise RequestError("--resume goes on with the models of its run; name none, or start a new run")
        folder, done = _resumed(resume, seconds)
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
        from profiler.plan import Choices, Shapes

        shapes = Shapes(
            phases=_words("--phase", phase, ("prefill", "decode", "chunk")),  # type: ignore[arg-type]
            prompts=_numbers("--prompt", prompt),
            contexts=_numbers("--context", context),
            batches=_numbers("--batch", batch),
            dtypes=tuple(dict.fromkeys(dtype.split(","))) if dtype else (),
        )
        choices = Choices(
            attn=attn,
            experts=experts,
            cache=_words("--cache", cache, ("dynamic", "static"))[0],
            layers=layers,
            weights=_words("--weights", weights, ("random", "pretrained"))[0],  # type: ignore[arg-type]
            trust_remote_code=trust_remote_code,
            mode=_mode(compiled, cuda_graph),
        )
        folder, done = _new(models or [], shapes, choices, options, out, name, hardware), frozenset()
    spent = Spent(folder.run.spent_s)
    with folder:
        with stdout_to_stderr_if(as_json):
            _measure(folder, done, spent)
        raise typer.Exit(_show(folder, as_json, spent))


def _mode(compiled: bool, cuda_graph: bool) -> Mode:
    """Of both, the compiled model is captured."""
    if compiled:
        return "compile-cuda-graph" if cuda_graph else "compile"
    return "cuda-graph" if cuda_graph else "eager"


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        values = tuple(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        raise RequestError(f"{option} takes whole numbers separated by commas, as 128,2048; not {text!r}") from None
    if min(values) < 1:
        raise RequestError(f"{option} takes whole numbers from 1; not {text!r}")
    return values


def _words(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    for word in text.split(","):
        if word not in known:
            raise RequestError(f"{option} takes {', '.join(known)}; not {word!r}")
    return tuple(dict.fromkeys(text.split(",")))


def _new(
    models: list[str],
    shapes: Any,
    choices: Any,
    options: dict[str, Any],
    out: Path,
    name: str,
    hardware: Path | None,
) -> RunFolder:
    """The folder of a new run, planned and checked."""
    from profiler.device import parse_device
    from profiler.environment import collect
    from profiler.plan import plan

    _set_threads(options)
    device = parse_device(options["device"])
    cells = plan(models, device, shapes, choices)
    run = Run(
        name=name,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(sys.argv[1:]),
        environment=collect(device),
        cells=cells,
        options=options | {"device": str(device)},
    )
    spec = None if hardware is None else measured_spec(hardware, run.environment)
    folder = RunFolder.create(out, run)
    if spec is not None:
        folder.write_spec(spec)
    return folder


def _resumed(path: Path, seconds: float | None) -> tuple[RunFolder, frozenset[str]]:
    """The folder of a run and its good cells, if this is still the machine and the software that it began on.

    `seconds`: of passes for each cell that is measured now, where not those of the run.
    """
    from calibrate.reports import sound
    from profiler.environment import collect

    run = RunFolder.open(path).run
    _set_threads(run.options)
    here = collect(str(run.options["device"]))
    if changed := differing(run.environment, here):
        raise RequestError(f"--resume: this run began with {'; '.join(changed)}; measure it there, or start a new run")
    folder, _ = RunFolder.open_for_resume(path)
    try:
        if seconds is not None:
            folder.note(options={**folder.run.options, "seconds": seconds})
        return folder, sound(folder)  # what was invalid, inconclusive or lost is measured again
    except BaseException:
        folder.close()
        raise


def _set_threads(options: Mapping[str, Any]) -> None:
    if options.get("threads"):
        import torch

        torch.set_num_threads(int(options["threads"]))


def _measure(folder: RunFolder, done: frozenset[str], spent: Spent) -> None:
    import torch

    from profiler.job import (
        DEVICE_S,
        QUICK_DEVICE_S,
        Job,
        measure_cells,
        measure_device,
        planned_pass_s,
        planned_weight_bytes,
    )
    from profiler.models.quiet import silence

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
    device_s = 0.0 if spec else QUICK_DEVICE_S if quick else DEVICE_S
    weights = planned_weight_bytes(left, job)
    passes = planned_pass_s(weights, job.device)
    expected = estimate(folder.run, weights, device_s=device_s, calibrate=calibrate, pass_s=passes)
    print(f"about {told(expected, len(left))}", file=sys.stderr, flush=True)
    added = {part: folder.run.spent_s.get(part, 0.0) + expected.get(part, 0.0) for part in PARTS}
    folder.note(estimated_s={part: seconds for part, seconds in added.items() if seconds})
    try:
        with resumable(folder.path), progress(1 + len(left)) as step:
            if spec is None:
                with spent.on("device"):
                    measure_device(folder, job.device, quick=quick, step=step)
            if calibrate:
                dtypes = {cell.workload.dtype for cell in folder.run.cells}
                visits = int(options.get("visits") or VISITS)
                with spent.on("calibration"):
                    calibrate_device(folder, job.device, dtypes, quick=quick, visits=visits, seed=job.seed, step=step)
            with spent.on("passes"):
                measure_cells(folder, done, job, step)
    finally:
        folder.note(spent_s=spent.parts)
    with spent.on("report"):
        folder.finish()


def _show(folder: RunFolder, as_json: bool, spent: Spent) -> int:
    """Write the reports and show them; the exit code."""
    with spent.on("report"):
        from calibrate.report import html, markdown, terminal
        from calibrate.report.run import run_document
        from calibrate.reports import advice, document, load, load_spec

        (reports, failed), spec = load(folder), load_spec(folder)
        report = run_document(reports, folder.run, spec, failed)
        folder.write_report("report.md", markdown.render(report))
        folder.write_report("report.html", html.render(report))
    folder.note(spent_s=spent.parts)
    if as_json:
        print_json(document(folder, reports, failed))
    else:
        terminal.render(report, console())
        print(f"\nkept in {folder.path}", file=sys.stderr)
    estimated = duration(sum(folder.run.estimated_s.values()))
    print(f"took {told(spent.parts, len(folder.run.cells))} (estimated: {estimated})", file=sys.stderr)
    if (what_to_do := advice(folder, reports)) is not None:
        print(what_to_do, file=sys.stderr)
    found = {result.status for result in failed} | {report.status for report in reports}
    return INVALID if "invalid" in found else INCONCLUSIVE if found - {"done"} else GOOD
