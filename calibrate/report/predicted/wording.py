"""What a prediction says in words: titles, headlines, memory. The views only lay it out.

Example: ``headline(step, prediction)`` is ``"3.59 ms, 2.23 k tokens/s; waits for HBM 100 %; memory 18.2 GB of 141 GB"``
"""

from collections.abc import Sequence

from calibrate.report.predicted.kinds import bound_shares
from calibrate.report.units import UNKNOWN, magnitude, number, percent, seconds, size
from calibrate.report.wording import workload_title
from roofline.graph.memory import Footprint
from roofline.predict.passes import PassPrediction, Prediction, RequestPrediction

FORM = {"fused": "the ideal graph, all fused that can be", "executed": "the graph as transformers executes it"}

BOUNDS_NAMED = 3
"""What a pass waits for, in its headline."""

WORDS = {
    "layer kind": "the operations of one kind, dtype and bound under one module path; * is the index of a layer",
    "×": "executions in the whole model",
    "time": "of all executions at the peaks, one operation after another; the rows add up to the pass",
    "FLOPs": "a multiply-add is 2; matrix and vector work together",
    "memory": "bytes read and written, each distinct element once an operation",
    "FLOP/B": "operational intensity: FLOPs ÷ memory",
    "FLOP/s": "attainable: FLOPs ÷ time",
    "bound": "what the operation waits for: matrix or vector units, a level of memory, a link",
}
"""Columns of the table of layer kinds."""


def title(step: PassPrediction) -> str:
    """ "decode b8 q1 ctx 2048 bf16", or the parts of a mixed batch."""
    parts = " + ".join(workload_title(workload) for workload in step.workloads)
    return parts if len(step.workloads) == 1 else f"mixed: {parts}"


def summary(prediction: Prediction) -> tuple[str, ...]:
    """What was asked, in a few sentences."""
    form = FORM.get(prediction.form, prediction.form)
    memory = f"{size(prediction.capacity_bytes)} of memory"
    said = [f"{magnitude(prediction.parameters)} parameters; {form}, at {prediction.peaks} peaks; {memory}"]
    if prediction.options:
        said.append("options: " + ", ".join(f"{what} {how}" for what, how in prediction.options.items()))
    fit = []
    if prediction.largest_batch is not None:
        fit.append(f"batch {prediction.largest_batch} at its lengths")
    if prediction.largest_context is not None:
        fit.append(f"{prediction.largest_context} cached tokens at its batch")
    if fit:
        said.append(f"largest that fits, from the first workload: {', '.join(fit)}")
    return tuple(said)


def headline(step: PassPrediction, prediction: Prediction) -> str:
    """Time, throughput, what bounds it, and memory against the capacity, in a line."""
    if step.time_s is None:
        said = [f"time {UNKNOWN}: no {prediction.peaks} peak for {', '.join(step.missing) or 'some of its work'}"]
    else:
        said = [f"{seconds(step.time_s)}, {rate(step.tokens_per_s)}"]
    if step.wall_s is not None:
        said.append(f"{seconds(step.wall_s)} with the host")
    if waits := bounds(step):
        said.append(f"waits for {waits}")
    said.append(f"memory {size(step.memory.peak)} of {size(prediction.capacity_bytes)}")
    return "; ".join(said)


def bounds(step: PassPrediction) -> str:
    """ "HBM 97 %, matrix 3 %"; "" without operations."""
    return ", ".join(f"{name} {percent(share)}" for name, share in bound_shares(step)[:BOUNDS_NAMED])


def misfit(step: PassPrediction | RequestPrediction, prediction: Prediction) -> str:
    """ "! does not fit: needs 170 GB of 141 GB"; "" where it does, or where that is not known."""
    if step.fits is not False:
        return ""
    needed = step.memory.peak if isinstance(step, PassPrediction) else step.peak_bytes
    return f"! does not fit: needs {size(needed)} of {size(prediction.capacity_bytes)}"


def memory(found: Footprint) -> str:
    """The parts of the peak."""
    parts = (
        ("weights", found.weights),
        ("KV cache", found.kv_cache),
        ("activations", found.activations),
        ("peak", found.peak),
    )
    return "memory: " + ", ".join(f"{name} {size(value)}" for name, value in parts)


def rate(tokens_per_s: float | None) -> str:
    """Tokens a second."""
    return f"{magnitude(tokens_per_s)} tokens/s"


def fits(found: bool | None) -> str:
    """ "yes", "! no", or not known."""
    return {True: "yes", False: "! no", None: UNKNOWN}[found]


Rows = Sequence[Sequence[tuple[str, float | None]]]
"""Cells as (text, value to sort by)."""

REQUEST_COLUMNS = ("batch", "prompt", "output", "TTFT", "TPOT", "end to end", "tokens/s", "memory", "fits")
SWEEP_COLUMNS = ("batch", "query", "context", "time", "tokens/s", "FLOPs", "traffic", "memory", "fits")


def request_rows(prediction: Prediction) -> Rows:
    """A row a request, under `REQUEST_COLUMNS`."""
    return [
        [
            *_counts(request.batch, request.prompt_tokens, request.output_tokens),
            (seconds(request.ttft_s), request.ttft_s),
            (seconds(request.tpot_s), request.tpot_s),
            (seconds(request.end_to_end_s), request.end_to_end_s),
            (magnitude(request.tokens_per_s), request.tokens_per_s),
            (size(request.peak_bytes), request.peak_bytes),
            (fits(request.fits), None if request.fits is None else float(request.fits)),
        ]
        for request in prediction.requests
    ]


def sweep_row(step: PassPrediction) -> Sequence[tuple[str, float | None]]:
    """A pass under `SWEEP_COLUMNS`; the parts of a mixed batch side by side."""
    sizes = [
        ("+".join(number(n) for n in values), float(values[0]))
        for values in zip(*((w.batch, w.query_tokens, w.context_tokens) for w in step.workloads), strict=True)
    ]
    flops = step.matrix_flops + step.vector_flops
    return [
        *sizes,
        (seconds(step.time_s), step.time_s),
        (magnitude(step.tokens_per_s), step.tokens_per_s),
        (magnitude(flops), flops),
        (size(step.bytes.total), step.bytes.total),
        (size(step.memory.peak), step.memory.peak),
        (fits(step.fits), None if step.fits is None else float(step.fits)),
    ]


def phase(step: PassPrediction) -> str:
    """Of the workload, or "mixed"."""
    return step.workloads[0].phase if len(step.workloads) == 1 else "mixed"


def _counts(*values: int) -> list[tuple[str, float | None]]:
    return [(number(value), float(value)) for value in values]
