"""The reports of the passes in a run's folder, made without the device and without torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from calibrate.passes.efficiency import summarise
from calibrate.passes.pass_report import PassReport, to_json
from calibrate.passes.table import OpTimesTable
from profiler.record.folder import RunFolder
from profiler.record.run import CellResult, RequestError
from roofline.graph.op import OpGraph
from roofline.hardware.spec import HardwareSpec, spec_kind

T = TypeVar("T")

ENVIRONMENT = {"device", "device_kind", "versions", "notes", "threads", "cores"}
"""Fields of run.json's environment that the JSON output repeats."""


def load_spec(folder: RunFolder) -> HardwareSpec:
    """The device's figures; none where the run ended before they were measured. Raises RequestError for a damaged
    file."""
    environment = folder.run.environment
    return folder.read_spec() or HardwareSpec(name=environment.device, kind=spec_kind(environment.device_kind))


def load(folder: RunFolder, spec: HardwareSpec | None = None) -> tuple[list[PassReport], list[CellResult]]:
    """The reports of a run, and its cells without one, both in the order of the run, priced with `spec` or the run's. A
    measured cell whose graph cannot be read is returned as "failed" with the reason. Raises RequestError where the
    results or the device's figures cannot be read."""
    spec = spec or load_spec(folder)
    every = [_report(folder, result, spec) for result in folder.results()]
    reports = [report for report in every if isinstance(report, PassReport)]
    return reports, [result for result in every if isinstance(result, CellResult)]


def sound(folder: RunFolder) -> frozenset[str]:
    """Keys of the cells whose report is "done", which need not be measured again. Raises RequestError as `load`."""
    spec = load_spec(folder)
    reports = [(result.cell.key, _report(folder, result, spec)) for result in folder.results()]
    return frozenset(key for key, report in reports if isinstance(report, PassReport) and report.status == "done")


@dataclass(frozen=True, eq=False)
class MeasuredPass:
    """A measured cell with the graph that it ran, and each operation's times."""

    result: CellResult
    graph: OpGraph
    table: OpTimesTable


def load_passes(folder: RunFolder, spec: HardwareSpec | None = None) -> tuple[list[MeasuredPass], list[CellResult]]:
    """As `load`, but the operations of each pass instead of its report."""
    used = spec or load_spec(folder)
    every = [
        _joined(folder, one, lambda result, graph: MeasuredPass(result, graph, OpTimesTable.of(result, graph, used)))
        for one in folder.results()
    ]
    passes = [each for each in every if isinstance(each, MeasuredPass)]
    return passes, [each for each in every if isinstance(each, CellResult)]


def load_measured(
    folder: RunFolder, spec: HardwareSpec | None = None
) -> tuple[list[PassReport], list[MeasuredPass], list[CellResult]]:
    """As `load`, with the operations of each report beside it."""
    used = spec or load_spec(folder)
    passes, failed = load_passes(folder, used)
    return [summarise(each.result, each.graph, used) for each in passes], passes, failed


def _report(folder: RunFolder, result: CellResult, spec: HardwareSpec) -> PassReport | CellResult:
    """The cell's report, or the cell with the reason why there is none."""
    return _joined(folder, result, lambda measured, graph: summarise(measured, graph, spec))


def _joined(folder: RunFolder, result: CellResult, join: Callable[[CellResult, OpGraph], T]) -> T | CellResult:
    """What `join` makes of a measured cell and its graph, or the cell with the reason why there is nothing."""
    measured = result.status != "failed" and bool(result.wall_s) and result.closure is not None
    if not measured or result.graph is None:
        return result
    try:
        graph = folder.read_graph(result.graph)
    except RequestError as error:
        return result.model_copy(update={"status": "failed", "reason": str(error)})
    numbers = [*(times.op for times in result.ops), *(op for kernel in result.kernels for op in kernel.ops)]
    if any(not 0 <= op < len(graph.ops) for op in numbers):
        reason = (
            f"{folder.path / result.graph} is not the graph that was measured; restore it, or measure its cell again: "
            f"python -m profiler run --resume {folder.path}"
        )
        return result.model_copy(update={"status": "failed", "reason": reason})
    try:
        return join(result, graph)
    except ValueError as error:  # operations that were lost, or are those of another graph
        return result.model_copy(update={"status": "failed", "reason": str(error)})


def advice(folder: RunFolder, reports: Sequence[PassReport]) -> str | None:
    """A line of advice about passes that cannot be believed; None where all can."""
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
    """The document that `run --json` and `show --json` print; keys are only ever added."""
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
