"""`calibrate`: fit laws to measured kernels, and write them in a spec of the device.

Wiring only: `calibrate.kernels.score` fits and scores, `calibrate.report.kernels` reports. It needs no device and no
torch.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from profiler.cli.options import AsJson, Html, Results, find_hardware, listed_apart
from profiler.cli.output import LINES_S, progress, say, show, stdout_to_stderr_if
from profiler.record.files import require_separate, write_text
from profiler.record.folder import RunFolder, find_run
from profiler.record.run import MOST_SEED, RequestError, roofcal_version
from roofline.hardware.spec import HardwareSpec

if TYPE_CHECKING:
    from roofline.laws.fitted import Provenance

EXAMPLE = """
Examples:\n
python -m profiler calibrate last --points 200\n
python -m profiler calibrate concurrency-*.json --engine vllm:0.19.0 --hardware SPEC.json --out here.json\n
python -m profiler calibrate h200-gemm --score h200-other-shapes --points 200 --seed 1 --json
"""


def calibrate(
    runs: Annotated[
        list[str],
        Argument(
            metavar="RUN",
            help="Runs of one device; the laws are fitted to their kernels. With --engine: results or timelines.",
        ),
    ],
    points: Annotated[int | None, Option(min=1, help="Most kernels of each kind and dtype to fit to.")] = None,
    seed: Annotated[int, Option(min=0, max=MOST_SEED, help="Seed of the split into groups and of the fit.")] = 0,
    score: Annotated[
        list[str] | None, Option(metavar="RUN", help="Score on this run, which the fit does not see; repeatable.")
    ] = None,
    kind: Annotated[list[str] | None, Option(help="Fit only this kind of kernels, as matmul; repeatable.")] = None,
    hardware: Annotated[
        str | None, Option(help="The device, where the runs do not describe it: a name, a JSON file, or a run.")
    ] = None,
    engine: Annotated[
        str | None,
        Option(
            help="Fit this serving engine's own time, as vllm:0.19.0, to results of vllm bench serve, or to timelines."
        ),
    ] = None,
    model: Annotated[
        str | None, Option(metavar="NAME", help="For --engine: the model. Default: what the results state.")
    ] = None,
    tp: Annotated[
        int | None,
        Option(help="For --engine: ranks that divide it. Default: what the results state, or 1.", min=1, max=1024),
    ] = None,
    dtype: Annotated[str | None, Option(help="For --engine: dtype of the weights. Default: the checkpoint's.")] = None,
    out: Annotated[
        Path | None, Option(help="Spec to write. Default: spec.json of the first run; with --engine, engine.json.")
    ] = None,
    html: Html = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Fit a law for each kind of kernel, and score it.

    The score is on kernels that the fit has not seen.
    """
    if engine is not None:
        from profiler.cli.calibrate_engine import Question, calibrate_engine

        if points is not None or score or kind or html is not None:
            raise RequestError("--points, --score, --kind and --html are about kernels; leave them out with --engine")
        calibrate_engine(Question(runs, engine, model, tp, dtype, hardware, out, results), as_json)
        return
    if model is not None or tp is not None or dtype is not None:
        raise RequestError("--model, --tp and --dtype describe a server; add --engine")
    from calibrate.kernels.score import calibrate_tables, calibrated_spec, chosen, fit_s, tables
    from calibrate.report.json import calibration_json
    from calibrate.report.kernels import calibration_document
    from roofline.hardware.spec import facts_of

    with stdout_to_stderr_if(as_json):
        score, kind = (None if texts is None else listed_apart(texts) for texts in (score, kind))
        fit_runs, score_runs = ([find_run(name, results) for name in names] for names in (runs, score or []))
        paths = [folder.path.resolve() for folder in (*fit_runs, *score_runs)]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise RequestError(f"{twice[0]} is named twice; a run is either fitted to or scored on, once")
        stored = [file for path in paths for file in path.iterdir() if file.name != "spec.json"]
        given = [Path(hardware)] if hardware is not None else []
        require_separate({"--out": out, "--html": html}, [*stored, *given])
        fitted = chosen(tables(fit_runs), kind or [])
        scored = tables(score_runs) if score_runs else None
        spec = _spec(fit_runs, score_runs, hardware, results)
        try:
            facts = facts_of(spec)
        except ValueError as error:
            raise RequestError(str(error)) from error
        if facts.assumed:
            say(f"{spec.name} lacks figures that laws need; assumed: {', '.join(facts.assumed)}", sys.stderr)
        unit_s = [fit_s(len(table), points) for table in fitted.values()]
        if sum(unit_s) > LINES_S:
            with progress(len(unit_s), unit_s=unit_s) as step:
                calibration = calibrate_tables(fitted, scored, facts, points, seed, step)
        else:
            calibration = calibrate_tables(fitted, scored, facts, points, seed)
        path = out or fit_runs[0].path / "spec.json"
        calibrated = calibrated_spec(spec, calibration, provenance(fit_runs, seed))
        write_text(path, calibrated.model_dump_json(indent=1) + "\n")
    show(as_json, lambda: calibration_json(path, calibration), lambda: calibration_document(calibration), path, html)


def _spec(
    fit_runs: Sequence[RunFolder], score_runs: Sequence[RunFolder], hardware: str | None, results: Path
) -> HardwareSpec:
    """The device of all runs. Raises RequestError where they are of several devices, or nothing describes it."""
    devices = {folder.run.environment.device for folder in (*fit_runs, *score_runs)}
    if len(devices) > 1:
        raise RequestError(f"the runs are of {' and '.join(sorted(devices))}; calibrate each device by itself")
    if hardware is not None:
        return find_hardware(hardware, results)[0]
    spec = fit_runs[0].read_spec()
    if spec is None or (spec.datasheet is None and spec.measured is None):
        raise RequestError(
            f"{fit_runs[0].path} has no figures of {devices.pop()}; name the device with --hardware, as nvidia-h100-sxm"
        )
    return spec


def provenance(folders: Sequence[RunFolder], seed: int) -> "Provenance":
    """The runs, files and versions that laws come from."""
    from profiler.record.kernel_table import read_kernels
    from roofline.laws.fitted import Provenance

    versions = {name: version for folder in folders for name, version in folder.run.environment.versions.items()}
    return Provenance(
        runs=tuple(str(folder.path) for folder in folders),
        sources=tuple(source.file for folder in folders for source in read_kernels(folder.path).sources),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        versions=versions | {"roofcal": roofcal_version()},
    )
