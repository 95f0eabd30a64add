"""The units of a fleet from their runs of `hardware`, and a spec of the device model with the spread between them.

Example: ``for device, runs in by_device(folders).items(): model_spec([run for run in runs])``
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from calibrate.fleet.outliers import EFFICIENCY, RESOLUTION, Z90, Measured, Unit, spread
from profiler.record.folder import RunFolder
from profiler.record.run import RequestError
from roofline.hardware.spec import Characteristic, Figure, HardwareSpec, Peaks


def by_device(folders: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    """The newest run of `hardware` of each unit, by the name of the device model."""
    newest: dict[tuple[str, str], RunFolder] = {}
    for folder in sorted(folders, key=lambda folder: folder.run.started):
        if folder.content == "hardware" and folder.run.finished:
            newest[folder.run.environment.device, unit_name(folder)] = folder
    found: dict[str, list[RunFolder]] = {}
    for (device, _), folder in sorted(newest.items()):
        found.setdefault(device, []).append(folder)
    return found


def unit_name(folder: RunFolder) -> str:
    """UUID of the run's device, or the name of its host."""
    environment = folder.run.environment
    return environment.device_uuid or environment.hostname


def unit_of(folder: RunFolder) -> Unit:
    """The figures of one unit. Raises RequestError where its spec cannot be read."""
    spec = folder.read_spec()
    figures: dict[str, Measured] = {}
    for figure in spec.characteristics if spec else ():
        if figure.value is not None:
            error = math.log(figure.high / figure.low) / 2 / Z90 if figure.low and figure.high else 0.0
            figures[key_of(figure)] = Measured(figure.value, figure.unit, max(0.0, error))
    labels = [label for figure in (spec.characteristics if spec else ()) for label in figure.labels]
    remarks = tuple(dict.fromkeys((*folder.run.environment.notes, *labels)))
    return Unit(unit_name(folder), folder.run.environment.hostname, figures, remarks)


def key_of(figure: Characteristic) -> str:
    """A name of a figure that is the same on every unit."""
    return figure.name if figure.dtype is None else f"{figure.name} {figure.dtype}"


def model_spec(specs: Sequence[HardwareSpec], laws: HardwareSpec | None = None) -> HardwareSpec:
    """The spec of a device model: each figure is the median of its units, with the interval that holds 90 % of units.

    Args: specs of the units that are alike; a spec whose laws were fitted to all their kernels together.
    Raises RequestError where no unit has figures.
    """
    measured = [spec.measured for spec in specs if spec.measured is not None]
    if not measured:
        raise RequestError("no unit of this device has measured figures; run: python -m profiler hardware")
    first = specs[0]
    figures: dict[str, list[Characteristic]] = {}
    for figure in (figure for spec in specs for figure in spec.characteristics if figure.value is not None):
        figures.setdefault(key_of(figure), []).append(figure)
    return first.model_copy(
        update={
            "uuid": None,
            "measured": _middle_peaks(measured),
            "characteristics": tuple(_between(alike) for alike in figures.values()),
            "calibrated": laws.calibrated if laws else (),
            "reference": laws.reference if laws else {},
            "missing": {},
        }
    )


def _middle_peaks(peaks: Sequence[Peaks]) -> Peaks:
    """The peaks that all units have, in the middle."""

    def rates(of: Sequence[Mapping[str, Figure]]) -> dict[str, Figure]:
        return {name: _figure([one[name] for one in of]) for name in of[0] if all(name in one for one in of)}

    levels = []
    for level in peaks[0].levels:
        same = [other for one in peaks for other in one.levels if other.name == level.name]
        if len(same) == len(peaks):
            capacity = float(np.median([other.capacity_bytes for other in same]))
            middle = {"capacity_bytes": capacity, "bandwidth": _figure([other.bandwidth for other in same])}
            levels.append(level.model_copy(update=middle))
    hosts = [one.host_s_per_op for one in peaks if one.host_s_per_op is not None]
    links = {
        name: link.model_copy(update={"bandwidth": _figure([one.links[name].bandwidth for one in peaks])})
        for name, link in peaks[0].links.items() if all(name in one.links for one in peaks)
    }  # fmt: skip
    return peaks[0].model_copy(
        update={
            "matrix": rates([one.matrix for one in peaks]),
            "vector": rates([one.vector for one in peaks]),
            "levels": tuple(sorted(levels, key=lambda level: level.capacity_bytes)),
            "links": links,
            "host_s_per_op": _figure(hosts) if hosts else None,
        }
    )


def _figure(figures: Sequence[Figure]) -> Figure:
    middle, low, high, _ = _units([figure.value for figure in figures])
    source = f"median of {len(figures)} units; {figures[0].source}"
    return Figure(value=middle, low=low, high=high, source=source)


def _between(figures: Sequence[Characteristic]) -> Characteristic:
    middle, low, high, variation = _units([figure.value for figure in figures if figure.value is not None])
    return figures[0].model_copy(
        update={"value": middle, "low": low, "high": high, "variation": variation, "replicates": len(figures),
                "labels": (), "typical": None, "conditions": f"median of {len(figures)} units"}
    )  # fmt: skip


def _units(values: Sequence[float]) -> tuple[float, float | None, float | None, float | None]:
    """Median over units, the interval that holds a further unit in 90 % of cases, and the spread, a fraction."""
    from scipy.stats import t as student

    logs = np.log(values)
    middle, n = float(np.exp(np.median(logs))), len(logs)
    if n < 3:
        return middle, None, None, None
    scale = max(spread(logs), RESOLUTION)
    half = float(student.ppf(0.95, EFFICIENCY * (n - 1))) * scale * math.sqrt(1 + 1 / n)
    return middle, middle * math.exp(-half), middle * math.exp(half), scale
