"""The rows of stored runs: passes and layers of `run`, figures of `hardware`, tables of kernels.

A new kind of run is a function and a row of `SOURCES`. A row's key has no name of the machine or of the version, which
are `Side.conditions` and `Side.versions`. Example: ``side_of([RunFolder.open(path)])``
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from calibrate.passes.pass_report import PassReport, Waterfall
from calibrate.passes.reports import load
from calibrate.regression.compare import Key, Row, Side, merged
from calibrate.regression.history import CLOCKS
from profiler.record.files import RUN_FILE
from profiler.record.folder import RunFolder, find_run
from profiler.record.measurement import RATES, Measurement, Window, grouped
from profiler.record.run import RequestError
from roofline.reading import entry

MOST_RUNS = 10_000
"""Runs of one side: 5,000 are three years of nights with several devices."""


Pass = tuple[Key, PassReport]
"""The key of a pass's row, and its report."""
Found = tuple[list[Row], list[Pass], list[Window]]
"""The rows of a run, the reports of its passes, and the stretches of time in which it measured."""


@dataclass(frozen=True)
class Loaded:
    """One side with the reports of its passes, whose waterfalls say where a difference went."""

    side: Side
    passes: tuple[Pass, ...] = ()
    unfinished: tuple[str, ...] = ()
    """Folders of runs that were ended early or still go on."""


def side_of(folders: Sequence[RunFolder]) -> Loaded:
    """Runs as one side, each a further process of its rows. Raises RequestError where they do not belong together."""
    kinds = {folder.content for folder in folders}
    if len(kinds) > 1:
        raise RequestError(f"{folders[0].path} and others hold {' and '.join(sorted(kinds))}; name runs of one kind")
    source = SOURCES.get(kind := kinds.pop())
    if source is None:
        raise RequestError(f"{folders[0].path} holds {kind}, which cannot be compared")
    sides: list[Side] = []
    passes: list[Pass] = []
    for folder in folders:
        folder.require_whole()
        rows, own, windows = source(folder)
        passes += own
        sides.append(
            Side(
                folder.path.name,
                tuple(rows),
                conditions(folder),
                {**folder.run.environment.versions, **observed_clocks(windows)},
                folder.run.environment.hostname,
                folder.run.started,
            )
        )
    name = sides[0].name if len(sides) == 1 else f"{sides[0].name} and {len(sides) - 1} more"
    unfinished = tuple(str(folder.path) for folder in folders if not folder.run.finished)
    return Loaded(merged(name, sides), tuple(passes), unfinished)


