"""The report of `predict --engine`: steps by part, the engine's own time as lines of its own, and requests."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from calibrate.report.document import Cell, Column, Document, Facts, Lines, Part, Section, Text, figure, table
from calibrate.report.prediction import between
from roofline.serving.engine import Engine
from roofline.serving.predict import OWN, OWN_NAMES, PART_NAMES, EngineRequest, EngineStep
from roofline.serving.step import Parallel, Scheme
from roofline.units import dtype, magnitude, number, percent, seconds
from roofline.workload import Workload

MUCH = 0.1
"""Share of a step's kernels without a law of their own from which its headline says so first."""


@dataclass(frozen=True)
class EnginePrediction:
    """A model on an engine and a group of devices."""

    model: str
    hardware: str
    engine: Engine
    scheme: Scheme
    ranks: int
    """Ranks that divide the attention."""
    parallel: Parallel
    steps: tuple[EngineStep, ...]
    requests: tuple[EngineRequest, ...]
    notes: tuple[str, ...]
    attentions: float = 0.0
    """Layers of the model that attend."""


@dataclass(frozen=True)
class _Row:
    name: str
    time_s: float
    share: float
    source: str
    low_s: float | None = None
    high_s: float | None = None


COLUMNS: tuple[Column[_Row], ...] = (
    Column("part", lambda row: row.name, words=True),
    Column("time", lambda row: figure(row.time_s), strong=True),
    Column("share", lambda row: figure(row.share, percent)),
    Column("90 % by the estimates", lambda row: between(row.low_s, row.high_s), words=True, optional=True, drop=2),
    Column("priced by", lambda row: row.source, words=True, drop=1),
)
REQUESTS: tuple[Column[EngineRequest], ...] = (
    Column("in flight", lambda row: figure(row.concurrency, number)),
    Column("prompt", lambda row: figure(row.prompt_tokens, number)),
    Column("output", lambda row: figure(row.output_tokens, number)),
    Column("TTFT", lambda row: figure(row.ttft_s)),
    Column("TPOT", lambda row: figure(row.tpot_s), strong=True),
    Column("end to end", lambda row: figure(row.end_to_end_s), drop=1),
    Column("tokens/s", lambda row: Cell(magnitude(row.tokens_per_s), row.tokens_per_s)),
)


def served_document(prediction: EnginePrediction) -> Document:
    """The report for a terminal or a file."""
    engine, parallel = prediction.engine, prediction.parallel
    group = prediction.ranks * parallel.attention_dp
    facts = [
        ("engine", engine.name + (f", as since {engine.since}" if engine.since else "")),
        ("ranks", f"{group}: tensor {prediction.ranks}, data {parallel.attention_dp}, experts {parallel.moe_ep}"),
        ("products", dtype(prediction.scheme.layer)),
        ("experts", dtype(prediction.scheme.experts)),
        ("cache", f"{8 * prediction.scheme.cache_bytes:.0f} bits an element"),
    ]
    parts: list[Part] = [Facts(facts), Lines([f"note: {note}" for note in prediction.notes], tone="warning")]
    parts += [_section(step) for step in prediction.steps]
    if prediction.requests:
        words = (
            "medians over requests of a constant number in flight, from a replay; a prompt waits for those before it"
        )
        parts.append(Section("Requests", (Text(words, "faint"), table(REQUESTS, prediction.requests))))
    return Document(f"{prediction.model} on {prediction.hardware}", tuple(parts))


def _section(step: EngineStep) -> Section:
    low, high = step.interval_s
    words = f"{seconds(step.time_s)} in {step.passes} pass{'es' if step.passes > 1 else ''}"
    host = f"{seconds(step.host_s)} of it are the engine's host, an estimate ({between(low, high)} in all)"
    share = f"{percent(step.without_law)} of the kernels' time has no law of its own"
    ordered = (share, host) if step.without_law > MUCH else (host, share)
    likened = sorted(step.likened, key=lambda name: -step.likened[name])
    doubt = [f"no law: {', '.join(likened)}; priced by the nearest law, or the datasheet"] if likened else []
    parts: list[Part] = [Text("; ".join((words, *ordered)), "strong"), Lines(doubt, tone="warning")]
    return Section("; ".join(map(_title, step.workloads)), (*parts, table(COLUMNS, _rows(step), _total(step))))


def _title(workload: Workload) -> str:
    return f"{workload.phase} b{workload.batch} q{workload.query_tokens} ctx {workload.context_tokens}"


def _rows(step: EngineStep) -> Iterator[_Row]:
    for part, time_s in step.parts_s.items():
        if time_s:
            yield _Row(PART_NAMES[part], time_s, time_s / step.time_s, _sources(step, part))
    for name in OWN:
        own = step.own[name]
        if own.time_s:
            source = f"{own.times:.4g} × the engine's estimate"
            yield _Row(OWN_NAMES[name], own.time_s, own.time_s / step.time_s, source, own.low_s, own.high_s)


def _sources(step: EngineStep, part: str) -> str:
    """Name what priced a part: laws by kind and dtype, the nearest law, the datasheet for bytes alone."""
    spent = step.sources[part]
    return ", ".join(sorted(spent, key=lambda name: -spent[name]))


def _total(step: EngineStep) -> _Row:
    return _Row("step", step.time_s, 1.0, "", *step.interval_s)


def served_json(prediction: EnginePrediction) -> dict[str, Any]:
    """The prediction for ``--json``, in SI units."""
    engine = prediction.engine
    return {
        "model": prediction.model,
        "hardware": prediction.hardware,
        "engine": {"name": engine.name, "since": engine.since, "sources": list(engine.sources)},
        "scheme": asdict(prediction.scheme),
        "ranks": prediction.ranks,
        "parallel": asdict(prediction.parallel),
        "workloads": [_step_json(step) for step in prediction.steps],
        "requests": [asdict(request) for request in prediction.requests],
        "notes": list(prediction.notes),
    }


def _step_json(step: EngineStep) -> dict[str, Any]:
    low, high = step.interval_s
    return {
        "parts": [workload.model_dump() for workload in step.workloads],
        "passes": step.passes,
        "time_s": step.time_s,
        "low_s": low,
        "high_s": high,
        "kernels_s": dict(step.parts_s),
        "by_law_s": dict(step.by_law),
        "likened_s": dict(step.likened),
        "without_law": step.without_law,
        "host_s": step.host_s,
        "engine_s": {name: asdict(own) for name, own in step.own.items()},
        "cache_bytes": step.cache_bytes,
    }
