"""The report of a characterisation: the device and its conditions, every figure in groups, plots, peaks, words.

A terminal shows some series as one row or a sentence; files have every figure with its
conditions or the reason why it is missing. What was not read is left out or "–".
"""

import re
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence

from calibrate.report import device_rows, document
from calibrate.report.device_rows import FRESH, GIVEN, Characterisation, Group, Line, Row, kind_of, name, value
from calibrate.report.document import (
    Cell,
    Column,
    Document,
    Facts,
    Figure,
    Lines,
    Part,
    Section,
    Text,
    chart,
    figure,
    table,
)
from calibrate.report.run_tables import peak_parts
from profiler.record.measurement import FASTEST, Measurement, Window
from profiler.record.run import Run
from roofline.hardware.spec import HardwareSpec
from roofline.units import (
    UNKNOWN,
    binary,
    bytes_per_s,
    dtype,
    in_unit,
    magnitude,
    megahertz,
    number,
    percent,
    seconds,
    size,
)

CURVE = "working-set curve"
"""Title of the group of figures that follow from that curve."""
PLOTS = (
    ("curve", "Bandwidth over the working set",
     "The same operands again and again; lines without points: plateaus, red: knees (the capacity that a level shows), "
     "dotted: capacities as stated."),
    ("skinny", "Products of few rows",
     "Dashed: the time at the measured main-memory bandwidth and the measured burst peak."),
    ("peaks", "Matrix products: burst and sustained",
     "Red lines: the datasheet's peak at the median SM clock that was seen; whiskers: 90 % intervals."),
    ("sustained", "Under lasting load",
     "Each sample's rate, and what the driver or the system said at the end of each window; processes after the "
     "first are pale. The figure is the median of the second half, and only its samples are kept."),
    ("pointwise", "Pointwise work into given and fresh outputs",
     "A fresh output is made by the allocator in every call; whiskers: 90 % intervals."),
    ("graphs", "Replay of a graph over its nodes", ""),
    ("transfers", "Transfers between host and device", ""),
    ("collectives", "Collectives", ""),
    ("spread", "Spread over fresh processes",
     "A point is what one process gives; costs are times, so that slower is to the right there."),
)  # fmt: skip
"""Name, title and note of each plot: the name is that of its function in `calibrate.report.device_plots`."""
WORDS: tuple[tuple[str, Callable[[Row], bool], str], ...] = (
    ("value", lambda row: True,
     f"geometric mean over fresh processes; each gives the {100 * FASTEST:g}th percentile of its samples from "
     "the fastest, because other work only ever slows a sample; sustained figures are medians"),
    ("90 %", lambda row: True,
     "interval of the value over fresh processes, from Student's t on the logarithms; samples of one process "
     "are not independent and are not counted as such"),
    ("n = 1, n = 2", lambda row: row.figure.value is not None and 0 < row.figure.replicates < device_rows.FEWEST,
     "fresh processes that measured it; fewer than three have no interval"),
    ("CV", lambda row: True, "coefficient of variation over the processes"),
    ("median", lambda row: True, "the value with the median of each process's samples: what one usually gets"),
    ("datasheet, of it", lambda row: row.figure.datasheet is not None, "the vendor's figure, and value ÷ datasheet"),
    ("at SM clock", lambda row: row.of_clock is not None,
     "value ÷ the datasheet's peak at the median SM clock seen meanwhile: peak × clock seen ÷ clock of "
     "the datasheet's peak"),
    ("bytes", lambda row: "B" in row.figure.unit,
     "bytes read plus bytes written, each once, as in STREAM; the read of a line before it is written "
     "(write-allocate) is not added; kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024"),
    ("FLOPs", lambda row: "FLOP" in row.figure.unit, "a multiply-add is 2; a product of m×k and k×n is 2·m·n·k"),
    ("cold, warm", lambda row: "cold" in row.figure.conditions or "warm" in row.figure.conditions,
     "operands past the last-level cache; the same operands again"),
    ("burst", lambda row: row.label == "burst",
     "the fastest shape of a search over sizes, short calls on random normal data, on a GPU after a rest"),
    ("sustained", lambda row: row.label == "sustained",
     "the same without a pause until clocks and power settle: median of the second half of the load"),
    ("of roofline", lambda row: row.of_roofline is not None,
     "time at the measured main-memory bandwidth and the measured burst peak ÷ measured time"),
    ("m×n×k", lambda row: row.shape is not None, "a matrix of m rows and k columns times one of k rows and n columns"),
    ("one core", lambda row: row.one_core, "the same with a single thread"),
    ("given, fresh", lambda row: row.family == "pointwise",
     "into an output that is there already, and into one that the allocator makes anew each time"),
    ("launch", lambda row: row.family == "launch",
     "call: host time of one call; back to back: time from one to the next; graph: replay of so many nodes"),
    ("busbw", lambda row: row.family == "collective",
     "bandwidth of a collective as nccl-tests defines it: what the busiest link carries"),
)  # fmt: skip
"""Words of the tables, the rows that need them, and what they mean."""


