"""What the report of a characterisation says in words: the device and its conditions, headline, footnotes, meanings.

Sentences and label-value rows, made from records; no layout, no escaping. What was not read is left out or "–".

Example: ``headline(found)`` is "main memory 4.16 TB/s triad (86.7 % of the datasheet); bf16 products 861 TFLOP/s …"
"""

import re
import statistics
from collections.abc import Callable, Iterable, Sequence

from calibrate.report.hardware import table
from calibrate.report.hardware.rows import Group, Row, one_line
from calibrate.report.units import UNKNOWN, binary, dtype, in_unit, number, percent, seconds, size
from calibrate.report.wording import Fact
from profiler.record.measurement import FASTEST, Measurement, Window
from profiler.record.run import Run
from roofline.hardware.spec import HardwareSpec

WORDS = {
    "value": f"geometric mean over fresh processes; each gives the {100 * FASTEST:g}th percentile of its samples from "
    "the fastest, because other work only ever slows a sample; sustained figures are medians",
    "90 %": "interval of the value over fresh processes, from Student's t on the logarithms; samples of one process "
    "are not independent and are not counted as such",
    "n = 1, n = 2": "fresh processes that measured it; fewer than three have no interval",
    "CV": "coefficient of variation over the processes",
    "median": "the value with the median of each process's samples: what one usually gets",
    "datasheet, of it": "the vendor's figure, and value ÷ datasheet",
    "at SM clock": "value ÷ the datasheet's peak at the median SM clock seen meanwhile: peak × clock seen ÷ clock of "
    "the datasheet's peak",
    "bytes": "bytes read plus bytes written, each once, as in STREAM; the read of a line before it is written "
    "(write-allocate) is not added; kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024",
    "FLOPs": "a multiply-add is 2; a product of m×k and k×n is 2·m·n·k",
    "cold, warm": "operands past the last-level cache; the same operands again",
    "burst": "the fastest shape of a search over sizes, short calls on random normal data, on a GPU after a rest",
    "sustained": "the same without a pause until clocks and power settle: median of the second half of the load",
    "of roofline": "time at the measured main-memory bandwidth and the measured burst peak ÷ measured time",
    "m×n×k": "a matrix of m rows and k columns times one of k rows and n columns",
    "one core": "the same with a single thread",
    "given, fresh": "into an output that is there already, and into one that the allocator makes anew each time",
    "launch": "call: host time of one call; back to back: time from one to the next; graph: replay of so many nodes",
    "busbw": "bandwidth of a collective as nccl-tests defines it: what the busiest link carries",
}
"""Words of the tables; those that no row needs are left out."""

_NEEDS: dict[str, Callable[[Row], bool]] = {
    "at SM clock": lambda row: row.of_clock is not None,
    "datasheet, of it": lambda row: row.figure.datasheet is not None,
    "bytes": lambda row: "B" in row.figure.unit,
    "FLOPs": lambda row: "FLOP" in row.figure.unit,
    "cold, warm": lambda row: "cold" in row.figure.conditions or "warm" in row.figure.conditions,
    "burst": lambda row: row.label == "burst",
    "sustained": lambda row: row.label == "sustained",
    "of roofline": lambda row: row.of_roofline is not None,
    "m×n×k": lambda row: row.shape is not None,
    "one core": lambda row: row.one_core,
    "given, fresh": lambda row: row.family == "pointwise",
    "launch": lambda row: row.family == "launch",
    "busbw": lambda row: row.family == "collective",
    "n = 1, n = 2": lambda row: row.figure.value is not None and 0 < row.figure.replicates < table.FEWEST,
}

ALIKE = 4
"""Figures that are named at a footnote; of more, they are counted."""

_NUMBER = re.compile(r"[\d.,–]*\d")


def words(found: Sequence[Group]) -> dict[str, str]:
    """The meanings that some row needs."""
    rows = [row for group in found for row in group.rows]
    return {word: text for word, text in WORDS.items() if word not in _NEEDS or any(map(_NEEDS[word], rows))}


