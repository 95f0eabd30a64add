"""Builds the viewer's `Document`, with the parts of the reports of `predict` and `run`: one setting, or two.

Example: ``html.render(document([answers.answer(setting)]))`` is the page that "report" exports
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any, Literal

from calibrate.report import run, run_rows, run_tables
from calibrate.report.document import (
    Cell,
    Column,
    Document,
    Facts,
    Figure,
    Lines,
    Part,
    Section,
    Table,
    Text,
    chart,
    figure,
)
from calibrate.report.document import table as table_of
from calibrate.report.prediction import bounds, misfit, pass_section, summary
from calibrate.report.prediction_rows import kind_rows
from calibrate.report.titles import title, workload_title
from profiler.cli.viewer.answers import Answer, Measured, Over, Swept
from roofline.predict.passes import PassPrediction, RequestPrediction
from roofline.units import UNKNOWN, known_sum, magnitude, percent, ratio, seconds, size

SIDES = ("A", "B")
"""Names of two settings."""
FOLDED = (
    "activations are followed through one layer of each kind; the command follows them through all layers, which gives "
    "another peak where a layer frees late"
)
"""How memory of an executed graph is found here."""
Quantity = Literal["tokens/s", "time", "memory"]
PLOTS = 64
"""Most plots that are kept: drawing one takes longer than the arithmetic behind it."""
CURVES: tuple[tuple[str, str, Over, Quantity], ...] = (
    ("throughput", "Throughput over batch", "batch", "tokens/s"),
    ("latency", "TTFT (prefill) and TPOT (decode) over batch", "batch", "time"),
    ("memory", "Memory over batch", "batch", "memory"),
    ("lengths", "TTFT (prefill) and TPOT (decode) over length", "length", "time"),
)
"""Name, title, x axis and quantity of each curve."""


@dataclass(frozen=True)
class _Line:
    """A row of the result: a value for each setting."""

    name: str
    values: tuple[float | str | None, ...]
    show: Callable[[float | None], str] = seconds
    bad: tuple[bool, ...] = ()

    def cell(self, i: int) -> Cell:
        value = self.values[i]
        bad = self.bad[i] if self.bad else False
        return Cell(value, bad=bad) if isinstance(value, str) else replace(figure(value, self.show), bad=bad)

    @property
    def ratio(self) -> Cell:
        """The second value ÷ the first; empty for words."""
        numbers = [value for value in self.values if not isinstance(value, str)]
        return _ratio(*numbers) if len(numbers) == 2 else Cell("")


def document(answers: Sequence[Answer]) -> Document:
    """The report of one setting, or of two."""
    names = SIDES if len(answers) > 1 else ("",)
    parts: list[Part] = [
        Section("Result", (result(answers), *_notes(names, answers)), name="result"),
        Section("Curves", tuple(_curves(names, answers)), name="curves"),
    ]
    each = [_of_one(i, name, answer) for i, (name, answer) in enumerate(zip(names, answers, strict=True))]
    if len(answers) > 1:
        parts.append(Section("Layer kinds, A and B", _layers(answers), name="layers"))
        parts.append(Section("Side by side", (Section("", [Section("", of) for of in each], pair=True),)))
    else:
        parts += each[0]
    titles = dict.fromkeys(f"{answer.prediction.model} on {answer.prediction.hardware}" for answer in answers)
    return Document(" and ".join(titles), parts)


def result(answers: Sequence[Answer]) -> Table:
    """The figures of each setting, and how the second compares with the first."""
    names = SIDES if len(answers) > 1 else ("predicted",)
    columns: list[Column[_Line]] = [Column("", lambda row: row.name, words=True)]
    columns += [Column(name, lambda row, i=i: row.cell(i), strong=True) for i, name in enumerate(names)]  # type: ignore[misc]
    columns += [Column("B ÷ A", lambda row: row.ratio)] if len(answers) > 1 else []
    return table_of(columns, _quantities(answers))


def _quantities(answers: Sequence[Answer]) -> Iterable[_Line]:
    passes = [answer.prediction.passes[0] for answer in answers]
    requests = [answer.prediction.requests[0] for answer in answers]
    capacities = [answer.prediction.capacity_bytes for answer in answers]

    def of_pass(get: Callable[[PassPrediction], Any]) -> tuple[Any, ...]:
        return tuple(map(get, passes))

    def of_request(get: Callable[[RequestPrediction], Any]) -> tuple[Any, ...]:
        return tuple(map(get, requests))

    full = of_pass(lambda step: step.fits is False)
    yield _Line("model", tuple(answer.prediction.model for answer in answers))
    yield _Line("device", tuple(answer.prediction.hardware for answer in answers))
    yield _Line("pass", of_pass(lambda step: workload_title(step.workloads[0])))
    yield _Line("time of the pass", of_pass(lambda step: step.time_s))
    if any(step.wall_s is not None for step in passes):
        yield _Line("wall time of the pass", of_pass(lambda step: step.wall_s))
    if any(answer.measured for answer in answers):
        reports = [answer.measured[-1].report if answer.measured else None for answer in answers]
        yield _Line("measured time", tuple(report.busy_s if report else None for report in reports))
        yield _Line("measured wall time", tuple(report.wall_s if report else None for report in reports))
    yield _Line("tokens/s of the pass", of_pass(lambda step: step.tokens_per_s), magnitude)
    yield _Line("waits for", of_pass(bounds))
    yield _Line("FLOPs", of_pass(lambda step: step.matrix_flops + step.vector_flops), magnitude)
    yield _Line("memory traffic", of_pass(lambda step: step.bytes.total), size)
    yield _Line("weights", of_pass(lambda step: step.memory.weights), size)
    yield _Line("KV cache", of_pass(lambda step: step.memory.kv_cache), size)
    yield _Line("activations", of_pass(lambda step: step.memory.activations), size)
    yield _Line("memory, peak", of_pass(lambda step: step.memory.peak), size, full)
    shares = tuple(ratio(step.memory.peak, capacity) for step, capacity in zip(passes, capacities, strict=True))
    yield _Line("of the device's memory", shares, percent, full)
    yield _Line("TTFT of a request", of_request(lambda request: request.ttft_s))
    yield _Line("TPOT of a request", of_request(lambda request: request.tpot_s))
    yield _Line("request, end to end", of_request(lambda request: request.end_to_end_s))
    yield _Line("tokens/s of requests", of_request(lambda request: request.tokens_per_s), magnitude)


def _notes(names: Sequence[str], answers: Sequence[Answer]) -> Iterable[Part]:
    for name, answer in zip(names, answers, strict=True):
        before = f"{name}: " if name else ""
        prediction = answer.prediction
        late = misfit(prediction.requests[0], prediction)
        yield Lines([before + line for line in summary(prediction)], tone="faint")
        yield Text(f"{before}{late} at the last token of the request" if late else "", "warning")
        yield Lines([f"{before}{note}" for note in prediction.notes], tone="warning")
        yield Text(f"{before}{FOLDED}" if prediction.form == "executed" else "", "faint")


def _curves(names: Sequence[str], answers: Sequence[Answer]) -> Iterable[Section]:
    for figure_name, heading, over, quantity in CURVES:
        swept = tuple(
            (f"{name}: " if name else "", answer.batches if over == "batch" else answer.lengths)
            for name, answer in zip(names, answers, strict=True)
        )
        draw = partial(_curve, swept, over, quantity)
        yield Section(heading, (Figure(figure_name, draw),))


def _layers(answers: Sequence[Answer]) -> tuple[Part, ...]:
    """The time of each layer kind in both settings, the largest difference first."""
    times: dict[tuple[str, str], list[float | None]] = {}
    for i, answer in enumerate(answers):
        for row in kind_rows(answer.prediction.passes[0]):
            both = times.setdefault((row.label, row.kind), [0.0, 0.0])
            both[i] = known_sum((both[i], row.time_s))
    rows = sorted(times.items(), key=lambda row: -abs((row[1][1] or 0.0) - (row[1][0] or 0.0)))
    columns: tuple[Column[tuple[tuple[str, str], list[float | None]]], ...] = (
        Column("layer kind", lambda row: row[0][0], code=True),
        Column("kind", lambda row: row[0][1], words=True),
        Column("A", lambda row: figure(row[1][0])),
        Column("B", lambda row: figure(row[1][1])),
        Column("B − A", lambda row: _difference(*row[1])),
        Column("B ÷ A", lambda row: _ratio(*row[1])),
    )
    total = [answer.prediction.passes[0].time_s for answer in answers]
    return (table_of(columns, rows, (("total", ""), total)),)


def _difference(first: float | None, second: float | None) -> Cell:
    if first is None or second is None:
        return Cell(UNKNOWN)
    return Cell(seconds(second - first, signed=True), second - first)


def _ratio(first: float | None, second: float | None) -> Cell:
    """The second value ÷ the first."""
    return Cell(f"{second / first:.3g}×", second / first) if first and second is not None else Cell("")


@lru_cache(PLOTS)
def _curve(named: tuple[tuple[str, Swept], ...], over: Over, quantity: Quantity) -> Any:
    return chart("prediction_plots.compared", {name: swept.prediction for name, swept in named}, over, quantity)()


@lru_cache(PLOTS)
def _of_one(i: int, name: str, answer: Answer) -> tuple[Part, ...]:
    """The measured passes and the prediction of one setting; each figure of it is drawn once."""
    return tuple(map(_drawn_once, _sections(i, name, answer)))


def _drawn_once(part: Part) -> Part:
    if isinstance(part, Section):
        return replace(part, parts=tuple(map(_drawn_once, part.parts)))
    return replace(part, draw=cache(part.draw)) if isinstance(part, Figure) else part


def _sections(i: int, name: str, answer: Answer) -> Iterable[Section]:
    before = f"{name}: " if name else ""
    for n, measured in enumerate(answer.measured):
        yield _measured(f"{i}-{n}", before, measured, answer)
    section = pass_section(i, answer.prediction.passes[0], answer.prediction, answer.device.peaks)
    yield replace(section, title=f"{before}{section.title}")


def _measured(key: str, before: str, measured: Measured, answer: Answer) -> Section:
    """A measured pass beside the prediction of the setting."""
    report, step = measured.report, answer.prediction.passes[0]
    rows = run_rows.layer_rows(report)
    facts = [("run", str(measured.folder.path)), ("measured", run.headline(report))]
    for what, predicted_s, measured_s in (
        ("device time", step.time_s, report.busy_s), ("wall time", step.wall_s, report.wall_s),
    ):  # fmt: skip
        if predicted_s is not None:
            error = percent(predicted_s / measured_s - 1, signed=True) if measured_s > 0 else UNKNOWN
            facts.append((f"{what} predicted here", f"{seconds(predicted_s)} (error {error})"))
    facts.append(("in the run's report", run.predicted(report)))
    parts = (
        Text(run.verdict(report), "bad"),
        Facts(facts),
        Figure(f"waterfall-{key}", chart("pass_plots.waterfall_chart", report)),
        Figure(f"layers-{key}", chart("pass_plots.layer_chart", report)),
        table_of(run_tables.LAYER_COLUMNS, rows, run_rows.busy_row(report)),
    )
    return Section(f"{before}Measured: {title(report)}", parts, name=f"measured-{key}")
