"""From a run's folder to what every view shows, without the device and without torch.

Example: ``[report.wall_s for report in load_reports(RunFolder.open(path))]``
"""

from collections.abc import Sequence
from typing import Any

from calibrate.efficiency import PassReport, summarise, to_json
from profiler.record.run import CellResult
from profiler.record.store import RunFolder
from roofline.hardware import HardwareSpec


def load_spec(folder: RunFolder) -> HardwareSpec:
    """The device's figures; one without any where the run ended before they were taken."""
    environment = folder.run.environment
    return folder.read_spec() or HardwareSpec(name=environment.device, kind=environment.device_kind)


def load_reports(folder: RunFolder) -> list[PassReport]:
    """A report for each cell that was measured, in the order of the run. Raises RequestError: a damaged file."""
    spec = load_spec(folder)
    return [
        summarise(result, folder.read_graph(result.graph), spec)
        for result in folder.results()
        if _was_measured(result) and result.graph is not None
    ]


def without_report(folder: RunFolder) -> list[CellResult]:
    """The cells that `load_reports` has nothing to say about, each with its reason."""
    return [result for result in folder.results() if not _was_measured(result)]


def _was_measured(result: CellResult) -> bool:
    samples = bool(result.wall_s) and result.closure is not None and result.graph is not None
    return result.status != "failed" and samples


def document(folder: RunFolder, reports: Sequence[PassReport], failed: Sequence[CellResult]) -> dict[str, Any]:
    """What `run --json` and `show --json` print; keys are only ever added."""
    return {
        "run": str(folder.path),
        "device": folder.run.environment.device,
        "started": folder.run.started,
        "finished": folder.run.finished,
        "passes": [to_json(report) for report in reports],
        "failed": [
            {"cell": result.cell.key, "model": result.cell.model, "status": result.status, "reason": result.reason}
            for result in failed
        ],
    }
