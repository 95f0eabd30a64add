"""The report of a prediction by workloads, requests and passes (layer kinds, memory, blocks), and the paper's table."""

from collections.abc import Sequence
from dataclasses import replace

from calibrate.report import document, prediction_rows
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
from calibrate.report.prediction_rows import (
    CLASSES,
    SERIES,
    KindRow,
    bound_shares,
    kind_rows,
    pass_title,
    phase,
    total_row,
)
from calibrate.report.run import uncounted
from roofline.hardware.spec import Peaks
from roofline.paper.table import PaperPhase, PaperResult, PaperRow
from roofline.predict.passes import ROOFLINE, PassPrediction, Prediction, RequestPrediction
from roofline.units import UNKNOWN, dtype, magnitude, number, percent, precise, ratio, seconds, size

FORM = {"fused": "the ideal graph (fused wherever possible)", "executed": "the graph as transformers executes it"}

PRICES = {"calibrated": "by calibrated laws, and measured peaks where there is no law"}
"""How times are found, where that is not by the peaks of one origin."""

UNPRICED = 0.1
"""Share of a pass's time without a law above which its headline says so first."""

SWEEP_ROWS = 200
"""Workloads that a terminal shows at most."""

WORDS = {
    "layer kind": "the operations of one kind, dtype and bound under one module path; * is the index of a layer",
    "×": "executions in the whole model",
    "time": "of all executions at the peaks, one operation after another; the rows add up to the pass",
    "FLOPs": "a multiply-add is 2; matrix and vector work together",
    "memory": "bytes read and written, each distinct element once an operation",
    "FLOP/B": "operational intensity: FLOPs ÷ memory",
    "FLOP/s": "attainable: FLOPs ÷ time",
    "bound": "what the operation waits for: matrix or vector units, a level of memory, a link",
    "TTFT, TPOT": "time to the first token, and mean time of each further one",
    "tokens/s": "of a request: output of the whole batch",
}


KIND_COLUMNS: tuple[Column[KindRow], ...] = (
    Column(
        "layer kind",
        lambda row: Cell(row.label, hover="\n".join((", ".join(row.names), *(f"also {op}" for op in row.also[:12])))),
        code=True,
    ),
    Column("kind", lambda row: row.kind, words=True, drop=2),
    Column("dtype", lambda row: dtype(row.dtype), words=True, drop=11),
    Column("×", lambda row: figure(row.count, number), drop=9),
    Column("time", lambda row: Cell(seconds(row.time_s), row.time_s, bad=row.time_s is None), strong=True, drop=1),
    Column("share", lambda row: Cell(percent(row.share), row.share, fill=row.share if row.kind else None), drop=6),
    Column("FLOPs", lambda row: figure(row.flops, magnitude), drop=3),
    Column("memory", lambda row: figure(row.bytes.total, size), drop=5),
    Column("FLOP/B", lambda row: figure(row.intensity, magnitude), drop=7),
    Column("FLOP/s", lambda row: figure(row.flops_per_s, magnitude), drop=10),
    Column("link", lambda row: figure(row.link_bytes, size), drop=8),
    Column("bound", lambda row: row.bound or (UNKNOWN if row.kind else ""), words=True, drop=4),
    Column("priced by", lambda row: row.source, words=True, drop=12),
)

CLASS_COLUMNS: tuple[Column[KindRow], ...] = tuple(
    Column(
        name.replace("activation", "act.").replace("kv", "KV").replace("_", " "),
        lambda row, name=name: figure(getattr(row.bytes, name), size),  # type: ignore[misc]
        views=document.FILES,
    )
    for name in CLASSES
)
"""The memory traffic by class, for views with room."""

