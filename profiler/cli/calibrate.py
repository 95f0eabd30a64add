"""`calibrate`: measured kernels to a spec of the device whose laws predict kernels that were not measured.

Wiring only: `calibrate.calibrating` fits and scores, `calibrate.report.kernels` shows. No device,
no torch.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.cli.output import console, print_json, stdout_to_stderr_if
from profiler.record.errors import RequestError
from profiler.record.files import write_text
from profiler.record.index import find_run
from profiler.record.store import RunFolder
from profiler.record.version import roofcal_version
from roofline.hardware import HardwareSpec, load_device

if TYPE_CHECKING:
    from roofline.calibrated import Provenance

EXAMPLE = """
Examples:\n
python -m profiler calibrate last --points 200\n
python -m profiler calibrate h200-gemm --score h200-other-shapes --points 200 --seed 1 --json
"""

SPEC = "spec.json"


def calibrate(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs with measured kernels, of one device.")],
    points: Annotated[
        int | None, typer.Option(min=1, help="Measured kernels to read at most, of each kind and dtype.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split into groups and of the fit.")] = 0,
    score: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Score on this run, which the fit does not see; repeatable.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind, as matmul; repeatable.")] = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="The device, where the runs do not describe it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Spec to write; the first run's spec.json, if not given.")] = None,
    results: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, everything else on stderr.")] = False,
) -> None:
    """Fit each kind's law to few kernels and score it on others: other groups of the runs, or the runs of --score."""
    from calibrate.calibrating import calibrate_tables, calibrated_spec, chosen, tables
    from calibrate.report.json import calibration_json
    from calibrate.report.kernels import calibration_document
    from calibrate.report.terminal import render
    from roofline.facts import facts_of

    with stdout_to_stderr_if(as_json):
        folders, judges = ([find_run(name, results) for name in names] for names in (runs, score or []))
        _refuse_twice(folders, judges)
        fitted = chosen(tables(folders), kind or [])
        scored = tables(judges) if judges else None
        spec = _spec(folders, judges, hardware)
        try:
            facts = facts_of(spec)
        except ValueError as error:
            raise RequestError(str(error)) from error
        if facts.assumed:
            print(
                f"{spec.name} does not say all that laws start from; taken: {', '.join(facts.assumed)}", file=sys.stderr
            )
        calibration = calibrate_tables(fitted, scored, facts, points, seed)
        path = out or folders[0].path / SPEC
        kept = calibrated_spec(spec, calibration, _provenance(folders, seed))
        write_text(path, kept.model_dump_json(indent=1) + "\n")
    if as_json:
        print_json(calibration_json(path, calibration))
    else:
        render(calibration_document(calibration), console())
        print(f"\nkept in {path}", file=sys.stderr)


def _refuse_twice(folders: Sequence[RunFolder], judges: Sequence[RunFolder]) -> None:
    """A run that is fitted to cannot be scored on, and rows must not count twice."""
    paths = [folder.path.resolve() for folder in (*folders, *judges)]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise RequestError(f"{twice[0]} is named twice; a run is either fitted to or scored on, once")


def _spec(folders: Sequence[RunFolder], judges: Sequence[RunFolder], hardware: str | None) -> HardwareSpec:
    """The device of all the runs. Raises RequestError: several devices, or none that is described."""
    devices = {folder.run.environment.device: folder for folder in (*folders, *judges)}
    if len(devices) > 1:
        raise RequestError(f"the runs are of {' and '.join(sorted(devices))}; calibrate each device by itself")
    if hardware is not None:
        try:
            return load_device(hardware)
        except ValueError as error:
            raise RequestError(f"--hardware: {error}") from error
    spec = folders[0].read_spec()
    if spec is None or (spec.datasheet is None and spec.measured is None):
        raise RequestError(
            f"{folders[0].path} does not describe {next(iter(devices))}: "
            "name its device file with --hardware, such as nvidia-h100-sxm"
        )
    return spec


def _provenance(folders: Sequence[RunFolder], seed: int) -> "Provenance":
    from profiler.record.kernels import read
    from roofline.calibrated import Provenance

    versions: dict[str, str] = {}
    for folder in folders:
        versions |= folder.run.environment.versions
    versions["roofcal"] = roofcal_version()
    return Provenance(
        runs=tuple(str(folder.path) for folder in folders),
        sources=tuple(source.file for folder in folders for source in read(folder.path).sources),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        versions=versions,
    )
