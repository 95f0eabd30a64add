"""`kernels`: check and time the kernels in which an LLM server spends its time, at the shapes of real models.

Wiring only: `profiler.kernels.serving.select` makes a list of kernels of the options, `worker` runs each in processes
of its own, `calibrate.report.suite` reports them.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from profiler.cli import options as option
from profiler.cli import output
from profiler.cli.measuring import look_before, measure_device, new_run, prepare_process, require_same_machine
from profiler.cli.suite_report import merged, show_suites
from profiler.record.files import make_folder, require_separate
from profiler.record.folder import SUITE_OPTION, RunFolder, slug
from profiler.record.run import LONGEST_S, MOST_MEMORY_GIB, MOST_PROCESSES, MOST_SEED, RequestError, differing
from roofline.hardware.load import find_device
from roofline.hardware.spec import HardwareSpec, spec_kind
from roofline.units import duration

if TYPE_CHECKING:
    from profiler.kernels.serving.registry import Registry
    from profiler.kernels.serving.select import Plan, Selection
    from profiler.record.run import Environment

EXAMPLE = """
Examples:\n
python -m profiler kernels --suite smoke\n
python -m profiler kernels --model llama-3.1-8b --tp 2 --phase decode --batch 1,8,64 --context 1024,8192\n
python -m profiler kernels --family linear,rms_norm --provider torch,inductor --json\n
python -m profiler kernels --family linear --shape m=8,n=4096,k=4096 --dtype bfloat16\n
python -m profiler kernels --kernels my_kernels.py\n
python -m profiler kernels --suite full --shard 1/4\n
python -m profiler kernels --merge RUN --merge RUN\n
python -m profiler kernels --resume results/DEVICE/RUN
"""

SECONDS, PROCESSES, DRAWS = 0.25, 3, 2
"""Seconds of samples of a kernel in each process, fresh processes, and draws of the check."""
TIMEOUT_S = 120.0
"""Seconds that a kernel may take in one process, compilation included."""
CHECK_S = 5.0
"""Seconds of the check for each draw, after which no other small size is taken up."""
DEVICE_UNITS = 1
"""Units of progress of the device's figures."""