def facts(spec: HardwareSpec, measurements: Sequence[Measurement], run: Run) -> tuple[Fact, ...]:
    """The device, its software, and the conditions that were seen while it was measured."""
    machine = run.environment
    cuda = not machine.is_host
    units = spec.chip.units if spec.chip else None
    parts = f"{number(units.value)} {spec.chip.unit or 'units'}s" if spec.chip and units else ""
    host = f"{machine.cores} cores, {machine.threads} threads"
    processes = len({one.process for one in measurements})
    samples = sum(len(one.samples) for one in measurements)
    rows = {
        "device": ", ".join(filter(None, (machine.device, parts if cuda else host, size(machine.memory_bytes)))),
        "UUID": spec.uuid or machine.device_uuid or ("" if not cuda else UNKNOWN),
        "datasheet": f"{spec.name} (roofline/devices)" if spec.datasheet else "none describes this device",
        "host": f"{machine.hostname}, {machine.os}" + (f", {host}" if cuda else ""),
        "versions": ", ".join([f"python {machine.python}", *(f"{name} {v}" for name, v in machine.versions.items())]),
        "measured": f"{run.started}, {len(measurements)} measurements in {processes} processes, {samples} samples"
        + ("" if run.finished else " (not finished)"),
        "conditions": "; ".join(conditions(measurements)) or "– (none were read)",
        "command": " ".join(run.command),
    }
    return tuple(Fact(name=name, value=one_line(text)) for name, text in rows.items() if text)


def conditions(measurements: Iterable[Measurement]) -> tuple[str, ...]:
    """Ranges over all windows of what was read: clocks, power, temperature, other work."""
    windows = [window for one in measurements for window in one.windows]
    megahertz, celsius = _number(1e-6, "MHz"), _number(1.0, "°C")
    ranges = (
        ("SM clock", lambda w: w.sm_clock_hz, megahertz),
        ("memory clock", lambda w: w.memory_clock_hz, megahertz),
        ("power", lambda w: w.power_w, _number(1.0, "W")),
        ("temperature", lambda w: w.temperature_c, celsius),
        ("CPU clock", lambda w: w.cpu_clock_hz, megahertz),
        ("taken by a hypervisor", lambda w: w.steal_fraction, _number(100.0, "%")),
        ("other work, cores", lambda w: None if w.other_cores is None else max(0.0, w.other_cores), _number(1.0, "")),
    )
    return tuple(text for name, read, show in ranges if (text := _range(name, windows, read, show)))


def headline(found: Sequence[Group], prefer: Sequence[str] = ("bfloat16", "float16", "float32")) -> str:
    """The few figures that a reader looks for first; "" where there are none."""
    rows = [row for group in found for row in group.rows if row.figure.value is not None and not row.one_core]
    said = []
    memory = [row for row in rows if row.family == "memory" and row.label in ("triad", "read")]
    if memory:
        said.append(f"main memory {', '.join(f'{_with_share(row)} {row.label}' for row in memory)}")
    for kind in prefer:
        burst, lasting = (_named(rows, f"matmul.{case}", kind) for case in ("burst", "sustained"))
        if burst or lasting:
            both = [f"{_with_share(row)} {row.label}" for row in (burst, lasting) if row]
            said.append(f"{dtype(kind)} products {', '.join(both)}")
            break
    said += [f"{what} {seconds(row.figure.value)}" for what, row in _costs(rows)]
    return "; ".join(said)