NUMBER = re.compile(r"[\d.,–]*\d")


def device_document(spec: HardwareSpec, measurements: Sequence[Measurement], run: Run) -> Document:
    """The whole characterisation."""
    of = Characterisation(spec, measurements, run)
    rows = of.rows()
    plots = [
        Section(title, (Figure(f"plot-{plot}", chart(f"device_plots.{plot}", of), note),), views=document.PAGE)
        for plot, title, note in PLOTS
    ]
    needed = [(word, meaning) for word, needs, meaning in WORDS if any(map(needs, rows))]
    parts: list[Part] = [
        Text(headline(rows) or "No figure has been measured in this run.", "strong"),
        *(Text(note, "warning") for note in run.environment.notes),
        Section("Device and conditions", (Facts(facts(spec, measurements, run)),)),
        Section("Plots", plots),
        Section("Figures", [_group(of, group) for group in of.groups]),
        Section("Peaks that price operations", peak_parts(spec)),
        Section("Words", (Facts(needed, "faint"),)),
    ]
    return Document(f"{run.environment.device}: characterisation", parts)


def _group(whole: Characterisation, group: Group) -> Section:
    """A group as a terminal shows it, series as one row or a sentence, and as files have it, every figure in a row."""
    failed = [
        f"no {name(row)} {kind_of(row.figure)}".strip()
        + f": {device_rows.one_line(row.figure.reason or 'no reason was recorded')}"
        for row in group.rows
        if row.figure.value is None
    ]
    rows = [row for row in group.rows if row.figure.value is not None]
    single = [row for row in rows if row.series is None]
    brief = {"vector arithmetic": _best_of_each_dtype, "skinny products": _some_of_each_dtype}.get(group.title, _paired)
    lines, sentences = brief(single)
    points = [row for row in rows if row.series is not None]
    for series in _by(points, lambda row: (row.series or "", row.figure.dtype, row.one_core)):
        if series[0].family == "cache":
            best = max(series, key=lambda row: row.figure.value or 0)
            of = f", best of {len(series)} sizes" if len(series) > 1 else ""
            lines.append(Line(best, f"{name(best)}{of}"))
        else:
            sentences.append(_sentence(series))
    shown = [row for line in lines for row in (line.row, line.beside) if row is not None]
    fresh = any(line.beside and FRESH in line.beside.label for line in lines)
    columns = _columns(group.title, beside="fresh output" if fresh else "one core")
    return Section(
        f"{group.title[0].upper()}{group.title[1:]}",
        (
            table(columns, lines, views=document.TERMINAL),
            *([_curve(whole)] if group.title == CURVE else []),
            Lines((*_how(rows), *sentences), tone="faint", views=document.TERMINAL),
            Lines(_notes(shown), tone="warning", views=document.TERMINAL),
            Lines(failed, tone="bad", views=document.TERMINAL),
            table(columns, [Line(row, name(row)) for row in group.rows], views=document.FILES),
        ),
    )


def _curve(of: Characterisation) -> document.Table:
    """The bandwidth of the kernel with most working sets over them, as bars: the median of all processes."""
    rates: dict[str, dict[float, list[float]]] = {}
    for measurement in of.measurements:
        if measurement.benchmark == "curve" and measurement.status == "done":
            kernel, working_set = device_rows.place(measurement)
            if working_set:
                rates.setdefault(kernel, {}).setdefault(working_set, []).append(measurement.value())
    kernel = max(rates, key=lambda name: len(rates[name]), default="")
    points = [(place, statistics.median(values)) for place, values in sorted(rates.get(kernel, {}).items())]
    most = max((rate for _, rate in points), default=0.0)
    columns: tuple[Column[tuple[float, float]], ...] = (
        Column("working set", lambda point: Cell(binary(point[0]), point[0])),
        Column(kernel, lambda point: Cell(bytes_per_s(point[1]), point[1]), strong=True),
        Column("", lambda point: Cell("", span=(0.0, point[1] / most)), bar=True),
    )
    return table(columns, points, views=document.TERMINAL)