def kernels(
    suite: Annotated[
        str | None, Option(help="Suite of shapes: smoke (default), serving, full, or a JSON file.")
    ] = None,
    model: Annotated[str | None, Option(help="Take the shapes of these models, as llama-3.1-8b,qwen3-8b.")] = None,
    tp: Annotated[str, Option(help="Ranks that share each matrix of --model, as 1,2.")] = "1",
    phase: Annotated[str, Option(help="Phases of --model: prefill, decode, chunk.")] = "decode",
    batch: option.Batches = "1,8,64",
    prompt: option.Prompts = "2048",
    context: option.Contexts = "1024",
    family: Annotated[str | None, Option(help="Only these families, as linear,rms_norm; --list shows all.")] = None,
    provider: Annotated[str | None, Option(help="Only these providers, as torch,inductor.")] = None,
    dtype: Annotated[str | None, Option(help="Only these dtypes, as bfloat16,int8.")] = None,
    shape: Annotated[
        list[str] | None, Option(help="A shape of the one --family, as m=8,n=4096,k=4096; repeatable.")
    ] = None,
    kernels: Annotated[
        list[str] | None,
        Option("--kernels", metavar="FILE", help="Your kernels: a Python file or a FlashInfer-Bench solution."),
    ] = None,
    shard: Annotated[
        str | None, Option(help="Run only a part of the kernels, as 1/4: the first of four parts.")
    ] = None,
    device: option.DeviceName = "auto",
    processes: Annotated[
        int, Option(help="Fresh processes of each kernel; intervals need three.", min=1, max=MOST_PROCESSES)
    ] = PROCESSES,
    seconds: Annotated[
        float,
        Option(help="Seconds of samples in each process.", min=0.01, max=LONGEST_S, callback=option.finite),
    ] = SECONDS,
    timeout: Annotated[
        float,
        Option(help="Seconds that a kernel may take in one process.", min=1, max=LONGEST_S, callback=option.finite),
    ] = TIMEOUT_S,
    draws: Annotated[
        int, Option(help="Random draws of operands for each small shape of the check.", min=1, max=1000)
    ] = DRAWS,
    seed: Annotated[int, Option(help="Seed of the operands.", min=0, max=MOST_SEED)] = 0,
    check_only: Annotated[bool, Option("--check-only", help="Only check the kernels; do not time them.")] = False,
    cache: Annotated[str, Option(help="Where the operands lie: cold (in main memory) or warm (in a cache).")] = "cold",
    memory: Annotated[
        float | None,
        Option(
            help="Most memory for a kernel's operands, in GiB. Default: an eighth of what is free.",
            callback=option.finite,
        ),
    ] = None,
    hardware: Annotated[
        str | None, Option(help="Peaks and laws of this device: a run, its spec.json, or 'last'.")
    ] = None,
    threads: option.Threads = None,
    wait_quiet: option.WaitQuiet = 0.0,
    list_only: Annotated[bool, Option("--list", help="Print what would run and how long it takes, then stop.")] = False,
    merge: Annotated[
        list[str] | None,
        Option(metavar="RUN", help="Measure nothing; report these runs, such as shards, as one; repeatable."),
    ] = None,
    out: option.Out = Path("results"),
    name: option.Name = "kernels",
    resume: Annotated[Path | None, Option(help="Continue this interrupted run with its own options.")] = None,
    csv: Annotated[Path | None, Option(metavar="FILE", help="Also write the rows as CSV.")] = None,
    markdown: Annotated[Path | None, Option(metavar="FILE", help="Also write the report as Markdown.")] = None,
    as_json: option.AsJson = False,
) -> None:
    """Check and time serving kernels at the shapes of real models.

    Each kernel runs in processes of its own. Exit code 3: other work disturbed the times; 4: a kernel is wrong or
    failed.
    """
    require_separate({"--csv": csv, "--markdown": markdown}, [Path(file) for file in kernels or []])
    if merge:
        raise typer.Exit(merged(merge, out, csv, markdown, as_json))
    with output.stdout_to_stderr_if(as_json):
        if resume is None:
            with _requests():
                selection = _selection(
                    suite, model, tp, phase, batch, prompt, context, family, provider, dtype, shape, kernels, shard
                )
            options = {
                "device": device,
                "seconds": seconds,
                "processes": processes,
                "seed": seed,
                "threads": threads,
                "memory_gib": memory,
                "timeout_s": timeout,
                "draws": draws,
                "timed": not check_only,
                "cache": option.words("--cache", cache, ("cold", "warm"))[0],
                SUITE_OPTION: selection.model_dump_json(exclude_defaults=True),
            }
            plan, options = _plan(options)
            if list_only:
                _print_plan(plan)
                raise typer.Exit(output.GOOD)
            folder = _new(options, out, name, hardware, wait_quiet)
        else:
            folder = _resumed(resume)
            plan, _ = _plan(folder.run.options)
    with folder:
        with output.stdout_to_stderr_if(as_json):
            _measure(folder, plan)
        raise typer.Exit(show_suites([folder], as_json, csv, markdown, write=True))


@contextmanager
def _requests() -> Iterator[None]:
    """Within it, a name or a file that cannot be used is a request that cannot be done."""
    from profiler.kernels.serving.registry import UserError

    try:
        yield
    except UserError as error:
        raise RequestError(str(error)) from error


