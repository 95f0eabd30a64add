"""`campaign`: measure many models and suites on many devices, by one plan, and merge what they measured.

Wiring only: `profiler.campaign` runs shards and starts them on engines, `profiler.record.campaign` reads and merges
them, `calibrate.report.campaign` and `calibrate.fleet` report.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from profiler.cli import options as option
from profiler.cli import output
from profiler.record.campaign import RUNS, Merged, keep_files, merged, read_shards, run_files
from profiler.record.files import KERNELS, write_text
from profiler.record.folder import RunFolder, list_runs, slug
from profiler.record.run import RequestError

if TYPE_CHECKING:
    from calibrate.report.document import Document
    from roofline.hardware.spec import HardwareSpec

EXAMPLE = """
Examples:\n
python -m profiler campaign gpu --out results/campaign\n
python -m profiler campaign gpu --shard 2/3 --gpu GPU-7c1f… --out /shared/campaign\n
python -m profiler campaign gpu --engine local --shards 4 --out /shared/campaign\n
python -m profiler campaign gpu --engine slurm --shards 40 --set slurm_partition=h200 --out /shared/campaign\n
python -m profiler campaign gpu --engine kubernetes --shards 8 --set image=IMAGE --set claim=CLAIM > job.yaml\n
python -m profiler campaign status /shared/campaign\n
python -m profiler campaign collect /shared/campaign --keep results/nvidia-h200\n
python -m profiler campaign fleet /shared/campaign /shared/campaign-of-may --keep specs
"""

MOST_SHARDS = 10_000
KUBERNETES = "kubernetes"


def campaign(
    what: Annotated[
        str,
        Argument(metavar="PLAN|status|collect|fleet", help="A plan (a YAML file; gpu and cpu are shipped), or a verb."),
    ],
    folders: Annotated[
        list[Path] | None, Argument(metavar="FOLDER", help="For status, collect and fleet: folders of campaigns.")
    ] = None,
    shard: Annotated[
        str | None,
        Option(help="Run only this shard here, as 2/3: the second of three.", rich_help_panel="Shards"),
    ] = None,
    gpu: Annotated[str | None, Option(help="GPU of the shard: its UUID, or its number here. Default: in turn.")] = None,
    engine: Annotated[
        str | None,
        Option(
            help="Start all shards: local (this host), slurm, ray; or print a Job for kubernetes.",
            rich_help_panel="Shards",
        ),
    ] = None,
    shards: Annotated[int, Option(help="For --engine: number of shards.", min=1, max=MOST_SHARDS)] = 1,
    values: Annotated[
        list[str] | None, Option("--set", metavar="NAME=VALUE", help="An option of the engine; repeatable.")
    ] = None,
    minutes: Annotated[
        float | None, Option(help="Time of each device. Default: the plan's.", min=0.1, callback=option.finite)
    ] = None,
    out: Annotated[Path, Option(help="Folder of the campaign, new or to continue; hosts share it.")] = Path(
        "results/campaign"
    ),
    keep: Annotated[Path | None, Option(help="For collect and fleet: write reports and specs to this folder.")] = None,
    as_json: option.AsJson = False,
) -> None:
    """Measure many models and suites on many devices, by one plan.

    The same command goes on where it was interrupted. Exit code 3: some parts have no result.
    """
    verbs: dict[str, Callable[[list[Path]], int]] = {
        "status": lambda named: _status(named, as_json),
        "collect": lambda named: collect(named, keep, as_json),
        "fleet": lambda named: fleet(named, keep, as_json),
    }
    if what in verbs:
        if shard or engine or gpu or values:
            raise RequestError(f"campaign {what} only reads a folder; leave --shard, --engine, --gpu and --set out")
        raise typer.Exit(verbs[what](folders or [out]))
    if folders:
        raise RequestError(f"{folders[0]} is one word too many; a plan takes --out for its folder")
    if shard is not None and engine is not None:
        raise RequestError("--engine starts all shards and --shard runs one here; give one of them")
    raise typer.Exit(_start(what, engine, shards, values or [], out, minutes, as_json) if engine is not None
                     else _run(what, shard, gpu, out, minutes, as_json))  # fmt: skip


def _run(plan: str, shard: str | None, gpu: str | None, out: Path, minutes: float | None, as_json: bool) -> int:
    """Run one shard here, and show how far the campaign is."""
    from profiler.campaign.engines import ShardJob, run_shard

    number, count = option.shard_of(shard) if shard is not None else (1, 1)
    with output.stdout_to_stderr_if(as_json):
        try:
            state = run_shard(ShardJob(plan, str(out), number, count, minutes, gpu))
        except KeyboardInterrupt as stop:
            output.say(f"what was measured is in {out}; the same command goes on", sys.stderr)
            raise stop
    _status([out], as_json)
    return output.GOOD if state == "finished" else output.INCONCLUSIVE


def _start(
    plan: str, engine: str, shards: int, values: list[str], out: Path, minutes: float | None, as_json: bool
) -> int:
    """Start all shards on an engine, and show how far the campaign is where it waits for them."""
    from profiler.campaign.engines import ENGINES, Jobs, kubernetes_manifest

    name = option.words("--engine", engine, (*ENGINES, KUBERNETES))[0]
    options = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise RequestError(f"--set takes NAME=VALUE, as slurm_partition=gpu; not {text!r:.60}")
        options[key] = value
    jobs = Jobs(plan, out, shards, minutes)
    if name == KUBERNETES:
        print(kubernetes_manifest(jobs, options), end="")
        return output.GOOD
    with output.stdout_to_stderr_if(as_json):
        failed = ENGINES[name](jobs, options, lambda line: output.say(line, sys.stderr))
    for line in failed:
        output.say(line, sys.stderr)
    return output.GOOD if name == "slurm" else _status([out], as_json)


def _merged(folders: list[Path]) -> Merged:
    shards, refused = read_shards(folders)
    return merged(shards, refused)


def _status(folders: list[Path], as_json: bool) -> int:
    from calibrate.report.campaign import status_document, status_json

    whole, now = _merged(folders), datetime.now(UTC)
    output.show(as_json, lambda: status_json(whole, now), lambda: status_document(whole, now))
    return output.GOOD if whole.is_whole else output.INCONCLUSIVE


def collect(folders: list[Path], keep: Path | None, as_json: bool) -> int:
    """Merge the shards of these folders, show them, and write what is worth keeping; return the exit code."""
    import json

    from calibrate.report import markdown
    from calibrate.report.campaign import collected_document, collected_json

    whole = _merged(folders)
    runs = run_files(whole)

    def document() -> dict[str, Any]:
        return collected_json(whole, runs)

    def report() -> "Document":
        held_out = [found.shard.document("held-out") for found in whole.parts
                    if found.part.name == "held-out" and found.shard]  # fmt: skip
        return collected_document(whole, runs, [kind for one in held_out for kind in one.get("kinds", ())])

    if keep is not None:
        too_large = keep_files(whole, keep)
        write_text(keep / "summary.json", json.dumps(document(), separators=(",", ":")) + "\n")
        write_text(keep / "README.md", markdown.render(report()))
        for name in too_large:
            output.say(f"{name} is left out of {keep}: it is too large", sys.stderr)
    output.show(as_json, document, report, kept=keep)
    return output.GOOD if whole.is_whole else output.INCONCLUSIVE


TOLERANCE = 0.01
"""Change of a row that an upgrade has to make, as in `history`."""


def fleet(folders: list[Path], keep: Path | None, as_json: bool) -> int:
    """Compare the units of each device model, show what it reaches, and write a spec of each; return the exit code."""
    from calibrate.fleet.outliers import outliers
    from calibrate.fleet.units import by_device, model_spec, unit_of
    from calibrate.fleet.upgrades import upgrades_of
    from calibrate.report.campaign import DeviceFleet, fleet_document, fleet_json

    found = [run for base in folders for run in list_runs(base / RUNS if (base / RUNS).is_dir() else base)]
    for run in found:
        if run.state == "unreadable":
            output.say(f"{run.path} is left out: {run.why}", sys.stderr)
    opened = [RunFolder.open(run.path) for run in found if run.state == "finished" and run.kind == "hardware"]
    if not opened:
        raise RequestError(f"no finished run of hardware under {', '.join(map(str, folders))}")
    fleets = []
    for device, runs in by_device(opened).items():
        units = [unit_of(run) for run in runs]
        unlike = outliers(units)
        out = {outlier.unit.name for outlier in unlike if outlier.is_certain}
        alike = [run for run, unit in zip(runs, units, strict=True) if unit.name not in out]
        specs = [spec for run in alike if (spec := run.read_spec()) is not None]
        spec = model_spec(specs, _laws(alike) if keep is not None else None)
        every = [run for run in opened if run.run.environment.device == device]
        fleets.append(DeviceFleet(device, units, unlike, spec, upgrades_of(every, TOLERANCE)))
        if keep is not None:
            write_text(keep / f"{slug(device)}.spec.json", spec.model_dump_json(indent=1) + "\n")
    output.show(as_json, lambda: fleet_json(fleets), lambda: fleet_document(fleets), kept=keep)
    return output.GOOD if not any(one.is_certain for each in fleets for one in each.outliers) else output.SLOWER


def _laws(runs: "list[RunFolder]") -> "HardwareSpec | None":
    """A spec with laws fitted to the kernels of all runs together; None where none of them was calibrated."""
    from calibrate.kernels.score import calibrate_tables, calibrated_spec, tables
    from profiler.cli.calibrate import provenance
    from roofline.hardware.spec import facts_of

    measured = [run for run in runs if (run.path / KERNELS).exists()]
    spec = measured[0].read_spec() if measured else None
    if spec is None:
        return None
    with option.one_line():
        calibration = calibrate_tables(tables(measured), None, facts_of(spec), None, 0)
    return calibrated_spec(spec, calibration, provenance(measured, 0))