SWEEP_COLUMNS: tuple[Column[tuple[int, PassPrediction]], ...] = (
    Column("workload", lambda i: Cell(pass_title(i[1]), target=f"pass-{i[0]}" if i[1].ops else ""),
           words=True, views=document.FILES),
    Column("phase", lambda i: phase(i[1]), words=True, views=document.TERMINAL),
    Column("batch", lambda i: _sizes(i[1], "batch")),
    Column("query", lambda i: _sizes(i[1], "query_tokens"), drop=5),
    Column("context", lambda i: _sizes(i[1], "context_tokens"), drop=2),
    Column("time", lambda i: Cell(seconds(i[1].time_s), i[1].time_s, bad=i[1].time_s is None), strong=True),
    Column("90 %", lambda i: between(i[1].low_s, i[1].high_s), words=True, optional=True, drop=8),
    Column("without law", lambda i: figure(i[1].without_law, percent), optional=True, drop=9),
    Column("tokens/s", lambda i: figure(i[1].tokens_per_s, magnitude), drop=3),
    Column("FLOPs", lambda i: figure(i[1].matrix_flops + i[1].vector_flops, magnitude), drop=7),
    Column("traffic", lambda i: figure(i[1].bytes.total, size), drop=6),
    Column("memory", lambda i: figure(i[1].memory.peak, size), drop=4),
    Column("fits", lambda i: _fits(i[1].fits), words=True, drop=1),
    Column("waits for", lambda i: bounds(i[1]), words=True, optional=True, views=document.FILES),
)  # fmt: skip

REQUEST_COLUMNS: tuple[Column[RequestPrediction], ...] = (
    Column("batch", lambda request: figure(request.batch, number)),
    Column("prompt", lambda request: figure(request.prompt_tokens, number), drop=3),
    Column("output", lambda request: figure(request.output_tokens, number), drop=5),
    Column("TTFT", lambda request: figure(request.ttft_s)),
    Column("TPOT", lambda request: figure(request.tpot_s)),
    Column("end to end", lambda request: figure(request.end_to_end_s), drop=2),
    Column(
        "90 %",
        lambda request: between(*request.intervals.get("end_to_end_s", (None, None))),
        words=True,
        optional=True,
        drop=7,
    ),
    Column("tokens/s", lambda request: figure(request.tokens_per_s, magnitude), drop=4),
    Column("memory", lambda request: figure(request.peak_bytes, size), drop=6),
    Column("fits", lambda request: _fits(request.fits), words=True, drop=1),
)


def prediction_document(prediction: Prediction, peaks: Peaks | None = None) -> Document:
    """The report of a whole prediction; `peaks` are those it was made with, for the roofline plots of a page."""
    detailed = [(i, step) for i, step in enumerate(prediction.passes) if step.ops]
    late_misfits = (
        Text(f"{words} at the last token (batch {r.batch}, {r.prompt_tokens} + {r.output_tokens} tokens)", "warning")
        for r in prediction.requests
        if (words := misfit(r, prediction))
    )
    parts: list[Part] = [
        Lines(summary(prediction)),
        Lines([f"note: {note}" for note in prediction.notes], tone="warning"),
        _workloads(prediction),
        Section("Requests", (table(REQUEST_COLUMNS, prediction.requests), *late_misfits)),
        *_sweep_plots(prediction),
        *(pass_section(i, step, prediction, peaks) for i, step in detailed),
        Section("Words", (Facts(tuple(WORDS.items()) if detailed else ()),), views=document.FILES),
    ]
    return Document(f"{prediction.model} on {prediction.hardware}", parts)


def paper_document(result: PaperResult, model: str, hardware: str) -> Document:
    """The paper's table: both phases, one execution of each operation, and the totals."""
    bits = f"bits of weights {result.w_bit}, activations {result.a_bit}, KV cache {result.kv_bit}"
    what = f"batch {result.batch}, {result.seqlen} tokens, {bits}; a row is one execution of an operation"
    phases = (_paper_phase(name, phase_) for name, phase_ in (("prefill", result.prefill), ("decode", result.decode)))
    parts: tuple[Part, ...] = (Text("the accounting of arXiv 2402.16363 (LLM-Viewer)"), Text(what), *phases)
    return Document(f"{model} on {hardware}", parts)


