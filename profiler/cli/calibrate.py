"""`calibrate`: measured kernels to a spec of the device whose laws predict kernels that were not measured.

Wiring only: `calibrate.kernels.score` fits and scores, `calibrate.report.calibration` shows. No device,
no torch.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiler.cli.options import AsJson, Results
from profiler.cli.output import console, print_json, stdout_to_stderr_if
from profiler.record.files import write_text
from profiler.record.find import find_run
from profiler.record.folder import RunFolder
from profiler.record.run import RequestError, roofcal_version
from roofline.hardware.load import load_device
from roofline.hardware.spec import HardwareSpec

if TYPE_CHECKING:
    from roofline.laws.fitted import Provenance

EXAMPLE = """
Examples:\n
python -m profiler calibrate last --points 200\n
python -m profiler calibrate h200-gemm --score h200-other-shapes --points 200 --seed 1 --json
"""

SPEC = "spec.json"


def calibrate(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs whose kernels the laws are fitted to, of one device.")
    ],
    points: Annotated[
        int | None, typer.Option(min=1, help="Most measured kernels of each kind and dtype to fit to.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split into groups and of the fit.")] = 0,
    score: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Run to score the laws on, which the fit does not see; repeatable."),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Kind of kernels to fit, as matmul; repeatable. Default: all.")
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Name or JSON file of the device, where the runs do not describe it."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Spec to write. Default: spec.json of the first run.")] = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Fit each kind's law to few kernels and score it on others: other groups of the runs, or the runs of --score."""
    from calibrate.kernels.score import calibrate_tables, calibrated_spec, chosen, tables
    from calibrate.report.json import calibration_json
    from calibrate.report.kernels import calibration_document
    from calibrate.report.terminal import render
    from roofline.hardware.facts import facts_of

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
    from profiler.record.kernel_table import read_kernels
    from roofline.laws.fitted import Provenance

    versions: dict[str, str] = {}
    for folder in folders:
        versions |= folder.run.environment.versions
    versions["roofcal"] = roofcal_version()
    return Provenance(
        runs=tuple(str(folder.path) for folder in folders),
        sources=tuple(source.file for folder in folders for source in read_kernels(folder.path).sources),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        versions=versions,
    )