def _columns(title: str, beside: str) -> tuple[Column[Line], ...]:
    return (
        Column(title, lambda line: line.label, words=True),
        Column("dtype", lambda line: kind_of(line.figure), words=True, optional=True, drop=1),
        Column("value", lambda line: Cell(value(line.figure), line.figure.value), strong=True),
        Column("90 %", lambda line: device_rows.interval(line.figure), views=document.TERMINAL),
        Column("CV", lambda line: figure(line.figure.variation, percent), optional=True, drop=8),
        Column("median", lambda line: Cell(device_rows.typical(line.figure), line.figure.typical), optional=True,
               drop=9),
        Column("datasheet", lambda line: Cell(in_unit(line.figure.datasheet, line.figure.unit), line.figure.datasheet),
               optional=True, drop=5),
        Column("of it", lambda line: _share(line.row.of_datasheet), optional=True, drop=2),
        Column("at SM clock", lambda line: _share(line.row.of_clock, line.row.clock_hz), optional=True, drop=4),
        Column("FLOP/s", lambda line: figure(line.row.flops_per_s, magnitude), optional=True, drop=10),
        Column("bytes/s", lambda line: figure(line.row.bytes_per_s, magnitude), optional=True, drop=6),
        Column("of roofline", lambda line: _share(line.row.of_roofline), optional=True, drop=3),
        Column(beside, lambda line: value(line.beside.figure) if line.beside else UNKNOWN, optional=True, drop=7,
               views=document.TERMINAL),
        Column("90 % interval", lambda line: device_rows.both_ends(line.figure), views=document.FILES),
        Column("processes", lambda line: Cell(str(line.figure.replicates or UNKNOWN), line.figure.replicates),
               views=document.FILES),
        Column("how", lambda line: Cell(device_rows.how(line.figure), bad=line.figure.value is None), wraps=True,
               views=document.FILES),
        Column("notes", lambda line: "; ".join(line.row.marks), wraps=True, optional=True, views=document.FILES),
    )  # fmt: skip


def _share(share: float | None, clock_hz: float | None = None) -> Cell:
    """ "90.3 % 1605 MHz", with the clock where there is one."""
    above = share is not None and share > 1
    clock = "" if clock_hz is None or share is None else f" {megahertz(clock_hz)}"
    return Cell(percent(share) + clock + " !" * above, share, bad=above)


def facts(spec: HardwareSpec, measurements: Sequence[Measurement], run: Run) -> tuple[tuple[str, str], ...]:
    """The device, its software, and the conditions that were seen while it was measured."""
    machine = run.environment
    cuda = machine.device_kind != "cpu"
    units = spec.chip.units if spec.chip else None
    parts = f"{number(units.value)} {spec.chip.unit or 'units'}s" if spec.chip and units else ""
    host = f"{machine.cores} cores, {machine.threads} threads"
    processes = len({measurement.process for measurement in measurements})
    samples = sum(len(measurement.samples) for measurement in measurements)
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
    return tuple((name, device_rows.one_line(text)) for name, text in rows.items() if text)


def conditions(measurements: Iterable[Measurement]) -> tuple[str, ...]:
    """Ranges over all windows of what was read: clocks, power, temperature, other work."""
    windows = [window for measurement in measurements for window in measurement.windows]
    ranges: tuple[tuple[str, Callable[[Window], float | None], Callable[[float], str]], ...] = (
        ("SM clock", lambda w: w.sm_clock_hz, megahertz),
        ("memory clock", lambda w: w.memory_clock_hz, megahertz),
        ("power", lambda w: w.power_w, lambda value: in_unit(value, "W")),
        ("temperature", lambda w: w.temperature_c, lambda value: f"{value:.0f} °C"),
        ("CPU clock", lambda w: w.cpu_clock_hz, megahertz),
        ("taken by a hypervisor", lambda w: w.steal_fraction, percent),
        ("other work, cores", lambda w: None if w.other_cores is None else max(0.0, w.other_cores), "{:.2g}".format),
    )
    sentences = []
    for quantity, read, show in ranges:
        if values := [value for window in windows if (value := read(window)) is not None]:
            low, middle, high = map(show, (min(values), statistics.median(values), max(values)))
            sentences.append(f"{quantity} {low}" + ("" if low == high else f" to {high}, median {middle}"))
    return tuple(sentences)


def headline(figures: Sequence[Row], prefer: Sequence[str] = ("bfloat16", "float16", "float32")) -> str:
    """The few figures that a reader looks for first; "" where there are none."""
    rows = [row for row in figures if row.figure.value is not None and not row.one_core]
    named: dict[str, list[Row]] = {}
    for row in rows:
        named.setdefault(row.figure.name, []).append(row)
    highlights = []
    memory = [f"{_with_share(row)} {row.label}" for row in rows if row.figure.name in ("memory.triad", "memory.read")]
    if memory:
        highlights.append(f"main memory {', '.join(memory)}")
    products = named.get("matmul.burst", []) + named.get("matmul.sustained", [])
    for kind in prefer:
        if rates := [f"{_with_share(row)} {row.label}" for row in products if row.figure.dtype == kind]:
            highlights.append(f"{dtype(kind)} products {', '.join(rates)}")
            break
    costs = ("back-to-back launch", "launch.back to back"), ("graph node", "launch.graph node")
    for words, cost in (*costs, ("host operation", "host.operation")):
        highlights += [f"{words} {seconds(row.figure.value)}" for row in named.get(cost, [])[:1]]
    return "; ".join(highlights)