def _paper_phase(name: str, phase_: PaperPhase) -> Section:
    total = phase_.total
    columns: tuple[Column[PaperRow], ...] = (
        Column("layer", lambda row: row.name, words=True),
        Column("×", lambda row: str(row.count), drop=3),
        Column("OPs", lambda row: Cell(precise(row.OPs), row.OPs)),
        Column("bytes", lambda row: Cell(precise(row.memory_access), row.memory_access)),
        Column("OPs/byte", lambda row: Cell(f"{row.arithmetic_intensity:#.5g}", row.arithmetic_intensity), drop=1),
        Column("OPs/s", lambda row: Cell(precise(row.performance), row.performance), drop=2),
        Column("bound", lambda row: row.bound, words=True),
        Column("time", lambda row: Cell(precise(row.inference_time, "s"), row.inference_time), strong=True),
    )
    parts = {"": "", "weights": "_weight", "KV cache": "_kv_cache", "activations": "_tmp_act"}
    held = {part: precise(getattr(total, f"memory_consumption{end}"), "B") for part, end in parts.items()}
    memory = f"memory {held.pop('')}: {', '.join(f'{part} {amount}' for part, amount in held.items())}"
    done = f"{precise(total.OPs, 'OPs')}, {precise(total.memory_access, 'B')}, {precise(total.inference_time, 's')}"
    return Section(name, (Text(f"{done}; {memory}", "strong"), table(columns, phase_.rows)))


def _workloads(prediction: Prediction) -> Section:
    """Every workload in a file; on a terminal those without operations, whose passes are not shown."""
    every = list(enumerate(prediction.passes))
    swept = [(i, step) for i, step in every if not step.ops]
    more = f"… and {len(swept) - SWEEP_ROWS} more workloads; the CSV has them all" if len(swept) > SWEEP_ROWS else ""
    warned = []
    if misfits := [step for _, step in swept if step.fits is False]:
        most = misfit(max(misfits, key=lambda step: step.memory.peak), prediction).partition(": ")[2]
        warned.append(f"! {len(misfits)} of {len(swept)} do not fit; the largest {most}")
    if absent := sorted({name for _, step in swept if step.time_s is None for name in step.missing}):
        warned.append(f"time {UNKNOWN}: no {prediction.peaks} peak for {', '.join(absent)}")
    names = sorted({name for _, step in swept for name in step.uncounted})
    warned.append(uncounted(names, max((step.uncounted_share for _, step in swept), default=0.0)))
    shown = swept[:SWEEP_ROWS]
    parts: tuple[Part, ...] = (
        table((*SWEEP_COLUMNS, _rate_bar(shown)), shown, views=document.TERMINAL),
        Text(more, "faint", views=document.TERMINAL),
        table(SWEEP_COLUMNS, every, views=document.FILES),
        *(Text(words, "warning") for words in warned),
    )
    return Section(f"{len(every)} workloads" if len(every) > 1 else "Workload", parts)


def _rate_bar(swept: Sequence[tuple[int, PassPrediction]]) -> Column[tuple[int, PassPrediction]]:
    """Tokens a second as bars, of which the longest is the largest of the phase."""
    most: dict[str, float] = {}
    for _, step in swept:
        most[phase(step)] = max(most.get(phase(step), 0.0), step.tokens_per_s or 0.0)

    def bar(i: tuple[int, PassPrediction]) -> Cell:
        share = ratio(i[1].tokens_per_s, most[phase(i[1])])
        return Cell("", span=None if share is None else (0.0, share))

    return Column("tokens/s of the phase", bar, bar=True)


def _sweep_plots(prediction: Prediction) -> list[Section]:
    several = len({step.workloads for step in prediction.passes}) > SERIES
    note = f"At most {SERIES} lines are drawn, evenly chosen. " if several else ""
    if any(step.fits is False for step in prediction.passes):
        note += f"Hollow: needs more than the device's {size(prediction.capacity_bytes)}."
    plots = (
        ("batch_throughput", "Throughput over batch"),
        ("length_latency", "Latency over length"),
        ("latency_throughput", "Latency, throughput and memory"),
    )
    return [
        Section(
            title,
            (Figure(name.replace("_", "-"), chart(f"prediction_plots.{name}", prediction), note),),
            views=document.PAGE,
        )
        for name, title in plots
    ]


