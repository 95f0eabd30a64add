"""The report of several predictions: models × workloads, the devices of each workload below one another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibrate.report.document import Cell, Column, Document, Lines, Part, Section, Text, figure, table
from calibrate.report.prediction import between, bounds, summary
from calibrate.report.prediction_rows import pass_title
from roofline.predict.passes import PassPrediction, Prediction, RequestPrediction
from roofline.units import UNKNOWN, dtype, magnitude, percent, size

FIRST = "a ratio is the time ÷ that of the first device named"


@dataclass(frozen=True)
class _Row:
    """One pass or request on one device."""

    title: str
    """"" below the first device of a pass."""
    prediction: Prediction
    of: PassPrediction | RequestPrediction
    ratio: float | None
    """Its time ÷ that of the first device; None where one of them is not known, and for the first itself."""


def _device(row: _Row) -> str:
    return row.prediction.hardware


def _ratio(row: _Row) -> Cell:
    return Cell("" if row.ratio is None else f"{row.ratio:.2f}×", row.ratio)


def _fits(row: _Row) -> Cell:
    fits = row.of.fits
    return Cell({True: "yes", False: "! no", None: UNKNOWN}[fits], bad=fits is False)


def _memory(row: _Row) -> float:
    return row.of.memory.peak if isinstance(row.of, PassPrediction) else row.of.peak_bytes


def _share(row: _Row) -> Cell:
    return figure(_memory(row) / row.prediction.capacity_bytes, percent)


PASSES: tuple[Column[_Row], ...] = (
    Column("pass", lambda row: row.title, words=True),
    Column("device", _device, words=True),
    Column("time", lambda row: figure(row.of.time_s), strong=True),  # type: ignore[union-attr]
    Column("ratio", _ratio, optional=True, drop=1),
    Column("90 %", lambda row: between(row.of.low_s, row.of.high_s), words=True, optional=True, drop=5),  # type: ignore[union-attr]
    Column("tokens/s", lambda row: figure(row.of.tokens_per_s, magnitude), drop=3),
    Column("memory", lambda row: figure(_memory(row), size), drop=6),
    Column("of capacity", _share, drop=4),
    Column("fits", _fits, words=True, drop=2),
    Column("waits for", lambda row: bounds(row.of), words=True, optional=True, drop=7),  # type: ignore[arg-type]
)
REQUESTS: tuple[Column[_Row], ...] = (
    Column("request", lambda row: row.title, words=True),
    Column("device", _device, words=True),
    Column("TTFT", lambda row: figure(row.of.ttft_s)),  # type: ignore[union-attr]
    Column("TPOT", lambda row: figure(row.of.tpot_s), strong=True),  # type: ignore[union-attr]
    Column("end to end", lambda row: figure(row.of.end_to_end_s), drop=2),  # type: ignore[union-attr]
    Column("ratio", _ratio, optional=True, drop=1),
    Column("tokens/s", lambda row: figure(row.of.tokens_per_s, magnitude), drop=4),
    Column("of capacity", _share, drop=5),
    Column("fits", _fits, words=True, drop=3),
)


def side_by_side(cases: Sequence[Sequence[Prediction]], failed: Mapping[str, str]) -> Document:
    """The report; a case is the predictions of one model on each device that it could be predicted on.

    `failed` has what could not be predicted, "MODEL on DEVICE", and why.
    """
    models = [found[0].model for found in cases]
    devices = dict.fromkeys(prediction.hardware for found in cases for prediction in found)
    titles = [
        model if models.count(model) == 1 else _title(found[0]) for model, found in zip(models, cases, strict=True)
    ]
    parts: list[Part] = [Text(f"could not be predicted: {name}: {why}", "warning") for name, why in failed.items()]
    parts += [_case(title, found) for title, found in zip(titles, cases, strict=True)]
    if len(devices) > 1:
        parts.append(Text(FIRST, "faint"))
    about = [titles[0] if len(titles) == 1 else f"{len(titles)} models"]
    about += [next(iter(devices)) if len(devices) == 1 else f"{len(devices)} devices"]
    return Document(" on ".join(about), parts)


def _title(prediction: Prediction) -> str:
    """A model with what tells it from another of the same name: its dtype and options."""
    dtypes = dict.fromkeys(dtype(workload.dtype) for step in prediction.passes for workload in step.workloads)
    return ", ".join([prediction.model, *dtypes, *(f"{name} {value}" for name, value in prediction.options.items())])


def _case(title: str, predictions: Sequence[Prediction]) -> Section:
    said: dict[str, list[str]] = {}
    for prediction in predictions:
        first, *more = summary(prediction)
        for line in (first.removesuffix(f"; {size(prediction.capacity_bytes)} of memory"), *more):
            said.setdefault(line, []).append(prediction.hardware)
    lines = [
        line if len(devices) == len(predictions) else f"{', '.join(devices)}: {line}" for line, devices in said.items()
    ]
    notes = dict.fromkeys(f"note: {note}" for prediction in predictions for note in prediction.notes)
    passes = [
        row
        for steps in zip(*(prediction.passes for prediction in predictions), strict=True)
        for row in _rows(pass_title(steps[0]), predictions, steps, [step.time_s for step in steps])
    ]
    requests = [
        row
        for one in zip(*(prediction.requests for prediction in predictions), strict=True)
        for row in _rows(_request_title(one[0]), predictions, one, [request.end_to_end_s for request in one])
    ]
    tables = (table(PASSES, passes), table(REQUESTS, requests))
    return Section(title, (Lines(lines, tone="faint"), Lines(list(notes), tone="warning"), *tables))


def _request_title(request: RequestPrediction) -> str:
    return f"b{request.batch} {request.prompt_tokens} + {request.output_tokens}"


def _rows(
    title: str,
    predictions: Sequence[Prediction],
    of: Sequence[PassPrediction | RequestPrediction],
    times: Sequence[float | None],
) -> list[_Row]:
    first_s = times[0]
    return [
        _Row(
            title if i == 0 else "",
            prediction,
            one,
            None if i == 0 or not first_s or time_s is None else time_s / first_s,
        )
        for i, (prediction, one, time_s) in enumerate(zip(predictions, of, times, strict=True))
    ]