def _selection(
    suite: str | None,
    model: str | None,
    tp: str,
    phase: str,
    batch: str,
    prompt: str,
    context: str,
    family: str | None,
    provider: str | None,
    dtype: str | None,
    shapes: Sequence[str] | None,
    files: Sequence[str] | None,
    shard: str | None,
) -> "Selection":
    """The selection that the options state. Raises RequestError for options that exclude each other."""
    from profiler.kernels.serving.select import Selection

    ways = {"--suite": suite, "--model": model, "--shape": shapes}
    if len(named := [way for way, given in ways.items() if given]) > 1:
        raise RequestError(f"{' and '.join(named)} exclude each other; use one of them")
    return Selection(
        suite=suite,
        models=_names(model),
        tp=option.distinct("--tp", tp),
        phases=option.words("--phase", phase, ("prefill", "decode", "chunk")),
        batches=option.distinct("--batch", batch),
        prompts=option.distinct("--prompt", prompt),
        contexts=option.distinct("--context", context),
        shapes=tuple(shapes or ()),
        families=_names(family),
        providers=_names(provider),
        dtypes=option.dtypes(dtype) if dtype else (),
        files=tuple(str(Path(file).absolute()) for file in files or ()),
        shard=option.shard_of(shard) if shard is not None else None,
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip())) if text else ()


def _plan(options: dict[str, Any]) -> tuple["Plan", dict[str, Any]]:
    """The plan of a run's options, and the options with all names in full. Raises RequestError, one line."""
    import torch

    from profiler.devices.backend import parse_device
    from profiler.devices.caches import effective_cache
    from profiler.kernels.serving.select import Selection, limit_of, planned
    from profiler.kernels.serving.timing import Task
    from profiler.models.catalogue import silence
    from profiler.record.suite_table import KernelId

    silence()
    device = parse_device(str(options["device"]))
    prepare_process(options)
    selection = Selection.model_validate_json(str(options[SUITE_OPTION]))
    memory = options["memory_gib"]
    if memory is not None and not 0 < memory < MOST_MEMORY_GIB:
        raise RequestError(f"--memory takes a size in GiB above 0, as 4; not {memory:g}")
    with _requests():
        registry = _registry(selection)
        cache = effective_cache(device)
        template = Task(
            kernel=KernelId(family="", provider="", dtype="", dims={}),
            process=1,
            device=str(device),
            seed=int(options["seed"]),
            draws=int(options["draws"]),
            check_s=CHECK_S * int(options["draws"]),
            timed=bool(options["timed"]),
            state=options["cache"],
            seconds=float(options["seconds"]),
            limit_bytes=int(memory * 2**30) if memory else limit_of(device),
            cache_bytes=cache.bytes,
            cache_source=cache.source,
            cache_reason=cache.reason,
            threads=torch.get_num_threads(),
            files=selection.files,
        )
        plan = planned(selection, registry, device, processes=_processes(options), template=template)
    return plan, options | {"device": str(device)}


def _processes(options: dict[str, Any]) -> int:
    """Return the fresh processes of each kernel: a check alone needs one."""
    return int(options["processes"]) if options["timed"] else 1


def _registry(selection: "Selection") -> "Registry":
    """The families with the user's files, each of which has been imported in a process of its own before."""
    from profiler.kernels.serving.registry import Registry
    from profiler.kernels.serving.worker import Lost, Nursery

    for file in selection.files:
        with Nursery() as nursery:
            try:
                why = nursery.listed(file)
            except Lost as lost:
                why = f"{file}: {lost}"
            if why is not None:
                raise RequestError(why)
    return Registry.of(selection.files)


def _print_plan(plan: "Plan") -> None:
    for task in plan.tasks:
        models = f"  {', '.join(task.models)}" if task.models else ""
        output.say(
            f"{task.kernel.family:24} {task.kernel.provider:16} {task.kernel.dtype:14} {task.kernel.shape}{models}"
        )
    print(f"{len(plan.tasks)} kernels, about {duration(plan.seconds)}")


def _new(options: dict[str, Any], out: Path, name: str, hardware: str | None, wait_s: float) -> RunFolder:
    """The folder of a new run, with the figures of the device where they are known."""
    from profiler.devices.environment import collect

    environment = collect(options["device"], ())
    if hardware is not None:
        spec: HardwareSpec | None = option.measured_spec(hardware, environment, out)
    else:
        spec = _known_spec(environment, out)
    if spec is None and not options["timed"]:  # nothing is measured whose share of the device would be asked for
        spec = find_device(environment.device) or HardwareSpec(
            name=environment.device, kind=spec_kind(environment.device_kind)
        )
    make_folder(out)
    problems = look_before(str(options["device"]), out, wait_s)
    folder = RunFolder.create(out, new_run(name, collect(options["device"], problems), (), options))
    if spec is not None:
        folder.write_spec(spec)
    return folder