def pass_section(i: int, step: PassPrediction, prediction: Prediction, peaks: Peaks | None) -> Section:
    """One pass with its layer kinds, memory, roofline and blocks; `i` tells it from other passes of a document."""
    rows = kind_rows(step)
    absent = sum(not row.on_roofline for row in rows)
    note = f"; {absent} without FLOPs, bytes or a known time have no place on it" if absent else ""
    point = (
        "A point is a layer kind, its area its share of the time; it lies on the roof that bounds it, or below where "
        f"several levels of memory or kinds of work share its time{note}."
    )
    unknown = f"peaks that are not known: {', '.join(step.missing)}" if step.missing and step.time_s is not None else ""
    roofline = Figure(f"roofline-{i}", chart("prediction_plots.roofline_chart", step, prediction, peaks), point)
    parts = (
        Text(headline(step, prediction), "strong"),
        Text(uncounted(step.uncounted, step.uncounted_share), "warning"),
        Text(misfit(step, prediction), "bad"),
        Text(unknown, "warning"),
        Section("Layer kinds", _layers(rows, step.time_s)),
        _memory(step, prediction),
        Section("Roofline", (roofline,) if peaks else ()),
        Section("What one block does", (Figure(f"blocks-{i}", chart("block_drawing.drawings", step, f"block-{i}")),)),
    )
    return Section(pass_title(step), parts, name=f"pass-{i}")


def _layers(rows: Sequence[KindRow], whole_s: float | None) -> tuple[document.Table, ...]:
    """The tables without columns that say the same in every row: a single dtype, unused links, traffic of no byte."""
    dull = {"dtype"} if len({row.dtype for row in rows if row.dtype}) < 2 else set()
    dull |= set() if any(row.link_bytes for row in rows) else {"link"}
    dull |= set() if any(row.source != ROOFLINE for row in rows) else {"priced by"}
    used = [
        column for name, column in zip(CLASSES, CLASS_COLUMNS, strict=True) if any(getattr(r.bytes, name) for r in rows)
    ]
    columns = [*(column for column in KIND_COLUMNS if column.header not in dull), *used]
    return document.brief(columns, prediction_rows.fold(rows, whole_s), rows, total_row(rows, "total", whole_s))


def _memory(step: PassPrediction, prediction: Prediction) -> Section:
    held, capacity = step.memory, prediction.capacity_bytes
    parts = (
        ("weights", held.weights, "all parameters and buffers"),
        ("KV cache", held.kv_cache, "after the pass"),
        ("activations", held.activations, "most held at one time"),
        ("peak", held.peak, "most held at one time of all three"),
    )
    columns: tuple[Column[tuple[str, float, str]], ...] = (
        Column("memory", lambda part: part[0], words=True),
        Column("size", lambda part: figure(part[1], size), strong=True),
        Column(
            f"of {size(capacity)}",
            lambda part: replace(figure(part[1] / capacity, percent), fill=part[1] / capacity, bad=part[1] > capacity),
        ),
        Column("", lambda part: part[2], words=True, drop=1),
    )
    return Section("Memory", (table(columns, parts),))


def _sizes(step: PassPrediction, field: str) -> Cell:
    """One size of a workload; those of the parts of a mixed batch side by side."""
    values = [getattr(workload, field) for workload in step.workloads]
    return Cell("+".join(map(number, values)), float(values[0]))


def _fits(fits: bool | None) -> Cell:
    """The words "yes", "! no", or "–" where it is not known."""
    words = {True: "yes", False: "! no", None: UNKNOWN}[fits]
    return Cell(words, None if fits is None else float(fits), bad=fits is False)


