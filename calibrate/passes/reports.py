"""Reports of the passes in a run's folder, made without the device and without torch.

Example: ``[report.wall_s for report in load(RunFolder.open(path))[0]]``
"""

from collections.abc import Sequence
from typing import Any

from calibrate.passes.efficiency import summarise
from calibrate.passes.pass_report import PassReport, to_json
from profiler.record.folder import RunFolder
from profiler.record.run import CellResult, RequestError
from roofline.hardware.spec import HardwareSpec, spec_kind

ENVIRONMENT = {"device", "device_kind", "versions", "notes", "threads", "cores"}
"""What the JSON output repeats of the machine from run.json."""


def load_spec(folder: RunFolder) -> HardwareSpec:
    """The device's figures; one without any where the run ended before they were taken.

    Raises RequestError as `RunFolder.read_spec` does.
    """
    environment = folder.run.environment
    return folder.read_spec() or HardwareSpec(name=environment.device, kind=spec_kind(environment.device_kind))


def load(folder: RunFolder, spec: HardwareSpec | None = None) -> tuple[list[PassReport], list[CellResult]]:
    """The reports of a run, and its cells without one, both in the order of the run; priced with the run's own spec
    unless another is given.

    A measured cell whose graph cannot be read is returned as "failed" with the reason. Raises RequestError where
    the results or the device's figures cannot be read.
    """
    spec = spec or load_spec(folder)
    reports: list[PassReport] = []
    without: list[CellResult] = []
    for result in folder.results():
        report = _report(folder, result, spec)
        if isinstance(report, PassReport):
            reports.append(report)
        else:
            without.append(report)
    return reports, without


def sound(folder: RunFolder) -> frozenset[str]:
    """Keys of the cells that need not be measured again: done, with a whole graph, and a report that is "done".

    Raises RequestError as `load` does.
    """
    spec = load_spec(folder)
    reports = [(result.cell.key, _report(folder, result, spec)) for result in folder.results()]
    return frozenset(key for key, report in reports if isinstance(report, PassReport) and report.status == "done")


def _report(folder: RunFolder, result: CellResult, spec: HardwareSpec) -> PassReport | CellResult:
    """The cell's report, or the cell with the reason why there is none."""
    if not _was_measured(result) or result.graph is None:
        return result
    try:
        graph = folder.read_graph(result.graph)
    except RequestError as error:
        return result.model_copy(update={"status": "failed", "reason": str(error)})
    measured = [*(times.op for times in result.ops), *(op for kernel in result.kernels for op in kernel.ops)]
    if any(not 0 <= op < len(graph.ops) for op in measured):
        reason = (
            f"{folder.path / result.graph} is not the graph that was measured; restore it, or measure its cell again: "
            f"python -m profiler run --resume {folder.path}"
        )
        return result.model_copy(update={"status": "failed", "reason": reason})
    return summarise(result, graph, spec)


def _was_measured(result: CellResult) -> bool:
    samples = bool(result.wall_s) and result.closure is not None and result.graph is not None
    return result.status != "failed" and samples


def advice(folder: RunFolder, reports: Sequence[PassReport]) -> str | None:
    """What to do about passes that cannot be believed, in one line; None where all can."""
    doubtful = [report for report in reports if report.status != "done"]
    if not doubtful:
        return None
    seconds = 2 * float(folder.run.options.get("seconds") or 0)
    longer = f" --seconds {seconds:g}" if seconds else ""
    return (
        f"{len(doubtful)} of {len(reports)} passes cannot be relied on; measure them again, longer or on a quieter "
        f"machine: python -m profiler run --resume {folder.path}{longer}"
    )


def document(folder: RunFolder, reports: Sequence[PassReport], failed: Sequence[CellResult]) -> dict[str, Any]:
    """What `run --json` and `show --json` print; keys are only ever added."""
    environment = folder.run.environment
    return {
        "run": str(folder.path),
        "device": environment.device,
        "started": folder.run.started,
        "finished": folder.run.finished,
        "estimated": folder.run.estimated_s,
        "spent": folder.run.spent_s,
        "environment": environment.model_dump(mode="json", include=ENVIRONMENT),
        "warnings": [
            *environment.notes,
            *(f"{report.model} {report.workload.key}: {line}" for report in reports for line in report.warnings),
        ],
        "advice": advice(folder, reports),
        "passes": [to_json(report) for report in reports],
        "failed": [
            {
                "cell": result.cell.key,
                "model": result.cell.model,
                "phase": result.cell.workload.phase,
                **result.cell.workload.model_dump(mode="json"),
                "mode": result.cell.mode,
                "status": result.status,
                "reason": result.reason,
            }
            for result in failed
        ],
    }