def _known_spec(environment: "Environment", out: Path) -> HardwareSpec | None:
    """The newest figures of this device, with this software, among earlier runs: calibrated ones first."""
    found: list[tuple[bool, str, Path, HardwareSpec]] = []
    for path in Path(out).glob(f"{slug(environment.device)}/*/spec.json"):
        try:
            run = RunFolder.open(path.parent)
            spec = run.read_spec()
        except RequestError:
            continue
        if spec is not None and spec.measured is not None and not differing(run.run.environment, environment):
            found.append((bool(spec.calibrated), path.parent.name, path, spec))
    if not found:
        return None
    *_, path, spec = max(found, key=lambda each: each[:2])
    what = "figures and laws" if spec.calibrated else "figures"
    output.say(f"{what} of this device: {path}", sys.stderr)
    return spec


def _resumed(path: Path) -> RunFolder:
    """The folder of an unfinished run of kernels that began on this machine with this software."""
    before = RunFolder.open(path)
    run = before.run
    if SUITE_OPTION not in run.options:
        raise RequestError(f"{path} is not a run of `kernels`; see: python -m profiler list")
    if run.finished:
        raise RequestError(f"{path} is finished; look at it with: python -m profiler show {path}")
    require_same_machine(run)
    run.require_options("seconds", "processes", "seed", "memory_gib", "timeout_s", "draws", "timed", "cache")
    return RunFolder.open_for_resume(path)[0]


def _measure(folder: RunFolder, plan: "Plan") -> None:
    import torch

    from profiler.kernels.serving.worker import Nursery, done_of, run_tasks
    from profiler.record.kernel_table import write_kernels
    from profiler.record.suite_table import SuiteLog, law_kernels

    options, spec = folder.run.options, folder.read_spec()
    processes = _processes(options)
    device_s = 0.0 if spec is not None or not options["timed"] else 2 * DEVICE_S
    log = SuiteLog(folder.path)
    total = len(plan.tasks) * processes
    done = done_of(plan.tasks, log, processes)
    kernels_s = plan.seconds * (1 - done / total)
    earlier = f", {done} of {total} results are there" if done else ""
    output.remark(f"{len(plan.tasks)} kernels{earlier}: this takes about {duration(kernels_s + device_s)}")
    folder.note(estimated_s={"kernels": kernels_s, **({"device": device_s} if device_s else {})})
    before = DEVICE_UNITS + done if done and not device_s else 0
    with (
        output.resumable(folder.path, "kernels"),
        output.progress(total + 1, unit_s=[device_s, *[plan.seconds / total] * total], before=before) as step,
    ):
        if device_s:
            dtypes = sorted({task.kernel.dtype for task in plan.tasks})
            measure_device(
                folder,
                torch.device(str(options["device"])),
                quick=True,
                step=lambda text, part: step(text, DEVICE_UNITS * part),
                dtypes=dtypes,
            )
        run_tasks(
            plan.tasks,
            log,
            processes=processes,
            limit_s=float(options["timeout_s"] or TIMEOUT_S),
            seed=int(options["seed"] or 0),
            step=lambda text, done: step(text, DEVICE_UNITS + done),
            nursery=lambda: Nursery(PRELOAD if plan.uses_compiler else ()),
        )
    log.finish(folder.run)
    if (table := law_kernels(log.results, folder.run.environment.versions)) is not None:
        write_kernels(folder.path, table)
    folder.finish()


DEVICE_S = 5.0
"""Seconds of the device's figures, as `measure_device` takes with `quick`."""
PRELOAD = ("torch._inductor.compile_fx",)
"""What Inductor loads when it is first used: seconds in each process."""