def summary(prediction: Prediction) -> tuple[str, ...]:
    """The question that the prediction answers, in a few sentences."""
    form = FORM.get(prediction.form, prediction.form)
    memory = f"{size(prediction.capacity_bytes)} of memory"
    prices = PRICES.get(prediction.peaks, f"at {prediction.peaks} peaks")
    lines = [f"{magnitude(prediction.parameters)} parameters; {form}, {prices}; {memory}"]
    if prediction.options:
        lines.append("options: " + ", ".join(f"{name} {value}" for name, value in prediction.options.items()))
    requests = []
    if prediction.draft is not None:
        accepted = f"each accepted with probability {prediction.acceptance:g}"
        requests.append(f"{prediction.draft} drafts {prediction.speculate} tokens a pass, {accepted}")
    if prediction.decode_hardware is not None:
        requests.append(f"prefill on {prediction.hardware}, decode on {prediction.decode_hardware}")
    if prediction.pipeline_stages is not None:
        parts = f"{prediction.micro_batches} micro-batches" if prediction.micro_batches != 1 else "the batch as one"
        requests.append(f"a pipeline of {prediction.pipeline_stages} such devices, {parts}; memory is one device's")
    if requests:
        lines.append(f"requests: {'; '.join(requests)}")
    largest = []
    if prediction.largest_batch is not None:
        largest.append(f"batch {prediction.largest_batch} at its lengths")
    if prediction.largest_context is not None:
        largest.append(f"{prediction.largest_context} cached tokens at its batch")
    if prediction.cache_tokens is not None:
        largest.append(f"{prediction.cache_tokens:,} tokens of KV cache in all")
    if largest:
        budget = prediction.budget_bytes
        within = f" in {size(budget)}" if budget is not None and budget != prediction.capacity_bytes else ""
        lines.append(f"largest that fits{within}, from the first workload: {', '.join(largest)}")
    return tuple(lines)


def headline(step: PassPrediction, prediction: Prediction) -> str:
    """Time, throughput, what bounds it, and memory against the capacity, in a line."""
    if step.time_s is None:
        parts = [f"time {UNKNOWN}: no {prediction.peaks} peak for {', '.join(step.missing) or 'some of its work'}"]
    else:
        interval = f" (90 %: {ends})" if (ends := between(step.low_s, step.high_s)) else ""
        parts = [f"{seconds(step.time_s)}{interval}, {prediction_rows.rate(step.tokens_per_s)}"]
    if step.without_law is not None:
        words = f"{percent(step.without_law)} of the time has no law and is the roofline's"
        parts.insert(0 if step.without_law > UNPRICED else 1, words)
    if step.wall_s is not None:
        parts.append(f"{seconds(step.wall_s)} with the host")
    if waits := bounds(step):
        parts.append(f"share of time bound by {waits}")
    parts.append(f"memory {size(step.memory.peak)} of {size(prediction.capacity_bytes)}")
    return "; ".join(parts)


def between(low_s: float | None, high_s: float | None) -> str:
    """ "71.2 to 95.0 ms"; "" without an interval."""
    if low_s is None or high_s is None:
        return ""
    low, high = seconds(low_s), seconds(high_s)
    same = low.partition(" ")[2] == high.partition(" ")[2]
    return f"{low.partition(' ')[0]} to {high}" if same else f"{low} to {high}"


def bounds(step: PassPrediction) -> str:
    """ "HBM 97 %, matrix 3 %"; "" without operations."""
    return ", ".join(f"{name} {percent(share)}" for name, share in bound_shares(step)[:3])


def misfit(step: PassPrediction | RequestPrediction, prediction: Prediction) -> str:
    """ "! does not fit: needs 170 GB of 141 GB"; "" where it does, or where that is not known."""
    if step.fits is not False:
        return ""
    needed = step.memory.peak if isinstance(step, PassPrediction) else step.peak_bytes
    return f"! does not fit: needs {size(needed)} of {size(prediction.capacity_bytes)}"