def find_side(names: str, results: Path) -> Loaded:
    """The side that `names` stands for: a run as `show` takes it, several joined by commas, or a folder of runs."""
    folders: list[RunFolder] = []
    for name in names.split(","):
        path = Path(name)
        is_group = entry(path) == "folder" and entry(path / RUN_FILE) is None and name != "last"
        inside = sorted(file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/{RUN_FILE}")) * is_group
        folders += [RunFolder.open(one) for one in inside] if inside else [find_run(name, results)]
    if len(folders) > MOST_RUNS:
        raise RequestError(f"{names[:60]} are {len(folders)} runs; name at most {MOST_RUNS}")
    if twice := [folder.path for i, folder in enumerate(folders) if folder.path in [f.path for f in folders[:i]]]:
        raise RequestError(f"{twice[0]} is named twice; a run is one process of a side")
    return side_of(folders)


def conditions(folder: RunFolder) -> dict[str, str | None]:
    """Return what has to be alike for times to be compared."""
    run = folder.run
    machine = run.environment
    return {
        "device": machine.device,
        "device unit": machine.device_uuid,
        "driver": machine.versions.get("driver"),
        "clock policy": machine.clocks,
        "threads": str(machine.threads) if machine.is_host else None,
        "method version": str(run.method_version),
    }


def observed_clocks(windows: Iterable[Window]) -> dict[str, str]:
    """Median clocks while samples were taken, as "1980 MHz"; without those that were not read."""
    windows = tuple(windows)
    medians = {}
    for name, field in CLOCKS.items():
        if read := [value for window in windows if (value := getattr(window, field)) is not None]:
            medians[name] = f"{median(read) / 1e6:.0f} MHz"
    return medians


def pass_rows(folder: RunFolder) -> Found:
    """A row for each pass, and one for each layer of it."""
    reports, failed = load(folder)
    lost = {result.cell.key: result for result in failed}
    results = folder.results()
    cells = [result.cell.key for result in results]
    measured = dict(zip((cell for cell in cells if cell not in lost), reports, strict=True))
    rows, passes = [], []
    for cell in cells:
        key: Key = (("pass", cell),)
        if cell in lost:
            rows.append(Row(key, failed=lost[cell].reason or "it was not measured"))
            continue
        report = measured[cell]
        if report.status == "invalid":
            rows.append(Row(key, failed=report.reason or "the measurement contradicts itself"))
            continue
        ideal_s = next((time for time in (report.rungs.ideal, report.rungs.achieved) if time is not None), None)
        rows.append(Row(key, (report.wall_s,), None if ideal_s is None else ideal_s / report.wall_s))
        for layer in report.layers:
            if layer.measured_s > 0:
                path = layer.path or "the model"
                rows.append(Row((*key, ("layer", path), ("kind", layer.kind)), (layer.measured_s,), layer.efficiency))
        passes.append((key, report))
    return rows, passes, [window for result in results for window in result.windows]


def hardware_rows(folder: RunFolder) -> Found:
    """A row for each figure, with one value for each fresh process; rates are inverted, so that more is slower."""
    from profiler.record.hardware_table import read_measurements

    rows, measurements = [], read_measurements(folder.path)
    for (benchmark, case, dtype, threads), alike in grouped(measurements).items():
        key = (
            ("benchmark", benchmark),
            ("case", case),
            ("dtype", dtype or ""),
            ("threads", "" if threads is None else f"{threads} threads"),
            ("cache", next((m.cache.declared for m in alike if m.cache), "")),
        )
        times = tuple(_cost(measurement) for measurement in alike if measurement.has_value)
        unit = alike[0].unit
        why = next((m.reason for m in alike if m.reason), "it has no result") if not times else None
        rows.append(Row(key, times, unit=f"s/{unit.removesuffix('/s')}" if unit in RATES else unit, failed=why))
    return rows, [], [window for measurement in measurements for window in measurement.windows]


def kernel_rows(folder: RunFolder) -> Found:
    """A row for each kernel and size of a table; times of equal kernels are its processes.

    The name of what ran is an outcome, which a release may change, and part of a key only where a table has several.
    """
    from profiler.record.kernel_table import DIMS, read_kernels

    table = read_kernels(folder.path).table
    columns = {name: table[name].to_pylist() for name in (*KERNEL_FIELDS.values(), "kernel", *DIMS)}
    rows: dict[Key, dict[str, list[float]]] = {}
    for index, time_s in enumerate(table["time_s"].to_pylist()):
        sizes = (f"{name}={columns[name][index]:g}" for name in DIMS if columns[name][index] is not None)
        named = ((field, columns[column][index] or "") for field, column in KERNEL_FIELDS.items())
        key = (*named, ("shape", " ".join(sizes)))
        rows.setdefault(key, {}).setdefault(columns["kernel"][index] or "", []).append(time_s)
    return (
        [
            Row(key if len(ran) == 1 else (*key, ("provider", name)), tuple(times))
            for key, ran in rows.items()
            for name, times in ran.items()
        ],
        [],
        [],
    )


KERNEL_FIELDS = {"kernel": "kind", "dtype": "dtype", "operation": "op", "distribution": "distribution"}
"""Field of a key -> column of a table of kernels."""

SOURCES: dict[str, Callable[[RunFolder], Found]] = {
    "passes": pass_rows,
    "hardware": hardware_rows,
    "kernels": kernel_rows,
}
"""Content of a run's folder -> what it holds."""


def moved(base: Iterable[Pass], new: Iterable[Pass]) -> dict[Key, dict[str, float]]:
    """Where the difference of each pass went: the seconds that each term of its waterfall grew by, which add up to the
    difference of the wall times. Terms that only one side knows are one, "other terms"."""
    before, after = _terms(base), _terms(new)
    out = {}
    for key in before.keys() & after.keys():
        old, now = before[key], after[key]
        grown = {name: now[name] - old[name] for name in old if name in now}
        if old.keys() != now.keys():
            grown["other terms"] = sum(now.values()) - sum(old.values()) - sum(grown.values())
        out[key] = grown
    return out


def _terms(reports: Iterable[Pass]) -> dict[Key, dict[str, float]]:
    """Means over the runs of a side, where its runs know the same terms, else those of its last run."""
    passes: dict[Key, list[dict[str, float]]] = {}
    for key, report in reports:
        passes.setdefault(key, []).append(terms_of(report.waterfall))
    means = {}
    for key, alike in passes.items():
        same = [terms for terms in alike if terms.keys() == alike[-1].keys()]
        means[key] = {name: sum(terms[name] for terms in same) / len(same) for name in alike[-1]}
    return means


def terms_of(fall: Waterfall) -> dict[str, float]:
    """Known terms of a waterfall, merged ones under their joint name, in seconds."""
    alone = {name: value for name, value in fall.model_dump(exclude={"merged"}).items() if value is not None}
    return {**alone, **fall.merged}


def _cost(measurement: Measurement) -> float:
    value = measurement.value()
    return 1 / value if measurement.unit in RATES else value