def footnotes(rows: Iterable[Row]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Footnotes by letter, and the letters of each figure by "name dtype".

    Marks that differ in their numbers alone share a letter; the footnote has the numbers of the first.
    """
    first: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    letters: dict[str, tuple[str, ...]] = {}
    for row in rows:
        heads = dict.fromkeys(_head(mark) for mark in row.marks)
        for mark in row.marks:
            first.setdefault(_head(mark), mark)
        for head in heads:
            names.setdefault(head, []).append(f"{row.figure.name} {table.kind(row.figure)}".strip())
        letters[identity(row)] = tuple(heads)
    letter = {head: _letter(i) for i, head in enumerate(first)}
    notes = {letter[head]: mark + _of(names[head]) for head, mark in first.items()}
    return notes, {row: tuple(letter[head] for head in heads) for row, heads in letters.items()}


def identity(row: Row) -> str:
    """What tells a figure from all others."""
    return f"{row.figure.name} {row.figure.dtype or ''}"


def prices(spec: HardwareSpec) -> str:
    """The measured peaks that price operations, in a line; "" where there are none."""
    measured = spec.measured
    if measured is None:
        return ""
    said = [f"matrix {dtype(name)} {in_unit(one.value, 'FLOP/s')}" for name, one in measured.matrix.items()]
    said += [f"vector {dtype(name)} {in_unit(one.value, 'FLOP/s')}" for name, one in measured.vector.items()]
    for level in measured.levels[:-1]:
        said.append(f"{level.name} {in_unit(level.bandwidth.value, 'B/s')} ({binary(level.capacity_bytes)})")
    said.append(f"{measured.levels[-1].name} {in_unit(measured.levels[-1].bandwidth.value, 'B/s')}")
    said += [f"{name} {in_unit(link.bandwidth.value, 'B/s')}" for name, link in measured.links.items()]
    said += [f"host {seconds(measured.host_s_per_op.value)} per operation"] if measured.host_s_per_op else []
    return ", ".join(said)


def left_out(spec: HardwareSpec) -> tuple[str, ...]:
    """Peaks that price operations and could not be had, each with its reason."""
    return tuple(f"{name}: {one_line(reason)}" for name, reason in spec.missing.items())


def _of(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f" ({names[0]})"
    more = f" and {len(names) - ALIKE} more" if len(names) > ALIKE else ""
    return f" ({names[0]}; alike, with other numbers: {', '.join(names[1:ALIKE])}{more})"


def _head(mark: str) -> str:
    return _NUMBER.sub("#", mark.partition(", ")[0])


def _letter(i: int) -> str:
    """a, b, … z, aa, ab, …"""
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)


def _named(rows: Sequence[Row], name: str, kind: str | None = None) -> Row | None:
    return next((row for row in rows if row.figure.name == name and kind in (None, row.figure.dtype)), None)


def _costs(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    asked = (
        ("back-to-back launch", "launch.back to back"),
        ("graph node", "launch.graph node"),
        ("host operation", "host.operation"),
    )
    return [(what, row) for what, name in asked if (row := _named(rows, name))]


def _with_share(row: Row) -> str:
    share = f" ({percent(row.of_datasheet)} of the datasheet)" if row.of_datasheet is not None else ""
    return f"{in_unit(row.figure.value, row.figure.unit)}{share}"


def _number(factor: float, unit: str) -> Callable[[float], str]:
    """A figure in a fixed unit, three significant digits below 100."""
    return lambda value: (
        f"{value * factor:.3g} {unit}".strip() if abs(value * factor) < 100 else _long(value, factor, unit)
    )


def _long(value: float, factor: float, unit: str) -> str:
    return f"{value * factor:,.0f} {unit}".strip()


def _range(
    name: str, windows: Sequence[Window], read: Callable[[Window], float | None], show: Callable[[float], str]
) -> str:
    """ "SM clock 1,410 MHz to 1,980 MHz, median 1,605 MHz"; "" where it was never read."""
    values = [value for window in windows if (value := read(window)) is not None]
    if not values:
        return ""
    low, high = show(min(values)), show(max(values))
    if low == high:
        return f"{name} {low}"
    return f"{name} {low} to {high}, median {show(statistics.median(values))}"
