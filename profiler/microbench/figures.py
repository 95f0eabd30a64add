"""From measurements in several processes to the figures of a device, and from these to the peaks that price operations.

Each process gives one value a case (`Measurement.value`); a figure is their geometric mean with the interval of
`profiler.microbench.replicates`. Nothing here needs a device.

Example: ``characteristics(measurements, datasheet=None)[0].value``
"""

from collections.abc import Iterable, Sequence

from profiler.microbench.replicates import center, coefficient_of_variation, interval
from profiler.record.measurement import Measurement
from roofline.hardware.spec import Characteristic, Peaks

Key = tuple[str, str, str | None, int | None]
ONE_CORE = ".one core"
"""Ends the name of what a single thread of several reached."""
LABELS = 4
"""Labels of a figure, over all its processes, that are kept: the most severe."""
SPREAD = "; low–high: 5–95 % of the samples in this process"
SEVERITY = ("invalidates", "warns", "note")


def grouped(measurements: Iterable[Measurement]) -> dict[Key, list[Measurement]]:
    """Measurements of the same thing, in the order of their processes; a later one of a process replaces it."""
    found: dict[Key, dict[int, Measurement]] = {}
    for one in measurements:
        found.setdefault(one.key, {})[one.process] = one
    return {key: [by[process] for process in sorted(by)] for key, by in found.items()}


def characteristic(
    name: str, alike: Sequence[Measurement], datasheet: float | None = None, *, samples_spread: bool = False
) -> Characteristic:
    """The figure of measurements of one thing; where none is done, its reason.

    `samples_spread`: low and high are the value at the slowest and the fastest twentieth of the samples, which tells of
    other work and not of the device, instead of an interval over processes.
    """
    first = alike[0]
    done = [one for one in alike if one.status == "done"] or [one for one in alike if one.status == "inconclusive"]
    about = {"name": name, "dtype": first.dtype, "unit": first.unit, "datasheet": datasheet}
    if not done:
        return Characteristic(**about, status=first.status, reason=first.reason, labels=_labels(alike))
    values = [one.value() for one in done]
    ends = (min(_spread(done)), max(_spread(done))) if samples_spread else interval(values)
    return Characteristic(
        **about,
        value=center(values),
        low=ends[0] if ends else None,
        high=ends[1] if ends else None,
        typical=center([one.value(0.5) for one in done]),
        variation=coefficient_of_variation(values) if len(values) > 1 else None,
        replicates=len(values),
        conditions=conditions(done, samples_spread=samples_spread),
        labels=_labels(alike),
        status=done[0].status,
        reason=done[0].reason,
    )


def _spread(done: Sequence[Measurement]) -> list[float]:
    return [one.value(q) for one in done for q in (0.05, 0.95, one.quantile)]


def conditions(done: Sequence[Measurement], *, samples_spread: bool) -> str:
    """What was run and how, in one line."""
    one = done[0]
    sizes = ", ".join(f"{name} {value}" for name, value in one.parameters.items())
    count = sum(len(m.samples) for m in done)
    parts = [
        one.case if one.case not in sizes else "",
        sizes,
        f"{one.threads} threads" if one.threads is not None and one.threads > 1 else "",
        "1 thread" if one.threads == 1 else "",
        one.cache.declared if one.cache is not None else "",
        f"{_estimator(one)} of {count} samples" + (SPREAD if samples_spread else f", {len(done)} fresh processes"),
        one.clock,
    ]
    return "; ".join(part for part in parts if part)


def characteristics(measurements: Iterable[Measurement], threads: int | None) -> tuple[Characteristic, ...]:
    """A figure for each thing that was measured, by family and case; `threads` is all that the device has."""
    return tuple(characteristic(name_of(alike[0], threads), alike) for alike in grouped(measurements).values())


def name_of(one: Measurement, threads: int | None) -> str:
    """The name of a figure: family and case, and whether one core of several ran it."""
    single = one.threads == 1 and threads is not None and threads > 1
    return f"{one.benchmark}.{one.case}{ONE_CORE if single else ''}"


def with_datasheet(figures: Iterable[Characteristic], datasheet: Peaks | None) -> tuple[Characteristic, ...]:
    """The figures with what the datasheet says of the same."""
    return tuple(one.model_copy(update={"datasheet": datasheet_value(one, datasheet)}) for one in figures)


def datasheet_value(figure: Characteristic, datasheet: Peaks | None) -> float | None:
    """Main memory for its kernels, the matrix and vector peak of the dtype; None where it says nothing of this."""
    if datasheet is None or figure.name.endswith(ONE_CORE):
        return None
    family = figure.name.partition(".")[0]
    if family == "memory":
        return datasheet.levels[-1].bandwidth.value
    if family == "level":
        level = next((lv for lv in datasheet.levels if figure.name == f"level.{lv.name}"), None)
        return level.bandwidth.value if level else None
    if family in ("matmul", "vector") and figure.unit == "FLOP/s" and figure.dtype is not None:
        known = datasheet.matrix if family == "matmul" else datasheet.vector
        peak = known.get(figure.dtype)
        return peak.value if peak else None
    if figure.name.startswith("transfer.") and figure.unit == "B/s" and "both" not in figure.name:
        link = datasheet.links.get("pcie")
        return link.bandwidth.value if link else None
    return None


def _estimator(one: Measurement) -> str:
    return {0.5: "median", 0.0: "fastest"}.get(one.quantile, f"{100 * one.quantile:g}th percentile")


def _labels(alike: Sequence[Measurement]) -> tuple[str, ...]:
    found = [label for one in alike for label in one.labels]
    found.sort(key=lambda label: SEVERITY.index(label.severity))
    return tuple(dict.fromkeys(label.what for label in found))[:LABELS]