def _with_share(row: Row) -> str:
    share = f" ({percent(row.of_datasheet)} of the datasheet)" if row.of_datasheet is not None else ""
    return f"{in_unit(row.figure.value, row.figure.unit)}{share}"


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Each mark with the figures that have it; of marks that differ in their numbers alone, the first one's."""
    alike: dict[str, dict[str, str]] = {}
    for row in rows:
        for mark in row.marks:
            head = NUMBER.sub("#", mark.partition(", ")[0])
            alike.setdefault(head, {}).setdefault(f"{name(row)} {kind_of(row.figure)}".strip(), mark)
    others = " (the others alike, with other numbers)"
    return tuple(
        f"{first_few([*marks], 4)}: {next(iter(marks.values()))}" + others * (len({*marks.values()}) > 1)
        for marks in alike.values()
    )


def _paired(rows: Sequence[Row]) -> tuple[list[Line], list[str]]:
    """Rows, those of one core or of a fresh output beside those of all cores or of a given output."""
    by_name = {(row.figure.name, row.figure.dtype): row for row in rows}
    lines, beside = [], set()
    for row in rows:
        twin = (
            row.figure.name.replace(GIVEN, FRESH) if GIVEN in row.label else f"{row.figure.name}{device_rows.ONE_CORE}"
        )
        other = None if row.one_core else by_name.get((twin, row.figure.dtype))
        if other is not None:
            beside.add((twin, row.figure.dtype))
        lines.append(Line(row, name(row).removesuffix(GIVEN) if other is not None else name(row), other))
    return [line for line in lines if (line.figure.name, line.figure.dtype) not in beside], []


def _best_of_each_dtype(rows: Sequence[Row]) -> tuple[list[Line], list[str]]:
    lines, sentences = [], []
    for alike in _by(rows, lambda row: (row.figure.dtype, row.one_core)):
        best, *others = sorted(alike, key=lambda row: -(row.figure.value or 0))
        lines.append(Line(best, name(best)))
        if others:
            rest = ", ".join(f"{name(row)} {value(row.figure)}" for row in others)
            sentences.append(f"{kind_of(best.figure)} besides: {rest}".strip())
    return lines, sentences


def _some_of_each_dtype(rows: Sequence[Row]) -> tuple[list[Line], list[str]]:
    by_dtype = _by(rows, lambda row: (row.figure.dtype, row.one_core))
    kept = [rows if len(rows) <= 3 else [rows[0], rows[len(rows) // 2], rows[-1]] for rows in by_dtype]
    lines = [Line(row, name(row)) for rows in kept for row in rows]
    left = len(rows) - len(lines)
    return lines, [f"{left} more sizes are in report.md and report.html"] if left else []


def _sentence(series: Sequence[Row]) -> str:
    """The ends of a series, and its highest rate."""
    ordered = sorted(series, key=lambda row: row.size_bytes or 0)
    first = ordered[0]
    words = f"{first.series}{', one core' if first.one_core else ''} {kind_of(first.figure)}".strip()
    shown = [f"{value(row.figure)} at {binary(row.size_bytes)}" for row in ordered]
    if len(ordered) == 1:
        return f"{words}: {shown[0]}"
    text = f"{words}: {len(ordered)} sizes, {shown[0]} to {shown[-1]}"
    if first.figure.unit == "B/s":
        best = max(ordered, key=lambda row: row.figure.value or 0)
        text += f", most {value(best.figure)} at {binary(best.size_bytes)}"
    return text


def _how(rows: Sequence[Row]) -> list[str]:
    """Shapes of products, size and cache state of operands: what the figures of a group depend on."""
    shapes = [f"{kind_of(row.figure)} {row.shape}".strip() for row in rows if row.shape and row.family != "skinny"]
    sentences = [f"m×n×k: {', '.join(dict.fromkeys(shapes))}"] if shapes else []
    for operands in dict.fromkeys(row.operands for row in rows if row.operands):
        some = [name(row) for row in rows if row.operands == operands]
        which = "" if len(some) == len(rows) else f"{first_few(some)}: "
        sentences.append(f"{which}operands {operands}")
    return sentences


def _by(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> list[list[Row]]:
    """Rows that are alike, in the order of the first of them."""
    alike: dict[Hashable, list[Row]] = {}
    for row in rows:
        alike.setdefault(key(row), []).append(row)
    return list(alike.values())


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first few words, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
